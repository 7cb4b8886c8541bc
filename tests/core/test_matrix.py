"""One table: engine × optimizer × dtype × options × shapes, each step held to eager in float64.

Before every step the reference takes over parameters and state of the engine under test, so that
each step is compared by itself, within the rounding of its dtype, and nothing drifts apart.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sagelr import SageAdamax, SageAdamW, SageSGD, engines
from sagelr.engines.plan import Place, compute_dtype

STEPS = 6
# Irrational, so that λ·θ + g of two bf16 numbers never cancels down to rounding, where the sign of
# Adam's first direction would be left to chance.
DECAY = 2**0.5 / 16
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

COMMON: dict[str, dict[str, Any]] = {
    "plain": {"weight_decay": 0.0},
    "decoupled": {"weight_decay": DECAY, "decay": "decoupled"},
    "scaled": {"weight_decay": DECAY, "decay": "scaled"},
    "l2": {"weight_decay": DECAY, "decay": "l2"},
    "sage_off": {"weight_decay": DECAY, "sage": False},
    "uncorrected_sensitivity": {"sage_bias_correction": False},
    "maximize": {"weight_decay": DECAY, "maximize": True},
    "lr_tensor": {"lr": torch.tensor(0.05, dtype=torch.float64), "weight_decay": DECAY},
    "own_numbers": {"beta0": 0.9, "sage_eps": 0.1, "lr_scale": 3.0},
}
# Where all that differs from the default meets.
TOGETHER = {
    "weight_decay": DECAY,
    "decay": "scaled",
    "sage_bias_correction": False,
    "maximize": True,
}
OWN: dict[type, dict[str, dict[str, Any]]] = {
    SageAdamW: {
        "uncorrected": {"bias_correction": False},
        "betas": {"betas": (0.5, 0.9), "eps": 0.1},
        "together": {**TOGETHER, "bias_correction": False, "betas": (0.0, 0.9)},
    },
    SageAdamax: {
        "uncorrected": {"bias_correction": False},
        "betas": {"betas": (0.5, 0.9), "eps": 0.1},
        "together": {**TOGETHER, "bias_correction": False, "betas": (0.0, 0.9)},
    },
    SageSGD: {
        "momentum": {"momentum": 0.9, "weight_decay": DECAY},
        "dampening": {"momentum": 0.9, "dampening": 0.5},
        "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": DECAY},
        "momentum_sage_off": {"momentum": 0.9, "dampening": 0.3, "sage": False},
        "together": {**TOGETHER, "momentum": 0.9, "dampening": 0.5},
    },
}
CASES = [
    pytest.param(cls, options, id=f"{cls.__name__}-{name}")
    for cls, own in OWN.items()
    for name, options in {**COMMON, **own}.items()
]


def tensors(draw: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
    """One parameter of every shape and layout, some elements exactly zero."""
    image = draw(2, 3, 4, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    found = [
        draw(dtype=dtype),  # 0-d
        draw(0, dtype=dtype),
        draw(3, 0, dtype=dtype),
        draw(1, dtype=dtype),
        draw(17, dtype=dtype),
        draw(5, 4, dtype=dtype).t(),
        draw(6, 8, dtype=dtype)[:, ::2],
        draw(9, 3, dtype=dtype)[2:7],  # a view whose memory begins before it
        image,
        torch.zeros(4, dtype=dtype),
        draw(300, 257, dtype=dtype),
    ]
    found[4][::5] = 0
    return found


def gradient(draw: Callable[..., Tensor], param: Tensor, t: int, i: int) -> Tensor | None:
    """A gradient, or none on some steps; its memory need not lie as its parameter's does."""
    if (t + i) % 4 == 3:
        return None
    grad = draw(*param.shape, dtype=param.dtype)
    if grad.ndim and grad.numel():
        grad.view(-1)[::7] = 0
    if i % 2:
        grad = grad.transpose(0, -1).contiguous().transpose(0, -1) if grad.ndim > 1 else grad
    elif grad.ndim == 4:
        grad = grad.contiguous(memory_format=torch.channels_last)
    return grad


def take_over(reference: torch.optim.Optimizer, optimizer: torch.optim.Optimizer) -> None:
    """Give the reference all that the other optimizer has, in float64."""
    for theirs, ours in zip(flat(reference), flat(optimizer), strict=True):
        theirs.data.copy_(ours.data)
        theirs.grad = None if ours.grad is None else ours.grad.to(torch.float64, copy=True)
        reference.state[theirs] = {
            name: value.to(value.dtype if "step" in name else torch.float64, copy=True)
            for name, value in optimizer.state[ours].items()
        }


