"""One update, several executors. `eager` is the definition; every other is tested against it.

An engine is one function, `update(plan, params, grads, state, places)`. It changes params and state
in place and returns nothing.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from sagelr.engines import cpu, eager, foreach, triton
from sagelr.engines.plan import Place, Plan, State, not_plain

logger = logging.getLogger("sagelr")

__all__ = ["Engine", "Place", "Plan", "State", "choose"]

Engine = Callable[[Plan, Sequence[Tensor], Sequence[Tensor], State, Sequence[Place]], None]

# Devices with foreach kernels, where one launch for many tensors pays. On a CPU there is no launch
# to save and the intermediates only cost memory traffic: eager is the faster of the two there.
ACCELERATORS = frozenset({"cuda", "xpu", "hpu", "mps", "mtia"})


def choose(
    plan: Plan,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    want_fused: bool | None,
    want_foreach: bool | None,
) -> Engine:
    """The engine for these parameters, which share device and dtype.

    The fused engine wherever it can run, unless another is asked for; then foreach on accelerators,
    eager elsewhere. Where no fused engine can run, that is said once: as a warning if `fused=True`
    asked for it or a compiler would mend it, else as information.
    """
    if plan.differentiable or plan.relative is not None:
        return eager.update
    if want_foreach is not None and not want_fused:
        return foreach.update if want_foreach else eager.update
    if want_fused is not False:
        fused = _fused(params[0].device.type)
        obstacle = (
            fused.why_not(plan, params, grads)
            if fused
            else f"there is none for {params[0].device.type}"
        )
        if fused and obstacle is None:
            return fused.update
        if want_fused:
            _say_once(logging.WARNING, f"fused=True, but no fused step is taken: {obstacle}.")
        elif not torch.compiler.is_compiling():
            level, cost = logging.INFO, ""
            if obstacle == cpu.NO_COMPILER:
                level = logging.WARNING
                cost = " The eager step takes tens of times as long; fused=False takes it silently."
            _say_once(level, f"No fused step is taken: {obstacle}.{cost}")
    if params[0].device.type in ACCELERATORS and not_plain(params, grads) is None:
        return foreach.update
    return eager.update


def _fused(device: str) -> ModuleType | None:
    return {"cpu": cpu, "cuda": triton}.get(device)


@functools.cache
def _say_once(level: int, message: str) -> None:
    logger.log(level, message)
