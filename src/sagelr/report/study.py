"""A study as the page looks at it: arms with their colours, and their runs sorted out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sagelr.report.wording import LOSS, Scale

Run = Mapping[str, Any]
Setting = Mapping[str, float]

# Names of colours in page.css and of Plotly's markers and dashes; a base arm and a sage arm never
# share one.
BASES = (("--base-1", "circle"), ("--base-2", "square"), ("--base-3", "cross"))
SAGES = (("--sage-1", "diamond"), ("--sage-2", "triangle-up"), ("--sage-3", "star"))

SPEED = ("processor", "vectors", "cores", "device")  # of a machine: what its times hang on


@dataclass(frozen=True, eq=False)
class Arm:
    """One arm, and how it is drawn.

    Attributes:
        name: in the recipe.
        label: what it is called on the page.
        role: "base", "sage" or "variant".
        base: the arm it is compared with.
        chosen: its setting after tuning.
        colour: name of a colour in page.css.
        symbol: Plotly's marker, so that colour is not all that tells arms apart.
    """

    name: str
    label: str
    role: str
    base: str | None
    chosen: Setting | None
    colour: str
    symbol: str


class Study:
    """results.json, sorted out.

    Attributes:
        data: the document.
        scale: how the metric is shown.
        arms: in the order of the recipe.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.scale = Scale.of(data["recipe"]["metric"])
        self.arms = _arms(data)
        self.by_name = {arm.name: arm for arm in self.arms}
        self.comparisons: list[Mapping[str, Any]] = data["comparisons"]
        self.unpaired: list[Mapping[str, Any]] = data.get("unpaired", [])

    @property
    def select_by(self) -> str:
        """The validation score that settings are chosen by."""
        return self.data["recipe"]["study"]["select_by"]

    @property
    def finished(self) -> bool:
        """Whether every run of the plan is there."""
        return self.data["status"] == "complete"

    def scale_of(self, score: str) -> Scale:
        """How a validation score is shown."""
        if score == self.scale.name:
            return self.scale
        selector = self.data.get("selector")  # files before it was kept have none
        if selector is not None and selector["name"] == score:
            return Scale.of(selector)
        return LOSS if score == LOSS.name else Scale(score)

    def reported(self, arm: Arm) -> list[Run]:
        """Runs that went well at the chosen setting with the seeds of the report, by seed."""
        found = [
            run
            for run in self.data["runs"]
            if run["stage"] == "report"
            and run["arm"] == arm.name
            and run["setting"] == arm.chosen
            and run["status"] == "complete"
        ]
        return sorted(found, key=lambda run: run["seed"])

    def tuned(self, arm: Arm) -> list[tuple[Setting, list[Run]]]:
        """Settings that were tried, by lr, each with all its runs by seed."""
        found: dict[tuple[float, ...], list[Run]] = {}
        for run in self.data["runs"]:
            if run["stage"] == "tune" and run["arm"] == arm.name:
                found.setdefault(tuple(run["setting"].values()), []).append(run)
        return [
            (runs[0]["setting"], sorted(runs, key=lambda run: run["seed"]))
            for _, runs in sorted(found.items())
        ]

    def on_one_machine(self, arms: Iterable[Arm]) -> bool:
        """Whether the report runs of some arms were made on one machine, or on such as are alike.

        A run says what it was made on where that is not what began the study.
        """
        runs = [run for arm in arms for run in self.reported(arm)]
        machines = [run.get("machine", self.data["machine"]) for run in runs]
        return len({tuple(map(at.get, SPEED)) for at in machines}) < 2

    def ended_badly(self) -> list[Run]:
        """Runs that diverged or failed, in the order of the file."""
        return [run for run in self.data["runs"] if run["status"] != "complete"]


def validation(runs: Sequence[Run], score: str) -> list[float]:
    """A validation score of the runs that have one."""
    found = (run["scores"]["validation"] for run in runs if run["status"] == "complete")
    return [scores[score] for scores in found if scores and score in scores]


def test(runs: Sequence[Run], score: str) -> list[float]:
    """A test score of the runs that have one."""
    found = (run["scores"]["test"] for run in runs)
    return [scores[score] for scores in found if scores and score in scores]


def mean(values: Sequence[float]) -> float | None:
    """Mean, or None of nothing."""
    return sum(values) / len(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation (n−1), or None below two."""
    if len(values) < 2:
        return None
    centre = sum(values) / len(values)
    found = math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1))
    return found if found > 1e-12 * abs(centre) else 0.0  # all alike, but for rounding


def interval(values: Sequence[float]) -> float | None:
    """Half the width of Student's 95% interval for the mean, or None below two.

    Examples:
        >>> round(interval([1.0, 2.0, 3.0]), 2)
        2.48
    """
    found = spread(values)
    return None if found is None else student(len(values) - 1) * found / math.sqrt(len(values))


def student(freedom: int) -> float:
    """The 97.5% point of Student's t, within 0.3%.

    Exact for 1 and 2 degrees of freedom; beyond, the expansion of Cornish and Fisher about the
    normal quantile (Abramowitz and Stegun 26.7.5), which needs no library.

    Args:
        freedom: degrees of freedom, 1 or more.

    Examples:
        >>> round(student(9), 3)
        2.262
    """
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, n = 1.959964, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


def _arms(data: Mapping[str, Any]) -> list[Arm]:
    arms, used = [], {BASES: 0, SAGES: 0}
    for name, arm in data["arms"].items():
        looks = BASES if arm["role"] == "base" else SAGES
        colour, symbol = looks[used[looks] % len(looks)]
        used[looks] += 1
        chosen = data["tuning"].get(name, {}).get("chosen")
        arms.append(Arm(name, arm["label"], arm["role"], arm["base"], chosen, colour, symbol))
    return arms
