"""What makes a study this one: its recipe, its data, its seeds, and the folder it writes to.

All of it is in records that are written once, so that whoever opens the study, on whichever
machine, finds the same.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sagelr
from sagelr import provenance
from sagelr.errors import SagelrError, UsageError
from sagelr.recipe import Recipe, as_now
from sagelr.schema import changes, first_of, flat
from sagelr.study.plan import FIRST_REPORT_SEED
from sagelr.study.storage import DATABASE, Storage
from sagelr.training.precision import precision_here, settled

RESULTS, PAGE = "results.json", "report.html"
# What may differ between two starts of one study: none of it changes a finished run or its verdict.
FREE = ("title", "description", "quick", "aliases", "study.report_seeds")
REPORT = "report/"
RUNS = ("tune/", REPORT)  # what the names of records of runs begin with
PRECISION = "train.precision"
# Until settings are chosen, or a grid is placed by its base's best lr, it may still be changed.
EXTENSIONS = "study.max_extensions"


def make_folder(out: Path, shared: bool) -> None:
    """Make the folder of a study, unless there are results that are not its own.

    Args:
        out: the folder.
        shared: whether the study is on a server, not in the folder.

    Raises:
        UsageError: results without their study are in it.
        OSError: it cannot be made.
    """
    needed = RESULTS if shared else DATABASE
    if not (out / needed).exists():
        for name in (RESULTS, PAGE):
            if (out / name).exists():
                raise UsageError(
                    f"{out} holds a {name} but no {needed}, so it cannot be told to be this "
                    "study's and would be overwritten. Move it away, or give --out another folder."
                )
    out.mkdir(parents=True, exist_ok=True)


def open_study(
    storage: Storage,
    recipe: Recipe,
    out: Path,
    *,
    quick: bool,
    overrides: Mapping[str, Any],
    note: Callable[[str], None],
) -> Recipe:
    """Recognise the study in the storage, or make it this one's.

    Returns:
        The recipe as the study trains it: with the precision of the machine that began it.

    Raises:
        UsageError: it, or the folder, is another study's.
    """
    mine = {
        "id": _forget_what_binds_nothing(storage) or uuid.uuid4().hex,
        "recipe": recipe.to_json(),
        "created": provenance.now(),
        "quick": quick,
        "overrides": dict(overrides),
        "machine": provenance.machine(recipe.train.device),
        "versions": provenance.versions(),
        "sagelr": sagelr.__version__,
    }
    known = storage.settle("study", mine)
    _same_recipe(as_now(known["recipe"]), mine["recipe"], storage, out)
    if known["quick"] != quick:
        raise UsageError(
            f"{_where(storage, out)} is {'a smoke run' if known['quick'] else 'no smoke run'}, and "
            f"this one {'is' if quick else 'is none'}. Start it with"
            f"{'out' if quick else ''} --quick, or begin another study: {another(storage)}."
        )
    _own_results(out, known["id"])
    for name, then, now in provenance.other_versions(known, mine):
        note(
            f"This study was begun with {name} {then}; now it is {now}. "
            "Runs of both are compared with each other."
        )
    seeds = recipe.study.report_seeds
    storage.record(f"seeds={seeds}", seeds)
    if (most := report_seeds(storage.records)) > seeds:
        note(
            f"This study has {most} report seeds already; all of them stay, since leaving some out "
            "afterwards would be choosing among results."
        )
    return settled(recipe, storage.settle("precision", precision_here(recipe.train)))


def _forget_what_binds_nothing(storage: Storage) -> str | None:
    """Take back what earlier starts of a study in a folder settled and no run rests on.

    As long as no run has a result, that is everything but the name of the study in its results: a
    start that ended before it trained anything, for a mistake in the command, leaves the folder
    free for the right one. On a server others may be at work by these records.

    Returns:
        The id of the study, if it has one.
    """
    if storage.shared:
        return None
    storage.look()
    records = storage.records
    known = records.get("study", {}).get("id")
    if any(name.startswith(RUNS) for name in records):
        asked = [name for name in records if name.startswith("seeds=")]
        if asked and any(name.startswith(REPORT) for name in records):
            most = max(records[name] for name in asked)
            storage.record(f"planned={most}", most)
        storage.forget(asked)
    else:
        storage.forget([*records])
        storage.forget_queues()
    return known


def about(records: Mapping[str, Any], command: str) -> dict[str, Any]:
    """What results.json says of the study itself.

    Args:
        records: of the storage.
        command: as typed.
    """
    looks = sorted(value for name, value in records.items() if name.startswith("look="))
    planned = [value for name, value in records.items() if name.startswith("planned=")]
    return {
        **records["study"],
        "data": records.get("data"),
        "looks": looks,
        "planned": max(planned, default=0),  # seeds that were asked for when results were known
        "command": command,
    }


def report_seeds(records: Mapping[str, Any]) -> int:
    """How many seeds the arms are compared on: as many as are asked for or have been used."""
    asked = [value for name, value in records.items() if name.startswith("seeds=")]
    return max([*asked, seeds_used(records)])


def seeds_used(records: Mapping[str, Any]) -> int:
    """How many seeds there are up to the last that has a report run or was looked at; 0 before.

    None of them may be left out any more.
    """
    looks = [value for name, value in records.items() if name.startswith("look=")]
    runs = [run["seed"] for name, run in records.items() if name.startswith(REPORT)]
    return max([0, *looks, *(seed - FIRST_REPORT_SEED + 1 for seed in runs)])


def note_look(storage: Storage) -> None:
    """Record that the comparison was read at this number of seeds."""
    seeds = report_seeds(storage.records)
    storage.record(f"look={seeds}", seeds)


def check_data(storage: Storage, data: Mapping[str, Any]) -> None:
    """Refuse to mix runs on different data, or from different pretrained models, in one study.

    Args:
        storage: of the study.
        data: as the task describes them.

    Raises:
        SagelrError: they are not what the study was begun with.
    """
    then = storage.settle("data", data)
    if then["sha256"] != data["sha256"]:
        raise SagelrError(
            f"The data are not those that this study was begun with: sha256 "
            f"{data['sha256'][:12]}… here, {then['sha256'][:12]}… then. Restore them, or begin "
            f"another study: {another(storage)}."
        )
    if not same_model(then, data):
        raise SagelrError(
            "The pretrained model is not that which this study was begun with: sha256 or commit "
            f"{data['model'][:12]}… here, {then['model'][:12]}… then. Restore its files, or begin "
            f"another study: {another(storage)}."
        )


def same_model(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether runs start from one model, as far as both say."""
    known = then.get("model"), now.get("model")
    return None in known or known[0] == known[1]


