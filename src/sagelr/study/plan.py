"""What a study runs: grids, their extension, and the choice of a setting. Pure functions.

Tuning. Every arm starts with as many settings as the others. When an arm's best setting (lowest
mean over the tuning seeds) has the lowest or the highest lr of its grid, the best lr may lie
beyond, and the grids of all arms are extended by the same number of settings, so that no arm is
tuned better than another. Only lr is extended; the grid of beta0 spans what the authors use.

An arm whose lr are multiples of its base's waits until its base is tuned, so that its settings lie
where they can be of use: as many settings over lr × beta0 reach less far in lr than the base's, and
a grid that begins elsewhere ends elsewhere. It is then extended as often as its base was, and stays
where it was put even if further extensions find the base a better lr.

An arm whose best lr is at an end is extended beyond that end, in the ratio of the last two values.
An arm whose best lr is inside is extended on the side that has fewer lr beyond it, and towards the
better neighbour if both have as many. An lr brings as many settings as the other axes have points;
with two values of beta0 a step of SAGE's lr is worth two steps of the base's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sagelr.recipe import Recipe, Setting, settings_of
from sagelr.train import Run, name_of

Grid = dict[str, list[float]]
Scores = Mapping[str, float | None]  # key → what tuning minimises; None where a run failed
Side = Literal["down", "up"]

FIRST_REPORT_SEED = 1000  # tuning seeds stay below: no report run repeats one of tuning
FACTOR = 2.0  # between two lr, where a grid has only one


@dataclass(frozen=True)
class Tuned:
    """One arm after tuning.

    Attributes:
        grid: as extended; without any lr as long as the arm waits for its base.
        chosen: the setting with the lowest mean; None if no setting trained with every seed.
        mean: what it was chosen by; inf without one.
        on_edge: whether its lr is at an end of the grid, where a better one may lie beyond.
        extended: what was added, in order, as "lr up to 0.016".
        placed_at: best lr of its base that the grid began as multiples of; None for a grid of its
            own, and where the base was not tuned.
    """

    grid: Grid
    chosen: Setting | None = None
    mean: float = math.inf
    on_edge: bool = False
    extended: tuple[str, ...] = ()
    placed_at: float | None = None


@dataclass(frozen=True)
class Tuning:
    """How far tuning is.

    Attributes:
        runs: every run that the grids of now ask for.
        arms: each arm as it stands.
        later: how many runs are certain to come besides, of arms that wait for their base.
        done: whether every run has a result and no grid is to be extended further.
    """

    runs: list[Run]
    arms: dict[str, Tuned]
    later: int
    done: bool


@dataclass
class _Placed:
    """An arm whose grid has its lr."""

    grid: Grid
    placed_at: float | None = None
    extended: list[str] = field(default_factory=list)
    rounds: int = 0


def tuning(recipe: Recipe, scores: Scores, extensions: int | None = None) -> Tuning:
    """Where tuning stands, worked out anew from the recipe and what has been finished.

    Args:
        recipe: with the grids to start from.
        scores: of finished runs by key; inf for a run that diverged, None for one that failed.
        extensions: at most; the recipe's by default.
    """
    most = recipe.study.max_extensions if extensions is None else extensions
    seeds = range(recipe.study.tune_seeds)
    arms = recipe.chosen_arms()
    widths = {name: len(arm.settings()) // len(arm.lr) for name, arm in arms.items()}
    added = math.lcm(*widths.values())  # settings of every arm, in one extension
    waiting = {name: arm for name, arm in arms.items() if arm.follows_base and arm.base in arms}
    placed = {name: _place(recipe, name, None) for name in arms if name not in waiting}
    while True:
        runs = _runs({name: arm.grid for name, arm in placed.items()}, seeds)
        means = {name: _means(name, arm.grid, seeds, scores) for name, arm in placed.items()}
        tuned = {
            name: _tuned(placed[name], means[name])
            if name in placed
            else Tuned({**arm.grid_at(1.0), "lr": []})
            for name, arm in arms.items()
        }
        rounds = max(arm.rounds for arm in placed.values())
        behind = {name: rounds - arm.rounds for name, arm in placed.items() if arm.rounds < rounds}
        later = sum(behind.values()) * added
        later += sum(len(arm.settings()) + rounds * added for arm in waiting.values())
        so_far = Tuning(runs, tuned, later * len(seeds), done=False)
        if any(run.key not in scores for run in runs):
            return so_far
        bases = [tuned[arm.base or ""].chosen for arm in waiting.values()]
        if behind or (rounds < most and any(tuned[name].on_edge for name in placed)):
            for name in behind or placed:
                _extend(placed[name], means[name], added // widths[name])
        elif waiting and None not in bases:
            placed |= {
                name: _place(recipe, name, base) for name, base in zip(waiting, bases, strict=True)
            }
            waiting = {}
        else:
            return replace(so_far, done=True)


def _place(recipe: Recipe, name: str, base: Setting | None) -> _Placed:
    """An arm's grid to start from, at what tuning chose for its base or at what is likely."""
    arm = recipe.arms[name]
    if not arm.follows_base or arm.base is None:
        return _Placed(arm.grid_at(1.0))
    base_lr = (base or recipe.middle(arm.base))["lr"]
    return _Placed(arm.grid_at(base_lr), base_lr if base else None)


