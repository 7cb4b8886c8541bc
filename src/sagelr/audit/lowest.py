"""The lowest so many of a model's scores, exactly, without putting them all in one place.

A non-negative fp32 number and its bits as an integer are in the same order. So counting the upper
halves of the bits finds the half that the threshold has, counting the lower halves among those
finds the threshold itself, and equals are taken in order until the number is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Score = Callable[[str], Tensor]
HALF = 16


class Ranking:
    """Scores of several tensors, ranked together.

    Args:
        names: of the tensors.
        score: name → its scores ≥ 0, of any shape, the same at every call. Compared as fp32.
    """

    def __init__(self, names: Sequence[str], score: Score) -> None:
        self.names, self.score = names, score
        self.uppers = torch.zeros(2 ** (HALF - 1), dtype=torch.int64)
        for bits in self._bits():
            self.uppers += torch.bincount(bits >> HALF, minlength=len(self.uppers)).cpu()

    @property
    def count(self) -> int:
        """How many scores there are."""
        return int(self.uppers.sum())

    def lowest(self, count: int) -> Iterator[tuple[str, Tensor]]:
        """Name and mask of each tensor; exactly `count` elements are True, those that score lowest.

        Args:
            count: from 0 to the number of scores.
        """
        threshold, equals = self._threshold(count)
        for name, bits in zip(self.names, self._bits(), strict=True):
            mask = bits < threshold
            taken = (bits == threshold).nonzero().view(-1)[:equals]
            mask[taken] = True
            equals -= len(taken)
            yield name, mask.view(self.score(name).shape)

    def _threshold(self, count: int) -> tuple[int, int]:
        """The bits of the highest score taken, and how many of those equal to it are."""
        if count == 0:
            return 0, 0
        upper, left = _find(self.uppers, count)
        lowers = torch.zeros(2**HALF, dtype=torch.int64)
        for bits in self._bits():
            within = bits[(bits >> HALF) == upper] & (2**HALF - 1)
            lowers += torch.bincount(within, minlength=len(lowers)).cpu()
        lower, equals = _find(lowers, left)
        return (upper << HALF) | lower, equals

    def _bits(self) -> Iterator[Tensor]:
        for name in self.names:
            yield self.score(name).float().contiguous().view(torch.int32).view(-1)


def _find(counts: Tensor, count: int) -> tuple[int, int]:
    """The bin that holds the count-th, and how many of that bin are taken."""
    sums = counts.cumsum(0)
    place = int(torch.searchsorted(sums, count))
    return place, count - int(sums[place] - counts[place])
