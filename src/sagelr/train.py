"""One training: recipe, arm, setting and seed in; scores out. On the Hugging Face Trainer."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import sagelr
from sagelr.errors import SagelrError, UsageError
from sagelr.quiet import silence
from sagelr.schema import Recipe
from sagelr.tasks import Task
from sagelr.training import checkpoint, sharded
from sagelr.training.optimizers import OPTIMIZERS, as_used, check_arm, check_scope, make_optimizer
from sagelr.training.precision import settled
from sagelr.training.run import Moment, Run, StoppedTrainingError, name_of, processes, rank
from sagelr.training.spent import Spent

if TYPE_CHECKING:
    from sagelr.training.trainer import RunTrainer

__all__ = [
    "OPTIMIZERS",
    "Moment",
    "Run",
    "StoppedTrainingError",
    "check_arm",
    "check_scope",
    "make_optimizer",
    "name_of",
    "processes",
    "rank",
    "train",
]


def train(
    recipe: Recipe,
    run: Run,
    task: Task | None = None,
    *,
    progress: Callable[[float], None] | None = None,
    observe: Callable[[Moment], None] | None = None,
    stop: Callable[[], bool] | None = None,
    score_test: bool | None = None,
    audit: Callable[[Any, Task], dict[str, Any]] | None = None,
    begin: Callable[[], None] | None = None,
    save: Path | None = None,
    keep_optimizer: bool = False,
    keep_checkpoints: bool = False,
    predict: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Train once.

    Bit-identical for the same recipe and run on the same machine and number of threads, whatever
    the process did before; also when it was stopped in between and resumed.

    Started by torchrun or `accelerate launch`, every process calls this and gets the same answer;
    the first of them writes.

    Args:
        recipe: what to train.
        run: which arm, setting and seed.
        task: the recipe's task, if it is loaded already.
        progress: called with the share of the steps done.
        observe: called every second with how the training stands.
        stop: asked after every step whether to save a checkpoint and stop there; for a training
            in one process.
        score_test: whether to score the test split after the last epoch; None does for the stage
            "report" alone.
        audit: called with the trained model and the task after the test split of a "report" run
            was scored; what it gives is the entry's "audit".
        begin: called once there is nothing more to refuse, before anything is written.
        save: folder for checkpoints, and in the end for the trained model, as safetensors.
        keep_optimizer: whether to save the optimizer's state too, as optimizer.pt.
        keep_checkpoints: whether to keep the weights of every checkpoint, in `weights-STEP`.
        predict: whether to write the task's predictions into the folder `predictions` of `save`.
        resume: whether to go on from the last checkpoint in `save`.

    Returns:
        An entry of `runs` in results.json. A loss that is no number ends the run with the status
        "diverged", which is a result too. Where the test split was scored and the metric is a mean
        over its examples, "examples" has what each of them scored. With `predict` it has
        "predictions": the files, and what went wrong, if anything did; a trained model is not lost
        for that.

    Raises:
        UsageError: the recipe asks for what cannot be had here, or there is no checkpoint to
            resume from, or it is of another training, or there is nothing to predict on.
        StoppedTrainingError: `stop` said so.
        SagelrError: the run cannot be done.
    """
    spent, recipe = Spent(), settled(recipe)
    torch.set_num_threads(recipe.train.threads)
    task = recipe.make_task() if task is None else task
    if predict:
        task.prepare_predictions()
    _check_scores(recipe, task)
    with silence(), contextlib.ExitStack() as stack:
        folder = save or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sagelr-")))
        trainer = _make_trainer(recipe, run, task, folder, save is not None)
        watch = trainer.watch
        watch.progress, watch.observe, watch.stop = progress, observe, stop
        watch.spent = spent
        trainer.keep_weights = keep_checkpoints
        found = trainer.go_on() if resume else None
        if begin is not None:
            begin()
        torch.set_num_threads(recipe.train.threads)  # Accelerate has a mind of its own on this
        stack.enter_context(_reports(recipe, run, save))
        trainer.train(resume_from_checkpoint=found)
        trainer.stop_reports()
        if watch.stopped:
            raise StoppedTrainingError(
                f"Stopped after step {trainer.state.global_step} of {trainer.state.max_steps}."
            )
        test = run.stage == "report" if score_test is None else score_test
        scores = watch.scores() if watch.diverged else _score(trainer, test)
        more: dict[str, Any] = {}
        if scores["test"] and (examples := trainer.examples_of(task.test)):
            more["examples"] = examples
        if audit is not None and run.stage == "report" and not watch.diverged:
            more["audit"] = audit(trainer.bare, task)
        if save is not None:
            trainer.save(save, keep_optimizer)
        if predict and save is not None and not watch.diverged:
            more["predictions"] = trainer.predict_into(save / "predictions")
    trace = watch.record.trace
    cost = spent.state()
    return {
        "key": run.key,
        "stage": run.stage,
        "arm": run.arm,
        "setting": run.setting,
        "seed": run.seed,
        "status": "diverged" if watch.diverged else "complete",
        "error": watch.diverged,
        "scores": scores,
        "curve": watch.record.curve,
        "options": as_used(trainer.made, recipe.arms[run.arm]),
        "seconds": cost["seconds"],
        "peak_memory_mib": cost["peak_memory_mib"],
        "started": cost["started"],
        "sagelr": sagelr.__version__,
        "sage": trace.to_json() if trace and not watch.diverged else None,
        **more,
    }


