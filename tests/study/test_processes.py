"""`sagelr compare` with real trainings: signals, deaths, and results that do not depend on them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.processes

SHORT = {"study.tune_seeds": 1, "study.report_seeds": 2, "study.max_extensions": 1}
SHORT |= {"arms.adamw.grid.lr": [1e-3, 1e-2], "arms.sage-adamw.grid.lr": [2e-3, 2e-2]}
# Minutes of training: a test ends it long before.
ENDLESS = {"train.epochs": 3000, "study.arms": ["adamw"], "arms.adamw.grid.lr": [1e-3]}
ENDLESS |= {"study.tune_seeds": 1, "study.max_extensions": 0}


class Program:
    """A `sagelr compare` that runs."""

    def __init__(self, recipe: Path, out: Path, *words: str) -> None:
        self.out = out
        self.log = out.with_name(f"{out.name}-{time.monotonic_ns()}.log")
        command = [sys.executable, "-m", "sagelr", "compare", str(recipe), "--out", str(out)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--jobs", "1", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Whoever runs the tests in the background may have them ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def told(self) -> str:
        return self.log.read_text()

    def document(self) -> dict:
        return json.loads((self.out / "results.json").read_text())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        for _ in range(1800):
            if condition():
                return
            assert self.process.poll() is None, self.told()
            time.sleep(0.05)
        raise AssertionError(self.told())

    def end(self, status: int) -> None:
        assert self.process.wait(120) == status, self.told()
        assert "Traceback" not in self.told()

    def worker(self) -> psutil.Process | None:
        """The process that trains, once it has been at it for a while."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
                if "spawn_main" in " ".join(child.cmdline()):
                    return child
        return None

    def stop(self) -> None:
        """Whatever came of it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def program(tmp_path):
    started = []

    def start(recipe: Path, name: str, *words: str) -> Program:
        started.append(Program(recipe, tmp_path / name, *words))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def test_ctrl_c_and_the_death_of_a_worker_change_no_result(program, recipe_file, timeless):
    recipe = recipe_file(SHORT)
    whole, broken = program(recipe, "whole"), program(recipe, "broken")

    def finished(count: int) -> Callable[[], bool]:
        path = broken.out / "results.json"
        return lambda: path.exists() and len(broken.document()["runs"]) >= count

    broken.wait_until(finished(1))
    worker = broken.worker()
    assert worker is not None
    worker.send_signal(signal.SIGKILL)
    broken.wait_until(finished(3))
    os.killpg(broken.process.pid, signal.SIGINT)  # as a terminal does it, to all of them
    broken.end(130)
    assert "ended by SIGKILL, as the system does when memory runs out; it is run" in broken.told()
    assert "runs are finished and kept" in broken.told()
    kept = broken.document()
    assert kept["status"] in ("tuning", "reporting")

    again = program(recipe, "broken")
    again.end(0)
    whole.end(0)
    document = again.document()
    assert timeless(document) == timeless(whole.document())
    assert (again.out / "report.html").is_file()
    begun = {run["key"]: run["started"] for run in document["runs"]}
    assert all(begun[run["key"]] == run["started"] for run in kept["runs"])  # not run again


def test_a_run_that_kills_its_worker_twice_is_given_up(program, recipe_file):
    study = program(recipe_file(ENDLESS), "out")
    deaths = 0

    def training() -> bool:
        worker = study.worker()
        with contextlib.suppress(psutil.NoSuchProcess):
            at_it = worker is not None and worker.cpu_times().user > 0
            return at_it and _claimed(study.out) > deaths
        return False

    for deaths in range(2):
        study.wait_until(training)
        worker = study.worker()
        assert worker is not None
        worker.send_signal(signal.SIGKILL)
        if not deaths:
            study.wait_until(lambda: "it is run again" in study.told())
    study.end(1)
    assert "No setting of adamw trained with every seed (lr 0.001)" in study.told()
    assert "ended by SIGKILL, as the system does when memory runs out, 2 times" in study.told()
    failed = study.document()["runs"]
    assert [run["status"] for run in failed] == ["failed"]


def test_when_the_parent_is_killed_its_workers_end_and_the_next_start_goes_on(program, recipe_file):
    study = program(recipe_file(ENDLESS), "out")
    study.wait_until(lambda: _claimed(study.out) > 0)
    worker = study.worker()
    assert worker is not None
    study.process.kill()
    study.process.wait()
    worker.wait(20)
    again = program(recipe_file(ENDLESS), "out")
    # What was queued is made anew, since no run has a result yet, before there is a worker.
    again.wait_until(lambda: again.worker() is not None and _claimed(again.out) > 0)
    again.process.terminate()
    again.end(143)
    assert "Stopped. 0 of " in again.told()


def _claimed(out: Path) -> int:
    """How many trials were ever begun."""
    import sqlite3

    if not (out / "results.json").exists() and not (out / "study.db").exists():
        return 0
    try:
        with sqlite3.connect(f"file:{out / 'study.db'}?mode=ro", uri=True) as file:
            rows = file.execute(
                "select count(*) from trial_user_attributes where key = 'by'"
            ).fetchone()
            return rows[0]
    except sqlite3.OperationalError:  # not made yet
        return 0
