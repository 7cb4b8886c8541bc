"""The program `sagelr`, and what its commands share."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from sagelr.errors import SagelrError, UsageError, is_no_room
from sagelr.version import __version__


class Program(TyperGroup):
    """The commands."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; the end of a file that came too early is an error like any other.

        Raises:
            RuntimeError: it came; of EOFError, Typer would say no more than "Aborted."
        """
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError(f"a file ended too early: {error}") from error


app = typer.Typer(
    cls=Program,
    help="SAGE learning rates: compare a SAGE optimizer with its tuned base, fairly.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False, emoji=False)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A built-in recipe, or the path of a .toml file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting, as in train.epochs=5."),
]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(f"sagelr {__version__}")
        raise typer.Exit


def check_folder(folder: Path, option: str = "--out") -> None:
    """See that what is to be written into is no file, and lies in none."""
    for each in (folder, *folder.parents):
        if each.exists() and not each.is_dir():
            raise UsageError(f"{each} is a file. Give {option} a folder.")
        if each.is_symlink() and not each.exists():
            raise UsageError(f"{each} is a link to nothing. Give {option} a folder.")


def check_apart(folder: Path, source: Path | None, option: str = "--out") -> None:
    """See that a model that is read is not written over."""
    if source is not None and source.resolve() == folder.resolve():
        raise UsageError(
            f"{source} is the model that is read, and would be gone. Give {option} another folder."
        )


@contextlib.contextmanager
def room(where: Path | None, then: Callable[[], str]) -> Iterator[None]:
    """Say what to do where the disk is full, whoever finds it so.

    Args:
        where: what could not be written.
        then: what to do after room was made, asked when it is known what there is.

    Raises:
        SagelrError: no space is left.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SagelrError) or not is_no_room(error):
            raise
        raise SagelrError(f"No space left for {where}. Make room, then {then()}") from error


def overrides_of(given: list[str] | None) -> dict[str, Any]:
    from sagelr.recipe import parse_override

    return dict(parse_override(text) for text in given or [])


def again(option: str) -> str:
    """The command as it was given, with another option for its folder."""
    words = [word for word in sys.argv[1:] if word not in ("--overwrite", "--resume")]
    return shlex.join(["sagelr", *words, option])
