"""Random bits from a counter, and rounding by them: the same everywhere, and right on average."""

import pytest
import torch
from torch import Tensor

from sagelr.state.rounding import (
    STREAMS,
    keep_positive,
    mix,
    random_bits,
    stochastic_bfloat16,
)

CPU = torch.device("cpu")
MANY = 1 << 16


def bits_of(
    *, seed: int = 1, step: int | Tensor = 1, parameter: int = 0, stream: int = 1,
    count: int = MANY, offset: int = 0,
) -> Tensor:  # fmt: skip
    return random_bits(seed, step, parameter, stream, torch.Size([count]), offset, CPU)


def ones(words: Tensor) -> Tensor:
    """For each of the 32 bits, in how many words it is set."""
    return torch.stack([(words >> i) & 1 for i in range(32)]).double().sum(1)


# -- the bits --------------------------------------------------------------------------------------


def test_words_are_what_the_hash_of_plain_integers_gives():
    """The engines in C++ and Triton follow these numbers."""

    def plain(x: int, middle: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x = ((x ^ x >> 15) + middle) % 2**32
        x = x * 0x846CA68B % 2**32
        return x ^ x >> 16

    seed, step, parameter, stream, offset = 12345, 678, 9, 3, (5 << 32) + 2**32 - 2
    key = plain((seed + 0x9E3779B9) % 2**32, 0) ^ step
    key = plain(plain(key, 0) ^ (parameter * 8 + stream), 0)
    expected = []
    for index in range(offset, offset + 4):
        first = plain(key ^ (index >> 32), 0)
        expected.append(plain(index % 2**32 ^ first, plain(first ^ 0x9E3779B9, 0)))
    found = bits_of(
        seed=seed, step=step, parameter=parameter, stream=stream, count=4, offset=offset
    )
    assert [word % 2**32 for word in found.tolist()] == expected


@pytest.mark.parametrize("offset", [0, 2**31 - 100, 2**32 - 100, 7 * 2**32 - 13])
def test_a_shard_has_the_bits_of_its_elements_in_the_whole(offset):
    whole = bits_of(count=1000, offset=offset)
    for cut in (1, 99, 100, 500):
        parts = [bits_of(count=cut, offset=offset), bits_of(count=1000 - cut, offset=offset + cut)]
        assert torch.equal(torch.cat(parts), whole)


def test_a_step_held_in_a_tensor_gives_the_same_bits():
    assert torch.equal(bits_of(step=torch.tensor(77, dtype=torch.int32)), bits_of(step=77))


def test_the_hash_is_one_to_one():
    for middle in (0, 0x12345678):
        assert mix(torch.arange(MANY, dtype=torch.int32), middle).unique().numel() == MANY


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"step": 2},
        {"parameter": 1},
        {"stream": 2},
        {"offset": MANY},
        {"offset": 2**32},
    ],
    ids=lambda other: "-".join(f"{name}={value}" for name, value in other.items()),
)
def test_other_seeds_steps_parameters_streams_and_elements_have_unrelated_bits(other):
    differing = ones(bits_of() ^ bits_of(**other))
    # Each of 32 bits agrees in half of the words, to five standard deviations.
    assert (differing - MANY / 2).abs().max() < 5 * (MANY / 4) ** 0.5


def test_tensors_of_one_parameter_have_streams_of_their_own():
    together = [
        ("exp_avg", "exp_avg_sq"), ("exp_avg", "exp_inf"), ("exp_avg", "exp_avg_sensitivity"),
        ("exp_avg_sq", "exp_avg_sensitivity"), ("param", "exp_avg"), ("param", "codes"),
        ("momentum_buffer", "exp_avg_sensitivity"),
    ]  # fmt: skip
    for one, other in together:
        assert STREAMS[one] != STREAMS[other]
    assert max(STREAMS.values()) < 8  # keys count eight streams to a parameter


