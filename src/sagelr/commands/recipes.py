"""sagelr recipes."""

from __future__ import annotations

import sys

import typer
from rich.markup import escape
from rich.table import Table

from sagelr.commands.app import RecipeArgument, app, console

recipes_app = typer.Typer(help="List the recipes that come with sagelr, or show one.")
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List the recipes that come with sagelr."""
    if context.invoked_subcommand is not None:
        return
    from sagelr.recipe import built_in, load

    table = Table()
    for heading in ("recipe", "what", "arms"):
        table.add_column(heading)
    for name in built_in():
        recipe = load(name)
        table.add_row(name, escape(recipe.title), ", ".join(recipe.study.arms))
    console.print(table)
    console.print("sagelr recipes show NAME prints one, as a start for one's own.")


@recipes_app.command()
def show(recipe: RecipeArgument) -> None:
    """Print a recipe's TOML; of a results.json or run.json, the recipe in it."""
    from sagelr.recipe import read

    # A recipe is UTF-8, wherever it goes.
    sys.stdout.flush()
    sys.stdout.buffer.write(read(recipe)[1].encode())
    sys.stdout.buffer.flush()
