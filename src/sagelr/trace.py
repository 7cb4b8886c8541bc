"""What SAGE did in one run: multipliers by layer, by sensitivity and against the rule, as JSON.

Looks between backward and step at some twenty steps of a run, spread evenly, at a sample of the
parameters; what a look sees is defined in `view`.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sagelr.optim.base import SageOptimizer
from sagelr.view import MultiplierRow, Viewer

LOOKS = 20
BINS = 20
PAIRS = 1500


def steps_to_probe(total: int) -> list[int]:
    """The steps to look at, counted from 1: twenty, evenly over the run, and the last but one.

    The very first step is left out: a corrected Ī equals I there and r is 0 everywhere.

    Examples:
        >>> steps_to_probe(300)[:3], steps_to_probe(300)[-2:]
        ([8, 23, 38], [293, 299])
        >>> steps_to_probe(4)
        [2, 3, 4]
    """
    at = (math.ceil(total * (look + 0.5) / LOOKS) for look in range(LOOKS))
    return sorted({min(max(2, step), total) for step in (*at, total - 1)})


@dataclass(frozen=True)
class _Look:
    """The last look: one entry an element; x is I / Ī before it."""

    layer: Tensor
    ratio: Tensor
    smoothed: Tensor
    multiplier: Tensor
    rows: list[MultiplierRow]


class Trace:
    """Collects what a SAGE optimizer does to a model. With sharded weights it gathers them, so
    that every process has to look, and sees the same.

    Args:
        model: the model in training.
        optimizer: a SageAdamW, SageAdamax or SageSGD over its parameters.
        total: steps of the run.
    """

    def __init__(self, model: nn.Module, optimizer: SageOptimizer, total: int) -> None:
        self.steps = steps_to_probe(total)
        self._viewer = Viewer(model, optimizer, whole=True)
        self._seen: list[int] = []
        self._history: list[dict[str, Any]] = []
        self._last: list[_Look] = []  # one, or none yet
        self._pairs: list[Tensor] = []

    def look(self, step: int, epoch: float) -> None:
        """Look, between backward and step.

        Args:
            step: the coming step, from 1.
            epoch: how far training is, for the time axis.
        """
        if step not in self.steps:
            return
        view = self._viewer.look()
        # A GradScaler meets infinities and leaves the step out: there is nothing to see.
        if view is None or not torch.isfinite(view.sensitivity).all():
            return
        rows = view.rows(step)
        ratio = view.sensitivity / view.before
        look = _Look(view.layer, ratio, view.smoothed, view.multiplier, rows)
        self._seen.append(step)
        self._last = [look]
        if step > self.steps[len(self.steps) // 4]:  # bias correction has faded by then
            self._pairs.append(_pairs(look))
        self._history.append(
            {
                "step": step,
                "epoch": round(epoch, 4),
                "multiplier": {row["layer"]: _short(row["multiplier"]) for row in rows},
                "sensitivity": {row["layer"]: _short(row["sensitivity"]) for row in rows},
            }
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "seen": self._seen,
            "history": self._history,
            "last": [astuple(look) for look in self._last],
            "pairs": self._pairs,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._seen, self._history = state["seen"], state["history"]
        self._last = [_Look(*values) for values in state["last"]]
        self._pairs = state["pairs"]

    def to_json(self) -> dict[str, Any] | None:
        """Everything seen, or None if nothing was."""
        if not self._last:
            return None
        return {
            "beta0": self._viewer.beta0,
            "steps": self._seen,
            "scatter": _thin(self._pairs),
            "by_sensitivity": _by_sensitivity(self._last[0]),
            "layers": [_layer(row) for row in self._last[0].rows],
            "history": self._history,
        }


def _layer(row: MultiplierRow) -> dict[str, Any]:
    """A layer as results.json has it."""
    return {
        "name": row["layer"],
        "kind": row["kind"] if row["kind"] in ("attention", "feed-forward") else "other",
        **{key: value for key, value in row.items() if key not in ("step", "layer", "kind")},
    }


def _by_sensitivity(look: _Look) -> list[dict[str, Any]]:
    """Mean multiplier in twenty bins of equal size, from least to most sensitive."""
    order = look.smoothed.argsort()
    bins = zip(look.smoothed[order].chunk(BINS), look.multiplier[order].chunk(BINS), strict=True)
    pieces = [(found, r) for found, r in bins if found.numel()]
    return [
        {
            "quantile": [round(i / len(pieces), 4), round((i + 1) / len(pieces), 4)],
            "sensitivity": float(found.median()),
            "multiplier": float(r.mean()),
        }
        for i, (found, r) in enumerate(pieces)
    ]


def _pairs(look: _Look) -> Tensor:
    """At most PAIRS of (x, r), evenly over the parameters; without those whose Ī was 0."""
    pairs = torch.stack([look.ratio, look.multiplier], dim=1)
    pairs = pairs[torch.isfinite(pairs).all(1)]
    return pairs[:: max(1, math.ceil(len(pairs) / PAIRS))]


def _thin(pieces: list[Tensor]) -> list[list[float]]:
    if not pieces:
        return []
    pairs = torch.cat(pieces)
    pairs = pairs[:: max(1, math.ceil(len(pairs) / PAIRS))]
    return [[_short(x), _short(r)] for x, r in pairs.tolist()]


def _short(value: float) -> float:
    """Four significant digits, as a chart needs them."""
    return float(f"{value:.4g}")
