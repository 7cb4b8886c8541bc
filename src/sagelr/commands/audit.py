"""sagelr audit."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from sagelr.commands.app import (
    SetOption,
    again,
    app,
    check_apart,
    check_folder,
    console,
    overrides_of,
    room,
)
from sagelr.errors import UsageError

if TYPE_CHECKING:
    from sagelr.schema import Recipe

AUDIT, PAGE = "audit.json", "report.html"


class Structures(StrEnum):
    """Typer takes lists of these, and of no Literal."""

    unstructured = "unstructured"
    fours = "2:4"
    heads = "heads"
    neurons = "neurons"


class Scores(StrEnum):
    """Of `sagelr.audit.pruning.SCORES`."""

    sensitivity = "sensitivity"
    magnitude = "magnitude"
    product = "sensitivity-variation"
    bound = "upper-confidence"


@app.command()
def audit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL",
            help="A folder of sagelr train, the folder of a model, or a model's name on the hub.",
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(help="Whose data to audit a model on: built-in, or a .toml file."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="A second run or model, to hold the first against.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for audit.json and the page; audits/NAME by default."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows of a measured batch; sensitivity depends on it.")
    ] = 32,
    examples: Annotated[int, typer.Option(min=1, help="Training rows to measure on.")] = 1000,
    split: Annotated[
        Literal["validation", "test"], typer.Option(help="Split to score pruned models on.")
    ] = "validation",
    curves: Annotated[bool, typer.Option(help="Make pruning curves, or leave them out.")] = True,
    structure: Annotated[
        list[Structures] | None, typer.Option(help="What to prune; all of these by default.")
    ] = None,
    score: Annotated[
        list[Scores] | None,
        typer.Option(help="What the lowest of goes; the first two of these by default."),
    ] = None,
    scope: Annotated[
        Literal["global", "layer"], typer.Option(help="Rank all together, or by layer.")
    ] = "global",
    sparsities: Annotated[
        str, typer.Option(metavar="LIST", help="Of the curves, as in 0.2,0.4.")
    ] = "0.05,0.1,0.15,0.2,0.25,0.3,0.35,0.4,0.45,0.5,0.55,0.6,0.65,0.7,0.75,0.8,0.85,0.9,0.95",
    finetune: Annotated[
        int, typer.Option(min=0, help="Epochs of training after pruning, for a second set.")
    ] = 0,
    finetune_lr: Annotated[
        float | None, typer.Option(min=0, help="lr of that; the run's own by default.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Folder for the model pruned by the first structure and score."),
    ] = None,
    sparsity: Annotated[float | None, typer.Option(help="Of the exported model.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into folders that are not empty.")
    ] = False,
    set_: SetOption = None,
) -> None:
    """Look at what a training left behind: sensitivity, redundancy, and what can be pruned."""
    import sagelr
    from sagelr.audit.schema import DEFINITIONS, SCHEMA
    from sagelr.audit.subjects import find_all
    from sagelr.audit.whole import Request, run
    from sagelr.jsonfile import write
    from sagelr.provenance import machine, now, versions

    began = time.perf_counter()
    overrides = overrides_of(set_)
    sources = [each for each in (model, against) if each is not None]
    subjects = find_all(sources, recipe, overrides)
    names = [re.sub(r"[^\w.-]+", "-", subject.name) for subject in subjects]
    folder = out or Path("audits") / "-against-".join(names)
    _check_empty(folder, "--out", overwrite)
    if export is not None:
        _check_empty(export, "--export", overwrite)
        for subject in subjects:
            check_apart(export, subject.folder, "--export")
    unsaved: list[Exception] = []
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("loading", total=1.0)
        request = Request(
            subjects,
            batch_size=batch_size,
            examples=examples,
            split=split,
            curves=curves,
            structures=tuple(each.value for each in structure or ()) or Request.structures,
            scores=tuple(each.value for each in score or ()) or Request.scores,
            scope=scope,
            sparsities=_numbers(sparsities),
            finetune=finetune,
            finetune_lr=finetune_lr,
            export=export,
            sparsity=sparsity,
            begin=lambda: _make(folder, export),
            failed=unsaved.append,
            note=lambda line: console.print(line, markup=False),
            progress=lambda share, doing: bar.update(task, completed=share, description=doing),
        )
        found = run(request)
    checked = subjects[0].recipe
    document = {
        "kind": "audit",
        "schema": SCHEMA,
        "sagelr": sagelr.__version__,
        "created": now(),
        "command": shlex.join(["sagelr", *sys.argv[1:]]),
        "machine": machine(checked.train.device),
        "versions": versions(),
        **found,
        "definitions": DEFINITIONS,
        "seconds": round(time.perf_counter() - began, 3),
    }
    with room(folder, _anew):
        write(folder / AUDIT, document)
    _tell(document, checked)
    console.print(f"Audit: {folder / AUDIT}", markup=False, soft_wrap=True)
    with room(folder / PAGE, lambda: f"make the page: sagelr report {shlex.quote(str(folder))}"):
        _page(folder)
    for error in unsaved:
        with room(export, _anew):
            raise error


def _anew() -> str:
    return f"begin anew: {again('--overwrite')}"


def _check_empty(folder: Path, option: str, overwrite: bool) -> None:
    check_folder(folder, option)
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise UsageError(f"{folder} is not empty. Give {option} another folder, or --overwrite.")


def _make(*folders: Path | None) -> None:
    """Make what is written into in the end, so that what takes long is not lost for that."""
    for folder in folders:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--sparsities {text!r} is not a list of numbers. For example: --sparsities 0.2,0.4"
        ) from None


def _tell(document: Mapping[str, Any], recipe: Recipe) -> None:
    """The figures of each model in a table, and what was exported."""
    from sagelr.audit.pruning import unit

    how = document["measurement"]
    console.print(
        f"Measured on {how['examples']} training rows in {how['batches']} batches of "
        f"{how['batch_size']}; sensitivity depends on the batch size."
    )
    table = Table()
    for heading in ("", *(model["label"] for model in document["models"])):
        table.add_column(escape(heading))
    found = [model["sensitivity"] for model in document["models"]]
    rows = {
        "loss": [f"{each['loss']:.4g}" for each in found],
        "mean sensitivity": [f"{each['all']['mean']:.4g}" for each in found],
        "divided by the loss": [_by_loss(each["all"]["mean_by_loss"]) for each in found],
        "Gini coefficient": [f"{each['all']['gini']:.3f}" for each in found],
        "effective parameters": [f"{each['all']['effective_share']:.1%}" for each in found],
        "below 1% of the median": [f"{each['all']['share_below']['0.01']:.1%}" for each in found],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    kept: dict[str, dict[int, str]] = {}  # by kind of curve, of each model that has it
    for number, model in enumerate(document["models"]):
        for curve in model["pruning"]["curves"] if model["pruning"] else ():
            n = curve["finetuned"]
            trained = f", {n} epoch{'s' * (n != 1)} after" if n else ""
            kind = f"{curve['structure']} by {curve['score']}{trained}"
            if (share := curve["keeps99"].get(recipe.metric)) is not None:
                kept.setdefault(kind, {})[number] = f"{share:.0%}"
    for kind, shares in kept.items():
        table.add_row(
            f"99% of {recipe.score.label} up to: {kind}",
            *(shares.get(number, "–") for number in range(len(found))),
        )
    console.print(table)
    if document["comparison"]:
        console.print(document["comparison"]["note"], markup=False)
    for model in document["models"]:
        if saved := model["export"]:
            score = recipe.score.show(saved["scores_reloaded"][recipe.metric])
            console.print(
                f"Pruned model: {saved['folder']}, {saved['pruned']:,} {unit(saved['structure'])} "
                f"at zero, {recipe.score.label} {score} when loaded anew",
                markup=False,
                soft_wrap=True,
            )


def _by_loss(value: float | None) -> str:
    return "no loss above 0" if value is None else f"{value:.4g}"


def _page(folder: Path) -> None:
    """Write the page, where what it takes is installed."""
    try:
        from sagelr.report import write_report

        page = write_report(folder / AUDIT, folder / PAGE)
        console.print(f"Page: {page}", markup=False, soft_wrap=True)
    except ModuleNotFoundError as error:
        console.print(
            f"No page: {error.name} is missing. Install it: pip install 'sagelr[report]', then: "
            f"sagelr report {shlex.quote(str(folder))}",
            markup=False,
            soft_wrap=True,
        )
