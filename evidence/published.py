"""What stands under results/evidence, and how its figures are written."""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sagelr.study import statistics

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "evidence"
CONTROLS = "-controls"
TIERS = {"small": "two CPU cores, models and data cut down", "full": "one GPU, as in the protocol"}

Row = dict[str, Any]
Ran = tuple[Row, dict[str, Any], dict[str, Any]]


def read_rows() -> list[Row]:
    """The rows of the protocol, run or not."""
    return tomllib.loads((ROOT / "evidence" / "rows.toml").read_text())["row"]


@functools.cache
def load(tier: str, task: str, name: str = "results.json") -> Any:
    path = RESULTS / tier / task / name
    return json.loads(path.read_text()) if path.is_file() else None


def contrast(data: dict[str, Any], sage: str, base: str) -> dict[str, Any] | None:
    return next((c for c in data["comparisons"] if (c["sage"], c["base"]) == (sage, base)), None)


def run_rows(tier: str, rows: Sequence[Row]) -> Iterator[Ran]:
    """Those of the rows that have been run, with their data and primary contrast."""
    for row in rows:
        data = load(tier, row["task"])
        entry = contrast(data, row["sage"], row["base"]) if data else None
        if data is not None and entry is not None:
            yield row, data, entry


def near(tier: str, row: Row) -> Ran | None:
    """The row with SAGE's grid from its base's best lr up, where its own began elsewhere."""
    found = {**row, "task": f"{row['task']}{CONTROLS}-sage-near", "sage": "sage-near"}
    return next(run_rows(tier, [found]), None)


def corrected(tier: str, rows: Sequence[Row]) -> dict[str, float]:
    """Task → p-value of its row after Holm's correction over all that have been run in a tier."""
    found = list(run_rows(tier, rows))
    p_values = statistics.holm([entry["difference"]["p_value"] for *_, entry in found])
    return {row["task"]: p for (row, *_), p in zip(found, p_values, strict=True)}


def variants(tier: str, row: Row) -> Iterator[tuple[str, str, Ran]]:
    """Name and conditions of every variant of a row that has been run, and what came of it."""
    for name, changed in row.get("variants", {}).items():
        conditions = ", ".join(f"{key} = {value}" for key, value in changed.items())
        for ran in run_rows(tier, [{**row, "task": f"{row['task']}-variant-{name}"}]):
            yield name, conditions, ran


def with_variants(tier: str, row: Row) -> Iterator[tuple[str, Ran]]:
    """A row and its variants, as far as they have been run, with what to add to its title."""
    yield from (("", ran) for ran in run_rows(tier, [row]))
    yield from ((f", {name}", ran) for name, _, ran in variants(tier, row))


def controls(tier: str, whole: str) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The studies of controls of a row or a variant, together where they share its arms' runs.

    Args:
        tier: of the protocol.
        whole: the folder of the row or variant.

    Yields:
        Folders with their results. Base and SageAdamW have the same scores in all of a list, so
        that one table holds them.
    """
    found: dict[Any, list[tuple[str, dict[str, Any]]]] = {}
    for folder in sorted((RESULTS / tier).glob(f"{whole}{CONTROLS}*")):
        data = load(tier, folder.name)
        shared = data["comparisons"][0]
        scores = tuple(tuple(arm["values"]) for arm in shared["arms"].values())
        found.setdefault((*shared["seeds"], *scores), []).append((folder.name, data))
    yield from found.values()


def against_sage(data: dict[str, Any], entry: dict[str, Any]) -> statistics.Difference | None:
    """An arm against SageAdamW, paired by seed; None for SageAdamW, or where it did not run."""
    sage = contrast(data, "sage-adamw", entry["base"])
    if sage is None or sage is entry:
        return None
    ours = dict(zip(entry["seeds"], entry["arms"][entry["sage"]]["values"], strict=True))
    theirs = dict(zip(sage["seeds"], sage["arms"]["sage-adamw"]["values"], strict=True))
    both = sorted(ours.keys() & theirs.keys())
    return statistics.difference([theirs[s] for s in both], [ours[s] for s in both])


def interval(mean: float, ci95: Sequence[float], scale: float) -> str:
    low, high = ci95
    return f"{mean * scale:+.2f} [{low * scale:+.2f}, {high * scale:+.2f}]"


def gap(entry: dict[str, Any], scale: float) -> str:
    """SAGE minus its base, with its interval."""
    return interval(entry["difference"]["mean"], entry["difference"]["ci95"], scale)