def _check_scores(recipe: Recipe, task: Task) -> None:
    """See that the task gives the scores that the recipe goes by, where it tells beforehand.

    Raises:
        UsageError: it does not.
    """
    from sagelr.training.trainer import late_score, missing_score

    wanted = {"metric": recipe.metric, "study.select_by": recipe.study.select_by}
    for key, name in wanted.items():
        if task.given and name not in (*task.given, "loss"):
            raise UsageError(missing_score(key, name, task.given))
    by, decodes = recipe.study.select_by, task.decodes
    if recipe.train.early_stopping and decodes and by in task.given:
        raise UsageError(late_score(by, ["loss"]))


def _make_trainer(recipe: Recipe, run: Run, task: Task, folder: Path, saves: bool) -> RunTrainer:
    """A quiet Trainer for the run."""
    from transformers.trainer_callback import PrinterCallback

    from sagelr.training.arguments import batch_plan, training_arguments
    from sagelr.training.trainer import RunTrainer
    from sagelr.training.watch import Watch

    model = task.model(run.seed)
    check_scope(run.arm, recipe.arms[run.arm], model)
    if recipe.train.label_smoothing and model.config.problem_type == "regression":
        raise UsageError(
            f"train.label_smoothing = {recipe.train.label_smoothing:g} is for classes, and the "
            "labels are scores. Set it to 0."
        )
    plan = batch_plan(recipe.train, task, run.seed)
    steps = math.ceil(len(plan(0)) / recipe.train.accumulate) * recipe.train.epochs
    args = training_arguments(recipe, run, model, folder, recipe.train.max_steps or steps)
    if recipe.train.parallel == "fsdp2" and args.world_size > 1:
        sharded.shard(model, args.device)
        # As after loading a model in shards: the Trainer leaves it as it is.
        model._is_distributed_loading_by_transformers = True
    identity = checkpoint.identity(recipe, run, task.describe()) if saves else None
    trainer = RunTrainer(
        recipe, run, task, plan, Watch(recipe, run), identity, model=model, args=args
    )
    trainer.pop_callback(PrinterCallback)
    return trainer


def _score(trainer: RunTrainer, test: bool) -> dict[str, Any]:
    """Scores of the trained model.

    Raises:
        SagelrError: the task does not give the recipe's metric.
    """
    from sagelr.training.arguments import eval_batch_size
    from sagelr.training.trainer import missing_score
    from sagelr.training.watch import named

    recipe, task, watch = trainer.recipe, trainer.task, trainer.watch
    rows = eval_batch_size(recipe.train)
    scores = watch.scores()
    watch.kept.put(trainer.bare)
    if recipe.train.average_checkpoints:
        scores["validation"] = named(trainer.evaluate(metric_key_prefix="averaged"))
    if trainer.run.stage != "tune" or recipe.study.select_by not in scores["validation"]:
        trainer.bare.eval()
        model: Any = trainer.bare
        decoded = task.generation_scores(model, task.validation, batch_size=rows)
        scores["validation"] = {**scores["validation"], **decoded}
        if recipe.metric not in scores["validation"]:
            raise SagelrError(missing_score("metric", recipe.metric, scores["validation"]))
    if test:
        trainer.keep_examples = True
        scores["test"] = named(trainer.evaluate(task.test, metric_key_prefix="test"))  # type: ignore[arg-type]
        trainer.bare.eval()
        model = trainer.bare
        scores["test"] |= task.generation_scores(model, task.test, batch_size=rows)
    return scores


@contextlib.contextmanager
def _reports(recipe: Recipe, run: Run, save: Path | None) -> Iterator[None]:
    """Where reports of the training go, and their end with it."""
    variable = "TENSORBOARD_LOGGING_DIR"
    given = os.environ.get(variable)
    if given is None and save is None:
        os.environ[variable] = str(Path("runs") / "tensorboard" / recipe.name / run.key)
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(variable, None)
        if "wandb" in recipe.train.report_to:
            import wandb  # pyright: ignore[reportMissingImports]  (not among the extras)

            wandb.finish()
