"""What an engine is asked to do: everything of a step but the tensors."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sagelr.bases import Base
from sagelr.state import codes, formats
from sagelr.state.checkpoint import COUNTS

Decay = Literal["decoupled", "scaled", "l2"]
DECAYS: tuple[str, ...] = get_args(Decay)
Rounding = Literal["nearest", "stochastic"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)
Over = Literal["tensor", "group"]
OVERS: tuple[str, ...] = get_args(Over)
SHAPE = operator.attrgetter("shape")  # in a map it is faster than a comprehension, or size()
IS_CPU = operator.attrgetter("is_cpu")
CPU = torch.device("cpu")
PLAIN = {Tensor, torch.nn.Parameter}  # what has memory of its own, for sure

# One list of tensors for each name of state, all lists in the order of the parameters:
# the base's averages, "step", and where SAGE is on "exp_avg_sensitivity" and "sensitivity_step";
# where averages are in 8-bit codes, their scales as NAME_scale.
State = Mapping[str, list[Tensor]]


class Place(NamedTuple):
    """Where a tensor stands, for random bits that do not depend on who holds it.

    Attributes:
        parameter: its position among the optimizer's parameters.
        offset: index in the whole parameter of the first element here.
    """

    parameter: int
    offset: int = 0


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
        state_format: in how many bits the averages are kept, see `state.formats`.
        coded: whether the averages of these parameters are in 8-bit codes.
        rounding: how a bf16 parameter is rounded after its step.
        seed: of the random bits.
        relative: α of `rule.relative_multiplier`, which then takes the place of the multiplier;
            None for SAGE. The eager engine alone can.
        relative_over: what sensitivities are compared over.
        relative_confidence: whether the variation enters it.
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
    state_format: formats.StateFormat = "float32"
    coded: bool = False
    rounding: Rounding = "nearest"
    seed: int = 0
    relative: float | None = None
    relative_over: Over = "tensor"
    relative_confidence: bool = False

    def state_names(self) -> tuple[str, ...]:
        """Names of all state that has the parameter's shape."""
        return (
            (*self.base.state_names, "exp_avg_sensitivity") if self.sage else self.base.state_names
        )

    def averages(self) -> list[str | None]:
        """Names of first moment, second moment and sensitivity, as far as there are any."""
        names = self.base.state_names
        second = next((name for name in names if name in formats.SECOND_MOMENTS), None)
        first = next((name for name in names if name != second), None)
        return [first, second, "exp_avg_sensitivity" if self.sage else None]

    def stored_as(self) -> list[int]:
        """How each of `averages()` is kept, as the fused kernels number it.

        0 wide, 1 bfloat16 to nearest, 2 bfloat16 by chance, 3 codes.
        """
        numbers = []
        for name in self.averages():
            how = self.storage(name) if name else formats.WIDE
            kinds = {None: 0, torch.bfloat16: 2 if how.stochastic else 1, torch.uint8: 3}
            numbers.append(kinds[how.dtype])
        return numbers

    def with_codes(self, coded: bool = True) -> Plan:
        """The same plan, for parameters whose averages are, or are not, in 8-bit codes."""
        return replace(self, coded=coded)

    def stored_names(self) -> tuple[str, ...]:
        """Names of all state of a parameter, in a fixed order."""
        names = self.state_names()
        scales = tuple(name + formats.SCALE for name in names) if self.coded else ()
        return (*names, *scales, *self.count_names())

    def count_names(self) -> tuple[str, ...]:
        """Names of the step counts of a parameter."""
        return COUNTS if self.sage else COUNTS[:1]

    def storage(self, name: str) -> formats.Storage:
        """How an average is kept."""
        memory = self.beta0 if name == "exp_avg_sensitivity" else self.base.memory(name)
        return formats.storage(self.state_format, name, memory, self.coded)

    def chance(self, step: Tensor, place: Place) -> formats.Chance | None:
        """Where random bits come from at this step, or None where nothing asks for any."""
        if self.state_format == "float32" and self.rounding == "nearest":
            return None
        held = self.capturable or torch.compiler.is_compiling()
        number = step.to(torch.int32) if held else int(step.item())
        return formats.Chance(self.seed, number, place.parameter, place.offset)

    def correct_at(self, step: Tensor) -> float | Tensor | None:
        """The t that Ī is bias-corrected with; None where it is not corrected."""
        return self.count(step) if self.sage_bias_correction else None

    def count(self, step: Tensor) -> float | Tensor:
        """A step count as the formulas take it: a number where nothing forbids one."""
        if self.capturable or torch.compiler.is_compiling():
            return step
        return step.item()


def pick(
    which: Sequence[int],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    places: Sequence[Place],
) -> tuple[list[Tensor], list[Tensor], State, list[Place]]:
    """Some of the parameters with all that goes with them, as an engine takes it."""
    return (
        [params[i] for i in which],
        [grads[i] for i in which],
        {name: [column[i] for i in which] for name, column in state.items()},
        [places[i] for i in which],
    )


