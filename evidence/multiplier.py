"""What SAGE's multiplier was in the report runs of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

LEAST, MOST = 0.2, 0.8  # quantiles of sensitivity: the least sensitive fifth, the most sensitive


@dataclass(frozen=True)
class Seen:
    """Means over the report runs of an arm; of the parameters that SAGE is on, weighted alike.

    Attributes:
        mean: multiplier, over the training.
        low, high: 5% and 95% quantiles within a layer, at the end.
        least, most: mean of the fifth of the parameters that is least and most sensitive, at the
            end.
        rate: lr times mean multiplier, over the base's lr.
    """

    mean: float
    low: float
    high: float
    least: float
    most: float
    rate: float


def seen(data: Mapping[str, Any], sage: str, base: str) -> Seen | None:
    """What the multiplier of an arm was; None where no run has noted it."""
    traces = [
        run["sage"]
        for run in data["runs"]
        if run["arm"] == sage and run["stage"] == "report" and run["sage"]
    ]
    if not traces:
        return None
    over_time = fmean(fmean(_at(trace, look) for look in trace["history"]) for trace in traces)
    low, high = (fmean(_quantile(trace, name) for trace in traces) for name in ("5", "95"))
    least = fmean(_within(trace, 0.0, LEAST) for trace in traces)
    most = fmean(_within(trace, MOST, 1.0) for trace in traces)
    ours, theirs = (data["tuning"][arm]["chosen"]["lr"] for arm in (sage, base))
    return Seen(over_time, low, high, least, most, over_time * ours / theirs)


def table(rows: Sequence[tuple[str, Seen]]) -> Iterator[str]:
    """Every row's figures."""
    yield (
        "| task | mean | 5% to 95% | least sensitive fifth | most sensitive fifth | "
        "lr × mean, of the base's lr |"
    )
    yield "|" + "---|" * 6
    for title, found in rows:
        yield (
            f"| {title} | {found.mean:.2f} | {found.low:.2f} to {found.high:.2f} | "
            f"{found.least:.2f} | {found.most:.2f} | {found.rate:.2f} |"
        )


def _at(trace: Mapping[str, Any], look: Mapping[str, Any]) -> float:
    """The mean multiplier at one look."""
    sizes = {layer["name"]: layer["parameters"] for layer in trace["layers"]}
    return fmean(look["multiplier"].values(), [sizes[name] for name in look["multiplier"]])


def _quantile(trace: Mapping[str, Any], name: str) -> float:
    layers = trace["layers"]
    return fmean(
        [layer["quantiles"][name] for layer in layers], [layer["parameters"] for layer in layers]
    )


def _within(trace: Mapping[str, Any], low: float, high: float) -> float:
    """The mean multiplier of the parameters between two quantiles of sensitivity."""
    slack = 1e-9
    return fmean(
        found["multiplier"]
        for found in trace["by_sensitivity"]
        if found["quantile"][0] >= low - slack and found["quantile"][1] <= high + slack
    )
