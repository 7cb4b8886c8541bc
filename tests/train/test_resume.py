"""A training that was stopped and resumed is the training that was not."""

import copy
import itertools
import re
import shutil
from fractions import Fraction

import pytest
import torch

from sagelr.errors import SagelrError, UsageError
from sagelr.train import StoppedTrainingError, train
from sagelr.training import checkpoint

from .small import assert_same, base, normalized, recorded, sage, small, without_times


def stop_after(steps):
    count = itertools.count(1)
    return lambda: next(count) >= steps


def stopped(recipe, run, folder, steps, make=recorded):
    """A folder with the checkpoint of a training that was stopped after some steps."""
    with pytest.raises(StoppedTrainingError, match=f"after step {steps} of"):
        train(recipe, run, make(recipe), save=folder, stop=stop_after(steps))
    assert checkpoint.last(folder) == folder / f"checkpoint-{steps}"


CASES = {
    "in an epoch": (8, {}),
    "at the end of one": (5, {}),
    "in the first": (1, {}),
    "before the last step": (14, {}),
    "accumulating": (7, {"train__batch_size": 4, "train__accumulate": 3}),
    "best epoch": (8, {"train__early_stopping": 2, "train__epochs": 4}),
    "mean of epochs": (12, {"train__average_checkpoints": 2}),
    "by tokens": (7, {"train__tokens_per_batch": 60, "train__batch_size": None}),
    "by length": (7, {"train__length_grouped": True}),
    "in bf16": (7, {"train__precision": "bf16"}),
    "8-bit state": (7, {"arms__sage-adamw__options": {"state_format": "8bit"}}),
    "bfloat16 state": (7, {"arms__sage-adamw__options": {"state_format": "bfloat16"}}),
}


@pytest.mark.parametrize(("steps", "settings"), CASES.values(), ids=CASES)
def test_nothing_shows_that_it_was_stopped(tmp_path, steps, settings):
    recipe = small(**{"model__dropout": 0.2, "train__epochs": 3} | settings)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # Not in float64 where the test is of what becomes of float32.
    make = (
        (lambda recipe: recipe.make_task()) if "arms__sage-adamw__options" in settings else recorded
    )
    options = {"keep_optimizer": True, "score_test": True}
    uninterrupted = train(recipe, sage(), make(recipe), save=whole, **options)
    stopped(recipe, sage(), parts, steps, make)
    torch.rand(3)
    resumed = train(recipe, sage(), make(recipe), save=parts, resume=True, **options)
    assert_same(whole, parts)
    assert without_times(resumed) == without_times(uninterrupted)


def test_stopped_twice_by_the_base(tmp_path):
    recipe = small(model__dropout=0.2)
    train(recipe, base(), recorded(recipe), save=tmp_path / "whole", keep_optimizer=True)
    folder = tmp_path / "parts"
    stopped(recipe, base(), folder, 3)
    with pytest.raises(StoppedTrainingError):
        train(recipe, base(), recorded(recipe), save=folder, resume=True, stop=stop_after(4))
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-7"]
    train(recipe, base(), recorded(recipe), save=folder, resume=True, keep_optimizer=True)
    assert_same(tmp_path / "whole", folder)


def test_rows_that_change_go_on_with_their_epoch(tmp_path):
    def jittered(recipe):
        task = recorded(recipe)
        rows = task.train

        class Jittered(type(rows)):
            epoch = None

            def set_epoch(self, epoch):
                self.epoch = epoch

            def __getitem__(self, index):
                generator = torch.Generator().manual_seed(1000 * self.epoch + index)
                row = super().__getitem__(index)
                noise = torch.rand(row["pixel_values"].shape, generator=generator)
                return row | {"pixel_values": row["pixel_values"] + noise}

        task.train = Jittered(rows.images)
        return task

    recipe = small(train__epochs=3)
    train(recipe, sage(), jittered(recipe), save=tmp_path / "whole", keep_optimizer=True)
    stopped(recipe, sage(), tmp_path / "parts", 8, jittered)
    train(
        recipe, sage(), jittered(recipe), save=tmp_path / "parts", resume=True, keep_optimizer=True
    )
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_every_so_many_steps_or_epochs(tmp_path, monkeypatch):
    sealed = []
    monkeypatch.setattr(checkpoint, "seal", lambda folder, content: sealed.append(folder.name))
    train(small(train__epochs=3), sage(), save=tmp_path)
    assert sealed == ["checkpoint-5", "checkpoint-10"]  # the last epoch's is the model itself
    sealed.clear()
    train(small(train__epochs=3, train__save_every=5), sage(), save=tmp_path)
    assert sealed == ["checkpoint-5", "checkpoint-10"]
    sealed.clear()
    train(small(train__epochs=3, train__save_every=4), sage(), save=tmp_path)
    assert sealed == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]
    sealed.clear()
    train(small(train__epochs=3, train__save_every=1), sage())
    assert sealed == []  # without a folder there is nothing to keep


