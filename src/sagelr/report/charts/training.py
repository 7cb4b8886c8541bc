"""Learning curves of the arms."""

from __future__ import annotations

from collections.abc import Sequence

from sagelr.report.charts.figure import Figure, Trace, axis, band, layout, line, log_axis
from sagelr.report.study import Arm, Run, Study, mean
from sagelr.report.wording import Scale, listed

MOST_POINTS = 200


def curves(study: Study) -> list[Figure]:
    """Loss and metric by epoch; of tuning runs while there are no others."""
    runs = {arm: study.reported(arm) for arm in study.arms}
    told = "mean over the seeds; shaded: from the lowest to the highest seed"
    if not any(runs.values()):
        runs = {arm: _best_so_far(study, arm) for arm in study.arms}
        told = (
            "mean over the tuning seeds of the best setting so far; shaded: from lowest to highest"
        )
    runs = {arm: found for arm, found in runs.items() if any(run["curve"] for run in found)}
    if not runs:
        return []
    figures = [_loss(runs, told)]
    key = f"validation_{study.scale.name}"
    # BLEU, which needs decoding, is not computed on the way.
    if study.scale.name != "loss" and any(_by_epoch(found, key)[0] for found in runs.values()):
        figures.append(_metric(study, runs, told, key))
    return figures


def _best_so_far(study: Study, arm: Arm) -> Sequence[Run]:
    """Runs of the setting with the lowest mean validation loss among those that trained."""
    found = []
    for _, runs in study.tuned(arm):
        losses = [
            run["scores"]["validation"]["loss"] for run in runs if run["status"] == "complete"
        ]
        if losses and len(losses) == len(runs):
            found.append((sum(losses) / len(losses), runs))
    return min(found, key=lambda pair: pair[0])[1] if found else []


def _loss(runs: dict[Arm, Sequence[Run]], told: str) -> Figure:
    traces: list[Trace] = []
    everything: list[float] = []
    for arm, found in runs.items():
        for key, name, dash in (
            ("validation_loss", "validation", "solid"),
            ("train_loss", "training", "dot"),
        ):
            x, rows = _by_epoch(found, key)
            everything += [value for row in rows for value in row]
            if dash == "solid":
                traces.append(_band(x, rows, arm))
            traces.append(
                line(
                    f"{arm.label}, {name}",
                    x,
                    [mean(row) for row in rows],
                    arm.colour,
                    mode=_mode(x),
                    line={"dash": dash},
                    hovertemplate="%{y:.4g}",
                )
            )
    return Figure(
        "loss",
        _ends(runs, "validation_loss", Scale("loss"), "Validation loss after the last epoch"),
        f"Solid: on the validation split; dotted: on the training data. Each line is the {told}.",
        traces,
        layout(
            axis("epoch", rangemode="tozero"),
            log_axis("loss", everything) if min(everything) > 0 else axis("loss"),
            hovermode="x unified",
        ),
    )


def _metric(study: Study, runs: dict[Arm, Sequence[Run]], told: str, key: str) -> Figure:
    scale, traces = study.scale, []
    for arm, found in runs.items():
        x, rows = _by_epoch(found, key)
        rows = [[value * scale.factor for value in row] for row in rows]
        if not rows:
            continue
        traces += [
            _band(x, rows, arm),
            line(
                arm.label,
                x,
                [mean(row) for row in rows],
                arm.colour,
                mode=_mode(x),
                hovertemplate="%{y:.4g}",
            ),
        ]
    return Figure(
        "metric",
        _ends(runs, key, scale, f"Validation {scale.label} after the last epoch"),
        f"Each line is the {told}. The test split is not looked at on the way.",
        traces,
        layout(
            axis("epoch", rangemode="tozero"),
            axis(f"validation {scale.title}"),
            hovermode="x unified",
        ),
    )


def _mode(x: Sequence[float]) -> str:
    """With points, where a line would be too short to see."""
    return "lines" if len(x) > 3 else "lines+markers"


def _band(x: Sequence[float], rows: Sequence[Sequence[float]], arm: Arm) -> Trace:
    return band(x, [min(row) for row in rows], [max(row) for row in rows], arm.colour)


def _by_epoch(runs: Sequence[Run], key: str) -> tuple[list[float], list[list[float]]]:
    """Epochs, and at each the values of the runs that came so far."""
    found: dict[float, list[float]] = {}
    for run in runs:
        for row in run["curve"]:
            if row.get(key) is not None:
                found.setdefault(row["epoch"], []).append(row[key])
    epochs = sorted(found)
    every = max(1, len(epochs) // MOST_POINTS)
    epochs = [*epochs[:-1:every], *epochs[-1:]]
    return epochs, [found[epoch] for epoch in epochs]


def _ends(runs: dict[Arm, Sequence[Run]], key: str, scale: Scale, what: str) -> str:
    ends = []
    for arm, found in runs.items():
        last = [row[key] for run in found for row in run["curve"][-1:] if row.get(key) is not None]
        if last:
            ends.append(f"{scale.show(mean(last))} for {arm.label}")
    return f"{what}: {listed(ends)}" if ends else what
