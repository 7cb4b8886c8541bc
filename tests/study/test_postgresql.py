"""One study by many processes, on a real PostgreSQL server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

from sagelr.errors import SagelrError, UsageError
from sagelr.study import queue as queue_module
from sagelr.study.queue import Queue
from sagelr.study.storage import RECORDS, Storage, server_url
from sagelr.train import Run

pytestmark = pytest.mark.processes
pytest.importorskip("psycopg", reason="psycopg is not installed")

RUNS = [Run("tune", "adamw", {"lr": lr / 10}, seed) for lr in range(1, 4) for seed in range(4)]

SMALL = {"study.arms": ["adamw"], "study.tune_seeds": 1, "study.report_seeds": 2}


class Server:
    """A PostgreSQL of its own, in a folder that goes with it."""

    def __init__(self) -> None:
        # The server refuses to run as root; the package makes the user postgres.
        self.user = "postgres" if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="sagelr-postgresql-"))
        if self.user:
            shutil.chown(self.folder, self.user, self.user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        password = self.folder / "password"
        password.write_text("secret")
        password.chmod(0o644)
        self.call("initdb", "-U", "sagelr", "-A", "scram-sha-256", f"--pwfile={password}", "-N")
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self.call("pg_ctl", "start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def call(self, program: str, *words: str) -> None:
        """Run one of PostgreSQL's programs on the server's data."""
        found = find(program)
        assert found is not None
        subprocess.run(
            [found, "-D", str(self.folder / "data"), *words],
            check=True,
            user=self.user,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
        )

    def url(self, password: str = ":secret", database: str = "postgres") -> str:
        return f"postgresql://sagelr{password}@127.0.0.1:{self.port}/{database}"

    def stop(self) -> None:
        self.call("pg_ctl", "stop", "-m", "immediate")
        shutil.rmtree(self.folder)


def find(program: str) -> str | None:
    """Where one of PostgreSQL's programs is; Debian keeps them out of the path."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return shutil.which(program) or (str(beside[-1]) if beside else None)


@pytest.fixture(scope="module")
def server():
    if find("initdb") is None or find("pg_ctl") is None:
        pytest.skip("no PostgreSQL: initdb and pg_ctl are not installed")
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def notes():
    """What queues had to say."""
    return []


@pytest.fixture
def opened(server, request, notes):
    """Opens the queue of this test's own study, as often as asked."""
    storages = []

    def open_queue(stage: str = "tune") -> Queue:
        storages.append(Storage(server_url(server.url()), request.node.name))
        return Queue(storages[-1], stage, notes.append)

    yield open_queue
    for storage in storages:
        storage.close()


def result(run: Run, **more) -> dict:
    return {"key": run.key, "status": "complete", **more}


# -- the queue ----------------------------------------------------------------------------------


def test_many_processes_open_fill_and_empty_a_queue_together(opened):
    claimed, errors = [], []

    def work() -> None:
        try:
            queue = opened()
            queue.enqueue(RUNS)
            while (run := queue.claim()) is not None:
                claimed.append(run.key)
                queue.publish(run, 0.5, result(run))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert Counter(claimed) == Counter(run.key for run in RUNS)
    queue = opened()
    assert queue.published.keys() == {run.key for run in RUNS}
    trials = queue.storage.optuna_study("tune").trials
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": len(RUNS)}


def test_a_run_is_taken_over_when_its_process_falls_silent(opened, notes, monkeypatch):
    monkeypatch.setattr(queue_module, "GRACE", 0.6)
    monkeypatch.setattr(queue_module, "BEAT", 0.1)
    one, other = opened(), opened()
    one.enqueue(RUNS[:1])
    assert one.claim() == RUNS[0]
    for _ in range(15):  # as long as it beats, it keeps its run
        time.sleep(0.1)
        one.beat()
        other.refresh()
        assert other.elsewhere == {RUNS[0].key}
        other.enqueue(RUNS[:1])
        assert other.claim() is None
    for _ in range(100):
        time.sleep(0.1)
        other.refresh()
        if not other.elsewhere:
            break
    (note,) = notes
    assert note.startswith(f"{RUNS[0].key}: nothing is heard from ")
    assert f"process {os.getpid()}; it is run again" in note
    other.enqueue(RUNS[:1])
    assert other.claim() == RUNS[0]
    # It was not dead but slow: whoever is first is published, the other is dropped.
    one.beat()
    one.publish(RUNS[0], 0.5, result(RUNS[0], by="one"))
    other.publish(RUNS[0], 0.4, result(RUNS[0], by="other"))
    assert other.published[RUNS[0].key]["by"] == "one"


