"""The controls share what they are said to share with SAGE, and nothing else."""

import copy

import pytest
import torch
from torch import nn

from sagelr import SageAdamW
from sagelr.engines.plan import Place
from sagelr.optim.controls import CONTROLS, ControlAdamW, _shuffled
from sagelr.view import Viewer

OPTIONS = {"lr": 0.1, "beta0": 0.8, "weight_decay": 0.05}


def pair(draw, **options):
    """A control and SageAdamW on equal parameters, after the same first steps."""
    starts = [draw(6, 5), draw(4)]
    found = []
    for cls, extra in ((ControlAdamW, options), (SageAdamW, {})):
        params = [nn.Parameter(p.clone()) for p in starts]
        found.append((params, cls(params, **OPTIONS, **extra)))
    return found


def moves(params, optimizer, grads):
    """What the coming step adds, decay left out."""
    before = [p.detach().clone() for p in params]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    optimizer.step()
    keep = 1 - OPTIONS["lr"] * OPTIONS["weight_decay"]
    return [p.detach() - keep * old for p, old in zip(params, before, strict=True)]


def third_step(draw, **options):
    """Moves of the control, of SageAdamW and of AdamW from one and the same place."""
    (ours, control), (theirs, sage) = pair(draw, **options)
    grads = [[draw(6, 5), draw(4)] for _ in range(3)]
    for some in grads[:2]:
        moves(ours, control, some)
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            q.copy_(p)
            sage.state[q] = {k: v.clone() for k, v in control.state[p].items()}
    plain = [nn.Parameter(p.detach().clone()) for p in ours]
    adamw = SageAdamW(plain, **OPTIONS, sage=False)
    for p, q in zip(ours, plain, strict=True):
        adamw.state[q] = {k: v.clone() for k, v in control.state[p].items() if "sens" not in k}
    last = grads[2]
    return moves(ours, control, last), moves(theirs, sage, last), moves(plain, adamw, last), last


def test_shuffled_has_the_same_multipliers_elsewhere(draw):
    control, sage, plain, _ = third_step(draw, control="shuffled")
    for ours, theirs, base in zip(control, sage, plain, strict=True):
        torch.testing.assert_close(
            (ours / base).flatten().sort().values, (theirs / base).flatten().sort().values
        )
        assert not torch.allclose(ours, theirs)


def test_norm_moves_as_far_along_the_base_s_direction(draw):
    control, sage, plain, _ = third_step(draw, control="norm")
    for ours, theirs, base in zip(control, sage, plain, strict=True):
        torch.testing.assert_close(ours.norm(), theirs.norm())
        torch.testing.assert_close(ours / ours.norm(), base / base.norm())


def test_constant_goes_half_of_the_base_s_way(draw):
    control, _, plain, _ = third_step(draw, control="constant")
    for ours, base in zip(control, plain, strict=True):
        torch.testing.assert_close(ours, base / 2)


@pytest.mark.parametrize("control", ["inverse", "variation"])
def test_means_are_one_before_clipping(control, draw):
    found, _, plain, _ = third_step(draw, control=control)
    for ours, base in zip(found, plain, strict=True):
        r = ours / base
        assert (r > 0).all()
        assert r.max() <= 10 * (1 + 1e-9)
        if r.max() < 9.9:
            torch.testing.assert_close(r.mean().item(), 1.0)


def test_inverse_is_in_inverse_proportion_to_sensitivity(draw):
    (params, optimizer), _ = pair(draw, control="inverse")
    grads = [draw(6, 5), draw(4)]
    smoothed = (params[1].detach() * grads[1]).abs()  # corrected, after one step
    moved = moves(params, optimizer, grads)[1].abs()  # Adam's first direction is a sign
    expected = (1 / smoothed) / (1 / smoothed).mean()
    torch.testing.assert_close(moved, 0.1 * expected.clamp(max=10), rtol=1e-6, atol=0)


