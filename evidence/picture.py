"""The differences of all rows as one picture: a point and its 95% interval for each, in margins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LEFT, WIDTH, RIGHT, STEP, TOP = 360, 420, 130, 30, 46
MOST = 3.0  # margins to each side; what goes beyond ends in an arrow


@dataclass(frozen=True)
class Line:
    """One contrast. Differences are those of gains, so that to the right SAGE is better."""

    title: str
    mean: float
    low: float
    high: float
    margin: float
    verdict: str


def forest(lines: Sequence[Line]) -> str:
    """An SVG that can be read on light and on dark ground."""
    height = TOP + STEP * len(lines) + 34
    middle, unit = LEFT + WIDTH / 2, WIDTH / 2 / MOST
    bottom = height - 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + RIGHT} {height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        "<title>SAGE minus its base, in margins, with 95% intervals</title>",
        f'<rect width="100%" height="{height}" fill="#ffffff"/>',
        f'<rect x="{middle - unit}" y="{TOP - 14}" width="{2 * unit}" '
        f'height="{bottom - TOP + 14}" fill="#e8eef3"/>',
        f'<line x1="{middle}" y1="{TOP - 14}" x2="{middle}" y2="{bottom}" stroke="#667788"/>',
        text(middle - 8, TOP - 24, "base is better", "end"),
        text(middle + 8, TOP - 24, "SAGE is better", "start"),
    ]
    for number, line in enumerate(lines):
        y = TOP + STEP * number + STEP / 2
        low, mean, high = (value / line.margin for value in (line.low, line.mean, line.high))
        ends = [middle + unit * max(-MOST, min(MOST, value)) for value in (low, high)]
        colour = {"better": "#1a7f4b", "worse": "#b3261e"}.get(line.verdict, "#34556e")
        parts += [
            text(LEFT - 12, y + 4, line.title, "end"),
            f'<line x1="{ends[0]:.1f}" y1="{y}" x2="{ends[1]:.1f}" y2="{y}" stroke="{colour}" '
            'stroke-width="2"/>',
            *(_arrow(*end, y, colour) for end in zip(ends, (low, high), strict=True)),
            f'<circle cx="{middle + unit * max(-MOST, min(MOST, mean)):.1f}" cy="{y}" r="4.5" '
            f'fill="{colour}"/>',
            text(LEFT + WIDTH + 10, y + 4, line.verdict, "start"),
        ]
    parts += [
        text(middle + unit * at, height - 14, f"{at:+d}" if at else "0", "middle")
        for at in range(-int(MOST), int(MOST) + 1)
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#1d2a35">{escape(words)}</text>'


def _arrow(x: float, value: float, y: float, colour: str) -> str:
    """At an end that lies further out than there is room for."""
    if abs(value) <= MOST:
        return ""
    back = -7 if value > 0 else 7
    return f'<path d="M{x:.1f} {y} l{back} -5 v10 z" fill="{colour}"/>'
