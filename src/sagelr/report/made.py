"""How results were made: everything one would need to make them again, or to doubt them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sagelr.report.study import Study
from sagelr.report.tables import Cell, Column, Table
from sagelr.report.wording import FIXED, count, duration, listed, seeds


@dataclass(frozen=True)
class Entry:
    """A name and what belongs to it; shown as code where it was typed."""

    name: str
    text: str
    code: bool = False
    word: str | None = None


def of_study(study: Study) -> list[Entry]:
    """Where, when, with what and how often."""
    data = study.data
    runs = data["runs"]
    reported = {run["seed"] for run in runs if run["stage"] == "report"}
    tuned = {run["seed"] for run in runs if run["stage"] == "tune"}
    entries = [
        Entry("command", data["command"], code=True),
        Entry("recipe", f"{data['recipe']['name']}: {data['recipe']['title']}", word="recipe"),
    ]
    if data["overrides"]:
        shown = ", ".join(f"{key} = {value}" for key, value in data["overrides"].items())
        entries.append(Entry("settings replaced", shown, code=True))
    if data["data"]:
        entries += _data(data["data"])
    chosen_by = study.scale_of(study.select_by).label
    entries.append(
        Entry(
            "tuning",
            f"{count(len([r for r in runs if r['stage'] == 'tune']), 'run')} with seeds "
            f"{seeds(sorted(tuned)) or '–'}, chosen by validation {chosen_by}. " + _grids(study),
        )
    )
    entries.append(
        Entry(
            "report",
            f"{count(len([r for r in runs if r['stage'] == 'report']), 'run')} with seeds "
            f"{seeds(sorted(reported)) or '–'}, none of which tuned anything.",
            word="seed",
        )
    )
    entries.append(
        Entry("looks", _looks(data), word="looks"),
    )
    bad = study.ended_badly()
    failed = sum(run["status"] == "failed" for run in bad)
    entries.append(
        Entry(
            "failures",
            f"{failed} failed, {len(bad) - failed} diverged, of {count(len(runs), 'run')}."
            if bad
            else "None.",
        )
    )
    reused = [run["reused"] for run in runs if "reused" in run]
    if reused:
        whose = listed([f"study {id}" for id in dict.fromkeys(reused)])
        entries.append(Entry("taken over", f"{count(len(reused), 'run')} from {whose}."))
    spent = sum(run["seconds"] or 0 for run in runs)
    entries.append(Entry("time", f"{duration(spent)} of training in all, summed over the runs."))
    return [*entries, *_machine(data, runs)]


def of_audit(audit: Mapping[str, Any]) -> list[Entry]:
    """The same for an audit."""
    measured = audit["measurement"]
    entries = [
        Entry("command", audit["command"], code=True),
        Entry("recipe", f"{audit['recipe']['name']}: {audit['recipe']['title']}", word="recipe"),
        *_data(audit["data"]),
        Entry("measured on", measurement(measured), word="sensitivity"),
    ]
    for model in audit["models"]:
        about = f"{model['path']} ({model['model_class']}, {model['parameters']:,} parameters)"
        entries.append(Entry(model["label"], about))
        for reason in (model["pruning"] or {}).get("skipped", []):
            entries.append(Entry("not pruned", reason))
        if model["export"]:
            entries.append(
                Entry(
                    "exported",
                    f"{model['export']['folder']}, at {100 * model['export']['sparsity']:g}% "
                    "sparsity; its scores were measured again after loading it anew.",
                )
            )
    entries += [Entry("notice", notice) for notice in audit["notices"]]
    return [*entries, *_machine(audit)]


def measurement(found: Mapping[str, Any]) -> str:
    """How sensitivity was measured."""
    order = f" ({found['order'].rstrip('.')})" if found.get("order") else ""
    return (
        f"{count(found['examples'], 'example')} of the training split in batches of "
        f"{found['batch_size']}{order}."
    )


def settings(recipe: Mapping[str, Any], id: str) -> Table:
    """Every setting of a recipe by its dotted name."""
    rows = [
        [Cell(key), Cell(text)]
        for key, text in _flat(recipe)
        if not key.startswith(("description", "metric.", "quick."))
    ]
    columns = [Column("key", numeric=False), Column("value", numeric=False)]
    return Table(id, "Every setting of the recipe", columns, rows)


def _data(data: Mapping[str, Any]) -> Iterator[Entry]:
    rows = listed([f"{rows:,} {split}" for split, rows in data["rows"].items()])
    yield Entry("data", f"{data['name']}. {data['source']}. Rows: {rows}.", word="splits")
    if data.get("loader"):
        yield Entry("loaded by", data["loader"])
    if data.get("sha256"):
        yield Entry("sha256 of the data", data["sha256"], code=True)
    if data.get("model"):
        yield Entry("sha256 or commit of the pretrained model", data["model"], code=True)


def _grids(study: Study) -> str:
    """Where grids began that had to wait for another arm's tuning, and how grids were extended."""
    told = []
    for arm in study.arms:
        lr = study.data["tuning"].get(arm.name, {}).get("placed_at")
        if lr is not None and arm.base is not None:
            base = study.data["recipe"]["arms"][arm.base]["label"]
            told.append(f"{arm.label} began at multiples of {base}'s best lr, {lr:g}.")
    return " ".join([*told, _extended(study)])


