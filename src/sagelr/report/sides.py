"""What stands beside each other in an audit: the models of audit.json, or the arms of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sagelr.report.study import BASES, SAGES, Study


@dataclass(frozen=True)
class Side:
    """One side, and all that was measured of it.

    Attributes:
        label: what it is called on the page.
        colour: name of a colour in page.css.
        symbol: Plotly's marker.
        losses: mean loss that sensitivity was measured at; one a seed.
        layers: name → mean sensitivity; one mapping a seed.
        kinds: the same by kind of module; empty where it was not measured.
        spreads: gini, effective_share, share_below; one a seed.
        curves: pruning curves; one list a seed.
        detail: an entry of `models` in audit.json; None for an arm of a study.
        histograms: of all parameters; one a seed.
    """

    label: str
    colour: str
    symbol: str
    losses: Sequence[float]
    layers: Sequence[Mapping[str, float]]
    spreads: Sequence[Mapping[str, Any]]
    curves: Sequence[Sequence[Mapping[str, Any]]]
    histograms: Sequence[Mapping[str, Any]]
    kinds: Sequence[Mapping[str, float]] = field(default_factory=list)
    detail: Mapping[str, Any] | None = None

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return sum(self.losses) / len(self.losses)


def of_study(study: Study) -> list[Side]:
    """Arms whose report runs carry an audit."""
    sides = []
    for arm in study.arms:
        found = [run["audit"] for run in study.reported(arm) if run.get("audit")]
        if found:
            sides.append(
                Side(
                    arm.label,
                    arm.colour,
                    arm.symbol,
                    [each["loss"] for each in found],
                    [_means(each["layers"], "sensitivity") for each in found],
                    found,
                    [each["curves"] for each in found],
                    [each["histogram"] for each in found],
                )
            )
    return sides


def of_audit(audit: Mapping[str, Any]) -> list[Side]:
    """The models of an audit, in the colours of their arms where those are known."""
    sides = []
    for place, model in enumerate(audit["models"]):
        found = model["sensitivity"]
        colour, symbol = _looks(audit, place)
        sides.append(
            Side(
                model["label"],
                colour,
                symbol,
                [found["loss"]],
                [_means(found["layers"], "mean")],
                [found["all"]],
                [model["pruning"]["curves"] if model["pruning"] else []],
                [found["all"]["histogram"]],
                [_means(found["kinds"], "mean")],
                model,
            )
        )
    return sides


def matched(audit: Mapping[str, Any], sides: Sequence[Side]) -> list[Side]:
    """Two models as they were at matched loss; empty where none was found."""
    found = (audit["comparison"] or {}).get("matched") or []
    return [
        replace(
            sides[each["model"]],
            losses=[each["loss"]],
            layers=[each["layers"]],
            kinds=[],
            detail=None,
        )
        for each in found
    ]


def _means(groups: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    return {group["name"]: group[key] for group in groups}


def _looks(audit: Mapping[str, Any], place: int) -> tuple[str, str]:
    """Colour and marker: that of the role of its arm, unless two models share it."""
    arms = audit["recipe"].get("arms", {})
    roles = [arms.get(model.get("arm"), {}).get("role") for model in audit["models"]]
    if set(roles) == {"base", "sage"} or (len(roles) == 1 and roles[0]):
        return BASES[0] if roles[place] == "base" else SAGES[0]
    return (BASES[0], SAGES[0])[place % 2]
