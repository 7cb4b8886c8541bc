"""What a study runs, and which setting it chooses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from sagelr.study import plan

BASE, SAGE = "arms.adamw.grid", "arms.sage-adamw.grid"


@pytest.fixture
def recipe(recipe):
    """The recipe with two tuning seeds."""
    return lambda changes=None: recipe({"study.tune_seeds": 2, **(changes or {})})


def tuned(recipe, value):
    """Tuning to its end, where a run's score is `value(arm, setting, seed)`."""
    scores: dict[str, float | None] = {}
    while True:
        state = plan.tuning(recipe, scores)
        if state.done:
            return state
        new = [run for run in state.runs if run.key not in scores]
        assert new  # it asks for something, or it is done
        scores |= {run.key: value(run.arm, run.setting, run.seed) for run in new}


def valley(best):
    """Lowest at one lr of each arm."""
    return lambda arm, setting, seed: abs(math.log(setting["lr"] / best[arm]))


# -- grids --------------------------------------------------------------------------------------


def test_an_optimum_inside_both_grids_extends_neither(recipe):
    state = tuned(recipe(), valley({"adamw": 2e-3, "sage-adamw": 4e-3}))
    assert state.arms["adamw"].grid["lr"] == [1e-3, 2e-3, 4e-3]
    assert state.arms["adamw"].chosen == {"lr": 2e-3}
    assert not state.arms["adamw"].on_edge
    assert state.arms["sage-adamw"].extended == ()
    assert len(state.runs) == 2 * 3 * 2


def test_every_setting_has_every_seed_and_no_run_is_asked_for_twice(recipe):
    runs = plan.tuning(recipe(), {}).runs
    assert len({run.key for run in runs}) == len(runs) == 12
    assert {run.seed for run in runs} == {0, 1}
    assert {run.stage for run in runs} == {"tune"}
    # Seed by seed: after the first half of the time every setting has been tried.
    assert [run.seed for run in runs] == [0] * 6 + [1] * 6


@pytest.mark.parametrize(
    ("best", "grid"),
    [
        (8e-3, [1e-3, 2e-3, 4e-3, 8e-3, 16e-3]),
        (0.5e-3, [0.25e-3, 0.5e-3, 1e-3, 2e-3, 4e-3]),
    ],
)
def test_an_optimum_on_the_edge_is_followed(recipe, best, grid):
    state = tuned(recipe(), valley({"adamw": best, "sage-adamw": 4e-3}))
    assert state.arms["adamw"].grid["lr"] == pytest.approx(grid)
    assert state.arms["adamw"].chosen == {"lr": pytest.approx(best)}
    assert not state.arms["adamw"].on_edge


def test_the_other_arm_gets_as_many_settings(recipe):
    state = tuned(recipe(), valley({"adamw": 8e-3, "sage-adamw": 4e-3}))
    # In the middle of its grid, it is extended on both sides in turn; of equal neighbours, down.
    assert state.arms["sage-adamw"].grid["lr"] == [1e-3, 2e-3, 4e-3, 8e-3, 16e-3]
    assert state.arms["sage-adamw"].extended == ("lr down to 0.001", "lr up to 0.016")
    assert state.arms["adamw"].extended == ("lr up to 0.008", "lr up to 0.016")


def test_arms_on_different_edges_each_go_their_way(recipe):
    state = tuned(recipe(), valley({"adamw": 8e-3, "sage-adamw": 1e-3}))
    assert state.arms["adamw"].extended == ("lr up to 0.008", "lr up to 0.016")
    assert state.arms["sage-adamw"].extended == ("lr down to 0.001", "lr down to 0.0005")


