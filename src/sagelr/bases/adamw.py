"""Adam's direction, as torch.optim.AdamW computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sagelr.bases.protocol import Step


@dataclass(frozen=True)
class AdamW:
    """d = m̂ / (√v̂ + eps), with m̂ = m/(1−β1^t) and v̂ = v/(1−β2^t) under bias correction.

    Source: Kingma and Ba, arXiv 1412.6980; Loshchilov and Hutter, arXiv 1711.05101. eps is added
    to the corrected root, as torch does; the authors of SAGE add it to the uncorrected one.
    """

    beta1: float
    beta2: float
    eps: float
    bias_correction: bool

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def memory(self, name: str) -> float:
        return self.beta1 if name == "exp_avg" else self.beta2

    def direction(
        self, grad: Tensor, state: Mapping[str, Tensor], step: Step
    ) -> tuple[Tensor, dict[str, Tensor]]:
        exp_avg = torch.lerp(state["exp_avg"], grad, 1 - self.beta1)
        exp_avg_sq = state["exp_avg_sq"] * self.beta2 + grad * grad * (1 - self.beta2)
        moments = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        if not self.bias_correction:
            return exp_avg / (exp_avg_sq.sqrt() + self.eps), moments
        denominator = exp_avg_sq.sqrt() / (1 - self.beta2**step) ** 0.5 + self.eps
        return exp_avg / denominator / (1 - self.beta1**step), moments

    def directions(
        self, grads: Sequence[Tensor], state: Mapping[str, list[Tensor]], steps: Sequence[Step]
    ) -> list[Tensor]:
        exp_avgs, exp_avg_sqs = state["exp_avg"], state["exp_avg_sq"]
        torch._foreach_lerp_(exp_avgs, list(grads), 1 - self.beta1)
        torch._foreach_mul_(exp_avg_sqs, self.beta2)
        torch._foreach_addcmul_(exp_avg_sqs, list(grads), list(grads), 1 - self.beta2)
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        if self.bias_correction:
            roots = [(1 - self.beta2**t) ** 0.5 for t in steps]
            torch._foreach_div_(denominators, roots)  # type: ignore[arg-type]
        torch._foreach_add_(denominators, self.eps)
        if self.bias_correction:
            corrections = [1 - self.beta1**t for t in steps]
            torch._foreach_mul_(denominators, corrections)  # type: ignore[arg-type]
        return list(torch._foreach_div(exp_avgs, denominators))
