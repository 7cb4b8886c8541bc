"""What an engine is asked to do: everything of a step but the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sagelr.bases import Base

Decay = Literal["decoupled", "scaled", "l2"]
DECAYS: tuple[str, ...] = get_args(Decay)

# One list of tensors for each name of state, all lists in the order of the parameters:
# the base's averages, "step", and where SAGE is on "exp_avg_sensitivity" and "sensitivity_step".
State = Mapping[str, list[Tensor]]


@dataclass(frozen=True)
class Plan:
    """One parameter group's update.

    Attributes:
        base: direction of the base optimizer.
        lr: η, `lr_scale` already in it; a number or a 0-d tensor.
        weight_decay: λ.
        decay: where λ·θ enters. "decoupled": θ ← (1 − η·λ)·θ, outside the multiplier.
            "scaled": added to the direction, so that the multiplier scales it too. "l2": added to
            the gradient that the base sees; the sensitivity still takes the gradient of the loss.
        sage: False leaves the base optimizer as it is.
        beta0: memory of the smoothed sensitivity.
        sage_eps: ε of the multiplier.
        sage_bias_correction: whether Ī is divided by 1 − β0^t.
        maximize: ascend instead of descend.
        differentiable: keep the autograd graph; the eager engine alone can.
        capturable: step counts stay tensors, so that a CUDA graph can hold the step.
    """

    base: Base
    lr: float | Tensor
    weight_decay: float = 0.0
    decay: Decay = "decoupled"
    sage: bool = True
    beta0: float = 0.75
    sage_eps: float = 1e-12
    sage_bias_correction: bool = True
    maximize: bool = False
    differentiable: bool = False
    capturable: bool = False

    def state_names(self) -> tuple[str, ...]:
        """Names of all state that has the parameter's shape."""
        return (
            (*self.base.state_names, "exp_avg_sensitivity") if self.sage else self.base.state_names
        )

    def count(self, step: Tensor) -> float | Tensor:
        """A step count as the formulas take it: a number where nothing forbids one."""
        if self.capturable or torch.compiler.is_compiling():
            return step
        return step.item()


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic and of state: fp32 for anything narrower.

    >>> compute_dtype(torch.bfloat16), compute_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
