"""How numbers and lists read on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MINUS, FIXED = "\u2212", "\u00a0"  # a minus sign, a space that does not break
AXES = {"beta0": "β0"}


@dataclass(frozen=True)
class Scale:
    """A metric as it is shown.

    Attributes:
        name: of the metric.
        factor: what a score is multiplied by.
        unit: what stands behind a shown score.
        greater_is_better: False for errors and losses.
        label: the name as a person reads it; the name itself by default.
    """

    name: str
    factor: float = 1.0
    unit: str = ""
    greater_is_better: bool = True
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)

    @staticmethod
    def of(metric: Mapping[str, Any]) -> Scale:
        """The metric of a recipe in results.json."""
        return Scale(
            metric["name"],
            metric["scale"],
            metric["unit"],
            metric["greater_is_better"],
            metric.get("label", ""),  # files before it was kept have none
        )

    @property
    def title(self) -> str:
        """For an axis or a heading.

        Examples:
            >>> Scale("accuracy", 100, "%").title
            'accuracy (%)'
        """
        return f"{self.label} ({self.unit.strip()})" if self.unit.strip() else self.label

    @property
    def difference_unit(self) -> str:
        """Differences of percentages are in points, so that they are not read as ratios."""
        return f"{FIXED}points" if self.factor == 100 else self.unit

    def show(self, value: float | None) -> str:
        """A score.

        Examples:
            >>> Scale("accuracy", 100, "%").show(0.9612)
            '96.12%'
        """
        return "–" if value is None else f"{self._digits(value)}{self.unit}"

    def amount(self, value: float | None) -> str:
        """The size of a difference, without its sign."""
        return "–" if value is None else f"{self._digits(abs(value))}{self.difference_unit}"

    def margin(self, value: float) -> str:
        r"""A difference that somebody set, in the digits it was set in.

        Examples:
            >>> Scale("accuracy", 100, "%").margin(0.01)
            '1\xa0point'
        """
        shown = number(abs(value) * self.factor)
        unit = self.difference_unit
        return shown + (unit.removesuffix("s") if shown == "1" and self.factor == 100 else unit)

    def change(self, value: float | None, unit: bool = True) -> str:
        """A difference with its sign."""
        if value is None:
            return "–"
        digits = self._digits(abs(value))
        sign = "" if not value else "+" if value > 0 else MINUS
        return f"{sign}{digits}{self.difference_unit if unit else ''}"

    def _digits(self, value: float) -> str:
        shown = value * self.factor
        places = 2 if self.factor == 100 or abs(shown) >= 10 else 3 if abs(shown) >= 1 else 4
        if shown and round(abs(shown), places) == 0:
            return number(shown, 2)
        return f"{shown:,.{places}f}".replace("-", MINUS)


LOSS = Scale("loss", greater_is_better=False)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent where that is short.

    Examples:
        >>> number(0.0004), number(1.25e-7, 2), number(12345.0), number(None)
        ('0.0004', '1.2×10⁻⁷', '12,300', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value and not 1e-4 <= abs(value) < 1e7:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{mantissa}×10{raised}".replace("-", MINUS)
    rounded = float(f"{value:.{digits}g}")
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded)))) if rounded else 0
    shown = f"{rounded:,.{places}f}"
    return (shown.rstrip("0").rstrip(".") if "." in shown else shown).replace("-", MINUS)


def share(value: float | None) -> str:
    """A share as a percentage.

    Examples:
        >>> share(0.1234), share(0.00031), share(0)
        ('12.3%', '0.031%', '0%')
    """
    if value is None:
        return "–"
    percent = 100 * value
    if 0 < percent < 0.005:
        return f"<{FIXED}0.01%"
    return f"{percent:.1f}%" if percent >= 1 else f"{percent:.2g}%" if percent else "0%"


def p_value(value: float | None) -> str:
    """A p-value with its sign of relation, as far as it means something.

    Examples:
        >>> p_value(0.7353), p_value(0.0123), p_value(None)
        ('0.74', '0.012', '–')
    """
    if value is None:
        return "–"
    return f"<{FIXED}0.001" if value < 0.001 else f"{value:.2g}"


def duration(seconds: float | None) -> str:
    r"""A time.

    Examples:
        >>> duration(4.14), duration(135), duration(7320), duration(None)
        ('4.1\xa0s', '2\xa0min 15\xa0s', '2\xa0h 2\xa0min', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f}{FIXED}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{FIXED}min {whole % 60}{FIXED}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}{FIXED}h {minutes % 60}{FIXED}min"


def memory(mib: float | None) -> str:
    r"""An amount of memory.

    Examples:
        >>> memory(557.2), memory(4096)
        ('557\xa0MiB', '4.0\xa0GiB')
    """
    if mib is None:
        return "–"
    return f"{mib:.0f}{FIXED}MiB" if mib < 1024 else f"{mib / 1024:.1f}{FIXED}GiB"


def setting(values: Mapping[str, float] | None) -> str:
    r"""A point of a grid.

    Examples:
        >>> setting({"lr": 0.002, "beta0": 0.8})
        'lr\xa00.002, β0\xa00.8'
    """
    if not values:
        return "–"
    return ", ".join(f"{AXES.get(axis, axis)}{FIXED}{value:.6g}" for axis, value in values.items())


def listed(items: Sequence[str]) -> str:
    """A list in a sentence.

    Examples:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def count(number: int, one: str) -> str:
    r"""A number of things.

    Examples:
        >>> count(1, "run"), count(2, "run"), count(2000, "run")
        ('1\xa0run', '2\xa0runs', '2,000\xa0runs')
    """
    return f"{number:,}{FIXED}{one if number == 1 else one + 's'}"


def seeds(values: Sequence[int]) -> str:
    """Seeds, consecutive ones as a range.

    Examples:
        >>> seeds([1000, 1001, 1002, 1009]), seeds([0, 1])
        ('1000–1002, 1009', '0, 1')
    """
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    shown = [
        f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(str(value) for value in run)
        for run in runs
    ]
    return ", ".join(shown)
