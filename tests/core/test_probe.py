"""Looking inside between backward and step: what is shown is what the step then does."""

import pytest
import torch
from torch import Tensor, nn

from sagelr import Sage, SageSGD


def rule(theta: Tensor, grad: Tensor, before: Tensor, beta0: float, eps: float, t: int | None):
    """I, U and r, written out; t is None without bias correction."""
    current = (theta * grad).abs()
    average = beta0 * before + (1 - beta0) * current
    average = average if t is None else average / (1 - beta0**t)
    variation = (current - average).abs()
    return current, variation, (variation + eps) / (average + eps)


def make(kind: str, params: list, **options) -> torch.optim.Optimizer:
    if kind == "built in":
        return SageSGD(params, lr=0.5, foreach=False, **options)
    return Sage(torch.optim.SGD(params, lr=0.5), **options)


@pytest.fixture(params=["built in", "wrapper"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("corrected", [False, True])
def test_what_is_shown_is_what_the_step_applies(kind, corrected, draw):
    param = nn.Parameter(draw(4, 5))
    options = {"beta0": 0.8, "sage_eps": 0.01, "sage_bias_correction": corrected}
    optimizer = make(kind, [param], **options)
    smoothed = torch.zeros(4, 5, dtype=torch.float64)
    for t in range(1, 8):
        theta, grad = param.detach().clone(), draw(4, 5)
        param.grad = grad.clone()
        shown = [
            optimizer.sensitivity(param), optimizer.variation(param), optimizer.multiplier(param)
        ]  # fmt: skip
        expected = rule(theta, grad, smoothed, 0.8, 0.01, t if corrected else None)
        torch.testing.assert_close(shown, list(expected), rtol=1e-12, atol=1e-14)
        optimizer.step()
        # SGD's direction is g, so that the movement gives r back.
        moved = (theta - param.detach()) / (0.5 * grad)
        torch.testing.assert_close(moved, shown[2], rtol=1e-8, atol=1e-8)
        smoothed = 0.8 * smoothed + 0.2 * expected[0]


def test_the_multiplier_shown_is_the_one_each_engine_applies(engine, cls, draw):
    """With any base: the same step with SAGE off gives the direction."""
    param, plain = nn.Parameter(draw(6)), nn.Parameter(torch.zeros(6, dtype=torch.float64))
    options = {"lr": 0.1, "weight_decay": 0.0, **engine.options}
    optimizer, base = cls([param], **options), cls([plain], sage=False, **options)
    for _ in range(6):
        theta = param.detach().clone()
        plain.data.copy_(theta)
        param.grad = draw(6)
        plain.grad = param.grad.clone()
        r = optimizer.multiplier(param)
        optimizer.step()
        base.step()
        torch.testing.assert_close(
            param.detach() - theta, r * (plain.detach() - theta), rtol=1e-9, atol=1e-12
        )


def test_each_group_is_looked_at_with_its_own_options(draw):
    first, second = nn.Parameter(draw(3)), nn.Parameter(draw(3))
    groups = [{"params": [first]}, {"params": [second], "beta0": 0.6, "sage_eps": 0.1}]
    optimizer = SageSGD(groups, sage_bias_correction=False)
    for param, beta0, eps in ((first, 0.75, 1e-12), (second, 0.6, 0.1)):
        param.grad = draw(3)
        _, _, r = rule(param.detach(), param.grad, torch.zeros(3), beta0, eps, None)
        torch.testing.assert_close(optimizer.multiplier(param), r)


@pytest.mark.parametrize("stepped", [False, True])
def test_looking_stores_and_changes_nothing(kind, stepped, draw):
    param = nn.Parameter(draw(3))
    optimizer = make(kind, [param])
    param.grad = draw(3)
    if stepped:
        optimizer.step()
    state = {name: value.clone() for name, value in optimizer.state.get(param, {}).items()}
    theta, grad = param.detach().clone(), param.grad.clone()
    shown = [look(param) for look in (optimizer.sensitivity, optimizer.variation)]
    shown.append(optimizer.multiplier(param))
    again = optimizer.multiplier(param)
    assert torch.equal(shown[2], again)
    for tensor in shown:
        assert not tensor.requires_grad
        tensor.fill_(7.0)  # what is handed out is the caller's own
    torch.testing.assert_close(dict(optimizer.state.get(param, {})), state, rtol=0, atol=0)
    assert param in optimizer.state or not stepped
    assert len(optimizer.state) == int(stepped)
    assert torch.equal(param, theta)
    assert torch.equal(param.grad, grad)


def test_narrow_parameters_are_shown_in_fp32(cls, draw):
    param = nn.Parameter(draw(3, dtype=torch.bfloat16))
    optimizer = cls([param], sage_bias_correction=False)
    param.grad = draw(3, dtype=torch.bfloat16)
    shown = optimizer.sensitivity(param)
    assert shown.dtype == optimizer.multiplier(param).dtype == torch.float32
    torch.testing.assert_close(shown, (param.float() * param.grad.float()).abs().detach())


def test_maximizing_shows_the_same(draw):
    theta, grad = draw(3), draw(3)
    found = []
    for maximize in (False, True):
        param = nn.Parameter(theta.clone())
        param.grad = grad.clone()
        optimizer = SageSGD([param], maximize=maximize, sage_bias_correction=False)
        found.append((optimizer.sensitivity(param), optimizer.multiplier(param)))
    torch.testing.assert_close(*found)


def test_after_zero_grad_there_is_nothing_to_see(kind):
    param = nn.Parameter(torch.ones(2, 3))
    optimizer = make(kind, [param])
    param.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    for look in (optimizer.sensitivity, optimizer.variation, optimizer.multiplier):
        with pytest.raises(RuntimeError, match=r"shape \(2, 3\) has no gradient.*zero_grad\(\)"):
            look(param)


def test_a_foreign_parameter_is_refused(kind):
    param = nn.Parameter(torch.ones(2))
    optimizer = make(kind, [param])
    param.grad = torch.ones(2)
    foreign = nn.Parameter(torch.ones(2))  # equal, but another
    foreign.grad = torch.ones(2)
    for look in (optimizer.sensitivity, optimizer.variation, optimizer.multiplier):
        with pytest.raises(ValueError, match=r"no such parameter \(shape \(2,\)\).*not a copy"):
            look(foreign)


def test_a_group_without_sage(kind, draw):
    param = nn.Parameter(draw(3))
    optimizer = make(kind, [{"params": [param], "sage": False}])
    param.grad = draw(3)
    assert torch.equal(optimizer.multiplier(param), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(optimizer.sensitivity(param), (param * param.grad).abs().detach())
    with pytest.raises(ValueError, match=r"sage=False.*Set sage=True.*sensitivity\(\)"):
        optimizer.variation(param)