def test_a_step_of_a_grid_with_two_beta0_is_worth_two_of_one_without(recipe):
    changes = {f"{BASE}.lr": [1e-3, 2e-3, 4e-3, 8e-3]}
    changes |= {f"{SAGE}.lr": [4e-3, 8e-3], f"{SAGE}.beta0": [0.6, 0.8]}
    state = tuned(recipe(changes), valley({"adamw": 2e-3, "sage-adamw": 8e-3}))
    assert state.arms["sage-adamw"].grid == {"lr": [4e-3, 8e-3, 16e-3], "beta0": [0.6, 0.8]}
    # There are fewer lr below the best one than above: the first goes there, and of equals down.
    assert state.arms["adamw"].grid["lr"] == [0.25e-3, 0.5e-3, 1e-3, 2e-3, 4e-3, 8e-3]
    sizes = {name: sum(run.arm == name for run in state.runs) for name in state.arms}
    assert sizes == {"adamw": 12, "sage-adamw": 12}


def test_extension_ends_and_says_so(recipe):
    state = tuned(recipe({"study.max_extensions": 1}), valley({"adamw": 1.0, "sage-adamw": 4e-3}))
    assert state.arms["adamw"].grid["lr"][-1] == 8e-3
    assert state.arms["adamw"].on_edge
    assert not state.arms["sage-adamw"].on_edge


def test_a_grid_of_one_lr_grows(recipe):
    changes = {f"{BASE}.lr": [1e-3], f"{SAGE}.lr": [1e-3]}
    state = tuned(recipe(changes), valley({"adamw": 1e-3, "sage-adamw": 1e-3}))
    assert state.arms["adamw"].grid["lr"] == [0.5e-3, 1e-3, 2e-3]
    assert state.arms["adamw"].chosen == {"lr": 1e-3}


# -- grids that follow the base's ----------------------------------------------------------------

FOLLOWS = {SAGE: {"lr_ratio": [1, 2], "beta0": [0.6, 0.8]}, f"{BASE}.lr": [1e-3, 2e-3, 4e-3, 8e-3]}


def rows(state):
    return {name: sum(run.arm == name for run in state.runs) for name in state.arms}


def test_a_grid_in_multiples_of_the_bases_lr_waits_for_it(recipe):
    one = recipe(FOLLOWS)
    first = plan.tuning(one, {})
    assert rows(first) == {"adamw": 8, "sage-adamw": 0}
    assert first.later == 8
    assert first.arms["sage-adamw"].grid == {"lr": [], "beta0": [0.6, 0.8]}
    state = tuned(one, valley({"adamw": 4e-3, "sage-adamw": 5e-3}))
    assert state.arms["sage-adamw"].placed_at == 4e-3
    assert state.arms["adamw"].placed_at is None
    # Its best is at the lower end, as of two lr one always is: a round for both arms.
    assert state.arms["sage-adamw"].grid["lr"] == [2e-3, 4e-3, 8e-3]
    assert state.arms["sage-adamw"].chosen["lr"] == 4e-3
    assert rows(state) == {"adamw": 12, "sage-adamw": 12}
    assert state.later == 0


def test_it_follows_the_base_beyond_the_ends_of_its_grid_and_is_extended_as_often(recipe):
    state = tuned(recipe(FOLLOWS), valley({"adamw": 32e-3, "sage-adamw": 64e-3}))
    assert state.arms["adamw"].extended == ("lr up to 0.016", "lr up to 0.032", "lr up to 0.064",
                                            "lr up to 0.128")  # fmt: skip
    assert state.arms["sage-adamw"].placed_at == 32e-3
    # In the end two further lr, one for each extension of the base's: up, where its best was, then
    # down, where there are fewer.
    assert state.arms["sage-adamw"].grid["lr"] == [16e-3, 32e-3, 64e-3, 128e-3]
    assert state.arms["sage-adamw"].chosen["lr"] == 64e-3
    assert rows(state) == {"adamw": 16, "sage-adamw": 16}


