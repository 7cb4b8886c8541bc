"""State formats: how much they keep, what they never lose, and averages that do not stall."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sagelr import SageAdamax, SageAdamW, SageSGD
from sagelr.state import codes, formats

MOMENTUM = {SageSGD: {"momentum": 0.9}}
F32, BF16, BYTE = torch.float32, torch.bfloat16, torch.uint8


def make(cls: type, params: list[nn.Parameter], **options: Any) -> Any:
    return cls(params, **{"lr": 1e-3, **MOMENTUM.get(cls, {}), **options})


def averages(optimizer: Any, param: Tensor) -> dict[str, Tensor]:
    """All state but the counts."""
    return {k: v for k, v in optimizer.state[param].items() if "step" not in k}


def read(optimizer: Any, param: Tensor, name: str) -> Tensor:
    return formats.read(optimizer.state[param], name, F32)


# -- what is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "state_format", "dtypes", "most"),
    [
        (SageAdamW, "float32", [F32, F32, F32], 12),
        (SageAdamW, "compact", [BF16, F32, BF16], 8),
        (SageAdamW, "bfloat16", [BF16, BF16, BF16], 6),
        (SageAdamW, "8bit", [BYTE, BYTE, BYTE], 3.2),
        (SageAdamax, "float32", [F32, F32, F32], 12),
        (SageAdamax, "compact", [BF16, F32, BF16], 8),
        (SageAdamax, "bfloat16", [BF16, BF16, BF16], 6),
        (SageSGD, "float32", [F32, F32], 8),
        (SageSGD, "compact", [BF16, BF16], 4),
        (SageSGD, "bfloat16", [BF16, BF16], 4),
    ],
)
def test_bytes_of_state_for_a_parameter(cls, state_format, dtypes, most, engine, draw):
    param = nn.Parameter(draw(96, 768))
    optimizer = make(cls, [param], state_format=state_format, **engine)
    param.grad = draw(96, 768)
    optimizer.step()
    state = averages(optimizer, param)
    kept = [t.dtype for name, t in state.items() if not name.endswith(formats.SCALE)]
    assert kept == dtypes
    size = sum(t.numel() * t.element_size() for t in state.values()) / param.numel()
    assert size <= most
    assert most - size < 0.15


def test_codes_are_for_matrices_of_some_size(engine, draw):
    small = [draw(4096), draw(63, 65), draw(), draw(0, 5000), draw(2, 2)]
    large = [draw(64, 64), draw(2, 3, 7, 100), draw(4096, 1)]
    params = [nn.Parameter(tensor) for tensor in (*small, *large)]
    optimizer = SageAdamW(params, state_format="8bit", **engine)
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    for param in params[: len(small)]:
        assert {t.dtype for t in averages(optimizer, param).values()} == {F32}
    for param in params[len(small) :]:
        state = averages(optimizer, param)
        assert {t.dtype for t in state.values()} == {BYTE}
        assert state["exp_avg_scale"].shape == codes.blocks(param.shape)


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_narrow_parameters_have_the_same_state(kind, dtype, draw):
    cls, state_format = kind
    found = []
    for own in (F32, dtype):
        param = nn.Parameter(draw(64, 64).to(own))
        optimizer = make(cls, [param], state_format=state_format)
        param.grad = draw(64, 64).to(own)
        optimizer.step()
        found.append([t.dtype for t in averages(optimizer, param).values()])
    assert found[0] == found[1]


# -- what is never lost ----------------------------------------------------------------------------


def test_a_sensitivity_above_zero_never_stores_as_zero(kind, engine, draw):
    """At zero its parameter would have the largest multiplier there is, at every step."""
    cls, state_format = kind
    # θ·g down to the smallest floats, beside the largest.
    size = 10.0 ** torch.linspace(-22, 3, 64)
    size = torch.stack([size[:32], size.flip(0)[:32]], 1).flatten()
    param = nn.Parameter(size * draw(64, 64).sign())
    optimizer = make(cls, [param], lr=0.0, state_format=state_format, **engine)
    everywhere = torch.ones(64, 64, dtype=torch.bool)
    everywhere[::5] = False
    for _ in range(5):
        param.grad = torch.where(everywhere, size * draw(64, 64), 0.0)
        everywhere &= (param * param.grad).abs() * 0.25 > 0
        optimizer.step()
        kept = read(optimizer, param, "exp_avg_sensitivity")
        assert (kept[everywhere] > 0).all()
        assert (kept[::5] == 0).all()
    assert everywhere.sum() > 3000


# -- averages over many steps ----------------------------------------------------------------------

SLOW = {"betas": (0.999, 0.9999), "beta0": 0.999}
LONG = [
    pytest.param(SageAdamW, state_format, options, id=f"AdamW-{state_format}-{name}")
    for state_format in ("compact", "bfloat16", "8bit")
    for name, options in (("defaults", {}), ("slow", SLOW))
] + [pytest.param(SageSGD, "bfloat16", {"momentum": 0.99, "beta0": 0.97}, id="SGD-bfloat16-slow")]


def weights(memory: float, steps: int, last: int, period: int) -> Tensor:
    """Of each of the period's inputs in the mean of an average over the last of some steps."""
    ages = steps - 1 - torch.arange(steps, dtype=torch.float64)  # of the input of each step
    # An input of that age is in every average from its own on, or from the first that counts on.
    since = (ages + 1).clamp(max=last)
    given = memory ** (ages + 1 - since) * (1 - memory**since) / last
    return torch.stack([given[i::period].sum() for i in range(period)])


