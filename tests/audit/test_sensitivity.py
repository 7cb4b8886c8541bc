"""Sensitivity over batches: what it is, what it costs, and that it leaves no trace."""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sagelr import rule
from sagelr.audit import audit, describe
from sagelr.audit.multipliers import multipliers
from sagelr.audit.scoring import TrainingBatches
from sagelr.audit.sensitivity import CHUNK
from sagelr.audit.subjects import find, load
from sagelr.errors import SagelrError, UsageError
from sagelr.view import Viewer

from .conftest import loss


def gradients(model, batch):
    model = copy.deepcopy(model).eval()
    loss(model, batch).backward()
    return {name: param.grad for name, param in model.named_parameters()}


def test_one_pass_over_batches_equals_all_of_them_at_once(tiny, batches):
    found = audit(tiny, batches, loss)
    for name, param in tiny.named_parameters():
        each = torch.stack(
            [rule.sensitivity(param.detach(), gradients(tiny, batch)[name]) for batch in batches]
        )
        so_far = each.cumsum(0) / torch.arange(1, 6).view(-1, *[1] * param.ndim)
        torch.testing.assert_close(found.sensitivity[name], each.mean(0))
        torch.testing.assert_close(found.variation[name], (each - so_far).abs().mean(0))
    losses = [loss(copy.deepcopy(tiny).eval(), batch).item() for batch in batches]
    assert found.loss == pytest.approx(sum(losses) / 5)
    assert found.batches == 5


@torch.no_grad()
def test_shrinking_a_weight_changes_the_loss_by_its_sensitivity(tiny, batches):
    """(L((1−h)·θj) − L(θ)) / h → −θj·gj, for every single weight."""
    batch, h = batches[0], 1e-6
    with torch.enable_grad():
        grads = gradients(tiny, batch)
    found = audit(tiny, [batch], loss)
    tiny.eval()
    before = float(loss(tiny, batch))
    for name, param in tiny.named_parameters():
        for j in range(param.numel()):
            value = float(param.view(-1)[j])
            param.view(-1)[j] = (1 - h) * value
            change = (float(loss(tiny, batch)) - before) / h
            param.view(-1)[j] = value
            expected = -value * float(grads[name].view(-1)[j])
            assert change == pytest.approx(expected, abs=1e-7)
            assert abs(change) == pytest.approx(
                float(found.sensitivity[name].view(-1)[j]), abs=1e-7
            )


def test_a_scaled_loss_scales_sensitivity_and_not_what_is_divided_by_the_loss(tiny, batches):
    plain = describe(tiny, audit(tiny, batches, loss))
    scaled = describe(tiny, audit(tiny, batches, lambda model, batch: 8 * loss(model, batch)))
    assert scaled["all"]["mean"] == pytest.approx(8 * plain["all"]["mean"], rel=1e-5)
    assert scaled["all"]["mean_by_loss"] == pytest.approx(plain["all"]["mean_by_loss"], rel=1e-5)
    negative = describe(tiny, audit(tiny, batches, lambda model, batch: -loss(model, batch)))
    assert negative["all"]["mean_by_loss"] is None


def test_multipliers_leave_running_means_as_they_were(run, task, recipe):
    """They are seen in passes as in training."""
    model, _ = load(find(str(run), None, {}), task)
    model.classifier = nn.Sequential(nn.BatchNorm1d(16, affine=False), model.classifier)
    before = copy.deepcopy(model.state_dict())
    setting = {"lr": 4e-3, "beta0": 0.75}
    assert multipliers(model, task, recipe, "sage-adamw", setting, run / "optimizer.pt")
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_model_is_left_as_it_was(tiny, batches):
    tiny.first.weight.requires_grad_(False)
    tiny.first.eval()
    tiny.second.bias.grad = torch.ones(2, dtype=torch.float64)
    before = copy.deepcopy(tiny.state_dict())
    found = audit(tiny, batches, loss)
    assert (found.sensitivity["first.weight"] > 0).all()  # frozen, and measured all the same
    assert not tiny.first.weight.requires_grad
    assert (tiny.training, tiny.first.training, tiny.second.training) == (True, False, True)
    assert tiny.second.weight.grad is None
    assert torch.equal(tiny.second.bias.grad, torch.ones(2, dtype=torch.float64))
    assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())


