"""Hold the Triton engine to the definition, both on the GPU at hand; stop at the first difference.

    PYTHONPATH=src python benchmarks/gpu_check.py

Before every step the definition takes over parameters and state of the kernel, so that each step is
compared by itself. `benchmarks/gpu.sh` runs this before it times anything.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from sagelr import SageAdamax, SageAdamW, SageSGD, engines
from sagelr.engines import eager, triton
from sagelr.engines.plan import Place
from sagelr.engines.triton_tables import Tables

DEVICE = torch.device("cuda")
STEPS = 3
DECAY = 2**0.5 / 16
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
Options = dict[str, Any]
COPY_IN_GRAPH = Tables._copy_in_graph

COMMON: list[Options] = [
    {"weight_decay": DECAY, "decay": "decoupled"},
    {"weight_decay": DECAY, "decay": "scaled", "sage_bias_correction": False},
    {"weight_decay": DECAY, "decay": "l2", "maximize": True},
    {"weight_decay": DECAY, "sage": False},
    {"beta0": 0.9, "sage_eps": 0.1, "lr_scale": 3.0},
]
BASES: list[tuple[type, list[Options]]] = [
    (SageAdamW, [{}, {"bias_correction": False, "betas": (0.0, 0.9), "eps": 0.1}]),
    (SageAdamax, [{}, {"bias_correction": False, "betas": (0.0, 0.9), "eps": 0.1}]),
    (SageSGD, [{}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True}]),
]
FORMATS = ("float32", "compact", "bfloat16")


class CheckError(Exception):
    """A check that did not hold."""


# -- two optimizers, side by side -----------------------------------------------------------------


def tensors(dtype: torch.dtype) -> list[Tensor]:
    """Of every size, layout and alignment; some elements exactly zero."""
    memory = torch.randn(5000, device=DEVICE).to(dtype)
    shapes = [(), (0,), (1,), (17,), (768,), (64, 64), (300, 257), (1000, 5), (96, 160)]
    found = [torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes]
    found[3][::5] = 0
    found += [memory[1:4097].view(64, 64), torch.randn(8, 9, device=DEVICE).to(dtype).t()]
    image = torch.randn(2, 3, 4, 5, device=DEVICE).to(dtype)
    return [*found, image.contiguous(memory_format=torch.channels_last)]


def pair(
    cls: type, values: list[Tensor], options: Options
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """The kernel's optimizer, and the definition's with copies of the parameters."""
    options = {"lr": 0.05, **options}
    copies = [nn.Parameter(value.clone()) for value in values]
    ours = cls([nn.Parameter(value) for value in values], **options, fused=True)
    theirs = cls(copies, **options, foreach=False)
    own = flat(ours)[:1]
    plan = ours._plan(ours.param_groups[0])
    if engines.choose(plan, own, own, True, None) is not triton.update:
        raise CheckError(f"the engine does not run here: {triton.why_not(plan, own, own)}")
    return ours, theirs


def flat(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def step_both(
    ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer, idle: Callable[[int], bool]
) -> None:
    """One step of each from the same start, with the same gradients; idle parameters have none."""
    for i, param in enumerate(flat(ours)):
        param.grad = None if idle(i) else torch.randn_like(param)
    take_over(ours, theirs)
    ours.step()
    theirs.step()
    compare(ours, theirs)


def take_over(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """Give the definition the parameters, gradients and state of the kernel."""
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        b.data.copy_(a.data)
        b.grad = None if a.grad is None else a.grad.clone()
        theirs.state[b] = {
            name: kept.to("cpu" if "step" in name else kept.device, copy=True)
            for name, kept in ours.state[a].items()
        }


def compare(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        where = f"of a parameter of shape {tuple(a.shape)}, {a.dtype}"
        near(f"θ {where}", a.detach(), b.detach())
        for name, kept in theirs.state[b].items():
            near(f"{name} {where}", ours.state[a][name].to(kept.device), kept)


def near(what: str, ours: Tensor, theirs: Tensor) -> None:
    """Within a GPU's rounding of divisions and roots; narrow values seldom apart, and one step."""
    if ours.dtype != theirs.dtype:
        raise CheckError(f"{what}: {ours.dtype} instead of {theirs.dtype}")
    rtol, atol = {FLOAT32: (1e-5, 1e-6), torch.uint8: (0, 1)}.get(ours.dtype, (2**-7, 1e-6))
    a, b = ours.float(), theirs.float()
    if not torch.allclose(a, b, rtol=rtol, atol=atol):
        raise CheckError(f"{what}: up to {(a - b).abs().max().item():.3g} apart")
    unlike = int((ours != theirs).sum())
    if ours.dtype != FLOAT32 and unlike > 3 + 0.01 * ours.numel():
        raise CheckError(f"{what}: {unlike} of {ours.numel()} are rounded otherwise")


