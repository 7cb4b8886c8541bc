"""The Triton engine, without a GPU: interpreted step by step, and compiled for GPUs unseen.

The interpreter has to be chosen before Triton is imported, so a process of its own runs the tests
of this file that need it, and a part of the matrix of engines with them.
"""

import dataclasses
import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sagelr import SageAdamax, SageAdamW, SageSGD, engines
from sagelr.engines import eager, foreach, triton
from sagelr.engines.plan import Place, Plan
from sagelr.engines.triton_tables import Tables
from sagelr.state import codes, formats, shards

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MISSING = importlib.util.find_spec("triton") is None
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter's process")
compiled = pytest.mark.skipif(MISSING or INTERPRETED, reason="needs Triton, not interpreted")
WIDE = torch.float32

# Every branch of the kernel in fp32, and each narrow dtype once; interpreting is slow.
OF_THE_MATRIX = (
    "float32 and (together or nesterov or momentum_sage_off or SageAdamW-lr_tensor) or "
    "SageAdamW-sage_off-bfloat16 or SageAdamW-scaled-float16 or graphs or asked_for"
)


@compiled
def test_in_the_interpreter():
    """All of the tests below that ask for it, and those of the matrix."""
    here = Path(__file__)
    beside = [str(here.with_name(f"test_{name}.py")) for name in ("matrix", "lazy_gradients")]
    files = [str(here), *beside]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    command += ["-k", f"test_triton or test_lazy or {OF_THE_MATRIX}"]
    own = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(command, env=kept | own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 40, done.stdout[-2_000:]


# -- a step, beside that of the definition ------------------------------------------------------


def plan_of(cls: type, **options: Any) -> Plan:
    optimizer = cls([nn.Parameter(torch.zeros(1))], **options)
    return optimizer._plan(optimizer.param_groups[0])


def some_state(plan: Plan, params: list[Tensor]) -> dict[str, list[Tensor]]:
    """What three steps of the definition leave behind."""
    state: dict[str, list[Tensor]] = {name: [] for name in plan.stored_names()}
    for param in params:
        for name in plan.state_names():
            state[name].append(shards.zeros(param, plan.storage(name).dtype or WIDE))
            if plan.coded:
                state[name + formats.SCALE].append(shards.scale_zeros(param))
    for name in ("step", "sensitivity_step"):
        if name in state:
            state[name] = [torch.tensor(0.0) for _ in params]
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        grads = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in params]
        eager.update(plan, [p.clone() for p in params], grads, state, [Place(0)] * len(params))
    return state


def both(
    plan: Plan,
    params: list[Tensor],
    grads: list[Tensor],
    state: dict[str, list[Tensor]],
    places: list[Place],
    definition: Plan | None = None,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each tensor after a step by the kernel, and after one by the definition."""
    copies = {name: [tensor.clone() for tensor in kept] for name, kept in state.items()}
    expected = [param.clone() for param in params]
    triton.update(plan, params, grads, state, places)
    eager.update(definition or plan, expected, grads, copies, places)
    ours, theirs = {"θ": params, **state}, {"θ": expected, **copies}
    for name in ours:
        for pair in zip(ours[name], theirs[name], strict=True):
            yield name, *pair


def assert_near(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Wide values to rounding; narrow ones exactly, but where that tips one to its neighbour."""
    assert ours.dtype == theirs.dtype
    if ours.dtype != WIDE:
        assert (ours != theirs).float().mean() <= 0.002, name
    rtol, atol = {torch.uint8: (0, 1), WIDE: (1e-6, 1e-6)}.get(ours.dtype, (2**-7, 1e-6))
    torch.testing.assert_close(
        ours.float(), theirs.float(), rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}"
    )


FORMATS = [
    (SageAdamW, {"state_format": "compact"}, WIDE),
    (SageAdamW, {"state_format": "bfloat16", "rounding": "stochastic"}, torch.bfloat16),
    (SageAdamW, {"state_format": "8bit"}, WIDE),
    (SageAdamW, {"state_format": "8bit", "rounding": "stochastic"}, torch.bfloat16),
    (SageAdamW, {"state_format": "8bit", "sage": False}, torch.float16),
    (SageAdamax, {"state_format": "bfloat16", "beta0": 0.97}, torch.float16),
    (SageSGD, {"state_format": "bfloat16", "momentum": 0.97}, WIDE),
]


