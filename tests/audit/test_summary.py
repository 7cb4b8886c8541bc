"""What a run of a study carries, on the digits."""

import copy
import json

import pytest
import torch

from sagelr.audit import audit, summary
from sagelr.audit.scoring import Scorer, TrainingBatches
from sagelr.errors import SagelrError
from sagelr.schema import AuditOptions

OPTIONS = AuditOptions(
    sparsities=[0.3, 0.6], scores=["sensitivity", "magnitude"], batch_size=10, examples=55
)


def test_a_summary_is_small_whole_and_leaves_the_model_alone(task):
    model = task.model(0).train()
    before = copy.deepcopy(model.state_dict())
    found = summary(model, task, OPTIONS)
    assert len(json.dumps(found, allow_nan=False)) < 10_000
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (found["measurement"]["batches"], found["measurement"]["examples"]) == (5, 50)
    assert sum(layer["parameters"] for layer in found["layers"]) == model.num_parameters()
    attention = next(layer for layer in found["layers"] if layer["kind"] == "attention")
    assert attention["sensitivity_by_loss"] == pytest.approx(
        attention["sensitivity"] / found["loss"], rel=1e-4
    )
    assert found["split"] == "test"
    for curve, score in zip(found["curves"], OPTIONS.scores, strict=True):
        assert curve["score"] == score
        assert [point["sparsity"] for point in curve["points"]] == [0.0, 0.3, 0.6]
        assert curve["points"][1]["pruned"] == round(0.3 * found["prunable"])
        assert curve["points"][0]["scores"] == Scorer(task, "test", 7)(model) | {
            "loss": pytest.approx(curve["points"][0]["scores"]["loss"], rel=1e-4)
        }
    assert summary(model, task, OPTIONS) == found


def test_every_model_is_measured_on_the_same_rows(task):
    batches = TrainingBatches(task, 10, 55)
    first, again = ([batch["labels"] for batch in batches.on(torch.device("cpu"))] for _ in "ab")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [len(labels) for labels in first] == [10] * 5
    few = TrainingBatches(task, 1000, 1000)  # more than there are
    assert (few.batch_size, few.to_json()["batches"]) == (96, 1)


def test_scores_are_those_of_the_trainer(task, recipe, run):
    model = type(task.model(0)).from_pretrained(run)
    recorded = json.loads((run / "run.json").read_text())["scores"]["validation"]
    found = Scorer(task, "validation", 16)(model)
    assert found["accuracy"] == recorded["accuracy"]
    assert found["loss"] == pytest.approx(recorded["loss"], rel=1e-4)


def test_a_model_for_something_else_is_told_so(task):
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(SagelrError, match="BertModel does not fit the recipe's data, whose batche"):
        Scorer(task, "test")(BertModel(BertConfig(**size, intermediate_size=8, vocab_size=9)))


def test_a_summary_has_the_figures_of_all_that_is_trained(task):

    model = task.model(0)
    frozen = model.get_parameter("classifier.weight").requires_grad_(False)
    found = summary(model, task, OPTIONS)
    trained = model.num_parameters() - frozen.numel()
    assert sum(layer["parameters"] for layer in found["layers"]) == trained
    batches = TrainingBatches(task, 10, 55).on(torch.device("cpu"))
    measured = audit(model, batches, frozen=False)
    x = torch.cat([each.flatten().double() for each in measured.sensitivity.values()])
    effective = float(x.sum() ** 2 / x.square().sum()) / trained
    assert found["effective_share"] == pytest.approx(effective, rel=1e-4)
    assert sum(found["histogram"]["counts"]) == int((x > 0).sum())


def test_curves_are_made_in_the_scope_that_is_asked_for(task):
    options = OPTIONS.model_copy(update={"scope": "layer", "sparsities": [0.3]})
    found = summary(task.model(0), task, options)
    assert {curve["scope"] for curve in found["curves"]} == {"layer"}


def test_rows_that_change_are_those_of_the_first_epoch(task):
    """Every model is measured on the same rows, whatever training left them at."""
    heard = []

    class Changing:
        set_epoch = heard.append

        def __len__(self):
            return len(task.train)

        def __getitem__(self, index):
            assert heard
            return task.train[index]

    class Other:
        train, collate = Changing(), task.collate

    list(TrainingBatches(Other(), 10, 55).on(torch.device("cpu")))
    assert heard == [0]
