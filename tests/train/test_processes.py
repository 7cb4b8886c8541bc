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

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]

# -- several processes ---------------------------------------------------------------------------

# Twenty steps in batches of 24, 24, 24, 24 and 4 rows; or the same in two halves each.
STEPS = {"task.train": 100, "train.batch_size": 24, "train.epochs": 4}
HALVES = STEPS | {"train.batch_size": 12, "train.accumulate": 2}
DROPOUT = STEPS | {"model.dropout": 0.2}
# Name → arm, settings, how the processes share the work.
FOLLOWING = {
    "sage-ddp": ("sage", STEPS, "ddp"),
    "sage-fsdp2": ("sage", STEPS, "fsdp2"),
    "base-ddp-halves": ("base", HALVES, "ddp"),
    "base-fsdp2": ("base", STEPS, "fsdp2"),
    "sage-fsdp2-halves": ("sage", HALVES, "fsdp2"),
}


def follow(processes, folder, jobs):
    """Have so many processes do jobs: folder, arm, settings, and steps to stop after or None."""
    file = folder / f"jobs-{processes}.json"
    file.write_text(json.dumps([[str(folder / name), *job] for name, *job in jobs]))
    start = [*TORCHRUN, f"--nproc-per-node={processes}"] if processes > 1 else [sys.executable]
    done = subprocess.run(
        [*start, str(Path(__file__).with_name("follow.py")), str(file)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of all trainings: by three processes, by two, and by one."""
    folder = tmp_path_factory.mktemp("following")

    def parallel(how, settings):
        return settings | {"train.parallel": how}

    jobs = [
        (f"{name}-3", arm, parallel(how, settings), None)
        for name, (arm, settings, how) in FOLLOWING.items()
    ]
    follow(3, folder, [*jobs, ("stopped", "sage", parallel("fsdp2", STEPS), 7)])
    for name in ("on-two-ddp", "on-two-fsdp2", "on-one"):
        shutil.copytree(folder / "stopped", folder / name)
    jobs = [
        (f"{name}-2", arm, parallel(how, settings), None)
        for name, (arm, settings, how) in FOLLOWING.items()
    ]
    for how in ("ddp", "fsdp2"):
        jobs.append((f"on-two-{how}", "sage", parallel(how, STEPS), None))
        jobs.append((f"whole-{how}", "sage", parallel(how, DROPOUT), None))
        jobs += [(f"parts-{how}", "sage", parallel(how, DROPOUT), stop) for stop in (8, None)]
    follow(2, folder, jobs)
    jobs = [(arm, arm, STEPS, None) for arm in ("sage", "base")]
    follow(1, folder, [*jobs, ("on-one", "sage", STEPS, None)])
    return folder


def entries(folder):
    """What the training gave, in each of its processes."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("entry-*.json"))]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", FOLLOWING)
def test_several_processes_follow_one(done, name, processes):
    arm, _, _ = FOLLOWING[name]
    assert_same(done / arm, done / f"{name}-{processes}", within=1e-10)
    [alone], several = entries(done / arm), entries(done / f"{name}-{processes}")
    assert len(several) == processes
    assert all(without_times(each) == without_times(several[0]) for each in several)
    for split in ("validation", "test", "train"):
        assert several[0]["scores"][split] == pytest.approx(alone["scores"][split], abs=1e-6)
    if arm == "sage":  # that of the averaged gradient, and of whole weights
        for theirs, ours in zip(several[0]["sage"]["layers"], alone["sage"]["layers"], strict=True):
            assert theirs["name"] == ours["name"]
            assert theirs["sensitivity"] == pytest.approx(ours["sensitivity"], rel=1e-5)
            assert theirs["multiplier"] == pytest.approx(ours["multiplier"], rel=1e-4)


@pytest.mark.parametrize("name", ["on-two-ddp", "on-two-fsdp2", "on-one"])
def test_a_checkpoint_of_three_processes_goes_on_in_two_and_in_one(done, name):
    assert [path.name for path in (done / "stopped").iterdir()] == ["checkpoint-7"]
    assert_same(done / "sage", done / name, within=1e-10)


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_resume_bit_for_bit(done, how):
    assert_same(done / f"whole-{how}", done / f"parts-{how}")
    whole, parts = entries(done / f"whole-{how}"), entries(done / f"parts-{how}")
    assert list(map(without_times, whole)) == list(map(without_times, parts))


# -- the program: killed, stopped, and started by torchrun ---------------------------------------


def program(folder, *words):
    settings = SMALL | {"train.epochs": 20, "train.save_every": 3, "model.dropout": 0.2}
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["-m", "sagelr", "train", "digits-vit", *given, "--out", str(folder), *words]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    command = [sys.executable, *program(folder, "--keep-optimizer")]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    return folder


def heed():
    """Under nohup, or in a shell's background, signals are ignored, and that is handed on."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def begun(folder, step):
    """The program, after it has written a checkpoint of this step or a later one."""
    running = subprocess.Popen(
        [sys.executable, *program(folder, "--keep-optimizer")],
        env=ENVIRONMENT,
        preexec_fn=heed,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(
        int(seal.parent.name.rpartition("-")[2]) >= step
        for seal in folder.glob("checkpoint-*/sagelr.pt")
    ):
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.001)
    return running


def assert_resumes(whole, folder):
    """Resume it, and see that nothing shows."""
    command = [sys.executable, *program(folder, "--keep-optimizer", "--resume")]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    assert_same(whole, folder)
    one, other = (json.loads((path / "run.json").read_text()) for path in (whole, folder))
    assert without_times(one) | {"command": ""} == without_times(other) | {"command": ""}


def test_a_killed_training_goes_on_as_if_nothing_had_been(whole, tmp_path):
    running = begun(tmp_path, 12)
    running.kill()
    running.communicate()
    assert not (tmp_path / "run.json").exists()
    assert_resumes(whole, tmp_path)


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_a_checkpoint_and_says_how_to_go_on(whole, tmp_path, signum, status):
    running = begun(tmp_path, 3)
    running.send_signal(signum)
    told, errors = running.communicate()
    assert running.returncode == status, errors
    assert "Saving a checkpoint" in told
    assert "Stopped after step" in errors
    assert f"--out {tmp_path} --keep-optimizer --resume" in errors
    assert "Traceback" not in errors
    if signum == signal.SIGINT:
        assert_resumes(whole, tmp_path)


def test_the_first_process_alone_writes_and_prints(tmp_path):
    found = subprocess.run(
        [*TORCHRUN, "--nproc-per-node=2", *program(tmp_path / "run")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.count("SageAdamW at lr=0.002") == 1
    assert found.stdout.count("validation: accuracy") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"


def test_compiled_training_is_the_same_training(tmp_path):
    short = STEPS | {"train.max_steps": 4}
    jobs = [(str(how), "sage", short | {"train.compile": how}, None) for how in (True, False)]
    follow(1, tmp_path, jobs)
    assert_same(tmp_path / "False", tmp_path / "True", within=1e-9)
