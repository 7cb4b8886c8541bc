"""Which rows make which batch: a function of seed and epoch alone, the same for any processes.

A plan gives the batches of an epoch as the optimizer sees them. Every process of a training takes
its share of each batch, so that a step is the same step on one device and on many, and a training
that is resumed finds the batches it left, with as many processes as before or with others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

Batch = list[int]
Plan = Callable[[int], list[Batch]]  # epoch → its batches; as many in every epoch

POOL = 50  # batches that are sorted by length together


class Batches(Sampler[Batch]):
    """The batches of a plan, as one process of several sees them.

    Args:
        plan: epoch → batches.
        rank: which process this is.
        processes: how many there are. In a batch of fewer rows than that, some rows count twice.
    """

    def __init__(self, plan: Plan, rank: int = 0, processes: int = 1) -> None:
        self.plan, self.rank, self.processes = plan, rank, processes
        self.epoch, self.batches = 0, plan(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the batches of an epoch."""
        if epoch != self.epoch:  # the Trainer and Accelerate both say it
            self.epoch, self.batches = epoch, self.plan(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            start = len(batch) * self.rank // self.processes
            stop = len(batch) * (self.rank + 1) // self.processes
            yield batch[start : max(stop, start + 1)]


def loader(
    rows: Any,
    batches: Batches,
    collate: Callable[[list[Any]], Any],
    device: torch.device,
    *,
    pinned: bool,
) -> DataLoader[Any]:
    """A loader of these batches as the Trainer wants it.

    Args:
        rows: of the split.
        batches: those of this process.
        collate: rows → batch.
        device: where the batches go.
        pinned: whether they wait in pinned memory.
    """
    plain: DataLoader[Any] = DataLoader(
        rows, batch_sampler=batches, collate_fn=collate, pin_memory=pinned
    )
    # To Accelerate there is one process: the batches are shared out already.
    return prepare_data_loader(plain, device, num_processes=1, process_index=0, put_on_device=True)


def in_order(rows: Sequence[int], size: int, least: int) -> Plan:
    """Rows in this order, `size` to a batch, the last batch joined to the one before if short.

    Args:
        rows: of the split.
        size: rows of a batch.
        least: rows that a batch has to have, unless there are no more at all.
    """
    total = len(rows)
    starts = [start for start in range(0, total, size) if start == 0 or total - start >= least]
    return lambda _: [list(rows[start:stop]) for start, stop in pairwise([*starts, total])]


def shuffled(rows: int, size: int, seed: int) -> Plan:
    """Rows in a random order, `size` to a batch; the last batch holds what is left.

    Examples:
        >>> [len(batch) for batch in shuffled(10, 4, seed=0)(epoch=3)]
        [4, 4, 2]
    """
    return lambda epoch: _cut(torch.randperm(rows, generator=_generator(seed, epoch)), size)


def by_length(lengths: Sequence[int], size: int, seed: int) -> Plan:
    """Rows of like length together: random pools of fifty batches, each sorted by length and cut.

    Args:
        lengths: tokens of each row.
        size: rows of a batch.
        seed: of the order.
    """
    tokens = torch.tensor(lengths)

    def plan(epoch: int) -> list[Batch]:
        generator = _generator(seed, epoch)
        order = torch.randperm(len(tokens), generator=generator)
        pools = [pool[tokens[pool].argsort(stable=True)] for pool in order.split(size * POOL)]
        return _mixed([batch for pool in pools for batch in _cut(pool, size)], generator)

    return plan


def by_tokens(lengths: Sequence[int], tokens: int, seed: int) -> Plan:
    """As many rows of like length as keep a batch, padded to its longest, within `tokens`.

    Where the batches are cut depends on the lengths alone, so their number is the same in every
    epoch; which of the rows of equal length meet, and the order of the batches, changes.

    Args:
        lengths: tokens of each row.
        tokens: of a batch, padding among them. A row that is longer makes a batch of its own.
        seed: of the order.

    Examples:
        >>> sorted(map(len, by_tokens([5, 5, 5, 5, 5], tokens=10, seed=0)(epoch=0)))
        [1, 2, 2]
    """
    each = torch.tensor(lengths)
    cuts = [0]
    for row, length in enumerate(each.sort().values.tolist()):
        if row > cuts[-1] and (row - cuts[-1] + 1) * length > tokens:
            cuts.append(row)
    cuts.append(len(each))

    def plan(epoch: int) -> list[Batch]:
        generator = _generator(seed, epoch)
        order = torch.randperm(len(each), generator=generator)
        order = order[each[order].argsort(stable=True)].tolist()
        return _mixed([order[start:stop] for start, stop in pairwise(cuts)], generator)

    return plan


def _generator(seed: int, epoch: int) -> torch.Generator:
    # Not their sum: one seed's second epoch would be the next seed's first.
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def _cut(order: Tensor, size: int) -> list[Batch]:
    return [batch.tolist() for batch in order.split(size)]


def _mixed(batches: list[Batch], generator: torch.Generator) -> list[Batch]:
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