def walk(cls: type, dtype: torch.dtype, options: Options) -> None:
    """Several steps; on each, some parameters have no gradient, so that counts differ."""
    try:
        ours, theirs = pair(cls, tensors(dtype), options)
        for step in range(STEPS):
            step_both(ours, theirs, lambda i, step=step: (i + step) % 5 == 4)
    except CheckError as failed:
        raise CheckError(f"{cls.__name__} {options}: {failed}") from None


# -- the checks -----------------------------------------------------------------------------------


def every_option() -> None:
    for cls, own in BASES:
        for first, second in itertools.product(own, COMMON):
            walk(cls, FLOAT32, {**first, **second})


def every_format_and_dtype() -> None:
    for (cls, own), dtype in itertools.product(BASES, (FLOAT32, BFLOAT16, FLOAT16)):
        formats = (*FORMATS, "8bit") if cls is SageAdamW else FORMATS
        for state_format, rounding in itertools.product(formats, ("nearest", "stochastic")):
            if rounding == "nearest" or dtype == BFLOAT16:
                choice = {"state_format": state_format, "rounding": rounding, "rounding_seed": 9}
                walk(cls, dtype, {**own[-1], **choice})


def many_small_tensors() -> None:
    values = [torch.randn(4096, device=DEVICE) for _ in range(2000)]
    values += [torch.randn(i, device=DEVICE) for i in range(200)]
    ours, theirs = pair(SageAdamW, values, {})
    step_both(ours, theirs, lambda i: i % 7 == 6)
    step_both(ours, theirs, lambda i: False)


def a_schedule_compiles_nothing() -> None:
    from sagelr.engines import triton_kernel

    def compiled() -> int:
        return sum(len(caches[0]) for caches in triton_kernel.take_step.device_caches.values())

    ours, theirs = pair(SageAdamW, [torch.randn(64, 64, device=DEVICE)], {"rounding_seed": 1})
    step_both(ours, theirs, lambda i: False)
    before = compiled()
    for step in range(1, 34):  # with 16 and 32, which Triton would make a kernel of their own for
        ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 1 / step
        step_both(ours, theirs, lambda i: False)
    if compiled() != before:
        raise CheckError(f"{compiled() - before} kernels were compiled while lr and step went on")


def in_a_graph_with_gradients_in_place() -> None:
    in_a_graph(fresh=False)


def in_a_graph_with_gradients_made_in_it() -> None:
    in_a_graph(fresh=True)


def in_a_graph(fresh: bool) -> None:
    """Captured once and replayed, against steps of the definition outside of any graph."""
    values = [torch.randn(shape, device=DEVICE) for shape in ((96, 160), (64, 64), (17,))]
    sources = [torch.randn_like(value) for value in values]
    lr = torch.tensor(0.05, device=DEVICE)
    options = {"state_format": "8bit", "weight_decay": DECAY}
    ours, theirs = pair(SageAdamW, values, {"lr": lr, "capturable": True, **options})
    theirs.param_groups[0]["capturable"] = False

    def step() -> None:
        for param, source in zip(flat(ours), sources, strict=True):
            param.grad = source * 1 if fresh else source
        ours.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with mock.patch.object(Tables, "_copy_in_graph", autospec=True) as copies:
        copies.side_effect = COPY_IN_GRAPH
        with torch.cuda.graph(graph):
            step()
    if copies.called and not fresh:
        raise CheckError("a table was copied anew, though nothing had moved")
    for replay in range(1, 5):
        lr.fill_(0.05 / replay)
        for source in sources:
            source.normal_()
        take_over(ours, theirs)
        for param, source in zip(flat(theirs), sources, strict=True):
            param.grad = source.clone()
        graph.replay()
        theirs.step()
        compare(ours, theirs)


