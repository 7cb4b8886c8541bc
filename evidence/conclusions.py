"""What follows from the results, in words, and no more than they say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import multiplier
import redundancy
from published import (
    CONTROLS,
    TIERS,
    Row,
    against_sage,
    controls,
    corrected,
    gap,
    interval,
    load,
    near,
    run_rows,
    variants,
    with_variants,
)

from sagelr.report.caveats import far_apart
from sagelr.report.study import Study
from sagelr.study.statistics import LEVEL, Difference

CONTROL = "control: "  # how their labels begin
APART = "not shown to differ"
NEAR = "with SAGE's grid from its base's best lr up"
SAID = {
    "better": "SAGE is better than its tuned base",
    "worse": "SAGE is worse than its tuned base",
    "equivalent": "the two are equivalent within the margin",
    "inconclusive": "a difference is neither shown nor ruled out",
}


def conclusions(rows: Sequence[Row]) -> Iterator[str]:
    """Of the primary contrasts first, then what the rest says about them."""
    yield "## What follows from it\n"
    found = [(tier, *each) for tier in TIERS for each in run_rows(tier, rows)]
    missing = len(TIERS) * len(rows) - len(found)
    if not found:
        yield "Nothing yet: no row has been run.\n"
        return
    for verdict, said in SAID.items():
        titles = [
            f"{row['title']} with {data['arms'][entry['base']]['label']} (tier {tier}"
            f"{but_for_holm(tier, rows, row, verdict)})"
            for tier, row, data, entry in found
            if entry["verdict"] == verdict
        ]
        if titles:
            yield f"- **{verdict.capitalize()}**: {said} on {len(titles)}: {'; '.join(titles)}."
    yield f"- {missing} of {len(TIERS) * len(rows)} rows have not been run: nothing is known there."
    verdicts = {entry["verdict"] for *_, entry in found}
    if "better" not in verdicts:
        yield (
            "- So far no run supports a general claim that SAGE scores higher than its base when "
            "both are tuned alike."
        )
    if "worse" not in verdicts:
        yield "- Nor was it worse anywhere, at the settings that tuning chose."
    yield f"- **With which lr and β0**: {chosen([ran for _, *ran in found])}"
    for tier, row, data, entry in found:
        yield from when(tier, row, data, entry)
    for tier, row, _, _ in found:
        yield from why(tier, row)
    looks = [multiplier.seen(data, entry["sage"], entry["base"]) for _, _, data, entry in found]
    favour = sorted(look.least / look.most for look in looks if look is not None)
    if favour:
        yield (
            "- The mean multiplier of the least sensitive fifth of the parameters was "
            f"{favour[0]:.2f} to {favour[-1]:.2f} times that of the most sensitive fifth: 1 would "
            "be no difference."
        )
    for tier, row, data, entry in found:
        if redundancy.audits(data):
            pairs = load(tier, row["task"], "matched.json")
            all_controls = load(tier, f"{row['task']}{CONTROLS}")
            said = redundancy.conclusion(data, pairs, all_controls, entry["sage"], entry["base"])
            yield f"- {row['title']} (tier {tier}): {said}."
    yield ""


def but_for_holm(tier: str, rows: Sequence[Row], row: Row, verdict: str) -> str:
    """What is to be said of a difference that does not outlast the correction for all rows."""
    p_value = corrected(tier, rows)[row["task"]]
    lost = verdict in ("better", "worse") and p_value >= LEVEL
    return f"; not after Holm's correction, p {p_value:.2g}" if lost else ""


def chosen(found: Sequence[Sequence[Any]]) -> str:
    """What tuning chose for SAGE, by what came of it."""
    told = []
    for verdict in SAID:
        settings = [
            (data["tuning"][entry["sage"]]["chosen"], data["tuning"][entry["base"]]["chosen"])
            for _, data, entry in found
            if entry["verdict"] == verdict
        ]
        if settings:
            ratios = {round(sage["lr"] / base["lr"], 4) for sage, base in settings}
            betas = {sage["beta0"] for sage, _ in settings if "beta0" in sage}
            told.append(f"{listed(ratios)} times and β0 {listed(betas)} where it was {verdict}")
    return (
        f"the lr that tuning chose for SAGE was, in terms of its base's, {'; '.join(told)}. Tune "
        "lr, from the base's best upwards; do not carry it over."
    )


def when(tier: str, row: Row, data: dict[str, Any], entry: dict[str, Any]) -> Iterator[str]:
    """The row and its variants."""
    scale = data["recipe"]["metric"]["scale"]
    told = [
        f"{conditions}: {gap(other, scale)}, {other['verdict']}"
        for _, conditions, (_, _, other) in variants(tier, row)
    ]
    own = f"as the row has it {gap(entry, scale)}, {entry['verdict']}"
    if (found := near(tier, row)) is not None:
        own += f"; {NEAR} {gap(found[2], scale)}, {found[2]['verdict']}"
    if told:
        yield (
            f"- **When**, {row['title']} (tier {tier}): {own}; tuned anew with "
            f"{'; with '.join(told)}. Descriptive."
        )


def why(tier: str, row: Row) -> Iterator[str]:
    """What controls came to against SageAdamW, of the row and of its variants, where it won."""
    for shown, (whole, _, own) in with_variants(tier, row):
        told = sides(tier, whole["task"]) if own["verdict"] == "better" else {}
        if told:
            yield (
                f"- **Why**, {row['title']}{shown} (tier {tier}): against SageAdamW, on the same "
                "seeds, of the controls, each tuned as it was, "
                + "; ".join(f"{side}: {', '.join(lines)}" for side, lines in told.items())
                + ". Descriptive."
            )


def sides(tier: str, whole: str) -> dict[str, list[str]]:
    """Controls of a row or variant by where their interval against SageAdamW lies."""
    told: dict[str, list[str]] = {side: [] for side in ("ahead", APART, "behind")}
    scale = load(tier, whole)["recipe"]["metric"]["scale"]
    for side, name, found in against(tier, whole):
        told[side].append(f"*{name}* {interval(found.mean, found.ci95, scale)}")
    return {side: lines for side, lines in told.items() if lines}


def against(tier: str, whole: str) -> Iterator[tuple[str, str, Difference]]:
    """Side, name and difference from SageAdamW of every control of a row or variant."""
    for data in (data for group in controls(tier, whole) for _, data in group):
        for entry in data["comparisons"]:
            label, found = data["arms"][entry["sage"]]["label"], against_sage(data, entry)
            if found is not None and label.startswith(CONTROL):
                low, high = found.ci95
                side = "ahead" if low > 0 else "behind" if high < 0 else APART
                yield side, label.removeprefix(CONTROL), found


def remarks(tier: str, row: Row, data: dict[str, Any]) -> Iterator[str]:
    """What to bear in mind of a row's tuning."""
    for arm in (row["base"], row["sage"]):
        tuned = data["tuning"][arm]
        if tuned["on_edge"]:
            yield (
                f"{row['title']}: {data['arms'][arm]['label']}'s best lr, "
                f"{tuned['chosen']['lr']:g}, was still at the end of its grid when it could be "
                "extended no more; a better one may lie beyond.\n"
            )
    for told in far_apart(Study(data)):
        yield f"{row['title']}: {told}{since(tier, row)}\n"


def since(tier: str, row: Row) -> str:
    """What came of a grid that begins at the base's best lr, where that has been run."""
    if (found := near(tier, row)) is None:
        return ""
    study, data, entry = found
    lr = data["tuning"][entry["sage"]]["chosen"]["lr"]
    told = f"lr {lr:g}, {gap(entry, data['recipe']['metric']['scale'])}, {entry['verdict']}"
    return f" It has been run since, as `{study['task']}`: {told}."


def listed(values: set[float]) -> str:
    """In order: 0.6 or 0.8; 1, 2 or 4."""
    *others, last = (f"{value:g}" for value in sorted(values))
    return f"{', '.join(others)} or {last}" if others else last
