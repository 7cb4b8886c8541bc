"""sagelr report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagelr.commands.app import app, console
from sagelr.errors import UsageError


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="Folder of a study, or its results.json.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; report.html beside the results by default.")
    ] = None,
) -> None:
    """Render the page of a study anew."""
    from sagelr.report import write_report

    path = results / "results.json" if results.is_dir() else results
    if not path.is_file():
        raise UsageError(
            f"{path} does not exist. Give the folder of a study, or the path of its results.json."
        )
    written = write_report(path, out or path.with_name("report.html"))
    console.print(f"Page: {written}", markup=False, soft_wrap=True)
