"""What is kept of a training while it runs: its curve, its trace, and whether it goes well."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from sagelr.optim.base import SageOptimizer
from sagelr.schema import Recipe
from sagelr.training.kept import Kept
from sagelr.training.record import Record
from sagelr.training.run import Moment, Run
from sagelr.training.spent import Spent
from sagelr.view import Viewer

if TYPE_CHECKING:
    from sagelr.training.trainer import RunTrainer

MOMENTS = 1.0  # seconds between two of them
TIMING = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


class Watch(TrainerCallback):
    """Looks on at the Trainer, and decides when it stops, saves and puts weights aside.

    Args:
        recipe: what is trained.
        run: which run of it.

    Attributes:
        progress: called with the share of the steps done.
        observe: called every second with how the training stands.
        stop: asked after every step whether to save a checkpoint and stop there.
    """

    trainer: RunTrainer

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self.recipe, self.run = recipe, run
        self.progress: Callable[[float], None] | None = None
        self.observe: Callable[[Moment], None] | None = None
        self.stop: Callable[[], bool] | None = None
        self.record = Record()
        self.spent = Spent()
        self.kept = Kept()
        self.diverged: str | None = None
        self.stopped = False
        self.checkpoint: dict[str, Any] | None = None
        self._viewer: Viewer | None = None
        self._multiplier: float | None = None
        self._seen: list[tuple[int, Tensor]] = []  # step, and a batch's share of its loss
        self._moment = time.monotonic()

    # -- the Trainer's calls --------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # as Accelerate wraps it
        if isinstance(optimizer, SageOptimizer) and optimizer.follows_rule:
            if self.run.stage != "tune":
                self.record.trace_of(model, optimizer, state.max_steps)
            if self.observe is not None:
                self._viewer = Viewer(model, optimizer)
        rows: Any = self.trainer.train_dataset
        if hasattr(rows, "seed"):
            rows.seed = self.run.seed
        if self.checkpoint is not None:
            self.record.load(self.checkpoint["record"])
            self.kept.load(self.checkpoint["kept"], self.trainer.bare)
            self.trainer.load_losses(self.checkpoint["losses"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Accelerate says it too, except after a resume in the middle of an epoch.
        rows: Any = self.trainer.train_dataset
        if hasattr(rows, "set_epoch"):
            rows.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.diverged is not None:
            control.should_training_stop = True
            return
        if self.record.trace is not None:
            self.record.trace.look(state.global_step + 1, state.epoch or 0.0)
        if self._due:
            view = self._viewer.look() if self._viewer is not None else None
            self._multiplier = None if view is None else float(view.multiplier.mean())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None and state.global_step % 10 == 0:
            self.progress(state.global_step / state.max_steps)
        last = state.global_step >= state.max_steps
        if self.observe is not None and (self._due or last):
            self._tell(self.observe, state, state.max_steps)
        if self.stop is not None and not last and not self.stopped and self.stop():
            self.stopped = control.should_training_stop = True
        # At the end of an epoch it is evaluated first, and saved then.
        if not state.epoch.is_integer() and not last and self.diverged is None:
            every = self.recipe.train.save_every
            if self.stopped or (every is not None and state.global_step % every == 0):
                control.should_save = self.trainer.saves

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped and not state.epoch.is_integer():
            control.should_log = control.should_evaluate = control.should_save = False
            return
        if self.diverged is not None:
            return
        control.should_log = True
        last = self.recipe.train.average_checkpoints
        if math.ceil(state.epoch) > state.num_train_epochs - last:
            self.kept.add(self.trainer.bare)
        every = self.recipe.train.save_every
        due = self.stopped or every is None or state.global_step % every == 0
        control.should_save = self.trainer.saves and due and state.global_step < state.max_steps

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        early = state.global_step < state.max_steps and not self.stopped
        if early and self.observe is not None and self.diverged is None:
            self._tell(self.observe, state, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.record.logged(logs, state.global_step)
            if not math.isfinite(logs["loss"]) and self.diverged is None:
                self.diverged = f"training loss {logs['loss']} in epoch {logs['epoch']:g}"

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        if not any(key.startswith("eval_") for key in metrics):
            return  # after training
        scores = named(metrics)
        if not math.isfinite(scores["loss"]) and self.diverged is None:
            self.diverged = f"validation loss {scores['loss']} after step {state.global_step}"
        if self.diverged is not None:
            control.should_training_stop, control.should_save = True, False
            return
        self.trainer.check_scores(scores)
        self.record.evaluated(scores, metrics["epoch"], state.global_step)
        if (patience := self.recipe.train.early_stopping) is not None:
            if self.record.is_best(self._value(scores)):
                self.kept.take(self.trainer.bare)
            elif self.record.stale >= patience:
                control.should_training_stop, control.should_save = True, False

    # -- how it goes ----------------------------------------------------------------------------

    def see_loss(self, loss: Tensor, step: int) -> None:
        """Look at the loss of a step that is being taken."""
        if self.observe is not None:
            self._seen.append((step, loss))
        if self.diverged is not None or not self.trainer.is_checked(step):
            return
        if not self.trainer.everywhere(torch.isfinite(loss)):
            self.diverged = f"training loss {float(loss)} at step {step}"

    def scores(self) -> dict[str, Any]:
        """Scores at the end of training; nothing if the run diverged."""
        if self.diverged is not None:
            return {"validation": None, "test": None, "train": None}
        validation = self.record.best if self.recipe.train.early_stopping else None
        return {
            "validation": validation or self.record.validation,
            "test": None,
            "train": {"loss": self.record.train_loss},
        }

    def go_on(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint, once training begins."""
        self.checkpoint = checkpoint
        self.spent.load(checkpoint["spent"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "record": self.record.state(),
            "kept": self.kept.state(),
            "spent": self.spent.state(),
        }

    def _value(self, scores: Mapping[str, float]) -> float:
        """What early stopping waits for, the lower the better."""
        by = self.recipe.study.select_by
        lower = by == "loss" or not self.recipe.family.metrics[by].greater_is_better
        return scores[by] if lower else -scores[by]

    @property
    def _due(self) -> bool:
        return self.observe is not None and time.monotonic() - self._moment > MOMENTS

    def _tell(self, observe: Callable[[Moment], None], state: Any, total: int) -> None:
        shares = [share for _, share in self._seen]
        steps = len({step for step, _ in self._seen})  # the last one of an epoch may have fewer
        loss = float(torch.stack(shares).sum()) / steps if shares else None
        observe(Moment(state.global_step, total, state.epoch, loss, self._multiplier))
        self._seen, self._moment = [], time.monotonic()


def named(metrics: Mapping[str, float]) -> dict[str, float]:
    """The scores among what the Trainer reports, under the names that the task gave them."""
    cut = {key.partition("_")[2]: value for key, value in metrics.items() if "_" in key}
    return {key: float(value) for key, value in cut.items() if key not in TIMING}