@interpreted
@pytest.mark.parametrize("size", [1e14, 1e18])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (SageAdamW, {}),
        (SageAdamW, {"sage_eps": 1e-16}),
        (SageAdamax, {}),
        (SageSGD, {"momentum": 0.9, "lr": 1e-20}),
    ],
)
def test_one_large_gradient_is_survived(cls, options, size):
    plan, params = plan_of(cls, **options), [torch.ones(16)]
    state = some_state(plan, params)
    found = both(plan, params, [torch.full((16,), size)], state, [Place(0)])
    for name, ours, theirs in found:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0, msg=name)


@interpreted
@pytest.mark.parametrize(("cls", "options", "dtype"), FORMATS)
@pytest.mark.parametrize("shape", [(40, 160), (100, 45), (600, 7)], ids=["whole", "cut", "short"])
def test_formats_round_by_the_bits_of_the_definition(cls, options, dtype, shape, draw):
    plan = plan_of(cls, lr=0.05, rounding_seed=2**32 - 5, **options)
    plan = plan.with_codes(plan.state_format == "8bit")
    params = [draw(*shape).to(dtype)]
    state = some_state(plan, params)
    # The upper half of the index goes up by one within this tensor.
    places = [Place(7, 2**33 - 3000)]
    for each in both(plan, params, [draw(*shape).to(dtype)], state, places):
        assert_near(*each)


@interpreted
@pytest.mark.parametrize("state_format", ["float32", "bfloat16", "8bit"])
def test_values_that_are_no_numbers_or_hardly(state_format, draw):
    plan = plan_of(SageAdamW, lr=0.05, state_format=state_format)
    plan = plan.with_codes(state_format == "8bit")
    param, grad = draw(40, 160, dtype=WIDE), draw(40, 160, dtype=WIDE)
    strange = [0.0, -0.0, 1e-44, -1e-38, 1e-20, 1e-30, math.inf, -math.inf, math.nan]
    state = some_state(plan, [param])
    for row, value in enumerate(strange):
        grad[row] = value
        param[row + len(strange)] = value
        param[row + 2 * len(strange), ::7] = value
        grad[row + 2 * len(strange), ::5] = value
    if state_format != "8bit":  # codes have no NaN
        grad[-1] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(WIDE)  # the one of a GPU
    # A sensitivity that bf16 and codes would take for zero, also beside a large one.
    param[-2], grad[-2] = 1.0, 1e-41
    param[-2, ::40] = 1e30
    state["exp_avg_sensitivity"][0][-2] = 0
    for name, ours, theirs in both(plan, [param], [grad], state, [Place(0)]):
        if ours.is_floating_point():
            # A direction from numbers this small differs in its last digits, and so may θ.
            torch.testing.assert_close(
                ours.float(), theirs.float(), rtol=1e-2, atol=1e-5, equal_nan=True
            )
        else:
            assert (ours != theirs).float().mean() < 0.002, name
        if name == "exp_avg_sensitivity":
            assert torch.equal(ours == 0, theirs == 0)
            assert ours[-2].all()


@interpreted
def test_a_launch_takes_tensors_of_all_sizes_and_none(draw):
    """Small ones, views that begin anywhere, and counts that differ."""
    plan = plan_of(SageAdamW, lr=0.05)
    memory = draw(6000, dtype=WIDE)
    shapes = [(3,), (0,), (1030,), (64, 33), (1,), ()]
    params = [draw(*shape, dtype=WIDE) for shape in shapes]
    params += [memory[1:2049].view(64, 32), memory[2049:2050]]
    state = some_state(plan, params)
    state["step"][2] += 4
    state["sensitivity_step"][3] += 1
    grads = [draw(*param.shape, dtype=WIDE) for param in params]
    before = memory.clone()
    for each in both(plan, params, grads, state, [Place(i) for i in range(len(params))]):
        assert_near(*each)
    assert torch.equal(memory[:1], before[:1])
    assert torch.equal(memory[2050:], before[2050:])


