"""results.json: comparisons and failed runs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sagelr import schema
from sagelr.commands.compare import sentence
from sagelr.study import results, statistics
from sagelr.train import Run

SEEDS = [1000, 1001, 1002, 1003, 1004, 1005]
CHOSEN = {"adamw": {"lr": 2e-3}, "sage-adamw": {"lr": 4e-3}, "third": {"lr": 4e-3}}
THIRD = {
    "study.arms": ["adamw", "sage-adamw", "third"],
    "arms.third": {
        "label": "Third",
        "role": "sage",
        "base": "adamw",
        "optimizer": "SageAdamW",
        "grid": {"lr": [2e-3, 4e-3, 8e-3]},
    },
}


@pytest.fixture
def reported(pretend):
    """Entries of report runs, arm → accuracies; further fields as `arm → seed → fields`."""

    def make(accuracies, more=None):
        entries = {}
        for arm, values in accuracies.items():
            for seed, value in zip(SEEDS, values, strict=False):
                run = Run("report", arm, CHOSEN[arm], seed)
                fields = (more or {}).get(arm, {}).get(seed, {})
                entries[run.key] = pretend.entry(run, 1 - value, value, **fields)
        return entries

    return make


BASE = [0.90, 0.91, 0.92, 0.90, 0.91, 0.93]
BETTER = [0.95, 0.94, 0.96, 0.96, 0.94, 0.96]


def compared(recipe, runs):
    return results.compare(recipe, runs, CHOSEN, SEEDS)


# -- comparisons --------------------------------------------------------------------------------


def test_arms_are_compared_by_seed_on_the_test_split(recipe, reported):
    (found,) = compared(recipe(), reported({"adamw": BASE, "sage-adamw": BETTER}))
    assert (found["base"], found["sage"], found["metric"]) == ("adamw", "sage-adamw", "accuracy")
    assert found["verdict"] == "better"
    assert found["difference"]["mean"] == pytest.approx(np.mean(BETTER) - np.mean(BASE))
    assert found["arms"]["adamw"]["values"] == BASE
    assert found["failed"] == {"adamw": 0, "sage-adamw": 0}
    assert "p_holm" not in found
    assert "examples_ci95" not in found


def test_the_order_of_runs_does_not_matter(recipe, reported):
    runs = reported({"adamw": BASE, "sage-adamw": BETTER})
    backwards = dict(reversed(runs.items()))
    assert compared(recipe(), backwards) == compared(recipe(), runs)


def test_seeds_that_one_arm_lacks_yet_are_left_out(recipe, reported):
    (found,) = compared(recipe(), reported({"adamw": BASE, "sage-adamw": BETTER[:3]}))
    assert found["seeds"] == SEEDS[:3]
    assert compared(recipe(), reported({"adamw": BASE, "sage-adamw": BETTER[:1]})) == []


def test_a_run_that_diverged_leaves_the_comparison_open(recipe, reported):
    lost = {"status": "diverged", "error": "loss nan", "scores": {"test": None}}
    more = {"sage-adamw": {1001: lost}}
    (found,) = compared(recipe(), reported({"adamw": BASE, "sage-adamw": BETTER}, more))
    assert found["seeds"] == [1000, 1002, 1003, 1004, 1005]
    assert found["verdict"] == "inconclusive"
    assert found["failed"] == {"adamw": 0, "sage-adamw": 1}
    assert found["settles"].startswith("0 of 6 runs of AdamW and 1 of 6 runs of SageAdamW did not")
    assert found["seeds_needed"] is None


@pytest.mark.parametrize("left", [0, 1])
def test_arms_of_which_nearly_all_runs_diverged_are_told(recipe, reported, left):
    """The more fail, the louder it should be; and they count among what is corrected for."""
    lost = {"status": "diverged", "error": "loss nan", "scores": {"test": None}}
    more = {"third": dict.fromkeys(SEEDS[left:], lost)}
    scores = {"adamw": BASE, "sage-adamw": BETTER, "third": BASE}
    three, runs = recipe(THIRD), reported(scores, more)
    (entry,) = results.unpaired(three, runs, CHOSEN, SEEDS)
    assert (entry["base"], entry["sage"]) == ("adamw", "third")
    assert f"0 of 6 runs of AdamW and {6 - left} of 6 runs of" in entry["settles"]
    (found,) = compared(three, runs)
    assert found["sage"] == "sage-adamw"
    assert found["p_holm"] == pytest.approx(2 * found["difference"]["p_value"])
    assert found["holm_of"] == 2


def test_arms_that_have_not_ended_are_waited_for(recipe, reported):
    runs = reported({"adamw": BASE, "sage-adamw": BETTER[:1]})
    assert results.unpaired(recipe(), runs, CHOSEN, SEEDS) == []
    runs = reported({"adamw": BASE, "sage-adamw": BETTER})
    assert results.unpaired(recipe(), runs, CHOSEN, SEEDS) == []


def test_several_arms_against_one_base_are_corrected_for(recipe, reported):
    runs = reported({"adamw": BASE, "sage-adamw": BETTER, "third": [0.91] * 6})
    found = compared(recipe(THIRD), runs)
    p_values = [entry["difference"]["p_value"] for entry in found]
    assert [entry["p_holm"] for entry in found] == statistics.holm(p_values)
    assert [entry["holm_of"] for entry in found] == [2, 2]


def test_examples_give_an_interval_where_both_sides_have_them(recipe, reported):
    draws = np.random.default_rng(0)
    rows = {
        arm: {seed: {"examples": (draws.random(50) < share).astype(int).tolist()} for seed in SEEDS}
        for arm, share in (("adamw", 0.8), ("sage-adamw", 0.9))
    }
    accuracies = {
        arm: [float(np.mean(found["examples"])) for found in by_seed.values()]
        for arm, by_seed in rows.items()
    }
    (found,) = compared(recipe(), reported(accuracies, rows))
    low, high = found["examples_ci95"]
    assert low < found["difference"]["mean"] < high
    # A score that is no mean over examples, such as F1, has no such interval.
    (found,) = compared(recipe(), reported({**accuracies, "adamw": BASE}, rows))
    assert "examples_ci95" not in found
    del rows["adamw"][1003]["examples"]
    (found,) = compared(recipe(), reported(accuracies, rows))
    assert "examples_ci95" not in found


def test_what_tuning_minimises(recipe, pretend):
    run = Run("tune", "adamw", {"lr": 1e-3}, 0)
    entry = pretend.entry(run, 0.25, 0.75)
    assert results.value_of(recipe(), entry) == 0.25
    assert results.value_of(recipe({"study.select_by": "accuracy"}), entry) == -0.75
    assert results.value_of(recipe(), {**entry, "status": "diverged"}) == math.inf
    assert results.value_of(recipe(), {**entry, "status": "failed"}) is None


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"scores": {"test": {"f1": math.nan}}}, "scores.test.f1 = nan"),
        ({"curve": [{"loss": 1.0}, {"loss": math.inf}]}, "curve[1].loss = inf"),
        ({"scores": None, "curve": [1, "nan", True]}, None),
    ],
)
def test_the_first_number_that_is_none_is_named(value, name):
    assert schema.not_finite(value) == name


# -- in words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sage", "words"),
    [
        (BETTER, "SageAdamW is better than AdamW: accuracy +4.00 points (95% interval +"),
        ([2 * b - s for b, s in zip(BASE, BETTER, strict=True)], "SageAdamW is worse than AdamW"),
        ([b + 0.0001 * i for i, b in enumerate(BASE)], "are equivalent within 1 point:"),
        (
            [b + 0.0001 * i for i, b in enumerate(BASE)],
            "real, but within the margin by its 90% interval, +0.01 p",
        ),
        ([0.95, 0.86, 0.97, 0.85, 0.95, 0.90], "No difference between SageAdamW and AdamW was"),
    ],
)
def test_a_verdict_in_words(recipe, reported, sage, words):
    checked = recipe()
    (found,) = compared(checked, reported({"adamw": BASE, "sage-adamw": sage}))
    labels = {name: {"label": arm.label} for name, arm in checked.arms.items()}
    assert words in sentence(found, {"arms": labels}, checked)


def told(recipe, reported, scores, more=None):
    (found,) = compared(recipe, reported(scores, more))
    labels = {name: {"label": arm.label} for name, arm in recipe.arms.items()}
    return sentence(found, {"arms": labels}, recipe)


def test_a_few_seeds_that_are_alike_are_told_as_such(recipe, reported):
    said = told(recipe(), reported, {"adamw": [0.5] * 3, "sage-adamw": [0.75] * 3})
    assert said.startswith("Whether SageAdamW differs from AdamW cannot be told yet: accuracy +25")
    assert "with each of 3 paired seeds. All 3 differences are alike" in said
    three = recipe(THIRD)
    runs = reported({"adamw": [0.5] * 3, "sage-adamw": [0.75] * 3, "third": [0.5, 0.6, 0.4]})
    alike, other = compared(three, runs)
    assert alike["difference"]["p_value"] is None
    assert "p_holm" not in alike
    assert other["holm_of"] == 2


def test_a_run_that_diverged_in_words(recipe, reported):
    lost = {"sage-adamw": {1001: {"status": "diverged", "error": "nan", "scores": {"test": None}}}}
    said = told(recipe(), reported, {"adamw": BASE, "sage-adamw": BETTER}, lost)
    assert said.startswith("Undecided between SageAdamW and AdamW, since some runs did not end")
    assert "No difference" not in said


def test_small_differences_have_digits_in_words(recipe, reported):
    small = [b + 1e-5 * (2 + i % 2) for i, b in enumerate(BASE)]
    said = told(recipe(), reported, {"adamw": BASE, "sage-adamw": small})
    assert "accuracy +0.0025 points (95% interval +0.0019 points to +0.0031" in said


def test_what_settings_are_chosen_by_is_in_the_file(recipe, pretend, tmp_path):
    document = pretend(recipe({"study.select_by": "accuracy"}), tmp_path / "accuracy")
    assert document["selector"] == recipe().score.to_json()
    document = pretend(recipe(), tmp_path / "loss")
    assert document["selector"]["name"] == "loss"
    assert document["selector"]["greater_is_better"] is False


def test_a_correction_in_words(recipe, reported):
    checked = recipe(THIRD)
    found = compared(checked, reported({"adamw": BASE, "sage-adamw": BETTER, "third": BASE}))
    labels = {name: {"label": arm.label} for name, arm in checked.arms.items()}
    told = sentence(found[0], {"arms": labels}, checked)
    assert "after Holm's correction for 2 comparisons with AdamW" in told


def test_arms_are_compared_by_the_test_split_whatever_validation_says(recipe, reported):
    """What has chosen a setting says nothing of it afterwards."""
    runs = reported({"adamw": BASE, "sage-adamw": BETTER})
    for run in runs.values():
        run["scores"]["validation"] = {"loss": 0.5, "accuracy": 0.5}
    (found,) = compared(recipe(), runs)
    assert found["arms"]["sage-adamw"]["values"] == BETTER


TWO_BASES = {
    "study.arms": ["adamw", "sage-adamw", "adamax", "sage-adamax"],
    "arms.adamax": {
        "label": "Adamax",
        "role": "base",
        "optimizer": "Adamax",
        "grid": {"lr": [1e-3, 2e-3, 4e-3]},
    },
    "arms.sage-adamax": {
        "label": "SageAdamax",
        "role": "sage",
        "base": "adamax",
        "optimizer": "SageAdamax",
        "grid": {"lr": [2e-3, 4e-3, 8e-3]},
    },
}


def test_arms_of_different_bases_are_not_corrected_for_each_other(recipe, reported, monkeypatch):
    monkeypatch.setitem(CHOSEN, "adamax", {"lr": 2e-3})
    monkeypatch.setitem(CHOSEN, "sage-adamax", {"lr": 4e-3})
    arms = {"adamw": BASE, "sage-adamw": BETTER, "adamax": BASE, "sage-adamax": BETTER}
    found = compared(recipe(TWO_BASES), reported(arms))
    assert [(entry["base"], entry["sage"]) for entry in found] == [
        ("adamw", "sage-adamw"), ("adamax", "sage-adamax")
    ]  # fmt: skip
    assert not any("p_holm" in entry for entry in found)


def test_a_run_of_the_base_that_diverged_leaves_the_comparison_open_too(recipe, reported):
    lost = {"status": "diverged", "error": "loss nan", "scores": {"test": None}}
    more = {"adamw": {1001: lost}}
    (found,) = compared(recipe(), reported({"adamw": BASE, "sage-adamw": BETTER}, more))
    assert found["failed"] == {"adamw": 1, "sage-adamw": 0}
    assert found["verdict"] == "inconclusive"


def test_where_runs_failed_no_number_of_seeds_is_told_to_settle_it(recipe, reported):
    unclear = [0.95, 0.86, 0.97, 0.85, 0.95, 0.90]
    (found,) = compared(recipe(), reported({"adamw": BASE, "sage-adamw": unclear}))
    assert found["seeds_needed"] is not None
    lost = {"status": "diverged", "error": "loss nan", "scores": {"test": None}}
    more = {"sage-adamw": {1005: lost}}
    (found,) = compared(recipe(), reported({"adamw": BASE, "sage-adamw": unclear}, more))
    assert found["seeds_needed"] is None


def test_runs_that_are_no_part_of_the_comparison_are_left_out(recipe, reported, pretend):
    """A seed that is not asked for, and another setting of the arm."""
    lost = {"status": "diverged", "error": "loss nan", "scores": {"test": None}}
    more = {"sage-adamw": {1005: lost}}
    runs = reported({"adamw": BASE, "sage-adamw": BETTER}, more)
    other = Run("report", "sage-adamw", {"lr": 8e-3}, 1000)
    runs[other.key] = pretend.entry(other, 0.9, 0.1)
    (found,) = results.compare(recipe(), runs, CHOSEN, SEEDS[:5])
    assert found["seeds"] == SEEDS[:5]
    assert found["failed"] == {"adamw": 0, "sage-adamw": 0}
    assert found["arms"]["sage-adamw"]["values"] == BETTER[:5]


def test_what_a_training_costs_is_told_of_the_seeds_that_are_compared(recipe, reported):
    more = {"adamw": {seed: {"seconds": 1.0 if seed < 1003 else 100.0} for seed in SEEDS}}
    (found,) = compared(recipe(), reported({"adamw": BASE, "sage-adamw": BETTER[:3]}, more))
    assert found["cost"]["adamw"]["seconds"] == 1.0


def test_tuning_tells_the_metric_beside_what_settings_are_chosen_by(recipe, pretend, tmp_path):
    document = pretend(recipe(), tmp_path / "out", lambda run: pretend.entry(run, 0.25, 0.75))
    for arm in document["tuning"].values():
        assert {(each["mean"], each["score_mean"]) for each in arm["settings"]} == {(0.25, 0.75)}
