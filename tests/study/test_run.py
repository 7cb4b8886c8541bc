"""The loop of a study, with workers that pretend to train."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
from collections import Counter

import pytest
import torch

from sagelr.errors import SagelrError, UsageError
from sagelr.recipe import Recipe, check, load
from sagelr.study import crew
from sagelr.study import run as run_module
from sagelr.study.signals import InterruptedStudyError
from sagelr.training import precision


def test_a_study_from_start_to_end(recipe, pretend, tmp_path):
    document = pretend(recipe(), tmp_path / "out")
    assert document == json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["status"] == "complete"
    assert document["tuning"]["adamw"]["chosen"] == {"lr": 2e-3}
    assert document["tuning"]["sage-adamw"]["chosen"] == {"lr": 4e-3}
    assert document["progress"] == {"done": 2 * 3 + 2 * 3, "total": 12}
    assert document["comparison"]["seeds"] == [1000, 1001, 1002]
    assert document["comparison"]["n"] == 3
    assert document["looks"] == [3]
    assert document["data"]["name"] == "pretended"
    assert Counter(pretend.trained) == Counter(run["key"] for run in document["runs"])


def test_tuning_is_over_before_report_begins(recipe, pretend, tmp_path):
    pretend(recipe(), tmp_path / "out", jobs=3)
    stages = [key.partition("/")[0] for key in pretend.trained]
    assert stages == sorted(stages, reverse=True)  # tune, then report


def test_both_grids_are_extended_alike(recipe, pretend, tmp_path):
    def falling(run):
        return pretend.entry(run, 1 / run.setting["lr"] if run.arm == "adamw" else 1.0)

    document = pretend(recipe(), tmp_path / "out", falling)
    grids = {name: arm["grid"]["lr"] for name, arm in document["arms"].items()}
    assert grids["adamw"] == [1e-3, 2e-3, 4e-3, 8e-3, 16e-3]
    assert len(grids["sage-adamw"]) == 5
    assert document["tuning"]["adamw"]["on_edge"]
    assert any("still at the end of its grid" in note for note in pretend.notes)


def test_an_arm_begins_where_its_base_is_best(recipe, pretend, tmp_path):
    follows = recipe({"arms.sage-adamw.grid": {"lr_ratio": [0.5, 1, 2]}})

    def value(run):
        best = 4e-3 if run.arm == "adamw" else 8e-3
        return pretend.entry(run, 1 + abs(math.log2(run.setting["lr"] / best)))

    document = pretend(follows, tmp_path / "out", value)
    assert document["tuning"]["sage-adamw"]["placed_at"] == 4e-3
    assert document["tuning"]["adamw"]["placed_at"] is None
    assert document["tuning"]["sage-adamw"]["chosen"] == {"lr": 8e-3}
    assert document["recipe"]["arms"]["sage-adamw"]["grid"] == {"lr_ratio": [0.5, 1, 2]}
    grids = {name: arm["grid"]["lr"] for name, arm in document["arms"].items()}
    assert len(grids["adamw"]) == len(grids["sage-adamw"])
    order = [key.split("/")[1] for key in pretend.trained if key.startswith("tune/")]
    assert set(order[:4]) == {"adamw"}  # three settings, and an extension for the best at the end
    trained = len(pretend.trained)
    assert pretend(follows, tmp_path / "out", value)["status"] == "complete"
    assert len(pretend.trained) == trained


def test_a_base_without_a_setting_is_what_a_study_ends_for(recipe, pretend, tmp_path):
    follows = recipe({"arms.sage-adamw.grid": {"lr_ratio": [0.5, 1, 2]}, "study.max_extensions": 0})

    def diverging(run):
        return pretend.entry(run, 1.0) | {"status": "diverged", "error": "loss nan"}

    with pytest.raises(SagelrError, match="No setting of adamw trained with every seed"):
        pretend(follows, tmp_path / "out", diverging)
    assert all("adamw" in key and "sage" not in key for key in pretend.trained)


def test_an_arm_that_was_not_tried_where_its_base_is_best_is_told(recipe, pretend, tmp_path):
    def value(run):
        return pretend.entry(run, (1 if run.arm == "adamw" else 9) + run.setting["lr"])

    changes = {"arms.sage-adamw.grid.lr": [0.1, 0.2, 0.4], "study.max_extensions": 0}
    pretend(recipe(changes), tmp_path / "out", value)
    told = [note for note in pretend.notes if "was not tried at the best lr of adamw" in note]
    assert len(told) == 1
    assert "arms.sage-adamw.grid.lr around that" in told[0]


def test_a_finished_study_trains_nothing_more(recipe, pretend, tmp_path, timeless):
    first = pretend(recipe(), tmp_path / "out")
    begun = len(pretend.trained)
    assert timeless(pretend(recipe(), tmp_path / "out")) == timeless(first)
    assert len(pretend.trained) == begun


def test_more_seeds_add_only_new_runs_and_are_noted_as_another_look(recipe, pretend, tmp_path):
    pretend(recipe(), tmp_path / "out")
    begun = len(pretend.trained)
    document = pretend(recipe({"study.report_seeds": 5}), tmp_path / "out")
    assert document["looks"] == [3, 5]
    assert document["comparison"]["n"] == 5
    assert [key.rpartition("=")[2] for key in pretend.trained[begun:]] == ["1003"] * 2 + [
        "1004"
    ] * 2


def test_fewer_seeds_leave_none_out(recipe, pretend, tmp_path):
    pretend(recipe({"study.report_seeds": 5}), tmp_path / "out")
    document = pretend(recipe({"study.report_seeds": 2}), tmp_path / "out")
    assert document["comparison"]["n"] == 5
    assert document["looks"] == [5]
    assert any("choosing among results" in note for note in pretend.notes)


def test_seeds_that_were_asked_for_and_not_begun_may_be_left_out(recipe, pretend, tmp_path, ctrl_c):
    def interrupted(run):
        if run.seed == 1002:
            ctrl_c()
        return pretend.valley(run)

    with pytest.raises(InterruptedStudyError):
        pretend(recipe({"study.report_seeds": 50}), tmp_path / "out", interrupted, jobs=1)
    document = pretend(recipe({"study.report_seeds": 5}), tmp_path / "out")
    assert document["comparison"]["n"] == document["recipe"]["study"]["report_seeds"] == 5
    assert max(run["seed"] for run in document["runs"]) == 1004
    assert document["planned"] == 50  # results could be seen when it was ended
    fewer = pretend(recipe({"study.report_seeds": 2}), tmp_path / "out")
    assert fewer["comparison"]["n"] == 5
    again = pretend(recipe({"study.report_seeds": 50}), tmp_path / "out")
    assert "planned" not in again


def test_fewer_seeds_before_any_result_of_the_report_are_a_plan(recipe, pretend, tmp_path, ctrl_c):
    def interrupted(run):
        if run.stage == "report":
            ctrl_c()
        return pretend.valley(run)

    with pytest.raises(InterruptedStudyError):
        pretend(recipe({"study.report_seeds": 50}), tmp_path / "out", interrupted, jobs=1)
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    begun = any(run["stage"] == "report" for run in kept["runs"])
    assert ("planned" in pretend(recipe(), tmp_path / "out")) == begun


# -- what goes wrong ----------------------------------------------------------------------------


def test_ctrl_c_keeps_what_is_finished_and_the_next_start_goes_on(
    recipe, pretend, tmp_path, timeless, ctrl_c
):
    whole = pretend(recipe(), tmp_path / "whole")
    pretend.trained.clear()

    def interrupted(run):
        if len(pretend.trained) == 5:
            ctrl_c()
        return pretend.valley(run)

    with pytest.raises(InterruptedStudyError, match=r"Stopped. \d of 12 runs.*To go on: ") as stop:
        pretend(recipe(), tmp_path / "out", interrupted)
    assert stop.value.exit_status == 130
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert kept["status"] == "tuning"
    assert 3 <= len(kept["runs"]) <= 6
    begun = len(pretend.trained)
    document = pretend(recipe(), tmp_path / "out")
    assert timeless(document) == timeless(whole)
    again = set(pretend.trained[begun:])
    assert not again & {run["key"] for run in kept["runs"]}


def test_a_second_ctrl_c_does_not_wait(recipe, pretend, tmp_path, ctrl_c):
    def impatient(run):
        ctrl_c()
        ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        pretend(recipe(), tmp_path / "out", impatient)
    assert pretend(recipe(), tmp_path / "out")["status"] == "complete"


def test_a_signal_that_is_ignored_stays_ignored(recipe, pretend, tmp_path):
    def hung_up(run):
        os.kill(os.getpid(), signal.SIGHUP)
        return pretend.valley(run)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert pretend(recipe(), tmp_path / "out", hung_up)["status"] == "complete"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_workers_are_spread_over_the_gpus(recipe, pretend, tmp_path, monkeypatch):
    seen = []
    started = crew.Worker.__init__

    def noted(self, recipe, threads, gpu):
        seen.append(gpu)
        started(self, recipe, threads, gpu)

    monkeypatch.setattr(crew.Worker, "__init__", noted)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    auto = recipe({"train.device": "auto"})
    pretend(auto, tmp_path / "a", jobs=3)
    assert seen == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7,GPU-9,GPU-11")
    assert crew.gpus(auto) == ["GPU-7", "GPU-9"]
    assert crew.gpus(recipe()) == []


def test_the_run_of_a_dead_worker_has_one_more_try(recipe, pretend, tmp_path):
    fatal = "tune/adamw/lr=0.002/seed=0"

    def once(run):
        if run.key == fatal and pretend.trained.count(fatal) == 1:
            raise pretend.died("its process was ended by SIGKILL")
        return pretend.valley(run)

    document = pretend(recipe(), tmp_path / "out", once)
    assert all(run["status"] == "complete" for run in document["runs"])
    assert pretend.trained.count(fatal) == 2
    assert f"{fatal}: its process was ended by SIGKILL; it is run again." in pretend.notes


def test_after_two_deaths_a_run_is_given_up_with_the_reason(recipe, pretend, tmp_path):
    fatal = "report/adamw/lr=0.002/seed=1001"

    def always(run):
        if run.key == fatal:
            raise pretend.died("its process was ended by SIGKILL")
        return pretend.valley(run)

    document = pretend(recipe(), tmp_path / "out", always)
    assert document["status"] == "complete"
    failed = [run for run in document["runs"] if run["status"] == "failed"]
    assert [run["key"] for run in failed] == [fatal]
    assert failed[0]["error"] == "its process was ended by SIGKILL, 2 times"
    assert pretend.trained.count(fatal) == 2
    found = document["comparison"]
    assert found["verdict"] == "inconclusive"
    assert found["failed"] == {"adamw": 1, "sage-adamw": 0}
    assert "1 of 3 runs of AdamW" in found["settles"]
    # The next start tries it again.
    mended = pretend(recipe(), tmp_path / "out")
    assert mended["comparison"]["failed"] == {"adamw": 0, "sage-adamw": 0}
    assert mended["comparison"]["n"] == 3


def test_a_failed_run_of_a_seed_that_is_no_longer_asked_for_is_none(
    recipe, pretend, tmp_path, ctrl_c
):
    def failing(run):
        if run.seed == 1003:
            ctrl_c()
        if run.seed >= 1002:
            raise RuntimeError("out of luck")
        return pretend.valley(run)

    with pytest.raises(InterruptedStudyError):
        pretend(recipe({"study.report_seeds": 4}), tmp_path / "out", failing, jobs=1)
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 1002 in {run["seed"] for run in kept["runs"] if run["error"]}
    document = pretend(recipe({"study.report_seeds": 2}), tmp_path / "out")
    assert document["comparison"]["n"] == 2
    assert [run for run in document["runs"] if run["error"]] == []


def test_a_setting_that_fails_is_not_chosen(recipe, pretend, tmp_path):
    def failing(run):
        if run.stage == "tune" and run.setting["lr"] == 2e-3 and run.seed == 1:
            raise RuntimeError("no such thing")
        return pretend.valley(run)

    two = recipe({"study.tune_seeds": 2})
    document = pretend(two, tmp_path / "out", failing)
    assert document["tuning"]["adamw"]["chosen"] != {"lr": 2e-3}
    failed = {entry["setting"]["lr"]: entry for entry in document["tuning"]["adamw"]["settings"]}
    assert failed[2e-3]["failed"] == 1
    assert failed[2e-3]["mean"] is None
    # The choice stands, even if the setting would train now.
    chosen = document["tuning"]["adamw"]["chosen"]
    assert pretend(two, tmp_path / "out")["tuning"]["adamw"]["chosen"] == chosen


def test_a_setting_that_diverged_is_a_result_and_is_not_chosen(recipe, pretend, tmp_path):
    def diverging(run):
        if run.setting["lr"] == 2e-3 and run.stage == "tune":
            nothing = {"validation": None, "test": None, "train": None}
            return pretend.entry(run, 0.0, status="diverged", error="loss nan", scores=nothing)
        return pretend.valley(run)

    document = pretend(recipe(), tmp_path / "out", diverging)
    assert document["tuning"]["adamw"]["chosen"] != {"lr": 2e-3}
    begun = len(pretend.trained)
    pretend(recipe(), tmp_path / "out")
    assert len(pretend.trained) == begun


def test_a_score_that_is_no_number_fails_the_run(recipe, pretend, tmp_path):
    def undefined(run):
        if run.key == "report/adamw/lr=0.002/seed=1000":
            return pretend.entry(run, 0.1, math.nan)
        return pretend.valley(run)

    document = pretend(recipe(), tmp_path / "out", undefined)
    failed = [run for run in document["runs"] if run["status"] == "failed"]
    assert [run["error"] for run in failed] == [
        "scores.validation.accuracy = nan, which is no number to go by"
    ]


def test_when_nothing_trains_the_study_says_why(recipe, pretend, tmp_path):
    def failing(run):
        raise RuntimeError("CUDA is not what it was")

    with pytest.raises(SagelrError, match="first 3 runs failed in the same way: CUDA is not"):
        pretend(recipe(), tmp_path / "out", failing)
    assert pretend(recipe(), tmp_path / "out")["status"] == "complete"


def test_an_arm_that_never_trains_ends_the_study(recipe, pretend, tmp_path):
    def half(run):
        if run.arm == "adamw":
            nothing = {"validation": None, "test": None, "train": None}
            return pretend.entry(run, 0, status="diverged", error="loss inf", scores=nothing)
        return pretend.valley(run)

    with pytest.raises(SagelrError, match=r"No setting of adamw trained with every seed.*loss inf"):
        pretend(recipe(), tmp_path / "out", half)
    assert (tmp_path / "out" / "results.json").exists()


# -- whose folder it is -------------------------------------------------------------------------


def test_another_recipe_in_the_same_folder_is_refused(recipe, pretend, tmp_path):
    pretend(recipe(), tmp_path / "out")
    before = (tmp_path / "out" / "results.json").read_bytes()
    with pytest.raises(UsageError, match=r"train.epochs was 1 and is now 2.*--out another"):
        pretend(recipe({"train.epochs": 2}), tmp_path / "out")
    assert (tmp_path / "out" / "results.json").read_bytes() == before


def test_a_start_that_trained_nothing_leaves_the_folder_free(
    recipe, pretend, tmp_path, monkeypatch
):
    def failing(run):
        raise RuntimeError("CUDA is not what it was")

    with pytest.raises(SagelrError, match="first 3 runs failed"):
        pretend(recipe({"train.epochs": 2, "study.report_seeds": 9}), tmp_path / "out", failing)
    monkeypatch.setitem(pretend.data, "sha256", "1" * 64)
    document = pretend(recipe(), tmp_path / "out")
    assert document["recipe"]["train"]["epochs"] == 1
    assert document["comparison"]["n"] == 3
    assert document["data"]["sha256"] == "1" * 64
    assert {run["status"] for run in document["runs"]} == {"complete"}
    with pytest.raises(UsageError, match=r"train.epochs was 1 and is now 2"):
        pretend(recipe({"train.epochs": 2}), tmp_path / "out")


def test_a_smoke_run_is_not_gone_on_with_as_a_study(recipe, pretend, tmp_path):
    pretend(recipe(), tmp_path / "small", quick=True)
    with pytest.raises(UsageError, match=r"is a smoke run, and this one is none.*--out another"):
        pretend(recipe({"study.report_seeds": 5}), tmp_path / "small")
    pretend(recipe(), tmp_path / "whole")
    with pytest.raises(UsageError, match=r"is no smoke run.*Start it without --quick"):
        pretend(recipe(), tmp_path / "whole", quick=True)


def test_an_arm_that_the_study_leaves_out_may_change(recipe, pretend, tmp_path):
    arm = {"label": "C", "role": "base", "optimizer": "SGD", "grid": {"lr": [0.1]}}
    mine = recipe()
    pretend(mine, tmp_path / "out")
    begun = len(pretend.trained)
    data = mine.to_json()
    data["arms"]["other"] = arm
    assert pretend(check(data, "Recipe tiny"), tmp_path / "out")["status"] == "complete"
    assert len(pretend.trained) == begun


def test_a_study_of_an_earlier_version_goes_on(recipe, pretend, tmp_path, monkeypatch):
    """Keys that were added since have their defaults in it."""
    plain = Recipe.to_json

    def earlier(self):
        data = plain(self)
        del data["train"]["precision"]
        for arm in data["arms"].values():
            del arm["scope_lr_scale"]
        return data

    with monkeypatch.context() as then:
        then.setattr(Recipe, "to_json", earlier)
        pretend(recipe(), tmp_path / "out")
    begun = len(pretend.trained)
    assert pretend(recipe(), tmp_path / "out")["status"] == "complete"
    pretend(recipe(), tmp_path / "more", reuse=tmp_path / "out")
    assert len(pretend.trained) == begun
    changed = recipe({"arms.adamw.scope_lr_scale": 0.5})
    with pytest.raises(UsageError, match=r"scope_lr_scale was 1\.0 and is now 0\.5"):
        pretend(changed, tmp_path / "out")


def test_extensions_may_be_raised_until_settings_are_chosen(recipe, pretend, tmp_path, ctrl_c):
    def falling(run):
        if len(pretend.trained) == 7:  # in the first extension
            ctrl_c()
        return pretend.entry(run, run.setting["lr"])

    with pytest.raises(InterruptedStudyError):
        pretend(recipe({"study.max_extensions": 1}), tmp_path / "out", falling)
    more = recipe({"study.max_extensions": 3})
    document = pretend(more, tmp_path / "out", falling)
    assert document["arms"]["adamw"]["grid"]["lr"] == [1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3]
    begun = len(pretend.trained)
    assert pretend(more, tmp_path / "out")["status"] == "complete"
    assert len(pretend.trained) == begun
    with pytest.raises(UsageError, match=r"study.max_extensions was 3 and is now 4.*--out another"):
        pretend(recipe({"study.max_extensions": 4}), tmp_path / "out")


def test_extensions_stay_once_a_grid_is_placed_by_its_base(recipe, pretend, tmp_path, ctrl_c):
    """More of them could move the base's best lr, and the grid of every arm that began there."""

    def falling(run):
        if run.arm == "sage-adamw":
            ctrl_c()
        return pretend.entry(run, 1 / run.setting["lr"])

    follows = {"arms.sage-adamw.grid": {"lr_ratio": [0.5, 1, 2]}, "study.max_extensions": 1}
    with pytest.raises(InterruptedStudyError):
        pretend(recipe(follows), tmp_path / "out", falling, jobs=1)
    with pytest.raises(UsageError, match=r"study.max_extensions was 1 and is now 3.*--out another"):
        pretend(recipe(follows | {"study.max_extensions": 3}), tmp_path / "out")
    document = pretend(recipe(follows), tmp_path / "out")
    sizes = [len(entry["settings"]) for entry in document["tuning"].values()]
    assert sizes == [4, 4]


