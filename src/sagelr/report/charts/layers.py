"""Figures with a row for each layer: spreads of multipliers, and heat maps over time or heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sagelr.report.charts.figure import (
    Figure,
    Trace,
    axis,
    dots,
    layout,
    note,
    plain,
    round_values,
    rule,
    shorter,
    tick_name,
)
from sagelr.report.wording import number

Cells = Sequence[Sequence[float | None]]
NUMBERED = 8  # columns of a heat map that leave room for numbers in its cells
MARKS = 6  # on the axis of time
LONGEST = 26  # name of a layer on an axis


def short_names(names: Sequence[str]) -> list[str]:
    """Dotted names without what all of them begin with.

    Examples:
        >>> short_names(["vit.layers.0.mlp", "vit.layers.1.mlp"])
        ['0.mlp', '1.mlp']
    """
    parts = [name.split(".") for name in names]
    common = 0
    while (
        len(parts) > 1
        and all(len(part) > common + 1 for part in parts)
        and len({part[common] for part in parts}) == 1
    ):
        common += 1
    return [".".join(part[common:]) for part in parts]


def _end(name: str) -> str:
    """The end of a long name, which tells it from others."""
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def layer_axis(names: Sequence[str], **more: Any) -> dict[str, Any]:
    """Layers from top to bottom, each in a row of its own."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [plain(_end(name)) for name in short_names(names)],
        "range": [len(names) - 0.4, -0.6],
        "showgrid": False,
        "zeroline": False,
        **more,
    }


def spreads(
    id: str, title: str, how: str, rows: Sequence[Mapping[str, Any]], colour: str, symbol: str
) -> Figure:
    """Quantiles and mean of the multiplier, layer by layer.

    Args:
        id: of the figure.
        title: what there is to see.
        how: how it is read.
        rows: name, multiplier and quantiles ("5" "25" "75" "95") of each layer.
        colour: of all of it.
        symbol: of the means.
    """
    traces: list[Trace] = []
    for low, high, width in (("5", "95", 2), ("25", "75", 9)):
        x: list[float | None] = []
        y: list[float | None] = []
        for i, row in enumerate(rows):
            x += [row["quantiles"][low], row["quantiles"][high], None]
            y += [i, i, None]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{low}th to {high}th percentile",
                "x": shorter(x),
                "y": y,
                "line": {"color": f"{colour}/0.45", "width": width},
                "hoverinfo": "skip",
            }
        )
    traces.append(
        dots(
            "mean",
            shorter([row["multiplier"] for row in rows]),
            list(range(len(rows))),
            colour,
            marker={"symbol": symbol, "size": 9},
            text=[plain(row["name"]) for row in rows],
            hovertemplate="%{text}: %{x:.3f}",
        )
    )
    return Figure(
        id,
        title,
        how,
        traces,
        layout(
            axis("multiplier r", rangemode="tozero"),
            layer_axis([row["name"] for row in rows]),
            shapes=[rule(1, "--muted", dash="dot")],
        ),
        height=130 + 26 * len(rows),
    )


def heat(
    id: str,
    title: str,
    how: str,
    names: Sequence[str],
    columns: Sequence[str],
    cells: Cells,
    *,
    across: str,
    unit: str,
    log: bool = False,
) -> Figure:
    """A heat map with a row for each layer.

    Args:
        id: of the figure.
        title: what there is to see.
        how: how it is read.
        names: of the layers.
        columns: what each column is called.
        cells: a row for each layer; None where nothing is known.
        across: title of the axis of columns.
        unit: title of the colours.
        log: whether colours follow the logarithm; cells must be > 0 then.
    """
    known = [value for row in cells for value in row if value is not None]
    shown = [[_colour(value, log) for value in row] for row in cells]
    marks = list(range(0, len(columns), max(1, math.ceil(len(columns) / MARKS))))
    small = {"size": 12, "color": "--muted"}
    bar: dict[str, Any] = {
        "title": {"text": plain(unit), "font": small},
        "tickfont": small,
        "thickness": 10,
        "outlinewidth": 0,
    }
    if log and any(value > 0 for value in known):
        ticks = round_values([value for value in known if value > 0])
        bar |= {
            "tickvals": [math.log10(tick) for tick in ticks],
            "ticktext": [tick_name(tick) for tick in ticks],
        }
    trace: Trace = {
        "type": "heatmap",
        "x": list(range(len(columns))),
        "y": list(range(len(names))),
        "z": [shorter(row, 4) for row in shown],
        "text": [
            [f"{plain(name)}, {across} {column}: {number(value)}" for column, value in
             zip(columns, row, strict=True)]
            for name, row in zip(names, cells, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "colorscale": [[0, "--heat-0"], [0.5, "--heat-1"], [1, "--heat-2"]],
        "xgap": 1,
        "ygap": 1,
        "colorbar": bar,
    }  # fmt: skip
    notes = []
    if len(columns) <= NUMBERED and not log:
        notes = [
            note(number(value, 2), j, i, font={"color": _ink(value, known)})
            for i, row in enumerate(cells)
            for j, value in enumerate(row)
            if value is not None
        ]
    return Figure(
        id,
        title,
        how,
        [trace],
        layout(
            axis(across, tickvals=marks, ticktext=[columns[i] for i in marks], showgrid=False),
            layer_axis(names),
            annotations=notes,
        ),
        height=130 + 30 * len(names),
    )


def _colour(value: float | None, log: bool) -> float | None:
    if value is None or (log and value <= 0):
        return None
    return math.log10(value) if log else value


def _ink(value: float, known: Sequence[float]) -> str:
    """What can be read on a cell."""
    low, high = min(known), max(known)
    return "--on-heat" if high > low and (value - low) / (high - low) > 0.7 else "--ink"
