"""One list of tensors, and everyone who steps on it."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from sagelr.bench.contestants import REFERENCE, Contestant, Step
from sagelr.bench.memory import allocated, free
from sagelr.bench.rounds import Turn, take_turns, timed
from sagelr.bench.shapes import Shape
from sagelr.errors import SagelrError

# What a contestant may take in all, for each round that was asked for.
SECONDS_A_ROUND = 0.3
ROOM = 0.8  # of the free memory
PROBE = 1 << 26  # elements; beyond any cache
PROBES = {"copy": 8, "add": 12}  # bytes moved an element: read and write; two reads and a write


@dataclass
class Measured:
    """What was found of one contestant.

    Attributes:
        contestant: who.
        status: "measured", or why there is nothing: "absent", "left out", "failed".
        reason: in words, where it was not measured.
        heat: number of the heat; who shared one can be compared round by round.
        turns: {"round": number, "seconds": of one step}.
        state: bytes it keeps.
        peak: the most bytes it held in a step, its state among them.
        compiling: seconds its first step took longer than the next, where it compiles anything.
    """

    contestant: Contestant
    status: str = "measured"
    reason: str | None = None
    heat: int | None = None
    turns: list[dict[str, float]] = field(default_factory=list)
    state: int | None = None
    peak: int | None = None
    compiling: float | None = None


@dataclass
class Heat:
    """Rounds that some contestants shared, with what was timed beside them."""

    measured: list[Measured]
    probes: dict[str, list[dict[str, float]]]


Progress = Callable[[str, float], None]


@contextmanager
def fresh_caches() -> Iterator[None]:
    """Kernels are compiled anew, so that what it takes can be told."""
    with tempfile.TemporaryDirectory(prefix="sagelr-bench-") as folder:
        names = ("SAGELR_CACHE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
        before = {name: os.environ.get(name) for name in names}
        os.environ.update({name: str(Path(folder) / name.lower()) for name in names})
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def kernel_seconds(contestant: Contestant, device: str) -> float | None:
    """What the first step on a small matrix takes longer than the second; None if it fails."""
    param = Parameter(torch.ones(64, 64, device=device))
    param.grad = torch.ones_like(param)
    try:
        first = timed(Turn(lambda: contestant.make([param])()), device)
        return max(0.0, first - timed(Turn(lambda: contestant.make([param])()), device))
    except Exception:  # measuring it will fail as well, and say so
        return None


def measure(
    shapes: Sequence[Shape],
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    device: str,
    compiling: dict[str, float | None],
    progress: Progress = lambda what, share: None,
) -> list[Heat]:
    """Time every contestant on tensors of these shapes, and count its memory.

    All step on the same parameters and gradients, each with state of its own. Where their state
    does not fit in memory together, they share rounds with the reference in several heats.

    Args:
        shapes: of the parameters, fp32.
        contestants: the reference among them.
        rounds: at most.
        device: "cpu" or "cuda".
        compiling: seconds that kernels took to compile, by name; filled in where missing.
        progress: is told what is going on, and the share that is done.
    """
    count = sum(torch.Size(shape).numel() for shape in shapes)
    for each in contestants:
        if each.compiles == "kernel" and each.absent is None and each.name not in compiling:
            progress(f"compiling {each.label}", 0.0)
            compiling[each.name] = kernel_seconds(each, device)
    out = [Measured(c, "absent", c.absent) for c in contestants if c.absent]
    fit = []
    for each in contestants:
        reason = _left_out(each, count, len(shapes))
        if reason and not each.absent:
            out.append(Measured(each, "left out", reason))
        elif not each.absent:
            fit.append(each)
    generator = torch.Generator(device).manual_seed(0)

    def draw(scale: float) -> list[Tensor]:
        return [
            torch.randn(shape, generator=generator, device=device).mul_(scale) for shape in shapes
        ]

    params = [Parameter(value) for value in draw(0.02)]
    grads = draw(1e-3)
    packed, too_large = _heats(fit, count, free(device))
    out += too_large
    heats = [Heat(out, {})] if out else []
    for number, heat in enumerate(packed):

        def tell(what: str, share: float, number: int = number) -> None:
            progress(what, (number + share) / len(packed))

        heats.append(_heat(number, heat, params, grads, rounds, device, compiling, tell))
    return heats


def _left_out(contestant: Contestant, count: int, tensors: int) -> str | None:
    if contestant.elements is not None and count > contestant.elements:
        return f"too slow for more than {contestant.elements / 1e6:g} million; --only asks for it"
    if contestant.tensors is not None and tensors > contestant.tensors:
        return f"compiling a graph of more than {contestant.tensors} tensors takes many minutes"
    return None


def _heats(
    contestants: Sequence[Contestant], count: int, available: int
) -> tuple[list[list[Contestant]], list[Measured]]:
    """Who takes turns with whom: a family together, as far as memory goes."""
    reference = next(each for each in contestants if each.name == REFERENCE)
    room = ROOM * available - 2 * 4 * min(count, PROBE)
    heats: list[list[Contestant]] = []
    too_large = []
    families = dict.fromkeys(each.family for each in contestants)
    for family in families:
        heats.append([reference])
        for each in contestants:
            if each is reference or each.family != family:
                continue
            if _needs([reference, each], count) > room:
                short = f"needs about {_needs([reference, each], count) / 2**30:.1f} GiB"
                too_large.append(Measured(each, "left out", f"{short} of {room / 2**30:.1f} free"))
                continue
            if _needs([*heats[-1], each], count) > room:
                heats.append([reference])
            heats[-1].append(each)
    kept = [heat for heat in heats if len(heat) > 1]
    return kept or [[reference]], too_large


def _needs(contestants: Sequence[Contestant], count: int) -> float:
    return count * (sum(c.state for c in contestants) + max(c.passing for c in contestants))


def _heat(
    number: int,
    contestants: Sequence[Contestant],
    params: list[Parameter],
    grads: list[Tensor],
    rounds: int,
    device: str,
    compiling: dict[str, float | None],
    tell: Progress,
) -> Heat:
    def give() -> None:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad

    found, turns = [], {}
    for i, contestant in enumerate(contestants):
        tell(f"warming up {contestant.label}", 0.5 * i / len(contestants))
        measured = Measured(contestant, heat=number)
        found.append(measured)
        try:
            step = _warm_up(measured, params, give, device)
            if any(param.grad is None for param in params):
                step = _giving(give, step)
            turns[contestant.name] = Turn(step, give)
            if contestant.compiles == "kernel":
                measured.compiling = compiling.get(contestant.name)
            elif measured.compiling is not None:
                measured.compiling -= timed(turns[contestant.name], device)
        except Exception as error:  # of whatever package: the others go on
            measured.status = "failed"
            text = " ".join(str(error).split())
            measured.reason = f"{type(error).__name__}: {text[:300]}"
            turns.pop(contestant.name, None)
    if REFERENCE not in turns:
        raise SagelrError(f"{REFERENCE}, which all are held to, cannot run: {found[0].reason}")
    size = min(sum(param.numel() for param in params), PROBE)
    one, other = (torch.ones(size, device=device) for _ in range(2))
    turns |= {
        "copy": Turn(lambda: one.copy_(other)),
        "add": Turn(lambda: one.add_(other, alpha=1e-6)),
    }
    taken = take_turns(
        turns,
        rounds=rounds,
        seconds=rounds * SECONDS_A_ROUND,
        device=device,
        always=REFERENCE,
        progress=lambda share: tell("taking turns", 0.5 + 0.5 * share),
        seed=number,
    )
    for measured in found:
        measured.turns = taken.get(measured.contestant.name, [])
    turns.clear()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return Heat(found, {name: taken[name] for name in PROBES})


def _warm_up(
    measured: Measured, params: list[Parameter], give: Callable[[], None], device: str
) -> Step:
    """The first two steps, with what they allocate."""
    made: list[Step] = []

    def first() -> None:
        made.append(measured.contestant.make(params))
        made[0]()

    give()
    start = time.perf_counter()
    measured.state = allocated(first, device).kept
    if measured.contestant.compiles == "graph":
        measured.compiling = time.perf_counter() - start
    give()
    second = allocated(made[0], device)
    measured.state += second.kept
    measured.peak = measured.state + max(0, second.peak - second.kept)
    return made[0]


def _giving(give: Callable[[], None], step: Step) -> Step:
    """The step of an optimizer that takes the gradients away; a second in a row needs them."""

    def call() -> None:
        give()
        step()

    return call
