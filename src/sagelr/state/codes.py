"""Eight bits for a value: a float with 3 bits of mantissa, its exponent counted from a block's.

A block is 32 neighbours within a row of dimension 0, so that sharding on dimension 0 cuts none. Its
scale is a power of two above its largest value, kept as one byte. A value x in a block of scale
2^e is stored as the float x·2^(−e) cut to 3 bits of mantissa:

    unsigned (second moment, sensitivity)   255 codes, from 1 down to about 2^−32 of the scale
    signed   (first moment)                 127 codes a side, down to about 2^−16 of the scale

The grid is logarithmic, so that a small value beside a large one keeps its three bits; and since
scales are powers of two, a value that does not change is stored as it was, whatever becomes of its
block's scale. A first moment below the grid goes to zero, or by chance to the lowest code. A second
moment or a sensitivity that is not zero never becomes zero: the one would let its parameter leap,
the other would give it the largest multiplier there is.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
MANTISSA = 3
DROPPED = 23 - MANTISSA  # bits of an fp32 mantissa that are not stored
SCALE_BIAS = 127  # stored scale byte: exponent + 127, as in fp32
LEVELS = {False: 255, True: 127}  # codes above zero, by signed


def blocks(shape: torch.Size) -> tuple[int, int]:
    """Rows, and blocks in a row.

    >>> blocks(torch.Size([4, 10, 8]))
    (4, 3)
    """
    width = shape[1:].numel()
    return shape[0], -(-width // BLOCK)


def scales(values: Tensor) -> Tensor:
    """The scale bytes of a tensor: for each block, the exponent of a power of two above it.

    Args:
        values: fp32, of shape (rows, ...).

    Returns:
        uint8 of shape (rows, blocks).
    """
    largest = _in_blocks(values.abs()).amax(-1)
    pattern = largest.contiguous().view(torch.int32)
    # One above the exponent: rounding up may carry into the next power of two.
    return ((pattern >> 23) + 1).clamp(1, 253).to(torch.uint8)


def encode(values: Tensor, scale: Tensor, bits: Tensor | None, *, signed: bool) -> Tensor:
    """Codes of a tensor.

    Args:
        values: fp32, of shape (rows, ...).
        scale: from `scales`.
        bits: int32 random bits of the same shape to round stochastically, None to round to nearest.
        signed: whether values below zero can occur.

    Returns:
        uint8, of the shape of values. 0 is zero.
    """
    scaled = values / _spread(_power(scale), values.shape)
    pattern = scaled.contiguous().view(torch.int32)
    magnitude = pattern & 0x7FFFFFFF
    half = 1 << (DROPPED - 1)
    noise = (bits & ((1 << DROPPED) - 1)) if bits is not None else half
    lowest = _lowest(signed)
    code = ((magnitude + noise) >> DROPPED) - lowest
    if signed and bits is not None:
        # Below the grid: the lowest code, with probability value / its value.
        bottom = torch.tensor((1 + lowest) << DROPPED, dtype=torch.int32, device=values.device)
        chance = scaled.abs() / bottom.view(torch.float32)
        uniform = (bits & 0xFFFFFF).to(torch.float32) / (1 << 24)
        code = torch.where(chance < 1, (uniform < chance).to(torch.int32), code)
    code = code.clamp(0 if signed else 1, LEVELS[signed])
    code = torch.where(magnitude > 0, code, torch.zeros_like(code))
    if signed:
        code = torch.where(pattern < 0, code + 128, code)
    return code.to(torch.uint8)


def decode(codes: Tensor, scale: Tensor, *, signed: bool) -> Tensor:
    """The values that codes stand for, as fp32."""
    code = codes.to(torch.int32)
    sign = (code >> 7) if signed else None
    if signed:
        code = code & 0x7F
    pattern = torch.where(code > 0, (code + _lowest(signed)) << DROPPED, torch.zeros_like(code))
    values = pattern.view(torch.float32) * _spread(_power(scale), codes.shape)
    return values if sign is None else torch.where(sign > 0, -values, values)


def _lowest(signed: bool) -> int:
    """What a code lacks to the upper bits of an fp32: the highest code stands for 1."""
    return (SCALE_BIAS << MANTISSA) - LEVELS[signed]


def _power(scale: Tensor) -> Tensor:
    return (scale.to(torch.int32) << 23).view(torch.float32)


def _in_blocks(values: Tensor) -> Tensor:
    rows, per_row = blocks(values.shape)
    flat = values.reshape(rows, -1)
    padded = torch.nn.functional.pad(flat, (0, per_row * BLOCK - flat.shape[1]))
    return padded.view(rows, per_row, BLOCK)


def _spread(scale: Tensor, shape: torch.Size) -> Tensor:
    """A scale for every element."""
    width = shape[1:].numel()
    return scale.repeat_interleave(BLOCK, dim=1)[:, :width].reshape(shape)
