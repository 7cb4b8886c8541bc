"""The step on a CUDA device in one pass over memory, and one launch for a whole group of tensors.

The kernel (`triton_kernel.py`) finds the tensors through a table of their addresses on the device,
which is made anew when one of them moves. What it cannot take goes to the foreach engine.

For a CUDA graph take a step before the capture, as torch asks: it compiles the kernel.

Tested in Triton's interpreter, and compiled for compute capabilities 8.0 and 9.0. It has not run on
a GPU yet, so that graphs, streams and speed are untried: `benchmarks/gpu.sh` is the command that
checks and times it there.
"""

from __future__ import annotations

import array
import ctypes
import functools
import importlib.util
import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sagelr import bases
from sagelr.engines import foreach
from sagelr.engines.plan import DECAYS, Place, Plan, State, not_plain, pick, unlike
from sagelr.engines.triton_tables import Tables
from sagelr.state import codes, formats

logger = logging.getLogger("sagelr")

# As the kernel numbers them.
PARAM = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
BASES = {bases.AdamW: 0, bases.Adamax: 1, bases.SGD: 2}

TILE = 1024  # elements a program takes; not measured yet
VECTOR = 16  # bytes a thread moves at once, and as many elements are whole vectors in any dtype
OLDEST = (7, 0)  # the compute capability Triton needs

# Gradients come back to the same few places; a table for each of those, in several groups.
_addresses = Tables(room=32)
_chunks = Tables(room=32)


class _Row(NamedTuple):
    """A tensor's row of the kernel's table, in the order of its columns; 0 is for what is not."""

    param: int
    grad: int
    first: int
    second: int
    sensitivity: int
    first_scale: int
    second_scale: int
    sensitivity_scale: int
    step: int
    sensitivity_step: int
    elements: int
    width: int
    parameter: int
    offset: int

    def aligned(self) -> bool:
        """Whether it can be moved in whole vectors, and its rows of codes are whole blocks."""
        bits = self.param | self.grad | self.first | self.second | self.sensitivity | self.elements
        return bits % VECTOR == 0 and self.width % codes.BLOCK == 0


def why_not(plan: Plan, params: Sequence[Tensor], grads: Sequence[Tensor]) -> str | None:
    """Why this engine cannot take the step; None if it can."""
    if torch.compiler.is_compiling():
        return "torch.compile traces the step"
    if plan.differentiable:
        return "the step must be differentiable"
    if type(plan.base) not in BASES:
        return f"it has no {type(plan.base).__name__}"
    dtype = params[0].dtype
    if dtype not in PARAM:
        return f"parameters are {dtype}"
    if any(grad.dtype != dtype for grad in grads):
        return f"a gradient is not {dtype}, as its parameter is"
    if other := not_plain(params, grads):
        return other
    return _lacking(params[0].device)


