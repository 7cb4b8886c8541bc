"""Scores against sparsity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sagelr.report.charts.figure import Figure, Trace, axis, band, layout, line
from sagelr.report.sides import Side
from sagelr.report.study import interval, mean
from sagelr.report.wording import LOSS, Scale, listed

STRUCTURES = {
    "unstructured": "single weights",
    "2:4": "two weights in every four",
    "heads": "attention heads",
    "neurons": "feed-forward neurons",
}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
# One side has its scores told apart by colour; several sides have a figure for each score.
COLOURS = ("--sage-1", "--base-1", "--sage-2", "--base-2", "--sage-3", "--base-3")

Key = tuple[str, str, str, float]  # structure, score, scope, fine-tuned


def key_of(curve: Mapping[str, Any]) -> Key:
    """What two curves must share to be compared."""
    return curve["structure"], curve["score"], curve["scope"], curve["finetuned"]


def by_key(sides: Sequence[Side]) -> dict[Key, list[tuple[Side, list[Mapping[str, Any]]]]]:
    """Curves of the same kind, side by side; each side's are one a seed."""
    found: dict[Key, dict[int, list[Mapping[str, Any]]]] = {}
    for place, side in enumerate(sides):
        for curves in side.curves:
            for curve in curves:
                found.setdefault(key_of(curve), {}).setdefault(place, []).append(curve)
    return {
        key: [(sides[place], curves) for place, curves in each.items()]
        for key, each in found.items()
    }


def manner(key: Key) -> str:
    """How was pruned, as a sentence."""
    structure, score, scope, finetuned = key
    where = "over the whole model" if scope == "global" else "within each layer"
    epochs = "epoch" if finetuned == 1 else "epochs"
    after = f", then {finetuned:g} {epochs} of fine-tuning" if finetuned else ""
    what = STRUCTURES.get(structure, structure)
    return f"{what[:1].upper()}{what[1:]} with the lowest {score} go first, {where}{after}."


def score_of(curve: Mapping[str, Any], scale: Scale) -> Scale:
    """The metric, or the loss where a curve has no metric."""
    has = all(scale.name in point["scores"] for point in curve["points"])
    return scale if has else LOSS


def scores_at(curves: Sequence[Mapping[str, Any]], sparsity: float, name: str) -> list[float]:
    """What is known of a score at a sparsity, in the order of the curves; null is left out."""
    found = [
        point["scores"].get(name)
        for curve in curves
        for point in curve["points"]
        if point["sparsity"] == sparsity
    ]
    return [score for score in found if score is not None]


def figures(sides: Sequence[Side], scale: Scale, split: str, prefix: str) -> list[Figure]:
    """Curves with three points or more, the unstructured ones first.

    Args:
        sides: models or arms.
        scale: how the metric is shown.
        split: that was scored.
        prefix: of the figures' ids.
    """
    found = {
        key: each
        for key, each in by_key(sides).items()
        if any(len(curve["points"]) > 2 for _, curves in each for curve in curves)
    }
    if len(sides) > 1:
        return [
            _compared(key, each, scale, split, f"{prefix}-{number}")
            for number, (key, each) in enumerate(found.items(), 1)
        ]
    groups: dict[tuple[str, str, float], list[tuple[Key, list[Mapping[str, Any]]]]] = {}
    for key, each in found.items():
        groups.setdefault((key[0], key[2], key[3]), []).append((key, each[0][1]))
    return [
        _scores(sides[0], group, scale, split, f"{prefix}-{number}")
        for number, group in enumerate(groups.values(), 1)
    ]


def _compared(
    key: Key,
    each: Sequence[tuple[Side, list[Mapping[str, Any]]]],
    scale: Scale,
    split: str,
    id: str,
) -> Figure:
    scale = score_of(each[0][1][0], scale)
    traces = [
        trace
        for side, curves in each
        for trace in _line(side.label, curves, scale, side.colour, symbol=side.symbol)
    ]
    seeds = max(len(curves) for _, curves in each)
    shaded = f" Shaded: 95% interval of the mean over {seeds} seeds." if seeds > 1 else ""
    return _figure(id, _kept(each, scale), manner(key) + shaded, traces, scale, split)


def _scores(
    side: Side,
    group: Sequence[tuple[Key, list[Mapping[str, Any]]]],
    scale: Scale,
    split: str,
    id: str,
) -> Figure:
    """One side: the pruning scores against each other."""
    scale = score_of(group[0][1][0], scale)
    traces: list[Trace] = []
    for number, (key, curves) in enumerate(group):
        colour = COLOURS[number % len(COLOURS)] if len(group) > 1 else side.colour
        dash = DASHES[number % len(DASHES)]
        traces += _line(key[1], curves, scale, colour, dash)
    best = max(group, key=lambda pair: keeps(pair[1], scale) or 0.0)
    reach = keeps(best[1], scale)
    title = (
        f"By {best[0][1]}, {reach:.0%} can go and 99% of the {scale.label} stays"
        if reach is not None
        else f"{scale.label} against sparsity"
    )
    structure, _, scope, finetuned = group[0][0]
    how = manner((structure, "score", scope, finetuned))
    return _figure(id, title, how, traces, scale, split)


def _figure(id: str, title: str, how: str, traces: list[Trace], scale: Scale, split: str) -> Figure:
    return Figure(
        id,
        title,
        how,
        traces,
        layout(
            axis("sparsity (%)", range=[-2, 102], tickvals=[0, 20, 40, 60, 80, 100]),
            axis(f"{split} {scale.title}"),
            hovermode="x unified",
        ),
        height=360,
    )


def _line(
    name: str,
    curves: Sequence[Mapping[str, Any]],
    scale: Scale,
    colour: str,
    dash: str = "solid",
    symbol: str = "circle",
) -> Iterator[Trace]:
    x = [point["sparsity"] for point in curves[0]["points"]]
    rows = [
        [score * scale.factor for score in scores_at(curves, sparsity, scale.name)]
        for sparsity in x
    ]
    x = [100 * sparsity for sparsity in x]
    means = [mean(row) for row in rows]
    halves = [interval(row) for row in rows]
    edges = [
        (m - h, m + h) if m is not None and h is not None else (None, None)
        for m, h in zip(means, halves, strict=True)
    ]
    if len(curves) > 1:
        yield band(x, [low for low, _ in edges], [high for _, high in edges], colour)
    yield line(
        name,
        x,
        means,
        colour,
        mode="lines+markers",
        line={"dash": dash},
        marker={"symbol": symbol},
        hovertemplate="%{y:.4g}",
    )


def keeps(curves: Sequence[Mapping[str, Any]], scale: Scale) -> float | None:
    """The sparsity that keeps 99% of a metric, on average; None where there was nothing to keep."""
    known = (curve["keeps99"].get(scale.name) for curve in curves)
    return mean([each for each in known if each is not None])


def _kept(each: Sequence[tuple[Side, list[Mapping[str, Any]]]], scale: Scale) -> str:
    reached = [
        f"{kept:.0%} ({side.label})"
        for side, curves in each
        if (kept := keeps(curves, scale)) is not None
    ]
    if not reached:
        return f"{scale.label} against sparsity"
    return f"99% of the {scale.label} is kept up to a sparsity of {listed(reached)}"
