"""Statistics against scipy, hand-worked numbers and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sagelr.study import statistics
from sagelr.study.statistics import Difference, judge

SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=20)


def found(mean: float, sd: float = 1.0, n: int = 10) -> Difference:
    """A difference with a given mean and spread."""
    wide, narrow = (stats.t.ppf(1 - tail, n - 1) * sd / math.sqrt(n) for tail in (0.025, 0.05))
    return Difference(
        mean, sd, (mean - wide, mean + wide), (mean - narrow, mean + narrow), 0.0, 0.5, mean / sd
    )


# -- differences --------------------------------------------------------------------------------


def test_a_difference_worked_by_hand():
    # Differences 1, 1, 4: mean 2, sd √3, standard error 1, t = 2 with 2 degrees of freedom, for
    # which the two-sided p is 1 − t/√(t² + 2) = 1 − 2/√6, and the 97.5% quantile is 4.302653.
    got = statistics.difference([0.0, 1.0, 0.0], [1.0, 2.0, 4.0])
    assert got.mean == 2
    assert got.sd == pytest.approx(math.sqrt(3))
    assert got.t == pytest.approx(2)
    assert got.p_value == pytest.approx(1 - 2 / math.sqrt(6))
    assert got.ci95 == pytest.approx((2 - 4.302653, 2 + 4.302653), abs=1e-6)
    assert got.ci90 == pytest.approx((2 - 2.919986, 2 + 2.919986), abs=1e-6)
    assert got.effect_size == pytest.approx(2 / math.sqrt(3))


@given(SCORES)
def test_a_difference_is_scipy_s_paired_t_test(pairs):
    base, sage = (np.array(side) for side in zip(*pairs, strict=True))
    if np.std(sage - base) < 1e-6:
        return  # the next tests are for these
    got, want = statistics.difference(base, sage), stats.ttest_rel(sage, base)
    assert got.t == pytest.approx(want.statistic)
    assert got.p_value == pytest.approx(want.pvalue)
    assert got.ci95 == pytest.approx(tuple(want.confidence_interval(0.95)))
    assert got.ci90 == pytest.approx(tuple(want.confidence_interval(0.90)))


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_identical_differences_have_no_spread(shift):
    base = [0.1, 0.2, 0.3, 0.7]
    got = statistics.difference(base, [score + shift for score in base])
    assert got.sd == 0
    assert got.t is None
    assert got.effect_size is None
    assert got.ci95 == got.ci90 == (got.mean, got.mean)
    assert got.p_value == (0 if shift else 1)


def test_one_pair_is_no_difference():
    with pytest.raises(ValueError, match="from two pairs on"):
        statistics.difference([1.0], [2.0])


def test_summary():
    assert statistics.summary([1.0, 2.0, 6.0]) == {
        "mean": 3.0,
        "sd": pytest.approx(math.sqrt(7)),
        "values": [1.0, 2.0, 6.0],
        "n": 3,
        "min": 1.0,
        "max": 6.0,
    }
    assert statistics.summary([1.0])["sd"] is None
    assert statistics.summary([])["mean"] is None


# -- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ci90", "ci95", "verdict"),
    [
        ((0.2, 0.8), (0.1, 0.9), "better"),
        ((-0.8, -0.2), (-0.9, -0.1), "worse"),
        ((0.1, 0.8), (0.0, 0.9), "inconclusive"),  # 0 is not excluded by touching it
        ((0.1, 0.8), (1e-9, 0.9), "better"),
        ((-0.04, 0.04), (-0.06, 0.06), "equivalent"),  # the 90% interval alone counts
        ((-0.05, 0.04), (-0.06, 0.05), "inconclusive"),  # on the margin is not inside it
        ((-0.04, 0.05), (-0.05, 0.06), "inconclusive"),
        ((0.01, 0.04), (0.005, 0.045), "equivalent"),  # real, and too small to matter
        ((0.01, 0.05), (0.005, 0.055), "better"),
    ],
)
def test_verdicts_at_their_edges(ci90, ci95, verdict):
    got = Difference(sum(ci95) / 2, 1.0, ci95, ci90, 0.0, 0.5, 0.0)
    assert judge(got, 10, 0.05, greater_is_better=True) == verdict
    other = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    assert judge(got, 10, 0.05, greater_is_better=False) == other


@pytest.mark.parametrize(("n", "verdict"), [(4, "inconclusive"), (5, "equivalent")])
def test_few_identical_differences_prove_nothing(n, verdict):
    got = statistics.compare([0.5] * n, [0.5] * n, margin=0.01)
    assert got["verdict"] == verdict
    assert got["seeds_needed"] == (5 if n == 4 else None)


def test_a_few_identical_differences_have_no_p_value():
    few = statistics.compare([0.5] * 4, [0.6] * 4, margin=0.01)
    assert few["difference"]["p_value"] is None
    assert few["smallest_detectable"] is None
    assert not few["significant"]
    assert statistics.compare([0.5] * 5, [0.6] * 5, margin=0.01)["difference"]["p_value"] == 0


def test_why_no_number_of_seeds_would_settle_it():
    scores = [0.0, 1.0, -1.0, 2.0, -2.0, 0.0]
    narrow = statistics.compare([0.0] * 6, scores, margin=1e-3)
    assert narrow["settles"].endswith("the margin is too narrow for how much the seeds differ.")


def test_a_loss_that_falls_is_a_gain():
    base, sage = [1.0, 1.1, 1.2, 1.3], [0.5, 0.61, 0.7, 0.82]
    got = statistics.compare(base, sage, margin=0.01, greater_is_better=False)
    assert got["verdict"] == "better"
    assert got["gain"] == pytest.approx(-got["difference"]["mean"])
    assert got["significant"]


# -- power --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated():
    """Means and standard errors of many samples of standard normal differences, by their size."""
    draws = np.random.default_rng(7)

    def sample(n: int) -> tuple[np.ndarray, np.ndarray]:
        values = draws.standard_normal((40_000, n))
        return values.mean(axis=1), values.std(axis=1, ddof=1) / math.sqrt(n)

    return sample


@pytest.mark.parametrize(("true", "n"), [(0.0, 5), (0.5, 5), (1.0, 10), (3.0, 3), (0.4, 50)])
def test_power_to_detect_is_what_a_simulation_gives(simulated, true, n):
    means, errors = simulated(n)
    excluded = np.abs(means + true) > stats.t.ppf(0.975, n - 1) * errors
    # The error of a share from 40,000 samples is at most 0.0025.
    assert statistics.power_to_detect(true, 1.0, n) == pytest.approx(excluded.mean(), abs=0.01)
    # Only the ratio of difference and spread counts.
    assert statistics.power_to_detect(1e-5 * true, 1e-5, n) == pytest.approx(
        statistics.power_to_detect(true, 1.0, n)
    )


@pytest.mark.parametrize(("true", "n", "margin"), [(0.0, 10, 1.0), (0.5, 20, 1.0), (0.9, 30, 1.0)])
def test_power_to_equate_is_what_a_simulation_gives(simulated, true, n, margin):
    means, errors = simulated(n)
    reach = stats.t.ppf(0.95, n - 1) * errors
    inside = (means + true + reach < margin) & (means + true - reach > -margin)
    got = statistics.power_to_equate(true, 1.0, n, margin)
    assert got == pytest.approx(inside.mean(), abs=0.01)


@pytest.mark.parametrize("n", [2, 3, 10, 100])
@pytest.mark.parametrize("sd", [1e-14, 0.003, 5.0])
def test_the_smallest_detectable_difference_is_found_in_four_cases_of_five(n, sd):
    smallest = statistics.smallest_detectable(sd, n)
    assert statistics.power_to_detect(smallest, sd, n) == pytest.approx(0.8, abs=1e-6)


def test_without_spread_everything_is_detectable():
    assert statistics.smallest_detectable(0.0, 5) == 0


@pytest.mark.parametrize("true", [0.3, 0.7, 1.5, 40.0])
def test_seeds_needed_is_the_fewest_that_reach_the_power(true):
    def power(n):
        return statistics.power_to_detect(true, 1.0, n)

    needed = statistics.seeds_needed(power)
    assert power(needed) >= 0.8
    assert needed == 2 or power(needed - 1) < 0.8


def test_what_no_number_of_seeds_settles():
    assert statistics.seeds_needed(lambda n: statistics.power_to_detect(0, 1.0, n)) is None
    draws = np.random.default_rng(0).normal(size=6)
    draws = (draws - draws.mean()) / draws.std(ddof=1)
    # A mean of 1e-4 deviations, on the margin: neither 0 nor the margin can be told from it.
    got = statistics.compare([0.0] * 6, list(draws + 1e-4), margin=1e-4)
    assert got["verdict"] == "inconclusive"
    assert got["seeds_needed"] is None
    assert "Not even 10,000 seeds" in got["settles"]


def test_an_inconclusive_comparison_says_how_many_seeds_would_settle_it_and_how():
    draws = np.random.default_rng(0).normal(size=6)
    draws = (draws - draws.mean()) / draws.std(ddof=1)
    apart = statistics.compare([0.0] * 6, list(draws + 0.8), margin=0.1)
    assert apart["verdict"] == "inconclusive"
    assert apart["seeds_needed"] == statistics.seeds_needed(
        lambda n: statistics.power_to_detect(0.8, 1.0, n)
    )
    assert "that there is a difference" in apart["settles"]
    alike = statistics.compare([0.0] * 6, list(draws), margin=0.5)
    assert alike["seeds_needed"] > 6
    assert "too small to matter" in alike["settles"]


# -- several comparisons ------------------------------------------------------------------------


def test_holm_worked_by_hand():
    # Sorted: 0.005·4 = 0.02, 0.01·3 = 0.03, 0.03·2 = 0.06, 0.04·1 raised to 0.06.
    got = statistics.holm([0.01, 0.04, 0.03, 0.005])
    assert got == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_holm_lies_between_no_correction_and_bonferroni(p_values, random):
    got = statistics.holm(p_values)
    for p_value, corrected in zip(p_values, got, strict=True):
        assert p_value <= corrected <= min(1, len(p_values) * p_value)
    assert min(got) == min(1, len(p_values) * min(p_values))
    order = list(range(len(p_values)))
    random.shuffle(order)
    assert statistics.holm([p_values[i] for i in order]) == [got[i] for i in order]


# -- examples -----------------------------------------------------------------------------------


def test_the_interval_over_examples_is_that_of_the_examples_where_seeds_agree():
    draws = np.random.default_rng(3)
    base, sage = (draws.random((1, 400)) < share for share in (0.80, 0.86))
    low, high = statistics.with_other_examples(np.repeat(base, 5, 0), np.repeat(sage, 5, 0))
    pairs = sage[0].astype(float) - base[0]
    half = stats.t.ppf(0.975, 399) * pairs.std(ddof=1) / math.sqrt(400)
    assert (low, high) == pytest.approx((pairs.mean() - half, pairs.mean() + half))


def test_the_interval_over_examples_is_that_of_the_seeds_where_examples_agree():
    shifts = np.linspace(-1, 1, 5)  # the same for every example
    sage = np.repeat(shifts[:, None], 30, axis=1)
    got = statistics.with_other_examples(np.zeros((5, 30)), sage)
    assert got == pytest.approx(statistics.difference(np.zeros(5), shifts).ci95)


@given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_interval_over_examples_is_never_the_narrower_one(seeds, examples, seed):
    base, sage = np.random.default_rng(seed).random((2, seeds, examples)) < 0.7
    low, high = statistics.with_other_examples(base, sage)
    inner = statistics.difference(base.mean(axis=1), sage.mean(axis=1)).ci95
    assert low <= inner[0] + 1e-12
    assert inner[1] - 1e-12 <= high


@given(st.integers(2, 6), st.integers(2, 400), st.integers(0, 2**32 - 1))
def test_the_interval_over_examples_is_no_wider_than_its_parts(seeds, examples, seed):
    """A variance that comes out near 0 once gave intervals of millions of points."""
    base, sage = np.random.default_rng(seed).random((2, seeds, examples)) < 0.7
    low, high = statistics.with_other_examples(base, sage)
    pairs = sage.astype(float) - base
    parts = pairs.mean(axis=1).var(ddof=1) / seeds + pairs.mean(axis=0).var(ddof=1) / examples
    widest = stats.t.ppf(0.975, min(seeds, examples) - 1) * math.sqrt(parts)
    assert high - low <= 2 * widest + 1e-12


@pytest.mark.parametrize(("seeds", "by_seed"), [(2, 0.0), (2, 0.05), (5, 0.0), (5, 0.1), (10, 0.1)])
def test_the_interval_over_examples_covers_the_truth(seeds, by_seed):
    # 1,000 studies on 100 examples of their own, whose true difference is 0.05. At 95% coverage
    # fewer than 929 in 1,000 are a chance of 1 in 500; with few seeds more than 95% are covered.
    draws = np.random.default_rng(11)
    covered = 0
    for _ in range(1000):
        hard = draws.random(100)  # the same examples are hard for both and for every seed
        shift = by_seed * draws.standard_normal((2, seeds, 1))
        levels = np.array([0.5, 0.55])[:, None, None] + shift
        base, sage = draws.random((2, seeds, 100)) * 0.5 + 0.5 * hard < levels
        low, high = statistics.with_other_examples(base, sage)
        covered += low <= _truth(0.55, by_seed) - _truth(0.5, by_seed) <= high
    assert covered >= 929


def _truth(level: float, spread: float) -> float:
    """Chance of x + y < 2·(level + spread·z): x, y uniform, z normal, all independent."""
    z = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    total = np.clip(2 * (level + spread * z), 0, 2)
    below = np.where(total <= 1, total**2 / 2, 1 - (2 - total) ** 2 / 2)
    return float(below.mean())


def test_a_mean_that_is_rounding_alone_is_none():
    """Shares of 872 whose differences add up to 0, and in floating point to -4e-17."""
    base = [730 / 872, 720 / 872, 723 / 872, 721 / 872, 733 / 872]
    sage = [731 / 872, 716 / 872, 723 / 872, 722 / 872, 735 / 872]
    assert statistics.difference(base, sage).mean == 0.0
    assert statistics.difference(base, sage).p_value == 1.0
