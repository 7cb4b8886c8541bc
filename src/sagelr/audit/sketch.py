"""A distribution in a few numbers: counts in log-spaced bins, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sagelr.audit.schema import Distribution, Histogram

PER_DECADE = 100  # bins; a quantile read off the middle of its bin is within 1.2%
SHOWN_PER_DECADE = 10
LOWEST, HIGHEST = -46, 14  # decades; every positive fp32 number lies above the first
BINS = (HIGHEST - LOWEST) * PER_DECADE
QUANTILES = (1, 5, 25, 50, 75, 95, 99)
BELOW = {"0.001": 3, "0.01": 2, "0.1": 1}  # times the median → decades below it
CHUNK = 2**20


class Sketch:
    """How non-negative values are spread, taken in piece by piece.

    Counts and sums per bin of a hundredth of a decade, zeros apart. Sums, the mean and the
    participation ratio are exact; a quantile is within 1.2%; the Gini coefficient is at most 0.006
    too low, since values within a bin count as equal.
    """

    def __init__(self) -> None:
        self.zeros = 0
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.sums = torch.zeros(BINS, dtype=torch.float64)
        self.squares = 0.0

    def add(self, values: Tensor) -> None:
        """Take in values ≥ 0, any shape."""
        for piece in values.detach().reshape(-1).split(CHUNK):
            positive = piece[piece > 0]
            self.zeros += piece.numel() - positive.numel()
            where = (positive.log10() - LOWEST).mul_(PER_DECADE).long().clamp_(0, BINS - 1)
            wide = positive.double()
            self.counts += torch.bincount(where, minlength=BINS).cpu()
            self.sums += torch.bincount(where, weights=wide, minlength=BINS).cpu()
            self.squares += float(wide.square_().sum())

    def merge(self, other: Sketch) -> None:
        """Take in what another has."""
        self.zeros += other.zeros
        self.counts += other.counts
        self.sums += other.sums
        self.squares += other.squares

    @property
    def count(self) -> int:
        """How many values there are."""
        return self.zeros + int(self.counts.sum())

    @property
    def total(self) -> float:
        """Their sum."""
        return float(self.sums.sum())

    @property
    def mean(self) -> float:
        """Their mean; 0 if there are none."""
        return self.total / max(1, self.count)

    def quantile(self, share: float) -> float:
        """The value that so large a share of all lies at or below, within 1.2%."""
        rank = share * (self.count - 1)
        if rank < self.zeros:
            return 0.0
        return self._value(self._bin(rank - self.zeros))

    def share_below(self, decades: int) -> float:
        """Share of values at most 10^−decades times the median of those above 0; zeros count."""
        positive = self.count - self.zeros
        if positive == 0:
            return 1.0
        edge = self._bin((positive - 1) / 2) - decades * PER_DECADE
        return (self.zeros + int(self.counts[: max(0, edge + 1)].sum())) / self.count

    def gini(self) -> float:
        """Gini coefficient: 0 if all are equal, near 1 if few have nearly everything."""
        if self.total == 0:
            return 0.0
        share = self.counts.double() / self.count
        held = self.sums / self.total
        below = held.cumsum(0) - held
        return 1 - float((share * (2 * below + held)).sum())

    def effective(self) -> float:
        """Participation ratio (Σx)² / Σx²: how many equal values would be as concentrated."""
        return self.total**2 / self.squares if self.squares else 0.0

    def histogram(self) -> Histogram:
        """The counts in bins of a tenth of a decade, without the empty ends."""
        counts = self.counts.view(-1, PER_DECADE // SHOWN_PER_DECADE).sum(1)
        filled = counts.nonzero().view(-1).tolist()
        first, last = (filled[0], filled[-1]) if filled else (0, -1)
        return {
            "per_decade": SHOWN_PER_DECADE,
            "first": first + LOWEST * SHOWN_PER_DECADE,
            "counts": counts[first : last + 1].tolist(),
        }

    def _bin(self, rank: float) -> int:
        """The bin that holds a rank among the values above 0, counted from 0."""
        return int(torch.searchsorted(self.counts.cumsum(0), int(rank), right=True))

    @staticmethod
    def _value(position: int) -> float:
        """What stands for a bin: as far, relatively, from its lower end as from its upper."""
        width = 10 ** (1 / PER_DECADE)
        return 10 ** (LOWEST + position / PER_DECADE) * 2 * width / (1 + width)


def merged(sketches: Iterable[Sketch]) -> Sketch:
    """One sketch of everything in several."""
    result = Sketch()
    for each in sketches:
        result.merge(each)
    return result


def distribution(sketch: Sketch, variation: float, loss: float) -> Distribution:
    """A sketch of sensitivities as audit.json has it.

    Args:
        sketch: of sensitivities.
        variation: the mean of theirs.
        loss: that they were measured at.
    """
    effective = sketch.effective()
    return {
        "parameters": sketch.count,
        "mean": short(sketch.mean),
        "mean_by_loss": by_loss(sketch.mean, loss),
        "zero": sketch.zeros,
        "quantiles": {str(q): short(sketch.quantile(q / 100)) for q in QUANTILES},
        "histogram": sketch.histogram(),
        "share_below": {key: short(sketch.share_below(n)) for key, n in BELOW.items()},
        "gini": short(sketch.gini()),
        "effective": short(effective),
        "effective_share": short(effective / max(1, sketch.count)),
        "variation": short(variation),
    }


def by_loss(value: float, loss: float) -> float | None:
    """A sensitivity divided by the loss; None where the loss is not above 0."""
    return short(value / loss) if loss > 0 else None


def short(value: float) -> float:
    """Six significant digits: what a page can show, and a file should hold."""
    return float(f"{value:.6g}")
