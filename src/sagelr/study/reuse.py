"""Runs of another study that this one would train in the very same way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sagelr
from sagelr import provenance
from sagelr.errors import UsageError
from sagelr.recipe import Recipe, as_now, of_results
from sagelr.schema import changes, first_of, flat
from sagelr.study.identity import RESULTS, same_model

TABLES = ("task", "model", "train", "audit")
WHERE = {"task.data", "task.title"}  # the data themselves are told by their sha256
OF_NO_WEIGHT = {"label", "role", "base", "grid"}  # of an arm: they change no training


@dataclass(frozen=True)
class Reusable:
    """What another study has.

    Attributes:
        path: as --reuse gives it.
        id: of the study.
        data: as its task described them.
        runs: key → entry of every run that ended by itself, of arms that are the same here.
    """

    path: Path
    id: str
    data: Mapping[str, Any]
    runs: Mapping[str, dict[str, Any]]

    def check_data(self, data: Mapping[str, Any]) -> None:
        """Refuse to take over runs on other data.

        Args:
            data: of this study, as its task describes them.

        Raises:
            UsageError: they are others.
        """
        if self.data["sha256"] != data["sha256"]:
            raise UsageError(
                f"--reuse {self.path}: its runs are on other data: sha256 "
                f"{self.data['sha256'][:12]}… there, {data['sha256'][:12]}… here. Give the data it "
                "was made with, or leave --reuse out."
            )
        if not same_model(self.data, data):
            raise UsageError(
                f"--reuse {self.path}: its runs start from another pretrained model: sha256 or "
                f"commit {self.data['model'][:12]}… there, {data['model'][:12]}… here. Give the "
                "model it was made with, or leave --reuse out."
            )


def find(path: Path, recipe: Recipe, begun: Mapping[str, Any]) -> Reusable:
    """Read the runs of another study.

    Args:
        path: its folder, or its results.json.
        recipe: of this study, with its precision settled.
        begun: the machine and the versions that began this study, which its runs are of unless
            they say otherwise.

    Raises:
        UsageError: it is no study, or it was made in another way, and which.
    """
    file = path / RESULTS if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        before = as_now(of_results(document))
        differing = list(_differing(document, before, recipe))
        if differing:
            raise UsageError(
                f"--reuse {path}: its runs would not be these: {first_of(differing)}. Give "
                "the settings it was made with, or leave --reuse out."
            )
        ours, theirs = recipe.to_json()["arms"], before["arms"]
        same = {name for name in ours if name in theirs and _arm(ours[name]) == _arm(theirs[name])}
        runs = {
            run["key"]: _taken(run, document, begun)
            for run in document["runs"]
            if run["status"] != "failed"
            and run["arm"] in same
            and run["sagelr"] == sagelr.__version__
            and run.get("versions", document["versions"]) == document["versions"]
        }
        data = {key: document["data"].get(key) for key in ("sha256", "model")}
        return Reusable(path, document["id"], data, runs)
    except OSError as error:
        raise UsageError(
            f"--reuse {path}: {file} cannot be read ({error.strerror}). Give the folder of a study."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"--reuse {path}: {file} is not what sagelr compare writes. Give the folder of a study."
        ) from None


def _taken(
    run: Mapping[str, Any], document: Mapping[str, Any], begun: Mapping[str, Any]
) -> dict[str, Any]:
    """A run as an entry of this study: where it is of another machine or version, it says so."""
    origin = {key: run.get(key, document[key]) for key in ("machine", "versions")}
    other = {key: value for key, value in origin.items() if value != begun[key]}
    return {**run, "reused": document["id"], **other}


def _differing(
    document: Mapping[str, Any], before: Mapping[str, Any], recipe: Recipe
) -> Iterator[str]:
    """What of another study is otherwise than here, and would make its runs others."""
    theirs, ours = (
        {key: value for key, value in flat(_weighty(of)).items() if key not in WHERE}
        for of in (before, recipe.to_json())
    )
    yield from changes(theirs, ours)
    here = {"versions": provenance.versions(), "sagelr": sagelr.__version__}
    for name, then, now in provenance.other_versions(document, here):
        yield f"{name} was {then} and is now {now}"


def _weighty(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe bears on the training of every arm."""
    study = {"select_by": recipe["study"]["select_by"]}
    return {key: recipe[key] for key in ("metric", *TABLES)} | {"study": study}


def _arm(arm: Mapping[str, Any]) -> dict[str, Any]:
    """What of an arm bears on its training."""
    return {key: value for key, value in arm.items() if key not in OF_NO_WEIGHT}
