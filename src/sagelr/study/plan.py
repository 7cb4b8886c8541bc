"""What a study runs: grids, their extension, and the choice of a setting. Pure functions.

Tuning. Every arm starts with as many settings as the others. When an arm's best setting (lowest
mean over the tuning seeds) has the lowest or the highest lr of its grid, the best lr may lie
beyond, and the grids of all arms are extended by the same number of settings, so that no arm is
tuned better than another. Only lr is extended; the grid of beta0 spans what the authors use.

An arm whose best lr is at an end is extended beyond that end, in the ratio of the last two values.
An arm whose best lr is inside is extended on the side that has fewer lr beyond it, and towards the
better neighbour if both have as many. An lr brings as many settings as the other axes have points;
with two values of beta0 a step of SAGE's lr is worth two steps of the base's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        grid: as extended.
        chosen: the setting with the lowest mean; None if no setting trained with every seed.
        on_edge: whether its lr is at an end of the grid, where a better one may lie beyond.
        extended: what was added, in order, as "lr up to 0.016".
    """

    grid: Grid
    chosen: Setting | None
    on_edge: bool
    extended: tuple[str, ...]


@dataclass(frozen=True)
class Tuning:
    """How far tuning is.

    Attributes:
        runs: every run that the grids of now ask for.
        arms: each arm as it stands.
        done: whether every run has a result and no grid is to be extended further.
    """

    runs: list[Run]
    arms: dict[str, Tuned]
    done: bool


def tuning(recipe: Recipe, scores: Scores, extensions: int | None = None) -> Tuning:
    """Where tuning stands, worked out anew from the recipe and what has been finished.

    Args:
        recipe: with the grids to start from.
        scores: of finished runs by key; inf for a run that diverged, None for one that failed.
        extensions: at most; the recipe's by default.
    """
    most = recipe.study.max_extensions if extensions is None else extensions
    grids: dict[str, Grid] = {
        name: {axis: list(values) for axis, values in arm.grid.items()}
        for name, arm in recipe.chosen_arms().items()
    }
    extended: dict[str, list[str]] = {name: [] for name in grids}
    seeds = range(recipe.study.tune_seeds)
    rounds = 0
    while True:
        runs = _runs(grids, seeds)
        means = {name: _means(name, grid, seeds, scores) for name, grid in grids.items()}
        edges = {name: edge(grid, means[name]) for name, grid in grids.items()}
        arms = {
            name: Tuned(
                grid, best(grid, means[name]), edges[name] is not None, tuple(extended[name])
            )
            for name, grid in grids.items()
        }
        if any(run.key not in scores for run in runs):
            return Tuning(runs, arms, done=False)
        if rounds == most or not any(edges.values()):
            return Tuning(runs, arms, done=True)
        rounds += 1
        widths = {name: len(settings_of(grid)) // len(grid["lr"]) for name, grid in grids.items()}
        added = math.lcm(*widths.values())
        for name, grid in grids.items():
            for side in sides(grid, means[name], added // widths[name]):
                value = extend(grid, side)
                extended[name].append(f"lr {side} to {value:.6g}")


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
