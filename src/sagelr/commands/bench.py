"""sagelr bench."""

from __future__ import annotations

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import Progress

from sagelr.commands.app import app, check_folder, console
from sagelr.errors import UsageError


@app.command()
def bench(
    shapes: Annotated[
        str | None,
        typer.Option(help="Lists of tensors, by comma: bert-base, flat, small, flat-1b."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Names of contestants, by comma; * stands for any part of a name."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=3, help="Turns of everyone; who is slow has fewer.")
    ] = 20,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes a GPU where there is one.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads on a CPU; torch's number by default.")
    ] = None,
    end_to_end: Annotated[
        bool | None,
        typer.Option(
            help="Whole training steps of the packaged MiniLM; by default where it is installed, "
            "unless --shapes asks for something else."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the JSON and the table in Markdown.")
    ] = Path("results/bench"),
) -> None:
    """Time a step of every optimizer, and count its memory, next to torch's and others.

    All in one run, in which they take turns. On two idle cores it takes about ten minutes.
    """
    import torch

    from sagelr.bench import document as found
    from sagelr.bench import table
    from sagelr.bench.contestants import chosen, everyone
    from sagelr.bench.peers import PEERS
    from sagelr.bench.run import TRAINING, run
    from sagelr.bench.shapes import DEFAULTS, named
    from sagelr.bench.training import PACKAGE
    from sagelr.jsonfile import write
    from sagelr.provenance import machine, now, versions

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, but torch sees no GPU here. Use --device cpu.")
    lists = named(_split(shapes) or DEFAULTS[device])
    if end_to_end is None:
        end_to_end = shapes is None and find_spec(PACKAGE) is not None
    contestants = chosen(everyone(device), _split(only))
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    usual = torch.get_num_threads()
    torch.set_num_threads(threads or usual)
    idle = found.idle()
    if idle["warning"]:
        console.print(idle["warning"], style="yellow", markup=False)
    started = now()
    try:
        with Progress(console=console, transient=True) as bar:
            tasks = {name: bar.add_task(name, total=1.0) for name in lists}
            if end_to_end:
                tasks[TRAINING] = bar.add_task(TRAINING, total=1.0)
            suites = run(
                lists,
                contestants,
                rounds=rounds,
                device=device,
                end_to_end=end_to_end,
                progress=lambda name, what, share: bar.update(
                    tasks[name], description=f"{name}: {what}", completed=share
                ),
            )
    finally:
        torch.set_num_threads(usual)
    document = found.document(
        {
            "created": started,
            "command": shlex.join(["sagelr", *sys.argv[1:]]),
            "machine": machine("cpu" if device == "cpu" else "auto"),
            "versions": versions() | versions(peer.package for peer in PEERS),
            "device": device,
            "threads": threads or usual,
            "rounds": rounds,
            "idle": idle,
        },
        suites,
    )
    path = _new(out, f"{device}-{started[:19].replace(':', '')}")
    write(path, document)
    path.with_suffix(".md").write_text(table.markdown(document), encoding="utf-8")
    for suite in suites:
        console.print(table.rich(suite))
        for note in table.notes(suite):
            console.print(note, markup=False)
    console.print(f"Results: {path}, {path.with_suffix('.md')}", markup=False, soft_wrap=True)


def _split(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def _new(folder: Path, stem: str) -> Path:
    """A file that is not there yet: no run takes the place of another."""
    path = folder / f"{stem}.json"
    number = 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    return path
