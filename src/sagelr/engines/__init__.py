"""One update, several executors. `eager` is the definition; every other is tested against it.

An engine is one function, `update(plan, params, grads, state)`, that changes params and state in
place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import Parameter

from sagelr.engines import eager, foreach
from sagelr.engines.plan import Plan, State

__all__ = ["Engine", "Plan", "State", "choose"]

Engine = Callable[[Plan, Sequence[Tensor], Sequence[Tensor], State], None]

# Devices with foreach kernels, where one launch for many tensors pays. On a CPU there is no launch
# to save and the intermediates only cost memory traffic: eager is the faster of the two there.
ACCELERATORS = frozenset({"cuda", "xpu", "hpu", "mps", "mtia"})


def choose(plan: Plan, params: Sequence[Tensor], want_foreach: bool | None) -> Engine:
    """The engine for these parameters, which share device and dtype."""
    if plan.differentiable:
        return eager.update
    if want_foreach is None:
        want_foreach = params[0].device.type in ACCELERATORS and all(
            type(param) in (Tensor, Parameter) for param in params
        )
    return foreach.update if want_foreach else eager.update
