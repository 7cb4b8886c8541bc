"""The queue and the records of a study in a SQLite file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import optuna
import pytest
from sqlalchemy import Engine, event

from sagelr.errors import SagelrError, UsageError
from sagelr.study.queue import Queue
from sagelr.study.storage import DATABASE, Storage, folder_url, server_url, shown
from sagelr.train import Run

RUNS = [Run("tune", "adamw", {"lr": lr}, seed) for lr in (0.1, 0.2) for seed in (0, 1)]


def opened(folder: Path, stage: str = "tune") -> Queue:
    return Queue(Storage(folder_url(folder)), stage)


def result(run: Run, **more) -> dict:
    return {"key": run.key, "status": "complete", **more}


# -- claims and results -------------------------------------------------------------------------


def test_runs_are_claimed_in_their_order_and_each_once(tmp_path):
    queue = opened(tmp_path)
    queue.enqueue(RUNS)
    queue.enqueue(RUNS)
    assert [queue.claim() for _ in range(5)] == [*RUNS, None]


def test_a_result_is_there_for_the_next_process(tmp_path):
    queue = opened(tmp_path)
    queue.enqueue(RUNS)
    queue.publish(queue.claim(), 0.5, result(RUNS[0], scores={"loss": 0.5}))
    again = opened(tmp_path)
    assert again.published == {RUNS[0].key: result(RUNS[0], scores={"loss": 0.5})}
    again.enqueue(RUNS)
    assert [again.claim() for _ in range(4)] == [*RUNS[1:], None]


def test_a_run_whose_parent_died_is_run_again(tmp_path):
    queue = opened(tmp_path)
    queue.enqueue(RUNS[:1])
    assert queue.claim() == RUNS[0]
    again = opened(tmp_path)  # the first one is gone, in the middle of its run
    assert again.claim() is None
    again.enqueue(RUNS[:1])
    assert again.claim() == RUNS[0]
    assert again.claim() is None


def test_a_key_is_published_once(tmp_path):
    queue = opened(tmp_path)
    queue.enqueue(RUNS[:1])
    queue.publish(queue.claim(), 0.5, result(RUNS[0], loss=0.5))
    assert not queue.storage.record(RUNS[0].key, result(RUNS[0], loss=0.4))
    queue.enqueue(RUNS[:1])
    assert queue.claim() is None
    assert opened(tmp_path).published[RUNS[0].key]["loss"] == 0.5


def test_of_two_trials_of_one_key_one_alone_is_run(tmp_path):
    queue = opened(tmp_path)
    study = queue.storage.optuna_study("tune")
    about = {"arm": "adamw", "setting": {"lr": 0.1}, "seed": 0, "key": RUNS[0].key}
    for _ in range(3):
        study.enqueue_trial({"lr": 0.1, "seed": 0}, user_attrs=about)
    queue.refresh()
    assert queue.claim() == RUNS[0]
    assert queue.claim() is None
    queue.publish(RUNS[0], 0.5, result(RUNS[0]))
    assert queue.claim() is None


def test_a_trial_that_is_not_ours_is_left_out(tmp_path):
    queue = opened(tmp_path)
    queue.storage.optuna_study("tune").enqueue_trial({"x": 1.0})
    queue.enqueue(RUNS[:1])
    assert queue.claim() == RUNS[0]
    assert queue.claim() is None


def test_stages_are_two_queues(tmp_path):
    tune = opened(tmp_path)
    report = Queue(tune.storage, "report")
    tune.enqueue(RUNS)
    assert report.claim() is None
    run = Run("report", "adamw", {"lr": 0.1}, 1000)
    report.enqueue([run])
    assert report.claim() == run
    report.publish(run, 0.1, result(run))
    assert tune.published == {}
    assert report.published.keys() == {run.key}


def test_a_failed_run_is_tried_again_by_the_next_process_alone(tmp_path):
    queue = opened(tmp_path)
    queue.enqueue(RUNS[:2])
    queue.fail(queue.claim(), result(RUNS[0], error="no room"))
    queue.fail(queue.claim())  # interrupted: that is no failure
    assert queue.is_closed(RUNS[0])
    assert not queue.is_closed(RUNS[1])
    queue.enqueue(RUNS[:2])
    assert [queue.claim(), queue.claim()] == [RUNS[1], None]
    again = opened(tmp_path)
    assert again.failed[RUNS[0].key]["error"] == "no room"
    again.enqueue(RUNS[:2])
    assert again.claim() == RUNS[0]


def test_optuna_sees_settings_and_values(tmp_path):
    queue = opened(tmp_path)
    queue.enqueue(RUNS)
    queue.publish(queue.claim(), 0.5, result(RUNS[0]))
    queue.publish(queue.claim(), float("inf"), result(RUNS[1]))
    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{tmp_path / DATABASE}")
    assert study.best_params == {"lr": 0.1, "seed": 0}
    assert study.best_value == 0.5
    assert study.trials[1].value == float("inf")


# -- records ------------------------------------------------------------------------------------


def test_the_first_record_stands(tmp_path):
    storage = Storage(folder_url(tmp_path))
    other = Storage(folder_url(tmp_path))
    assert storage.settle("chosen", {"adamw": {"lr": 0.1}}) == {"adamw": {"lr": 0.1}}
    assert other.settle("chosen", {"adamw": {"lr": 0.2}}) == {"adamw": {"lr": 0.1}}
    third = Storage(folder_url(tmp_path))
    assert not third.record("chosen", None)
    assert third.records == other.records
    assert other.records == {"chosen": {"adamw": {"lr": 0.1}}}


def test_records_of_others_are_seen_at_the_next_look(tmp_path):
    storage, other = Storage(folder_url(tmp_path)), Storage(folder_url(tmp_path))
    storage.record("a", 1)
    storage.look()
    other.look()
    other.record("b", (2, "θ"))
    assert storage.records == {"a": 1}
    storage.look()
    assert storage.records == other.records == {"a": 1, "b": [2, "θ"]}


# -- files that are not what they should be -----------------------------------------------------


def test_the_database_of_something_else_is_left_as_it_is(tmp_path):
    with sqlite3.connect(tmp_path / DATABASE) as file:
        file.execute("create table customers (name)")
    before = (tmp_path / DATABASE).read_bytes()
    with pytest.raises(
        UsageError, match=r"something else than sagelr \(it has the table customers"
    ):
        Storage(folder_url(tmp_path))
    assert (tmp_path / DATABASE).read_bytes() == before


def test_an_optuna_study_of_something_else_is_left_as_it_is(tmp_path):
    optuna.create_study(storage=f"sqlite:///{tmp_path / DATABASE}", study_name="tune")
    before = (tmp_path / DATABASE).read_bytes()
    with pytest.raises(UsageError, match=r"something else than sagelr"):
        Storage(folder_url(tmp_path))
    assert (tmp_path / DATABASE).read_bytes() == before


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / DATABASE).write_text("precious notes " * 100)
    with pytest.raises(SagelrError, match=r"file is not a database.*moved away") as error:
        Storage(folder_url(tmp_path))
    assert "\n" not in str(error.value)
    assert (tmp_path / DATABASE).read_text() == "precious notes " * 100


def test_a_damaged_file(tmp_path):
    queue = opened(tmp_path)
    queue.enqueue(RUNS)
    queue.storage.close()
    whole = (tmp_path / DATABASE).read_bytes()
    (tmp_path / DATABASE).write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    with pytest.raises(SagelrError, match="malformed"):
        opened(tmp_path).enqueue(RUNS)


def test_a_full_disk(tmp_path):
    def limit(connection, _):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    queue = opened(tmp_path)
    queue.enqueue(RUNS)
    queue.publish(queue.claim(), 0.5, result(RUNS[0]))
    queue.storage.close()
    event.listen(Engine, "connect", limit)
    try:
        full = opened(tmp_path)
        with pytest.raises(SagelrError, match=r"full.*its disk has room.*finished are kept"):
            full.publish(full.claim(), 0.5, result(RUNS[1], curve=["x" * 1000] * 100))
    finally:
        event.remove(Engine, "connect", limit)
    assert opened(tmp_path).published.keys() == {RUNS[0].key}


@pytest.mark.parametrize("name", ["a b", "a?b", "{x}", "50%41", "ü#é"])
def test_odd_folder_names(tmp_path, name):
    (tmp_path / name).mkdir()
    queue = opened(tmp_path / name)
    queue.enqueue(RUNS)
    assert queue.claim() == RUNS[0]
    assert (tmp_path / name / DATABASE).exists()


# -- URLs of servers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "is not a URL"),
        ("postgresql://host:port/db", "is not a URL"),
        ("sqlite:///study.db", "is a sqlite URL; it takes PostgreSQL alone.*Leave it out"),
        ("mysql://host/db", "is a mysql URL"),
        ("postgresql://host", "names no database"),
    ],
)
def test_urls_that_are_none(text, message):
    with pytest.raises(UsageError, match=message):
        server_url(text)


def test_a_name_that_does_not_fit_its_column_is_refused():
    url = server_url("postgresql://me@127.0.0.1:1/db")
    with pytest.raises(UsageError, match=r"'nnn.* has 201 characters.*at most 200 with --study"):
        Storage(url, "n" * 201)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("postgres://host/db", "postgresql://host/db"),
        ("postgresql+psycopg2://me@host:5433/db", "postgresql://me@host:5433/db"),
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?password=secret", "postgresql://host/db"),
    ],
)
def test_a_url_is_shown_without_its_password(text, want):
    assert shown(server_url(text)) == want
