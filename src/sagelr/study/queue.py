"""The queue of one stage of a study: an Optuna study whose trials are runs.

Runs are executed at least once and published exactly once. A claim is Optuna's: one process alone
takes a trial from waiting to running, by a row lock on PostgreSQL and by holding the folder of a
SQLite file (popping a queue on SQLite from several processes hands the same trial out twice). A
published result is a record of the storage, of which the database takes one alone for each key.

On a server a claimed trial carries a count that its process raises every few seconds. A trial
whose count stands still for a while has lost its process and is handed to another. Each process
judges by its own clock, so that no two clocks have to agree. (Optuna's own heartbeat leaves ask
and tell out, looks for stale trials only when one starts, and never finds a trial that was lost
before its first beat.)
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from sagelr.study.storage import Storage
from sagelr.train import Run

BEAT = 10.0  # seconds between two beats of a process
GRACE = 60.0  # seconds without a beat after which a run is taken over


@dataclass(frozen=True)
class _Sighting:
    """When a trial of another process was first seen at its present count."""

    beat: int
    since: float


class Queue:
    """Runs waiting, under way and done, of one stage of a study.

    Args:
        storage: where the study is.
        stage: name of the Optuna study; "tune" and "report" are two, with a barrier between.
        note: called with a line when a run is taken from a process that died.
    """

    def __init__(
        self, storage: Storage, stage: str, note: Callable[[str], None] = lambda line: None
    ) -> None:
        self.storage, self.stage, self.note = storage, stage, note
        self._study = storage.optuna_study(stage)
        self._claimed: dict[str, Trial] = {}
        self._waiting: set[str] = set()
        self._elsewhere: set[str] = set()
        self._failed: dict[str, tuple[int, dict[str, Any]]] = {}
        self._sightings: dict[int, _Sighting] = {}
        self._beaten = 0.0
        self._beats = 0
        with storage.explained():
            trials = self._study.get_trials(deepcopy=False)
            self._begun = len(trials)  # what failed before is tried again
            if not storage.shared:  # whoever ran them is dead: nobody else holds the folder
                for trial in trials:
                    if trial.state is TrialState.RUNNING:
                        self._close(trial.number)
        self.refresh()

    # -- how things stand -----------------------------------------------------------------------

    @property
    def published(self) -> dict[str, dict[str, Any]]:
        """Key → result of every run that has one."""
        prefix = f"{self.stage}/"
        found = self.storage.records.items()
        return {key: result for key, result in found if key.startswith(prefix)}

    @property
    def failed(self) -> dict[str, dict[str, Any]]:
        """Key → what became of every run that failed and has no result."""
        published = self.storage.records
        return {key: found for key, (_, found) in self._failed.items() if key not in published}

    @property
    def given_up(self) -> dict[str, dict[str, Any]]:
        """Those of the failed that failed since this process began and nobody tries again."""
        return {
            key: found
            for key, found in self.failed.items()
            if self._failed[key][0] >= self._begun and not self._is_open(key)
        }

    @property
    def elsewhere(self) -> frozenset[str]:
        """Keys of the runs that other processes are at."""
        return frozenset(self._elsewhere)

    def is_closed(self, run: Run) -> bool:
        """Whether a run has a result, or is given up."""
        return run.key in self.storage.records or run.key in self.given_up

    def _is_open(self, key: str) -> bool:
        return key in self._waiting or key in self._elsewhere or key in self._claimed

    def refresh(self) -> None:
        """See what others have done, and free the runs of processes that died."""
        self.storage.look()
        with self.storage.explained():
            trials = self._study.get_trials(deepcopy=False)
            mine = {trial.number for trial in self._claimed.values()}
            self._waiting, self._elsewhere = set(), set()
            for trial in trials:
                key, result = trial.user_attrs.get("key"), trial.user_attrs.get("result")
                if key is None:
                    continue  # not one of ours
                if trial.state is TrialState.WAITING:
                    self._waiting.add(key)
                elif trial.state is TrialState.FAIL and result is not None:
                    self._failed[key] = trial.number, result
                elif trial.state is TrialState.RUNNING and trial.number not in mine:
                    if self._is_lost(trial):
                        self._close(trial.number)
                        by = trial.user_attrs.get("by", "the process that was at it")
                        self.note(f"{key}: nothing is heard from {by}; it is run again.")
                    else:
                        self._elsewhere.add(key)

    def _is_lost(self, trial: FrozenTrial) -> bool:
        beat, now = trial.user_attrs.get("beat", 0), time.monotonic()
        seen = self._sightings.get(trial.number)
        if seen is None or seen.beat != beat:
            self._sightings[trial.number] = _Sighting(beat, now)
            return False
        return now - seen.since > GRACE

    # -- runs -----------------------------------------------------------------------------------

    def enqueue(self, runs: Sequence[Run]) -> None:
        """Queue every run that has no result, is not queued yet and was not given up."""
        if not self._missing(runs):
            return
        with self.storage.explained(), self.storage.locked():
            self.refresh()
            for run in self._missing(runs):
                params = {**run.setting, "seed": run.seed}
                about = {"arm": run.arm, "setting": run.setting, "seed": run.seed}
                self._study.enqueue_trial(params, user_attrs={"key": run.key, **about})
                self._waiting.add(run.key)

    def _missing(self, runs: Sequence[Run]) -> list[Run]:
        return [run for run in runs if not self.is_closed(run) and not self._is_open(run.key)]

    def claim(self, wanted: Sequence[Run] | None = None) -> Run | None:
        """The next waiting run, which is this process's from now on; None if there is none.

        Args:
            wanted: what there is to do; in a folder, whatever else an earlier start left waiting,
                such as seeds that are no longer asked for, is closed. None takes any.
        """
        asked = None if wanted is None or self.storage.shared else {run.key for run in wanted}
        if not self._waiting:
            return None
        with self.storage.explained(), self.storage.locked():
            self.refresh()
            while self._waiting:
                trial = self._study.ask()
                found = trial.user_attrs
                key = found.get("key")
                self._waiting.discard(key)
                stale = asked is not None and key not in asked
                if key is None or stale or key in self.storage.records or self._is_open(key):
                    self._close(trial)
                    continue
                run = Run(self.stage, found["arm"], found["setting"], found["seed"])
                for axis, value in run.setting.items():
                    trial.suggest_float(axis, value, value)
                trial.suggest_int("seed", run.seed, run.seed)
                trial.set_user_attr("by", f"{platform.node()}, process {os.getpid()}")
                self._claimed[key] = trial
                return run
        return None

    def beat(self) -> None:
        """Show that the claimed runs are alive; to be called often."""
        if not self.storage.shared or time.monotonic() - self._beaten < BEAT:
            return
        self._beaten, self._beats = time.monotonic(), self._beats + 1
        with self.storage.explained():
            for trial in self._claimed.values():
                with contextlib.suppress(UpdateFinishedTrialError):
                    trial.set_user_attr("beat", self._beats)

    def publish(self, run: Run, value: float, result: dict[str, Any]) -> None:
        """Record the result of a claimed run, unless another process was first.

        Args:
            run: as claimed.
            value: what tuning minimises; inf for a run that diverged.
            result: its entry in results.json.
        """
        trial = self._claimed.pop(run.key)
        if self.storage.record(run.key, result):
            with self.storage.explained(), contextlib.suppress(UpdateFinishedTrialError):
                self._study.tell(trial, value, skip_if_finished=True)
        else:
            with self.storage.explained():
                self._close(trial)

    def fail(self, run: Run, result: dict[str, Any] | None = None) -> None:
        """Close a claimed run without a result.

        Args:
            run: as claimed.
            result: its entry in results.json if it is given up; None if it is to be run again.
        """
        trial = self._claimed.pop(run.key)
        with self.storage.explained():
            if result is not None:
                with contextlib.suppress(UpdateFinishedTrialError):
                    trial.set_user_attr("result", result)
                    self._failed[run.key] = trial.number, result
            self._close(trial)

    def _close(self, trial: Trial | int) -> None:
        """End a trial without a value, unless another process has ended it."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
