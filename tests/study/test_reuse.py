"""`sagelr compare --reuse`: runs of another study are taken over where they would be the same."""

from __future__ import annotations

import json
import shutil

import pytest

from sagelr.errors import UsageError
from sagelr.study import run as run_module

OTHER = {
    "label": "SageAdamW, β0 0.9",
    "role": "sage",
    "base": "adamw",
    "optimizer": "SageAdamW",
    "options": {"beta0": 0.9},
    "grid": {"lr": [2e-3, 4e-3, 8e-3]},
}
THREE = {"study.arms": ["adamw", "sage-adamw", "other"], "arms.other": OTHER}


def without_source(document):
    """A document as if nothing in it were taken over."""
    return document | {
        "runs": [
            {key: value for key, value in run.items() if key != "reused"}
            for run in document["runs"]
        ]
    }


def test_a_further_arm_costs_its_own_runs_alone(recipe, pretend, tmp_path, timeless):
    first = pretend(recipe(), tmp_path / "first")
    pretend.trained.clear()
    document = pretend(recipe(THREE), tmp_path / "more", reuse=tmp_path / "first")
    assert {key.split("/")[1] for key in pretend.trained} == {"other"}
    assert "6 runs are taken over from" in " ".join(pretend.notes)
    taken = [run for run in document["runs"] if "reused" in run]
    assert {run["key"] for run in taken} == {run["key"] for run in first["runs"]}
    assert {run["reused"] for run in taken} == {first["id"]}
    afresh = pretend(recipe(THREE), tmp_path / "afresh")
    assert timeless(without_source(document)) == timeless(afresh)
    assert f"12\xa0runs from study {first['id']}." in page_of(document, tmp_path)


def page_of(document, folder):
    from sagelr.report import write_report

    return write_report(document, folder / "page.html").read_text(encoding="utf-8")


def test_the_published_file_alone_will_do_and_an_interrupted_study_too(recipe, pretend, tmp_path):
    pretend(recipe(), tmp_path / "first")
    document = json.loads((tmp_path / "first" / "results.json").read_text())
    document["runs"] = document["runs"][:5]
    (tmp_path / "kept.json").write_text(json.dumps(document))
    pretend.trained.clear()
    pretend(recipe(), tmp_path / "again", reuse=tmp_path / "kept.json")
    assert len(pretend.trained) == 12 - 5


def test_failed_runs_and_arms_of_other_options_are_trained(recipe, pretend, tmp_path):
    def failing(run):
        if run.key == "report/adamw/lr=0.002/seed=1000":
            raise RuntimeError("no such thing")
        return pretend.valley(run)

    pretend(recipe(), tmp_path / "first", failing)
    pretend.trained.clear()
    other = {"arms.sage-adamw.options": {"beta0": 0.9}}
    pretend(recipe(other), tmp_path / "more", reuse=tmp_path / "first")
    assert sorted(key for key in pretend.trained if "/adamw/" in key) == [
        "report/adamw/lr=0.002/seed=1000"
    ]
    assert sum("/sage-adamw/" in key for key in pretend.trained) == 6


def test_a_run_at_another_lr_is_none_of_these_however_near(recipe, pretend, tmp_path):
    """A run is named by six digits of its lr, and found again by all of them."""
    exact = 0.00031622776601683794
    pretend(recipe({"arms.adamw.grid.lr": [exact, 2e-3, 4e-3]}), tmp_path / "first")
    pretend.trained.clear()
    near = recipe({"arms.adamw.grid.lr": [3.16228e-4, 2e-3, 4e-3]})
    pretend(near, tmp_path / "more", reuse=tmp_path / "first")
    assert pretend.trained == ["tune/adamw/lr=0.000316228/seed=0"]


def test_runs_of_another_machine_say_so(recipe, pretend, tmp_path, monkeypatch):
    pretend(recipe(), tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "brought")
    monkeypatch.setattr(run_module.provenance, "machine", lambda device: {"cores": 1000})
    document = pretend(recipe(), tmp_path / "here", reuse=tmp_path / "brought")
    assert document["machine"] == {"cores": 1000}
    assert all(run["machine"]["cores"] != 1000 for run in document["runs"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.epochs": 2}, "train.epochs was 1 and is now 2"),
        ({"task.train": 48}, "task.train was 64 and is now 48"),
        ({"study.select_by": "accuracy"}, "study.select_by was 'loss' and is now 'accuracy'"),
    ],
)
def test_what_was_trained_otherwise_is_refused(recipe, pretend, tmp_path, changes, said):
    pretend(recipe(), tmp_path / "first")
    with pytest.raises(UsageError, match=f"--reuse .*its runs would not be these: .*{said}"):
        pretend(recipe(changes), tmp_path / "more", reuse=tmp_path / "first")


