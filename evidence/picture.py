"""The pictures of the evidence: SVGs that can be read on light and on dark ground."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

LEFT, WIDTH, RIGHT, STEP, TOP = 360, 420, 130, 30, 46
AXIS, OVER, ACROSS, UP = 64, 34, 460, 240  # of a plot: margins, width and height
COLOURS = ("#34556e", "#1a7f4b", "#a05a00")
VERDICTS = {"better": "#1a7f4b", "ahead": "#1a7f4b", "worse": "#b3261e", "behind": "#b3261e"}
DASHES = ("", "7 4", "2 3", "10 3 2 3")
CROWDED = 6  # margins to each side, above which every second one is named
LEAST, MOST = 3, 10  # margins to each side; what goes beyond ends in an arrow


@dataclass(frozen=True)
class Line:
    """One contrast. Differences are those of gains, so that to the right is better."""

    title: str
    mean: float
    low: float
    high: float
    margin: float
    verdict: str


def forest(lines: Sequence[Line], left: str, right: str) -> str:
    """A point and its 95% interval for each line, in margins.

    Args:
        lines: what is drawn.
        left: what it means that a point lies to the left of 0.
        right: the same to the right.
    """
    height = TOP + STEP * len(lines) + 34
    ends_at = [abs(value) / line.margin for line in lines for value in (line.low, line.high)]
    most = min(MOST, max(LEAST, math.ceil(max(ends_at))))
    middle, unit = LEFT + WIDTH / 2, WIDTH / 2 / most
    bottom = height - 34
    parts = [
        *_begin(LEFT + WIDTH + RIGHT, height, f"{left} or {right}, in margins, with 95% intervals"),
        f'<rect x="{middle - unit}" y="{TOP - 14}" width="{2 * unit}" '
        f'height="{bottom - TOP + 14}" fill="#e8eef3"/>',
        f'<line x1="{middle}" y1="{TOP - 14}" x2="{middle}" y2="{bottom}" stroke="#667788"/>',
        text(middle - 8, TOP - 24, left, "end"),
        text(middle + 8, TOP - 24, right, "start"),
    ]
    for number, line in enumerate(lines):
        y = TOP + STEP * number + STEP / 2
        low, mean, high = (value / line.margin for value in (line.low, line.mean, line.high))
        ends = [middle + unit * max(-most, min(most, value)) for value in (low, high)]
        colour = VERDICTS.get(line.verdict, "#34556e")
        parts += [
            text(LEFT - 12, y + 4, line.title, "end"),
            f'<line x1="{ends[0]:.1f}" y1="{y}" x2="{ends[1]:.1f}" y2="{y}" stroke="{colour}" '
            'stroke-width="2"/>',
            *(_arrow(*end, most, y, colour) for end in zip(ends, (low, high), strict=True)),
            f'<circle cx="{middle + unit * max(-most, min(most, mean)):.1f}" cy="{y}" r="4.5" '
            f'fill="{colour}"/>',
            text(LEFT + WIDTH + 10, y + 4, line.verdict, "start"),
        ]
    parts += [
        text(middle + unit * at, height - 14, f"{at:+d}" if at else "0", "middle")
        for at in range(-most, most + 1)
        if most <= CROWDED or at % 2 == 0
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class Curve:
    """A line through points (x, y), with its line in the legend, and perhaps one point marked."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    dash: str = ""
    marked: tuple[float, float] | None = None


def plot(
    curves: Sequence[Curve], ticks: Mapping[float, str], *, title: str, above: str, below: str
) -> str:
    """Curves over one horizontal axis.

    Args:
        curves: what is drawn.
        ticks: x → what stands there on the axis; its first and last are the ends of it.
        title: for those who do not see it.
        above: what goes up.
        below: what goes to the right.
    """
    left, right = min(ticks), max(ticks)
    heights = [y for curve in curves for _, y in curve.points]
    low, high = min(heights), max(heights)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / ((right - left) or 1)
        return AXIS + ACROSS * across, OVER + UP * (high - y) / ((high - low) or 1)

    legend = OVER + UP + 52
    parts = [
        *_begin(AXIS + ACROSS + 30, legend + 20 * len(curves), title),
        text(AXIS, OVER - 14, above, "start"),
        text(AXIS + ACROSS / 2, OVER + UP + 36, below, "middle"),
    ]
    for at, words in ticks.items():
        x, _ = place(at, low)
        parts += [
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{OVER}" y2="{OVER + UP}" stroke="#e3e8ec"/>',
            text(round(x, 1), OVER + UP + 18, words, "middle"),
        ]
    for value in _round(low, high):
        _, y = place(left, value)
        parts += [
            f'<line x1="{AXIS}" x2="{AXIS + ACROSS}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e8ec"/>',
            text(AXIS - 8, round(y, 1) + 4, f"{value:g}", "end"),
        ]
    for number, curve in enumerate(curves):
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in curve.points)
        colour = COLOURS[curve.colour % len(COLOURS)]
        style = f'stroke="{colour}" stroke-width="2" fill="none"'
        style += f' stroke-dasharray="{curve.dash}"' if curve.dash else ""
        y = legend + 20 * number
        parts += [
            f'<polyline points="{path}" {style}/>',
            f'<line x1="{AXIS}" x2="{AXIS + 34}" y1="{y}" y2="{y}" {style}/>',
            text(AXIS + 44, y + 4, curve.label, "start"),
        ]
        if curve.marked:
            x, y = place(*curve.marked)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _round(low: float, high: float) -> list[float]:
    """Round numbers between two, at most seven."""
    steps = (factor * 10.0**power for power in range(-6, 6) for factor in (1, 2, 5))
    step = next(each for each in steps if (high - low) / each <= 6)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _begin(width: int, height: int, title: str) -> list[str]:
    """The head of a picture, and white ground."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]


def text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#1d2a35">{escape(words)}</text>'


def _arrow(x: float, value: float, most: float, y: float, colour: str) -> str:
    """At an end that lies further out than there is room for."""
    if abs(value) <= most:
        return ""
    back = -7 if value > 0 else 7
    return f'<path d="M{x:.1f} {y} l{back} -5 v10 z" fill="{colour}"/>'
