"""What was found, as JSON: every round's times, and what follows from them."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import sagelr
from sagelr.bench.contestants import REFERENCE
from sagelr.bench.measure import PROBE, PROBES, Heat, Measured
from sagelr.bench.shapes import Shape

SCHEMA = 1
BUSY = 10.0  # per cent of all cores

Turns = Sequence[Mapping[str, float]]


def idle() -> dict[str, Any]:
    """What else the machine is doing; takes a second."""
    import psutil

    busy = psutil.cpu_percent(interval=1.0)
    warning = None
    if busy > BUSY:
        warning = (
            f"The machine is busy: {busy:.0f}% of its cores before this began. Times are worth "
            "little then; ratios within a round are worth more, but do not publish them."
        )
    return {
        "cpu_percent_before": busy,
        "load_average_before": _load(),
        "warning": warning,
    }


def document(about: Mapping[str, Any], suites: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The whole document.

    Args:
        about: created, command, machine, versions, device, threads, rounds, idle.
        suites: from `suite`.
    """
    return {
        "schema": SCHEMA,
        "sagelr": sagelr.__version__,
        "reference": REFERENCE,
        **about,
        "idle": {**about["idle"], "load_average_after": _load()},
        "suites": list(suites),
    }


def suite(name: str, title: str, shapes: Sequence[Shape], heats: Sequence[Heat]) -> dict[str, Any]:
    """What was found on one list of tensors.

    Args:
        name: of the list.
        title: what it is.
        shapes: of its tensors.
        heats: from `measure`.
    """
    count = sum(torch.Size(shape).numel() for shape in shapes)
    contestants = {}
    for heat in heats:
        for measured in heat.measured:
            entry = _entry(measured, heat, count)
            known = contestants.setdefault(measured.contestant.name, entry)
            if known is not entry:  # the reference, which is in every heat
                known["turns"] += entry["turns"]
                known |= _times([turn["seconds"] for turn in known["turns"]])
                known |= _speed(known, count)
    return {
        "name": name,
        "title": title,
        "parameters": count,
        "tensors": len(shapes),
        "heats": sum(bool(heat.probes) for heat in heats),
        "probes": _probes(heats, min(count, PROBE)),
        "contestants": list(contestants.values()),
    }


def ratios(turns: Turns, others: Turns) -> list[float]:
    """One time over another, for every round that both took part in."""
    theirs = {turn["round"]: turn["seconds"] for turn in others}
    return [turn["seconds"] / theirs[turn["round"]] for turn in turns if turn["round"] in theirs]


def _entry(measured: Measured, heat: Heat, count: int) -> dict[str, Any]:
    who = measured.contestant
    entry: dict[str, Any] = {
        "name": who.name,
        "label": who.label,
        "family": who.family,
        "status": measured.status,
        "reason": measured.reason,
    }
    if measured.status != "measured":
        return entry
    heading = {"heat": measured.heat}
    entry["turns"] = [{**heading, **turn} for turn in measured.turns]
    entry |= _times([turn["seconds"] for turn in measured.turns])
    entry["ratio"] = _ratio(measured, heat, REFERENCE)
    entry["ratio_to_base"] = None
    if who.family != "adamw" and (base := _base(heat, who.family)):
        entry["ratio_to_base"] = _ratio(measured, heat, base)
    if measured.state is None:
        return entry
    state = measured.state / count
    # θ is read and written, g is read, state is read and written: no step can move less.
    moved = 12 + 2 * state
    entry |= {
        "state_bytes": measured.state,
        "state_bytes_a_parameter": state,
        "peak_bytes": measured.peak,
        "peak_bytes_a_parameter": (measured.peak or 0) / count,
        "compile_seconds": measured.compiling,
        "moved_bytes_a_parameter": moved,
    }
    return entry | _speed(entry, count)


def _speed(entry: Mapping[str, Any], count: int) -> dict[str, float]:
    """Bytes a second, where it is known how many a step moves."""
    moved = entry.get("moved_bytes_a_parameter")
    return {} if moved is None else {"bytes_per_second": moved * count / entry["median_seconds"]}


def _base(heat: Heat, family: str) -> str | None:
    """The fastest of torch's own of a family, in this heat."""
    medians = {
        each.contestant.name: statistics.median(turn["seconds"] for turn in each.turns)
        for each in heat.measured
        if each.turns and each.contestant.name.startswith(f"torch-{family}-")
    }
    return min(medians, key=medians.__getitem__, default=None)


def _ratio(measured: Measured, heat: Heat, to: str) -> dict[str, Any] | None:
    other = next((each for each in heat.measured if each.contestant.name == to), None)
    if other is None:
        return None
    found = ratios(measured.turns, other.turns)
    if not found:
        return None
    return {"to": to, "median": statistics.median(found), "quartiles": _quartiles(found)}


def _probes(heats: Sequence[Heat], size: int) -> dict[str, Any]:
    together: dict[str, list[float]] = {}
    for heat in heats:
        for name, turns in heat.probes.items():
            together.setdefault(name, []).extend(turn["seconds"] for turn in turns)
    return {
        name: _times(seconds)
        | (
            {"bytes_per_second": PROBES[name] * size / statistics.median(seconds)}
            if name in PROBES
            else {}
        )
        for name, seconds in together.items()
    }


def _times(seconds: Sequence[float]) -> dict[str, Any]:
    return {"median_seconds": statistics.median(seconds), "quartiles_seconds": _quartiles(seconds)}


def _quartiles(values: Sequence[float]) -> list[float]:
    if len(values) == 1:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
