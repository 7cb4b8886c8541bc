"""A recipe that trains in a moment, and workers that only pretend to."""

from __future__ import annotations

import copy
import os
import random
import signal
import sqlite3
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

import sagelr
from sagelr.recipe import Recipe, check
from sagelr.study import crew
from sagelr.study.run import Request, compare
from sagelr.study.worker import Worker
from sagelr.train import Run


@pytest.fixture(scope="session", autouse=True)
def _hasty_files() -> Iterator[None]:
    """SQLite waits for the disk at every commit; no test pulls the plug."""

    def hasten(connection: Any, _: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hasten)
    yield
    event.remove(Engine, "connect", hasten)


DATA = {
    "name": "pretended",
    "source": "nowhere",
    "loader": "none",
    "rows": {"train": 64, "validation": 32, "test": 100},
    "sha256": "0" * 64,
}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "title": "A few digits",
    "metric": "accuracy",
    "task": {"family": "digits", "train": 64, "validation": 32},
    "model": {"hidden": 8, "layers": 1, "heads": 1, "feed_forward": 8},
    "train": {"epochs": 1, "batch_size": 16, "device": "cpu"},
    "study": {
        "arms": ["adamw", "sage-adamw"],
        "tune_seeds": 1,
        "report_seeds": 3,
        "max_extensions": 2,
        "margin": 0.01,
    },
    "arms": {
        "adamw": {
            "label": "AdamW",
            "role": "base",
            "optimizer": "AdamW",
            "grid": {"lr": [1e-3, 2e-3, 4e-3]},
        },
        "sage-adamw": {
            "label": "SageAdamW",
            "role": "sage",
            "base": "adamw",
            "optimizer": "SageAdamW",
            "grid": {"lr": [2e-3, 4e-3, 8e-3]},
        },
    },
    "quick": {"study.max_extensions": 0, "study.report_seeds": 2},
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The recipe's data with some dotted keys replaced."""
    data = copy.deepcopy(RECIPE)
    for name, value in changes.items():
        *path, last = name.split(".")
        table = data
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return data


@pytest.fixture(scope="session")
def recipe() -> Callable[..., Recipe]:
    """Makes the recipe, with changes: `recipe({"study.report_seeds": 5})`."""
    return lambda changes=None: check(changed(changes or {}), "Recipe tiny")


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the recipe, with changes, as a TOML file."""

    def write(changes: dict[str, Any] | None = None) -> Path:
        path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
        path.write_text("\n".join(_toml(changed(changes or {}))))
        return path

    return write


def _toml(table: dict[str, Any], prefix: str = "") -> list[str]:
    lines, tables = [], []
    for key, value in table.items():
        if isinstance(value, dict):
            tables += [f"[{prefix}{key}]", *_toml(value, f"{prefix}{key}.")]
        else:
            shown = str(value).lower() if isinstance(value, bool) else repr(value)
            lines.append(f'"{key}" = {shown}')
    return lines + tables


# -- pretending to train ------------------------------------------------------------------------


def entry(run: Run, loss: float, accuracy: float = 0.9, **more: Any) -> dict[str, Any]:
    """What `train` returns of a run."""
    scores = {"loss": loss, "accuracy": accuracy}
    test = scores if run.stage == "report" else None
    return {
        "key": run.key,
        "stage": run.stage,
        "arm": run.arm,
        "setting": run.setting,
        "seed": run.seed,
        "status": "complete",
        "error": None,
        "scores": {"validation": scores, "test": test, "train": {"loss": loss}},
        "curve": [],
        "options": {},
        "seconds": 1.0,
        "peak_memory_mib": 1.0,
        "started": "2026-01-01T00:00:00+00:00",
        "sagelr": sagelr.__version__,
        "sage": None,
        **more,
    }


def valley(run: Run) -> dict[str, Any]:
    """Best at lr 2e-3 for the base and 4e-3 for SAGE, both inside their grids; a little noise."""
    best = 2e-3 if run.arm == "adamw" else 4e-3
    noise = random.Random(run.key).gauss(0, 0.001)
    return entry(run, abs(run.setting["lr"] / best - 1) + 0.1 + noise, 0.9 + noise)


class Pretending(Worker):
    """A worker of no process. A run gives an entry, or raises what becomes of it."""

    outcome: Callable[[Run], Any]
    trained: list[str]

    def __init__(self, recipe: dict[str, Any], threads: int, gpu: str | None) -> None:
        self.pipe, self.other = Pipe()
        self.process: Any = self
        self._alive, self.sentinel = Pipe()
        self.ready, self.run, self.share, self.end, self.gpu = False, None, 0.0, None, gpu
        self.other.send(("ready", (DATA, [])))

    def send(self, run: Run) -> None:
        self.run = run
        self.trained.append(run.key)
        try:
            result = type(self).outcome(run)
        except DiedError as died:
            self.end = str(died)
            self.other.close()
            self._alive.close()
        except Exception as error:
            self.other.send(("error", str(error)))
        else:
            self.other.send(("done", result))

    def death(self) -> str | None:
        return self.end

    def stop(self) -> None:
        self.pipe.close()


class DiedError(Exception):
    """Raised by an outcome, it is the death of the worker."""


class Pretence:
    """A study whose workers pretend; `trained` has the keys of every run that was begun."""

    entry = staticmethod(entry)
    valley = staticmethod(valley)
    died = DiedError
    data = DATA

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.notes: list[str] = []
        Pretending.trained = self.trained
        self.let(valley)

    def let(self, outcome: Callable[[Run], Any]) -> None:
        """Decide what comes of runs from now on."""
        Pretending.outcome = staticmethod(outcome)

    def __call__(
        self, recipe: Recipe, out: Path, outcome: Callable[[Run], Any] = valley, **more: Any
    ) -> dict[str, Any]:
        self.let(outcome)
        request = Request(recipe, out, more.pop("jobs", 2), note=self.notes.append, **more)
        return compare(request)


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Presses Ctrl-C, also where the tests themselves were told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretence:
    monkeypatch.setattr(crew, "Worker", Pretending)
    return Pretence()


# -- comparing results --------------------------------------------------------------------------

TIMES = ("id", "created", "updated", "command", "seconds", "started", "peak_memory_mib")


def timeless(value: Any) -> Any:
    """A document without what differs between two studies that found the same."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in TIMES}
    return [timeless(part) for part in value] if isinstance(value, list) else value


@pytest.fixture(scope="session", name="timeless")
def _timeless() -> Callable[[Any], Any]:
    return timeless