def test_a_run_lost_before_its_first_beat_is_taken_over_too(opened, monkeypatch):
    monkeypatch.setattr(queue_module, "GRACE", 0.2)
    one, other = opened(), opened()
    one.enqueue(RUNS[:1])
    one._study.ask()  # claimed, and dead at once
    other.refresh()
    assert other.elsewhere == {RUNS[0].key}
    time.sleep(0.3)
    other.refresh()
    other.enqueue(RUNS[:1])
    assert other.claim() == RUNS[0]


def test_what_one_process_gives_up_the_others_do_not_wait_for(opened):
    one, other = opened(), opened()
    one.enqueue(RUNS[:1])
    one.claim()
    one.fail(RUNS[0], result(RUNS[0], error="no room"))
    other.refresh()
    assert other.is_closed(RUNS[0])
    later = opened()  # begun afterwards, it tries again, and then the others wait
    assert not later.is_closed(RUNS[0])
    later.enqueue(RUNS[:1])
    assert later.claim() == RUNS[0]
    other.refresh()
    assert not other.is_closed(RUNS[0])


def test_the_lock_ends_with_its_process(opened):
    queue = opened()
    held = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from sagelr.study.storage import Storage, server_url\n"
            "storage = Storage(server_url(sys.argv[1]), sys.argv[2])\n"
            "with storage.locked(): print('held', flush=True); time.sleep(600)",
            queue.storage._engine.url.set(drivername="postgresql").render_as_string(False),
            queue.storage.study,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert held.stdout
    assert held.stdout.readline() == "held\n"
    filled = threading.Thread(target=queue.enqueue, args=(RUNS[:1],))
    filled.start()
    filled.join(0.5)
    assert filled.is_alive()
    held.kill()
    held.wait()
    held.stdout.close()
    filled.join(20)
    assert not filled.is_alive()


# -- errors -------------------------------------------------------------------------------------


def test_a_server_that_cannot_be_reached(server):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(SagelrError, match=r"refused.*Check that the server runs") as error:
            Storage(server_url(f"postgresql://me:secret@127.0.0.1:{port}/db"), "x")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_password(server, monkeypatch):
    for password in (":wrong", ""):
        with pytest.raises(SagelrError, match=r"password.*Give the right password.*pgpass"):
            Storage(server_url(server.url(password)), "x")
    monkeypatch.setenv("PGPASSWORD", "secret")
    Storage(server_url(server.url("")), "x").close()


def test_a_database_that_is_not_there(server):
    with pytest.raises(SagelrError, match=r'database "nope" does not exist.*createdb'):
        Storage(server_url(server.url(database="nope")), "x")


def test_a_database_without_an_encoding(server):
    """As a cluster of the C locale makes them."""
    with _connected(server) as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(
            sa.text("create database plain encoding 'SQL_ASCII' locale 'C' template template0")
        )
    with contextlib.closing(Storage(server_url(server.url(database="plain")), "café")) as storage:
        storage.record("a", {"b": "β"})
        queue = Queue(storage, "tune")
        queue.enqueue(RUNS[:1])
        assert queue.claim() == RUNS[0]
    with contextlib.closing(Storage(server_url(server.url(database="plain")), "café")) as storage:
        storage.look()
        assert storage.records == {"a": {"b": "β"}}


def test_a_driver_that_is_not_there(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SagelrError, match=r"needs psycopg.*pip install 'sagelr\[postgres\]'"):
        Storage(server_url(server.url()), "x")


def test_another_recipe_under_the_same_name(server, recipe, pretend, tmp_path):
    more = {"storage": server.url(), "study": "taken"}
    pretend(recipe(SMALL), tmp_path / "a", **more)
    with pytest.raises(UsageError, match=r"Study 'taken' of postgresql://sagelr:\*\*\*@.*--study"):
        pretend(recipe({**SMALL, "train.epochs": 2}), tmp_path / "b", **more)
    assert not list((tmp_path / "b").iterdir())
    pretend(recipe({**SMALL, "train.epochs": 2}), tmp_path / "b", **more | {"study": "free"})


