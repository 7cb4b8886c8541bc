"""Running a study: persistent workers train; their parent claims, publishes and decides.

Where the study is on a server, any number of parents do this at once, each with workers of its
own. What to run next follows from what is published and from nothing else, so that they need not
speak with one another, and find together what one of them would have found.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagelr import jsonfile, provenance
from sagelr.errors import SagelrError, UsageError
from sagelr.recipe import Recipe, Setting
from sagelr.schema import not_finite
from sagelr.study import identity, plan, results, reuse
from sagelr.study.crew import Crew
from sagelr.study.identity import RESULTS
from sagelr.study.queue import Queue
from sagelr.study.signals import InterruptedStudyError, Signals, caught
from sagelr.study.storage import Storage, folder_url, locked, server_url
from sagelr.study.worker import Worker
from sagelr.train import Run, check_arm

ATTEMPTS = 2  # of a run whose worker dies
ALIKE = 3  # first runs that fail for one reason, after which the study gives up
TICK = 0.2  # seconds between looks at the workers
LOOK = 2.0  # seconds between looks at what other processes do
WRITE_EVERY = 2.0  # seconds between writings of results.json, at least
WRITE_SHARE = 0.02  # of the time, at most, that goes into it


@dataclass(frozen=True)
class Standing:
    """How far a study is, for a progress display."""

    status: str
    done: int
    total: int
    share: float
    seconds_left: float | None


@dataclass
class Request:
    """What to compare.

    Attributes:
        recipe: as validated; its report_seeds are a minimum if the study has more already.
        out: folder for the results, and for the study itself unless it is on a server.
        jobs: worker processes.
        reuse: folder of another study, to take over what would be trained again.
        storage: URL of a PostgreSQL server; None keeps the study in its folder.
        study: its name on that server.
        command: as typed, for the record.
        overrides: settings that were replaced, for the record.
        quick: whether this is a smoke run.
        published: called after results.json was written, with its data and the folder.
        standing: called often, to show progress.
        note: called with a line that the user should read.
    """

    recipe: Recipe
    out: Path
    jobs: int
    reuse: Path | None = None
    storage: str | None = None
    study: str = ""
    command: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False
    published: Callable[[dict[str, Any], Path], None] = lambda data, folder: None
    standing: Callable[[Standing], None] = lambda standing: None
    note: Callable[[str], None] = lambda line: None


def compare(request: Request) -> dict[str, Any]:
    """Run a study to its end, or go on with one.

    Returns:
        results.json, as it was last written.

    Raises:
        UsageError: the recipe cannot be run, or the folder or the storage holds something else.
        InterruptedStudyError: Ctrl-C; finished runs are kept, and the next start goes on.
        SagelrError: it cannot go on.
    """
    for name, arm in request.recipe.chosen_arms().items():
        check_arm(name, arm)
    identity.make_folder(request.out, shared=request.storage is not None)
    with contextlib.ExitStack() as stack:
        if request.storage is None:
            stack.enter_context(locked(request.out))
            storage = Storage(folder_url(request.out))
        else:
            storage = Storage(server_url(request.storage), request.study)
        stack.callback(storage.close)
        return _Study(request, storage, stack.enter_context(caught())).run()


@dataclass(frozen=True)
class _Plan:
    """What there is to do, as far as it is known."""

    tuning: plan.Tuning
    chosen: dict[str, Setting] | None
    reporting: list[Run]
    seeds: int  # that arms are compared on

    @property
    def stage(self) -> str:
        return "tune" if self.chosen is None else "report"

    @property
    def status(self) -> str:
        return "tuning" if self.chosen is None else "reporting"

    @property
    def runs(self) -> list[Run]:
        """Those of the stage."""
        return self.tuning.runs if self.chosen is None else self.reporting

    @property
    def total(self) -> int:
        report = len(self.tuning.arms) * self.seeds
        return len(self.tuning.runs) + self.tuning.later + report


class _Study:
    def __init__(self, request: Request, storage: Storage, signals: Signals) -> None:
        self.request, self.storage, self.signals = request, storage, signals
        self.out = request.out
        self.recipe = identity.open_study(
            storage,
            request.recipe,
            self.out,
            quick=request.quick,
            overrides=request.overrides,
            note=request.note,
        )
        self.reusable = None
        if request.reuse is not None:
            self.reusable = reuse.find(request.reuse, self.recipe, storage.records["study"])
        self.machine = provenance.machine(self.recipe.train.device)
        self.versions = provenance.versions()
        self.queues = {stage: Queue(storage, stage, request.note) for stage in ("tune", "report")}
        self.crew = Crew(self.recipe, request.jobs)
        self.deaths: dict[str, int] = {}
        self.told = False  # what the task had to say, and which data it has
        self.news = True  # whether anything happened since results.json was written
        self.written = self.looked = -math.inf
        self.rest = WRITE_EVERY  # until results.json is written again

    def run(self) -> dict[str, Any]:
        try:
            while True:
                now = self._plan()
                queue = self.queues[now.stage]
                left = [run for run in now.runs if not queue.is_closed(run)]
                if not left:  # of tuning there is always something left, until it is over
                    identity.note_look(self.storage)
                    return self._write("complete", now)
                if self.reusable is not None and not self.told:
                    self.crew.staff(1)  # it says which data there are, before any run is taken over
                elif self._take_over(left):
                    continue
                else:
                    queue.enqueue(left)
                    self.crew.staff(sum(run.key not in queue.elsewhere for run in left))
                    for worker in self.crew.idle:
                        if (run := queue.claim(left)) is None:
                            break
                        worker.send(run)
                if self.news and time.monotonic() - self.written > self.rest:
                    self._write(now.status, now)
                self._show(now)
                for worker, kind, content in self.crew.messages(TICK):
                    self._hear(queue, worker, kind, content)
                if self.signals.caught is not None:
                    self._interrupt(now, self.signals.caught)
                for worker, kind, content in self.crew.bury():
                    self._hear(queue, worker, kind, content)
                queue.beat()
                self._look_around(queue)
        finally:
            self.crew.stop()

    # -- the plan -------------------------------------------------------------------------------

    def _plan(self) -> _Plan:
        tune = self.queues["tune"]
        chosen = self.storage.records.get("chosen")
        scores = {
            key: results.value_of(self.recipe, result) for key, result in tune.published.items()
        }
        # Once the choice stands, what had failed by then is not tried again.
        scores |= dict.fromkeys(tune.given_up if chosen is None else tune.failed)
        most = self.storage.records.get("extensions", self.recipe.study.max_extensions)
        tuning = plan.tuning(self.recipe, scores, most)
        placed = any(arm.placed_at is not None for arm in tuning.arms.values())
        if chosen is None and tuning.done:
            self._check_trained(tuning)
        if chosen is None and (tuning.done or placed):
            # Whoever would extend the grids further, here or on another machine, no longer does;
            # and a grid that was placed at its base's best lr stays there.
            if self.storage.settle("extensions", most) != most:
                return self._plan()
            chosen = self._choose(tuning) if tuning.done else None
        seeds = identity.report_seeds(self.storage.records)
        reporting = plan.reporting(self.recipe, chosen, seeds) if chosen else []
        return _Plan(tuning, chosen, reporting, seeds)

    def _check_trained(self, tuning: plan.Tuning) -> None:
        """Refuse to choose settings where an arm has none to choose from."""
        for name, tuned in tuning.arms.items():
            if tuned.chosen is None and tuned.grid["lr"]:  # not for want of a base's
                now = _Plan(tuning, None, [], self.recipe.study.report_seeds)
                self._write("tuning", now)
                ended = [run for run in self._runs(now).values() if run["arm"] == name]
                last = next((run for run in reversed(ended) if run["error"]), None)
                reason = last["error"].rstrip(".") if last else "no reason known"
                remedy = "Mend that, and run the same command again."
                if any(run["status"] == "diverged" for run in ended):
                    axis = "lr_ratio" if self.recipe.arms[name].follows_base else "lr"
                    remedy = (
                        f"Try a lower arms.{name}.grid.{axis} with --set, in another study: "
                        f"{identity.another(self.storage)}."
                    )
                raise SagelrError(
                    f"No setting of {name} trained with every seed (lr "
                    f"{', '.join(f'{lr:g}' for lr in tuned.grid['lr'])}): {reason}. {remedy}"
                )

    def _choose(self, tuning: plan.Tuning) -> dict[str, Setting]:
        """The barrier between tuning and report: from here on the choice stands."""
        chosen = {name: tuned.chosen for name, tuned in tuning.arms.items() if tuned.chosen}
        for name, setting in chosen.items() if not self.request.quick else ():
            if tuning.arms[name].on_edge:
                self.request.note(
                    f"The best lr of {name}, {setting['lr']:g}, is still at the end of its "
                    f"grid after {self.storage.records['extensions']} extensions; a better one may "
                    "lie beyond. A study with a larger study.max_extensions would look there."
                )
            base = self.recipe.arms[name].base
            if base in chosen and plan.far_from(tuning.arms[base], tuning.arms[name]):
                self.request.note(
                    f"{name} was not tried at the best lr of {base}, {chosen[base]['lr']:g}, and "
                    "comes out of tuning behind it: it may be compared far below its best. A study "
                    f"with arms.{name}.grid.lr around that would tell."
                )
        return self.storage.settle("chosen", chosen)

    def _take_over(self, runs: list[Run]) -> bool:
        """Publish what another study has of these; whether it had any."""
        if self.reusable is None:
            return False
        # A key has lr to six digits; what is found again by its setting has to have all of them.
        known = self.reusable.runs
        found = [run.key for run in runs if known.get(run.key, {}).get("setting") == run.setting]
        for key in found:
            self.storage.record(key, known[key])
        if found:
            self.news = True
            self.request.note(f"{len(found)} runs are taken over from {self.request.reuse}.")
        return bool(found)

    # -- runs -----------------------------------------------------------------------------------

    def _hear(self, queue: Queue, worker: Worker, kind: str, content: Any) -> None:
        """Act on what a worker says, or on its death."""
        if kind == "ready":
            worker.ready = True
            data, notices = content
            if self.reusable is not None and not self.told:
                self.reusable.check_data(data)
            identity.check_data(self.storage, data)
            for line in notices if not self.told else ():
                self.request.note(line)
            self.told = True
        elif kind == "usage":
            raise UsageError(content)
        elif kind == "broken":
            raise SagelrError(f"A worker could not start: {content}")
        elif kind == "progress":
            worker.share = content
        elif (run := worker.run) is not None:
            worker.run, worker.share, self.news = None, 0.0, True
            if kind == "died":
                self._died(queue, run, content)
            elif kind == "error":
                self._give_up(queue, run, content)
            elif unfit := not_finite(content):
                self._give_up(queue, run, f"{unfit}, which is no number to go by")
            else:
                begun = self.storage.records["study"]
                if self.machine != begun["machine"]:
                    content["machine"] = self.machine
                if self.versions != begun["versions"]:
                    content["versions"] = self.versions
                value = results.value_of(self.recipe, content)
                queue.publish(run, math.inf if value is None else value, content)

    def _died(self, queue: Queue, run: Run, death: str) -> None:
        """The run of a dead worker has one more try."""
        self.deaths[run.key] = self.deaths.get(run.key, 0) + 1
        if self.deaths[run.key] == ATTEMPTS:
            self._give_up(queue, run, f"{death}, {ATTEMPTS} times")
        else:
            self.request.note(f"{run.key}: {death}; it is run again.")
            queue.fail(run)

    def _give_up(self, queue: Queue, run: Run, reason: str) -> None:
        queue.fail(run, results.failed(run, reason))
        self.request.note(f"{run.key} failed: {reason}")
        alike = [found for found in queue.given_up.values() if found["error"] == reason]
        if len(alike) >= ALIKE and not any(q.published for q in self.queues.values()):
            raise SagelrError(
                f"The first {len(alike)} runs failed in the same way: {reason}. Nothing can be "
                "compared until that is mended."
            )

    def _look_around(self, queue: Queue) -> None:
        """On a server others work too."""
        if not self.storage.shared or time.monotonic() - self.looked < LOOK:
            return
        known = len(self.storage.records)
        queue.refresh()
        self.news = self.news or len(self.storage.records) > known
        self.looked = time.monotonic()

    def _interrupt(self, now: _Plan, signum: int) -> None:
        running = self.crew.running
        self.crew.stop()
        for run in running:
            self.queues[run.stage].fail(run)
        progress = self._write(now.status, now)["progress"]
        raise InterruptedStudyError(
            f"Stopped. {progress['done']} of {progress['total']} runs are finished and kept in "
            f"{self.storage.place}. To go on: "
            f"{self.request.command or 'run the same command again'}",
            signum,
        )

    # -- telling --------------------------------------------------------------------------------

    def _runs(self, now: _Plan) -> dict[str, dict[str, Any]]:
        """All that have ended, but for report runs that failed and are not asked for any more."""
        wanted = {run.key for run in now.reporting}
        runs: dict[str, dict[str, Any]] = {}
        for stage, queue in self.queues.items():
            failed = queue.failed.items()
            runs |= {key: run for key, run in failed if stage == "tune" or key in wanted}
            runs |= queue.published
        return runs

    def _write(self, status: str, now: _Plan) -> dict[str, Any]:
        began = time.monotonic()
        document = results.assemble(
            self.recipe,
            about=identity.about(self.storage.records, self.request.command),
            status=status,
            total=now.total,
            runs=self._runs(now),
            arms=now.tuning.arms,
            chosen=now.chosen,
            seeds=[plan.FIRST_REPORT_SEED + i for i in range(now.seeds)],
        )
        jsonfile.write(self.out / RESULTS, document)
        self.written, self.news = time.monotonic(), False
        self.rest = max(WRITE_EVERY, (self.written - began) / WRITE_SHARE)
        if document["runs"]:
            self.request.published(document, self.out)
        return document

    def _show(self, now: _Plan) -> None:
        runs = self._runs(now)
        total = max(now.total, len(runs))
        done = len(runs) + self.crew.share
        seconds = [run["seconds"] for run in runs.values() if run["seconds"]]
        left = None
        if seconds:
            at_once = self.request.jobs + len(self.queues[now.stage].elsewhere)
            mean = sum(seconds) / len(seconds)
            left = (total - done) * mean / min(at_once, total)
        self.request.standing(Standing(now.status, len(runs), total, done / total, left))
