"""sagelr train."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sagelr.commands.app import (
    RecipeArgument,
    SetOption,
    again,
    app,
    check_apart,
    check_folder,
    console,
    overrides_of,
    room,
)
from sagelr.errors import SagelrError, UsageError

if TYPE_CHECKING:
    from sagelr.recipe import Recipe, Setting
    from sagelr.train import Moment

LOCK = ".train.lock"


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
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for run.json and the model; runs/RECIPE-ARM-seedN by default."),
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Score the test split after the last epoch.")
    ] = False,
    predict: Annotated[
        bool,
        typer.Option("--predict", help="Write the task's predictions, where it has any to make."),
    ] = False,
    keep_optimizer: Annotated[
        bool,
        typer.Option("--keep-optimizer", help="Save the optimizer's state too, for sagelr audit."),
    ] = False,
    keep_checkpoints: Annotated[
        bool,
        typer.Option(
            "--keep-checkpoints",
            help="Keep the weights of every checkpoint, for sagelr audit at matched loss.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")
    ] = False,
    set_: SetOption = None,
) -> None:
    """Train once; write the scores to run.json and the model in safetensors.

    Only the validation split is scored unless --test is given: a test split that settings were
    tried out on is no test any more. Ctrl-C saves a checkpoint, and --resume goes on from it.
    Started by torchrun, several devices train the one model; there --resume goes on from the last
    checkpoint, one an epoch or every train.save_every steps.
    """
    import torch.distributed

    from sagelr.jsonfile import write
    from sagelr.provenance import machine, versions
    from sagelr.recipe import load
    from sagelr.tasks import hub
    from sagelr.train import Run, check_arm, name_of, processes, rank
    from sagelr.train import train as run
    from sagelr.training import checkpoint
    from sagelr.training.precision import notices, settled

    main = rank() == 0
    console.quiet = not main  # the other processes only help
    overrides = overrides_of(set_)
    checked = settled(load(recipe, overrides))
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
    if main:
        _check_folder(folder, resume, overwrite)
    task = checked.make_task()
    if predict:
        task.prepare_predictions()
    for line in (*task.notices(), *notices(checked.train)):
        console.print(line, markup=False, soft_wrap=True)
    anew = main and overwrite and not resume
    if anew:
        model = hub.folder_of(task.pretrained) if task.pretrained else None
        for each in (folder, *checkpoint.folders(folder)):
            check_apart(each, model)
        _check_ours(folder)
    console.print(f"{chosen.label} at {name_of(setting)}, seed {seed}", markup=False)
    stop = _Stop()

    def observe(moment: Moment) -> None:
        display.show(moment)
        stop.over = moment.step >= moment.total

    def begin() -> None:
        if anew:  # only now: what is refused has to leave all as it was
            checkpoint.clear(folder)

    def after_room() -> str:
        if checkpoint.last(folder):
            return f"go on from its checkpoint: {again('--resume')}"
        return f"begin anew: {again('--overwrite')}"

    with (
        room(folder, after_room),
        _alone(folder) if main else contextlib.nullcontext(),
        _how_to_go_on(folder, stop),
        _Display() as display,
        _ctrl_c(stop, processes() == 1),
    ):
        result = run(
            checked,
            Run("train", name, setting, seed),
            task,
            observe=observe if main else None,
            stop=stop if processes() == 1 else None,
            score_test=test,
            begin=begin,
            save=folder,
            keep_optimizer=keep_optimizer,
            keep_checkpoints=keep_checkpoints,
            predict=predict,
            resume=resume,
        )
        if processes() > 1:
            torch.distributed.destroy_process_group()  # left open, some back ends warn, or hang
        if main:
            write(
                folder / "run.json",
                {
                    **result,
                    "recipe": checked.to_json(),
                    "overrides": overrides,
                    "data": task.describe(),
                    "command": shlex.join(["sagelr", *sys.argv[1:]]),
                    "machine": machine(checked.train.device),
                    "versions": versions(),
                },
            )
            checkpoint.remove(folder)
    if not main:
        return
    if result["status"] == "diverged":
        raise SagelrError(
            f"The training diverged: {result['error']}. Try a lower --lr than {setting['lr']:g}. "
            f"What there is of it is in {folder / 'run.json'}."
        )
    for split in ("validation", "test"):
        if scores := result["scores"][split]:
            score = checked.score.show(scores[checked.metric])
            console.print(f"{split}: {checked.score.label} {score}, loss {scores['loss']:.4g}")
    console.print(f"Model and run.json: {folder}", markup=False, soft_wrap=True)
    if predict:
        if problem := result["predictions"]["problem"]:
            raise SagelrError(f"No predictions: {problem}")
        files = ", ".join(result["predictions"]["files"])
        where = f"Predictions: {folder / 'predictions'}: {files}"
        console.print(where, markup=False, soft_wrap=True)


def _check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """See that the folder is the training's to write into."""
    from sagelr.training import checkpoint

    check_folder(folder)
    if resume:
        if checkpoint.last(folder) is None:
            done = (folder / "run.json").exists()
            why = "the training in it is finished" if done else "there is none in it"
            raise UsageError(
                f"--resume needs a checkpoint in {folder}, and {why}. Leave --resume out to begin "
                "a training, or give --out the folder of one that was stopped."
            )
    elif not overwrite and folder.exists() and _content(folder):
        stopped = checkpoint.last(folder)
        go_on = ", or --resume to go on from its checkpoint" if stopped else ""
        raise UsageError(
            f"{folder} is not empty. Give --out another folder, or --overwrite{go_on}."
        )