@interpreted
def test_counts_and_lr_on_the_device_give_the_same_step(draw):
    """As in a CUDA graph: nothing of them is read but in the kernel."""
    for cls in (SageAdamW, SageAdamax):
        options = {"state_format": "bfloat16", "weight_decay": 0.1}
        plan = plan_of(cls, lr=0.05, betas=(0.0, 0.9), **options)
        params = [draw(50, 7, dtype=WIDE), draw(64, dtype=WIDE)]
        state = some_state(plan, params)
        state["step"][1] += 1000
        grads = [draw(*param.shape, dtype=WIDE) for param in params]
        held = dataclasses.replace(plan, capturable=True, lr=torch.tensor(0.05))
        for each in both(held, params, grads, state, [Place(0), Place(1)], definition=plan):
            assert_near(*each)


@interpreted
def test_memory_that_is_not_in_order_goes_elsewhere(draw, monkeypatch):
    seen = []
    monkeypatch.setattr(foreach, "update", lambda plan, params, *_: seen.extend(params))
    plan = plan_of(SageAdamW)
    params = [draw(4, 5, dtype=WIDE), draw(5, 4, dtype=WIDE).t(), draw(4, 5, dtype=WIDE)]
    state = some_state(plan, params)
    state["exp_avg"][2] = state["exp_avg"][2].t().contiguous().t()
    start = [param.clone() for param in params]
    triton.update(plan, params, [torch.ones(4, 5)] * 3, state, [Place(i) for i in range(3)])
    assert [id(param) for param in seen] == [id(params[1]), id(params[2])]
    assert not torch.equal(params[0], start[0])
    assert torch.equal(params[1], start[1])