@functools.cache
def _lacking(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with torch's CUDA builds for Linux)"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST:
        return f"{torch.cuda.get_device_name(device)} is older than Triton supports"
    return None


def update(
    plan: Plan,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    places: Sequence[Place],
) -> None:
    """Take one step on every parameter, in place; all on one device and of one dtype."""
    apart = sorted(unlike(plan, params, grads, state))  # counts too: see there
    if apart:
        _say_apart()
        foreach.update(plan, *pick(apart, params, grads, state, places))
        kept = sorted(set(range(len(params))) - set(apart))
        params, grads, state, places = pick(kept, params, grads, state, places)
    if not params:
        return
    rows = _rows(plan, params, grads, state, places)
    launches: dict[tuple[bool, int, int], list[_Row]] = {}
    for row, step, sensitivity_step in zip(rows, *_advance(plan, state), strict=True):
        launches.setdefault((row.aligned(), step, sensitivity_step), []).append(row)
    with torch.cuda.device_of(params[0]):
        for (aligned, *counts), alike in launches.items():
            _launch(plan, params[0], tuple(alike), aligned, *counts)
    torch.autograd.graph.increment_version(params)


@functools.cache
def _say_apart() -> None:
    logger.info("Tensors that do not lie as their state does take the foreach engine's step.")


def _advance(plan: Plan, state: State) -> tuple[list[int], list[int]]:
    """Count this step; then both counts of every parameter, 0 where they are not to be read."""
    steps, sensitivity_steps = (state.get(name, []) for name in ("step", "sensitivity_step"))
    unread = [0] * len(steps)
    if plan.capturable:
        torch._foreach_add_(steps, 1)
        if plan.sage:
            torch._foreach_add_(sensitivity_steps, 1)
        return unread, unread
    return _counted(steps), _counted(sensitivity_steps) if plan.sage else unread


def _counted(counts: Sequence[Tensor]) -> list[int]:
    """One up each of these fp32 numbers on the CPU, without an operation of torch for each."""
    held = [ctypes.c_float.from_address(address) for address in map(Tensor.data_ptr, counts)]
    for count in held:
        count.value += 1
    return [int(count.value) for count in held]


# -- the table ------------------------------------------------------------------------------------


def _rows(
    plan: Plan,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    places: Sequence[Place],
) -> list[_Row]:
    nothing = [0] * len(params)
    averages = plan.averages()
    scales = [name + formats.SCALE if name and plan.coded else None for name in averages]
    counts = ["step", "sensitivity_step" if plan.sage else None] if plan.capturable else [None] * 2
    columns = [list(map(Tensor.data_ptr, tensors)) for tensors in (params, grads)]
    for name in (*averages, *scales, *counts):
        columns.append(list(map(Tensor.data_ptr, state[name])) if name else nothing)
    columns.append(list(map(Tensor.numel, params)))
    columns.append([param.shape[1:].numel() for param in params] if plan.coded else nothing)
    return list(map(_Row._make, zip(*columns, *zip(*places, strict=True), strict=True)))


def _table(rows: Sequence[_Row]) -> Tensor:
    """int64 of shape (rows, columns)."""
    numbers = array.array("q", itertools.chain.from_iterable(rows))
    return torch.frombuffer(numbers, dtype=torch.int64).view(len(rows), -1)


def _tiles(sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Every tile of tensors of these elements and widths: which tensor, and which of its tiles.

    A tile of codes is made of blocks, and may run over the end of a row.
    """
    counts = []
    for elements, width in sizes:
        blocks = elements // width * -(-width // codes.BLOCK) if width else 0
        counts.append(-(-blocks // (TILE // codes.BLOCK)) if width else -(-elements // TILE))
    each = torch.tensor(counts, device="cpu")
    tensors = torch.arange(len(sizes), device="cpu").repeat_interleave(each)
    starts = (each.cumsum(0) - each).repeat_interleave(each)
    return torch.stack((tensors, torch.arange(len(tensors), device="cpu") - starts), dim=1).to(
        torch.int32
    )


# -- the launch -----------------------------------------------------------------------------------


def _launch(
    plan: Plan,
    like: Tensor,
    rows: tuple[_Row, ...],
    aligned: bool,
    step: int,
    sensitivity_step: int,
) -> None:
    from sagelr.engines import triton_kernel

    sizes = tuple((row.elements, row.width) for row in rows)
    if not any(elements for elements, _ in sizes):
        return
    held = plan.capturable
    owner = tuple(row.param for row in rows) if held else None
    chunks = _chunks.get(sizes, lambda: _tiles(sizes), like.device, sizes if held else None)
    table = _addresses.get(rows, lambda: _table(rows), like.device, owner)
    lr = plan.lr if isinstance(plan.lr, Tensor) and plan.lr.device == like.device else None
    triton_kernel.take_step[(len(chunks),)](
        table,
        chunks,
        table if lr is None else lr,
        float(plan.lr) if lr is None else 0.0,
        **_numbers(plan, step, sensitivity_step),
        **_kind(plan, like.dtype, aligned, lr is not None),
    )


def _numbers(plan: Plan, step: int, sensitivity_step: int) -> dict[str, float]:
    """The arguments for which nothing is compiled anew."""
    base = plan.base
    if isinstance(base, bases.SGD):
        beta1, share1, beta2, eps, corrects = base.momentum, 1 - base.dampening, 0.0, 0.0, False
    else:
        assert isinstance(base, bases.AdamW | bases.Adamax)
        beta1, share1, beta2, eps = base.beta1, 1 - base.beta1, base.beta2, base.eps
        corrects = base.bias_correction
    correction1, log_beta1 = _correction(beta1, step, corrects)
    correction2, log_beta2 = _correction(beta2, step, corrects)
    correction0, log_beta0 = _correction(plan.beta0, sensitivity_step, plan.sage_bias_correction)
    # One division serves for r and d. Its divisor, at least ε times what d is divided by, must not
    # come near the smallest float: where ε and eps are that small, I, Ī and ε are all scaled up, by
    # a power of two, so that it changes no digit. Nor further than that: large gradients would
    # overflow.
    least = plan.sage_eps * (1.0 if isinstance(base, bases.SGD) else max(eps, 1e-22))
    sharpen = 2.0 ** min(60, max(0, math.ceil(-100 - math.log2(least))))
    return {
        "sign": -1.0 if plan.maximize else 1.0,
        "weight_decay": plan.weight_decay,
        "beta1": beta1,
        "share1": share1,
        "correction1": correction1,
        "log_beta1": log_beta1,
        "beta2": beta2,
        "share2": 1 - beta2,
        "correction2": correction2,
        "log_beta2": log_beta2,
        "eps": eps,
        "share0": 1 - plan.beta0,
        "correction0": correction0,
        "log_beta0": log_beta0,
        "sharpen": sharpen,
        "sage_eps": plan.sage_eps * sharpen,
        "seed": plan.seed,
        "step": step,
    }


def _correction(beta: float, step: int, wanted: bool) -> tuple[float, float]:
    """1 − β^t, and the logarithm of β, with which the kernel makes it of a t on the device."""
    if not wanted:
        return 1.0, -math.inf
    return 1 - beta**step, math.log(beta) if beta else -math.inf


def _kind(plan: Plan, dtype: torch.dtype, aligned: bool, lr_held: bool) -> dict[str, Any]:
    """The constants of the compilation."""
    base = BASES[type(plan.base)]
    if isinstance(plan.base, bases.SGD) and not plan.base.momentum:
        base += 1
    first, second, sensitivity = plan.stored_as()
    return {
        "BASE": base,
        "SAGE": plan.sage,
        "DECAY": DECAYS.index(plan.decay),
        "NESTEROV": isinstance(plan.base, bases.SGD) and plan.base.nesterov,
        "PARAM": PARAM[dtype],
        "PARAM_CHANCE": plan.rounding == "stochastic" and dtype == torch.bfloat16,
        "FIRST": first,
        "SECOND": second,
        "SENSITIVITY": sensitivity,
        "HELD": plan.capturable,
        "LR_HELD": lr_held,
        "ALIGNED": aligned,
        "TILE": TILE,
    }
