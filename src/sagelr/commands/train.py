"""sagelr train."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from sagelr.commands.app import RecipeArgument, SetOption, app, console, overrides_of
from sagelr.errors import SagelrError, UsageError

if TYPE_CHECKING:
    from sagelr.recipe import Recipe, Setting


@app.command()
def train(
    recipe: RecipeArgument,
    arm: Annotated[
        str | None, typer.Option(help="Arm to train; the recipe's first sage arm by default.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate; the middle of the arm's grid by default.")
    ] = None,
    beta0: Annotated[
        float | None, typer.Option(help="Memory of the smoothed sensitivity, for sage arms.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for run.json and the model.")] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Score the test split after the last epoch.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")
    ] = False,
    set_: SetOption = None,
) -> None:
    """Train once; write the scores to run.json and the model in safetensors.

    Only the validation split is scored unless --test is given: a test split that settings were
    tried out on is no test any more.
    """
    from sagelr.recipe import load
    from sagelr.study.results import machine, versions, write
    from sagelr.train import Run, check_arm, name_of
    from sagelr.train import train as run

    overrides = overrides_of(set_)
    checked = load(recipe, overrides)
    name = arm or next(
        (name for name, each in checked.arms.items() if each.role == "sage"), checked.study.arms[0]
    )
    if name not in checked.arms:
        raise UsageError(f"--arm {name!r} is not an arm. Allowed: {', '.join(checked.arms)}.")
    setting = _setting(checked, name, {"lr": lr, "beta0": beta0})
    chosen = checked.arms[name]
    grid = {axis: [value] for axis, value in setting.items()}
    check_arm(name, chosen.model_copy(update={"grid": grid}))
    folder = out or Path("runs") / f"{checked.name}-{name}-seed{seed}"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Give --out a folder.")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise UsageError(f"{folder} is not empty. Give --out another folder, or --overwrite.")
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"{chosen.label} at {name_of(setting)}, seed {seed}", markup=False)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("training", total=1.0)
        result = run(
            checked,
            Run("train", name, setting, seed),
            progress=lambda share: bar.update(task, completed=share),
            score_test=test,
            save=folder,
        )
    write(
        folder / "run.json",
        {
            **result,
            "recipe": checked.to_json(),
            "overrides": overrides,
            "command": shlex.join(["sagelr", *sys.argv[1:]]),
            "machine": machine(checked.train.device),
            "versions": versions(),
        },
    )
    if result["status"] == "diverged":
        raise SagelrError(
            f"The training diverged: {result['error']}. Try a lower --lr than {setting['lr']:g}. "
            f"What there is of it is in {folder / 'run.json'}."
        )
    for split in ("validation", "test"):
        if scores := result["scores"][split]:
            score = checked.score.show(scores[checked.metric])
            console.print(f"{split}: {checked.metric} {score}, loss {scores['loss']:.4g}")
    console.print(f"Model and run.json: {folder}", markup=False, soft_wrap=True)


def _setting(recipe: Recipe, name: str, given: dict[str, float | None]) -> Setting:
    """What was given on the command line, and the middle of the arm's grid for the rest."""
    grid = recipe.arms[name].grid
    setting = {axis: values[(len(values) - 1) // 2] for axis, values in grid.items()}
    for axis, value in given.items():
        if value is not None:
            if axis not in grid and recipe.arms[name].role == "base":
                raise UsageError(f"--{axis} is for sage arms; {name} is a base.")
            setting[axis] = value
    return setting