def not_plain(params: Sequence[Tensor], grads: Sequence[Tensor]) -> str | None:
    """A parameter or gradient that may have no memory of its own, in words; None without one."""
    for what, tensors in (("parameter", params), ("gradient", grads)):
        other = {*map(type, tensors)} - PLAIN
        if other:
            return f"a {what} is a {other.pop().__name__}"
    return None


def unlike(plan: Plan, params: Sequence[Tensor], grads: Sequence[Tensor], state: State) -> set[int]:
    """Parameters that what walks memory must not take: not all of theirs lies there as it is shown.

    A model may be converted after its first step (`double()`, `to(memory_format=…)`, another tensor
    put into a parameter), which leaves the optimizer's state as it was; a state may be converted as
    a whole, counts and all; and gradients may be views whose sign torch keeps apart from memory, or
    zeros that have none. With thousands of tensors this is a part of the step that counts, so that
    it is made of few passes.

    Raises:
        RuntimeError: an average or a gradient has another shape than its parameter, or lies on
            another device.
    """
    # Column by column, so that what is looked at several times is still at hand.
    sound = all(map(Tensor.is_contiguous, params))
    shapes, sizes = list(map(SHAPE, params)), list(map(Tensor.numel, params))
    device = params[0].device
    if list(map(SHAPE, grads)) != shapes:
        at = next(i for i, grad in enumerate(grads) if grad.shape != shapes[i])
        raise RuntimeError(
            f"A parameter of shape {tuple(shapes[at])} has a gradient of shape "
            f"{tuple(grads[at].shape)}: it was replaced between backward and step. Zero the "
            "gradients, and call backward again."
        )
    sound = (
        sound
        and all(map(Tensor.is_contiguous, grads))
        and not any(map(Tensor.is_neg, grads))
        and not any(map(Tensor._is_zerotensor, grads))
    )
    dtype = compute_dtype(params[0].dtype)
    for place, name in enumerate(plan.state_names()):
        column, kind = state[name], plan.storage(name).dtype or dtype
        sound = sound and all(map(Tensor.is_contiguous, column)) and _dtypes(column) == {kind}
        sound = sound and {*map(type, column)} <= PLAIN
        _check_device(name, column, device)
        # All averages of a parameter were made, or loaded and checked, together.
        if place == 0 or list(map(Tensor.numel, column)) != sizes:
            _check_shapes(name, column, shapes, shapes)
    if plan.coded:
        blocks = [torch.Size(codes.blocks(shape)) for shape in shapes]
        for name in (name + formats.SCALE for name in plan.state_names()):
            column = state[name]
            sound = sound and all(map(Tensor.is_contiguous, column))
            sound = sound and _dtypes(column) == {torch.uint8}
            _check_device(name, column, device)
            _check_shapes(name, column, blocks, shapes)
    for name in plan.count_names():
        sound = sound and _dtypes(state[name]) == {torch.float32}
        # Read by the kernel where a graph may be captured, and here where not; they lie elsewhere
        # if capturable was changed in between.
        sound = sound and _all_on(state[name], device if plan.capturable else CPU)
    if sound:
        return set()
    if len(params) == 1:
        return {0}
    return {
        i
        for i in range(len(params))
        if unlike(
            plan,
            params[i : i + 1],
            grads[i : i + 1],
            {name: column[i : i + 1] for name, column in state.items()},
        )
    }


def _dtypes(column: Sequence[Tensor]) -> set[torch.dtype]:
    return {each.dtype for each in column}


def _all_on(column: Sequence[Tensor], device: torch.device) -> bool:
    if device.type == "cpu":
        return all(map(IS_CPU, column))
    return {*map(Tensor.get_device, column)} == {device.index}


def _check_device(name: str, column: Sequence[Tensor], device: torch.device) -> None:
    """Refuse state that lies elsewhere than its parameter: there is no walking it from here."""
    if not _all_on(column, device):
        other = next(each.device for each in column if each.device != device)
        raise RuntimeError(
            f"A parameter on {device} has {name} on {other}: the model was moved after the "
            "optimizer had taken steps, or had loaded its state. Move it before, or load the "
            "optimizer's state_dict() into it again: that puts state where parameters are."
        )


def _check_shapes(
    name: str, column: Sequence[Tensor], wanted: list[torch.Size], shapes: list[torch.Size]
) -> None:
    """Refuse what is of another shape than its parameter, or its blocks."""
    here = list(map(SHAPE, column))
    if here != wanted:
        i = next(i for i, each in enumerate(here) if each != wanted[i])
        raise RuntimeError(
            f"A parameter of shape {tuple(shapes[i])} has {name} of shape {tuple(here[i])}: it was "
            "replaced after the optimizer had taken steps. Make the optimizer anew, or keep the "
            "parameter's shape."
        )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic and of state: fp32 for anything narrower.

    >>> compute_dtype(torch.bfloat16), compute_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
