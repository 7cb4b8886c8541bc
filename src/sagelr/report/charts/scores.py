"""Scores of the arms: the verdict's figure, and every seed as a dot."""

from __future__ import annotations

from collections import Counter
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
    rule,
    span,
    stack,
)
from sagelr.report.study import Arm, Study, mean, spread, test
from sagelr.report.verdict import alike
from sagelr.report.wording import listed

DOT = 0.13  # between dots beside each other, where arms are 1 apart


def difference(study: Study, found: Mapping[str, Any], number: int) -> Figure:
    """The paired difference with its interval, beside the margin and zero."""
    scale, gap = study.scale, found["difference"]
    sage, base = study.by_name[found["sage"]], study.by_name[found["base"]]
    factor = scale.factor
    scores = (found["arms"][arm.name]["values"] for arm in (sage, base))
    pairs = [(s - b) * factor for s, b in zip(*scores, strict=True)]
    low, high = (value * factor for value in gap["ci95"])
    margin = found["margin"] * factor
    ends = [value * factor for value in found.get("examples_ci95", ())]
    reach = max(margin * 1.25, *(abs(value) * 1.1 for value in (*pairs, low, high, *ends)))
    placed = stack(pairs, reach / 45)
    offsets = [-0.6 - 0.25 * (each - min(placed)) for each in placed]
    unit = scale.difference_unit.strip()
    dotted = " Dotted: with other test examples as well." if "examples_ci95" in found else ""
    spots = dots(
        "one seed",
        pairs,
        offsets,
        f"{sage.colour}/0.55",
        customdata=found["seeds"],
        hovertemplate="seed %{customdata}: %{x:+.3g}<extra></extra>",
        marker={"size": 7},
    )
    bar = dots(
        "mean and 95% interval",
        [gap["mean"] * factor],
        [0.35],
        sage.colour,
        error_x=_whiskers(gap["mean"] * factor, low, high, sage.colour, thickness=3, width=9),
        marker={"size": 14, "symbol": sage.symbol},
        hovertemplate="%{x:+.3g}<extra>mean</extra>",
    )
    wider = _with_other_examples(found, factor, sage)
    thick: Trace = {
        "type": "scatter",
        "mode": "lines",
        "name": "90% interval",
        "x": [value * factor for value in gap["ci90"]],
        "y": [0.35, 0.35],
        "line": {"color": sage.colour, "width": 7},
        "hovertemplate": "%{x:+.3g}",
    }
    left, right = ("worse", "better") if scale.greater_is_better else ("better", "worse")
    corner = {"xref": "paper", "yref": "paper", "yanchor": "bottom", "yshift": 4}
    corners = [
        note(f"← {sage.label} {left}", 0, 1, xanchor="left", **corner),
        note(f"{sage.label} {right} →", 1, 1, xanchor="right", **corner),
    ]
    in_units = f" ({unit})" if unit else ""
    deepest = min(-1.0, *offsets) - 0.25
    return Figure(
        f"difference-{number}",
        _where(study, found),
        "Large mark and bar: mean difference and its 95% interval; the thick part is its 90% "
        f"interval, which equivalence goes by. Dots: the {found['n']} single seeds. Shaded: the "
        f"margin of {scale.margin(found['margin'])}, within which a difference is taken not to "
        "matter." + dotted,
        [spots, *wider, thick, bar],
        layout(
            axis(
                f"{sage.label} − {base.label}, test {scale.label}{in_units}",
                range=[-reach, reach],
                zeroline=False,
            ),
            {"visible": False, "range": [deepest, 1], "fixedrange": True},
            shapes=[span(-margin, margin, "--margin"), rule(0, "--ink")],
            annotations=corners,
            showlegend=False,
        ),
        height=round(150 + 26 * -deepest),
        wide=True,
    )


def every_difference(study: Study) -> Figure:
    """The differences of all comparisons with their intervals, one below the other."""
    scale, shown = study.scale, list(reversed(study.comparisons))
    margin = scale.factor * study.data["recipe"]["study"]["margin"]
    traces, reach = [], 1.25 * margin
    for place, found in enumerate(shown):
        arm, gap = study.by_name[found["sage"]], found["difference"]
        middle, low, high = (scale.factor * each for each in (gap["mean"], *gap["ci95"]))
        reach = max(reach, 1.1 * abs(low), 1.1 * abs(high))
        traces.append(
            dots(
                arm.label,
                [middle],
                [place],
                arm.colour,
                error_x=_whiskers(middle, low, high, arm.colour, thickness=2.5, width=6),
                marker={"size": 11, "symbol": arm.symbol},
                hovertemplate=f"%{{x:+.3g}}, {found['verdict']}",
            )
        )
    unit = scale.difference_unit.strip()
    counts = Counter(found["verdict"] for found in study.comparisons)
    told = listed([f"{number} {verdict}" for verdict, number in counts.items()])
    return Figure(
        "differences",
        f"All {len(shown)} comparisons: {told}",
        "Marks and bars: mean paired difference to the base arm and its 95% interval, each by "
        "itself. Shaded: the margin, within which a difference is taken not to matter.",
        traces,
        layout(
            axis(
                f"minus its base, test {scale.label}{f' ({unit})' if unit else ''}",
                range=[-reach, reach],
                zeroline=False,
            ),
            _rows([plain(study.by_name[found["sage"]].label, 32) for found in shown], 0.7),
            shapes=[span(-margin, margin, "--margin"), rule(0, "--ink")],
            showlegend=False,
        ),
        height=110 + 34 * len(shown),
        wide=True,
    )


