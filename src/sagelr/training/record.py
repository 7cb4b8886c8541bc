"""The record of a training: learning curve and trace, kept through a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sagelr.optim.base import SageOptimizer
from sagelr.trace import Trace


class Record:
    """Everything of a training that its results will show.

    Attributes:
        curve: a row for each epoch.
        validation: scores of the last epoch.
        best: scores of the epoch with the best value, for early stopping.
        stale: epochs since then.
        train_loss: mean over the last epoch's steps.
        trace: what SAGE does, where it is looked at.
    """

    def __init__(self) -> None:
        self.curve: list[dict[str, Any]] = []
        self.validation: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.best_value = float("inf")
        self.stale = 0
        self.train_loss: float | None = None
        self.trace: Trace | None = None
        self._lr: float | None = None
        self._step = 0
        self._losses: list[tuple[int, float]] = []  # steps and their mean loss, in this epoch

    def trace_of(self, model: nn.Module, optimizer: SageOptimizer, total: int) -> None:
        """Begin to trace."""
        self.trace = Trace(model, optimizer, total)

    def logged(self, logs: Mapping[str, float], step: int) -> None:
        """Note the mean loss of the steps since the last time."""
        self._losses.append((step - self._step, logs["loss"]))
        self._step, self._lr = step, logs["learning_rate"]

    def evaluated(self, scores: dict[str, float], epoch: float, step: int) -> None:
        """Note the scores at the end of an epoch."""
        if len(self._losses) == 1:
            self.train_loss = self._losses[0][1]
        elif self._losses:
            steps = sum(count for count, _ in self._losses)
            self.train_loss = sum(count * loss for count, loss in self._losses) / steps
        self._losses = []
        self.validation = scores
        row = {"epoch": round(epoch, 4), "step": step, "lr": self._lr}
        row["train_loss"] = self.train_loss
        self.curve.append(row | {f"validation_{name}": value for name, value in scores.items()})

    def is_best(self, value: float) -> bool:
        """Whether the epoch just noted is the best so far.

        Args:
            value: of it; the lower the better.
        """
        if value < self.best_value:
            self.best, self.best_value, self.stale = self.validation, value, 0
            return True
        self.stale += 1
        return False

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        held = {name: value for name, value in vars(self).items() if name != "trace"}
        return held | {"trace": self.trace.state() if self.trace else None}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        trace = state["trace"]
        vars(self).update({name: value for name, value in state.items() if name != "trace"})
        if self.trace is not None and trace is not None:
            self.trace.load(trace)
