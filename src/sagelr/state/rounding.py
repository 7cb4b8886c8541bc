"""Rounding to fewer bits: to nearest, or up and down by chance so that the mean is right.

Chance comes from a counter, never from torch's generator: the bits for an element are a hash of
seed, step, parameter, tensor and the element's index in the whole parameter. So they are the same
on every replica, after a resume, and however the parameter is sharded.

The hash is two rounds of multiply and shift with the constants of Chris Wellons's lowbias32 (public
domain), the second key added between them so that two streams are not shifts of each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
GOLDEN = 0x9E3779B9
FIRST = 0x7FEB352D
SECOND = 0x846CA68B

# One number for each tensor that is rounded, so that their bits differ.
STREAMS = {
    "param": 0,
    "exp_avg": 1,
    "exp_avg_sq": 2,
    "exp_inf": 2,
    "momentum_buffer": 1,
    "exp_avg_sensitivity": 3,
    "codes": 4,  # one word for all averages of an element
}

Word = int | Tensor


def _signed(value: int) -> int:
    """A 32-bit pattern as the int32 with the same bits.

    >>> _signed(0xFFFFFFFF)
    -1
    """
    value &= MASK
    return value - (1 << 32) if value >> 31 else value


def _shift(x: Word, by: int) -> Word:
    """Shift right, filling with zeros."""
    if isinstance(x, Tensor):
        return (x >> by) & (MASK >> by)
    return (x & MASK) >> by


def _times(x: Word, factor: int) -> Word:
    if isinstance(x, Tensor):
        return x * _signed(factor)  # int32 wraps
    return (x * factor) & MASK


def _xor(x: Word, y: Word) -> Word:
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        x = x if isinstance(x, Tensor) else _signed(x)
        y = y if isinstance(y, Tensor) else _signed(y)
    return x ^ y


def _plus(x: Word, y: Word) -> Word:
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        x = x if isinstance(x, Tensor) else _signed(x)
        y = y if isinstance(y, Tensor) else _signed(y)
        return x + y
    return (x + y) & MASK


def mix(x: Word, middle: Word = 0) -> Word:
    """A hash of 32 bits to 32 bits, one to one for a given middle key."""
    x = _times(_xor(x, _shift(x, 16)), FIRST)
    x = _plus(_xor(x, _shift(x, 15)), middle)
    x = _times(x, SECOND)
    return _xor(x, _shift(x, 16))


def keys(seed: int, step: Word, parameter: int, stream: int, high: int = 0) -> tuple[Word, Word]:
    """The two keys of a tensor's bits at a step.

    Args:
        seed: of the optimizer.
        step: t, a number, or a 0-d int32 tensor where the step must not be read.
        parameter: its position among the optimizer's parameters.
        stream: which tensor of it, see `STREAMS`.
        high: the upper 32 bits of the element index.
    """
    key = mix(_xor(mix((seed + GOLDEN) & MASK), step))
    key = mix(_xor(key, (parameter * 8 + stream) & MASK))
    key = mix(_xor(key, high & MASK))
    return key, mix(_xor(key, GOLDEN))


def random_bits(
    seed: int, step: Word, parameter: int, stream: int, shape: torch.Size, offset: int,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """32 random bits for each element, as int32.

    Args:
        seed: of the optimizer.
        step: t, see `keys`.
        parameter: its position among the optimizer's parameters.
        stream: which tensor of it.
        shape: of the tensor, or of the shard of it that is here.
        offset: index in the whole parameter of this shard's first element.
        device: where to make them.
    """
    count = shape.numel()
    parts = []
    start = offset
    while start < offset + count:  # once, but for parameters of more than 2^32 elements
        high = start >> 32
        stop = min(offset + count, (high + 1) << 32)
        first, second = keys(seed, step, parameter, stream, high)
        low = torch.arange(start & MASK, (start & MASK) + stop - start, device=device)
        low = low.to(torch.int32)  # keeps the low 32 bits
        parts.append(mix(_xor(low, first), second))
        start = stop
    if not parts:
        return torch.empty(shape, dtype=torch.int32, device=device)
    bits = parts[0] if len(parts) == 1 else torch.cat(parts)
    return bits.view(shape)


def stochastic_bfloat16(values: Tensor, bits: Tensor) -> Tensor:
    """Round fp32 to bf16, up with the probability that makes the mean exact.

    Args:
        values: fp32, any shape. Infinities and NaN stay as they are.
        bits: int32 of that shape; the upper 16 bits of each are used.

    Source: flipping the carry into the upper half by adding 16 random bits to the lower half is the
    usual way; see Zamirai et al., "Revisiting BFloat16 Training", arXiv 2010.06192.
    """
    pattern = values.float().contiguous().view(torch.int32)
    rounded = (pattern + ((bits >> 16) & 0xFFFF)) & ~0xFFFF
    finite = torch.isfinite(values)
    return torch.where(finite, rounded.view(torch.float32), values).to(torch.bfloat16)


def keep_positive(rounded: Tensor, values: Tensor) -> Tensor:
    """`rounded`, with the smallest positive bf16 wherever a positive value became zero.

    A smoothed sensitivity of zero would give its parameter the largest multiplier there is.
    """
    smallest = torch.tensor(1, dtype=torch.int16, device=rounded.device).view(torch.bfloat16)
    return torch.where((rounded == 0) & (values > 0), smallest, rounded)
