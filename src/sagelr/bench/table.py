"""What was found, as tables to read: in Markdown for a file, in Rich for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = (
    "optimizer",
    "ms a step",
    "× fused AdamW",
    "× its base",
    "state, B",
    "peak, B",
    "compile, s",
    "GB/s",
)
# Without what only makes sense for a bare step.
SHORT = 3
LEGEND = (
    "Medians, with quartiles in brackets. A ratio is taken round by round, in which everyone has "
    "one turn, to torch.optim.AdamW(fused=True), and for Adamax and SGD also to the fastest of "
    "torch's own. B: bytes a parameter, of state, and of all that a step allocates at its peak, "
    "above model and gradients. GB/s: the least a step can move, over the time it took."
)


def rows(suite: Mapping[str, Any], *, spread: bool = True) -> list[list[str]]:
    """The cells of one table, the fastest first, with or without quartiles."""
    measured = [each for each in suite["contestants"] if each["status"] == "measured"]
    measured.sort(key=lambda each: each["ratio"]["median"])
    bare = "GB/s" in headings(suite)
    out = []
    for each in measured:
        cells = [
            each["label"],
            _time(each, spread),
            _ratio(each["ratio"], spread),
        ]
        if bare:
            cells += [
                _ratio(each["ratio_to_base"], spread),
                f"{each['state_bytes_a_parameter']:.2f}",
                f"{each['peak_bytes_a_parameter']:.2f}",
                "" if each["compile_seconds"] is None else f"{each['compile_seconds']:.1f}",
                f"{each['bytes_per_second'] / 1e9:.1f}",
            ]
        out.append(cells)
    return out


def headings(suite: Mapping[str, Any]) -> tuple[str, ...]:
    """The headings of one table."""
    bare = any("bytes_per_second" in each for each in suite["contestants"])
    return HEADINGS if bare else HEADINGS[:SHORT]


def notes(suite: Mapping[str, Any]) -> list[str]:
    """What else is to be said of one list of tensors."""
    out = []
    for name, probe in suite["probes"].items():
        line = f"{name}: {probe['median_seconds'] * 1e3:.1f} ms"
        if "bytes_per_second" in probe:
            line = f"{name} of large arrays: {probe['bytes_per_second'] / 1e9:.1f} GB/s"
        out.append(line)
    for each in suite["contestants"]:
        if each["status"] != "measured":
            out.append(f"{each['label']}: {each['status']}, {each['reason']}")
    return out


def title(suite: Mapping[str, Any]) -> str:
    """What a table is of."""
    count = f"{suite['parameters'] / 1e6:,.1f} million parameters"
    return f"{suite['name']}: {suite['title']} ({count})"


def markdown(document: Mapping[str, Any]) -> str:
    """All tables of a document."""
    machine = document["machine"]
    lines = [
        "# Step times",
        "",
        f"`{document['command']}`, {document['created']}; sagelr {document['sagelr']}, torch "
        f"{document['versions']['torch']}; {machine['processor']}, {machine['cores']} cores, "
        f"{document['threads']} threads, device {machine['device']}; at most "
        f"{document['rounds']} rounds.",
        "",
        LEGEND,
    ]
    if document["idle"]["warning"]:
        lines += ["", f"**{document['idle']['warning']}**"]
    for suite in document["suites"]:
        head = headings(suite)
        lines += ["", f"## {title(suite)}", ""]
        lines += [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
        lines += [_line(cells) for cells in rows(suite)]
        lines += ["", *(f"- {note}" for note in notes(suite))]
    return "\n".join(lines) + "\n"


def rich(suite: Mapping[str, Any]) -> Table:
    """One table for a terminal, where there is no room for quartiles."""
    from rich.table import Table

    table = Table(title=title(suite), title_justify="left")
    for i, heading in enumerate(headings(suite)):
        table.add_column(heading, justify="right" if i else "left")
    for cells in rows(suite, spread=False):
        table.add_row(*cells)
    return table


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _time(entry: Mapping[str, Any], spread: bool) -> str:
    low, high = (_digits(q * 1e3) for q in entry["quartiles_seconds"])
    middle = _digits(entry["median_seconds"] * 1e3)
    return f"{middle} ({low} to {high})" if spread else middle


def _digits(value: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(found: Mapping[str, Any] | None, spread: bool) -> str:
    if found is None:
        return ""
    low, high = found["quartiles"]
    middle = f"{found['median']:.2f}"
    return f"{middle} ({low:.2f} to {high:.2f})" if spread else middle