def _check_ours(folder: Path) -> None:
    """See that what --overwrite would remove is a training's of ours."""
    from sagelr.training import checkpoint

    # A training that ended early leaves the file of its lock.
    if not (folder / LOCK).exists() and (found := checkpoint.foreign(folder)):
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UsageError(
            f"{folder} was not written by sagelr train, and {found[0].name}{more} would be gone. "
            "Move that away, or give --out another folder."
        )


def _content(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if each.name != LOCK]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder that no other training may write into meanwhile.

    Raises:
        SagelrError: another one does, or it cannot be held.
    """
    from sagelr.study.storage import locked
    from sagelr.training import checkpoint

    new, remedy = not folder.exists(), "Wait until it is done, stop it, or give --out another one."
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, LOCK, remedy):
            try:
                yield
            finally:
                if not checkpoint.foreign(folder):  # else it tells whose the rest is
                    (folder / LOCK).unlink(missing_ok=True)
    finally:
        if new:  # it stays if there is anything in it
            with contextlib.suppress(OSError):
                folder.rmdir()


class _Stop:
    """What the training asks after every step: a signal says yes, a second one does not wait."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self.over = False  # every step is taken, and the model is being scored

    def __call__(self) -> bool:
        return self.caught is not None

    def catch(self, signum: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise KeyboardInterrupt
        self.caught = signum
        told = "Saving a checkpoint. Once more to stop without."
        if self.over:
            told = "Every step is taken; the scores follow. Once more to stop without the model."
        with contextlib.suppress(OSError):  # the terminal may be gone
            console.print(told, markup=False)


@contextlib.contextmanager
def _ctrl_c(stop: _Stop, alone: bool) -> Iterator[None]:
    """Signals stop the training after its step, if it is in this process alone.

    Several processes would hear of it at different steps: there, the last checkpoint stands.
    """
    from sagelr.study.signals import handled

    with handled(stop.catch) if alone else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _how_to_go_on(folder: Path, stop: _Stop) -> Iterator[None]:
    """What is said when the training is stopped; in one process of several, by the first alone."""
    from sagelr.train import StoppedTrainingError, rank
    from sagelr.training import checkpoint

    try:
        yield
    except (SagelrError, KeyboardInterrupt) as error:
        if rank():
            raise typer.Exit(getattr(error, "exit_status", 130)) from None
        if not isinstance(error, StoppedTrainingError | KeyboardInterrupt):
            raise
        told = [str(error) or "Stopped."]
        found = checkpoint.last(folder)
        if found is None:
            told.append("There is no checkpoint yet.")
        else:
            told.append(f"Checkpoint: {found}\nTo go on: {again('--resume')}")
        stopped = StoppedTrainingError(" ".join(told))
        stopped.exit_status = 128 + (stop.caught or signal.SIGINT)
        raise stopped from None


class _Display:
    """How a training stands: a bar in a terminal, a line now and then elsewhere."""

    def __enter__(self) -> _Display:
        self._began: tuple[float, float] | None = None
        self._next = 0.1
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]}{task.fields[r]}"),
            BarColumn(),
            TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        if console.is_terminal:
            self._bar.start()
            self._task = self._bar.add_task("", total=1, epoch="0.0", loss="–", r="")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, moment: Moment) -> None:
        """Show how it stands."""
        loss = "–" if moment.loss is None else f"{moment.loss:.4f}"
        r = "" if moment.multiplier is None else f"  multiplier {moment.multiplier:.2f}"
        if console.is_terminal:
            self._bar.update(
                self._task,
                total=moment.total,
                completed=moment.step,
                epoch=f"{moment.epoch:.1f}",
                loss=loss,
                r=r,
            )
            return
        share, now = moment.step / moment.total, time.monotonic()
        if self._began is None:
            self._began = (share, now)
        if share >= self._next:
            self._next = share + 0.1
            gone = share - self._began[0]
            left = (now - self._began[1]) * (1 - share) / gone if gone else 0.0
            told = f", about {max(1, round(left))} s left" if left else ""
            print(
                f"step {moment.step} of {moment.total}, epoch {moment.epoch:.1f}: loss {loss}{r}"
                f"{told}",
                flush=True,
            )


def _setting(recipe: Recipe, name: str, given: dict[str, float | None]) -> Setting:
    """What was given on the command line, and the middle of the arm's grid for the rest."""
    setting = recipe.middle(name)
    tuned = set(setting)
    for axis, value in given.items():
        if value is not None:
            if axis not in tuned and (role := recipe.arms[name].role) != "sage":
                raise UsageError(f"--{axis} is for sage arms; {name} is a {role}.")
            setting[axis] = value
    return setting
