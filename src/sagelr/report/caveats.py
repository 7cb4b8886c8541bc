"""What a reader should bear in mind before believing a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sagelr.report.study import Arm, Study, validation
from sagelr.report.wording import count, listed, p_value, setting

CLOSE = 3  # arms, and settings of each, that are named


def caveats(study: Study) -> list[str]:
    """What a reader should know before believing the verdict."""
    data = study.data
    told = []
    told += _many(study)
    told += [line for found in study.comparisons for line in _other_examples(study, found)]
    if len(set(data["looks"])) > 1:
        told.append(
            f"The report was read more than once, at {listed([str(n) for n in data['looks']])} "
            "seeds. Adding seeds after a look makes a chance find likelier than the p-value says."
        )
    for arm in study.arms:
        if data["tuning"].get(arm.name, {}).get("on_edge") and not data["quick"]:
            told.append(
                f"The best lr of {arm.label} is still at the end of its grid: a better one may lie "
                "beyond, so that it may be compared below its best."
            )
    told += _close_calls(study)
    bad = [run for run in study.ended_badly() if run["stage"] == "tune"]
    if bad:
        told.append(
            f"{count(len(bad), 'tuning run')} diverged or failed. Their settings are marked under "
            "Learning rate, and were not chosen."
        )
    return told


def _close_calls(study: Study) -> list[str]:
    """Arms of which another setting was ahead of the chosen one on some of the tuning seeds."""
    found = {arm: ahead for arm in study.arms if (ahead := _ahead(study, arm))}
    if not found or study.data["quick"]:
        return []
    if len(found) > CLOSE:
        whose = f"for {len(found)} of the {len(study.arms)} arms"
    else:
        whose = listed([f"for {arm.label} ({_some(ahead)})" for arm, ahead in found.items()])
    return [
        "Settings were chosen by their mean over the tuning seeds. On one of these seeds or "
        f"another a setting that was not chosen did better, {whose}. What hangs on the setting, "
        "such as multipliers and redundancy, may come out otherwise in another study."
    ]


def _ahead(study: Study, arm: Arm) -> list[str]:
    """Settings that did better than the chosen one on some of the tuning seeds."""
    by = study.select_by
    sign = 1 if study.scale_of(by).greater_is_better else -1
    scores = {
        tuple(values.items()): {
            run["seed"]: sign * score for run in runs for score in validation([run], by)
        }
        for values, runs in study.tuned(arm)
    }
    best = scores.pop(tuple((arm.chosen or {}).items()), {})
    return [
        setting(dict(values))
        for values, found in scores.items()
        if any(found[seed] > best[seed] for seed in found.keys() & best.keys())
    ]


def _some(settings: list[str]) -> str:
    """A few of them by name."""
    more = len(settings) - CLOSE
    return "; ".join([*settings[:CLOSE], *([f"{more} more"] if more > 0 else [])])


def _many(study: Study) -> list[str]:
    """Several comparisons: what is left of each p-value."""
    if len(study.comparisons) < 2:
        return []
    corrected = [
        f"{study.by_name[found['sage']].label} {p_value(found['p_holm'])}"
        for found in study.comparisons
        if "p_holm" in found
    ]
    told = (
        f"There are {len(study.comparisons)} comparisons on this page: the more there are, the "
        "likelier one of them is a chance find."
    )
    if corrected:
        told += f" After Holm's correction the p-values are: {', '.join(corrected)}."
    return [told]


def _other_examples(study: Study, found: Mapping[str, Any]) -> list[str]:
    """The interval with the test examples drawn anew, where they are known one by one."""
    if "examples_ci95" not in found:
        return []
    low, high = (study.scale.change(value, unit=False) for value in found["examples_ci95"])
    pair = f"{study.by_name[found['sage']].label} and {study.by_name[found['base']].label}"
    return [
        "The 95% interval takes the test split as given. Had other examples of the same kind been "
        f"in it, the interval for {pair} would be {low} to {high}."
    ]
