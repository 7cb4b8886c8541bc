"""What a set of paired differences can and cannot tell. Pure functions of numbers.

Two arms trained with the same seeds differ in the optimizer alone, so that seed for seed the
difference of their scores is looked at, with Student's t. A difference that is not found is not
yet an equality: for that, the 90% interval has to lie inside a margin that was stated beforehand
(two one-sided tests at 5%, Schuirmann 1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import ndtr

Verdict = Literal["better", "worse", "equivalent", "inconclusive"]

LEVEL = 0.05  # of both tests
POWER = 0.8
MOST_SEEDS = 10_000
FEWEST_ALIKE = 5  # identical differences that are taken for more than chance


@dataclass(frozen=True)
class Difference:
    """Paired differences, summed up.

    Attributes:
        mean: of the differences.
        sd: their standard deviation (n−1).
        ci95: Student's interval for the mean.
        ci90: the same at 90%.
        t: Student's t; None where the differences do not vary.
        p_value: two-sided, of no difference.
        effect_size: d_z, mean over sd of the differences; None where they do not vary. It is
            larger than Cohen's d when the arms' scores go up and down together.
    """

    mean: float
    sd: float
    ci95: tuple[float, float]
    ci90: tuple[float, float]
    t: float | None
    p_value: float
    effect_size: float | None


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and range of one arm's scores; sd is None below two."""
    array = np.asarray(values, dtype=float)
    return {
        "mean": float(array.mean()) if len(array) else None,
        "sd": float(array.std(ddof=1)) if len(array) > 1 else None,
        "values": [float(value) for value in array],
        "n": len(array),
        "min": float(array.min()) if len(array) else None,
        "max": float(array.max()) if len(array) else None,
    }


def difference(base: Sequence[float], sage: Sequence[float]) -> Difference:
    """Sum up sage − base, pair by pair.

    Args:
        base: scores, one a seed; two or more.
        sage: scores for the same seeds in the same order.

    Examples:
        >>> found = difference([0.0, 1.0, 0.0], [1.0, 2.0, 4.0])
        >>> round(found.mean, 3), round(found.p_value, 3)
        (2.0, 0.184)
    """
    pairs = np.asarray(sage, dtype=float) - np.asarray(base, dtype=float)
    n = len(pairs)
    if n < 2:
        raise ValueError(f"{n} paired scores: a difference has a spread from two pairs on.")
    mean, sd = float(pairs.mean()), float(pairs.std(ddof=1))
    scale = float(max(np.abs(np.asarray(base)).max(), np.abs(np.asarray(sage)).max()))
    if abs(mean) <= 1e-12 * scale:  # rounding is all there is of it
        mean = 0.0
    if sd <= 1e-12 * scale:  # all alike, but for rounding
        alike = (mean, mean)
        return Difference(mean, 0.0, alike, alike, None, 0.0 if mean else 1.0, None)
    error = sd / math.sqrt(n)
    t = mean / error
    wide, narrow = (stats.t.ppf(1 - tail, n - 1) * error for tail in (LEVEL / 2, LEVEL))
    return Difference(
        mean=mean,
        sd=sd,
        ci95=(float(mean - wide), float(mean + wide)),
        ci90=(float(mean - narrow), float(mean + narrow)),
        t=t,
        p_value=float(2 * stats.t.sf(abs(t), n - 1)),
        effect_size=mean / sd,
    )


@lru_cache(maxsize=64)
def _spread(n: int) -> np.ndarray:
    """Quantiles of sd / true sd for n normal differences, evenly spaced."""
    quantiles = (np.arange(4000) + 0.5) / 4000
    return np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))


def power_to_detect(true: float, sd: float, n: int) -> float:
    """Chance that the 95% interval of n pairs excludes 0, when the true difference is `true`.

    Mean and spread of normal differences are independent: averaged here over the spread. (The
    same as the noncentral t, whose tails scipy does not give everywhere.)

    Args:
        true: mean of the differences.
        sd: their standard deviation, > 0.
        n: pairs, 2 or more.
    """
    shift = abs(true) / sd * math.sqrt(n)
    reach = stats.t.ppf(1 - LEVEL / 2, n - 1) * _spread(n)
    return float((ndtr(shift - reach) + ndtr(-shift - reach)).mean())


def power_to_equate(true: float, sd: float, n: int, margin: float) -> float:
    """Chance that the 90% interval of n pairs lies within the margin.

    Args:
        true: mean of the differences.
        sd: their standard deviation, > 0.
        n: pairs, 2 or more.
        margin: > 0.
    """
    reach = stats.t.ppf(1 - LEVEL, n - 1) * _spread(n)
    step = math.sqrt(n) / sd
    high = ndtr((margin - true) * step - reach)
    low = ndtr((-margin - true) * step + reach)
    return float(np.maximum(high - low, 0).mean())


def smallest_detectable(sd: float, n: int) -> float:
    """The true difference that n pairs find with 80% power, two-sided at 5%.

    Args:
        sd: of the differences.
        n: pairs, 2 or more.
    """
    high = 1.0  # in units of sd, on which alone it depends
    while power_to_detect(high, 1.0, n) < POWER:
        high *= 2
    found: Any = brentq(lambda true: power_to_detect(true, 1.0, n) - POWER, 0.0, high)
    return float(found) * sd


def seeds_needed(power: Callable[[int], float]) -> int | None:
    """The fewest pairs that reach 80% power; None if even MOST_SEEDS do not.

    Args:
        power: of a number of pairs; growing with it.
    """
    if power(MOST_SEEDS) < POWER:
        return None
    low, high = 1, MOST_SEEDS  # two at least
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values that keep the chance of any false alarm among all tests at 5%.

    The i-th smallest of m is multiplied by m − i + 1, and none is below a smaller one's.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Source: S. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    corrected, reached = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = reached
    return corrected


