"""Which rows are trained on, which choose settings, which are reported: by labels and seed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import torch

from sagelr.errors import UsageError

# What the splits of a data set are called, and what they are.
ROLES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MOST = 5000  # rows that choose a setting, where nothing else is said: more would only take time


class Part(NamedTuple):
    """One split: rows of a source, and where they come from in words."""

    source: str
    rows: list[int]
    origin: str


def arrange(
    labels: Mapping[str, Sequence[Hashable]],
    *,
    validation: float | None,
    test: float,
    seed: int,
    limit: int | None = None,
    groups: Sequence[Hashable] | None = None,
    as_named: bool = False,
) -> dict[str, Part]:
    """Train, validation and test from the splits that a data set comes with.

    A split that is reported must not have chosen anything. So where there is one split beside the
    training data, it is the test split whatever its name, and the rows that choose settings are
    held out of the training data. Where there is none, both are.

    Args:
        labels: for each split of the data set, by role, the class of each row; of equal ones
            (zeros, say) where the labels are scores.
        validation: share of the training rows held out if below 1, else their number; None for a
            tenth, and 5,000 at most.
        test: the same, for a data set without any other split.
        seed: of what is held out.
        limit: training rows kept, drawn by class; None for all.
        groups: rows of the training data that are equal here stay together.
        as_named: the user named each split, so that a validation split alone is what it says.

    Raises:
        UsageError: too few rows are left.

    Examples:
        >>> parts = arrange({"train": [0, 1] * 50, "test": [0, 1]}, validation=0.2, test=0, seed=0)
        >>> {name: (part.source, len(part.rows)) for name, part in parts.items()}
        {'train': ('train', 80), 'validation': ('train', 20), 'test': ('test', 2)}
    """
    whole = labels["train"]
    groups = range(len(whole)) if groups is None else groups
    kept = list(range(len(whole)))
    parts: dict[str, Part] = {}

    def hold(name: str, share: float | None) -> None:
        nonlocal kept
        rows = min(round(len(whole) / 10), MOST) if share is None else count(share, len(whole))
        classes, together = [whole[row] for row in kept], [groups[row] for row in kept]
        left, held = held_out(classes, rows, seed, together)
        if not left or not held or rows >= len(kept):
            raise UsageError(
                f"Of {len(kept):,} rows {rows:,} were to be held out for {name}, which leaves none "
                f"on one side. Give more data, or set task.{name} to another share or number."
            )
        parts[name] = Part(
            "train", [kept[row] for row in held], f"held out of the training data, seed {seed}"
        )
        kept = [kept[row] for row in left]

    def take(name: str, source: str) -> None:
        parts[name] = Part(source, list(range(len(labels[source]))), "as it comes")

    others = [source for source in ("validation", "test") if source in labels]
    alone = as_named and others == ["validation"]
    if others and not alone:
        take("test", others[-1])
    else:
        hold("test", test)
    if len(others) == 2 or alone:
        take("validation", "validation")
    else:
        hold("validation", validation)
    if limit is not None and limit < len(kept):
        classes, together = [whole[row] for row in kept], [groups[row] for row in kept]
        kept = [kept[row] for row in held_out(classes, limit, seed, together)[1]]
    origin = "the rest" if len(kept) < len(whole) else "as it comes"
    if limit is not None:
        origin += f", {limit:,} rows at most"
    train = Part("train", kept, origin)
    return {"train": train, "validation": parts["validation"], "test": parts["test"]}


def count(share: float, rows: int) -> int:
    """A number of rows: a share of them if below 1, else the number itself.

    Examples:
        >>> count(0.1, 50), count(12, 50)
        (5, 12)
    """
    return round(share * rows) if share < 1 else int(share)


def held_out(
    labels: Sequence[Hashable],
    rows: int,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> tuple[list[int], list[int]]:
    """Rows kept and rows held out, both in ascending order.

    Every class is held out in proportion, and keeps at least one group of its rows.

    Args:
        labels: class of each row.
        rows: how many to hold out; fewer are, where groups do not fit or classes are small.
        seed: of the draw, which depends on nothing else.
        groups: rows that are equal here stay together.

    Examples:
        >>> kept, held = held_out(["a"] * 8 + ["b"] * 4, 3, seed=0)
        >>> len(kept), sorted(row < 8 for row in held)
        (9, [False, True, True])
    """
    groups = range(len(labels)) if groups is None else groups
    units: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        units.setdefault(group, []).append(row)
    strata: dict[Hashable, list[list[int]]] = {}
    for unit in units.values():
        strata.setdefault(labels[unit[0]], []).append(unit)
    sizes = [sum(len(unit) for unit in stratum) for stratum in strata.values()]
    generator = torch.Generator().manual_seed(seed)
    held: list[int] = []
    for stratum, quota in zip(strata.values(), _quotas(sizes, rows), strict=True):
        order = torch.randperm(len(stratum), generator=generator).tolist()
        for place in order[:-1]:  # the last one is kept
            if len(stratum[place]) <= quota:
                held += stratum[place]
                quota -= len(stratum[place])
    out = set(held)
    return [row for row in range(len(labels)) if row not in out], sorted(held)


def _quotas(sizes: Sequence[int], rows: int) -> list[int]:
    """Rows of each class: in proportion, the largest remainders rounded up."""
    exact = [rows * size / sum(sizes) for size in sizes]
    quotas = [int(value) for value in exact]
    order = sorted(range(len(sizes)), key=lambda k: (quotas[k] - exact[k], k))
    for k in order[: rows - sum(quotas)]:
        quotas[k] += 1
    return quotas