def _tuned(arm: _Placed, means: Mapping[str, float]) -> Tuned:
    grid = {axis: list(values) for axis, values in arm.grid.items()}
    chosen = best(grid, means)
    return Tuned(
        grid,
        chosen,
        means[name_of(chosen)] if chosen else math.inf,
        edge(grid, means) is not None,
        tuple(arm.extended),
        arm.placed_at,
    )


def _extend(arm: _Placed, means: Mapping[str, float], steps: int) -> None:
    """One extension of one arm."""
    for side in sides(arm.grid, means, steps):
        value = extend(arm.grid, side)
        arm.extended.append(f"lr {side} to {value:.6g}")
    arm.rounds += 1


def far_from(base: Tuned, arm: Tuned) -> bool:
    """Whether an arm was not tried at the best lr of its base, and comes out behind it."""
    if base.chosen is None or arm.mean <= base.mean:
        return False
    return not min(arm.grid["lr"]) <= base.chosen["lr"] <= max(arm.grid["lr"])


def reporting(recipe: Recipe, chosen: Mapping[str, Setting], seeds: int) -> list[Run]:
    """The runs that arms are compared on: fresh seeds, the same for every arm, pair after pair."""
    return [
        Run("report", name, chosen[name], seed)
        for seed in range(FIRST_REPORT_SEED, FIRST_REPORT_SEED + seeds)
        for name in recipe.study.arms
    ]


def _runs(grids: Mapping[str, Grid], seeds: Sequence[int]) -> list[Run]:
    return [
        Run("tune", name, setting, seed)
        for seed in seeds
        for name, grid in grids.items()
        for setting in settings_of(grid)
    ]


def _means(name: str, grid: Grid, seeds: Sequence[int], scores: Scores) -> dict[str, float]:
    """Mean of every setting; inf where a run diverged or failed, or is not there yet."""
    means = {}
    for setting in settings_of(grid):
        values = [scores.get(Run("tune", name, setting, seed).key) for seed in seeds]
        known = [math.inf if value is None else value for value in values]
        means[name_of(setting)] = sum(known) / len(known)
    return means


def best(grid: Grid, means: Mapping[str, float]) -> Setting | None:
    """The setting with the lowest mean, the lower lr of two equals; None if none is finite."""
    candidates = [s for s in settings_of(grid) if math.isfinite(means[name_of(s)])]
    return min(candidates, key=lambda s: (means[name_of(s)], s["lr"]), default=None)


def edge(grid: Grid, means: Mapping[str, float]) -> Side | None:
    """The end of the grid that its best lr is at; if no setting trained at all, the lower one."""
    chosen = best(grid, means)
    if chosen is None or chosen["lr"] == grid["lr"][0] != grid["lr"][-1]:
        return "down"
    if chosen["lr"] == grid["lr"][-1]:
        return "up"
    return None


def sides(grid: Grid, means: Mapping[str, float], steps: int) -> list[Side]:
    """Where to put a number of further lr."""
    at = edge(grid, means)
    if at is not None:
        return [at] * steps
    chosen = best(grid, means)
    assert chosen is not None  # with none, the best is taken to be at the lower edge
    place = grid["lr"].index(chosen["lr"])
    below, above = place, len(grid["lr"]) - 1 - place
    lower, upper = (
        min(means[name_of(s)] for s in settings_of(grid | {"lr": [grid["lr"][place + step]]}))
        for step in (-1, 1)
    )
    better: Side = "down" if lower <= upper else "up"
    found: list[Side] = []
    for _ in range(steps):
        found.append(better if below == above else "down" if below < above else "up")
        below, above = below + (found[-1] == "down"), above + (found[-1] == "up")
    return found


def extend(grid: Grid, side: Side) -> float:
    """Add one lr beyond an end of the grid, in geometric progression, and return it."""
    lr = grid["lr"]
    near, next_to_it = (lr[0], lr[1:2]) if side == "down" else (lr[-1], lr[-2:-1])
    other = next_to_it[0] if next_to_it else (near * FACTOR if side == "down" else near / FACTOR)
    value = float(f"{near * near / other:.6g}")
    lr.insert(0 if side == "down" else len(lr), value)
    return value
