"""Eight-bit codes: what they can hold, how they round, and where their blocks lie."""

import pytest
import torch
from torch import Tensor

from sagelr.state import codes, formats, rounding

NAMES = ["exp_avg", "exp_avg_sq", "exp_avg_sensitivity"]
STEP = 2.0**-codes.MANTISSA  # of the grid, relative to the power of two below a value


def bits_of(values: Tensor, offset: int = 0) -> Tensor:
    stream = rounding.STREAMS["codes"]
    return rounding.random_bits(7, 1, 3, stream, values.shape, offset, values.device)


def through(values: Tensor, name: str, bits: Tensor | None = None) -> Tensor:
    """What is left of values that were stored."""
    signed = name in formats.SIGNED
    scale = codes.scales(values)
    stored = codes.encode(values, scale, bits, name, signed=signed)
    assert stored.dtype == scale.dtype == torch.uint8
    return codes.decode(stored, scale, signed=signed)


def values_for(name: str, draw, *shape: int) -> Tensor:
    values = draw(*shape, dtype=torch.float32)
    return values if name in formats.SIGNED else values.square()


@pytest.mark.parametrize("name", NAMES)
def test_every_code_stands_for_a_value_that_has_this_code(name):
    signed = name in formats.SIGNED
    every = torch.arange(256, dtype=torch.uint8).view(8, 32)
    for byte in (40, 127, 200, 253):
        scale = torch.full((8, 1), byte, dtype=torch.uint8)
        values = codes.decode(every, scale, signed=signed)
        assert torch.equal(codes.encode(values, scale, None, name, signed=signed), every)
        known = values.flatten()[:128] if signed else values.flatten()
        assert (known[1:] > known[:-1]).all()
        assert known[0] == 0
        assert known[-1] == pytest.approx(2.0 ** (byte - 127), rel=2e-5)
        if signed:
            assert torch.equal(values.flatten()[128:], -known)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sensitivity"])
@pytest.mark.parametrize("shape", [(5, 70), (3, 4, 9), (64, 64)])
@pytest.mark.parametrize("stride", [1, 7, 64, 1000])
def test_every_nth_is_of_the_whole(name, shape, stride, draw):
    values = values_for(name, draw, *shape)
    signed = name in formats.SIGNED
    scale = codes.scales(values)
    coded = codes.encode(values, scale, None, name, signed=signed)
    for held in (coded, coded.mT.contiguous().mT):  # memory as it comes
        some = codes.decode_every(held, scale, stride, signed=signed)
        assert torch.equal(some, codes.decode(coded, scale, signed=signed).reshape(-1)[::stride])


def test_a_scale_is_a_power_of_two_above_its_block(draw):
    values = draw(50, 100, dtype=torch.float32) * 10 ** draw(50, 100, dtype=torch.float32)
    scale = codes.scales(values)
    assert scale.shape == codes.blocks(values.shape) == (50, 4)
    for row in range(50):
        for block in range(4):
            largest = values[row, 32 * block : 32 * block + 32].abs().max().item()
            power = 2.0 ** (int(scale[row, block]) - 127)
            assert power / 2 <= largest < power


@pytest.mark.parametrize("name", ["exp_avg_sq", "exp_avg_sensitivity"])
def test_a_small_value_beside_a_large_one_keeps_its_digits(name):
    small = torch.logspace(-8, 0, 31)
    values = torch.cat([small, torch.ones(1)]).view(1, 32)
    assert ((through(values, name) - values).abs() <= values * STEP / 2).all()


def test_a_signed_value_is_within_half_a_step_of_its_grid(draw):
    values = values_for("exp_avg", draw, 64, 96)
    scale = (codes.scales(values).to(torch.int32) << 23).view(torch.float32)
    error = (through(values, "exp_avg") - values).abs()
    finest = scale.repeat_interleave(32, 1) * 2.0**-19  # next to zero
    assert (error <= values.abs() * STEP / 2 + finest).all()


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("name", ["exp_avg_sq", "exp_avg_sensitivity"])
def test_nothing_above_zero_becomes_zero(name, stochastic):
    tiny = torch.tensor([1e-45, 1e-40, 1e-30, 1e-10, 0.0, 1.0])
    for largest in (1e-45, 1e-38, 1e-10, 1.0, 1e20, 3e38):
        values = torch.zeros(1, 32)
        values[0, :6] = tiny.clamp(max=largest)
        values[0, 31] = largest
        kept = through(values, name, bits_of(values) if stochastic else None)
        assert torch.equal(kept > 0, values > 0)


@pytest.mark.parametrize("name", NAMES)
def test_zero_stays_zero_and_signs_are_kept(name, draw):
    values = values_for(name, draw, 4, 64)
    values[0], values[1, ::3] = 0, 0
    kept = through(values, name, bits_of(values))
    assert torch.equal(kept == 0, values == 0)
    assert (kept * values >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_too_large_saturates(name):
    values = torch.full((1, 32), 1.0)
    values[0, 5] = float("inf")
    kept = through(values, name, bits_of(values))
    assert kept.isfinite().all()
    assert kept[0, 5] == kept.max() == pytest.approx(2.0**126, rel=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_rounding_is_right_on_average(name, draw):
    count = 4000
    values = values_for(name, draw, 40)
    same = values.expand(count, 40)  # a row is a block of 32 and one of 8, each with its bits
    kept = through(same, name, bits_of(same)).double()
    assert (kept.amax(0) - kept.amin(0) <= (values.abs() + 1e-4) * STEP * 1.01).all()  # one step
    error = kept.std(0) / count**0.5
    # Ten random bits place the threshold to half a thousandth of a step.
    within = 5 * error + values.abs() * STEP / 2048
    assert ((kept.mean(0) - values).abs() <= within).all()


def test_the_averages_of_an_element_are_rounded_independently(draw):
    values = draw(64, 512).abs() + 0.1
    bits = bits_of(values)
    surprise = {}  # rounded up or not, less the probability of it
    for name in NAMES:
        scale = (codes.scales(values).to(torch.int32) << 23).view(torch.float32)
        size = values / scale.repeat_interleave(32, 1)
        size = size + codes._shift(name in formats.SIGNED, values.device)
        share = (size.view(torch.int32) & ((1 << codes.DROPPED) - 1)) / (1 << codes.DROPPED)
        surprise[name] = (through(values, name, bits) > values).double() - share
    for i, one in enumerate(NAMES):
        for other in NAMES[i + 1 :]:
            together = (surprise[one] * surprise[other]).mean()
            assert together.abs() < 5 * 0.25 / values.numel() ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_row_knows_nothing_of_the_others(name, draw):
    """So that a shard of rows has the codes that its rows have in the whole."""
    values = values_for(name, draw, 6, 50, 3)
    signed = name in formats.SIGNED
    scale = codes.scales(values)
    whole = codes.encode(values, scale, bits_of(values), name, signed=signed)
    part = values[2:5]
    assert torch.equal(codes.scales(part), scale[2:5])
    found = codes.encode(part, scale[2:5], bits_of(part, 2 * 150), name, signed=signed)
    assert torch.equal(found, whole[2:5])