@pytest.mark.parametrize(("cls", "state_format", "options"), LONG)
def test_an_average_neither_stalls_nor_drifts(cls, state_format, options, draw):
    """Ten thousand steps of constant plus noise; the mean of the last thousand against float64."""
    steps, last, period = 10_000, 1000, 200
    grads = draw(period, 64, 64) + 1
    param = nn.Parameter(draw(64, 64).abs() + 1)
    optimizer = make(cls, [param], lr=0.0, state_format=state_format, **options)
    group = optimizer.param_groups[0]
    plan = optimizer._plan(group).with_codes(state_format == "8bit")
    kept = {name: torch.zeros(64, 64, dtype=torch.float64) for name in plan.state_names()}
    for t in range(steps):
        param.grad = grads[t % period]
        optimizer.step()
        if t >= steps - last:
            for name, total in kept.items():
                total += read(optimizer, param, name)
    true = grads.double()
    inputs = {
        "exp_avg": true,
        "momentum_buffer": true / (1 - plan.base.momentum) if cls is SageSGD else true,
        "exp_avg_sq": true.square(),
        "exp_avg_sensitivity": (true * param.detach()).abs(),
    }
    for name, total in kept.items():
        memory = plan.beta0 if name == "exp_avg_sensitivity" else plan.base.memory(name)
        expected = torch.einsum("t,tij->ij", weights(memory, steps, last, period), inputs[name])
        error = (total / last - expected) / expected.abs().mean()
        assert error.mean().abs() < 0.005, f"{name} drifts"
        # One element wanders around its true average, the further the slower and coarser.
        assert error.square().mean().sqrt() < (0.25 if state_format == "8bit" else 0.06), name


def test_the_greatest_of_adamax_neither_stalls_nor_drifts(draw):
    steps, period = 10_000, 200
    grads = draw(period, 64, 64)
    param = nn.Parameter(draw(64, 64))
    optimizer = SageAdamax([param], lr=0.0, state_format="bfloat16")
    largest = torch.zeros(64, 64, dtype=torch.float64)
    for t in range(steps):
        param.grad = grads[t % period]
        optimizer.step()
        largest = torch.maximum(largest * 0.999, param.grad.abs().double())
    error = (read(optimizer, param, "exp_inf") / largest - 1).double()
    # The greater of two numbers does not forget a rounding up as fast as a rounding down.
    assert -0.005 < error.mean() < 0.05


@pytest.mark.parametrize("start", [0.0, 100.0], ids=["from below", "from above"])
@pytest.mark.parametrize("memory", [0.9, 0.95, 0.96, 0.999])
def test_without_noise_an_average_comes_as_near_as_is_said(memory, start, draw):
    """To nearest, to where a step of it is half a step of bf16; by chance, all the way."""
    param = nn.Parameter(torch.ones(64, 64))
    optimizer = SageAdamW([param], lr=0.0, betas=(memory, 0.999), state_format="bfloat16")
    param.grad = torch.full((64, 64), start)
    optimizer.step()
    for _ in range(int(10 / (1 - memory))):
        param.grad = torch.full((64, 64), 1.0 / 3)
        optimizer.step()
    grid = 2.0**-9  # of bf16, between 1/4 and 1/2
    within = grid / 2 / (1 - memory) if memory <= formats.LONG_MEMORY else 0.003
    assert abs(read(optimizer, param, "exp_avg").mean().item() - 1 / 3) <= within


# -- bf16 parameters -------------------------------------------------------------------------------


def moved(rounding: str, seed: int, engine: dict[str, bool], steps: int = 50) -> Tensor:
    param = nn.Parameter(torch.ones(64, 64, dtype=BF16))
    optimizer = SageSGD(
        [param], lr=2.0**-11, sage=False, rounding=rounding, rounding_seed=seed, **engine
    )
    param.grad = torch.full((64, 64), -1.0, dtype=BF16)
    for _ in range(steps):
        optimizer.step()
    return param.detach().float()


def test_small_steps_of_bf16_parameters_add_up(engine):
    assert (moved("nearest", 0, engine) == 1).all()  # each step is a sixteenth of the grid's
    found = moved("stochastic", 0, engine)
    assert found.mean().item() == pytest.approx(1 + 50 * 2.0**-11, abs=5 * 2.0**-7 / 64)
    assert found.unique().numel() > 3
    assert torch.equal(found, moved("stochastic", 0, engine))
    assert not torch.equal(found, moved("stochastic", 1, engine))
