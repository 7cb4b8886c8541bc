"""What an engine asks of a base optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

Step = float | Tensor


class Base(Protocol):
    """A base optimizer: immutable options and the direction d they make of a gradient.

    The step is θ ← θ − η·d, with decay and the multiplier added by the engine.
    """

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the averages kept for each parameter, all of its shape and zero at first."""
        ...

    def memory(self, name: str) -> float:
        """The coefficient β of an average: how much of it a step keeps."""
        ...

    def direction(
        self, grad: Tensor, state: Mapping[str, Tensor], step: Step
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """d and the new averages, for one tensor; changes nothing in place.

        Args:
            grad: g, any shape, floating point.
            state: the averages before this step, of g's shape.
            step: t ≥ 1, this step's number, a float or a 0-d tensor.
        """
        ...

    def directions(
        self, grads: Sequence[Tensor], state: Mapping[str, list[Tensor]], steps: Sequence[Step]
    ) -> list[Tensor]:
        """The same for a list of tensors; updates the averages in place, returns fresh tensors."""
        ...
