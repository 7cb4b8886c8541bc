"""What SAGE did in one run: multipliers by layer, by sensitivity and against the rule, as JSON.

Looks between backward and step at a few steps of a run, at the cost of a few steps' worth of
multipliers. Large models are sampled with a fixed stride, so that looking stays cheap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sagelr.groups import locate
from sagelr.optim.base import SageOptimizer
from sagelr.state import formats

BINS = 20
PAIRS = 1500
ELEMENTS = 200_000  # looked at in one step
QUANTILES = (5, 25, 50, 75, 95)


def steps_to_probe(total: int) -> list[int]:
    """The steps to look at, counted from 1: near the start, on the way, and near the end.

    The very first step is left out: a corrected Ī equals I there and r is 0 everywhere.

    Example:
        >>> steps_to_probe(300)
        [15, 75, 150, 225, 299]
    """
    at = (math.ceil(total * share) for share in (0.05, 0.25, 0.5, 0.75))
    return sorted({min(max(2, step), total) for step in (*at, total - 1)})


@dataclass(frozen=True)
class _Look:
    """One parameter at one step; x is I / Ī before it."""

    layer: str
    ratio: Tensor
    smoothed: Tensor
    multiplier: Tensor


class Trace:
    """Collects what a SAGE optimizer does to a model.

    Args:
        model: the model in training.
        optimizer: a SageAdamW, SageAdamax or SageSGD over its named parameters.
        total: steps of the run.
    """

    def __init__(self, model: nn.Module, optimizer: SageOptimizer, total: int) -> None:
        self.optimizer = optimizer
        self.steps = steps_to_probe(total)
        self._seen: list[int] = []
        self._history: list[dict[str, Any]] = []
        self._last: list[_Look] = []
        self._pairs: list[Tensor] = []
        places = locate(model)
        self._params = [
            (param, group, places[name])
            for group in optimizer.param_groups
            if group["sage"]
            for name, param in zip(group["param_names"], group["params"], strict=True)
        ]
        count = sum(param.numel() for param, _, _ in self._params)
        self._stride = max(1, math.ceil(count / ELEMENTS))

    @torch.no_grad()
    def look(self, step: int, epoch: float) -> None:
        """Look, between backward and step.

        Args:
            step: the coming step, from 1.
            epoch: how far training is, for the time axis.
        """
        if step not in self.steps:
            return
        looks = [
            _Look(place.layer, *self._values(param, group))
            for param, group, place in self._params
            if param.grad is not None
        ]
        if not looks:
            return
        self._seen.append(step)
        self._last = looks
        if step > self.steps[len(self.steps) // 4]:  # bias correction has faded by then
            self._pairs.append(_pairs(looks))
        means = {name: float(torch.cat(r).mean()) for name, r in _by_layer(looks).items()}
        self._history.append({"step": step, "epoch": round(epoch, 4), "multiplier": means})

    def _values(self, param: Tensor, group: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        multiplier = self.optimizer.multiplier(param)
        current = self.optimizer.sensitivity(param)
        state = self.optimizer.state.get(param, {})
        if "exp_avg_sensitivity" in state:
            before = formats.read(state, "exp_avg_sensitivity", current.dtype)
        else:
            before = torch.zeros_like(current)
        smoothed = torch.lerp(before, current, 1 - group["beta0"])
        taken = [
            each.flatten()[:: self._stride] for each in (current, before, smoothed, multiplier)
        ]
        sensitivity, before, smoothed, multiplier = (each.float().cpu() for each in taken)
        return sensitivity / before, smoothed, multiplier

    def to_json(self) -> dict[str, Any] | None:
        """Everything seen, or None if nothing was."""
        if not self._last:
            return None
        places: dict[str, tuple[str, int | None, int]] = {}
        for param, _, place in self._params:
            _, _, count = places.get(place.layer, ("", None, 0))
            kind = place.kind if place.kind in ("attention", "feed-forward") else "other"
            places[place.layer] = (kind, place.depth, count + param.numel())
        multipliers = _by_layer(self._last)
        layers = []
        for name, found in multipliers.items():
            r = torch.cat(found)
            smoothed = torch.cat([look.smoothed for look in self._last if look.layer == name])
            kind, depth, count = places[name]
            layers.append(
                {
                    "name": name,
                    "kind": kind,
                    "depth": depth,
                    "parameters": count,
                    "sensitivity": float(smoothed.mean()),
                    "multiplier": float(r.mean()),
                    "quantiles": _quantiles(r),
                    "frozen": float((r < 0.01).float().mean()),
                    "boosted": float((r > 1).float().mean()),
                }
            )
        return {
            "beta0": self._params[0][1]["beta0"],
            "steps": self._seen,
            "scatter": _thin(self._pairs),
            "by_sensitivity": self._by_sensitivity(),
            "layers": layers,
            "history": self._history,
        }

    def _by_sensitivity(self) -> list[dict[str, Any]]:
        """Mean multiplier in twenty bins of equal size, from least to most sensitive."""
        smoothed = torch.cat([look.smoothed for look in self._last])
        multiplier = torch.cat([look.multiplier for look in self._last])
        order = smoothed.argsort()
        bins = zip(smoothed[order].chunk(BINS), multiplier[order].chunk(BINS), strict=True)
        pieces = [(found, r) for found, r in bins if found.numel()]
        return [
            {
                "quantile": [round(i / len(pieces), 4), round((i + 1) / len(pieces), 4)],
                "sensitivity": float(found.median()),
                "multiplier": float(r.mean()),
            }
            for i, (found, r) in enumerate(pieces)
        ]


def _by_layer(looks: list[_Look]) -> dict[str, list[Tensor]]:
    layers: dict[str, list[Tensor]] = {}
    for look in looks:
        layers.setdefault(look.layer, []).append(look.multiplier)
    return layers


def _quantiles(r: Tensor) -> dict[str, float]:
    levels = torch.tensor([level / 100 for level in QUANTILES])
    return {str(q): float(v) for q, v in zip(QUANTILES, torch.quantile(r, levels), strict=True)}


def _pairs(looks: list[_Look]) -> Tensor:
    """At most PAIRS of (x, r), evenly over the parameters; without those whose Ī was 0."""
    pairs = torch.stack(
        [torch.cat([look.ratio for look in looks]), torch.cat([look.multiplier for look in looks])],
        dim=1,
    )
    pairs = pairs[torch.isfinite(pairs).all(1)]
    return pairs[:: max(1, math.ceil(len(pairs) / PAIRS))]


def _thin(pieces: list[Tensor]) -> list[list[float]]:
    if not pieces:
        return []
    pairs = torch.cat(pieces)
    pairs = pairs[:: max(1, math.ceil(len(pairs) / PAIRS))]
    return [[float(f"{x:.4g}"), float(f"{r:.4g}")] for x, r in pairs.tolist()]