def beyond_the_range_of_32_bits() -> str | None:
    """One tensor of more than 2^32 elements, or 2^31 where there is less memory; bf16 and codes."""
    told = None
    for state_format, bytes_each in (("bfloat16", 10), ("8bit", 7.2)):
        free = torch.cuda.mem_get_info()[0]
        power = next((p for p in (32, 31) if (2**p) * bytes_each * 1.15 < free), None)
        if power is None:
            return f"skipped: 2^31 elements of {state_format} state do not fit in {free >> 30} GiB"
        if power == 31:
            told = f"only 2^31 elements, not 2^32: {free >> 30} GiB are free"
        one_large(state_format, rows=2 ** (power - 14) + 3, width=2**14)
        torch.cuda.empty_cache()
    return told


def one_large(state_format: str, rows: int, width: int) -> None:
    param = nn.Parameter(torch.empty(rows, width, dtype=BFLOAT16, device=DEVICE).normal_())
    param.grad = torch.empty_like(param).normal_()
    options: Options = {"lr": 0.05, "state_format": state_format, "rounding": "stochastic"}
    optimizer = SageAdamW([param], **options, sage_bias_correction=False, fused=True)
    seen = [slice(at, at + 2) for at in (0, rows // 2 - 1, rows - 5, rows - 2)]
    before = [param.detach()[rows_seen].clone() for rows_seen in seen]
    optimizer.step()
    plan = optimizer._plan(optimizer.param_groups[0]).with_codes(state_format == "8bit")
    for rows_seen, value in zip(seen, before, strict=True):
        state = {
            name: [torch.zeros_like(kept if "step" in name else kept[rows_seen])]
            for name, kept in optimizer.state[param].items()
        }
        grad = param.grad[rows_seen]
        eager.update(plan, [value], [grad], state, [Place(0, rows_seen.start * width)])
        where = f"in rows {rows_seen.start} and after, of {rows} of {width}"
        near(f"θ {where}", param.detach()[rows_seen], value)
        for name, (kept,) in state.items():
            if "step" not in name:
                near(f"{name} {where}", optimizer.state[param][name][rows_seen], kept)


def a_training_goes_as_with_the_definition() -> None:
    losses = []
    hows: list[Options] = [{"fused": True}, {"foreach": False}]
    for how in hows:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        model = nn.Sequential(layer, nn.Linear(64, 8)).to(DEVICE)
        inputs, targets = torch.randn(16, 10, 64).to(DEVICE), torch.randn(16, 10, 8).to(DEVICE)
        optimizer = SageAdamW(model.parameters(), lr=1e-3, **how)
        loss = torch.zeros(())
        for _ in range(50):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    if abs(losses[0] - losses[1]) > 0.01 * losses[1]:
        raise CheckError(f"after 50 steps the loss is {losses[0]:.5f} instead of {losses[1]:.5f}")


CHECKS: list[Callable[[], str | None]] = [
    every_option,
    every_format_and_dtype,
    many_small_tensors,
    a_schedule_compiles_nothing,
    in_a_graph_with_gradients_in_place,
    in_a_graph_with_gradients_made_in_it,
    beyond_the_range_of_32_bits,
    a_training_goes_as_with_the_definition,
]


def run() -> Iterator[str]:
    """Check after check, with what to say of each."""
    torch.manual_seed(0)
    for check in CHECKS:
        yield f"ok  {check.__name__.replace('_', ' ')}: {check() or 'as the definition'}"


def main() -> int:
    if not torch.cuda.is_available():
        print("No GPU that torch can use is here; run this on a machine that has one.")
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    try:
        for line in run():
            print(line, flush=True)
    except CheckError as failed:
        print(f"FAILED: {failed}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
