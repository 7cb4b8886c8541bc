"""What a reader should bear in mind before believing a verdict."""

from __future__ import annotations

from sagelr.report.study import Arm, Study, mean, spread, test, validation
from sagelr.report.wording import count, listed, p_value, setting

ENOUGH, UNEVEN = 5, 5.0  # seeds, and how many times as large a standard deviation is told
CLOSE = 3  # arms, and settings of each, that are named


def caveats(study: Study) -> list[str]:
    """What a reader should know before believing the verdict."""
    data = study.data
    told = []
    told += _many(study)
    told += _other_examples(study)
    if len(set(data["looks"])) > 1:
        told.append(
            f"The report was read more than once, at {listed([str(n) for n in data['looks']])} "
            "seeds. Adding seeds after a look makes a chance find likelier than the p-value says."
        )
    if (planned := data.get("planned", 0)) > data["recipe"]["study"]["report_seeds"]:
        told.append(
            f"{planned} seeds were asked for at first, and the study was ended with fewer after "
            "results could be seen. Stopping where the numbers please makes a chance find likelier "
            "than the p-value says."
        )
    for arm in study.arms:
        if data["tuning"].get(arm.name, {}).get("on_edge") and not data["quick"]:
            told.append(
                f"The best lr of {arm.label} is still at the end of its grid: a better one may lie "
                "beyond, so that it may be compared below its best."
            )
    told += far_apart(study)
    told += _uneven(study)
    if not study.on_one_machine(study.arms):
        told.append(
            "The arms' report runs were made on different machines (How it was made). Their times "
            "say nothing of each other, and a seed's runs differ in more than the optimizer, if "
            "only by rounding."
        )
    told += _close_calls(study)
    bad = [run for run in study.ended_badly() if run["stage"] == "tune"]
    if bad:
        told.append(
            f"{count(len(bad), 'tuning run')} diverged or failed. Their settings are marked under "
            "Learning rate, and were not chosen."
        )
    return told


def far_apart(study: Study) -> list[str]:
    """Arms that were not tried at the best lr of their base, and come out of tuning behind it."""
    score = study.scale_of(study.select_by)
    told = []
    for found in study.comparisons:
        arm, base = study.by_name[found["sage"]], study.by_name[found["base"]]
        if (apart := _apart(study, arm, base)) is None:
            continue
        rates, lr, own, theirs = apart
        bound = f"{min(rates):g} up" if lr < min(rates) else f"{max(rates):g} down"
        told.append(
            f"{arm.label} was tried from lr {bound} alone, and the best of {base.label} is "
            f"{lr:g}. Its validation {score.title} there is the worse one, "
            f"{score.show(own)} against {score.show(theirs)}, so that it may be compared far below "
            f"its best. A study of its own, with a grid that begins at {base.label}'s best lr, "
            "would tell."
        )
    return told


def is_far_apart(study: Study, arm: Arm, base: Arm) -> bool:
    """Whether an arm was not tried at the best lr of its base, and comes out behind it."""
    return _apart(study, arm, base) is not None


def _apart(study: Study, arm: Arm, base: Arm) -> tuple[list[float], float, float, float] | None:
    """For an arm that is far apart: lr tried, best lr of the base, scores of both; else None."""
    rates = [values["lr"] for values, _ in study.tuned(arm)]
    own, theirs = _chosen_score(study, arm), _chosen_score(study, base)
    if not rates or own is None or theirs is None or base.chosen is None or study.data["quick"]:
        return None
    lr = base.chosen["lr"]
    greater = study.scale_of(study.select_by).greater_is_better
    behind = own < theirs if greater else own > theirs
    return (rates, lr, own, theirs) if behind and not min(rates) <= lr <= max(rates) else None


def _chosen_score(study: Study, arm: Arm) -> float | None:
    """The mean validation score that an arm's setting was chosen by."""
    runs = next((runs for values, runs in study.tuned(arm) if values == arm.chosen), [])
    return mean(validation(runs, study.select_by))


def _uneven(study: Study) -> list[str]:
    """Arms whose runs differ far more from seed to seed than those of the other side."""
    told = []
    for found in study.comparisons:
        pair = [study.by_name[found[side]] for side in ("sage", "base")]
        scores = [test(study.reported(arm), study.scale.name) for arm in pair]
        if min(map(len, scores)) < ENOUGH:
            continue
        (small, steady), (large, shaky) = sorted(
            zip((spread(each) or 0.0 for each in scores), pair, strict=True), key=lambda at: at[0]
        )
        if small and large > UNEVEN * small:
            told.append(
                f"At its setting {shaky.label} trains well with some seeds and badly with others: "
                f"their standard deviation is {study.scale.amount(large)}, that of {steady.label} "
                f"{study.scale.amount(small)}. More tuning seeds would have shown that "
                "before it was chosen."
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
    count = len(study.comparisons) + len(study.unpaired)
    if count < 2:
        return []
    corrected = [
        f"{study.by_name[found['sage']].label} {p_value(found['p_holm'])}"
        for found in study.comparisons
        if "p_holm" in found
    ]
    told = (
        f"There are {count} comparisons on this page: the more there are, the "
        "likelier one of them is a chance find."
    )
    if corrected:
        told += f" After Holm's correction the p-values are: {', '.join(corrected)}."
    return [told]


def _other_examples(study: Study) -> list[str]:
    """The intervals with the test examples drawn anew, where they are known one by one."""
    told = []
    for found in study.comparisons:
        if "examples_ci95" in found:
            low, high = (study.scale.change(value, unit=False) for value in found["examples_ci95"])
            pair = f"{study.by_name[found['sage']].label} and {study.by_name[found['base']].label}"
            told.append((pair, f"{low} to {high}"))
    if not told:
        return []
    [(pair, interval), *more] = told
    would = f"interval for {pair} would be {interval}"
    if more:
        would = "intervals would be: " + "; ".join(f"{pair} {interval}" for pair, interval in told)
    return [
        "The 95% interval takes the test split as given. Had other examples of the same kind been "
        f"in it, the {would}."
    ]
