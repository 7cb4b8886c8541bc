"""Eight bits for a value: a float with 3 bits of mantissa, its exponent counted from a block's.

A block is 32 neighbours within a row of dimension 0, so that sharding on dimension 0 cuts none. Its
scale is a power of two above its largest value, kept as one byte. A value x in a block of scale
2^e is stored as the float x·2^(−e) cut to 3 bits of mantissa:

    unsigned (second moment, sensitivity)   255 codes, from 1 down to about 2^−32 of the scale
    signed   (first moment)                 127 codes a side, even below about 2^−16 of the scale

The grid is logarithmic, so that a small value beside a large one keeps its three bits. The signed
one is moved by its lowest value, so that it runs evenly through zero. A second moment or a
sensitivity that is not zero never becomes zero: the one would let its parameter leap, the other
would give it the largest multiplier there is.

The three averages of an element are rounded by parts of one random word.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
MANTISSA = 3
DROPPED = 23 - MANTISSA  # bits of an fp32 mantissa that are not stored
SCALE_BIAS = 127  # stored scale byte: exponent + 127, as in fp32
LEVELS = {False: 255, True: 127}  # codes above zero, by signed
# First bit and number of bits that round an average; the slowest needs the finest chance.
PARTS = {"exp_avg": (0, 10), "exp_avg_sensitivity": (10, 10), "exp_avg_sq": (20, 12)}


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


def encode(
    values: Tensor, scale: Tensor, bits: Tensor | None, name: str, *, signed: bool
) -> Tensor:
    """Codes of a tensor.

    Args:
        values: fp32, of shape (rows, ...).
        scale: from `scales`.
        bits: int32 random bits of the same shape to round stochastically, None to round to nearest.
        name: of the average, which says what part of the bits is its own.
        signed: whether values below zero can occur.

    Returns:
        uint8, of the shape of values. 0 is zero.
    """
    scaled = values / _spread(_power(scale), values.shape)
    noise: Tensor | int = 1 << (DROPPED - 1)
    if bits is not None:
        at, width = PARTS[name]
        part = (bits >> at) & ((1 << width) - 1)
        noise = (part << (DROPPED - width)) | (1 << (DROPPED - 1 - width))
    size = scaled.abs() + _shift(signed, values.device)
    code = ((size.contiguous().view(torch.int32) + noise) >> DROPPED) - _lowest(signed)
    code = code.clamp(0 if signed else 1, LEVELS[signed])
    if signed:
        code = torch.where(torch.signbit(scaled), code | 128, code)
    else:
        # Not scaled > 0: the least float beside a huge one is zero once it is scaled.
        code = torch.where(values > 0, code, torch.zeros_like(code))
    return code.to(torch.uint8)


def decode(codes: Tensor, scale: Tensor, *, signed: bool) -> Tensor:
    """The values that codes stand for, as fp32."""
    return _values(codes, _spread(scale, codes.shape), signed)


def decode_every(codes: Tensor, scale: Tensor, stride: int, *, signed: bool) -> Tensor:
    """Of the flattened values every stride-th, at the cost of these alone."""
    width = codes.shape[1:].numel()
    at = torch.arange(0, codes.numel(), stride, device=codes.device)
    some = scale[at // width, at % width // BLOCK]
    return _values(codes.reshape(-1)[::stride], some, signed)


def _values(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """Of codes, each with its scale."""
    code = codes.to(torch.int32)
    level = code & 0x7F if signed else code
    size = ((level + _lowest(signed)) << DROPPED).view(torch.float32)
    values = (size - _shift(signed, codes.device)) * _power(scale)
    if signed:
        return torch.where(code > 127, -values, values)
    return torch.where(code > 0, values, torch.zeros_like(values))


def _lowest(signed: bool) -> int:
    """What a code lacks to the upper bits of an fp32: the highest code stands for 1."""
    return (SCALE_BIAS << MANTISSA) - LEVELS[signed]


def _shift(signed: bool, device: torch.device) -> Tensor:
    """What a signed value is moved by, so that the grid is even around zero."""
    lowest = (_lowest(signed) << DROPPED) if signed else 0
    return torch.tensor(lowest, dtype=torch.int32, device=device).view(torch.float32)


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
