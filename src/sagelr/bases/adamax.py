"""Adamax's direction, as torch.optim.Adamax computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sagelr.bases.protocol import Step


@dataclass(frozen=True)
class Adamax:
    """d = m̂ / u with u ← max(β2·u, |g| + eps), and m̂ = m/(1−β1^t) under bias correction.

    Source: Kingma and Ba, arXiv 1412.6980, section 7. The authors of SAGE correct nothing and add
    eps to u once more.
    """

    beta1: float
    beta2: float
    eps: float
    bias_correction: bool

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_inf")

    def memory(self, name: str) -> float:
        return self.beta1 if name == "exp_avg" else self.beta2

    def direction(
        self, grad: Tensor, state: Mapping[str, Tensor], step: Step
    ) -> tuple[Tensor, dict[str, Tensor]]:
        exp_avg = torch.lerp(state["exp_avg"], grad, 1 - self.beta1)
        exp_inf = torch.maximum(state["exp_inf"] * self.beta2, grad.abs() + self.eps)
        moments = {"exp_avg": exp_avg, "exp_inf": exp_inf}
        if not self.bias_correction:
            return exp_avg / exp_inf, moments
        return exp_avg / exp_inf / (1 - self.beta1**step), moments

    def directions(
        self, grads: Sequence[Tensor], state: Mapping[str, list[Tensor]], steps: Sequence[Step]
    ) -> list[Tensor]:
        exp_avgs, exp_infs = state["exp_avg"], state["exp_inf"]
        torch._foreach_lerp_(exp_avgs, list(grads), 1 - self.beta1)
        sizes = torch._foreach_abs(list(grads))
        torch._foreach_add_(sizes, self.eps)
        torch._foreach_mul_(exp_infs, self.beta2)
        torch._foreach_maximum_(exp_infs, sizes)
        direction = torch._foreach_div(exp_avgs, exp_infs)
        if self.bias_correction:
            corrections = [1 - self.beta1**t for t in steps]
            torch._foreach_div_(direction, corrections)  # type: ignore[arg-type]
        return list(direction)
