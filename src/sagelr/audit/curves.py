"""Pruning curves: a model's scores as more and more of it is set to zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sagelr.audit.pruning import Pruner
from sagelr.audit.schema import Curve, Point, Structure
from sagelr.tasks import Metric

KEPT = 0.99
FOURS = (0.0, 0.5)  # sparsities of 2:4


@dataclass(frozen=True)
class Tuner:
    """Training after pruning.

    Attributes:
        epochs: of it.
        train: given the pruner, whose model is pruned; trains it with the zeros held.
    """

    epochs: int
    train: Callable[[Pruner], None]

    @property
    def shown(self) -> str:
        """How long it is, in words."""
        return f"{self.epochs} epoch{'s' * (self.epochs != 1)}"


def curve(
    pruner: Pruner,
    structure: Structure,
    score: str,
    scope: Literal["global", "layer"],
    sparsities: Iterable[float],
    evaluate: Callable[[], dict[str, float]],
    metrics: Mapping[str, Metric],
    tuner: Tuner | None = None,
    unpruned: dict[str, float] | None = None,
) -> Curve:
    """Prune a model to several sparsities, each time from its first weights, and score it.

    Args:
        pruner: of the model.
        structure: see `Pruner.prune`, as for the next two.
        score: by which the lowest go.
        scope: "global" or "layer".
        sparsities: shares that go, in [0, 1); 0 is added. 2:4 has but one, a half.
        evaluate: scores of the model as it is.
        metrics: those of the task, to tell what is better.
        tuner: trains the pruned model before it is scored.
        unpruned: the model's scores before pruning and training, if they are known.
    """
    wanted = FOURS if structure == "2:4" else sorted({0.0, *sparsities})
    points: list[Point] = []
    for sparsity in wanted:
        if structure == "2:4" and sparsity == 0:
            pruner.restore()
            pruned = 0
        else:
            pruned = pruner.prune(structure, score, scope, sparsity)
        if points and pruned == points[-1]["pruned"]:
            continue  # no unit more than before
        if tuner is not None and pruned:
            tuner.train(pruner)
        known = unpruned if pruned == 0 else None
        scores = {name: finite(value) for name, value in (known or evaluate()).items()}
        points.append({"sparsity": sparsity, "pruned": pruned, "scores": scores})
    pruner.restore()
    return {
        "structure": structure,
        "score": score,
        "scope": "layer" if structure == "2:4" else scope,
        "finetuned": tuner.epochs if tuner else 0,
        "total": pruner.total(structure),
        "points": points,
        "keeps99": keeps(points, metrics),
    }


def keeps(points: Sequence[Point], metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The largest sparsity up to which every point has 99% of the first one's score, by metric.

    A metric of which there was nothing to keep is left out.
    """
    found = {}
    for name, first in points[0]["scores"].items():
        if name not in metrics or first is None:
            continue
        if metrics[name].greater_is_better and first <= 0:
            continue
        found[name] = 0.0
        for point in points:
            value = point["scores"][name]
            if value is None or not _is_kept(value, first, metrics[name].greater_is_better):
                break
            found[name] = point["sparsity"]
    return found


def _is_kept(value: float, first: float, greater_is_better: bool) -> bool:
    return value >= KEPT * first if greater_is_better else KEPT * value <= first


def finite(value: float) -> float | None:
    """None for what JSON has no number for."""
    return value if math.isfinite(value) else None