def _whiskers(middle: float, low: float, high: float, colour: str, **more: Any) -> dict[str, Any]:
    """An interval around a mark."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - middle],
        "arrayminus": [middle - low],
        "color": colour,
        **more,
    }


def _rows(labels: Sequence[str], beyond: float) -> dict[str, Any]:
    """A vertical axis with a name at each whole number from 0, and room beyond its ends."""
    return {
        "tickvals": list(range(len(labels))),
        "ticktext": list(labels),
        "range": [-beyond, len(labels) - 1 + beyond],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }


def _with_other_examples(found: Mapping[str, Any], factor: float, sage: Arm) -> list[Trace]:
    """The interval with the test examples drawn anew, where they are known one by one."""
    if "examples_ci95" not in found:
        return []
    low, high = (value * factor for value in found["examples_ci95"])
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "with other test examples",
            "x": [low, high],
            "y": [0.35, 0.35],
            "line": {"color": f"{sage.colour}/0.45", "width": 2, "dash": "dot"},
            "hovertemplate": "%{x:+.3g}",
        }
    ]


def _where(study: Study, found: Mapping[str, Any]) -> str:
    """Where the interval lies."""
    mean_gap = study.scale.change(found["difference"]["mean"])
    match found["verdict"]:
        case "equivalent":
            return f"The 90% interval of the mean difference, {mean_gap}, lies within the margin"
        case "better" | "worse":
            return f"The mean difference, {mean_gap}, is clear of zero"
    if alike(found):
        return f"Each difference is {mean_gap}: too few seeds to tell a spread"
    if found["significant"]:
        return f"The mean difference, {mean_gap}, is not to be relied on"
    return f"The interval around the mean difference, {mean_gap}, holds zero and more"


def seeds(study: Study) -> Figure | None:
    """Every seed's test score as a dot, with the mean of each arm."""
    scale = study.scale
    shown: list[tuple[Arm, list[int], list[float]]] = []
    for arm in study.arms:
        runs = study.reported(arm)
        values = [value * scale.factor for value in test(runs, scale.name)]
        if values:
            shown.append((arm, [run["seed"] for run in runs], values))
    if not shown:
        return None
    everything = [value for _, _, values in shown for value in values]
    width = (max(everything) - min(everything)) / 60
    traces, marks = [], []
    for place, (arm, numbers, values) in enumerate(reversed(shown)):
        offsets = stack(values, width)
        step = min(DOT, 0.7 / (1 + max(offsets) - min(offsets)))
        traces.append(
            dots(
                arm.label,
                values,
                [place + step * offset for offset in offsets],
                f"{arm.colour}/0.7",
                customdata=numbers,
                hovertemplate="seed %{customdata}: %{x:.4g}",
                marker={"symbol": arm.symbol, "size": 9},
            )
        )
        centre = sum(values) / len(values)
        marks.append(
            {
                "type": "line",
                "x0": centre,
                "x1": centre,
                "y0": place - 0.42,
                "y1": place + 0.42,
                "line": {"color": arm.colour, "width": 2},
            }
        )
    labels = [plain(arm.label, 24) for arm, _, _ in reversed(shown)]
    return Figure(
        "seeds",
        _spread(shown),
        "Each mark is one training with a seed of its own, scored once on the test split; the line "
        "is the mean.",
        traces,
        layout(
            axis(f"test {scale.title}"),
            _rows(labels, 0.6),
            shapes=marks,
            showlegend=False,
        ),
        height=110 + 80 * len(shown),
        wide=True,
    )


def _spread(shown: list[tuple[Arm, list[int], list[float]]]) -> str:
    if len(shown) < 2:
        return f"Seed for seed, the scores of {shown[0][0].label}"
    means = [mean(values) or 0.0 for _, _, values in shown]
    spreads = [found for _, _, values in shown if (found := spread(values)) is not None]
    if not spreads:
        return "The first scores of the arms"
    if max(means) == min(means) and not max(spreads):
        return "All scores are alike"
    if max(means) - min(means) < max(spreads):
        return "Seeds of one arm differ by more than the arms do"
    return "The arms differ by more than the seeds of one arm do"
