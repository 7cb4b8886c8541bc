"""The queue of a study: an Optuna study that one process alone claims from and writes to.

Popping a queue on SQLite from several processes hands the same trial out twice. So the parent
alone claims and publishes, and its workers only train. A key is executed at least once: a trial
that a dead parent left running is failed and its key queued again. A key is published once: the
first complete trial stands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from sagelr.errors import SagelrError
from sagelr.train import Run

DATABASE = "study.db"
LOCK = "study.lock"
OPEN = (TrialState.WAITING, TrialState.RUNNING)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a study's folder.

    Raises:
        SagelrError: another process holds it.
    """
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise SagelrError(
            f"Another sagelr is at work in {folder}. Wait until it is done, stop it, or give this "
            "one another folder with --out."
        ) from None
    try:
        yield
    finally:
        lock.release()


class Queue:
    """Runs waiting, under way and done, of one stage of a study.

    Args:
        folder: where the SQLite file is.
        stage: name of the Optuna study; "tune" and "report" are two, with a barrier between.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.path = folder / DATABASE
        with self._storage():
            self._study = optuna.create_study(
                storage=f"sqlite:///{self.path}",
                study_name=stage,
                direction="minimize",
                # Every parameter is given; nothing is left to a sampler.
                sampler=optuna.samplers.RandomSampler(seed=0),
                load_if_exists=True,
            )
            self._claimed: dict[str, Trial] = {}
            self._published: dict[str, dict[str, Any]] = {}
            self._failed: dict[str, dict[str, Any]] = {}
            for trial in self._study.get_trials(deepcopy=False):
                self._take_in(trial)

    def _take_in(self, trial: FrozenTrial) -> None:
        """Sort a trial found in the file."""
        key, result = trial.user_attrs.get("key"), trial.user_attrs.get("result")
        if trial.state is TrialState.RUNNING:  # its parent died: nobody else holds the folder
            self._study.tell(trial.number, state=TrialState.FAIL)
        elif trial.state is TrialState.COMPLETE and key is not None and result is not None:
            self._published.setdefault(key, result)
        elif trial.state is TrialState.FAIL and key is not None and result is not None:
            self._failed[key] = result

    # -- attributes of the whole study ----------------------------------------------------------

    def attributes(self) -> dict[str, Any]:
        """What was remembered of the whole study."""
        with self._storage():
            return dict(self._study.user_attrs)

    def remember(self, name: str, value: Any) -> None:
        """Keep something of the whole study."""
        with self._storage():
            self._study.set_user_attr(name, value)

    # -- runs -----------------------------------------------------------------------------------

    @property
    def published(self) -> Mapping[str, dict[str, Any]]:
        """Key → result of every run that has one."""
        return self._published

    @property
    def failed(self) -> Mapping[str, dict[str, Any]]:
        """Key → what became of every run that failed for good and has no result."""
        return {key: found for key, found in self._failed.items() if key not in self._published}

    def enqueue(self, runs: Sequence[Run]) -> None:
        """Queue every run that has no result and is not queued yet."""
        with self._storage():
            trials = self._study.get_trials(deepcopy=False, states=OPEN)
            known = {trial.user_attrs.get("key") for trial in trials} | self._published.keys()
            for run in runs:
                if run.key not in known:
                    attributes = {"key": run.key, "arm": run.arm, "setting": run.setting}
                    params = {**run.setting, "seed": run.seed}
                    self._study.enqueue_trial(params, user_attrs=attributes)

    def claim(self, wanted: Mapping[str, Run]) -> Run | None:
        """The next waiting run, or None.

        Args:
            wanted: key → run of the plan; a trial whose key is none of these is dropped.
        """
        with self._storage():
            waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            for _ in waiting:
                trial = self._study.ask()
                key = trial.user_attrs["key"]
                run = wanted.get(key)
                if run is None or key in self._published or key in self._claimed:
                    self._study.tell(trial, state=TrialState.FAIL)
                    continue
                for axis, value in run.setting.items():
                    trial.suggest_float(axis, value, value)
                trial.suggest_int("seed", run.seed, run.seed)
                self._claimed[key] = trial
                return run
        return None

    def publish(self, run: Run, value: float, result: dict[str, Any]) -> None:
        """Record the one result of a claimed run.

        Args:
            run: as claimed.
            value: what tuning minimises; inf for a run that diverged.
            result: its entry in results.json.
        """
        with self._storage():
            trial = self._claimed.pop(run.key)
            if run.key in self._published:
                self._study.tell(trial, state=TrialState.FAIL)
                return
            # The result first: a trial that is complete has one.
            trial.set_user_attr("result", result)
            self._study.tell(trial, value)
            self._published[run.key] = result

    def fail(self, run: Run, result: dict[str, Any] | None = None) -> None:
        """Close a claimed run without a result.

        Args:
            run: as claimed.
            result: its entry in results.json if it is not to be tried again by this process; None
                if it was interrupted or will be.
        """
        with self._storage():
            trial = self._claimed.pop(run.key)
            if result is not None:
                trial.set_user_attr("result", result)
                self._failed[run.key] = result
            self._study.tell(trial, state=TrialState.FAIL)

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        """Say what is wrong with the file, in one message."""
        try:
            yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = error.__cause__ or error
            reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
            raise SagelrError(
                f"{self.path}: {reason}. Finished runs that were written are kept. Check that the "
                "folder can be written to and its disk has room; a file that is damaged or not a "
                "study has to be moved away, or --out given another folder."
            ) from error
        except KeyError as error:
            if "key" not in str(error):
                raise
            raise SagelrError(
                f"{self.path} holds Optuna trials that are not sagelr's. Give --out another folder."
            ) from error