def test_gradient_does_not_see_the_weights(draw):
    """Multipliers from |g| stay as they are where the weights are scaled."""
    grads = [[draw(6, 5), draw(4)] for _ in range(3)]
    found = []
    for factor in (1.0, 7.0):
        params = [nn.Parameter(factor * torch.ones(6, 5, dtype=torch.float64)),
                  nn.Parameter(factor * torch.ones(4, dtype=torch.float64))]  # fmt: skip
        optimizer = ControlAdamW(params, **OPTIONS, control="gradient")
        found.append([moves(params, optimizer, some) for some in grads])
    for small, large in zip(*found, strict=True):
        for a, b in zip(small, large, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("control", CONTROLS)
def test_every_control_trains_and_repeats_itself(control):
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = ControlAdamW(model.parameters(), lr=0.02, control=control)
        losses = []
        for _ in range(100):
            inputs = torch.randn(32, 8)  # anew: sensitivities that do not vary stop SAGE
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]
        found.append(losses)
    assert found[0] == found[1]


def test_an_unknown_control_is_an_error():
    with pytest.raises(ValueError, match="control='none' is not one of gradient, shuffled"):
        ControlAdamW([nn.Parameter(torch.ones(2))], control="none")


def test_a_copy_is_the_same_control(draw):
    param = nn.Parameter(draw(4, 3))
    optimizer = copy.deepcopy(ControlAdamW([param], control="constant"))
    [copied] = optimizer.param_groups[0]["params"]
    copied.grad = draw(4, 3)
    optimizer.step()
    assert optimizer.control == "constant"


def test_the_order_is_another_for_every_seed_step_and_parameter():

    r = torch.arange(50.0)
    orders = {
        tuple(_shuffled(r, seed, step, Place(parameter)).tolist())
        for seed in (0, 1)
        for step in (1, 2)
        for parameter in (0, 1)
    }
    assert len(orders) == 8


@pytest.mark.parametrize("control", ["gradient", "inverse", "variation"])
def test_sensitivity_is_left_uncorrected_where_that_is_asked_for(control, draw):
    """By its first step: corrected, Ī is I there, and without U nothing varies."""
    found = []
    start, grads = [draw(6, 5), draw(4)], [draw(6, 5), draw(4)]
    for corrected in (True, False):
        params = [nn.Parameter(p.clone()) for p in start]
        optimizer = ControlAdamW(
            params, **OPTIONS, control=control, sage_eps=1e-30, sage_bias_correction=corrected
        )
        found.append(moves(params, optimizer, grads)[0])
    same = torch.allclose(found[0], found[1])
    assert same == (control == "inverse")  # its mean takes the factor out again


def test_no_multiplier_of_a_control_is_above_ten(draw):
    """One weight of thirty that is nearly without sensitivity would have thirty times the lr."""
    start = draw(6, 5).abs() + 1
    start[0, 0] = 1e-9
    param = nn.Parameter(start)
    optimizer = ControlAdamW([param], **OPTIONS, control="inverse", sage_eps=1e-30)
    [moved] = moves([param], optimizer, [torch.ones(6, 5, dtype=torch.float64)])
    assert moved.abs().max().item() == pytest.approx(10 * OPTIONS["lr"])


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_shows_no_multiplier_of_sages_for_its_own(control, draw):
    """*constant* would show 3 at every step, from an Ī that it never touches."""
    model = nn.Linear(5, 4)
    optimizer = ControlAdamW(model.parameters(), control=control)
    model(torch.ones(2, 5)).sum().backward()
    for look in (optimizer.multiplier, optimizer.variation):
        with pytest.raises(ValueError, match="ControlAdamW puts another multiplier"):
            look(model.weight)
    assert torch.equal(
        optimizer.sensitivity(model.weight), (model.weight * model.weight.grad).abs()
    )
    with pytest.raises(ValueError, match="ControlAdamW puts another multiplier"):
        Viewer(model, optimizer)
