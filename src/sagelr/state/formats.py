"""State formats: in how many bits each average is kept.

    format      first moment  second moment  sensitivity   bytes    bytes moved in a step (fp32)
    float32     fp32          fp32           fp32          12       36
    compact     bf16          fp32           bf16           8       28, as torch's AdamW
    bfloat16    bf16          bf16           bf16           6       24
    8bit        8 bits        8 bits         8 bits         3.1     18

Arithmetic is fp32 in all of them. An average whose memory is long moves by less than half a step of
a narrow grid, and would stall under rounding to nearest: it is rounded stochastically.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sagelr.state import codes, rounding

StateFormat = Literal["float32", "compact", "bfloat16", "8bit"]
STATE_FORMATS: tuple[str, ...] = get_args(StateFormat)

SECOND_MOMENTS = frozenset({"exp_avg_sq", "exp_inf"})
SIGNED = frozenset({"exp_avg", "momentum_buffer"})
SCALE = "_scale"  # after the name of an average: the scales of its codes

# A bf16 average m of x stalls where (1−β)·|x−m| is under half a step of its grid, 2^−9 to 2^−8 of
# m. At β = 0.95 that is within 4 to 8% of x if x never varies, and of no account in the noise of a
# gradient; beyond it, chance takes over.
LONG_MEMORY = 0.95
# What an 8-bit format saves on fewer is not worth their precision.
SMALLEST_CODED = 4096


@dataclass(frozen=True)
class Storage:
    """How one average of one parameter is kept.

    Attributes:
        dtype: of the stored tensor; uint8 for codes, None for the dtype of arithmetic.
        stochastic: how a value is rounded to it.
    """

    dtype: torch.dtype | None
    stochastic: bool = False


@dataclass(frozen=True)
class Chance:
    """What random bits are made of, see `rounding.keys`."""

    seed: int
    step: int | Tensor
    parameter: int
    offset: int

    def bits(self, name: str, like: Tensor) -> Tensor:
        stream = rounding.STREAMS["codes" if like.dtype == torch.uint8 else name]
        return rounding.random_bits(
            self.seed, self.step, self.parameter, stream, like.shape, self.offset, like.device
        )


WIDE = Storage(None)


def storage(state_format: str, name: str, memory: float, coded: bool) -> Storage:
    """How an average is kept.

    Args:
        state_format: one of `STATE_FORMATS`.
        name: of the average.
        memory: its β; near 1 for a slow one.
        coded: whether the parameter's state is in codes at all, see `is_coded`.
    """
    if state_format == "8bit":
        return Storage(torch.uint8, stochastic=True) if coded else WIDE
    if state_format == "float32" or (state_format == "compact" and name in SECOND_MOMENTS):
        return WIDE
    return Storage(torch.bfloat16, stochastic=memory > LONG_MEMORY)


def is_coded(state_format: str, param: Tensor) -> bool:
    """Whether a parameter's state is in 8-bit codes: matrices and beyond, of some size."""
    return state_format == "8bit" and param.ndim >= 2 and param.numel() >= SMALLEST_CODED


def read(state: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    """An average in the dtype of arithmetic; the stored tensor itself where it has that dtype."""
    stored = state[name]
    if stored.dtype == torch.uint8:
        return codes.decode(stored, state[name + SCALE], signed=name in SIGNED).to(dtype)
    return stored.to(dtype)


def read_every(state: Mapping[str, Tensor], name: str, stride: int, dtype: torch.dtype) -> Tensor:
    """Every stride-th element of an average, flattened; only these are widened."""
    stored = state[name]
    if stored.dtype == torch.uint8:
        scale = state[name + SCALE]
        return codes.decode_every(stored, scale, stride, signed=name in SIGNED).to(dtype)
    return stored.reshape(-1)[::stride].to(dtype)


def write(
    state: Mapping[str, Tensor], name: str, value: Tensor, how: Storage, chance: Chance | None
) -> None:
    """Store an average, in place.

    Args:
        state: one parameter's.
        name: of the average.
        value: in the dtype of arithmetic.
        how: its storage.
        chance: for stochastic rounding; None rounds to nearest.
    """
    stored = state[name]
    if stored is value:
        return
    if how.dtype is None:
        stored.copy_(value)
        return
    bits = chance.bits(name, stored) if how.stochastic and chance is not None else None
    value = value.float()
    if how.dtype == torch.uint8:
        scale = codes.scales(value)
        state[name + SCALE].copy_(scale)
        stored.copy_(codes.encode(value, scale, bits, name, signed=name in SIGNED))
        return
    if bits is not None:
        rounded = rounding.stochastic_bfloat16(value, bits)
    else:
        rounded = value.to(torch.bfloat16)
    if name == "exp_avg_sensitivity":
        rounded = rounding.keep_positive(rounded, value)
    stored.copy_(rounded)