def test_results_of_another_study_are_not_overwritten(server, recipe, pretend, tmp_path):
    pretend(recipe(SMALL), tmp_path / "local")
    for name, text in (("local", None), ("page", "report.html")):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if text:
            (folder / text).write_text("precious")
        before = {path: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(UsageError, match="would be overwritten"):
            pretend(recipe(SMALL), folder, storage=server.url(), study="guest")
        assert {path: path.read_bytes() for path in before} == before


def test_a_server_finds_what_a_file_finds(server, recipe, pretend, tmp_path, timeless):
    here = pretend(recipe(), tmp_path / "here")
    there = pretend(recipe(), tmp_path / "there", storage=server.url(), study="same")
    assert timeless(there) == timeless(here)
    again = pretend(recipe(), tmp_path / "elsewhere", storage=server.url(), study="same")
    assert timeless(again) == timeless(here)
    assert "secret" not in (tmp_path / "elsewhere" / "results.json").read_text()


# -- four programs, one of them killed ----------------------------------------------------------

# With the patience of a test.
PROGRAM = """
import sys
from sagelr.study import queue, run
queue.BEAT, queue.GRACE, run.LOOK = 0.5, 5.0, 0.5
sys.argv[0] = "sagelr"
from sagelr.cli import main
main()
"""
CHANGES = {"train.epochs": 10, "study.tune_seeds": 1, "study.report_seeds": 4}
CHANGES |= {"study.max_extensions": 1}
CHANGES |= {"arms.adamw.grid.lr": [1e-3, 1e-2], "arms.sage-adamw.grid.lr": [2e-3, 2e-2]}


def started(recipe: Path, out: Path, *words: str) -> subprocess.Popen:
    with out.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                "compare",
                str(recipe),
                "--out",
                out,
                "--jobs=1",
                *words,
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def test_four_programs_one_of_them_killed(server, recipe_file, tmp_path, timeless):
    recipe = recipe_file(CHANGES)
    words = ("--storage", server.url(), "--study", "four")
    programs = {
        name: started(recipe, tmp_path / name, *words) for name in ("one", "two", "three", "four")
    }
    try:
        _four(programs, server, recipe, tmp_path, timeless)
    finally:
        for program in programs.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()


def _four(programs, server, recipe, folder, timeless) -> None:
    told = {name: (folder / name).with_suffix(".log") for name in programs}
    victim, lost = _killed_in_a_run(programs, server)
    assert lost is not None, {name: log.read_text() for name, log in told.items()}

    rest = [name for name in programs if name != victim]
    for name in rest:
        assert programs[name].wait(180) == 0, told[name].read_text()
        assert "Traceback" not in told[name].read_text()
    logs = "".join(told[name].read_text() for name in rest)
    assert f"{lost}: nothing is heard from" in logs

    alone = started(recipe, folder / "alone")
    assert alone.wait(180) == 0, (folder / "alone.log").read_text()
    want = json.loads((folder / "alone" / "results.json").read_text())
    for name in rest:
        document = json.loads((folder / name / "results.json").read_text())
        assert document["status"] == "complete"
        assert timeless(document) == timeless(want)
        assert (folder / name / "report.html").is_file()
    # Each key was published once: as often as there are runs.
    assert len(_published(server, "four")) == len(want["runs"])
    with contextlib.closing(Storage(server_url(server.url()), "four")) as storage:
        for stage in ("tune", "report"):
            done = Counter(
                trial.user_attrs["key"]
                for trial in storage.optuna_study(stage).trials
                if trial.state.name == "COMPLETE"
            )
            assert set(done.values()) == {1}


def _killed_in_a_run(programs, server) -> tuple[str | None, str | None]:
    """Kill a program in the middle of a run: its name, and the run's key."""
    for _ in range(600):
        time.sleep(0.2)
        if len(_published(server, "four")) < 2:
            continue
        for name, program in programs.items():
            program.send_signal(signal.SIGSTOP)  # it cannot end its run while one looks
            for key, process in _running(server, "four").items():
                if process == program.pid and _stays_unpublished(server, key):
                    program.kill()
                    return name, key
            program.send_signal(signal.SIGCONT)
    return None, None


def _stays_unpublished(server, key: str) -> bool:
    """Whether a run of a stopped program has no result, not even one that is on its way.

    Between publishing a result and closing its trial a program has a trial that runs and is done.
    """
    time.sleep(0.5)
    return key not in _published(server, "four")


def _published(server, study: str) -> list[str]:
    with _connected(server) as connection:
        if not sa.inspect(connection).has_table(RECORDS.name):
            return []
        query = sa.select(RECORDS.c.name).where(RECORDS.c.study == study)
        return [name for name in connection.scalars(query) if "/" in name]


def _running(server, study: str) -> dict[str, int]:
    """Key → process of the runs under way."""
    query = sa.text(
        "select k.value_json, b.value_json from trials t join studies s using (study_id)"
        " join trial_user_attributes k on k.trial_id = t.trial_id and k.key = 'key'"
        " join trial_user_attributes b on b.trial_id = t.trial_id and b.key = 'by'"
        " where t.state = 'RUNNING' and s.study_name like :study"
    )
    with _connected(server) as connection:
        if not sa.inspect(connection).has_table("trials"):
            return {}
        found = connection.execute(query, {"study": f"{study}/%"})
        return {json.loads(key): int(json.loads(by).split()[-1]) for key, by in found}


@contextlib.contextmanager
def _connected(server):
    engine = sa.create_engine(server.url().replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        yield connection
    engine.dispose()
