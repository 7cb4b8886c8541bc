"""How sensitivity is spread: over layers, kinds of modules, heads, and within each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sagelr.report.charts.figure import Figure, Trace, axis, dots, layout, log_axis, plain, shorter
from sagelr.report.charts.layers import heat, layer_axis
from sagelr.report.sides import Side
from sagelr.report.study import interval, mean
from sagelr.report.wording import listed, number, share

RAW, BY_LOSS = "as measured", "divided by the loss"
CUT = 1.0  # percent of the parameters, at either end of a histogram, that is left out
OVERLAP = 0.95  # height of a layer's curve, where layers are 1 apart


def figures(sides: Sequence[Side], prefix: str) -> list[Figure]:
    """Everything about sensitivity.

    Args:
        sides: models or arms.
        prefix: of the figures' ids.
    """
    hows = [RAW, BY_LOSS] if all(side.loss > 0 for side in sides) else [RAW]
    shown = [_totals(sides, prefix, hows[-1])]
    details = [side for side in sides if side.detail is not None]
    if details:
        shown += [_within_layers(details, prefix, how) for how in hows]
    shown += [_means(sides, f"{prefix}-layers", "layers", how) for how in hows]
    if all(side.kinds for side in sides):
        shown += [_means(sides, f"{prefix}-kinds", "kinds", how) for how in hows]
    for place, side in enumerate(details, 1):
        if any(units["means"] for units in _heads_of(side)):
            shown.append(_heads(side, f"{prefix}-heads-{place}"))
    return shown


def matched(sides: Sequence[Side], prefix: str) -> Figure:
    """Layers of two models at matched loss.

    Args:
        sides: the models at the points of training that were matched.
        prefix: of the figure's id.
    """
    losses = listed([f"{number(side.loss)} ({side.label})" for side in sides])
    figure = _means(sides, f"{prefix}-matched", "layers", BY_LOSS)
    return replace(figure, title=f"Mean sensitivity of each layer at matched loss: {losses}")


def _per(how: str, side: Side) -> float:
    """What a sensitivity is divided by."""
    return 1.0 if how == RAW else side.loss


def _x(how: str, traces: Sequence[Trace]) -> dict[str, Any]:
    title = "sensitivity" if how == RAW else "sensitivity / loss"
    values = [value for trace in traces for value in trace["x"] if value]
    return log_axis(title, values, few=True) if values else axis(title)


def _totals(sides: Sequence[Side], prefix: str, how: str) -> Figure:
    """All parameters: one curve a side."""
    traces: list[Trace] = []
    for side in sides:
        x, y = _average(side.histograms, _per(how, side))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": plain(side.label),
                "x": shorter(x),
                "y": shorter(y, 4),
                "fill": "tozeroy",
                "fillcolor": f"{side.colour}/0.12",
                "line": {"color": side.colour, "width": 2, "shape": "hvh"},
                "hovertemplate": "%{x:.2e}: %{y:.2f}%",
            }
        )
    effective = [
        share(mean([spread["effective_share"] for spread in side.spreads]))
        + (f" ({side.label})" if len(sides) > 1 else "")
        for side in sides
    ]
    return Figure(
        f"{prefix}-all",
        f"As concentrated as if {listed(effective)} of the parameters held all the sensitivity",
        f"All parameters by sensitivity {how}, in bins of a tenth of a decade. A heap "
        "far to the left is a reserve that the model hardly uses. The outermost 1% at "
        "either end is left out.",
        traces,
        layout(
            _x(how, traces),
            axis("share of parameters (%)", rangemode="tozero"),
        ),
        wide=True,
    )


def _average(
    histograms: Sequence[Mapping[str, Any]], per: float
) -> tuple[list[float], list[float]]:
    """Middles of the bins, and the mean share in each, in percent."""
    first = min(found["first"] for found in histograms)
    last = max(found["first"] + len(found["counts"]) for found in histograms)
    shares = [0.0] * (last - first)
    for found in histograms:
        total = sum(found["counts"]) or 1
        for i, count in enumerate(found["counts"]):
            shares[found["first"] - first + i] += 100 * count / total / len(histograms)
    each = histograms[0]["per_decade"]
    first, shares = _trimmed(first, shares)
    return [10 ** ((first + i + 0.5) / each) / per for i in range(len(shares))], shares


def _trimmed(first: int, shares: list[float]) -> tuple[int, list[float]]:
    """Without the outermost bins that hold no more than CUT percent in all, at either end."""
    low, high, left = 0, len(shares), CUT
    while low < high - 1 and (left := left - shares[low]) >= 0:
        low += 1
    left = CUT
    while high > low + 1 and (left := left - shares[high - 1]) >= 0:
        high -= 1
    return first + low, shares[low:high]


def _within_layers(sides: Sequence[Side], prefix: str, how: str) -> Figure:
    """One row a layer, the sides over each other."""
    names = list(dict.fromkeys(g["name"] for side in sides for g in _groups(side)))
    peaks = dict.fromkeys(names, 0.0)
    curves: dict[tuple[int, str], tuple[list[float], list[float]]] = {}
    for place, side in enumerate(sides):
        for group in _groups(side):
            x, y = _average([group["histogram"]], _per(how, side))
            curves[place, group["name"]] = x, y
            peaks[group["name"]] = max([peaks[group["name"]], *y])
    traces: list[Trace] = []
    for place, side in enumerate(sides):
        across: list[float | None] = []
        up: list[float | None] = []
        for row, name in enumerate(names):
            x, y = curves.get((place, name), ([], []))
            if x:
                height = OVERLAP / (peaks[name] or 1)
                across += [x[0], *x, x[-1], None]
                up += [row, *(row - height * value for value in y), row, None]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": plain(side.label),
                "x": shorter(across, 4),
                "y": shorter(up, 4),
                "fill": "toself",
                "fillcolor": f"{side.colour}/0.18",
                "line": {"color": side.colour, "width": 1.3},
                "hoverinfo": "skip",
            }
        )
    rows = layer_axis(names)
    rows |= {"range": [len(names) - 0.7, -1.1], "showgrid": True}
    return Figure(
        f"{prefix}-within-{'raw' if how == RAW else 'by-loss'}",
        f"Sensitivity within each layer, {how}",
        "One row a layer; each curve shows how its parameters spread, scaled to its own height."
        + (
            ""
            if how == RAW
            else " A model with a lower loss has smaller gradients: this division "
            "takes most of that out."
        ),
        traces,
        layout(_x(how, traces), rows, showlegend=len(sides) > 1),
        height=150 + 34 * len(names),
    )


def _groups(side: Side) -> list[Mapping[str, Any]]:
    return side.detail["sensitivity"]["layers"] if side.detail else []


def _means(sides: Sequence[Side], id: str, what: str, how: str) -> Figure:
    """Mean sensitivity of each layer or kind, with an interval over seeds where there are some."""
    names = list(dict.fromkeys(name for side in sides for name in getattr(side, what)[0]))
    traces: list[Trace] = []
    seeds = 1
    for place, side in enumerate(sides):
        measured: Sequence[Mapping[str, float]] = getattr(side, what)
        pers = [1.0] * len(measured) if how == RAW else list(side.losses)
        x: list[float | None] = []
        half: list[float | None] = []
        for name in names:
            pairs = zip(measured, pers, strict=True)
            values = [found[name] / per for found, per in pairs if name in found and per > 0]
            x.append(mean(values))
            half.append(interval(values) or 0.0)
            seeds = max(seeds, len(values))
        traces.append(
            dots(
                side.label,
                shorter(x),
                [i + 0.16 * (place - (len(sides) - 1) / 2) for i in range(len(names))],
                side.colour,
                marker={"symbol": side.symbol, "size": 9},
                text=[plain(name) for name in names],
                hovertemplate="%{text}: %{x:.3g}",
                error_x={
                    "type": "data",
                    "array": shorter(half),
                    "color": side.colour,
                    "thickness": 2,
                    "width": 4,
                    "visible": len(measured) > 1,
                },
            )
        )
    over = f" Bars: 95% interval over {seeds} seeds." if seeds > 1 else ""
    one = "layer" if what == "layers" else "kind of module"
    return Figure(
        f"{id}-{'raw' if how == RAW else 'by-loss'}",
        f"Mean sensitivity of each {one}, {how}",
        f"Mean of |θ·g| over the parameters of a {one}, in units of the loss.{over}"
        if how == RAW
        else f"The same, as a share of the loss it was measured at.{over}",
        traces,
        layout(_x(how, traces), layer_axis(names) | {"showgrid": True}, showlegend=len(sides) > 1),
        height=130 + 30 * len(names),
    )


def _heads_of(side: Side) -> list[Mapping[str, Any]]:
    return side.detail["sensitivity"]["heads"] if side.detail else []


def _heads(side: Side, id: str) -> Figure:
    """Heat map layer × head."""
    layers = [units for units in _heads_of(side) if units["means"]]
    everything = [value for units in layers for value in units["means"]]
    centre = sum(everything) / len(everything) or 1.0
    widest = max(units["count"] for units in layers)
    cells = [
        [value / centre for value in units["means"]] + [None] * (widest - len(units["means"]))
        for units in layers
    ]
    return heat(
        id,
        f"Attention heads of {side.label}: the least sensitive has "
        f"{number(100 * min(everything) / centre, 2)}% of the mean",
        "Mean sensitivity of each head's parameters, relative to the mean over all heads.",
        [units["layer"] for units in layers],
        [str(head) for head in range(widest)],
        cells,
        across="head",
        unit="relative",
    )
