"""SAGE at work: the rule, and the multipliers that a study's runs saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sagelr.report.charts.figure import Figure, Trace, axis, band, dots, layout, line, shorter
from sagelr.report.charts.layers import heat, spreads
from sagelr.report.study import Arm, Study, mean
from sagelr.report.wording import number

SCATTER = 600  # points of it that are drawn
SMALLEST, LARGEST = 0.01, 100.0  # x of the rule's figure, I / Ī


@dataclass(frozen=True)
class Traced:
    """What SAGE did in the runs of one arm.

    Attributes:
        arm: a sage arm.
        traces: of its runs, one each.
        relative: whether the multiplier was made relative to the tensor, so that r(x) says
            nothing of it.
    """

    arm: Arm
    traces: list[Mapping[str, Any]]
    relative: bool


def traced(study: Study) -> list[Traced]:
    """The sage arms that have something to show.

    Controls have not: results of before 2026-11-28 hold SAGE's multipliers for them, which they did
    not apply.
    """
    found = []
    for arm in study.arms:
        control = study.data["recipe"]["arms"][arm.name]["optimizer"] == "ControlAdamW"
        runs = [run for run in study.reported(arm) if run["sage"]]
        if runs and not control:
            relative = runs[0]["options"].get("relative") is not None
            found.append(Traced(arm, [run["sage"] for run in runs], relative))
    return found


def figures(study: Study) -> list[Figure]:
    """Everything about the multiplier."""
    found = traced(study)
    if not found:
        return []
    shown = [_rule(each, number) for number, each in enumerate(found, 1)]
    shown.append(_by_sensitivity(found))
    shown += [_layers(each, number) for number, each in enumerate(found, 1)]
    return shown + [figure for n, each in enumerate(found, 1) for figure in _over_time(each, n)]


def multiplier(x: float, beta0: float) -> float:
    """r(x) = β0·|x−1| / (β0 + (1−β0)·x), with x = I / Ī before the step and ε → 0.

    Examples:
        >>> multiplier(0, 0.75), multiplier(1, 0.75)
        (1.0, 0.0)
    """
    return beta0 * abs(x - 1) / (beta0 + (1 - beta0) * x)


def _rule(found: Traced, place: int) -> Figure:
    arm, trace = found.arm, found.traces[0]
    beta0 = trace["beta0"]
    pairs = trace["scatter"][:: max(1, len(trace["scatter"]) // SCATTER)]
    seen = [(min(max(x, SMALLEST), LARGEST), r) for x, r in pairs]
    right = max([10.0, *(x for x, _ in seen)]) * 1.1
    grid = [SMALLEST * (right / SMALLEST) ** (i / 240) for i in range(241)]
    grid = sorted([*grid, 1.0])
    traces: list[Trace] = []
    if not found.relative:
        curve = [multiplier(x, beta0) for x in grid]
        traces.append(
            line(
                f"the rule at β0 {beta0:g}",
                grid,
                curve,
                "--ink",
                line={"width": 1.5},
                hovertemplate="x %{x:.3g}: r %{y:.3g}",
            )
        )
    traces.append(
        dots(
            f"seen in one run of {arm.label}",
            shorter([x for x, _ in seen], 4),
            shorter([r for _, r in seen], 4),
            f"{arm.colour}/0.45",
            marker={"size": 5},
            hovertemplate="x %{x:.3g}: r %{y:.3g}",
        )
    )
    if found.relative:
        title = f"The multipliers of {arm.label} follow sensitivity within each tensor, not x"
        how = "Each dot is one parameter at one step."
    else:
        title = "A parameter takes its smallest steps when its sensitivity is as it usually is"
        how = (
            "Each dot is one parameter at one step. Left of 1 its sensitivity fell below its "
            f"recent average, right of 1 it rose above it. At β0 {beta0:g} no multiplier can "
            f"exceed {number(max(1.0, beta0 / (1 - beta0)), 2)}."
        )
    return Figure(
        f"rule-{place}",
        title,
        how,
        traces,
        layout(
            axis(
                "x: sensitivity now / its recent average (log scale)",
                type="log",
                tickvals=[0.01, 0.1, 1, 10, 100],
                ticktext=["≤ 0.01", "0.1", "1", "10", "100"],
            ),
            axis("multiplier r", rangemode="tozero"),
        ),
    )


def _by_sensitivity(found: Sequence[Traced]) -> Figure:
    traces: list[Trace] = []
    told = []
    for each in found:
        bins = [trace["by_sensitivity"] for trace in each.traces]
        bins = [rows for rows in bins if len(rows) == len(bins[0])]
        x = [50 * sum(row["quantile"]) for row in bins[0]]
        columns = [[rows[i]["multiplier"] for rows in bins] for i in range(len(x))]
        means = [sum(column) / len(column) for column in columns]
        fifth = max(1, len(means) // 5)
        least, most = mean(means[:fifth]) or 0.0, mean(means[-fifth:]) or 0.0
        told.append((each.arm.label, least, most))
        traces += [
            band(x, [min(c) for c in columns], [max(c) for c in columns], each.arm.colour),
            line(
                each.arm.label,
                x,
                means,
                each.arm.colour,
                mode="lines+markers",
                marker={"symbol": each.arm.symbol},
                text=[f"median sensitivity {number(row['sensitivity'])}" for row in bins[0]],
                hovertemplate="r %{y:.3f}, %{text}",
            ),
        ]
    label, least, most = told[0]
    return Figure(
        "by-sensitivity",
        _level(least, most) if len(told) == 1 else "Mean multiplier, least to most sensitive",
        "Parameters in twenty groups of equal size, near the end of training: mean over the seeds, "
        f"shaded from lowest to highest. Least sensitive fifth {number(least, 2)}, most sensitive "
        f"fifth {number(most, 2)}{'' if len(told) == 1 else f' ({label})'}.",
        traces,
        layout(
            axis(
                "parameters, from least to most sensitive (%)",
                range=[0, 100],
                tickvals=[0, 20, 40, 60, 80, 100],
            ),
            axis("mean multiplier r", rangemode="tozero"),
            showlegend=len(told) > 1,
        ),
    )


def _level(least: float, most: float) -> str:
    ratio = least / most if most else float("inf")
    if ratio > 1.15:
        return "Less sensitive parameters get larger steps"
    if ratio < 1 / 1.15:
        return "More sensitive parameters get larger steps, not smaller ones"
    return "How sensitive a parameter is hardly changes its multiplier"


def layer_rows(found: Traced) -> list[dict[str, Any]]:
    """Each layer near the end of training, as a mean over the seeds."""
    rows = []
    for index, layer in enumerate(found.traces[0]["layers"]):
        same = [
            trace["layers"][index]
            for trace in found.traces
            if len(trace["layers"]) > index and trace["layers"][index]["name"] == layer["name"]
        ]
        row = {key: layer[key] for key in ("name", "kind", "parameters")}
        for key in ("sensitivity", "multiplier", "frozen", "boosted"):
            row[key] = sum(each[key] for each in same) / len(same)
        row["quantiles"] = {
            level: sum(each["quantiles"][level] for each in same) / len(same)
            for level in layer["quantiles"]
        }
        rows.append(row)
    return rows


def _layers(found: Traced, place: int) -> Figure:
    rows = layer_rows(found)
    means = [row["multiplier"] for row in rows]
    return spreads(
        f"layers-{place}",
        f"Mean multipliers of the layers of {found.arm.label}: {number(min(means), 2)} to "
        f"{number(max(means), 2)}",
        "Near the end of training, mean over the seeds. At 1 a layer trains at the full lr.",
        rows,
        found.arm.colour,
        found.arm.symbol,
    )


def _over_time(found: Traced, place: int) -> list[Figure]:
    """Layer × time: multipliers, and sensitivities where the runs kept them."""
    history = found.traces[0]["history"]
    names = list(dict.fromkeys(name for look in history for name in look["multiplier"]))
    if len(history) < 2 or not names:
        return []
    steps = [f"{look['step']:,}" for look in history]
    multipliers = _cells(found, names, "multiplier")
    known = [value for row in multipliers for value in row if value is not None]
    over = f"averaged over the seeds of {found.arm.label}. The stronger the colour, the larger."
    figures = [
        heat(
            f"history-{place}",
            f"Over the run, mean multipliers stay between {number(min(known), 2)} and "
            f"{number(max(known), 2)}",
            f"Each cell is the mean multiplier of one layer at one step, {over}",
            names,
            steps,
            multipliers,
            across="step",
            unit="mean r",
        )
    ]
    if all("sensitivity" in look for look in history):
        figures.append(
            heat(
                f"sensitivity-{place}",
                "Mean sensitivity of each layer over the run",
                f"Each cell is the mean smoothed sensitivity of one layer at one step, {over}",
                names,
                steps,
                _cells(found, names, "sensitivity"),
                across="step",
                unit="mean Ī",
                log=True,
            )
        )
    return figures


def _cells(found: Traced, names: Sequence[str], key: str) -> list[list[float | None]]:
    """A row for each layer, a column for each step of the first run; means over the runs."""
    looks = [
        [
            other[key]
            for trace in found.traces
            for other in trace["history"]
            if other["step"] == look["step"] and key in other
        ]
        for look in found.traces[0]["history"]
    ]
    return [
        [mean([seen[name] for seen in each if name in seen]) for each in looks] for name in names
    ]