def test_extensions_may_be_raised_where_nothing_was_chosen(recipe, pretend, tmp_path):
    def diverging(run):
        if run.arm == "adamw" and run.setting["lr"] > 0.4e-3:
            nothing = {"validation": None, "test": None, "train": None}
            return pretend.entry(run, 0, status="diverged", error="loss inf", scores=nothing)
        return pretend.entry(run, run.setting["lr"])

    with pytest.raises(SagelrError, match=r"No setting of adamw trained with every seed"):
        pretend(recipe({"study.max_extensions": 1}), tmp_path / "out", diverging)
    document = pretend(recipe({"study.max_extensions": 3}), tmp_path / "out", diverging)
    assert document["tuning"]["adamw"]["chosen"]["lr"] < 0.4e-3


def test_a_lower_lr_is_advised_only_where_a_run_diverged(recipe, pretend, tmp_path):
    def half(status):
        def outcome(run):
            if run.arm == "adamw":
                return pretend.valley(run)
            if status == "failed":
                raise RuntimeError(f"no room for {run.key}.")
            nothing = {"validation": None, "test": None, "train": None}
            return pretend.entry(run, 0, status="diverged", error="loss inf", scores=nothing)

        return outcome

    follows = {"arms.sage-adamw.grid": {"lr_ratio": [0.5, 1, 2]}, "study.max_extensions": 0}
    with pytest.raises(SagelrError, match=r"seed=0\. Mend that, and run the same command again\.$"):
        pretend(recipe(follows), tmp_path / "failed", half("failed"))
    with pytest.raises(
        SagelrError, match=r"loss inf\. Try a lower arms\.sage-adamw\.grid\.lr_ratio"
    ):
        pretend(recipe(follows), tmp_path / "diverged", half("diverged"))


