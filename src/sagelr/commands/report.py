"""sagelr report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagelr.commands.app import app, console


@app.command()
def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER|FILE...",
            help="Folder of a study or an audit, a results.json, an audit.json, or the .jsonl or "
            ".parquet of a probe; several go on one page.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; report.html beside the first of them by default."),
    ] = None,
) -> None:
    """Render the page of a study, an audit, or both."""
    from sagelr.report import write_report

    first = sources[0]
    beside = (first if first.is_dir() else first.parent) / "report.html"
    written = write_report(sources, out or beside)
    console.print(f"Page: {written}", markup=False, soft_wrap=True)
