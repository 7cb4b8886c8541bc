"""The relative rule, beyond the paper: what it must be, and that optimizers take its step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sagelr import SageAdamax, SageAdamW, SageSGD, rule
from sagelr.view import Viewer

F64 = torch.float64
levels = st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=30)


def relative(values, strength=0.5, **options):
    return rule.relative_multiplier([torch.tensor(values, dtype=F64)], strength, 1e-30, **options)


@given(levels, st.floats(0.05, 1.9))
def test_mean_one_and_bounded(values, strength):
    [r] = relative(values, strength)
    torch.testing.assert_close(r.mean().item(), 1.0, rtol=1e-9, atol=0)
    assert r.max() / r.min() <= 16 * (1 + 1e-9)


@given(levels, st.floats(1e-6, 1e6))
def test_the_unit_of_the_loss_changes_nothing(values, factor):
    [r] = relative(values)
    [scaled] = relative([value * factor for value in values])
    torch.testing.assert_close(scaled, r, rtol=1e-7, atol=0)


@given(levels)
def test_less_sensitive_is_never_slower(values):
    [r] = relative(sorted(values))
    assert (r.diff() <= 1e-12).all()


def test_equal_sensitivities_and_none_at_all_leave_lr_alone():
    for values in ([3.0] * 5, [0.0] * 5):
        [r] = relative(values)
        torch.testing.assert_close(r, torch.ones(5, dtype=F64))


def test_a_list_is_compared_as_one():
    pieces = [torch.tensor([1.0, 9.0], dtype=F64), torch.tensor([[4.0], [2.0]], dtype=F64)]
    apart = rule.relative_multiplier(pieces, 0.5, 1e-12)
    [whole] = rule.relative_multiplier([torch.cat([p.flatten() for p in pieces])], 0.5, 1e-12)
    torch.testing.assert_close(torch.cat([r.flatten() for r in apart]), whole)


def test_confidence_pulls_what_varies_towards_one():
    smoothed = torch.tensor([1.0, 1.0, 16.0], dtype=F64)
    variation = torch.tensor([0.0, 9.0, 0.0], dtype=F64)
    [r] = rule.relative_multiplier([smoothed], 0.5, 1e-12, variation=[variation])
    weights = torch.tensor([6.0**0.5, 1 + 0.1 * (6.0**0.5 - 1), (6 / 16) ** 0.5], dtype=F64)
    torch.testing.assert_close(r, weights / weights.mean())


@pytest.mark.parametrize("over", ["tensor", "group"])
@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("cls", [SageAdamW, SageAdamax, SageSGD])
def test_the_step_is_that_of_the_base_times_the_multiplier(cls, over, confidence, draw):
    """A twin with SAGE off gives the base's step; the probe gives r before the step is taken."""
    start = [draw(4, 3), draw(5, 2), draw(6)]
    options = {"relative": 0.5, "relative_over": over, "relative_confidence": confidence}
    ours = [nn.Parameter(p.clone()) for p in start]
    optimizer = cls(ours, lr=0.1, weight_decay=0.0, beta0=0.9, **options)
    for _ in range(4):
        base = [nn.Parameter(p.detach().clone()) for p in ours]
        twin = cls(base, lr=0.1, weight_decay=0.0, sage=False)
        for p, q in zip(ours, base, strict=True):
            p.grad = q.grad = draw(*p.shape)
            state = {k: v.clone() for k, v in optimizer.state[p].items() if "sensi" not in k}
            twin.state[q] = state
        multipliers = [optimizer.multiplier(p) for p in ours]
        before = [p.detach().clone() for p in ours]
        optimizer.step()
        twin.step()
        for p, q, r, old in zip(ours, base, multipliers, before, strict=True):
            torch.testing.assert_close(p - old, r * (q - old), rtol=1e-9, atol=1e-12)
        assert torch.equal(multipliers[2], torch.ones(6, dtype=F64))
        matrices = torch.cat([r.flatten() for r in multipliers[:2]])
        torch.testing.assert_close(matrices.mean().item(), 1.0)
        alone = multipliers[0].mean().item() == pytest.approx(1.0)
        assert alone == (over == "tensor")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"relative": 0.0}, ValueError, r"relative=0.0 is out of range. Allowed: \(0, 2\)"),
        ({"relative": True}, TypeError, "relative=True is not a number"),
        ({"relative": 0.5, "fused": True}, ValueError, "eager engine alone"),
        (
            {"relative_over": "layer"},
            ValueError,
            "relative_over='layer' is not 'tensor' or 'group'",
        ),
        ({"relative_confidence": 1}, TypeError, "relative_confidence=1 is not a bool"),
    ],
)
def test_invalid_options(options, error, message):
    with pytest.raises(error, match=message):
        SageAdamW([nn.Parameter(torch.ones(2, 2))], **options)


def test_a_state_without_these_options_loads(draw):
    """Checkpoints saved before they existed have no such keys."""
    param = nn.Parameter(draw(3, 2))
    optimizer = SageAdamW([param])
    param.grad = draw(3, 2)
    optimizer.step()
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        for option in ("relative", "relative_over", "relative_confidence"):
            del group[option]
    other = SageAdamW([param], relative=0.5)
    other.load_state_dict(saved)
    assert other.param_groups[0]["relative"] == 0.5


@pytest.mark.parametrize("over", ["tensor", "group"])
def test_a_matrix_without_a_gradient_has_no_multiplier(over, draw):
    unused, used = nn.Parameter(draw(2, 3)), nn.Parameter(draw(3, 2))
    optimizer = SageAdamW([unused, used], relative=0.5, relative_over=over)
    used.grad = draw(3, 2)
    with pytest.raises(RuntimeError, match=r"shape \(2, 3\) has no gradient"):
        optimizer.multiplier(unused)
    assert optimizer.multiplier(used).mean().item() == pytest.approx(1.0)


def test_a_group_is_compared_as_one_whatever_its_tensors_are_kept_in():
    """Codes for the larger one, bf16 for another: the probe, the view and the step agree."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "large": nn.Linear(64, 64, bias=False),
            "small": nn.Linear(8, 8, bias=False),
            "narrow": nn.Linear(8, 4, bias=False, dtype=torch.bfloat16),
        }
    )
    params = [layer.weight for layer in model.values()]
    options = {"relative": 0.5, "relative_over": "group", "state_format": "8bit"}
    optimizer = SageAdamW(params, lr=0.1, weight_decay=0.0, beta0=0.9, **options)
    for _ in range(3):
        for i, param in enumerate(params):
            param.grad = torch.randn_like(param) * 10.0**i
        multipliers = [optimizer.multiplier(param) for param in params]
        seen = Viewer(model, optimizer).look()
        before = params[1].detach().clone()
        optimizer.step()
    state = optimizer.state[params[1]]
    moments = (state["exp_avg"] / (1 - 0.9**3), state["exp_avg_sq"] / (1 - 0.999**3))
    direction = moments[0] / (moments[1].sqrt() + 1e-8)
    torch.testing.assert_close(before - params[1], 0.1 * multipliers[1] * direction)
    everything = torch.cat([r.flatten() for r in multipliers])
    assert everything.mean().item() == pytest.approx(1.0, abs=1e-5)
    assert multipliers[1].mean().item() != pytest.approx(1.0, abs=0.1)
    torch.testing.assert_close(seen.multiplier.sort().values, everything.sort().values)
