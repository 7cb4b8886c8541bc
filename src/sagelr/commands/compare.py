"""sagelr compare."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sagelr.commands.app import RecipeArgument, SetOption, app, check_folder, console, overrides_of
from sagelr.errors import SagelrError, UsageError

if TYPE_CHECKING:
    from sagelr.recipe import Recipe
    from sagelr.study.run import Standing

PAGE_EVERY = 15.0  # seconds between renderings of the page while runs finish, at least
PLAIN = str.maketrans("\u2212\u00a0", "- ")  # what the page typesets, as a terminal has it
PAGE_SHARE = 0.02  # of the time, at most, that goes into them


@app.command()
def compare(
    recipe: RecipeArgument,
    arms: Annotated[
        str | None, typer.Option(metavar="A,B", help="Arms to compare, in place of the recipe's.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Seeds that the arms are compared on.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Trainings at once; one a GPU or, without, one a core."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the study; runs/RECIPE or runs/RECIPE-quick by default."),
    ] = None,
    set_: SetOption = None,
    reuse: Annotated[
        Path | None,
        typer.Option(
            help="Folder of another study: what it has run in the very same way is taken over, so "
            "that an arm more costs little more than its own runs."
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Keep the study on a PostgreSQL server, as postgresql://USER@HOST/DATABASE, for "
            "the same command on many machines at once.",
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Name of the study in --storage; the recipe's by default.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A smoke run of seconds that proves nothing.")
    ] = False,
) -> None:
    """Tune every arm alike, compare them on fresh seeds, and write results.json and report.html.

    Ctrl-C keeps what is finished; the same command goes on from there. With --storage, start it on
    as many machines as there are: each takes runs that none has taken yet, takes over those of a
    machine that died, and writes the same results in the end.
    """
    from sagelr.recipe import load
    from sagelr.study.identity import PAGE
    from sagelr.study.run import Request
    from sagelr.study.run import compare as run

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "sagelr compare starts its own workers, one for each training at once, and cannot be "
            "started by torchrun or accelerate launch. Use --jobs on one machine and --storage on "
            "several; sagelr train is what trains one model on several devices."
        )
    if study is not None and storage is None:
        raise UsageError(
            "--study names a study on a server, so --storage is needed as well. Without a server, "
            "each study has a folder of its own: --out."
        )
    command = _command(storage)
    overrides = overrides_of(set_)
    for option, given, key in (
        ("--arms", arms, "study.arms"),
        ("--seeds", seeds, "study.report_seeds"),
    ):
        if given is not None and key in overrides:
            raise UsageError(f"{option} and --set {key}=… say the same thing. Give one of them.")
    if seeds is not None:
        overrides["study.report_seeds"] = seeds
    names = None if arms is None else [name.strip() for name in arms.split(",") if name.strip()]
    checked = load(recipe, overrides, arms=names, quick=quick)
    if names is not None and not checked.chosen_pairs():
        raise UsageError(
            f"There is nothing to compare among the arms {', '.join(checked.study.arms)}: it takes "
            "an arm and the base that it names. Give both with --arms."
        )
    _check_bases(checked)
    name = checked.name + ("-quick" if quick else "")
    folder = out or Path("runs") / name
    check_folder(folder)
    page = _Page()
    with page, _Display(f"{checked.name}{' (smoke run)' if quick else ''}") as display:
        display.note(f"{checked.title}. Results and page: {folder}")
        document = run(
            Request(
                recipe=checked,
                out=folder,
                jobs=jobs or _jobs(checked),
                reuse=reuse,
                storage=storage,
                study=study or name,
                command=command,
                overrides=overrides,
                quick=quick,
                published=page.render,
                standing=display.show,
                note=display.note,
            )
        )
    _tell(document, checked)
    if page.problem:
        console.print(page.problem, style="yellow", markup=False, soft_wrap=True)
    else:
        console.print(f"Page: {folder / PAGE}", markup=False, soft_wrap=True)
    failed = [entry for entry in document["runs"] if entry["status"] == "failed"]
    tuning = [entry for entry in failed if entry["stage"] == "tune"]
    if tuning:
        console.print(
            f"{_failures(tuning, document)} Their settings were not chosen, and the choice stands.",
            markup=False,
        )
    if report := [entry for entry in failed if entry["stage"] == "report"]:
        raise SagelrError(f"{_failures(report, document)} The same command tries them again.")


def _failures(failed: list[dict[str, Any]], document: dict[str, Any]) -> str:
    """How many runs of a stage failed, and the first of them."""
    first = failed[0]
    stage = {"tune": "tuning", "report": "report"}[first["stage"]]
    of = sum(entry["stage"] == first["stage"] for entry in document["runs"])
    return (
        f"{len(failed)} of {of} {stage} runs failed, the first of them {first['key']}: "
        f"{first['error'].rstrip('.')}."
    )


def _command(storage: str | None) -> str:
    """What was typed, without a password."""
    words = ["sagelr", *sys.argv[1:]]
    if storage is not None:
        from sagelr.study.storage import server_url, shown

        hidden = shown(server_url(storage))
        words = [word.replace(storage, hidden) for word in words]
    return shlex.join(words)


class _Page:
    """Renders report.html now and then, and at the end, be it an error or Ctrl-C.

    A page that cannot be made does not stop the study.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self._next = float("-inf")
        self._left_out: tuple[dict[str, Any], Path] | None = None

    def __enter__(self) -> _Page:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # Where there is an error already, it is the one to tell.
        with contextlib.suppress(*[OSError] if kind else []):
            if self._left_out is not None:
                self._render(*self._left_out)

    def render(self, document: dict[str, Any], folder: Path) -> None:
        self._left_out = (document, folder)
        if not self.problem and time.monotonic() >= self._next:
            self._render(document, folder)

    def _render(self, document: dict[str, Any], folder: Path) -> None:
        self._left_out = None
        self.problem, began = None, time.monotonic()
        try:
            from sagelr.report import write_report

            write_report(document, folder / "report.html")
        except ModuleNotFoundError as error:
            self.problem = (
                f"No page: {error.name} is missing. Install it with pip install 'sagelr[report]', "
                f"then: sagelr report {shlex.quote(str(folder))}"
            )
        except OSError:
            raise
        except Exception as error:
            kind = "" if isinstance(error, SagelrError) else f"{type(error).__name__}: "
            self.problem = (
                f"No page: {kind}{str(error).rstrip('.')}. The results are in "
                f"{folder / 'results.json'}."
            )
        now = time.monotonic()
        self._next = now + max(PAGE_EVERY, (now - began) / PAGE_SHARE)