def test_a_study_goes_on_by_its_results_when_its_recipe_has_changed(recipe, pretend, tmp_path):
    out = tmp_path / "out"
    pretend(recipe({"train.precision": "auto", "study.report_seeds": 3}), out)
    begun = len(pretend.trained)
    with pytest.raises(UsageError, match=r"results\.json has them, and can be given as the recipe"):
        pretend(recipe({"train.precision": "auto", "train.epochs": 7}), out)
    kept = load(str(out / "results.json"), {"study.report_seeds": 5})
    assert kept.train.precision in ("float32", "bf16")
    assert pretend(kept, out)["comparison"]["n"] == 5
    assert len(pretend.trained) == begun + 2 * 2


def test_the_machine_that_begins_a_study_settles_its_precision(
    recipe, pretend, tmp_path, monkeypatch
):
    auto = recipe({"train.precision": "auto"})
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    document = pretend(auto, tmp_path / "out")
    assert document["recipe"]["train"]["precision"] == "bf16"
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: False)
    more = pretend(recipe({"train.precision": "auto", "study.report_seeds": 4}), tmp_path / "out")
    assert more["recipe"]["train"]["precision"] == "bf16"
    other = pretend(auto, tmp_path / "other")
    assert other["recipe"]["train"]["precision"] == "float32"


