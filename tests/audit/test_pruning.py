"""Pruning: exact counts, the right weights, and everything back afterwards."""

import copy

import pytest
import torch
from torch import nn

from sagelr.audit import Measured, audit, describe
from sagelr.audit.curves import keeps
from sagelr.audit.finetune import finetune
from sagelr.audit.pruning import SCORES, STRUCTURES, Pruner
from sagelr.errors import UsageError
from sagelr.tasks import Metric


@pytest.fixture
def model():
    layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, "gelu", batch_first=True)
    model = nn.Module()
    model.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).layers
    model.head = nn.Linear(16, 2)
    for param in model.parameters():
        nn.init.normal_(param)
    return model


@pytest.fixture
def measured(model):
    return Measured(
        1.0,
        2,
        {name: torch.rand_like(param) for name, param in model.named_parameters()},
        {name: torch.rand_like(param) for name, param in model.named_parameters()},
    )


PRUNABLE = 2 * (4 * 16 * 16 + 2 * 16 * 24)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("score", SCORES)
def test_unstructured_pruning_takes_exactly_the_lowest(model, measured, score, scope):
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    ranked = {
        name: SCORES[score](params[name], measured.sensitivity[name], measured.variation[name])
        for name in params
    }
    with Pruner(model, measured) as pruner:
        assert pruner.total("unstructured") == PRUNABLE
        for sparsity in (0.0, 0.05, 0.5, 0.95):
            pruned = pruner.prune("unstructured", score, scope, sparsity)
            assert pruned == pytest.approx(sparsity * PRUNABLE, abs=2)
            zeros = {n: p == 0 for n, p in model.named_parameters()}
            assert sum(int(each.sum()) for each in zeros.values()) == pruned
            groups = {}
            for name in pruner.prunable:
                layer = pruner.anatomy.places[name].layer if scope == "layer" else None
                groups.setdefault(layer, []).append(name)
            for names in groups.values():
                gone = torch.cat([zeros[name].flatten() for name in names])
                scores = torch.cat([ranked[name].flatten() for name in names])
                assert int(gone.sum()) == round(sparsity * len(gone))
                if int(gone.sum()) > 0:
                    assert scores[gone].max() <= scores[~gone].min()
    assert all(torch.equal(params[n], p) for n, p in model.named_parameters())


def test_what_pruning_chooses_by():
    theta, smoothed, variation = torch.tensor(-3.0), torch.tensor(0.5), torch.tensor(0.25)
    found = {name: float(score(theta, smoothed, variation)) for name, score in SCORES.items()}
    assert found == {
        "sensitivity": 0.5,
        "magnitude": 3.0,
        "sensitivity-variation": 0.125,
        "upper-confidence": 0.75,
    }


def test_masks_of_two_in_four_are_so(model, measured):
    # A matrix whose rows are no multiple of four is left alone, and said so.
    model.layers[1].linear1 = nn.Linear(16, 22)
    model.layers[1].linear2 = nn.Linear(22, 16)
    measured.sensitivity.update(
        {f"layers.1.{n}": torch.rand_like(p) for n, p in model.layers[1].named_parameters()}
    )
    measured.variation.update(measured.sensitivity)
    with Pruner(model, measured) as pruner:
        pruned = pruner.prune("2:4", "sensitivity", "global", 0.5)
        assert pruned == pruner.total("2:4") / 2
        assert set(pruner.masks) == set(pruner.prunable) - {"layers.1.linear2.weight"}
        for name, mask in pruner.masks.items():
            fours = mask.view(-1, 4)
            assert (fours.sum(1) == 2).all()
            assert torch.equal(model.get_parameter(name) == 0, mask)
            scores = measured.sensitivity[name].view(-1, 4)
            lowest = scores.masked_fill(~fours, 0).amax(1)
            assert (lowest <= scores.masked_fill(fours, 9).amin(1)).all()
        assert any("1 matrices have no rows of a multiple of 4" in note for note in pruner.notes)


