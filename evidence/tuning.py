"""How a study's arms answer to lr: the loss that they were tuned by, over the grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from picture import DASHES, Curve, plot

from sagelr.report.wording import LOSS, Scale, setting


def curves(data: Mapping[str, Any]) -> str | None:
    """The mean of what settings were chosen by, over lr, for each arm and β0; None without any.

    A setting that did not train with every seed has no point.
    """
    by_loss = data["recipe"]["study"]["select_by"] == "loss"
    scale = LOSS if by_loss else Scale.of(data["recipe"]["metric"])
    found, rates = [], set()
    for place, (arm, tuned) in enumerate(data["tuning"].items()):
        lines: dict[tuple[tuple[str, float], ...], list[tuple[float, float]]] = {}
        marked = {}
        for entry in tuned["settings"]:
            rates.add(entry["setting"]["lr"])
            if entry["mean"] is None:
                continue
            others = tuple(item for item in entry["setting"].items() if item[0] != "lr")
            point = (math.log2(entry["setting"]["lr"]), scale.factor * entry["mean"])
            lines.setdefault(others, []).append(point)
            if entry["setting"] == tuned["chosen"]:
                marked[others] = point
        for number, (others, points) in enumerate(lines.items()):
            label = data["arms"][arm]["label"] + (f", {setting(dict(others))}" if others else "")
            dash = DASHES[number % len(DASHES)]
            found.append(Curve(label, sorted(points), place, dash, marked.get(others)))
    if len(rates) < 2 or not found:
        return None
    return plot(
        found,
        {math.log2(rate): short(rate) for rate in sorted(rates)},
        title=f"Validation {scale.label} by lr",
        above=f"validation {scale.label}, mean over the tuning seeds; what was chosen has a point",
        below="lr",
    )


def short(rate: float) -> str:
    """A learning rate with two digits at most: 2.5e-5."""
    power = math.floor(math.log10(rate) + 1e-9)
    return f"{rate / 10**power:.2g}e{power}"