def _same_recipe(
    then: Mapping[str, Any], now: Mapping[str, Any], storage: Storage, out: Path
) -> None:
    """Refuse to mix runs of different settings in one study."""
    before, after = (
        {name: value for name, value in flat(_used(of)).items() if not _is_free(name)}
        for of in (then, now)
    )
    if "extensions" in storage.records:
        before[EXTENSIONS] = storage.records["extensions"]
    elif "chosen" not in storage.records:
        before[EXTENSIONS] = after[EXTENSIONS]
    for recipe in (before, after):
        if recipe.get(PRECISION) == "auto":  # once a study is begun, it comes to this for all of it
            recipe[PRECISION] = storage.records.get("precision", "auto")
    differing = changes(before, after)
    if differing:
        begun_with = "the settings it was begun with"
        if (out / RESULTS).is_file():
            begun_with += f" ({out / RESULTS} has them, and can be given as the recipe)"
        raise UsageError(
            f"{_where(storage, out)} has other settings: {first_of(differing)}. Its runs are kept. "
            f"Use {begun_with}, or begin another study: {another(storage)}."
        )


def _where(storage: Storage, out: Path) -> str:
    return f"Study {storage.study!r} of {storage.place}" if storage.shared else str(out)


def another(storage: Storage) -> str:
    """How to begin another study than this one."""
    return "give --study another name" if storage.shared else "give --out another folder"


def _used(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without the arms that its study leaves out."""
    return {**recipe, "arms": {name: recipe["arms"][name] for name in recipe["study"]["arms"]}}


def _is_free(name: str) -> bool:
    return name in FREE or name.partition(".")[0] in FREE


def _own_results(out: Path, identity: str) -> None:
    """Refuse to overwrite the results of another study."""
    try:
        found = json.loads((out / RESULTS).read_text(encoding="utf-8"))["id"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        found = None
    if found != identity:
        raise UsageError(
            f"{out / RESULTS} is of another study and would be overwritten. Move it away, or give "
            "--out another folder."
        )
