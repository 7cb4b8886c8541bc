"""What a live probe wrote while a training ran: layer × time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagelr.report.charts.figure import Figure
from sagelr.report.charts.layers import heat, spreads
from sagelr.report.source import Live
from sagelr.report.study import SAGES
from sagelr.report.wording import number

MOST_LOOKS = 200


def figures(live: Live, id: str) -> list[Figure]:
    """Multipliers, sensitivities, frozen and boosted over time, and where the last look was.

    Args:
        live: rows of one file.
        id: that the figures' ids begin with.
    """
    steps = sorted({row["step"] for row in live.rows})
    steps = steps[:: max(1, len(steps) // MOST_LOOKS)]
    names = list(dict.fromkeys(row["layer"] for row in live.rows))
    at = {(row["step"], row["layer"]): row for row in live.rows}

    def cells(key: str) -> list[list[float | None]]:
        factor = 100 if key in ("frozen", "boosted") else 1
        found = [[at.get((step, name), {}).get(key) for step in steps] for name in names]
        return [[None if value is None else factor * value for value in row] for row in found]

    shown = []
    for key, title, unit, log in (
        ("multiplier", "Mean multiplier of each layer over time", "mean r", False),
        ("sensitivity", "Mean smoothed sensitivity of each layer over time", "mean Ī", True),
        ("frozen", "How much of each layer stands still: multiplier under 0.01", "%", False),
        ("boosted", "How much of each layer is boosted: multiplier over 1", "%", False),
    ):
        shown.append(
            heat(
                f"{id}-{key}",
                title,
                "One row a layer, one column a look. The stronger the colour, the larger.",
                names,
                [f"{step:,}" for step in steps],
                cells(key),
                across="step",
                unit=unit,
                log=log,
            )
        )
    last = _last(live.rows)
    if last:
        means = [row["multiplier"] for row in last]
        shown.append(
            spreads(
                f"{id}-last",
                f"At the last look, step {last[0]['step']:,}, mean multipliers are "
                f"{number(min(means), 2)} to {number(max(means), 2)}",
                "At 1 a layer trains at the full lr.",
                [{"name": row["layer"], **row} for row in last],
                *SAGES[0],
            )
        )
    return shown


def _last(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    step = max(row["step"] for row in rows)
    found = [row for row in rows if row["step"] == step and row["multiplier"] is not None]
    return [row for row in found if None not in row["quantiles"].values()]
