"""Running a study: persistent workers train, the parent claims, writes and decides."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any

import sagelr
from sagelr.errors import SagelrError, UsageError
from sagelr.recipe import Recipe, Setting
from sagelr.study import plan, results
from sagelr.study.queue import DATABASE, Queue, locked
from sagelr.study.worker import Worker
from sagelr.train import Run, check_arm

RESULTS, PAGE = "results.json", "report.html"
ATTEMPTS = 2  # of a run whose worker dies
TICK = 0.2  # seconds between looks at the workers
WRITE_EVERY = 2.0  # seconds between writings of results.json
# What may differ between two starts of one study: none of it changes a finished run or its verdict.
FREE = {"title", "description", "quick", "study.report_seeds"}


class InterruptedStudyError(SagelrError):
    """Stopped by a signal; what is finished is kept."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signum


@dataclass(frozen=True)
class Standing:
    """How far a study is, for a progress display."""

    status: str
    done: int
    total: int
    share: float
    seconds_left: float | None
    running: list[str]


@dataclass
class Request:
    """What to compare.

    Attributes:
        recipe: as validated; its report_seeds are a minimum if the folder has more already.
        out: folder of the study.
        jobs: worker processes.
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
        UsageError: the recipe cannot be run, or the folder holds something else.
        InterruptedStudyError: Ctrl-C; finished runs are kept, and the next start goes on.
        SagelrError: it cannot go on.
    """
    for name, arm in request.recipe.chosen_arms().items():
        check_arm(name, arm)
    make_folder(request.out)
    with locked(request.out), _signals() as signals:
        return _Study(request, signals).run()


