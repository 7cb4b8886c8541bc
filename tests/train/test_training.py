"""One training, in this process: what its options do, and what it reports."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from sagelr.errors import SagelrError, UsageError
from sagelr.recipe import load
from sagelr.trace import steps_to_probe
from sagelr.train import Run, make_optimizer, train
from sagelr.training import precision
from sagelr.training.arguments import batch_plan, eval_batch_size
from sagelr.training.record import Record
from sagelr.training.spent import Spent

from .small import Recorded, base, normalized, recorded, sage, small, state_in, without_times


def weights_after(recipe, run, **options):
    """The trained weights, and the entry."""
    task = recorded(recipe)
    entry = train(recipe, run, task, **options)
    return {name: p.detach().clone() for name, p in task.made.named_parameters()}, entry, task


def assert_close(left, right, atol=1e-12):
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=atol)


# -- the same run, the same bits -----------------------------------------------------------------


def test_a_run_repeats_bit_for_bit_whatever_ran_before():
    recipe = small(model__dropout=0.2)
    task = recipe.make_task()
    first = train(recipe, sage(), task)
    torch.rand(17)
    train(small(), base(seed=3), task)
    assert without_times(train(recipe, sage(), task)) == without_times(first)


def test_looking_on_changes_nothing():
    moments, shares = [], []
    recipe = small(model__dropout=0.2, train__epochs=4)
    watched = train(recipe, sage(), observe=moments.append, progress=shares.append)
    assert without_times(watched) == without_times(train(recipe, sage()))
    assert shares == [0.5, 1.0]
    last = moments[-1]
    assert (last.step, last.total, last.epoch) == (20, 20, 4.0)
    assert last.loss is not None
    assert 0 < last.loss < 3


def test_the_multiplier_that_is_shown_is_that_of_the_step(monkeypatch):
    monkeypatch.setattr("sagelr.training.watch.MOMENTS", 0.0)
    moments = []
    train(small(), sage(), observe=moments.append)
    shown = [moment.multiplier for moment in moments]
    assert shown[0] < 0.1  # with bias correction SAGE waits at step 1, but for weights of 0
    assert all(0.2 < r < 1 for r in shown[1:])
    moments.clear()
    train(small(), base(), observe=moments.append)
    assert {moment.multiplier for moment in moments} == {None}


def test_the_loss_that_is_shown_is_that_of_a_step(monkeypatch):
    """Whatever batches are left for the last step of an epoch."""
    monkeypatch.setattr("sagelr.training.watch.MOMENTS", 0.0)
    moments = []
    recipe = small(train__accumulate=4, train__epochs=2)  # five batches an epoch
    found = train(recipe, sage(), observe=moments.append)
    losses = [moment.loss for moment in moments[:2]]
    assert sum(losses) / 2 == pytest.approx(found["curve"][0]["train_loss"], rel=0.2)


def test_an_entry_says_what_was_done():
    entry = train(small(), sage(stage="report"))
    assert entry["key"] == "report/sage-adamw/lr=0.004,beta0=0.8/seed=0"
    assert entry["status"] == "complete"
    assert set(entry["scores"]["test"]) == {"loss", "accuracy"}
    assert [row["step"] for row in entry["curve"]] == [5, 10]
    assert entry["curve"][-1]["validation_loss"] == entry["scores"]["validation"]["loss"]
    assert entry["curve"][-1]["train_loss"] == entry["scores"]["train"]["loss"]
    assert entry["sage"]["layers"]
    assert entry["options"]["scope"] == "attention+ffn"
    assert "audit" not in entry


def test_a_control_is_not_shown_with_multipliers_that_it_does_not_apply():
    arm = {"optimizer": "ControlAdamW", "options": {"control": "constant"}}
    recipe = small(**{f"arms__sage-adamw__{key}": value for key, value in arm.items()})
    moments = []
    entry = train(recipe, sage(stage="report"), observe=moments.append)
    assert entry["sage"] is None
    assert {moment.multiplier for moment in moments} == {None}


def test_a_scope_that_leaves_sage_on_nothing_is_refused_before_any_training():
    recipe = small(**{"arms__sage-adamw__scope": "none"})
    with pytest.raises(
        UsageError, match=r"arms\.sage-adamw\.scope = 'none' leaves SAGE on nothing"
    ):
        train(recipe, sage(stage="tune"))


def test_the_test_split_is_scored_after_a_report_alone():
    assert train(small(), sage(stage="tune"))["scores"]["test"] is None
    assert train(small(), sage(stage="train"))["scores"]["test"] is None
    assert train(small(), sage(stage="train"), score_test=True)["scores"]["test"]


# -- optimizers ----------------------------------------------------------------------------------


def test_the_base_takes_its_fused_step_unless_told_otherwise():
    assert train(small(), base())["options"]["fused"] is True
    options = {"weight_decay": 0.01, "foreach": False}
    assert train(small(arms__adamw__options=options), base())["options"]["fused"] is None


@pytest.mark.parametrize("run", [base(), sage()])
def test_what_is_in_scope_may_go_at_another_rate(run):
    """After one step; a step is in proportion to lr."""
    once = {"train__max_steps": 1, "train__warmup": 0}
    plain, entry, _ = weights_after(small(**once), run)
    start = {name: p.detach() for name, p in recorded(small()).model(run.seed).named_parameters()}
    scaled = small(**once, **{f"arms__{run.arm}__scope_lr_scale": 0.5})
    other, told, _ = weights_after(scaled, run)
    assert any(".attention." in name for name in start)
    for name, first in start.items():
        factor = 0.5 if ".attention." in name or ".mlp." in name else 1.0
        assert not torch.equal(plain[name], first)
        torch.testing.assert_close(other[name] - first, factor * (plain[name] - first))
    assert "scope_lr_scale" not in entry["options"]
    assert (told["options"]["scope_lr_scale"], told["options"]["scope"]) == (0.5, "attention+ffn")


def test_a_loss_that_is_no_number_ends_the_run():
    entry = train(small(), base(stage="report", lr=1e20))
    assert entry["status"] == "diverged"
    assert "loss" in entry["error"]
    assert entry["scores"] == {"validation": None, "test": None, "train": None}
    assert entry["sage"] is None


def test_clipping_bounds_the_step():
    arms = {"arms.adamw.optimizer": "SGD", "arms.adamw.options": {"momentum": 0.0}}
    keys = {key.replace(".", "__"): value for key, value in arms.items()}
    tight = small(train__max_grad_norm=1e-6, train__max_steps=1, train__warmup=0, **keys)
    before = recorded(tight).model(0).state_dict()
    after, _, _ = weights_after(tight, base(lr=1.0))
    moved = sum(float((after[name] - before[name]).square().sum()) for name in after) ** 0.5
    assert moved == pytest.approx(1e-6, rel=1e-3)
    free, _, _ = weights_after(
        tight.model_copy(update={"train": tight.train.model_copy(update={"max_grad_norm": 0})}),
        base(lr=1.0),
    )
    assert sum(float((free[name] - before[name]).square().sum()) for name in free) ** 0.5 > 1e-3


# -- steps, epochs and schedules -----------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 2])
def test_batches_that_are_accumulated_make_the_step_of_one(epochs):
    whole, _, _ = weights_after(small(train__epochs=epochs), sage())
    parts, entry, _ = weights_after(
        small(train__epochs=epochs, train__batch_size=4, train__accumulate=3), sage()
    )
    assert_close(whole, parts)
    assert [row["step"] for row in entry["curve"]] == [5, 10][:epochs]


class MeanOnly(Recorded):
    """A model that takes the mean of its batch, whatever the Trainer tells it; as BERT does."""

    def model(self, seed: int) -> Any:
        model = super().model(seed)
        forward = type(model).forward

        def mean(pixel_values, labels=None, **kwargs):
            found = forward(model, pixel_values=pixel_values)
            found["loss"] = cross_entropy(found["logits"], labels)
            return found

        model.forward = mean
        model.accepts_loss_kwargs = True
        return model


@pytest.mark.parametrize("size", [4, 5])  # a step of 12 rows: 4, 4 and 4, or 5, 5 and 2
def test_accumulation_weights_the_parts_where_the_model_does_not(size):
    recipe = small(task__train=12, train__batch_size=12)
    parts = small(task__train=12, train__batch_size=size, train__accumulate=3)
    whole, _, _ = weights_after(recipe, sage())
    task = MeanOnly(Recorded.DataOptions(**parts.task), Recorded.ModelOptions(**parts.model))
    train(parts, sage(), task)
    assert_close(whole, dict(task.made.named_parameters()))


def test_max_steps_ends_in_the_middle_of_an_epoch():
    entry = train(small(train__max_steps=7), sage())
    assert [(row["epoch"], row["step"]) for row in entry["curve"]] == [(1.0, 5), (1.4, 7)]
    assert entry["curve"][-1]["lr"] < entry["curve"][0]["lr"]


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        # lr of steps 5 and 10, counted from 0 as 4 and 9
        ("linear", 0, [0.6, 0.1]),
        ("linear", 0.2, [0.75, 0.125]),
        ("linear", 2, [0.75, 0.125]),
        ("constant", 0, [1.0, 1.0]),
        ("constant", 8, [0.5, 1.0]),
        ("inverse_sqrt", 4, [1.0, (4 / 9) ** 0.5]),
        ("inverse_sqrt", 0.4, [1.0, (4 / 9) ** 0.5]),
    ],
)
def test_schedules(schedule, warmup, expected):
    recipe = small(train__schedule=schedule, train__warmup=warmup)
    curve = train(recipe, base(lr=1e-3))["curve"]
    assert [row["lr"] * 1000 for row in curve] == pytest.approx(expected)


def test_every_epoch_is_announced_to_rows_that_change():
    recipe = small(train__epochs=3)
    task = recorded(recipe)
    heard = []
    task.train.set_epoch = heard.append
    train(recipe, sage(), task)
    assert sorted(set(heard)) == [0, 1, 2]
    assert heard == sorted(heard)


def test_batches_by_length_and_by_tokens():
    grouped = small(train__length_grouped=True)
    counted = small(train__tokens_per_batch=40, train__batch_size=None)
    for recipe in (grouped, counted):
        task = recorded(recipe)
        train(recipe, sage(), task)
        spread = [int(batch["labels"].max() - batch["labels"].min()) for batch in task.batches]
        longest = [
            len(batch["labels"]) * (1 + int(batch["labels"].max())) for batch in task.batches
        ]
        if recipe is counted:
            assert max(longest) <= 40
            assert sum(spread) / len(spread) < 2
        assert sum(len(batch["labels"]) for batch in task.batches) == 120
        with pytest.raises(UsageError, match="no lengths to go by"):
            train(recipe, sage())


# -- which weights stay --------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_epoch(tmp_path):
    recipe = small(train__epochs=8, train__early_stopping=2, study__select_by="accuracy")
    task = recorded(recipe)
    task.scripted = [0.3, 0.8, 0.5, 0.7, 0.9]  # the last one is never seen
    entry = train(recipe, sage(), task, save=tmp_path)
    assert len(entry["curve"]) == 4
    assert entry["scores"]["validation"]["accuracy"] == 0.8
    assert entry["scores"]["validation"]["loss"] == entry["curve"][1]["validation_loss"]
    assert_close(dict(task.made.named_parameters()), task.weights[1], atol=0)


def test_running_means_are_those_of_the_best_epoch():
    recipe = small(train__epochs=8, train__early_stopping=2, study__select_by="accuracy")
    task = normalized(recipe)
    task.scripted = [0.3, 0.8, 0.5, 0.7]
    train(recipe, sage(), task)
    assert int(task.weights[1]["classifier.0.num_batches_tracked"]) == 10
    assert_close(task.made.state_dict(), task.weights[1], atol=0)


def test_running_means_are_averaged_and_counts_are_the_last():
    recipe = small(train__epochs=4, train__average_checkpoints=3)
    task = normalized(recipe)
    train(recipe, sage(), task)
    found = task.made.state_dict()
    assert int(found["classifier.0.num_batches_tracked"]) == 20
    for name in ("classifier.0.running_mean", "classifier.0.running_var"):
        mean = torch.stack([weights[name] for weights in task.weights[1:4]]).mean(0)
        torch.testing.assert_close(found[name], mean)


def test_what_stopped_early_is_over(tmp_path):
    """A signal from then on can ask for no checkpoint any more."""
    recipe = small(train__epochs=8, train__early_stopping=2, study__select_by="accuracy")
    task = recorded(recipe)
    task.scripted = [0.3, 0.8, 0.5, 0.7]
    moments = []
    train(recipe, sage(), task, observe=moments.append)
    assert (moments[-1].step, moments[-1].total) == (20, 20)


def test_the_mean_of_the_last_epochs(tmp_path):
    recipe = small(train__epochs=4, train__average_checkpoints=3)
    task = recorded(recipe)
    entry = train(recipe, sage(), task)
    assert len(task.weights) == 5  # four epochs, and once more with the mean
    for name, param in task.made.named_parameters():
        mean = torch.stack([weights[name] for weights in task.weights[1:4]]).mean(0)
        torch.testing.assert_close(param.detach(), mean)
        assert torch.equal(task.weights[4][name], param)
    assert entry["scores"]["validation"] != {
        "loss": entry["curve"][-1]["validation_loss"],
        "accuracy": entry["curve"][-1]["validation_accuracy"],
    }


# -- the forward pass ----------------------------------------------------------------------------


def test_label_smoothing_is_that_of_the_formula():
    recipe = small(train__label_smoothing=0.1, train__max_steps=1)
    task = recorded(recipe)
    entry = train(recipe, sage(), task)
    batch = task.batches[0]
    with torch.no_grad():
        logits = recorded(recipe).model(0)(batch["pixel_values"]).logits
    expected = cross_entropy(logits, batch["labels"], label_smoothing=0.1)
    assert entry["scores"]["train"]["loss"] == pytest.approx(float(expected), abs=1e-6)


def test_label_smoothing_is_not_for_scores(tmp_path):
    rows = "".join(f"word {n},{n}.5\n" for n in range(60))
    (tmp_path / "data.csv").write_text("text,score\n" + rows)
    settings = {
        "task.data": str(tmp_path / "data.csv"),
        "model.name": "from-scratch",
        "train.label_smoothing": 0.1,
        "metric": "pearson",
    }
    with pytest.raises(UsageError, match=r"train\.label_smoothing = 0\.1 is for classes"):
        train(load("text-classification", settings), sage())


@pytest.mark.parametrize("by_length", [False, True])
def test_each_example_of_the_test_split_is_right_or_wrong(by_length):
    recipe = small(train__epochs=1)
    task = recorded(recipe)
    rows = [task.test[row] for row in range(len(task.test))]
    if by_length:  # the rows are evaluated in another order, and told in their own
        task.test.lengths = [37 * row % 11 for row in range(len(rows))]
    entry = train(recipe, sage(), task, score_test=True)
    batch = task.collate(rows)
    with torch.no_grad():
        right = task.made(batch["pixel_values"]).logits.argmax(-1) == batch["labels"]
    assert 0 < right.sum() < len(rows)
    assert entry["examples"] == right.int().tolist()
    assert "examples" not in train(recipe, sage(), task)


def test_bf16_is_autocast():
    seen = []
    recipe = small(train__precision="bf16", train__epochs=1)
    task = recipe.make_task()
    model = task.model

    def hooked(seed):
        made = model(seed)
        made.classifier.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
        made.classifier.register_forward_hook(lambda *_: kept.append(made.classifier.weight.dtype))
        return made

    kept: list[torch.dtype] = []
    task.model = hooked
    assert train(recipe, sage(), task)["status"] == "complete"
    assert set(seen) == {torch.bfloat16}
    assert set(kept) == {torch.float32}
    assert train(small(train__epochs=1), sage(), small().make_task())["status"] == "complete"


@pytest.mark.parametrize(("has", "comes_to"), [(True, "bf16"), (False, "float32")])
def test_auto_is_bf16_where_the_cpu_has_it(monkeypatch, has, comes_to):
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: has)
    entry = train(small(train__precision="auto", train__epochs=1), sage())
    same = train(small(train__precision=comes_to, train__epochs=1), sage())
    assert without_times(entry) == without_times(same)


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_bf16_where_the_gpu_has_it_in_hardware(monkeypatch, has):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: asked.append(how) or has)
    options = small(train__precision="auto", train__device="auto").train
    assert precision.precision_here(options) == ("bf16" if has else "float32")
    assert asked == [{"including_emulation": False}]


def test_fp16_without_a_gpu():
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    with pytest.raises(UsageError, match=r"fp16.*needs a GPU.*bf16"):
        train(small(train__precision="fp16", train__device="auto"), sage())


def test_gradient_checkpointing_gives_the_same_gradients():
    plain, _, _ = weights_after(small(model__dropout=0.1), sage())
    again, _, task = weights_after(
        small(model__dropout=0.1, train__gradient_checkpointing=True), sage()
    )
    assert_close(plain, again)
    task.model = lambda seed: (
        setattr(task.made, "supports_gradient_checkpointing", False) or task.made
    )
    with pytest.raises(UsageError, match="does not support it"):
        train(small(train__gradient_checkpointing=True), sage(), task)


# -- scores --------------------------------------------------------------------------------------


def test_a_metric_that_the_data_do_not_give_is_told_before_training():
    task = recorded(small())
    task.given = ["pearson", "spearman"]
    with pytest.raises(SagelrError, match=r"metric is 'accuracy'.*It gives: pearson, spearman"):
        train(small(), sage(), task)
    assert task.made is None


def test_the_loss_of_a_split_is_the_mean_over_its_labels():
    whole = train(small(), sage())["scores"]["validation"]["loss"]
    parts = small(train__eval_batch_size=12)  # 40 rows: 12, 12, 12 and 4
    assert train(parts, sage())["scores"]["validation"]["loss"] == pytest.approx(whole, rel=1e-6)
    task = recorded(parts)
    collate = task.collate

    def half_of_the_first(rows):
        batch = collate(rows)
        if torch.equal(rows[0]["pixel_values"], task.validation[0]["pixel_values"]):
            batch["labels"][6:] = -100
        return batch

    task.collate = half_of_the_first
    entry = train(parts, sage(), task)
    batch = half_of_the_first([task.validation[i] for i in range(40)])
    batch["labels"][6:12] = -100
    batch["labels"][12:] = torch.stack([task.validation[i]["labels"] for i in range(12, 40)])
    with torch.no_grad():
        logits = task.made(batch["pixel_values"]).logits
    expected = float(cross_entropy(logits, batch["labels"], ignore_index=-100))
    assert entry["scores"]["validation"]["loss"] == pytest.approx(expected, rel=1e-6)


class Decoding(Recorded):
    metrics = {**Recorded.metrics, "bleu": Recorded.metrics["accuracy"]}  # noqa: RUF012

    def generation_scores(self, model: Any, dataset: Any, *, batch_size: int) -> dict[str, float]:
        assert not model.training
        self.decoded = [*getattr(self, "decoded", []), (len(dataset), batch_size)]
        return {"bleu": len(dataset) / 100}


def decoding(recipe):
    return Decoding(Decoding.DataOptions(**recipe.task), Decoding.ModelOptions(**recipe.model))


def test_scores_by_decoding_come_after_training():
    recipe = small(train__eval_batch_size=8)
    recipe = recipe.model_copy(update={"metric": "bleu"})
    task = decoding(recipe)
    entry = train(recipe, sage(stage="report"), task)
    assert entry["scores"]["validation"]["bleu"] == 0.4
    assert entry["scores"]["test"]["bleu"] == len(task.test) / 100
    assert task.decoded == [(40, 8), (len(task.test), 8)]
    assert "validation_bleu" not in entry["curve"][-1]


def test_tuning_decodes_only_to_select_by_it():
    recipe = small()
    task = decoding(recipe)
    train(recipe, sage(stage="tune"), task)
    assert not hasattr(task, "decoded")
    study = recipe.study.model_copy(update={"select_by": "bleu"})
    entry = train(recipe.model_copy(update={"study": study}), sage(stage="tune"), task)
    assert entry["scores"]["validation"]["bleu"] == 0.4


def test_early_stopping_cannot_wait_for_a_score_that_comes_later():
    recipe = small(train__early_stopping=1)
    study = recipe.study.model_copy(update={"select_by": "bleu"})
    recipe = recipe.model_copy(update={"study": study})
    with pytest.raises(SagelrError, match=r"only after training\. Select by one of: loss, acc"):
        train(recipe, sage(), decoding(recipe))


@pytest.mark.parametrize("make", [recorded, decoding])
def test_a_metric_that_the_task_does_not_give(make):
    recipe = small().model_copy(update={"metric": "f1"})
    with pytest.raises(SagelrError, match=r"metric is 'f1'.*It gives: .*accuracy.*--set metric="):
        train(recipe, sage(), make(recipe))


def test_a_report_is_audited_after_its_test():
    seen = []

    def audit(model, task):
        seen.append((model, task, model.training))
        return {"redundant": 0.5}

    recipe = small()
    task = recorded(recipe)
    entry = train(recipe, sage(stage="report"), task, audit=audit)
    assert entry["audit"] == {"redundant": 0.5}
    assert seen == [(task.made, task, False)]
    for run in (sage(stage="tune"), sage(stage="train"), sage(stage="report", lr=1e20)):
        assert "audit" not in train(recipe, run, task, audit=audit)


# -- what is left behind -------------------------------------------------------------------------


def test_a_model_that_is_saved_is_the_one_that_was_trained(tmp_path):
    from transformers import AutoModelForImageClassification

    recipe = small()
    task = recorded(recipe)
    task.save = lambda folder: (folder / "beside.txt").write_text("tokenizer")
    train(recipe, sage(), task, save=tmp_path, keep_optimizer=True)
    loaded: Any = AutoModelForImageClassification.from_pretrained(tmp_path)
    pixels = task.batches[0]["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).logits, task.made(pixels).logits)
    assert (tmp_path / "beside.txt").exists()
    assert any(name.endswith("exp_avg_sensitivity") for name in state_in(tmp_path))


def test_predictions():
    recipe = small()
    with pytest.raises(UsageError, match="--predict: this task has no unlabelled data"):
        train(recipe, sage(), recorded(recipe), predict=True)


def test_predictions_that_fail_do_not_cost_the_model(tmp_path):
    class Predicting(Recorded):
        def prepare_predictions(self):
            assert self.made is None  # before training

        def predictions(self, model, folder):
            assert not model.training
            (folder / "one.tsv").write_text("1")
            return [folder / "one.tsv"]

    class Failing(Predicting):
        def predictions(self, model, folder):
            raise UsageError("test.tsv is missing")

    recipe = small()
    for cls, expected in (
        (Predicting, {"files": ["one.tsv"], "problem": None}),
        (Failing, {"files": [], "problem": "test.tsv is missing"}),
    ):
        task = cls(cls.DataOptions(**recipe.task), cls.ModelOptions(**recipe.model))
        entry = train(recipe, sage(), task, predict=True, save=tmp_path)
        assert entry["predictions"] == expected
        assert (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "predictions" / "one.tsv").exists()


def test_reports_need_their_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"tensorboard is not installed.*pip install"):
        train(small(train__report_to=["tensorboard"]), sage())


def test_runs_are_told_apart_by_their_keys():
    assert Run("tune", "a", {"lr": 0.1}, 3).key == "tune/a/lr=0.1/seed=3"


def test_early_stopping_by_the_loss_keeps_the_lowest():
    recipe = small(train__epochs=4, train__early_stopping=4)
    assert recipe.study.select_by == "loss"
    task = recorded(recipe)
    entry = train(recipe, sage(), task)
    losses = [row["validation_loss"] for row in entry["curve"]]
    best = losses.index(min(losses))
    assert len(set(losses)) == 4
    assert entry["scores"]["validation"]["loss"] == losses[best]
    assert_close(dict(task.made.named_parameters()), task.weights[best], atol=0)


def test_early_stopping_takes_an_equal_epoch_for_no_better_one():
    recipe = small(train__epochs=8, train__early_stopping=2, study__select_by="accuracy")
    task = recorded(recipe)
    task.scripted = [0.5] * 8
    entry = train(recipe, sage(), task)
    assert len(entry["curve"]) == 3
    assert_close(dict(task.made.named_parameters()), task.weights[0], atol=0)


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps():
    """Where losses are logged more often than that, for a report."""

    record = Record()
    for loss, step in ((1.0, 4), (6.0, 5)):
        record.logged({"loss": loss, "learning_rate": 0.1}, step)
    record.evaluated({"loss": 2.0}, 1.0, 5)
    assert record.train_loss == pytest.approx((4 * 1.0 + 6.0) / 5)


def test_rows_that_are_augmented_are_so_by_the_seed_of_the_run():
    recipe = small(train__epochs=1)
    task = recorded(recipe)
    task.train.seed = None
    train(recipe, sage(seed=7), task)
    assert task.train.seed == 7


def test_what_sage_did_is_told_of_the_steps_that_it_was_seen_at():

    assert train(small(), sage())["sage"]["steps"] == steps_to_probe(10)
    assert train(small(), sage(stage="tune"))["sage"] is None


def test_what_was_spent_before_a_stop_counts():

    spent = Spent()
    spent.load({"started": "then", "seconds": 100.0, "peak_memory_mib": 1e9})
    found = spent.state()
    assert found["started"] == "then"
    assert 100 <= found["seconds"] < 200
    assert found["peak_memory_mib"] == 1e9


def test_an_arm_without_a_decay_has_its_optimizers_own():

    for optimizer, decay in (("SGD", 0), ("AdamW", 0.01)):
        recipe = small(arms__adamw__optimizer=optimizer, arms__adamw__options={})
        made = make_optimizer(recorded(recipe).model(0), recipe.arms["adamw"], {"lr": 1.0})
        assert {group["weight_decay"] for group in made.param_groups} == {0, decay}


def test_rows_of_a_batch_that_is_only_evaluated():

    for settings, rows in (
        ({}, 512),
        ({"train__batch_size": 600}, 600),
        ({"train__tokens_per_batch": 40, "train__batch_size": None}, 64),
        ({"train__eval_batch_size": 7}, 7),
    ):
        assert eval_batch_size(small(**settings).train) == rows


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"train__length_grouped": True},
        {"train__tokens_per_batch": 40, "train__batch_size": None},
    ],
)
def test_another_seed_has_other_batches(how):

    recipe = small(**how)
    task = recorded(recipe)
    first, again, other = (batch_plan(recipe.train, task, seed)(0) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_step_of_several_batches_shows_the_loss_of_all(monkeypatch):
    """However many batches it is made of."""
    monkeypatch.setattr("sagelr.training.watch.MOMENTS", 0.0)
    found = []
    for settings in ({}, {"train__batch_size": 4, "train__accumulate": 3}):
        moments = []
        recipe = small(**settings)
        train(recipe, sage(), recorded(recipe), observe=moments.append)
        found.append([moment.loss for moment in moments])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
