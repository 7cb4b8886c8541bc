"""Scores against lr, from the runs that chose the settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sagelr.report.charts.figure import Figure, Trace, axis, dots, layout, line, log_axis
from sagelr.report.study import Arm, Run, Study, mean, validation
from sagelr.report.wording import Scale, listed, setting

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def by_lr(study: Study) -> list[Figure]:
    """What settings were chosen by, and the metric, where they differ."""
    scores = list(dict.fromkeys([study.select_by, study.scale.name]))
    figures = [_figure(study, score) for score in scores]
    return [figure for figure in figures if figure is not None]


def _figure(study: Study, score: str) -> Figure | None:
    scale = study.scale_of(score)
    values = [
        value * scale.factor
        for arm in study.arms
        for _, runs in study.tuned(arm)
        for value in validation(runs, score)
    ]
    if not values:
        return None
    log = min(values) > 0 and max(values) / min(values) > 5
    worst = max(values) if not scale.greater_is_better else min(values)
    traces = [trace for arm in study.arms for trace in _arm(study, arm, score, scale, worst)]
    what = f"validation {scale.title}"
    chosen = [f"{arm.label} at {setting(arm.chosen)}" for arm in study.arms if arm.chosen]
    if score == study.select_by:
        title = f"Lowest validation {scale.label}: {listed(chosen)}"
        if scale.greater_is_better:
            title = f"Highest validation {scale.label}: {listed(chosen)}"
        if not chosen:
            title = f"Validation {scale.label} by lr, so far"
        how = "Rings: the settings chosen. Lines: means over the tuning seeds; dots: single seeds."
    else:
        title = f"The same runs by {scale.label}"
        chosen_by = study.scale_of(study.select_by).label
        how = f"Settings were chosen by {chosen_by}, which is finer, and not by this."
    if any(
        run["status"] != "complete" for arm in study.arms for _, r in study.tuned(arm) for run in r
    ):
        how += " Crosses at the edge: settings at which a run diverged or failed."
    return Figure(
        "lr" if score == study.select_by else "lr-metric",
        title,
        how,
        traces,
        layout(
            axis("lr (log scale)", type="log", **_ticks(study)),
            log_axis(what, values) if log else axis(what),
        ),
        height=380,
    )


def _ticks(study: Study) -> dict[str, Any]:
    """The lr that were tried, thinned where they would run into each other."""
    tried = sorted({point["lr"] for arm in study.arms for point, _ in study.tuned(arm)})
    every = max(1, math.ceil(len(tried) / 5))
    shown = tried[::every]
    return {"tickvals": shown, "ticktext": [f"{lr:g}" for lr in shown]}


def _arm(study: Study, arm: Arm, score: str, scale: Scale, worst: float) -> list[Trace]:
    """One line for each point of the axes beside lr."""
    lines: dict[str, list[tuple[Mapping[str, float], Sequence[Run]]]] = {}
    for point, runs in study.tuned(arm):
        rest = setting({axis: value for axis, value in point.items() if axis != "lr"})
        lines.setdefault(rest, []).append((point, runs))
    traces: list[Trace] = []
    for (rest, points), dash in zip(lines.items(), _cycle(len(lines)), strict=True):
        name = arm.label if len(lines) == 1 and rest == "–" else f"{arm.label}, {rest}"
        x = [point["lr"] for point, _ in points]
        found = [[v * scale.factor for v in validation(runs, score)] for _, runs in points]
        whole = [
            mean(values) if len(values) == len(runs) else None
            for values, (_, runs) in zip(found, points, strict=True)
        ]
        traces.append(
            line(
                name,
                x,
                whole,
                arm.colour,
                mode="lines+markers",
                line={"dash": dash},
                marker={"symbol": arm.symbol},
                hovertemplate="lr %{x}: %{y:.4g}",
            )
        )
        single = [(lr, value) for lr, values in zip(x, found, strict=True) for value in values]
        traces.append(_small(arm, single))
        lost = [lr for lr, value in zip(x, whole, strict=True) if value is None]
        if lost:
            traces.append(
                dots(
                    f"{name}: diverged or failed",
                    lost,
                    [worst] * len(lost),
                    arm.colour,
                    marker={
                        "symbol": "x-thin",
                        "size": 11,
                        "line": {"width": 2, "color": arm.colour},
                    },
                    hovertemplate="lr %{x}: a run diverged or failed<extra></extra>",
                    showlegend=False,
                )
            )
        traces += [
            _ring(arm, lr, value)
            for lr, value, (point, _) in zip(x, whole, points, strict=True)
            if point == arm.chosen and value is not None
        ]
    return traces


def _cycle(count: int) -> list[str]:
    return [DASHES[i % len(DASHES)] for i in range(count)]


def _small(arm: Arm, found: Sequence[tuple[float, float]]) -> Trace:
    return dots(
        arm.label,
        [lr for lr, _ in found],
        [value for _, value in found],
        f"{arm.colour}/0.45",
        marker={"size": 4},
        hoverinfo="skip",
        showlegend=False,
    )


def _ring(arm: Arm, lr: float, value: float) -> Trace:
    return dots(
        f"{arm.label}: chosen",
        [lr],
        [value],
        "--none",
        marker={"size": 19, "symbol": "circle", "line": {"width": 2, "color": arm.colour}},
        hoverinfo="skip",
        showlegend=False,
    )
