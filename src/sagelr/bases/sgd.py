"""SGD's direction with momentum, dampening and Nesterov, as torch.optim.SGD computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sagelr.bases.protocol import Step


@dataclass(frozen=True)
class SGD:
    """d = g without momentum; else b ← μ·b + (1−τ)·g and d = b, or g + μ·b with Nesterov.

    The first step sets b = g, undampened, as torch does.
    """

    momentum: float
    dampening: float
    nesterov: bool

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def memory(self, name: str) -> float:
        return self.momentum

    def _share(self, step: Step) -> Step:
        """1−τ, the share of the gradient that enters the buffer; 1 at the first step."""
        if not self.dampening:
            return 1.0
        if isinstance(step, Tensor):
            return torch.where(step > 1, 1 - self.dampening, 1.0)
        return 1 - self.dampening if step > 1 else 1.0

    def direction(
        self, grad: Tensor, state: Mapping[str, Tensor], step: Step
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.momentum:
            return grad, {}
        buffer = state["momentum_buffer"] * self.momentum + grad * self._share(step)
        direction = grad + buffer * self.momentum if self.nesterov else buffer
        return direction, {"momentum_buffer": buffer}

    def directions(
        self, grads: Sequence[Tensor], state: Mapping[str, list[Tensor]], steps: Sequence[Step]
    ) -> list[Tensor]:
        if not self.momentum:
            return [grad.clone() for grad in grads]
        buffers = state["momentum_buffer"]
        shares = [self._share(t) for t in steps]
        torch._foreach_mul_(buffers, self.momentum)
        torch._foreach_add_(buffers, torch._foreach_mul(list(grads), shares))  # type: ignore[arg-type]
        if not self.nesterov:
            return [buffer.clone() for buffer in buffers]
        return list(torch._foreach_add(list(grads), buffers, alpha=self.momentum))
