"""`sagelr train`, in this process."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageClassification
from typer.testing import CliRunner

from sagelr.audit.subjects import find
from sagelr.commands import app
from sagelr.commands.train import LOCK, _Stop
from sagelr.errors import SagelrError, UsageError
from sagelr.recipe import load
from sagelr.study.storage import locked
from sagelr.train import StoppedTrainingError
from sagelr.training import checkpoint, precision

from .small import SMALL, assert_same, without_times

SETTINGS = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]


def sagelr(*words):
    """What the program prints; what it fails with is raised."""
    found = CliRunner().invoke(app, ["train", "digits-vit", *SETTINGS, *map(str, words)])
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return " ".join(found.output.split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, sagelr("--out", folder, "--keep-optimizer", "--test")


def test_it_leaves_scores_model_and_optimizer(trained):
    folder, told = trained
    entry = json.loads((folder / "run.json").read_text())
    assert entry["status"] == "complete"
    assert entry["arm"] == "sage-adamw"
    assert entry["setting"] == {"lr": 0.002, "beta0": 0.6}
    assert entry["data"]["rows"]["train"] == 60
    assert entry["recipe"]["train"]["batch_size"] == 12
    accuracy = entry["scores"]["test"]["accuracy"]
    assert f"test: accuracy {100 * accuracy:.2f}%" in told
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "config.json", "model.safetensors", "optimizer.pt"
    }  # fmt: skip


def test_the_weights_of_its_checkpoints_are_kept_to_be_audited(trained, tmp_path):
    folder = tmp_path / "run"
    sagelr("--out", folder, "--keep-checkpoints")
    # Of the last step there is the model itself.
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["weights-5"]
    load = AutoModelForImageClassification.from_pretrained
    early, end = (load(each).state_dict() for each in (folder / "weights-5", folder))
    assert early.keys() == end.keys()
    assert not any(torch.equal(early[name], end[name]) for name in early if "query" in name)
    assert find(str(folder), None, {}).checkpoints() == [folder / "weights-5"]
    sagelr("--out", folder, "--overwrite")
    assert not list(folder.glob("weights-*"))


@pytest.mark.parametrize(
    ("computes", "wanted", "warned"),
    [(False, "bf16", True), (False, "float32", False), (True, "bf16", False)],
)
def test_it_warns_of_a_cpu_without_bfloat16(tmp_path, monkeypatch, computes, wanted, warned):
    monkeypatch.setattr(precision, "_computes_in_bf16", lambda: computes)
    told = sagelr("--out", tmp_path / "run", "--set", f"train.precision={wanted}")
    assert ("--set train.precision=float32" in told) == warned


def test_it_shows_how_the_training_stands(trained):
    assert "SageAdamW at lr=0.002,beta0=0.6, seed 0" in trained[1]
    assert "step 10 of 10, epoch 2.0: loss " in trained[1]


def test_a_folder_that_is_not_empty(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(
        UsageError, match=r"not empty\. Give --out another folder, or --overwrite\."
    ):
        sagelr("--out", folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    sagelr("--out", copy, "--overwrite", "--arm", "adamw", "--lr", "1e-3")
    assert json.loads((copy / "run.json").read_text())["setting"] == {"lr": 0.001}
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="is a file"):
        sagelr("--out", file)


@pytest.mark.parametrize(
    "name",
    ["checkpoint-500/trainer_state.json", "weights-7/w", "optimizer.pt", "model.safetensors"],
)
def test_what_another_program_wrote_is_not_overwritten(tmp_path, name):
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("theirs")
    with pytest.raises(UsageError, match=r"run was not written by sagelr train, and .*Move that"):
        sagelr("--out", tmp_path / "run", "--overwrite")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_a_training_that_failed_early_is_overwritten(tmp_path, monkeypatch):
    def full(*given, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "seal", full)
    with pytest.raises(SagelrError, match=r"begin anew: sagelr .*--overwrite"):
        sagelr("--out", tmp_path)
    assert (tmp_path / "checkpoint-5").is_dir()
    monkeypatch.undo()
    with pytest.raises(UsageError, match="has no unlabelled data"):
        sagelr("--out", tmp_path, "--overwrite", "--predict")
    sagelr("--out", tmp_path, "--overwrite")
    assert {path.name for path in tmp_path.iterdir()} == {
        "run.json", "config.json", "model.safetensors"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["model", "model/weights-5"])
def test_the_model_that_is_started_from_is_not_overwritten(tmp_path, name):
    (tmp_path / "data.csv").write_text(
        "text,label\n" + "".join(f"word {n},{'ab'[n % 2]}\n" for n in range(60))
    )
    settings = {
        "task.data": str(tmp_path / "data.csv"),
        "model.name": "from-scratch",
        "model.from_scratch.hidden": 8,
    }
    task = load("text-classification", settings).make_task()
    folder = tmp_path / name
    task.model(0).save_pretrained(folder)
    task.save(folder)
    words = ["--set", f"data={tmp_path / 'data.csv'}", "--set", f"model={folder}", "--overwrite"]
    before = sorted(tmp_path.rglob("*"))
    found = CliRunner().invoke(
        app, ["train", "text-classification", *words, "--out", str(tmp_path / "model")]
    )
    assert isinstance(found.exception, UsageError)
    assert f"{folder} is the model that is read" in str(found.exception)
    assert sorted(tmp_path.rglob("*")) == before


def test_resuming_what_is_finished_or_was_never_begun(trained, tmp_path):
    with pytest.raises(UsageError, match="the training in it is finished"):
        sagelr("--out", trained[0], "--resume")
    with pytest.raises(UsageError, match="there is none in it"):
        sagelr("--out", tmp_path, "--resume")


def test_a_stop_says_how_to_go_on(trained, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr("sagelr.commands.train._Stop.__call__", lambda self: True)
    with pytest.raises(StoppedTrainingError) as stopped:
        sagelr("--out", folder, "--keep-optimizer", "--test")
    told = str(stopped.value)
    assert stopped.value.exit_status == 130
    assert told.startswith("Stopped after step 1 of 10. Checkpoint: ")
    assert told.endswith("--resume")
    assert not (folder / "run.json").exists()
    with pytest.raises(UsageError, match=r"--overwrite, or --resume to go on from its checkpoint"):
        sagelr("--out", folder)
    monkeypatch.undo()
    sagelr("--out", folder, "--keep-optimizer", "--test", "--resume")
    assert_same(trained[0], folder)
    one, other = (json.loads((path / "run.json").read_text()) for path in (trained[0], folder))
    assert without_times(one) | {"command": ""} == without_times(other) | {"command": ""}
    assert checkpoint.last(folder) is None


def test_overwriting_leaves_no_checkpoint_of_another_training(tmp_path, monkeypatch):
    monkeypatch.setattr("sagelr.commands.train._Stop.__call__", lambda self: True)
    with pytest.raises(StoppedTrainingError):
        sagelr("--out", tmp_path)
    with pytest.raises(StoppedTrainingError):
        sagelr("--out", tmp_path, "--overwrite", "--seed", "1")
    monkeypatch.undo()
    sagelr("--out", tmp_path, "--seed", "1", "--resume")


def test_a_training_that_diverges_says_so_and_fails(tmp_path):
    with pytest.raises(SagelrError, match=r"diverged: .* Try a lower --lr than 1e\+20"):
        sagelr("--out", tmp_path / "run", "--arm", "adamw", "--lr", "1e20")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "diverged"


@pytest.mark.parametrize(
    ("writes", "error"),
    [
        ("jsonfile.write", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run.json")),
        ("jsonfile.write", OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))),
        (
            "training.trainer.RunTrainer.save",
            SafetensorError("I/O error: No space left on device (os error 28)"),
        ),
    ],
)
def test_a_full_disk(tmp_path, monkeypatch, writes, error):
    def full(*given, **options):
        raise error

    monkeypatch.setattr(f"sagelr.{writes}", full)
    folder = tmp_path / "run"
    with pytest.raises(
        SagelrError, match=f"No space left for {folder}.*go on .*: sagelr .*--resume"
    ):
        sagelr("--out", folder)
    with pytest.raises(SagelrError, match=r"begin anew: sagelr .*--overwrite"):
        sagelr("--out", folder, "--overwrite", "--set", "train.epochs=1")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--arm", "adam"], r"--arm 'adam' is not an arm\. Allowed: adamw, sage-adamw"),
        (["--arm", "adamw", "--beta0", "0.5"], r"--beta0 is for sage arms; adamw is a base"),
        (["--lr", "-1"], "lr"),
        (["--predict"], "has no unlabelled data to predict on"),
        (["--set", "train.batchsize=3"], r"nearest right one is 'train\.batch_size'"),
    ],
)
def test_wrong_requests(tmp_path, words, told):
    with pytest.raises(UsageError, match=told):
        sagelr("--out", tmp_path / "run", *words)


def test_a_seed_is_of_32_bits(tmp_path):
    words = ["train", "digits-vit", "--seed", str(2**32), "--out", str(tmp_path / "run")]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2
    assert "--seed" in found.output
    assert not (tmp_path / "run").exists()


def test_nothing_of_a_training_before_is_left(trained, tmp_path):
    """An audit would take the optimizer's state of the one for that of the other."""
    folder = shutil.copytree(trained[0], tmp_path / "run")
    with pytest.raises(UsageError, match="no unlabelled data to predict on"):
        sagelr("--out", folder, "--overwrite", "--predict")
    assert (folder / "run.json").exists()  # what is refused leaves all as it was
    sagelr("--out", folder, "--overwrite", "--seed", 7)
    assert json.loads((folder / "run.json").read_text())["seed"] == 7
    assert not (folder / "optimizer.pt").exists()


