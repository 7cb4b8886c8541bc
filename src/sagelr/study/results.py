"""results.json: everything a study has found so far, assembled from its queues alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import sagelr
from sagelr import provenance
from sagelr.recipe import Recipe, Setting
from sagelr.study import statistics
from sagelr.study.plan import Tuned
from sagelr.tasks import Metric
from sagelr.train import Run, name_of

SCHEMA = 1
LOSS = Metric("loss", greater_is_better=False)


def assemble(
    recipe: Recipe,
    *,
    about: Mapping[str, Any],
    status: str,
    total: int,
    runs: Mapping[str, dict[str, Any]],
    arms: Mapping[str, Tuned],
    chosen: Mapping[str, Setting] | None,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """The whole document.

    Args:
        recipe: as validated.
        about: id, created, command, overrides, quick, machine, versions, data, looks, planned.
        status: "tuning", "reporting" or "complete".
        total: runs of the plan as it stands.
        runs: key → entry of every run that is finished or failed.
        arms: each arm after what tuning has shown so far.
        chosen: setting of each arm, once tuning is done.
        seeds: those that arms are compared on.
    """
    shown = recipe.to_json() | {"metric": recipe.score.to_json()}
    shown["study"]["report_seeds"] = len(seeds)
    comparisons = compare(recipe, runs, chosen, seeds) if chosen else []
    lost = unpaired(recipe, runs, chosen, seeds) if chosen else []
    return {
        "schema": SCHEMA,
        "id": about["id"],
        "sagelr": sagelr.__version__,
        "created": about["created"],
        "updated": provenance.now(),
        "status": status,
        "quick": about["quick"],
        "progress": {"done": len(runs), "total": max(total, len(runs))},
        "command": about["command"],
        "recipe": shown,
        "selector": selector(recipe).to_json(),
        "overrides": {key: _in_force(shown, key, at) for key, at in about["overrides"].items()},
        "machine": about["machine"],
        "versions": about["versions"],
        "data": about["data"],
        "arms": {
            name: {
                "label": arm.label,
                "role": arm.role,
                "base": arm.base,
                "optimizer": arm.optimizer,
                "options": arm.options,
                "grid": arms[name].grid,
            }
            for name, arm in recipe.chosen_arms().items()
        },
        "runs": [runs[key] for key in sorted(runs)],
        "tuning": {
            name: _tuning(recipe, name, tuned, runs, (chosen or {}).get(name))
            for name, tuned in arms.items()
        },
        "comparison": comparisons[0] if comparisons else None,
        "comparisons": comparisons,
        **({"unpaired": lost} if lost else {}),
        "looks": about["looks"],
        **({"planned": about["planned"]} if about["planned"] > len(seeds) else {}),
    }


def _in_force(recipe: Mapping[str, Any], key: str, first: Any) -> Any:
    """The value of a setting by its dotted name: a study may go on with more than it began with."""
    value: Any = recipe
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return first
        value = value[part]
    return value


def selector(recipe: Recipe) -> Metric:
    """The validation score that settings are chosen by."""
    by = recipe.study.select_by
    return LOSS if by == LOSS.name else recipe.family.metrics[by]


def value_of(recipe: Recipe, result: Mapping[str, Any]) -> float | None:
    """What tuning minimises of a run: inf where it diverged, None where it failed."""
    if result["status"] == "failed":
        return None
    if result["status"] == "diverged":
        return float("inf")
    by = selector(recipe)
    value = result["scores"]["validation"][by.name]
    return -value if by.greater_is_better else value


def failed(run: Run, reason: str) -> dict[str, Any]:
    """The entry of a run without a result."""
    return {
        "key": run.key,
        "stage": run.stage,
        "arm": run.arm,
        "setting": run.setting,
        "seed": run.seed,
        "status": "failed",
        "error": reason,
        "scores": {"validation": None, "test": None, "train": None},
        "curve": [],
        "options": {},
        "seconds": None,
        "peak_memory_mib": None,
        "started": None,
        "sagelr": sagelr.__version__,
        "sage": None,
    }


def _tuning(
    recipe: Recipe,
    name: str,
    tuned: Tuned,
    runs: Mapping[str, dict[str, Any]],
    chosen: Setting | None,
) -> dict[str, Any]:
    """One arm's settings with their scores."""
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for run in runs.values():
        if run["stage"] == "tune" and run["arm"] == name:
            by_setting.setdefault(name_of(run["setting"]), []).append(run)
    settings = []
    for found in by_setting.values():
        found = sorted(found, key=lambda run: run["seed"])
        complete = [run["scores"]["validation"] for run in found if run["status"] == "complete"]
        # A mean over the seeds that went well would make a setting look safer than it is.
        whole = bool(complete) and len(complete) == len(found)
        # Where the loss chooses, what must be decoded, such as BLEU, is left out of tuning.
        scored = whole and all(recipe.metric in scores for scores in complete)
        settings.append(
            {
                "setting": found[0]["setting"],
                "values": [scores[recipe.study.select_by] for scores in complete],
                "mean": _mean([s[recipe.study.select_by] for s in complete]) if whole else None,
                "score_mean": _mean([s[recipe.metric] for s in complete]) if scored else None,
                "failed": len(found) - len(complete),
            }
        )
    return {
        "settings": sorted(settings, key=lambda entry: list(entry["setting"].values())),
        "chosen": chosen,
        "on_edge": tuned.on_edge if chosen else False,
        "extended": list(tuned.extended),
        "placed_at": tuned.placed_at,
    }