def test_another_title_is_the_same_study(recipe, pretend, tmp_path):
    pretend(recipe(), tmp_path / "out")
    assert pretend(recipe({"title": "Some digits"}), tmp_path / "out")["status"] == "complete"


def test_other_data_are_refused(recipe, pretend, tmp_path, monkeypatch):
    pretend(recipe(), tmp_path / "out")
    monkeypatch.setitem(pretend.data, "sha256", "1" * 64)
    with pytest.raises(SagelrError, match=r"data are not those.*sha256 111111111111… here, 000000"):
        pretend(recipe({"study.report_seeds": 4}), tmp_path / "out")


def test_another_pretrained_model_is_refused(recipe, pretend, tmp_path, monkeypatch):
    """Whatever its folder is called; studies of earlier versions did not say."""
    pretend(recipe(), tmp_path / "earlier")
    monkeypatch.setitem(pretend.data, "model", "a" * 64)
    pretend(recipe({"study.report_seeds": 4}), tmp_path / "earlier")
    pretend(recipe(), tmp_path / "out")
    pretend(recipe({"study.report_seeds": 4}), tmp_path / "out")
    monkeypatch.setitem(pretend.data, "model", "b" * 64)
    with pytest.raises(SagelrError, match=r"model is not that.*commit bbbbbbbbbbbb… here, aaaaaa"):
        pretend(recipe({"study.report_seeds": 5}), tmp_path / "out")
    with pytest.raises(UsageError, match=r"--reuse .*out: its runs start from another pretrained"):
        pretend(recipe(), tmp_path / "more", reuse=tmp_path / "out")