def test_other_versions_and_other_data_are_refused(recipe, pretend, tmp_path, monkeypatch):
    pretend(recipe(), tmp_path / "first")
    with monkeypatch.context() as here:
        here.setitem(pretend.data, "sha256", "1" * 64)
        with pytest.raises(UsageError, match=r"--reuse .*first: its runs are on other data"):
            pretend(recipe(THREE), tmp_path / "more", reuse=tmp_path / "first")
    monkeypatch.setattr(run_module.provenance, "versions", lambda: {"torch": "99.0"})
    with pytest.raises(UsageError, match=r"torch was .* and is now 99\.0"):
        pretend(recipe(), tmp_path / "other", reuse=tmp_path / "first")


def test_runs_on_other_data_are_refused_even_where_none_would_be_trained(
    recipe, pretend, tmp_path, monkeypatch
):
    pretend(recipe(), tmp_path / "first")
    pretend.trained.clear()
    with monkeypatch.context() as here:
        here.setitem(pretend.data, "sha256", "1" * 64)
        with pytest.raises(UsageError, match=r"sha256 000000000000… there, 111111111111… here"):
            pretend(recipe(), tmp_path / "more", reuse=tmp_path / "first")
        assert not pretend.trained
        document = pretend(recipe(), tmp_path / "more")  # the folder is still of use
        assert document["data"]["sha256"] == "1" * 64
    pretend.trained.clear()
    document = pretend(recipe(), tmp_path / "again", reuse=tmp_path / "first")
    assert not pretend.trained
    assert document["data"] == pretend.data


def test_runs_of_another_version_are_trained(recipe, pretend, tmp_path, monkeypatch):
    """A study that was gone on with after an update has runs of both."""

    def earlier(run):
        return pretend.valley(run) | ({"sagelr": "0.0.1"} if run.arm == "adamw" else {})

    pretend(recipe(), tmp_path / "first", earlier)
    pretend.trained.clear()
    pretend(recipe(), tmp_path / "more", reuse=tmp_path / "first")
    assert {key.split("/")[1] for key in pretend.trained} == {"adamw"}
    with monkeypatch.context() as updated:
        updated.setattr(run_module.provenance, "versions", lambda: {"torch": "99.0"})
        document = pretend(recipe({"study.report_seeds": 4}), tmp_path / "first")
    assert {run["seed"] for run in document["runs"] if "versions" in run} == {1003}
    assert {"torch": "99.0"} in [run.get("versions") for run in document["runs"]]
    pretend.trained.clear()
    pretend(recipe({"study.report_seeds": 4}), tmp_path / "last", reuse=tmp_path / "first")
    assert {key.rpartition("=")[2] for key in pretend.trained if "sage" in key} == {"1003"}


@pytest.mark.parametrize("text", ["[]", "{", '{"id": 1}'])
def test_what_is_no_study_is_refused(recipe, pretend, tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UsageError, match="is not what sagelr compare writes"):
        pretend(recipe(), tmp_path / "more", reuse=tmp_path)
    with pytest.raises(UsageError, match=r"cannot be read \(No such file"):
        pretend(recipe(), tmp_path / "more", reuse=tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.hidden": 16}, "model.hidden was 8 and is now 16"),
        ({"task.split_seed": 1}, "task.split_seed was 0 and is now 1"),
        ({"audit.examples": 7}, "audit.examples was 1000 and is now 7"),
    ],
)
def test_another_model_split_or_audit_is_refused(recipe, pretend, tmp_path, changes, said):
    pretend(recipe(), tmp_path / "first")
    with pytest.raises(UsageError, match=f"--reuse .*its runs would not be these: .*{said}"):
        pretend(recipe(changes), tmp_path / "more", reuse=tmp_path / "first")


def test_arms_of_another_scope_are_trained(recipe, pretend, tmp_path):
    pretend(recipe(), tmp_path / "first")
    pretend.trained.clear()
    other = recipe({"arms.sage-adamw.scope": "all"})
    pretend(other, tmp_path / "more", reuse=tmp_path / "first")
    assert {key.split("/")[1] for key in pretend.trained} == {"sage-adamw"}


def test_runs_from_another_pretrained_model_are_refused(recipe, pretend, tmp_path, monkeypatch):
    monkeypatch.setitem(pretend.data, "model", "a" * 64)
    pretend(recipe(), tmp_path / "first")
    monkeypatch.setitem(pretend.data, "model", "b" * 64)
    with pytest.raises(UsageError, match=r"--reuse .*start from another pretrained model"):
        pretend(recipe(), tmp_path / "more", reuse=tmp_path / "first")