def test_two_in_four_goes_along_the_inputs_of_a_transposed_matrix():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
    model = GPT2LMHeadModel(config)
    scores = {name: torch.rand_like(param) for name, param in model.named_parameters()}
    with Pruner(model, Measured(1.0, 1, scores, scores)) as pruner:
        pruner.prune("2:4", "sensitivity", "global", 0.5)
        mask = pruner.masks["transformer.h.0.mlp.c_fc.weight"]  # inputs × outputs
        assert (mask.view(2, 4, 32).sum(1) == 2).all()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_neurons_go_whole_and_the_least_first(model, measured, scope):
    with Pruner(model, measured) as pruner:
        pruned = pruner.prune("neurons", "sensitivity", scope, 0.25)
        assert pruned == 12 == pruner.total("neurons") / 4
        for i, layer in enumerate(model.layers):
            gone = (layer.linear1.weight == 0).all(1)
            assert torch.equal(gone, layer.linear1.bias == 0)
            assert torch.equal(gone, (layer.linear2.weight == 0).all(0))
            assert int((layer.linear1.weight == 0).sum()) == 16 * int(gone.sum())
            assert (layer.linear2.bias != 0).all()
            if scope == "layer":
                prefix = f"layers.{i}"
                found = measured.sensitivity
                each = found[f"{prefix}.linear1.weight"].sum(1) + found[f"{prefix}.linear1.bias"]
                each = each + found[f"{prefix}.linear2.weight"].sum(0)
                assert set(gone.nonzero().view(-1).tolist()) == set(each.argsort()[:6].tolist())


def test_zeros_are_held_and_the_whole_model_is_put_back(model, measured):
    before = copy.deepcopy(model.state_dict())
    with Pruner(model, measured, whole=True) as pruner:
        pruned = pruner.prune("heads", "magnitude", "layer", 0.5)
        assert pruned == 4
        with torch.no_grad():
            for param in model.parameters():
                param.add_(1)
        pruner.hold()
        for name, mask in pruner.masks.items():
            assert not model.get_parameter(name)[mask].any()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_without_attention_is_pruned_all_over():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    scores = {name: torch.rand_like(param) for name, param in model.named_parameters()}
    with Pruner(model, Measured(1.0, 1, scores, scores)) as pruner:
        assert pruner.total("unstructured") == 24
        assert "all matrices are prunable" in " ".join(pruner.notes)


def test_what_is_no_pruning_is_refused(model, measured):
    with Pruner(model, measured) as pruner:
        with pytest.raises(UsageError, match=f"Allowed: {', '.join(STRUCTURES)}"):
            pruner.prune("columns", "sensitivity", "global", 0.5)
        with pytest.raises(UsageError, match="'size' is not a score"):
            pruner.prune("heads", "size", "global", 0.5)
        with pytest.raises(UsageError, match="'block' is not a scope"):
            pruner.prune("heads", "magnitude", "block", 0.5)


def test_planted_redundancy_is_found(model):
    """Half of the neurons reach nobody: their weights are without sensitivity, and no others."""
    gone = torch.arange(0, 24, 2)
    with torch.no_grad():
        for layer in model.layers:
            layer.linear2.weight[:, gone] = 0

    def loss(model, x):
        for layer in model.layers:
            x = layer(x)
        return model.head(x.mean(1)).square().mean()

    measured = audit(model, [torch.randn(4, 3, 16) for _ in range(3)], loss)
    found = describe(model, measured)
    for units in found["neurons"]:
        assert units["zero"] == 12
        assert [i for i, mean in enumerate(units["means"]) if mean == 0] == gone.tolist()
    planted = 2 * 12 * (16 + 16 + 1)
    for group in found["kinds"]:
        expected = planted if group["name"] == "feed-forward" else 0
        if group["name"] != "attention key":  # a key's bias cancels in every softmax
            assert group["zero"] == expected
    with Pruner(model, measured) as pruner:
        x = torch.randn(4, 3, 16)
        before = loss(model, x)
        assert pruner.prune("neurons", "sensitivity", "global", 0.5) == 24
        torch.testing.assert_close(loss(model, x), before)  # and nothing is lost with them
        assert (pruner.masks["layers.0.linear1.bias"].nonzero().view(-1) == gone).all()


def test_batches_of_a_step_are_one_batch(task):
    """An lr belongs to the rows of a step, however many passes they take."""
    found = []
    for rows, parts in ((16, 1), (4, 4)):
        model = task.model(0).double()
        scores = {name: torch.ones_like(param) for name, param in model.named_parameters()}
        with Pruner(model, Measured(1.0, 1, scores, scores), whole=True) as pruner:
            pruner.prune("unstructured", "magnitude", "global", 0.3)
            finetune(
                pruner,
                _Doubles(task),
                lambda model: torch.optim.SGD(model.parameters(), 0.1),
                epochs=1,
                batch_size=rows,
                accumulate=parts,
            )
            found.append({name: param.detach().clone() for name, param in model.named_parameters()})
    for name, param in found[0].items():
        torch.testing.assert_close(found[1][name], param)
        assert param.isfinite().all()