@interpreted
def test_autograd_hears_of_the_change():
    param = nn.Parameter(torch.ones(3))
    squared = param.square().sum()
    plan = plan_of(SageSGD, sage=False)
    state = some_state(plan, [param])
    with torch.no_grad():
        triton.update(plan, [param], [torch.ones(3)], state, [Place(0)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()


@interpreted
def test_elements_beyond_two_to_the_31(monkeypatch):
    """Only the last tile is taken, and no other memory touched."""
    plan = plan_of(SageSGD, lr=1.0, sage=False)
    count = 2**31 + 5 * triton.TILE + 3
    param, grad = (torch.empty(count, dtype=torch.bfloat16) for _ in range(2))
    last = slice(count - 3, None)
    param[last], grad[last] = 3.0, 1.0
    whole = triton._tiles
    monkeypatch.setattr(triton, "_tiles", lambda sizes: whole(sizes)[-1:])
    triton.update(plan, [param], [grad], {"step": [torch.tensor(0.0)]}, [Place(0)])
    assert param[last].tolist() == [2.0, 2.0, 2.0]


if INTERPRETED:
    import triton.language as tl
    from triton import jit

    from sagelr.engines.triton_kernel import decode, encode

    @jit
    def to_codes_and_back(
        values, bits, coded, scales, back,
        FROM: tl.constexpr, LONG: tl.constexpr, SIGNED: tl.constexpr, BLOCKS: tl.constexpr,
    ):  # fmt: skip
        block = tl.arange(0, BLOCKS)
        at = block[:, None] * 32 + tl.arange(0, 32)[None, :]
        code, scale = encode(tl.load(values + at), tl.load(bits + at), FROM, LONG, SIGNED)
        tl.store(coded + at, code)
        tl.store(scales + block, scale)
        tl.store(back + at, decode(code, scale, SIGNED))


@interpreted
@pytest.mark.parametrize("name", codes.PARTS)
def test_codes_are_those_of_the_definition(name, draw):
    signed = name in formats.SIGNED
    values = draw(1 << 13, 32, dtype=WIDE) * 10 ** (3 * draw(1 << 13, 32, dtype=WIDE))
    values[0], values[1, ::2] = 0, 1e30
    values = values if signed else values.abs()
    bits = torch.randint(-(2**31), 2**31, values.shape, generator=torch.Generator().manual_seed(5))
    bits = bits.to(torch.int32)
    coded, scales = torch.empty_like(values, dtype=torch.uint8), codes.scales(values)
    found, back = torch.empty_like(scales), torch.empty_like(values)
    to_codes_and_back[(1,)](
        values, bits.view(torch.uint32), coded, found, back, *codes.PARTS[name], signed, len(values)
    )
    assert torch.equal(found, scales)
    assert torch.equal(coded, codes.encode(values, scales, bits, name, signed=signed))
    assert torch.equal(back, codes.decode(coded, scales, signed=signed))


# -- the tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("coded", [False, True])
def test_tiles_cover_every_element_once(coded):
    shapes = [(1,), (3, 700), (0, 4), (2000, 3), (5, 2048), (7, 33)]
    sizes = [(math.prod(s), math.prod(s[1:]) if coded else 0) for s in shapes]
    tiles = triton._tiles(sizes).tolist()
    assert len({tuple(tile) for tile in tiles}) == len(tiles)
    for i, (shape, (elements, width)) in enumerate(zip(shapes, sizes, strict=True)):
        numbers = [number for tensor, number in tiles if tensor == i]
        assert numbers == list(range(len(numbers)))
        per_tile = triton.TILE // codes.BLOCK if coded else triton.TILE
        units = math.prod(codes.blocks(torch.Size(shape))) if width else elements
        assert (len(numbers) - 1) * per_tile < units <= len(numbers) * per_tile or not units


def test_tables_are_made_once_and_the_longest_unused_thrown_out():
    tables, made = Tables(room=2), []

    def get(contents: int) -> Tensor:
        def make() -> Tensor:
            made.append(contents)
            return torch.tensor([contents])

        return tables.get(contents, make, torch.device("cpu"))

    for contents in (1, 2, 1, 3, 1, 2):  # 3 throws out 2, which 1 has outlived by its second use
        assert get(contents).tolist() == [contents]
    assert made == [1, 2, 3, 2]


# -- the choice -----------------------------------------------------------------------------------


def test_cuda_has_a_fused_step():
    assert engines._fused("cuda") is triton
    assert engines._fused("xpu") is None


def test_what_the_kernel_cannot_take_is_named(monkeypatch):
    plan, param = plan_of(SageAdamW), torch.ones(3)
    wide, half = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float16)
    assert "float64" in str(triton.why_not(plan, [wide], [wide]))
    assert "a gradient is not torch.float32" in str(triton.why_not(plan, [param], [half]))
    assert "differentiable" in str(
        triton.why_not(dataclasses.replace(plan, differentiable=True), [param], [param])
    )
    buffer = nn.Buffer(torch.ones(3))
    assert "a parameter is a" in str(triton.why_not(plan, [buffer.as_subclass(Odd)], [param]))
    triton._lacking.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed" in str(triton.why_not(plan, [param], [param]))
    triton._lacking.cache_clear()


class Odd(Tensor):
    """A tensor subclass the kernel knows nothing of."""


# -- compiled, though not run ---------------------------------------------------------------------

BY_CHANCE = {"FIRST": 2, "SECOND": 2, "SENSITIVITY": 2, "PARAM": 1, "PARAM_CHANCE": True}
KINDS = {
    "float32": {},
    "by chance": BY_CHANCE,
    "8bit": {"FIRST": 3, "SECOND": 3, "SENSITIVITY": 3},
    "graph": {"HELD": True, "LR_HELD": True, "BASE": 1, "PARAM": 2, "DECAY": 1},
}


@compiled
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_and_moves_memory_in_vectors(kind, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from sagelr.engines import triton_kernel

    names = triton_kernel.take_step.arg_names
    usual = triton._kind(plan_of(SageAdamW), WIDE, aligned=True, lr_held=False)
    constants = usual | KINDS[kind]
    types = {"table": "*i64", "chunks": "*i32", "lr_at": "*fp32", "seed": "i32", "step": "i32"}
    source = ASTSource(
        triton_kernel.take_step,
        {name: "constexpr" if name in constants else types.get(name, "fp32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    made = compile(source, target=GPUTarget("cuda", capability, 32))
    moved = re.findall(r"(?:ld|st)\.global\.(?:\w+::\w+\.)?v[24]\.\w+", made.asm["ptx"])
    assert len(moved) >= 9  # five tensors read, four written
    assert ".local" not in made.asm["ptx"]  # nothing spilled