def with_other_examples(
    base: Sequence[Sequence[float]], sage: Sequence[Sequence[float]]
) -> tuple[float, float]:
    """95% interval of the mean difference, over other test examples as well as other seeds.

    The interval of `difference` takes the test split as given. Another split of the same kind
    would have held other examples: a few hundred of them are uncertain by more than many seeds
    are. A difference is taken as mean + seed + example + rest, the last three drawn at random, and
    Student's t at Satterthwaite's degrees of freedom does for their estimates from few seeds. It is
    never narrower than that of `difference`.

    Args:
        base: what each example scored, such as 1 where right and 0 where wrong; a row a seed, two
            rows or more.
        sage: the same for the same seeds and examples in the same order.

    Source: F. E. Satterthwaite, An approximate distribution of estimates of variance components,
        1946; the two-way layout with one observation in a cell.
    """
    pairs = np.asarray(sage, dtype=float) - np.asarray(base, dtype=float)  # (seeds, examples)
    rows, columns = pairs.shape
    by_seed, by_example, mean = pairs.mean(axis=1), pairs.mean(axis=0), pairs.mean()
    rest = pairs - by_seed[:, None] - by_example + mean
    found = difference([0.0] * rows, by_seed.tolist())
    freedom = [rows - 1, max(columns - 1, 1), (rows - 1) * max(columns - 1, 1)]
    # Parts of the variance of the mean; what is of the rest is in both of the others.
    parts = [
        ((by_seed - mean) ** 2).sum() / freedom[0] / rows,
        ((by_example - mean) ** 2).sum() / freedom[1] / columns,
        (rest**2).sum() / freedom[2] / (rows * columns),
    ]
    half = (found.ci95[1] - found.ci95[0]) / 2
    variance = parts[0] + parts[1] - parts[2]
    if variance > 0:
        spread = sum(part**2 / n for part, n in zip(parts, freedom, strict=True))
        # A difference of parts can come out near 0, and with it the degrees of freedom.
        few = max(variance**2 / spread, min(freedom))
        half = max(half, stats.t.ppf(1 - LEVEL / 2, few) * math.sqrt(variance))
    return float(mean - half), float(mean + half)


def judge(found: Difference, n: int, margin: float, *, greater_is_better: bool) -> Verdict:
    """One of four verdicts.

    "equivalent": the 90% interval lies within ±margin, whether or not it excludes 0: a difference
    that is real but smaller than what the recipe calls relevant is not called a gain. Otherwise
    "better" or "worse": the 95% interval excludes 0. Otherwise "inconclusive".
    """
    if found.sd == 0 and n < FEWEST_ALIKE:
        return "inconclusive"
    if -margin < found.ci90[0] and found.ci90[1] < margin:
        return "equivalent"
    if found.ci95[0] <= 0 <= found.ci95[1]:
        return "inconclusive"
    return "better" if (found.mean > 0) == greater_is_better else "worse"


def compare(
    base: Sequence[float], sage: Sequence[float], *, margin: float, greater_is_better: bool = True
) -> dict[str, Any]:
    """Everything results.json says of one pair of arms.

    Args:
        base: scores of the base arm, one a seed; two or more.
        sage: scores of the sage arm, for the same seeds in the same order.
        margin: differences smaller than this do not matter, in units of the scores.
        greater_is_better: False for errors and losses.

    Returns:
        Plain data. Where a few differences are all alike, p_value and smallest_detectable are
        None: there is no spread to work them out by.
    """
    found, n = difference(base, sage), len(base)
    verdict = judge(found, n, margin, greater_is_better=greater_is_better)
    needed, settles = None, None
    if verdict == "inconclusive":
        needed, settles = _settle(found, n, margin)
    told = {key: _plain(value) for key, value in asdict(found).items()}
    few = found.sd == 0 and n < FEWEST_ALIKE  # no spread to tell anything by
    return {
        "n": n,
        "difference": told | {"p_value": None} if few else told,
        "gain": found.mean if greater_is_better else -found.mean,
        "smallest_detectable": None if few else smallest_detectable(found.sd, n),
        "margin": margin,
        "verdict": verdict,
        "significant": not few and not found.ci95[0] <= 0 <= found.ci95[1],
        "seeds_needed": needed,
        "settles": settles,
    }


def _settle(found: Difference, n: int, margin: float) -> tuple[int | None, str]:
    """How many seeds would settle it if mean and spread stayed as they are, and which way."""
    if found.sd == 0:
        return FEWEST_ALIKE, (
            f"All {n} differences are alike, which tells nothing of their spread; "
            f"{FEWEST_ALIKE} seeds or more would."
        )
    differ = seeds_needed(lambda m: power_to_detect(found.mean, found.sd, m))
    equal = seeds_needed(lambda m: power_to_equate(found.mean, found.sd, m, margin))
    known = [count for count in (differ, equal) if count is not None]
    if not known:
        narrow = power_to_equate(0.0, found.sd, MOST_SEEDS, margin) < POWER
        return None, (
            f"Not even {MOST_SEEDS:,} seeds would settle it if mean and spread stayed as they are: "
            + (
                "the margin is too narrow for how much the seeds differ."
                if narrow
                else "the difference is too close to the margin."
            )
        )
    needed = max(min(known), n + 1)
    if equal == min(known):
        settles = "that the difference is too small to matter (the 90% interval inside the margin)"
    else:
        settles = "that there is a difference (the 95% interval without 0)"
    return needed, (
        f"If mean and spread stayed as they are, {needed:,} seeds in all would show {settles} "
        f"with {POWER:.0%} probability."
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
