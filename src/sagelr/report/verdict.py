"""What a study says, in plain words: the verdict, and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sagelr.report.advice import Step, after, failures
from sagelr.report.study import Arm, Study
from sagelr.report.wording import count, p_value, setting


@dataclass(frozen=True)
class Fact:
    """A number that matters, its name and what it is made of."""

    name: str
    value: str
    about: str
    colour: str | None = None


@dataclass(frozen=True)
class Verdict:
    """One comparison, or the state of a study that has none yet.

    Attributes:
        kind: better, worse, equivalent, inconclusive, or pending.
        headline: the verdict in one sentence.
        sentence: what it rests on.
        facts: the numbers that matter.
        steps: what to try next.
        comparison: entry of results.json.
    """

    kind: str
    headline: str
    sentence: str
    facts: list[Fact] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    comparison: Mapping[str, Any] | None = None


def verdicts(study: Study) -> list[Verdict]:
    """One for each comparison; one that says how far the study is, if there is none."""
    told = [_verdict(study, found) for found in study.comparisons]
    told += [_without_scores(study, found) for found in study.unpaired]
    return told or [_pending(study)]


# -- nothing to compare yet ---------------------------------------------------------------------


def _pending(study: Study) -> Verdict:
    done, total = (study.data["progress"][key] for key in ("done", "total"))
    so_far = f"{count(done, 'run')} of {total:,} {'is' if done == 1 else 'are'} finished."
    match study.data["status"]:
        case "tuning":
            return Verdict(
                "pending",
                "Still tuning: no verdict yet.",
                f"{so_far} Every arm is tried at several settings first, so that each is compared "
                "at its own best. Reload this page for news.",
            )
        case "reporting":
            return Verdict(
                "pending",
                "The arms are tuned; the comparison has begun.",
                f"{so_far} A verdict takes two seeds of both arms. Reload this page for news.",
            )
    return Verdict(
        "pending",
        "There is nothing to compare here.",
        "A verdict takes a sage arm, the base arm it names, and two seeds of both that ended with "
        "a score.",
        steps=failures(study),
    )


def _without_scores(study: Study, found: Mapping[str, Any]) -> Verdict:
    """Of two arms of which too few report runs ended with a score."""
    sage, base = study.by_name[found["sage"]], study.by_name[found["base"]]
    return Verdict(
        "inconclusive",
        f"No comparison of {sage.label} with {base.label}: too few runs ended with a score.",
        found["settles"],
        steps=failures(study),
    )


# -- a comparison -------------------------------------------------------------------------------


def _verdict(study: Study, found: Mapping[str, Any]) -> Verdict:
    sage, base = study.by_name[found["sage"]], study.by_name[found["base"]]
    headline, sentence = _headline(study, found, sage, base), _sentence(study, found, sage, base)
    if study.data["quick"]:
        headline = "A smoke run: it ran through, and proves nothing."
        sentence = (
            "It was made with --quick: far less training and fewer seeds than the recipe asks for. "
            f"The figures show that everything works, and nothing about {sage.label}."
        )
    elif not study.finished:
        n = study.data["recipe"]["study"]["report_seeds"]
        headline = f"After {found['n']} of {n} seeds: {headline}"
    return Verdict(
        found["verdict"],
        headline,
        sentence,
        _facts(study, found, sage, base),
        after(study, found),
        found,
    )


def _headline(study: Study, found: Mapping[str, Any], sage: Arm, base: Arm) -> str:
    by = study.scale.amount(found["difference"]["mean"])
    match found["verdict"]:
        case "better":
            return f"{sage.label} is better than {base.label}, by {by} of test {study.scale.label}."
        case "worse":
            return f"{sage.label} is worse than {base.label}, by {by} of test {study.scale.label}."
        case "equivalent" if found["significant"]:
            return f"No difference that matters: {sage.label} and {base.label} score nearly alike."
        case "equivalent":
            return f"No difference found: {sage.label} and {base.label} score alike."
    if any(found["failed"].values()):
        return "Undecided: some runs did not end with a score."
    both = f"{sage.label} and {base.label}"
    return f"Undecided: a difference between {both} is neither shown nor ruled out."


def _sentence(study: Study, found: Mapping[str, Any], sage: Arm, base: Arm) -> str:
    scale, gap = study.scale, found["difference"]
    means = {arm: found["arms"][arm.name]["mean"] for arm in (sage, base)}
    low, high = (scale.change(value, unit=False) for value in gap["ci95"])
    told = (
        f"Each at its own best setting, {sage.label} reaches {scale.show(means[sage])} test "
        f"{scale.label} and {base.label} {scale.show(means[base])}, averaged over "
        f"{count(found['n'], 'fresh seed')}"
    )
    if not scale.greater_is_better:
        told += " (lower is better)"
    interval = "" if alike(found) else f" (95% interval {low} to {high})"
    told += f". The difference of {scale.change(gap['mean'])}{interval} "
    margin = scale.margin(found["margin"])
    match found["verdict"]:
        case "better" | "worse":
            chance = p_value(gap["p_value"])
            chance = f"p {chance}" if chance.startswith("<") else f"p = {chance}"
            told += f"is more than chance would explain ({chance})"
            if abs(gap["mean"]) < found["margin"]:
                told += f", though it may be smaller than the {margin} the recipe calls relevant"
            return told + "."
        case "equivalent":
            if found["significant"]:
                told += f"is real, but smaller than the {margin} that would matter here: "
            else:
                told += "is not told apart from none, and any that matters is ruled out: "
            low, high = (scale.change(value, unit=False) for value in gap["ci90"])
            return told + (
                f"its 90% interval, {low} to {high}, lies within the margin of {margin} that was "
                "set before any run."
            )
    if any(found["failed"].values()):
        return (
            told + f"leaves those runs out and decides nothing. {found['settles'] or ''}".rstrip()
        )
    if alike(found):
        return f"{told}is the same for every seed. {found['settles'] or ''}".rstrip()
    return (
        f"{told}includes zero, and reaches beyond the margin of {margin}. A true difference of "
        f"{scale.amount(found['smallest_detectable'])} would have been found in four cases "
        "out of five; a smaller one may have been missed."
    )


def alike(found: Mapping[str, Any]) -> bool:
    """Whether a comparison is open because its few differences are all alike, without a spread."""
    return found["verdict"] == "inconclusive" and found["difference"].get("sd") == 0


def _facts(study: Study, found: Mapping[str, Any], sage: Arm, base: Arm) -> list[Fact]:
    scale, gap = study.scale, found["difference"]
    low, high = (scale.change(value, unit=False) for value in gap["ci95"])
    facts = [
        Fact(
            arm.label,
            scale.show(found["arms"][arm.name]["mean"]),
            f"test {scale.label} at {setting(arm.chosen)}",
            arm.colour,
        )
        for arm in (sage, base)
    ]
    if alike(found):
        about = f"the same for each of {count(found['n'], 'seed')}: no interval can be told"
        return [*facts, Fact("Difference", scale.change(gap["mean"]), about)]
    facts.append(Fact("Difference", scale.change(gap["mean"]), f"95% interval {low} to {high}"))
    facts.append(
        Fact(
            "Smallest detectable",
            scale.amount(found["smallest_detectable"]),
            f"with {count(found['n'], 'seed')}, four times out of five",
        )
    )
    return facts
