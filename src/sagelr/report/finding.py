"""What an audit says, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from sagelr.report.charts.pruning import by_key, keeps, manner, score_of
from sagelr.report.sides import Side
from sagelr.report.study import mean
from sagelr.report.verdict import Fact, Verdict
from sagelr.report.wording import Scale, listed, share

IDLE = (
    "A network holds many parameters that it hardly uses. This page measures how much the loss "
    "depends on each of them, its sensitivity, and how many can be set to zero before the score "
    "suffers."
)


def finding(sides: Sequence[Side], scale: Scale, split: str) -> Verdict:
    """The main thing about the models of an audit.

    Args:
        sides: the models.
        scale: how the metric is shown.
        split: that pruned models were scored on.
    """
    effective = [
        Fact(
            f"{side.label}: effective parameters",
            share(mean([each["effective_share"] for each in side.spreads])),
            "equal shares that would be as concentrated",
            side.colour,
        )
        for side in sides
    ]
    key, curves = next(iter(by_key(sides).items()), (None, []))
    if key is None or not curves:
        shares = [f"{fact.value} of the parameters of {side.label}" for fact, side in
                  zip(effective, sides, strict=True)]  # fmt: skip
        headline = f"Sensitivity is as concentrated as if {listed(shares)} held all of it."
        return Verdict("audit", headline, IDLE, effective)
    shown = score_of(curves[0][1][0], scale)
    reached = [keeps(each, shown) or 0.0 for _, each in curves]
    told = [
        f"{reach:.0%} of the weights{' of ' + side.label if len(sides) > 1 else ''}"
        for reach, (side, _) in zip(reached, curves, strict=True)
    ]
    facts = [
        Fact(
            f"{side.label}: can go",
            f"{reach:.0%}",
            f"with 99% of the {split} {shown.label} kept",
            side.colour,
        )
        for reach, (side, _) in zip(reached, curves, strict=True)
    ]
    return Verdict(
        "audit",
        f"{listed(told)} can go, and 99% of the {shown.label} stays.",
        f"{IDLE} Counted here are the weights of attention and feed-forward. {manner(key)}",
        [*facts, *effective],
    )