def _extended(study: Study) -> str:
    told = []
    for arm in study.arms:
        added = study.data["tuning"].get(arm.name, {}).get("extended")
        if added:
            told.append(f"{arm.label}: {', '.join(added)}")
    if not told:
        return "No grid had to be extended."
    why = "Grids were extended alike for all arms, since a best lr was at an end"
    return f"{why} ({'; '.join(told)})."


def _looks(data: Mapping[str, Any]) -> str:
    looks, seeds = data["looks"], data["recipe"]["study"]["report_seeds"]
    if not looks:
        return "The report is not finished."
    at = listed([str(number) for number in looks])
    told = f"Read once, at {at} seeds." if len(looks) == 1 else f"Read at {at} seeds."
    if (planned := data.get("planned", 0)) > seeds:
        told += f" {planned} seeds were asked for at first."
    return told


PARTS: Mapping[str, Callable[[Any], str]] = {  # of a machine, and how each is shown
    "processor": str,
    "vectors": str,
    "cores": lambda cores: count(cores, "core"),
    "memory_gib": lambda size: f"{size:g}{FIXED}GiB",
    "platform": str,
}


def _machine(data: Mapping[str, Any], runs: Sequence[Mapping[str, Any]] = ()) -> Iterator[Entry]:
    machine = data["machine"]
    yield Entry("machine", _parts(machine))
    if machine.get("device"):
        yield Entry("trained on", str(machine["device"]))
    versions = {"sagelr": data["sagelr"], "Python": machine.get("python"), **data["versions"]}
    yield Entry("versions", _versions(versions))
    for key, shown in (("machine", _whole), ("versions", _versions)):
        others = [shown(run[key]) for run in runs if key in run]
        for other, number in Counter(others).items():
            yield Entry(f"but {count(number, 'run')}", other)
    times = f"{_time(data['created'])}"
    if data.get("updated"):
        times += f" to {_time(data['updated'])}"
    yield Entry("when", times)


def _parts(machine: Mapping[str, Any]) -> str:
    return ", ".join(show(machine[key]) for key, show in PARTS.items() if machine.get(key))


def _whole(machine: Mapping[str, Any]) -> str:
    python = f"Python{FIXED}{machine['python']}" if machine.get("python") else ""
    trained = f"trained on {machine['device']}" if machine.get("device") else ""
    return ", ".join(filter(None, (_parts(machine), trained, python)))


def _versions(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}{FIXED}{version}" for name, version in versions.items() if version)


def _time(stamp: str) -> str:
    return stamp.replace("T", " ").replace("+00:00", f"{FIXED}UTC")


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            yield f"{prefix}{key}", shown.strip()
