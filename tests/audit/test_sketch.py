"""The sketch: exact where it says so, and within its stated error elsewhere."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sagelr.audit.sketch import BELOW, Sketch, distribution, merged

LEVELS = (0.0, 0.01, 0.25, 0.5, 0.9, 1.0)


@st.composite
def values(draw):
    seed = draw(st.integers(0, 2**32))
    count = draw(st.integers(1, 3000))
    spread = draw(st.floats(0, 4))
    scale = 10 ** draw(st.floats(-20, 3))
    zeros = draw(st.floats(0, 1))
    generator = torch.Generator().manual_seed(seed)
    found = torch.exp(spread * torch.randn(count, generator=generator, dtype=torch.float64)) * scale
    return found * (torch.rand(count, generator=generator) >= zeros)


def sketch(*pieces):
    result = Sketch()
    for piece in pieces:
        result.add(piece)
    return result


@given(values())
def test_quantiles_are_within_their_error(x):
    found = sketch(x)
    ordered = x.sort().values
    for level in LEVELS:
        # The values whose rank it is; an interpolation between them is no value at all.
        exact = float(ordered[int(level * (len(x) - 1))])
        assert found.quantile(level) == pytest.approx(exact, rel=0.012, abs=0)


@given(values())
def test_moments_are_exact_and_the_gini_coefficient_nearly(x):
    found = sketch(x)
    total = float(x.sum())
    assert found.total == pytest.approx(total, rel=1e-9)
    if total == 0:
        assert (found.gini(), found.effective(), found.zeros) == (0, 0, len(x))
        return
    assert found.effective() == pytest.approx(float(x.sum() ** 2 / x.square().sum()), rel=1e-6)
    ordered, n = x.sort().values, len(x)
    rank = torch.arange(1, n + 1, dtype=torch.float64)
    gini = float(((2 * rank - n - 1) * ordered).sum() / (n * ordered.sum()))
    assert gini - 0.006 <= found.gini() <= gini + 1e-9


@given(values())
def test_the_share_below_a_part_of_the_median_counts_zeros(x):
    found = sketch(x)
    positive = x[x > 0]
    for decades in BELOW.values():
        if not len(positive):
            assert found.share_below(decades) == 1
            continue
        edge = float(positive.sort().values[(len(positive) - 1) // 2]) * 10.0**-decades
        low, high = ((x <= edge * factor).double().mean() for factor in (0.976, 1.024))
        assert low - 1e-9 <= found.share_below(decades) <= high + 1e-9


@given(values(), st.integers(1, 5))
def test_pieces_give_what_the_whole_gives(x, pieces):
    whole, parts = sketch(x), x.chunk(pieces)
    for other in (sketch(*parts), merged(map(sketch, parts))):
        assert torch.equal(other.counts, whole.counts)
        assert (other.zeros, other.count) == (whole.zeros, len(x))
        assert other.total == pytest.approx(whole.total)
        assert other.squares == pytest.approx(whole.squares)


def test_every_value_is_in_its_bin_of_the_histogram():
    x = torch.tensor([0.0, 2e-9, 3e-9, 5e-4, 0.7], dtype=torch.float64)
    found = sketch(x).histogram()
    assert sum(found["counts"]) == 4
    for value in x[1:].tolist():
        position = next(
            i
            for i in range(len(found["counts"]))
            if 10 ** ((found["first"] + i) / 10) <= value < 10 ** ((found["first"] + i + 1) / 10)
        )
        assert found["counts"][position] > 0


def test_the_smallest_fp32_numbers_are_not_lost():
    found = sketch(torch.tensor([1e-45, 1e-40, 3e38]))
    assert (found.zeros, found.count) == (0, 3)


def test_a_distribution_holds_no_number_that_json_has_not():
    import json

    for x in (torch.zeros(3), torch.ones(3), torch.zeros(0)):
        json.dumps(distribution(sketch(x), 0.0, 0.0), allow_nan=False)