def test_a_checkpoint_that_was_cut_off_does_not_count(tmp_path):
    recipe = small()
    stopped(recipe, sage(), tmp_path, 3)
    cut = tmp_path / "checkpoint-4"
    shutil.copytree(tmp_path / "checkpoint-3", cut)
    (cut / checkpoint.SEAL).unlink()
    assert checkpoint.last(tmp_path) == tmp_path / "checkpoint-3"
    checkpoint.seal(tmp_path / "checkpoint-3", {})
    assert not cut.exists()


def test_the_newest_checkpoint_counts(tmp_path):
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        torch.save({}, folder / checkpoint.SEAL)
    assert checkpoint.last(tmp_path) == tmp_path / "checkpoint-10"
    assert checkpoint.last(tmp_path / "elsewhere") is None


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UsageError, match=r"holds no whole checkpoint.*without --resume"):
        train(small(), sage(), save=tmp_path, resume=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder of a training that was stopped after three steps."""
    folder = tmp_path_factory.mktemp("stopped")
    stopped(small(), sage(), folder, 3)
    return folder


@pytest.mark.parametrize(
    ("settings", "run", "told"),
    [
        ({"train__epochs": 4}, sage(), r"train\.epochs was 2 and is now 4"),
        ({"train__eval_batch_size": 2}, sage(), r"train\.eval_batch_size was None and is now 2"),
        ({"model__dropout": 0.5}, sage(), r"model\.dropout was 0\.0 and is now 0\.5"),
        ({"task__split_seed": 1}, sage(), r"the data have changed"),
        (
            {"arms__sage-adamw__scope": "all"},
            sage(),
            r"scope was 'attention\+ffn' and is now 'all'",
        ),
        ({}, base(), r"arm was 'sage-adamw' and is now 'adamw'"),
        ({}, sage(seed=1), r"seed was 0 and is now 1"),
        ({}, sage(lr=1e-3), r"setting\.lr was 0\.004 and is now 0\.001"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(one, settings, run, told):
    recipe = small(**settings)
    with pytest.raises(UsageError, match=f"checkpoint-3 is of another training: .*{told}"):
        train(recipe, run, recorded(recipe), save=one, resume=True)


@pytest.mark.parametrize(
    "name",
    ["sagelr.pt", "optimizer.pt", "rng_state.pth", "model.safetensors", "trainer_state.json"],
)
def test_a_damaged_checkpoint_is_named(one, tmp_path, name):
    folder = shutil.copytree(one, tmp_path / "copy")
    file = folder / "checkpoint-3" / name
    file.write_bytes(file.read_bytes()[:100])
    recipe = small()
    with pytest.raises(SagelrError, match=rf"{re.escape(str(file))} is damaged .*--overwrite"):
        train(recipe, sage(), recorded(recipe), save=folder, resume=True)


@pytest.mark.parametrize(
    "content",
    [{"a": 1}, {**dict.fromkeys(checkpoint.SEALED), "identity": {"run": {}}}, Fraction(1)],
)
def test_a_seal_of_another_program_is_named(one, tmp_path, content):
    folder = shutil.copytree(one, tmp_path / "copy")
    file = folder / "checkpoint-3" / checkpoint.SEAL
    torch.save(content, file)
    told = rf"{re.escape(str(file))} is damaged or not sagelr's.*--overwrite"
    with pytest.raises(SagelrError, match=told) as error:
        train(small(), sage(), recorded(small()), save=folder, resume=True)
    assert "weights_only" not in str(error.value)


def test_what_recipes_did_not_have_then_is_no_difference(one):
    now = checkpoint.read(one / "checkpoint-3")["identity"]
    then = copy.deepcopy(now)
    del then["recipe"]["train"]["compile"], then["run"]["arm.scope"]
    for arm in then["recipe"]["arms"].values():
        del arm["scope"]
    checkpoint.check(one / "checkpoint-3", then, now)
    now["recipe"]["train"]["compile"] = True
    with pytest.raises(UsageError, match=r"train\.compile was False and is now True"):
        checkpoint.check(one / "checkpoint-3", then, now)


def test_what_early_stopping_watches_stays_the_same(tmp_path):
    """The best value so far is in the unit of the score that was watched."""
    recipe = small(train__early_stopping=2, study__select_by="accuracy")
    stopped(recipe, sage(), tmp_path, 6)
    other = small(train__early_stopping=2, study__select_by="loss")
    with pytest.raises(UsageError, match=r"study\.select_by was 'accuracy' and is now 'loss'"):
        train(other, sage(), save=tmp_path, resume=True)


@pytest.mark.parametrize("how", [{"train__early_stopping": 3}, {"train__average_checkpoints": 3}])
def test_buffers_that_were_put_aside_are_taken_up(tmp_path, how):
    recipe = small(train__epochs=4, **how)
    train(recipe, sage(), normalized(recipe), save=tmp_path / "whole", keep_optimizer=True)
    folder = tmp_path / "parts"
    stopped(recipe, sage(), folder, 12, normalized)
    old = shutil.copytree(folder, tmp_path / "old")
    train(recipe, sage(), normalized(recipe), save=folder, resume=True, keep_optimizer=True)
    assert_same(tmp_path / "whole", folder)
    # As a version wrote it that put weights alone aside.
    file = old / "checkpoint-12" / checkpoint.SEAL
    content = torch.load(file, weights_only=True)
    sums = content["kept"]["sums"]
    content["kept"]["sums"] = {k: each for k, each in sums.items() if "running" not in k}
    torch.save(content, file)
    with pytest.raises(SagelrError, match=r"without classifier\.0\.running_mean.*--overwrite"):
        train(recipe, sage(), normalized(recipe), save=old, resume=True)


def test_folders_of_the_users_are_left_alone(tmp_path):
    kept = [tmp_path / name for name in ("checkpoint-best", "weights-backup", "checkpoint-3b")]
    for folder in kept:
        folder.mkdir()
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    stopped(small(), sage(), tmp_path, 3)
    assert checkpoint.last(tmp_path) == tmp_path / "checkpoint-3"
    checkpoint.clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint-notes.txt", *(path.name for path in kept)
    }  # fmt: skip


def test_of_a_linked_checkpoint_the_link_alone_is_removed(tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for each in (folder, elsewhere):
        each.mkdir()
    (elsewhere / "kept.txt").write_text("kept")
    for remove in (
        checkpoint.remove,
        checkpoint.clear,
        lambda folder: checkpoint.seal(folder / "checkpoint-3", {}),
    ):
        (folder / "checkpoint-3").mkdir()
        (folder / "checkpoint-2").symlink_to(elsewhere)
        remove(folder)
        assert not (folder / "checkpoint-2").is_symlink()
        shutil.rmtree(folder / "checkpoint-3", ignore_errors=True)
    assert (elsewhere / "kept.txt").exists()


def test_what_changes_nothing_may_change(one, tmp_path):
    folder = shutil.copytree(one, tmp_path / "copy")
    settings = {
        "title": "T",
        "train.save_every": 2,
        "study.report_seeds": 4,
        "arms.adamw.grid.lr": [1.0, 2.0, 3.0, 4.0],
        "audit.enabled": True,
    }
    recipe = small(**settings)
    entry = train(recipe, sage(), recorded(recipe), save=folder, resume=True)
    assert entry["status"] == "complete"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"train__schedule": "constant"}, r"train\.schedule was 'linear' and is now 'constant'"),
        ({"train__warmup": 0.5}, r"train\.warmup was .* and is now 0\.5"),
        ({"train__accumulate": 2}, r"train\.accumulate was 1 and is now 2"),
        ({"train__batch_size": 6}, r"train\.batch_size was 12 and is now 6"),
        (
            {"arms__sage-adamw__options": {"weight_decay": 0.5}},
            r"options.*was .* and is now",
        ),
    ],
)
def test_a_checkpoint_of_another_schedule_is_refused(one, settings, told):
    recipe = small(**settings)
    with pytest.raises(UsageError, match=f"checkpoint-3 is of another training: .*{told}"):
        train(recipe, sage(), recorded(recipe), save=one, resume=True)
