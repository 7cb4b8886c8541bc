"""What one training is called, and how it may end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from sagelr.errors import SagelrError
from sagelr.schema import Setting


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        stage: "tune", "report", or "train" for a training of its own. The test split is scored
            after the last epoch of a "report" run alone.
        arm: name of the arm.
        setting: point of the arm's grid.
        seed: of first weights, order of the data and dropout; the same for every arm, so that
            two arms differ in nothing but the optimizer.
    """

    stage: str
    arm: str
    setting: Setting = field(hash=False)
    seed: int

    @property
    def key(self) -> str:
        """What the run is called; each key of a study has exactly one published result."""
        return f"{self.stage}/{self.arm}/{name_of(self.setting)}/seed={self.seed}"


@dataclass(frozen=True)
class Moment:
    """How a training stands, for whoever watches.

    Attributes:
        step: steps done.
        total: steps of the whole training.
        epoch: epochs done, with the share of the current one.
        loss: training loss, the mean since the moment before; None before the first step.
        multiplier: mean multiplier of a sample of the weights; None without SAGE.
    """

    step: int
    total: int
    epoch: float
    loss: float | None
    multiplier: float | None


class StoppedTrainingError(SagelrError):
    """Stopped from outside; the last checkpoint is kept."""

    exit_status = 130


def processes() -> int:
    """How many processes train the one model, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is; the first, 0, writes and prints."""
    return int(os.environ.get("RANK", "0"))


def on_cpu(device: str) -> bool:
    """Whether a recipe's device, "auto" or "cpu", is the CPU here."""
    return device == "cpu" or not torch.accelerator.is_available()


def name_of(setting: Mapping[str, float]) -> str:
    """A setting in words.

    Examples:
        >>> name_of({"lr": 0.001, "beta0": 0.75})
        'lr=0.001,beta0=0.75'
    """
    return ",".join(f"{axis}={value:.6g}" for axis, value in setting.items())