def make_folder(out: Path) -> None:
    """Make a study's folder, unless something of another kind is in the way.

    Raises:
        UsageError: it is a file, or results of unknown origin are in it.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file. Give --out a folder.")
    if not (out / DATABASE).exists():
        for name in (RESULTS, PAGE):
            if (out / name).exists():
                raise UsageError(
                    f"{out} holds a {name} but no {DATABASE}, so the study cannot go on and the "
                    f"file would be overwritten. Move it away, or give --out another folder."
                )
    out.mkdir(parents=True, exist_ok=True)


class _Signals:
    """The first signal asks to stop, the second does not wait."""

    def __init__(self) -> None:
        self.caught: int | None = None

    def catch(self, signum: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise KeyboardInterrupt
        self.caught = signum


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals  # only the main thread may catch signals
        return
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.signal(signum, signals.catch) for signum in wanted}
    try:
        yield signals
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class _Study:
    def __init__(self, request: Request, signals: _Signals) -> None:
        self.request, self.signals = request, signals
        self.recipe, self.out = request.recipe, request.out
        self.data = self.recipe.to_json()
        self.queues = {stage: Queue(self.out, stage) for stage in ("tune", "report")}
        self.about = self._open()
        self.workers: list[Worker] = []
        self.attempts: dict[str, int] = {}
        self.failed: dict[str, str] = {}  # in this process: not tried again by it
        self.written = 0.0
        self.began = time.monotonic()

    # -- one study, one recipe ------------------------------------------------------------------

    def _open(self) -> dict[str, Any]:
        """Recognise the study in the folder, or make it this one's."""
        queue = self.queues["tune"]
        known = queue.attributes()
        if "recipe" not in known:
            known = {
                "recipe": self.data,
                "created": results.now(),
                "quick": self.request.quick,
                "overrides": dict(self.request.overrides),
                "machine": results.machine(self.recipe.train.device),
                "versions": results.versions(),
                "sagelr": sagelr.__version__,
                "report_seeds": self.recipe.study.report_seeds,
                "data": None,
            }
            # The recipe last: a study that has it has the rest.
            for name in sorted(known, key=lambda name: name == "recipe"):
                queue.remember(name, known[name])
        _same_recipe(known["recipe"], self.data, self.out)
        now = results.versions() | {"sagelr": sagelr.__version__}
        then = known["versions"] | {"sagelr": known["sagelr"]}
        for name in sorted(now.keys() & then.keys()):
            if now[name] != then[name]:
                self.request.note(
                    f"This study was begun with {name} {then[name]}; now it is {now[name]}. "
                    "Runs of both are compared with each other."
                )
        if known["report_seeds"] > self.recipe.study.report_seeds:
            self.request.note(
                f"This study has {known['report_seeds']} report seeds already; all of them stay, "
                "since leaving some out afterwards would be choosing among results."
            )
        elif known["report_seeds"] < self.recipe.study.report_seeds:
            queue.remember("report_seeds", self.recipe.study.report_seeds)
        seeds = max(known["report_seeds"], self.recipe.study.report_seeds)
        looks = self.queues["report"].attributes().get("looks", [])
        return {**known, "report_seeds": seeds, "looks": looks, "command": self.request.command}

    # -- the plan -------------------------------------------------------------------------------

    def _chosen(self) -> dict[str, Setting] | None:
        return self.queues["report"].attributes().get("chosen")

    def _plan(self) -> tuple[str, plan.Tuning, list[Run], list[Run]]:
        """Stage, tuning, the runs of this stage, and those of report as far as they are known."""
        chosen = self._chosen()
        scores = {
            key: results.value_of(self.recipe, result)
            for key, result in self.queues["tune"].published.items()
        }
        if chosen is None:
            scores |= dict.fromkeys((k for k in self.failed if k.startswith("tune/")), None)
        else:  # the choice stands: what failed then is not tried again now
            scores |= dict.fromkeys(self.queues["tune"].failed, None)
        tuning = plan.tuning(self.recipe, scores)
        if chosen is None and tuning.done:
            chosen = self._choose(tuning)
        if chosen is None:
            return "tuning", tuning, tuning.runs, []
        report = plan.reporting(self.recipe, chosen, self.about["report_seeds"])
        return "reporting", tuning, report, report

    def _choose(self, tuning: plan.Tuning) -> dict[str, Setting]:
        """The barrier between tuning and report: from here on the choice stands."""
        chosen: dict[str, Setting] = {}
        for name, tuned in tuning.arms.items():
            if tuned.chosen is None:
                self._write("tuning", tuning, [])
                raise SagelrError(
                    f"No setting of {name} trained with every seed (lr "
                    f"{', '.join(f'{lr:g}' for lr in tuned.grid['lr'])}): {self._reasons(name)}. "
                    f"Try a lower arms.{name}.grid.lr with --set, in another --out."
                )
            if tuned.on_edge and not self.request.quick:
                self.request.note(
                    f"The best lr of {name}, {tuned.chosen['lr']:g}, is still at the end of its "
                    f"grid after {self.recipe.study.max_extensions} extensions; a better one may "
                    "lie beyond. Raise study.max_extensions."
                )
            chosen[name] = tuned.chosen
        self.queues["report"].remember("chosen", chosen)
        return chosen

    def _reasons(self, arm: str) -> str:
        runs = [run for run in self._runs().values() if run["arm"] == arm and run["error"]]
        return runs[-1]["error"] if runs else "no reason known"

    # -- the loop -------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        document: dict[str, Any] = {}
        try:
            while True:
                stage, tuning, runs, report = self._plan()
                queue = self.queues["tune" if stage == "tuning" else "report"]
                left = {r.key: r for r in runs if self._is_open(queue, r)}
                if not left:
                    if stage == "tuning":
                        continue  # the plan goes on from what was found
                    self._look()
                    document = self._write("complete", tuning, report)
                    return document
                queue.enqueue(list(left.values()))
                self._staff(len(left))
                self._assign(queue, left)
                if time.monotonic() - self.written > WRITE_EVERY and self._news:
                    document = self._write(stage, tuning, report)
                self._show(stage, tuning)
                self._listen(queue)
                if self.signals.caught is not None:
                    self._interrupt(stage, tuning, report)
        finally:
            for worker in self.workers:
                worker.stop()

    _news = True

    def _is_open(self, queue: Queue, run: Run) -> bool:
        return run.key not in queue.published and run.key not in self.failed

    def _staff(self, runs: int) -> None:
        """As many workers as jobs, and not more than there is work for."""
        while len(self.workers) < min(self.request.jobs, runs):
            self.workers.append(Worker(self.data, self.recipe.train.threads))

    def _assign(self, queue: Queue, left: Mapping[str, Run]) -> None:
        for worker in self.workers:
            if worker.ready and worker.run is None:
                run = queue.claim(left)
                if run is None:
                    return
                worker.send(run)

    def _listen(self, queue: Queue) -> None:
        handles = [worker.pipe for worker in self.workers]
        handles += [worker.process.sentinel for worker in self.workers]  # type: ignore[misc]
        connection.wait(handles, timeout=TICK)
        for worker in list(self.workers):
            for kind, content in worker.messages():
                self._hear(queue, worker, kind, content)
            if worker.death() is not None:
                # What it said before it died may have come between the two looks.
                for kind, content in worker.messages():
                    self._hear(queue, worker, kind, content)
                self._bury(queue, worker)

    def _hear(self, queue: Queue, worker: Worker, kind: str, content: Any) -> None:
        if kind == "ready":
            worker.ready = True
            self._check_data(content)
        elif kind == "broken":
            raise SagelrError(f"A worker could not start: {content}")
        elif kind == "progress":
            worker.share = content
        elif worker.run is not None:
            run, worker.run, worker.share = worker.run, None, 0.0
            self._news = True
            if kind == "done":
                value = results.value_of(self.recipe, content)
                queue.publish(run, float("inf") if value is None else value, content)
            else:
                self._give_up(queue, run, content)

    def _check_data(self, data: dict[str, Any]) -> None:
        known = self.about["data"]
        if known is None:
            self.about["data"] = data
            self.queues["tune"].remember("data", data)
        elif known["sha256"] != data["sha256"]:
            raise SagelrError(
                f"The data have changed since this study was begun: sha256 {data['sha256'][:12]}… "
                f"now, {known['sha256'][:12]}… then. Restore them, or give --out another folder."
            )

    def _bury(self, queue: Queue, worker: Worker) -> None:
        """Replace a dead worker; its run has one more try."""
        death = worker.death()
        self.workers.remove(worker)
        worker.pipe.close()
        if not worker.ready:
            raise SagelrError(
                f"A worker could not start: {death}. With little memory, try --jobs 1."
            )
        run = worker.run
        if run is None:
            return
        self._news = True
        self.attempts[run.key] = self.attempts.get(run.key, 0) + 1
        if self.attempts[run.key] < ATTEMPTS:
            self.request.note(f"{run.key}: {death}; it is run again.")
            queue.fail(run)
        else:
            self._give_up(queue, run, f"{death}, {ATTEMPTS} times")

    def _give_up(self, queue: Queue, run: Run, reason: str) -> None:
        self.failed[run.key] = reason
        queue.fail(run, _failed(run, reason))
        self.request.note(f"{run.key} failed: {reason}")
        alike = [line for line in self.failed.values() if line == reason]
        if len(alike) > 2 and not any(q.published for q in self.queues.values()):
            raise SagelrError(
                f"The first {len(alike)} runs failed in the same way: {reason}. Nothing can be "
                "compared until that is mended."
            )

    def _interrupt(self, stage: str, tuning: plan.Tuning, report: list[Run]) -> None:
        for worker in self.workers:
            worker.stop()
            if worker.run is not None:
                self.queues[worker.run.stage].fail(worker.run)
        self.workers = []
        document = self._write(stage, tuning, report)
        done, total = document["progress"]["done"], document["progress"]["total"]
        assert self.signals.caught is not None
        raise InterruptedStudyError(
            f"Stopped. {done} of {total} runs are finished and kept in {self.out}. "
            f"To go on: {self.request.command or 'run the same command again'}",
            self.signals.caught,
        )

    # -- telling --------------------------------------------------------------------------------

    def _runs(self) -> dict[str, dict[str, Any]]:
        runs: dict[str, dict[str, Any]] = {}
        for queue in self.queues.values():
            runs |= {**queue.failed, **queue.published}
        return runs

    def _look(self) -> None:
        """Note that the report was read at this number of seeds."""
        if self.about["report_seeds"] not in self.about["looks"]:
            self.about["looks"] = [*self.about["looks"], self.about["report_seeds"]]
            self.queues["report"].remember("looks", self.about["looks"])

    def _total(self, tuning: plan.Tuning) -> int:
        return len(tuning.runs) + len(self.recipe.study.arms) * self.about["report_seeds"]

    def _write(self, status: str, tuning: plan.Tuning, report: list[Run]) -> dict[str, Any]:
        document = results.assemble(
            self.recipe,
            about=self.about,
            status=status,
            total=self._total(tuning),
            runs=self._runs(),
            arms=tuning.arms,
            chosen=self._chosen(),
            seeds=[plan.FIRST_REPORT_SEED + i for i in range(self.about["report_seeds"])],
        )
        results.write(self.out / RESULTS, document)
        if document["runs"]:
            self.request.published(document, self.out)
        self.written, self._news = time.monotonic(), False
        return document

    def _show(self, status: str, tuning: plan.Tuning) -> None:
        runs = self._runs()
        total = max(self._total(tuning), len(runs))
        busy = [worker for worker in self.workers if worker.run is not None]
        done = len(runs) + sum(worker.share for worker in busy)
        seconds = [run["seconds"] for run in runs.values() if run["seconds"]]
        left = None
        if seconds:
            mean = sum(seconds) / len(seconds)
            left = (total - done) * mean / max(1, min(self.request.jobs, total))
        running = [worker.run.key for worker in busy if worker.run is not None]
        self.request.standing(Standing(status, len(runs), total, done / total, left, running))


def _failed(run: Run, reason: str) -> dict[str, Any]:
    """The entry of a run without a result."""
    return {
        "key": run.key,
        "stage": run.stage,
        "arm": run.arm,
        "setting": run.setting,
        "seed": run.seed,
        "status": "failed",
        "error": reason,
        "scores": {"validation": None, "test": None, "train": None},
        "curve": [],
        "options": {},
        "seconds": None,
        "peak_memory_mib": None,
        "started": None,
        "sagelr": sagelr.__version__,
        "sage": None,
    }


def _same_recipe(then: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """Refuse to mix runs of different settings in one study.

    Raises:
        UsageError: naming the first settings that differ.
    """
    before, after = _flat(then), _flat(now)
    differing = [
        key
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in FREE and not key.startswith("quick.")
    ]
    if differing:
        shown = "; ".join(
            f"{key} was {before.get(key, 'not set')!r} and is now {after.get(key, 'not set')!r}"
            for key in differing[:3]
        )
        more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        raise UsageError(
            f"{out} holds a study with other settings: {shown}{more}. Its runs are kept. Use the "
            "settings it was begun with, or give --out another folder."
        )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
