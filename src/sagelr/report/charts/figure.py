"""One figure: what it says, how to read it, and Plotly's data and layout.

A colour is a name in page.css ("--base-1"), with its opacity after a slash where it has one
("--base-1/0.15"). The page puts the colours of its theme in place, so that one figure serves light,
dark and print.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sagelr.report.wording import number

Trace = dict[str, Any]

LONGEST = 48  # of a name in a figure


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        id: in the page, and the name of an exported file.
        title: what there is to see in it, as a sentence.
        how: how it is read.
        data: Plotly's traces.
        layout: Plotly's layout; what all figures share is added in the page.
        height: in pixels, without what a long legend adds.
        wide: whether it takes the whole width.
    """

    id: str
    title: str
    how: str
    data: list[Trace]
    layout: dict[str, Any]
    height: int = 340
    wide: bool = False

    @property
    def pixels(self) -> int:
        """Height with the legend."""
        named = [trace for trace in self.data if trace.get("showlegend", True)]
        shown = self.layout.get("showlegend", len(named) > 1)
        return self.height + (14 * max(0, len(named) - 2) if shown else 0)

    def to_json(self) -> dict[str, Any]:
        """What the page draws."""
        return {
            "title": plain(self.title, 200),
            "data": self.data,
            "layout": self.layout,
            "height": self.pixels,
        }


def plain(text: str, longest: int = LONGEST) -> str:
    """A name that Plotly, which reads some HTML in every text, shows as it is.

    Examples:
        >>> plain("<b>a & b</b>")
        '&lt;b&gt;a &amp; b&lt;/b&gt;'
    """
    short = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return html.escape(short, quote=False)


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with its title."""
    return {"title": {"text": plain(title, 80)}, **more}


def log_axis(title: str, values: Sequence[float], few: bool = False) -> dict[str, Any]:
    """A logarithmic axis with marks at round numbers.

    Args:
        title: of the axis.
        values: that are drawn, all > 0.
        few: where there is room for few marks.
    """
    ticks = round_values(values, few)
    return axis(
        f"{title}, log scale",
        type="log",
        tickvals=ticks,
        ticktext=[tick_name(tick) for tick in ticks],
        tickangle=0,
    )


def round_values(values: Sequence[float], few: bool = False) -> list[float]:
    """Round numbers around values that are > 0, about evenly on a logarithmic scale.

    Args:
        values: all > 0.
        few: where there is room for few.

    Examples:
        >>> round_values([0.03, 0.04])
        [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
        >>> round_values([0.03, 0.4], few=True)
        [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
        >>> round_values([1e-6, 1e-3])
        [1e-06, 1e-05, 0.0001, 0.001]
    """
    low, high = math.log10(min(values)), math.log10(max(values))
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps = (1,) if high - low >= 1.7 else (1, 3) if few else (1, 2, 5)
    every = max(1, len(decades) // 5) if len(steps) == 1 else 1
    return [float(f"{step}e{power}") for power in decades[::every] for step in steps]


def tick_name(value: float) -> str:
    """A round number on an axis.

    Examples:
        >>> tick_name(0.01), tick_name(1e-9), tick_name(3e-9)
        ('0.01', '10⁻⁹', '3×10⁻⁹')
    """
    return number(value).removeprefix("1×")


def layout(x: dict[str, Any], y: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A layout with two axes."""
    return {"xaxis": x, "yaxis": y, **more}


def shorter(values: Sequence[float | None], digits: int = 5) -> list[float | None]:
    """As many digits as a figure can show, to keep the page small."""
    return [None if value is None else float(f"{value:.{digits}g}") for value in values]


def line(
    name: str, x: Sequence[float], y: Sequence[float | None], colour: str, **more: Any
) -> Trace:
    """A line with its points."""
    return {
        "type": "scatter",
        "mode": more.pop("mode", "lines"),
        "name": plain(name),
        "x": shorter(x),
        "y": shorter(y),
        "line": {"color": colour, "width": 2, **more.pop("line", {})},
        "marker": {"color": colour, "size": 7, **more.pop("marker", {})},
        **more,
    }


def band(
    x: Sequence[float],
    low: Sequence[float | None],
    high: Sequence[float | None],
    colour: str,
    **more: Any,
) -> Trace:
    """A shaded band between two lines; places where either is missing are left out."""
    whole = [
        (place, bottom, top)
        for place, bottom, top in zip(x, low, high, strict=True)
        if bottom is not None and top is not None
    ]
    forth = [place for place, _, _ in whole]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": shorter([*forth, *reversed(forth)]),
        "y": shorter([*(b for _, b, _ in whole), *(t for _, _, t in reversed(whole))]),
        "fill": "toself",
        "fillcolor": f"{colour}/0.14",
        "line": {"width": 0, "color": colour},
        "hoverinfo": "skip",
        "showlegend": False,
        **more,
    }


def dots(name: str, x: Sequence[Any], y: Sequence[Any], colour: str, **more: Any) -> Trace:
    """Points without a line."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name),
        "x": list(x),
        "y": list(y),
        "marker": {"color": colour, "size": 8, **more.pop("marker", {})},
        **more,
    }


def span(low: float, high: float, colour: str, axis: str = "x") -> dict[str, Any]:
    """A shaded strip over a range of one axis, behind everything."""
    other = "y" if axis == "x" else "x"
    return {
        "type": "rect",
        f"{axis}0": low,
        f"{axis}1": high,
        f"{other}ref": "paper",
        f"{other}0": 0,
        f"{other}1": 1,
        "fillcolor": colour,
        "line": {"width": 0},
        "layer": "below",
    }


def rule(at: float, colour: str, axis: str = "x", dash: str = "solid") -> dict[str, Any]:
    """A line across the figure at a value of one axis."""
    other = "y" if axis == "x" else "x"
    return {
        "type": "line",
        f"{axis}0": at,
        f"{axis}1": at,
        f"{other}ref": "paper",
        f"{other}0": 0,
        f"{other}1": 1,
        "line": {"color": colour, "width": 1, "dash": dash},
        "layer": "below",
    }


def note(text: str, x: float, y: float, **more: Any) -> dict[str, Any]:
    """A few words inside a figure."""
    return {
        "text": plain(text, 120),
        "x": x,
        "y": y,
        "showarrow": False,
        "font": {"color": "--muted", "size": 12, **more.pop("font", {})},
        **more,
    }


def stack(values: Sequence[float], width: float) -> list[float]:
    """Where dots of like value stand beside each other, as offsets around 0 in steps of 1.

    Args:
        values: of the dots.
        width: dots nearer than this are put beside each other.

    Examples:
        >>> stack([1.0, 1.0, 5.0, 1.1], 0.5)
        [-1.0, 0.0, 0.0, 1.0]
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    offsets = [0.0] * len(values)
    group: list[int] = []
    for index in [*order, None]:
        if index is not None and (not group or values[index] - values[group[0]] <= width):
            group.append(index)
            continue
        for place, member in enumerate(group):
            offsets[member] = place - (len(group) - 1) / 2
        group = [] if index is None else [index]
    return offsets