def test_it_stays_where_it_was_put(recipe):
    """Its own extension gives the base more settings, and one of them may be better."""

    def value(arm, setting, seed):
        if arm == "adamw":  # a second valley, that the first grid does not reach
            return 0.0 if setting["lr"] == 16e-3 else 1 + abs(math.log(setting["lr"] / 2e-3))
        return abs(math.log(setting["lr"] / 4e-3))

    state = tuned(recipe({**FOLLOWS, f"{BASE}.lr": [1e-3, 2e-3, 4e-3, 8e-3]}), value)
    assert state.arms["sage-adamw"].placed_at == 2e-3
    assert 2e-3 in state.arms["sage-adamw"].grid["lr"]
    sizes = rows(state)
    assert sizes["adamw"] == sizes["sage-adamw"]


def test_without_its_base_it_begins_where_that_is_likely_to_be_best_and_does_not_say_it_was(recipe):
    state = tuned(recipe({**FOLLOWS, "study.arms": ["sage-adamw"]}), valley({"sage-adamw": 2e-3}))
    assert 2e-3 in state.arms["sage-adamw"].grid["lr"]
    assert state.arms["sage-adamw"].placed_at is None


def test_what_is_still_to_come_is_known_from_the_start(recipe):
    """In each state what is asked for and what comes later is no more than there is in the end."""
    one, value = recipe(FOLLOWS), valley({"adamw": 16e-3, "sage-adamw": 16e-3})
    end, scores, before = len(tuned(one, value).runs), {}, 0
    while not (state := plan.tuning(one, scores)).done:
        total = len(state.runs) + state.later
        assert before <= total <= end
        before = total
        scores |= {r.key: value(r.arm, r.setting, r.seed) for r in state.runs}
    assert before == end


def test_a_base_that_does_not_train_ends_tuning(recipe):
    state = tuned(recipe(FOLLOWS), lambda arm, setting, seed: math.inf)
    assert rows(state)["sage-adamw"] == 0
    assert state.arms["adamw"].chosen is None
    assert state.arms["sage-adamw"].chosen is None


def test_without_its_base_it_begins_at_the_middle_of_the_bases_grid(recipe):
    alone = recipe({**FOLLOWS, "study.arms": ["sage-adamw"]})
    assert plan.tuning(alone, {}).arms["sage-adamw"].grid["lr"] == [2e-3, 4e-3]
    assert alone.middle("sage-adamw") == {"lr": 2e-3, "beta0": 0.6}


def test_an_arm_far_from_its_base_is_known(recipe):
    near = plan.Tuned({"lr": [1.0, 2.0]}, {"lr": 2.0}, mean=0.5)
    far = plan.Tuned({"lr": [4.0, 8.0]}, {"lr": 4.0}, mean=0.6)
    assert plan.far_from(near, far)
    assert not plan.far_from(near, replace(far, mean=0.4))  # ahead, wherever it is
    assert not plan.far_from(near, replace(far, grid={"lr": [1.0, 4.0]}))
    assert not plan.far_from(replace(near, chosen=None), far)


# -- the choice ---------------------------------------------------------------------------------


def test_the_mean_over_seeds_decides(recipe):
    scores = {(1e-3, 0): 0.1, (1e-3, 1): 0.9, (2e-3, 0): 0.4, (2e-3, 1): 0.4}
    state = tuned(recipe(), lambda arm, setting, seed: scores.get((setting["lr"], seed), 1.0))
    assert state.arms["adamw"].chosen == {"lr": 2e-3}


def test_of_equals_the_lower_lr_is_chosen(recipe):
    state = tuned(recipe({"study.max_extensions": 0}), lambda arm, setting, seed: 1.0)
    assert {name: arm.chosen for name, arm in state.arms.items()} == {
        "adamw": {"lr": 1e-3},
        "sage-adamw": {"lr": 2e-3},
    }


@pytest.mark.parametrize("lost", [math.inf, None])
def test_a_setting_that_lost_one_seed_is_not_chosen(recipe, lost):
    def value(arm, setting, seed):
        if setting["lr"] == 2e-3 and seed == 1:
            return lost
        return valley({"adamw": 2.5e-3, "sage-adamw": 4e-3})(arm, setting, seed)

    assert tuned(recipe(), value).arms["adamw"].chosen == {"lr": 4e-3}


