"""Stored bits do not depend on the engine, on how a parameter is sharded, or on a stop between."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sagelr import SageAdamW, SageSGD
from sagelr.engines import cpu, eager, foreach
from sagelr.engines.plan import Place, Plan
from sagelr.state import formats

UPDATES = {"eager": eager.update, "foreach": foreach.update, "fused": cpu.update}
# Numbers of few bits, so that every product and sum below is exact and engines that order their
# arithmetic differently have the same values to round. All of them are slow: rounded by chance.
EXACT = {
    "lr": 0.0,
    "weight_decay": 0.0,
    "beta0": 0.96875,
    "sage_bias_correction": False,
    "bias_correction": False,
}
# Rows of one block, of several, of blocks and a part, longer than a tile of the fused engine.
SHAPES = [(128, 32), (65, 64), (50, 100), (420, 10), (3, 1500), (2, 2048 + 40), (4097,), (2, 3, 4)]


PLACE = Place(5)


def exact(cls: type) -> dict[str, Any]:
    if cls is SageSGD:
        own: dict[str, Any] = {"momentum": 0.96875}
        return {k: v for k, v in EXACT.items() if k != "bias_correction"} | own
    return EXACT | {"betas": (0.96875, 0.984375)}


def few_bits(draw: Callable[..., Tensor], *shape: int) -> Tensor:
    return (draw(*shape) * 2).round().clamp(-3, 3) / 4


def needs_compiler(*names: str) -> None:
    if "fused" in names and not cpu.compiler():
        pytest.skip("the fused CPU step needs a C++ compiler")


class Held:
    """One parameter with its state, which engines are called on directly."""

    def __init__(self, cls: type, state_format: str, value: Tensor, **options: Any) -> None:
        self.param = nn.Parameter(value.clone())
        optimizer = cls([self.param], state_format=state_format, **options)
        plan: Plan = optimizer._plan(optimizer.param_groups[0])
        self.plan = plan.with_codes(formats.is_coded(state_format, self.param))
        optimizer._ensure_state(plan, self.param)
        self.state: dict[str, Tensor] = dict(optimizer.state[self.param])

    def step(self, by: str, grad: Tensor, place: Place = PLACE) -> None:
        state = {name: [self.state[name]] for name in self.plan.stored_names()}
        with torch.no_grad():
            UPDATES[by](self.plan, [self.param], [grad], state, [place])

    def rows(self, start: int, stop: int) -> "Held":
        """Those rows of it, as memory of their own."""
        part = object.__new__(Held)
        part.plan = self.plan
        part.param = nn.Parameter(self.param.detach()[start:stop].clone())
        part.state = {
            name: t.clone() if t.ndim == 0 else t[start:stop].clone()
            for name, t in self.state.items()
        }
        return part

    def same(self, other: "Held") -> bool:
        return torch.equal(self.param, other.param) and all(
            torch.equal(t, other.state[name]) and t.dtype == other.state[name].dtype
            for name, t in self.state.items()
        )


@pytest.mark.parametrize("other", ["foreach", "fused"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_engine_stores_the_same_bits(kind, shape, other, draw):
    needs_compiler(other)
    cls, state_format = kind
    start = few_bits(draw, *shape)
    ours = Held(cls, state_format, start, **exact(cls))
    theirs = Held(cls, state_format, start, **exact(cls))
    for _ in range(4):
        grad = few_bits(draw, *shape)
        ours.step("eager", grad)
        theirs.step(other, grad)
        assert ours.same(theirs)
    low = [t for t in ours.state.values() if t.dtype != torch.float32]
    assert low or state_format == "8bit"
    assert all((t.view(torch.uint8) != 0).any() for t in low)


@pytest.mark.parametrize("other", ["foreach", "fused"])
def test_ordinary_numbers_differ_at_a_threshold_at_most(kind, other, draw):
    """Where arithmetic differs in its last bit, a random threshold falls between now and then."""
    needs_compiler(other)
    cls, state_format = kind
    options = {"lr": 1e-3} | ({"momentum": 0.9} if cls is SageSGD else {})
    start = draw(64, 256)
    ours, theirs = (Held(cls, state_format, start, **options) for _ in range(2))
    for _ in range(3):
        grad = draw(64, 256)
        ours.step("eager", grad)
        theirs.step(other, grad)
        for name, t in theirs.state.items():
            if t.dtype in (torch.uint8, torch.bfloat16) and t.ndim:
                assert (t != ours.state[name]).double().mean() < 2e-3
        theirs.state = {name: t.clone() for name, t in ours.state.items()}
        theirs.param.data.copy_(ours.param)


@pytest.mark.parametrize("by", list(UPDATES))
@pytest.mark.parametrize("shape", [(96, 64), (60, 100), (30, 5, 31)], ids=str)
def test_shards_store_the_bits_of_the_whole(kind, shape, by, draw):
    needs_compiler(by)
    cls, state_format = kind
    options = {"lr": 1e-3} | ({"momentum": 0.97} if cls is SageSGD else {})
    whole = Held(cls, state_format, draw(*shape), rounding="stochastic", **options)
    cuts = [0, 1, shape[0] // 2, shape[0] - 3, shape[0]]
    width = whole.param[0].numel()
    for _ in range(3):
        grad = draw(*shape)
        parts = [whole.rows(a, b) for a, b in pairwise(cuts)]
        whole.step(by, grad)
        for part, (a, b) in zip(parts, pairwise(cuts), strict=True):
            part.step(by, grad[a:b].contiguous(), Place(5, a * width))
            assert part.same(whole.rows(a, b))


@pytest.mark.parametrize("shape", [(80, 64), (1000, 12)], ids=str)
def test_codes_beyond_two_to_the_32_elements(shape, draw):
    """Keys of the random bits change there; the fused engine must not carry one across."""
    needs_compiler("fused")
    start = few_bits(draw, *shape)
    width = shape[1]
    offset = (2**32 // width - 10) * width  # some rows before, the rest behind
    ours, theirs = (Held(SageAdamW, "8bit", start, **exact(SageAdamW)) for _ in range(2))
    for _ in range(2):
        grad = few_bits(draw, *shape)
        ours.step("eager", grad, Place(5, offset))
        theirs.step("fused", grad, Place(5, offset))
        assert ours.same(theirs)


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_bit(kind, threads, draw):
    needs_compiler("fused")
    cls, state_format = kind
    start, usual = draw(300, 257), torch.get_num_threads()
    alone, together = (Held(cls, state_format, start) for _ in range(2))
    for _ in range(3):
        grad = draw(300, 257)
        alone.step("fused", grad)
        try:
            torch.set_num_threads(threads)
            together.step("fused", grad)
        finally:
            torch.set_num_threads(usual)
        assert alone.same(together)


def test_another_position_another_seed_another_step_round_otherwise(kind, engine, draw):
    cls, state_format = kind
    options = exact(cls) | engine
    grads, filler = draw(64, 64), torch.zeros(2)

    def stored(before: int = 0, seed: int = 0, waits: int = 0) -> Tensor:
        others = [nn.Parameter(filler.clone()) for _ in range(before)]
        param = nn.Parameter(torch.ones(64, 64))
        optimizer = cls([*others, param], state_format=state_format, rounding_seed=seed, **options)
        if waits:  # the same averages at a later step
            param.grad = torch.zeros(64, 64)
            optimizer.step()
        param.grad = grads
        optimizer.step()
        return optimizer.state[param]["exp_avg_sensitivity"].clone()

    assert torch.equal(stored(), stored())
    for other in ({"before": 1}, {"seed": 1}, {"waits": 1}):
        assert not torch.equal(stored(), stored(**other))


def test_a_position_is_one_among_all_groups(draw):
    """Two parameters that are first in their groups are not rounded alike."""
    grad, found = draw(64, 64), []
    for grouped in (True, False):
        params = [nn.Parameter(torch.ones(64, 64)) for _ in range(2)]
        groups = [{"params": [param]} for param in params] if grouped else params
        optimizer = SageAdamW(groups, state_format="bfloat16", **exact(SageAdamW))
        for param in params:
            param.grad = grad.clone()
        optimizer.step()
        found.append([optimizer.state[p]["exp_avg_sensitivity"] for p in params])
    (first, second), alone = found
    assert not torch.equal(first, second)
    assert torch.equal(first, alone[0])
    assert torch.equal(second, alone[1])