def test_predictions_of_a_training_before_are_removed_and_no_file_of_the_users(tmp_path):
    (tmp_path / "predictions").mkdir()
    for name in ("RTE.tsv", "mine.tsv"):
        (tmp_path / "predictions" / name).write_text("")
    for run in ('{"predictions": {"files": ["RTE.tsv", "../notes.txt"]}}', "{", "[]"):
        (tmp_path / "run.json").write_text(run)
        (tmp_path / "notes.txt").write_text("")
        checkpoint.clear(tmp_path)
        left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
        assert left == {"notes.txt", "mine.tsv"}


def test_a_signal_after_the_last_step_promises_no_checkpoint(capsys):
    stop = _Stop()
    stop.over = True
    stop.catch(2, None)
    assert "Every step is taken; the scores follow." in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        stop.catch(2, None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--set", "arms.sage-adamw.scope=encoder.layers"],
            r"arms\.sage-adamw\.scope: .*matches none",
        ),
        (["--set", "train.length_grouped=true"], "length_grouped"),
        (
            ["--set", "arms.sage-adamw.options.maximize=False"],
            "maximize = 'False' is text. Write tr",
        ),
        (["--arm=adamw", "--set=arms.adamw.options.amsgrad=False"], "amsgrad = 'False' is text"),
        (["--arm=adamw", "--set=arms.adamw.options.fused=False"], "fused = 'False' is text"),
    ],
)
def test_what_is_refused_leaves_the_training_before_as_it_was(trained, tmp_path, words, told):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match=told):
        sagelr("--out", folder, "--overwrite", *words)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(UsageError, match=told):
        sagelr("--out", tmp_path / "new", *words)
    assert not (tmp_path / "new").exists()


def test_two_trainings_do_not_share_a_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        locked(folder, LOCK),
        pytest.raises(SagelrError, match=r"Another sagelr is at work in .*--out another"),
    ):
        sagelr("--out", folder)
    assert (folder / LOCK).exists()
    sagelr("--out", folder)  # the file alone, as a killed training leaves it, is no content
    assert not (folder / LOCK).exists()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*given):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(SagelrError, match=r"run is on a file system without locks .*--out"):
        sagelr("--out", tmp_path / "run")
    assert not list(tmp_path.iterdir())
