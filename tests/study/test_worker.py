"""Real workers: they train what they are told, and their deaths are understood."""

from __future__ import annotations

import os
import signal
import time

import pytest

from sagelr.study.worker import Worker
from sagelr.train import Run

pytestmark = pytest.mark.processes


def heard(worker: Worker, *kinds: str) -> tuple[str, object]:
    """The first message of one of these kinds."""
    for _ in range(6000):
        for kind, content in worker.messages():
            if kind in kinds:
                return kind, content
        assert worker.death() is None
        time.sleep(0.01)
    raise AssertionError(f"none of {kinds} came")


@pytest.fixture
def hired(recipe):
    workers = []

    def hire(changes=None) -> Worker:
        workers.append(Worker(recipe(changes).to_json(), threads=1))
        return workers[-1]

    yield hire
    for worker in workers:
        worker.stop()


def test_a_worker_trains_one_run_after_another_as_if_each_were_alone(hired):
    worker = hired()
    _, (data, notices) = heard(worker, "ready")
    assert data["rows"] == {"train": 64, "validation": 32, "test": 1701}
    assert notices == []
    scores = []
    for seed in (7, 8, 7):
        worker.send(Run("tune", "sage-adamw", {"lr": 1e-3}, seed))
        _, result = heard(worker, "done")
        scores.append(result["scores"])
    assert scores[0] == scores[2] != scores[1]


@pytest.mark.parametrize("scope", ["no-such-layer", "(layer"])
def test_a_scope_that_is_none_is_told_before_any_run(hired, scope):
    worker = hired({"arms.sage-adamw.scope": scope})
    kind, line = heard(worker, "ready", "usage", "broken")
    assert kind == "usage"
    assert line.startswith(f"arms.sage-adamw.scope: SageAdamW, scope {scope!r}: ")
    assert line.endswith(".")
    assert not line.endswith("..")
    assert "\n" not in line


def test_a_run_that_cannot_be_done_is_told_in_one_line_and_the_worker_goes_on(hired):
    worker = hired()
    heard(worker, "ready")
    worker.send(Run("tune", "no-such-arm", {"lr": 1e-3}, 0))
    _, line = heard(worker, "error")
    assert "no-such-arm" in line
    assert "\n" not in line
    worker.send(Run("tune", "adamw", {"lr": 1e-3}, 0))
    heard(worker, "done")


def test_a_death_is_explained(hired):
    worker = hired()
    assert worker.death() is None
    heard(worker, "ready")
    worker.send(Run("tune", "adamw", {"lr": 1e-3}, 0))
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.join(10)
    assert "ended by SIGKILL, as the system does when memory runs out" in worker.death()
    worker.send(Run("tune", "adamw", {"lr": 1e-3}, 0))  # unheard, and no error
    list(worker.messages())


def test_a_worker_that_cannot_load_its_data_says_so(hired, recipe):
    broken = recipe().to_json()
    broken["task"]["train"] = 1780
    worker = Worker(broken, threads=1)
    kind, line = heard(worker, "broken", "ready")
    worker.stop()
    assert kind == "broken"
    assert "1780" in line
