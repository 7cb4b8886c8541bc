"""Batches: every row once an epoch, the same for any processes, and nothing but seed and epoch."""

from itertools import chain, combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sagelr.training.batches import Batches, by_length, by_tokens, in_order, shuffled

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=300)
sizes = st.integers(1, 40)
seeds = st.integers(0, 1000)


def padded(batches, lengths):
    return sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)


@given(lengths, sizes, seeds)
def test_every_plan_has_each_row_once_and_as_many_batches_in_every_epoch(lengths, size, seed):
    for plan in (
        shuffled(len(lengths), size, seed),
        by_length(lengths, size, seed),
        by_tokens(lengths, 10 * size, seed),
        in_order(range(len(lengths)), size, 1),
    ):
        counts = set()
        for epoch in (0, 1, 7):
            batches = plan(epoch)
            counts.add(len(batches))
            assert sorted(chain(*batches)) == list(range(len(lengths)))
            assert plan(epoch) == batches  # a function of the epoch, whatever was asked before
        assert len(counts) == 1


@given(lengths, sizes, seeds)
def test_by_tokens_stays_within_its_budget(lengths, size, seed):
    tokens = 10 * size
    for batch in by_tokens(lengths, tokens, seed)(3):
        assert len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= tokens


def test_by_tokens_fills_its_batches():
    assert sorted(map(len, by_tokens([4] * 12, 16, 0)(0))) == [4, 4, 4]


@pytest.mark.parametrize("plan", [by_length, by_tokens])
def test_rows_of_like_length_meet(plan):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 100, (4000,), generator=generator).tolist()
    together = plan(lengths, 16 if plan is by_length else 16 * 50, 0)(0)
    assert padded(together, lengths) < 1.1 * sum(lengths)
    assert padded(shuffled(4000, 16, 0)(0), lengths) > 1.6 * sum(lengths)


@pytest.mark.parametrize("plan", [by_length, by_tokens])
def test_epochs_and_seeds_differ(plan):
    lengths = [5] * 100
    assert plan(lengths, 20, 0)(0) != plan(lengths, 20, 0)(1)
    assert plan(lengths, 20, 0)(0) != plan(lengths, 20, 5)(0)


def test_no_epoch_of_one_seed_is_an_epoch_of_another():
    orders = [shuffled(101, 10, seed)(epoch) for seed in range(5) for epoch in range(5)]
    assert all(one != other for one, other in combinations(orders, 2))


@given(st.integers(1, 100), sizes, st.integers(1, 7))
def test_processes_share_each_batch(rows, size, processes):
    plan = shuffled(rows, size, 0)
    parts = [list(Batches(plan, rank, processes)) for rank in range(processes)]
    for number, batch in enumerate(plan(0)):
        shares = [part[number] for part in parts]
        assert all(shares)  # a process without a row would leave the others waiting
        if len(batch) >= processes:
            assert list(chain(*shares)) == batch
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
        else:
            assert set(chain(*shares)) == set(batch)


def test_batches_follow_the_epoch():
    batches = Batches(shuffled(30, 4, 1))
    batches.set_epoch(5)
    assert list(batches) == shuffled(30, 4, 1)(5)
    assert len(batches) == 8


@given(st.integers(1, 100), sizes, st.integers(1, 7))
def test_in_order_leaves_no_batch_too_short_to_share(rows, size, least):
    batches = in_order(range(rows), size, least)(0)
    assert list(chain(*batches)) == list(range(rows))
    assert len(batches) == 1 or all(len(batch) >= min(least, size) for batch in batches)


@pytest.mark.parametrize("plan", [by_length, by_tokens])
def test_the_order_of_lengths_is_left_to_chance(plan):
    """Batches are of like length, and short ones do not come first in every epoch."""
    lengths = list(range(1, 101))
    batches = plan(lengths, 5 if plan is by_length else 300, 0)(0)
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)