def test_when_everything_diverges_lower_lr_are_tried(recipe):
    def value(arm, setting, seed):
        return 1.0 if setting["lr"] < 0.4e-3 else math.inf

    state = tuned(recipe(), value)
    assert state.arms["adamw"].grid["lr"][0] == pytest.approx(0.25e-3)
    assert state.arms["adamw"].chosen == {"lr": pytest.approx(0.25e-3)}


def test_with_nothing_to_choose_from_nothing_is_chosen(recipe):
    state = tuned(recipe(), lambda arm, setting, seed: math.inf)
    assert all(arm.chosen is None for arm in state.arms.values())
    assert state.arms["adamw"].extended == ("lr down to 0.0005", "lr down to 0.00025")


def test_tuning_is_not_done_before_its_last_run(recipe):
    runs = plan.tuning(recipe(), {}).runs
    scores = {run.key: valley({"adamw": 2e-3, "sage-adamw": 4e-3})(run.arm, run.setting, 0)
              for run in runs}  # fmt: skip
    assert plan.tuning(recipe(), scores).done
    for run in runs:
        assert not plan.tuning(recipe(), {k: v for k, v in scores.items() if k != run.key}).done


# -- report -------------------------------------------------------------------------------------


def test_report_runs_are_pairs_on_fresh_seeds(recipe):
    chosen = {"adamw": {"lr": 1e-3}, "sage-adamw": {"lr": 2e-3}}
    runs = plan.reporting(recipe(), chosen, 3)
    assert [(run.seed, run.arm) for run in runs] == [
        (seed, arm) for seed in (1000, 1001, 1002) for arm in ("adamw", "sage-adamw")
    ]
    tuning = {run.seed for run in plan.tuning(recipe({"study.tune_seeds": 1000}), {}).runs}
    assert not tuning & {run.seed for run in runs}
    # More seeds are the same and further ones.
    assert plan.reporting(recipe(), chosen, 5)[: len(runs)] == runs


def test_a_neighbour_is_as_good_as_its_best_setting():
    """Among as many lr on both sides the better neighbour says where to go first."""
    grid = {"lr": [1.0, 2.0, 4.0], "beta0": [0.6, 0.8]}
    one = {1.0: (0.2, 0.9), 2.0: (0.1, 0.1), 4.0: (0.5, 0.5)}
    other = {1.0: (0.5, 0.5), 2.0: (0.1, 0.1), 4.0: (0.9, 0.2)}
    for scores, wanted in ((one, ["down", "up", "down"]), (other, ["up", "down", "up"])):
        means = {
            plan.name_of({"lr": lr, "beta0": beta0}): value
            for lr, values in scores.items()
            for beta0, value in zip(grid["beta0"], values, strict=True)
        }
        assert plan.sides(grid, means, 3) == wanted


def test_arms_whose_axes_do_not_divide_each_other_get_as_many_settings(recipe):
    third = {
        "label": "Third",
        "role": "sage",
        "base": "adamw",
        "optimizer": "SageAdamW",
        "grid": {"lr": [2e-3, 4e-3], "beta0": [0.6, 0.7, 0.8]},
    }
    changes = {
        "study.arms": ["adamw", "sage-adamw", "third"],
        "arms.third": third,
        f"{BASE}.lr": [1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3],
        SAGE: {"lr": [2e-3, 4e-3, 8e-3], "beta0": [0.6, 0.8]},
    }
    best = {"adamw": 64e-3, "sage-adamw": 4e-3, "third": 4e-3}
    state = tuned(recipe(changes), valley(best))
    assert state.arms["adamw"].extended
    assert len(set(rows(state).values())) == 1


def test_an_arm_that_was_tried_below_its_bases_best_lr_alone_is_far_too(recipe):
    base = plan.Tuned({"lr": [1.0, 2.0]}, {"lr": 2.0}, mean=0.5)
    assert plan.far_from(base, plan.Tuned({"lr": [0.25, 0.5]}, {"lr": 0.5}, mean=0.6))