class _Doubles:
    """A task whose images are float64, so that sums in another order come out alike."""

    def __init__(self, task) -> None:
        self.task, self.train = task, task.train

    def collate(self, rows):
        batch = self.task.collate(rows)
        return batch | {"pixel_values": batch["pixel_values"].double()}


def test_the_sparsity_that_keeps_99_percent_is_the_end_of_an_unbroken_row():
    metrics = {"accuracy": Metric("accuracy"), "error": Metric("error", greater_is_better=False)}
    rows = [(0.0, 0.8, 0.2), (0.2, 0.795, 0.201), (0.4, 0.7, 0.2025), (0.6, 0.8, 0.2)]
    points = [
        {"sparsity": s, "pruned": 0, "scores": {"accuracy": a, "error": e, "loss": 1.0}}
        for s, a, e in rows
    ]
    assert keeps(points, metrics) == {"accuracy": 0.2, "error": 0.2}
    points[1]["scores"]["accuracy"] = None
    assert keeps(points, metrics)["accuracy"] == 0
    for point in points:
        point["scores"]["accuracy"] = 0.0  # of nothing, nothing is kept
    assert keeps(points, metrics) == {"error": 0.2}


def test_tensors_that_are_no_matrices_are_told_apart_from_odd_rows():
    model = nn.ModuleDict(
        {"conv": nn.Conv1d(4, 4, 3), "odd": nn.Linear(6, 4), "fit": nn.Linear(8, 4)}
    )
    scores = {name: torch.rand_like(param) for name, param in model.named_parameters()}
    with Pruner(model, Measured(1.0, 1, scores, scores)) as pruner:
        assert pruner.fours == ["fit.weight"]
        assert "1 matrices have no rows of a multiple of 4: not pruned 2:4." in pruner.notes
        assert "1 tensors are no matrices: not pruned 2:4." in pruner.notes


def test_training_after_pruning_is_what_it_is_said_to_be(task):
    """By hand: lr falls linearly to 0, gradients are clipped to norm 1, zeros are held."""
    rows = _Doubles(task)
    heard, modes = [], []
    rows.train = _Announced(task.train, heard)
    model = task.model(0).double().eval()
    with torch.no_grad():
        model.classifier.weight.mul_(20)  # so that there is something to clip
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    scores = {name: torch.ones_like(param) for name, param in model.named_parameters()}
    with Pruner(model, Measured(1.0, 1, scores, scores), whole=True) as pruner:
        pruner.prune("unstructured", "magnitude", "global", 0.3)
        twin, masks = copy.deepcopy(model), pruner.masks
        finetune(
            pruner,
            rows,
            lambda model: torch.optim.SGD(model.parameters(), 0.1),
            epochs=2,
            batch_size=16,
        )
        found = {name: param.detach().clone() for name, param in model.named_parameters()}
    assert heard == [0, 1]
    assert modes == [True] * 12
    assert not model.training
    params, clipped = dict(twin.named_parameters()), 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        orders = [torch.randperm(96), torch.randperm(96)]
    for number, batch in enumerate(torch.cat(orders).split(16)):
        given = rows.collate([task.train[row] for row in batch.tolist()])
        grads = torch.autograd.grad(twin(**given).loss, list(params.values()))
        norm = torch.stack([grad.norm() for grad in grads]).norm()
        clipped += int(norm > 1)
        with torch.no_grad():
            for (name, param), grad in zip(params.items(), grads, strict=True):
                param -= 0.1 * (1 - number / 12) * grad / max(1.0, float(norm))
                if name in masks:
                    param[masks[name]] = 0
    assert clipped > 3
    for name, param in params.items():
        torch.testing.assert_close(found[name], param.detach(), rtol=1e-4, atol=1e-7)


class _Announced:
    """Rows that are told which epoch it is."""

    def __init__(self, rows, heard) -> None:
        self.rows, self.set_epoch = rows, heard.append

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def test_buffers_are_put_back_with_the_whole_model(model, measured):
    """Training after pruning moves running means; the next curve begins without that."""
    model.norm = nn.BatchNorm1d(16)
    with Pruner(model, measured, whole=True) as pruner:
        pruner.prune("unstructured", "magnitude", "global", 0.5)
        model.norm.running_mean.add_(1)
    assert not model.norm.running_mean.any()
