"""Trainings in processes of their own: killed, stopped by a signal, and spread over several."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .small import SMALL, assert_same, without_times

pytestmark = pytest.mark.processes

FOLLOW = Path(__file__).with_name("follow.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
# Twenty steps in batches of 24, 24, 24, 24 and 4 rows.
STEPS = ["task.train=100", "train.batch_size=24", "train.epochs=4"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone"]


def follow(processes, folder, *words):
    """Train in so many processes; the entry in each, if the training came to its end."""
    torchrun = [*TORCHRUN, f"--nproc-per-node={processes}"] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *torchrun, str(FOLLOW), str(folder), *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("entry-*.json"))]


def scores(entry):
    found = entry["scores"]
    return [found[split][name] for split in ("validation", "test") for name in ("loss", "accuracy")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Arm → folder and entry of the training in one process."""
    folders = {arm: tmp_path_factory.mktemp("alone") / arm for arm in ("sage", "base")}
    return {arm: (folder, *follow(1, folder, arm, *STEPS)) for arm, folder in folders.items()}


# -- several processes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processes", "parallel", "arm", "words"),
    [
        (2, "ddp", "sage", []),
        (3, "ddp", "sage", []),
        (2, "fsdp2", "sage", []),
        (3, "fsdp2", "sage", []),
        (2, "fsdp2", "base", []),
        (2, "ddp", "base", ["train.batch_size=12", "train.accumulate=2"]),
        (3, "fsdp2", "sage", ["train.batch_size=12", "train.accumulate=2"]),
    ],
)
def test_several_processes_follow_one(alone, tmp_path, processes, parallel, arm, words):
    entries = follow(processes, tmp_path / "run", arm, *STEPS, f"parallel={parallel}", *words)
    folder, entry = alone[arm]
    assert_same(folder, tmp_path / "run", within=1e-10)
    assert scores(entries[0]) == pytest.approx(scores(entry), abs=1e-9)
    assert entries[0]["scores"]["train"]["loss"] == pytest.approx(entry["scores"]["train"]["loss"])
    assert len(entries) == processes
    assert all(without_times(each) == without_times(entries[0]) for each in entries)
    if arm == "sage":  # of the averaged gradient, whole: what one process sees
        for theirs, ours in zip(entries[0]["sage"]["layers"], entry["sage"]["layers"], strict=True):
            assert theirs["sensitivity"] == pytest.approx(ours["sensitivity"], rel=1e-5)
            assert theirs["multiplier"] == pytest.approx(ours["multiplier"], rel=1e-4)


def test_a_checkpoint_of_three_processes_goes_on_in_two_and_in_one(alone, tmp_path):
    three = tmp_path / "three"
    follow(3, three, "sage", *STEPS, "parallel=fsdp2", "--stop=7")
    assert [path.name for path in three.iterdir()] == ["checkpoint-7"]
    for processes, parallel in ((2, "ddp"), (2, "fsdp2"), (1, "ddp")):
        folder = shutil.copytree(three, tmp_path / f"{processes}-{parallel}")
        follow(processes, folder, "sage", *STEPS, f"parallel={parallel}", "--resume")
        assert_same(alone["sage"][0], folder, within=1e-10)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_resume_bit_for_bit(tmp_path, parallel):
    words = ("sage", *STEPS, f"parallel={parallel}", "model.dropout=0.2")
    [one, _] = follow(2, tmp_path / "whole", *words)
    follow(2, tmp_path / "parts", *words, "--stop=8")
    [other, _] = follow(2, tmp_path / "parts", *words, "--resume")
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert without_times(one) == without_times(other)


def test_the_first_process_alone_writes_and_prints(tmp_path):
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "--nproc-per-node=2", "-m", *_sagelr(tmp_path / "run")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("SageAdamW at lr=0.004") == 1
    assert done.stdout.count("validation: accuracy") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"


# -- killed and stopped --------------------------------------------------------------------------


def _sagelr(folder, *words):
    settings = SMALL | {"train.epochs": 40, "train.save_every": 3, "model.dropout": 0.2}
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["sagelr", "train", "digits-vit", *given, "--out", str(folder), *words]


def _begun(folder, step):
    """The program, after it has written a checkpoint of this step or a later one."""
    program = subprocess.Popen(
        [sys.executable, "-m", *_sagelr(folder, "--keep-optimizer")],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(
        int(seal.parent.name.rpartition("-")[2]) >= step
        for seal in folder.glob("checkpoint-*/sagelr.pt")
    ):
        assert program.poll() is None, program.communicate()[1]
        time.sleep(0.001)
    return program


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    command = [sys.executable, "-m", *_sagelr(folder, "--keep-optimizer")]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    return folder


def _resumed(whole, folder):
    """Resume, and see that nothing shows it."""
    command = [sys.executable, "-m", *_sagelr(folder, "--keep-optimizer", "--resume")]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    assert_same(whole, folder)
    one, other = (json.loads((path / "run.json").read_text()) for path in (whole, folder))
    assert without_times(one) | {"command": ""} == without_times(other) | {"command": ""}


def test_a_killed_training_goes_on_as_if_nothing_had_been(whole, tmp_path):
    program = _begun(tmp_path, 12)
    program.kill()
    program.communicate()
    assert not (tmp_path / "run.json").exists()
    _resumed(whole, tmp_path)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_and_says_how_to_go_on(whole, tmp_path, signum, status):
    program = _begun(tmp_path, 3)
    program.send_signal(signum)
    told, errors = program.communicate()
    assert program.returncode == status, errors
    assert "Saving a checkpoint" in told
    assert "Stopped after step" in errors
    assert f"--out {tmp_path} --keep-optimizer --resume" in errors
    assert "Traceback" not in errors
    _resumed(whole, tmp_path)


# -- compiled ------------------------------------------------------------------------------------


def test_compiled_training_is_the_same_training(alone, tmp_path):
    follow(1, tmp_path / "run", "sage", *STEPS, "train.compile=true", "train.max_steps=6")
    follow(1, tmp_path / "plain", "sage", *STEPS, "train.max_steps=6")
    assert_same(tmp_path / "plain", tmp_path / "run", within=1e-9)
