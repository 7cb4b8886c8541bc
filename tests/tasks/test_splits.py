"""Splits: nothing is lost, nothing is in two places, classes keep their shares."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagelr.errors import UsageError
from sagelr.tasks.splits import MOST, arrange, held_out

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=200)


@given(labels=LABELS, share=st.floats(0, 1), seed=st.integers(0, 5))
def test_held_out_is_a_part_of_every_class(labels: list[int], share: float, seed: int) -> None:
    wanted = round(share * len(labels))
    kept, held = held_out(labels, wanted, seed)
    assert sorted(kept + held) == list(range(len(labels)))
    assert kept == sorted(kept)
    assert held == sorted(held)
    whole, out = Counter(labels), Counter(labels[row] for row in held)
    for label, rows in whole.items():
        assert out[label] <= rows - 1
        assert out[label] <= rows * wanted / len(labels) + 1
        assert out[label] >= min(rows * wanted / len(labels) - 1, rows - 1)
    if min(whole.values()) * (1 - share) >= 2:  # no class is so small that it gives less
        assert len(held) == wanted


@given(labels=LABELS, seed=st.integers(0, 5), data=st.data())
def test_groups_stay_together(labels: list[int], seed: int, data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.integers(0, 30), min_size=len(labels), max_size=len(labels)))
    kept, held = held_out(labels, len(labels) // 3, seed, groups)
    assert not {groups[row] for row in kept} & {groups[row] for row in held}
    assert len(held) <= len(labels) // 3


def test_a_split_depends_on_its_seed_alone() -> None:
    labels = [0, 1] * 100
    assert held_out(labels, 50, 1) == held_out(labels, 50, 1)
    assert held_out(labels, 50, 1) != held_out(labels, 50, 2)


@pytest.mark.parametrize(
    ("given", "sources"),
    [
        (("train",), {"train": "train", "validation": "train", "test": "train"}),
        (("train", "validation"), {"train": "train", "validation": "train", "test": "validation"}),
        (("train", "test"), {"train": "train", "validation": "train", "test": "test"}),
        (
            ("train", "validation", "test"),
            {"train": "train", "validation": "validation", "test": "test"},
        ),
    ],
)
def test_what_is_reported_has_chosen_nothing(
    given: tuple[str, ...], sources: dict[str, str]
) -> None:
    labels = {role: [0, 1] * 50 for role in given}
    parts = arrange(labels, validation=0.1, test=0.2, seed=0)
    assert {name: part.source for name, part in parts.items()} == sources
    rows = [(part.source, row) for part in parts.values() for row in part.rows]
    assert len(rows) == len(set(rows)) == 100 * len(given)


def test_numbers_and_the_default_and_a_limit() -> None:
    labels = {"train": [0, 1] * 26_000, "test": [0, 1]}
    parts = arrange(labels, validation=None, test=0.2, seed=0, limit=10)
    assert len(parts["validation"].rows) == MOST
    assert Counter(row % 2 for row in parts["train"].rows) == {0: 5, 1: 5}
    assert not set(parts["train"].rows) & set(parts["validation"].rows)
    few = arrange({"train": [0, 1] * 50}, validation=7, test=30, seed=0)
    assert [len(part.rows) for part in few.values()] == [63, 7, 30]


def test_too_few_rows() -> None:
    with pytest.raises(UsageError, match="Of 4 rows 0 were to be held out for validation"):
        arrange({"train": [0, 1, 0, 1], "test": [0]}, validation=None, test=0.2, seed=0)


def test_no_more_rows_are_held_out_than_there_are() -> None:
    with pytest.raises(UsageError, match="500 were to be held out for validation"):
        arrange({"train": [0, 1] * 50, "test": [0, 1]}, validation=500, test=0.2, seed=0)


def test_a_validation_split_that_the_user_named_is_that() -> None:
    labels = {"train": [0, 1] * 50, "validation": [0, 1] * 10}
    parts = arrange(labels, validation=None, test=0.2, seed=0, as_named=True)
    assert {name: (part.source, len(part.rows)) for name, part in parts.items()} == {
        "train": ("train", 80),
        "validation": ("validation", 20),
        "test": ("train", 20),
    }


def test_a_limit_keeps_the_classes_in_proportion() -> None:
    """Rows often come class by class; the first of them would be one class alone."""
    labels = [0] * 900 + [1] * 100
    parts = arrange({"train": labels, "test": [0, 1]}, validation=100, test=0.2, seed=0, limit=50)
    assert Counter(labels[row] for row in parts["train"].rows) == {0: 45, 1: 5}