def test_sparse_gradients_are_gradients():
    rows, weight = torch.tensor([1, 1, 3]), torch.randn(5, 2)
    dense, sparse = (
        nn.Embedding(5, 2, _weight=weight.clone(), sparse=is_) for is_ in (False, True)
    )
    first, second = (audit(m, [rows], lambda m, x: m(x).square().sum()) for m in (dense, sparse))
    assert first.sensitivity["weight"][1].all()
    assert torch.equal(first.sensitivity["weight"], second.sensitivity["weight"])


def test_what_a_loss_does_not_use_has_no_sensitivity(batches):
    model = nn.ModuleDict({"used": nn.Linear(4, 2), "unused": nn.Linear(4, 2)}).double()
    found = audit(model, batches, lambda m, batch: loss(m["used"], batch))
    assert not found.sensitivity["unused.weight"].any()
    assert found.sensitivity["used.weight"].any()


def test_narrow_parameters_are_measured_in_fp32(tiny, batches):
    narrow = [(x.bfloat16(), y) for x, y in batches]
    found = audit(tiny.bfloat16(), narrow, loss)
    assert {each.dtype for each in found.sensitivity.values()} == {torch.float32}


def test_what_cannot_be_measured_is_refused(tiny, batches):
    with pytest.raises(UsageError, match="No batches"):
        audit(tiny, [], loss)
    with pytest.raises(SagelrError, match="loss of batch 2 is nan"):
        audit(tiny, batches, lambda m, b: loss(m, b) * (float("nan") if b is batches[1] else 1))
    with pytest.raises(SagelrError, match="does not depend on the model's parameters"):
        audit(tiny, batches, lambda m, b: torch.tensor(1.0))
    with pytest.raises(UsageError, match="no parameters"):
        audit(nn.Identity(), batches, loss)
    with pytest.raises(SagelrError, match="gives no loss for a batch with input"):
        audit(nn.Linear(4, 2), [{"input": torch.ones(4)}])


class Held(TorchDispatchMode):
    """The most bytes that tensors made here have held at one time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf.untyped_storage())
        return result

    def see(self, storage):
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, key, storage.nbytes())

    def forget(self, key, size):
        self.known.discard(key)
        self.now -= size


def test_it_holds_the_model_a_gradient_and_two_copies():
    width, depth = 1024, 4  # each weight is four of the chunks that it is folded in
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
    size = sum(param.numel() * 4 for param in model.parameters())
    batch = torch.randn(2, width)
    with Held() as held:  # it sees the model too, as soon as a view of a weight is made
        found = audit(model, [batch, batch, batch], lambda m, x: m(x).square().mean())
    assert len(found.sensitivity) == 2 * depth
    chunks = 4 * CHUNK * 4
    assert 3 * size < held.peak <= 4 * size + chunks < 5 * size


def test_multipliers_are_seen_in_steps_as_training_takes_them(run, task, recipe, monkeypatch):
    """Batches added up, gradients clipped, labels smoothed, dropout on; each step by itself."""

    model, _ = load(find(str(run), None, {}), task)
    norms, modes, look = [], [], Viewer.look

    def noted(viewer):
        grads = [param.grad for param in model.parameters() if param.grad is not None]
        norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))
        modes.append(model.training)
        return look(viewer)

    monkeypatch.setattr(Viewer, "look", noted)

    def seen(**train):
        norms.clear()
        changed = recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})
        setting = {"lr": 4e-3, "beta0": 0.75}
        assert multipliers(model, task, changed, "sage-adamw", setting, run / "optimizer.pt")
        return list(norms)

    whole = seen(max_grad_norm=0, batch_size=8)
    expected = []
    for batch in TrainingBatches(task, 8, 64).on(torch.device("cpu")):
        grads = torch.autograd.grad(model(**batch).loss, list(model.parameters()))
        expected.append(float(torch.stack([grad.norm() for grad in grads]).norm()))
    assert whole == pytest.approx(expected, rel=1e-3)
    assert all(modes)
    assert seen(max_grad_norm=0, batch_size=4, accumulate=2) == pytest.approx(whole, rel=1e-3)
    assert seen(max_grad_norm=1e-3, batch_size=8) == pytest.approx([1e-3] * 8, rel=1e-2)
    smoothed = seen(max_grad_norm=0, batch_size=8, label_smoothing=0.5)
    assert smoothed != pytest.approx(whole, rel=1e-2)