@pytest.mark.parametrize("name", ["results.json", "report.html"])
def test_results_without_their_study_are_not_overwritten(recipe, pretend, tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UsageError, match=f"holds a {name} but no study.db"):
        pretend(recipe(), tmp_path)
    assert (tmp_path / name).read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("found", ['{"id": "of another"}', '{"id": ', "[]"])
def test_results_of_another_study_are_not_overwritten(recipe, pretend, tmp_path, found):
    pretend(recipe(), tmp_path)
    (tmp_path / "results.json").write_text(found)
    with pytest.raises(UsageError, match="of another study and would be overwritten"):
        pretend(recipe(), tmp_path)
    assert (tmp_path / "results.json").read_text() == found


def test_a_folder_serves_one_process_at_a_time(recipe, pretend, tmp_path):
    from sagelr.study.storage import locked

    with locked(tmp_path), pytest.raises(SagelrError, match="Another sagelr is at work in"):
        pretend(recipe(), tmp_path)


def test_a_file_system_without_locks(recipe, pretend, tmp_path, monkeypatch):
    def flock(*given):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(SagelrError, match=r"without locks .*--out a folder .*--storage"):
        pretend(recipe(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_versions_are_noted(recipe, pretend, tmp_path, monkeypatch):
    pretend(recipe(), tmp_path)
    monkeypatch.setattr(run_module.provenance, "versions", lambda: {"torch": "99.0"})
    pretend(recipe(), tmp_path)
    assert any("now it is 99.0" in note for note in pretend.notes)


def test_runs_of_another_machine_say_so(recipe, pretend, tmp_path, monkeypatch):
    pretend(recipe(), tmp_path)
    monkeypatch.setattr(run_module.provenance, "machine", lambda device: {"cores": 1000})
    document = pretend(recipe({"study.report_seeds": 4}), tmp_path)
    elsewhere = {run["seed"] for run in document["runs"] if "machine" in run}
    assert elsewhere == {1003}