def compare(
    recipe: Recipe,
    runs: Mapping[str, dict[str, Any]],
    chosen: Mapping[str, Setting],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Every sage arm against its base, paired by seed; nothing for a pair with under two seeds.

    The more sage arms a base is compared with, the likelier one of them looks better by chance:
    their entries then have `p_holm` as well, their p-value corrected for all of them, those of
    `unpaired` too.
    """
    found = [
        _compare(recipe, runs, chosen, seeds, base, sage) for base, sage in recipe.chosen_pairs()
    ]
    entries = [entry for entry in found if entry is not None]
    lost = unpaired(recipe, runs, chosen, seeds)
    for base in recipe.chosen_arms():
        same = [entry for entry in entries if entry["base"] == base]
        without = sum(entry["base"] == base for entry in lost)
        if len(same) + without > 1:
            p_values = [entry["difference"]["p_value"] for entry in same]
            known = [1.0 if p is None else p for p in p_values]
            corrected = statistics.holm([*known, *[1.0] * without])[: len(same)]
            for entry, own, p_value in zip(same, p_values, corrected, strict=True):
                if own is not None:
                    entry |= {"p_holm": p_value, "holm_of": len(same) + without}
    return entries


def unpaired(
    recipe: Recipe,
    runs: Mapping[str, dict[str, Any]],
    chosen: Mapping[str, Setting],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Sage arms and bases whose report runs have all ended, under two of both with a score."""
    found = []
    for base, sage in recipe.chosen_pairs():
        sides = {name: _reported(runs, name, chosen[name], seeds) for name in (base, sage)}
        scored = [
            {seed for seed, run in side.items() if run["status"] == "complete"}
            for side in sides.values()
        ]
        ended = all(len(side) == len(seeds) for side in sides.values())
        if ended and len(seeds) > 1 and len(scored[0] & scored[1]) < 2:
            found.append({"base": base, "sage": sage, "settles": _unscored(recipe, sides)})
    return found


def _unscored(recipe: Recipe, sides: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """How many runs of two arms ended without a score, and what to do about it."""
    told = " and ".join(
        f"{sum(run['status'] != 'complete' for run in side.values())} of {len(side)} runs of "
        f"{recipe.arms[name].label}"
        for name, side in sides.items()
    )
    return (
        f"{told} did not end with a score. What is left cannot decide; a lower lr, or finding out "
        "why they ended, comes first."
    )


def _compare(
    recipe: Recipe,
    runs: Mapping[str, dict[str, Any]],
    chosen: Mapping[str, Setting],
    seeds: Sequence[int],
    base: str,
    sage: str,
) -> dict[str, Any] | None:
    sides = {name: _reported(runs, name, chosen[name], seeds) for name in (base, sage)}
    complete = {
        name: {seed: run for seed, run in found.items() if run["status"] == "complete"}
        for name, found in sides.items()
    }
    paired = [seed for seed in seeds if all(seed in found for found in complete.values())]
    if len(paired) < 2:
        return None
    scores = {
        name: [complete[name][seed]["scores"]["test"][recipe.metric] for seed in paired]
        for name in sides
    }
    entry = statistics.compare(
        scores[base],
        scores[sage],
        margin=recipe.study.margin,
        greater_is_better=recipe.score.greater_is_better,
    )
    if examples := _examples(scores, {name: complete[name] for name in sides}, paired):
        interval = statistics.with_other_examples(examples[base], examples[sage])
        entry["examples_ci95"] = list(interval)
    failed = {name: len(sides[name]) - len(complete[name]) for name in sides}
    if failed[base] or failed[sage]:
        # The seeds that are left are those on which both went well: they say nothing of the rest.
        entry |= {
            "verdict": "inconclusive",
            "seeds_needed": None,
            "settles": _unscored(recipe, sides),
        }
    return {
        "base": base,
        "sage": sage,
        "metric": recipe.metric,
        "seeds": paired,
        "arms": {name: statistics.summary(values) for name, values in scores.items()},
        **entry,
        "failed": failed,
        "cost": {name: _cost([complete[name][seed] for seed in paired]) for name in sides},
    }


def _examples(
    scores: Mapping[str, Sequence[float]],
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]],
    seeds: Sequence[int],
) -> dict[str, list[list[float]]] | None:
    """What each test example scored, arm → seed by seed; None if that is not what the score is."""
    found = {
        name: [by_seed[seed].get("examples") or [] for seed in seeds]
        for name, by_seed in runs.items()
    }
    for name, rows in found.items():
        for row, score in zip(rows, scores[name], strict=True):
            if not row or not math.isclose(sum(row) / len(row), score, abs_tol=1e-6):
                return None  # not recorded, or not a mean over examples, as F1 is none
    return found


def _reported(
    runs: Mapping[str, dict[str, Any]], arm: str, setting: Setting, seeds: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """Report runs of one arm at its chosen setting, by seed."""
    return {
        run["seed"]: run
        for run in runs.values()
        if run["stage"] == "report"
        and run["arm"] == arm
        and run["setting"] == setting
        and run["seed"] in seeds
    }


def _cost(runs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    return {
        key: _mean([run[key] for run in runs if run[key] is not None])
        for key in ("seconds", "peak_memory_mib")
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