def test_bits_are_even_and_neighbours_unrelated():
    words = bits_of()
    deviation = (MANY / 4) ** 0.5
    assert (ones(words) - MANY / 2).abs().max() < 5 * deviation
    for lag in (1, 2, 32, 1024):
        agreeing = ones(~(words[lag:] ^ words[:-lag]))
        assert (agreeing - (MANY - lag) / 2).abs().max() < 5 * deviation
    counts = torch.bincount((words >> 24) & 0xFF, minlength=256).double()
    chi_square = ((counts - MANY / 256).square() / (MANY / 256)).sum()
    assert 145 < chi_square < 385  # 255 degrees of freedom, to five and a half deviations


@pytest.mark.parametrize("which", ["seed", "step", "parameter", "element"])
def test_one_changed_bit_changes_half_of_the_word(which):
    """Avalanche: over many words, every bit of the output follows every bit of what went in."""
    start = {"seed": 0x2545F491, "step": 4096 + 77, "parameter": 21}
    words = bits_of(**start)
    for bit in range(14):
        if which == "element":
            changed = words[torch.arange(MANY) ^ (1 << bit)]
        else:
            changed = bits_of(**start | {which: start[which] ^ (1 << bit)})
        assert (ones(words ^ changed) / MANY - 0.5).abs().max() < 0.02


# -- rounding to bf16 ------------------------------------------------------------------------------

VALUES = torch.tensor(
    [
        1.0,
        1.00390625,
        1.001,
        -1.001,
        3.14159,
        -2e-3,
        1e30,
        -1e-30,
        1.1754944e-38,
        3e-39,
        0.999,
        255.7,
    ]
)


def neighbours(values: Tensor) -> tuple[Tensor, Tensor]:
    """The bf16 at and next to each value, towards zero and away from it."""
    inner = (values.view(torch.int32) & ~0xFFFF).view(torch.float32)
    outer = ((values.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32)
    return inner, outer


def test_stochastic_rounding_is_right_on_average():
    values = VALUES[:, None].expand(-1, MANY)
    bits = torch.stack([bits_of(parameter=i) for i in range(len(VALUES))])
    rounded = stochastic_bfloat16(values, bits).double()
    inner, outer = neighbours(VALUES)
    assert ((rounded == inner[:, None]) | (rounded == outer[:, None])).all()
    step = (outer.double() - inner.double()).abs()
    share = ((VALUES.double() - inner.double()).abs() / step).clamp(0, 1)
    error = step * (share * (1 - share) / MANY).sqrt()  # of the mean
    assert ((rounded.mean(1) - VALUES.double()).abs() <= 5 * error + step * 2**-16).all()


def test_what_bf16_can_hold_stays_as_it_is():
    kept = torch.randn(1000).bfloat16()
    special = torch.tensor(
        [0.0, -0.0, float("inf"), float("-inf"), 3.3895e38], dtype=torch.bfloat16
    )
    values = torch.cat([kept, special])
    rounded = stochastic_bfloat16(values.float(), bits_of(count=len(values)))
    assert torch.equal(rounded.view(torch.int16), values.view(torch.int16))
    assert stochastic_bfloat16(torch.tensor([float("nan")]), bits_of(count=1)).isnan().all()


def test_a_slow_average_moves_where_nearest_would_stand_still():
    value = torch.full((MANY,), 1.0)
    up = torch.full((MANY,), 1 + 2.0**-12)  # a sixteenth of the way to the next bf16 but one
    assert torch.equal(up.bfloat16(), value.bfloat16())
    moved = stochastic_bfloat16(up, bits_of()).float()
    assert moved.mean().item() == pytest.approx(1 + 2.0**-12, rel=2e-5)


def test_nothing_above_zero_becomes_zero():
    values = torch.tensor([0.0, 1e-45, 1e-41, 4.5e-41, 1e-20, 1.0])
    rounded = keep_positive(values.bfloat16(), values)
    assert rounded[0] == 0
    assert (rounded[1:] > 0).all()
    assert torch.equal(rounded[4:], values.bfloat16()[4:])
