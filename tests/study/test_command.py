"""`sagelr compare` as it is typed, with workers that pretend to train."""

from __future__ import annotations

import json
import sys

import pytest

from sagelr.cli import main
from sagelr.commands.compare import _check_bases
from sagelr.errors import UsageError
from sagelr.recipe import load
from sagelr.study.storage import locked

whole_study = pytest.mark.processes


@pytest.fixture
def compare(pretend, recipe_file, tmp_path, monkeypatch, capsys):
    """Runs `sagelr compare` on the recipe; gives exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    path = recipe_file()

    def run(*words, recipe=path):
        monkeypatch.setattr(sys, "argv", ["sagelr", "compare", str(recipe), *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        told = capsys.readouterr()
        return stop.value.code or 0, told.out, told.err

    return run


def results(folder):
    return json.loads((folder / "results.json").read_text())


@whole_study
def test_from_the_command_to_the_page(compare, tmp_path):
    status, out, err = compare()
    assert (status, err) == (0, "")
    folder = tmp_path / "runs" / "tiny"
    assert results(folder)["status"] == "complete"
    assert (folder / "report.html").is_file()
    assert "paired seeds" in out
    assert "Page: runs/tiny/report.html" in out
    assert "reporting: " in out  # how far it is, without a terminal in lines


@whole_study
def test_options_end_up_in_the_study(compare, tmp_path):
    status, _, err = compare(
        "--out", "here", "--seeds", 4, "--jobs", 1, "--set", "study.tune_seeds=2"
    )
    assert (status, err) == (0, "")
    found = results(tmp_path / "here")
    assert found["comparison"]["n"] == 4
    assert found["overrides"] == {"study.tune_seeds": 2, "study.report_seeds": 4}
    assert {run["seed"] for run in found["runs"] if run["stage"] == "tune"} == {0, 1}
    assert found["command"].endswith("--out here --seeds 4 --jobs 1 --set study.tune_seeds=2")


@whole_study
def test_quick_is_a_study_of_its_own_and_says_what_it_is(compare, tmp_path):
    status, out, _ = compare("--quick")
    assert status == 0
    found = results(tmp_path / "runs" / "tiny-quick")
    assert found["quick"] is True
    assert found["comparison"]["n"] == 2
    assert "proves nothing" in out


@whole_study
def test_tuning_runs_that_failed_are_told_and_no_error(compare, pretend):
    """Once the choice stands they are not tried again."""

    def failing(run):
        if run.key == "tune/sage-adamw/lr=0.008/seed=0":
            raise RuntimeError("out of luck")
        return pretend.valley(run)

    pretend.let(failing)
    for _ in range(2):
        status, out, err = compare()
        assert (status, err) == (0, "")
        assert "1 of 6 tuning runs failed, the first of them tune/sage-adamw/" in out
        assert "tries them again" not in out


@whole_study
def test_failed_runs_are_told_in_the_end(compare, pretend, tmp_path):
    def failing(run):
        if run.key == "report/sage-adamw/lr=0.004/seed=1001":
            raise RuntimeError("out of luck")
        return pretend.valley(run)

    pretend.let(failing)
    status, out, err = compare()
    assert status == 1
    assert "Error: 1 of 6 report runs failed, the first of them report/sage-adamw/" in err
    assert "out of luck. The same command tries them again." in err
    assert "Page: " in out
    pretend.let(pretend.valley)
    assert compare()[0] == 0
    assert not [run for run in results(tmp_path / "runs/tiny")["runs"] if run["error"]]


@whole_study
def test_the_command_goes_on_after_ctrl_c(compare, pretend, tmp_path, ctrl_c):
    def interrupted(run):
        if len(pretend.trained) == 4:
            ctrl_c()
        return pretend.valley(run)

    pretend.let(interrupted)
    assert compare()[0] == 130
    # Results and page are of the same moment.
    runs = results(tmp_path / "runs" / "tiny")["runs"]
    page = (tmp_path / "runs" / "tiny" / "report.html").read_text(encoding="utf-8")
    assert f"In progress: {len(runs)} of " in " ".join(page.split())
    pretend.let(pretend.valley)
    assert compare()[0] == 0


@whole_study
def test_an_arm_whose_report_runs_diverge_is_told(compare, pretend, tmp_path):
    def diverging(run):
        if (run.stage, run.arm) == ("report", "sage-adamw"):
            lost = {"status": "diverged", "error": "loss nan"}
            return pretend.valley(run) | lost | {"scores": {"validation": None, "test": None}}
        return pretend.valley(run)

    pretend.let(diverging)
    status, out, err = compare()
    assert (status, err) == (0, "")
    said = "0 of 3 runs of AdamW and 3 of 3 runs of SageAdamW did not end with a score."
    assert f"No comparison of SageAdamW with AdamW: {said}" in " ".join(out.split())
    page = (tmp_path / "runs" / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "No comparison of SageAdamW with AdamW: too few runs ended with a score." in page
    assert said in page


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--arms", "adamw,sag-adamw"], 2, "the nearest right one is 'sage-adamw'"),
        (["--arms", " , "], 2, "study.arms"),
        (["--arms", "adamw"], 2, "nothing to compare among the arms adamw"),
        (["--arms", "sage-adamw"], 2, "nothing to compare among the arms sage-adamw"),
        (["--set", 'study.arms=["sage-adamw"]'], 2, "sage-adamw is compared with adamw"),
        (["--arms", "adamw", "--set", "study.arms=[]"], 2, "--arms and --set study.arms"),
        (["--seeds", "4", "--set", "study.report_seeds=5"], 2, "--seeds and --set study.report_se"),
        (["--set", "train.epoch=5"], 2, "train.epochs"),
        (["--set", "train.epochs"], 2, "is not key=value"),
        (["--set", "train.epochs=many"], 2, "train.epochs"),
        (["--set", "arms.adamw.options={beta0=0.5}"], 2, "AdamW has no option 'beta0'"),
        (["--set", "arms.sage-adamw.grid.beta0=[1.5]"], 2, "beta0"),
        (["--set", "arms.adamw.options.betas=[]"], 2, "arms.adamw at lr=0.001"),
        (["--set", "title=2024-01-01"], 2, "put in quotes: 'title=\"2024-01-01\"'"),
        (["--set", "arms.sage-adamw.label=AdamW"], 2, "have the label 'AdamW'"),
        (["--out", "caf\udce9"], 2, "'caf\ufffd' is not UTF-8 text"),
        (["--seeds", "1"], 2, "--seeds"),
        (["--jobs", "0"], 2, "--jobs"),
        (["--study", "mine"], 2, "--storage is needed as well"),
        (["--storage", "here"], 2, "--storage is not a URL"),
        (["--storage", "sqlite:///x.db"], 2, "PostgreSQL alone"),
        (["--out", "file"], 2, "file is a file"),
        (["--out", "file/within"], 2, "file is a file"),
        (["--out", "foreign"], 2, "holds a results.json but no study.db"),
        (["--out", "other"], 2, "is a database of something else"),
        (["--out", "damaged"], 1, "file is not a database"),
    ],
)
def test_errors_are_one_message(compare, tmp_path, words, status, message):
    import sqlite3

    for name in ("foreign", "other", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("precious")
    (tmp_path / "foreign" / "results.json").write_text("precious")
    (tmp_path / "damaged" / "study.db").write_text("precious" * 1000)
    with sqlite3.connect(tmp_path / "other" / "study.db") as file:
        file.execute("create table precious (name)")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    got, _, err = compare(*words)
    assert got == status
    assert message in " ".join(err.replace("│", "").split())
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in before} == before
    made = {path.name for path in tmp_path.rglob("*") if path not in before and path.is_file()}
    assert made <= {"study.lock"}


def test_an_arm_without_its_base_is_not_tuned_for_nothing():
    recipe = load("sst2-scratch", {"task.folder": "."}, arms=["adamw", "sage-adamw", "sage-adamax"])
    with pytest.raises(UsageError, match=r"sage-adamax is compared with adamax, .*Give it too"):
        _check_bases(recipe)


def test_two_at_once_in_one_folder(compare, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        status, _, err = compare("--out", "out")
    assert status == 1
    assert "Another sagelr is at work" in err


@whole_study
def test_another_recipe_in_the_same_folder(compare, tmp_path):
    compare("--out", "out")
    before = (tmp_path / "out" / "results.json").read_bytes()
    status, _, err = compare("--out", "out", "--set", "train.epochs=3")
    assert status == 2
    assert "train.epochs was 1 and is now 3" in err
    assert (tmp_path / "out" / "results.json").read_bytes() == before


def test_recipes_that_are_none(compare, tmp_path):
    (tmp_path / "bad.toml").write_text("name = ")
    (tmp_path / "latin.toml").write_bytes(b"title = '\xe9'")
    for name, message in (
        ("digit-vit", "the nearest right one is 'digits-vit'"),
        ("absent.toml", "absent.toml: No such file"),
        ("bad.toml", "not valid TOML"),
        ("latin.toml", "not UTF-8"),
        (".", "recipe"),
    ):
        status, _, err = compare(recipe=name)
        assert status == 2, name
        assert message in err, name
        assert err.count("\n") == 1, name


def test_under_torchrun_it_says_what_to_do(compare, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = compare()
    assert status == 2
    assert "--storage on several" in err


@whole_study
def test_a_page_that_cannot_be_made_does_not_stop_the_study(compare, tmp_path, monkeypatch):
    import sagelr.report

    def broken(*_):
        raise RuntimeError("no such template")

    monkeypatch.setattr(sagelr.report, "write_report", broken)
    status, out, _ = compare()
    assert status == 0
    assert results(tmp_path / "runs" / "tiny")["status"] == "complete"
    assert "No page: RuntimeError: no such template" in out


@whole_study
def test_a_disk_that_fills_up_is_one_message(compare, tmp_path, monkeypatch):
    import errno

    import sagelr.jsonfile

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "results.json"))

    monkeypatch.setattr(sagelr.jsonfile, "write", full)
    status, _, err = compare()
    assert status == 1
    assert "No space left on device. Make room and run the same command again" in err
    monkeypatch.undo()
    assert (tmp_path / "runs" / "tiny" / "study.db").exists()