def flat(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def near(actual: Tensor, expected: Tensor, tolerance: float, rounded_to: float = 0.0) -> bool:
    # Not assert_close: with this many small tensors its message takes most of the time.
    actual, expected = actual.detach().double(), expected.detach().double()
    return torch.allclose(actual, expected, rtol=tolerance + rounded_to, atol=tolerance)


def assert_same(optimizer: torch.optim.Optimizer, reference: torch.optim.Optimizer) -> None:
    for ours, theirs in zip(flat(optimizer), flat(reference), strict=True):
        wide = compute_dtype(ours.dtype)
        fine = 8 * torch.finfo(wide).eps
        # θ is rounded once to its own dtype, everything else to that of arithmetic.
        coarse = torch.finfo(ours.dtype).eps * 0.51 if wide != ours.dtype else 0.0
        where = f"of a parameter of shape {tuple(ours.shape)}, strides {ours.stride()}"
        assert near(ours, theirs, fine, coarse), f"θ {where}"
        mine, true = optimizer.state[ours], reference.state[theirs]
        assert list(mine) == list(true)
        for name, value in mine.items():
            assert value.dtype == (torch.float32 if "step" in name else wide)
            assert near(value, true[name], fine), f"{name} {where}"


def run(
    engine: Any, cls: type, groups: list[dict[str, Any]], options: dict[str, Any], draw
) -> None:
    """Step both, side by side."""
    options = {"lr": 0.05, **options}
    optimizer = cls(groups, **options, **engine.options)
    doubled = [
        {
            **group,
            "params": [
                nn.Parameter(p.detach().to(torch.float64, copy=True)) for p in group["params"]
            ],
        }
        for group in groups
    ]
    reference = cls(doubled, **options, foreach=False)
    for t in range(STEPS):
        for i, param in enumerate(flat(optimizer)):
            param.grad = gradient(draw, param, t, i)
        take_over(reference, optimizer)
        untouched = [(p, p.detach().clone()) for p in flat(optimizer) if p.grad is None]
        optimizer.step()
        reference.step()
        assert_same(optimizer, reference)
        for param, before in untouched:
            assert torch.equal(param, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_every_engine_takes_the_step_of_the_definition(engine, cls, options, dtype, draw):
    run(engine, cls, [{"params": [nn.Parameter(p) for p in tensors(draw, dtype)]}], options, draw)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_each_group_has_its_own_options(engine, cls, dtype, draw):
    own = [
        {"beta0": 0.6, "weight_decay": 2 * DECAY},
        {"sage": False, "lr": 0.01},
        {"beta0": 0.9, "decay": "scaled", "weight_decay": DECAY, "sage_bias_correction": False},
        {"maximize": True, "sage_eps": 0.01, "sage_lr_scale": 2.0},
    ]
    params = [nn.Parameter(p) for p in tensors(draw, dtype)]
    groups = [{"params": params[i :: len(own)], **options} for i, options in enumerate(own)]
    run(engine, cls, groups, {}, draw)


def test_one_optimizer_holds_several_dtypes(engine, cls, draw):
    params = [nn.Parameter(p) for dtype in DTYPES for p in tensors(draw, dtype)]
    run(engine, cls, [{"params": params}], {"weight_decay": DECAY}, draw)


def test_a_tensor_shared_by_two_modules_takes_one_step(engine, cls, draw):
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)).double()
        model[1].weight = model[0].weight
        return model

    model, reference = make(), make()
    reference.load_state_dict(model.state_dict())
    ours = cls(model.parameters(), lr=0.05, **engine.options)
    theirs = cls(reference.parameters(), lr=0.05, foreach=False)
    for t in range(1, 5):
        inputs = draw(8, 4)
        for net, optimizer in ((model, ours), (reference, theirs)):
            optimizer.zero_grad()
            net(inputs).square().mean().backward()
            optimizer.step()
        assert model[0].weight is model[1].weight
        assert ours.state[model[0].weight]["sensitivity_step"] == t
        for a, b in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_the_number_of_threads_changes_nothing(engine, cls, draw):
    start, grads = draw(300, 257, dtype=torch.float32), draw(3, 300, 257, dtype=torch.float32)
    usual, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            param = nn.Parameter(start.clone())
            optimizer = cls([param], lr=0.05, **engine.options)
            for grad in grads:
                param.grad = grad
                optimizer.step()
            found.append([param.detach(), *optimizer.state[param].values()])
    finally:
        torch.set_num_threads(usual)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_the_engine_asked_for_is_the_one_that_runs(engine, cls, dtype):
    """Or the whole table would compare eager with itself. What one cannot take, eager takes."""
    param = nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = cls([param], **engine.options)
    (group,) = optimizer.param_groups
    chosen = engines.choose(
        optimizer._plan(group),
        [param],
        [torch.ones(3, dtype=dtype)],
        group["fused"],
        group["foreach"],
    )
    assert (chosen is engine.module.update) == engine.takes(dtype)


def test_a_plan_for_graphs_takes_the_same_step(engine, cls, draw):
    """Counts stay tensors there. Only accelerators capture, but the arithmetic can be seen here."""
    options = {"sage": True, "weight_decay": DECAY, **engine.options}
    if cls is SageSGD:
        options |= {"momentum": 0.9, "dampening": 0.5}
    dtype = torch.float64 if engine.takes(torch.float64) else torch.float32
    start, *grads = (draw(4, 5, dtype=dtype) for _ in range(6))
    found = []
    for capturable in (False, True):
        param = nn.Parameter(start.clone())
        optimizer = cls([param], lr=0.05, **options)
        plan = replace(
            optimizer._plan(optimizer.param_groups[0]),
            capturable=capturable,
            lr=torch.tensor(0.05, dtype=torch.float64) if capturable else 0.05,
        )
        state = {name: [torch.zeros_like(start)] for name in plan.state_names()}
        state |= {name: [torch.tensor(0.0)] for name in ("step", "sensitivity_step")}
        with torch.no_grad():
            for grad in grads:
                engine.module.update(plan, [param], [grad], state, [Place(0)])
        found.append([param.detach(), *(tensor for [tensor] in state.values())])
    # Corrections are computed from fp32 counts there, as torch's own capturable steps do.
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)