class _Display:
    """Progress: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Progress | None = None
        self._next = 0.0

    def __enter__(self) -> _Display:
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=console,
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task("starting", total=1.0, count="", left="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def note(self, line: str) -> None:
        """A line that stays."""
        console.print(line, markup=False, soft_wrap=True)

    def show(self, standing: Standing) -> None:
        """How far the study is."""
        left = _left(standing.seconds_left)
        count = f"{standing.done} of {standing.total} runs"
        if self.bar is not None:
            self.bar.update(
                self.task,
                description=f"{self.title}: {standing.status}",
                completed=standing.share,
                count=count,
                left=left,
            )
        elif standing.share >= self._next and standing.done:
            self._next = standing.share + 0.1
            print(f"{standing.status}: {count}{', ' if left else ''}{left}", flush=True)


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


def _check_bases(recipe: Recipe) -> None:
    """See that no arm would be tuned and reported with nothing to hold it against."""
    chosen = recipe.chosen_arms()
    for name, arm in chosen.items():
        if arm.base and arm.base not in chosen:
            raise UsageError(
                f"The arm {name} is compared with {arm.base}, which is not among the arms "
                f"{', '.join(chosen)}. Give it too with --arms, or leave {name} out."
            )


def _jobs(recipe: Recipe) -> int:
    """One training a GPU or, without one, a core, as far as memory goes."""
    import psutil
    import torch

    from sagelr.training.run import on_cpu

    if not on_cpu(recipe.train.device):
        return torch.accelerator.device_count()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    memory = int(psutil.virtual_memory().available / 2**30)  # a worker takes 0.6 GiB
    return max(1, min(cores // recipe.train.threads, memory))


def _tell(document: dict[str, Any], recipe: Recipe) -> None:
    """The verdict in words, and a small table."""
    metric = recipe.score
    if document["quick"]:
        console.print("This was a smoke run: it shows that everything works, and proves nothing.")
    for found in document["comparisons"]:
        console.print(sentence(found, document, recipe), markup=False)
        table = Table()
        for heading in ("arm", "setting", f"test {metric.label}", "sd", "seeds"):
            table.add_column(heading)
        for name, arm in found["arms"].items():
            setting = document["tuning"][name]["chosen"]
            table.add_row(
                escape(document["arms"][name]["label"]),
                ", ".join(f"{axis} {value:g}" for axis, value in setting.items()),
                metric.show(arm["mean"]),
                metric.show(arm["sd"]),
                str(arm["n"]),
            )
        console.print(table)
    for lost in document.get("unpaired", ()):
        sage, base = (document["arms"][lost[side]]["label"] for side in ("sage", "base"))
        console.print(f"No comparison of {sage} with {base}: {lost['settles']}", markup=False)
    if not document["comparisons"] and "unpaired" not in document:
        console.print("No comparison: it takes a sage arm, its base, and two seeds of both.")


def sentence(found: dict[str, Any], document: dict[str, Any], recipe: Recipe) -> str:
    """The verdict of one comparison in plain words."""
    from sagelr.report.wording import Scale

    scale = Scale.of(recipe.score.to_json())

    def amount(value: float) -> str:
        return scale.change(value).translate(PLAIN)

    sage, base = (document["arms"][found[side]]["label"] for side in ("sage", "base"))
    gap = found["difference"]
    low, high = (amount(value) for value in gap["ci95"])
    if gap["p_value"] is None:
        return (
            f"Whether {sage} differs from {base} cannot be told yet: {scale.label} "
            f"{amount(gap['mean'])} with each of {found['n']} paired seeds. {found['settles']}"
        )
    details = (
        f"{scale.label} {amount(gap['mean'])} (95% interval {low} to {high}, p = "
        f"{gap['p_value']:.2g}, {found['n']} paired seeds)"
    )
    if "examples_ci95" in found:
        low, high = (amount(value) for value in found["examples_ci95"])
        details += f"; with other test examples as well as seeds, the interval is {low} to {high}"
    if "p_holm" in found:
        details += (
            f"; p = {found['p_holm']:.2g} after Holm's correction for {found['holm_of']} "
            f"comparisons with {base}"
        )
    margin = scale.margin(found["margin"]).translate(PLAIN)
    match found["verdict"]:
        case "better":
            return f"{sage} is better than {base}: {details}."
        case "worse":
            return f"{sage} is worse than {base}: {details}."
        case "equivalent":
            low, high = (amount(value) for value in gap["ci90"])
            real = "real, but " if found["significant"] else ""
            return (
                f"{sage} and {base} are equivalent within {margin}: {details}. The difference is "
                f"{real}within the margin by its 90% interval, {low} to {high}."
            )
    if any(found["failed"].values()):
        return (
            f"Undecided between {sage} and {base}, since some runs did not end with a score. "
            f"Without them: {details}. {found['settles']}"
        )
    detectable = scale.amount(found["smallest_detectable"]).translate(PLAIN)
    return (
        f"No difference between {sage} and {base} was found, nor is it shown that there is none: "
        f"{details}. With these seeds a difference of {detectable} would have been found in four "
        f"cases of five. {found['settles']}"
    )
