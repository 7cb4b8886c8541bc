"""Who takes part: torch's optimizers, and every engine and state format of ours."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import Parameter

from sagelr import SageAdamax, SageAdamW, SageSGD
from sagelr.bench import peers
from sagelr.bench.peers import LR
from sagelr.engines import cpu
from sagelr.errors import UsageError
from sagelr.state.formats import STATE_FORMATS

Step = Callable[[], object]
Make = Callable[[Sequence[Parameter]], Step]

REFERENCE = "torch-adamw-fused"


@dataclass(frozen=True)
class Contestant:
    """One way to take a step.

    Attributes:
        name: by which it is asked for.
        label: as it is shown.
        family: which of torch's optimizers it is held to: "adamw", "adamax" or "sgd".
        make: makes the optimizer for parameters that have gradients, and returns its step.
        state: bytes of state a parameter, at a guess; what memory is set aside by.
        passing: bytes a parameter that a step needs in passing, at a guess.
        compiles: what is compiled when it is first used: "kernel", once for all; "graph", anew for
            every list of shapes; or nothing.
        tensors: the most that it is given; a graph over thousands takes many minutes to compile.
        elements: the most parameters that it is given unless it is asked for by name.
        absent: why it cannot take part here, if it cannot.
    """

    name: str
    label: str
    family: str
    make: Make
    state: float
    passing: float = 0.0
    compiles: str | None = None
    tensors: int | None = None
    elements: int | None = None
    absent: str | None = None


def everyone(device: str) -> list[Contestant]:
    """All contestants of a kind of device, the reference first.

    Args:
        device: "cpu" or "cuda".
    """
    others = [
        Contestant(
            peer.name,
            peer.label,
            "adamw",
            peer.make,
            peer.state,
            passing=8.0,
            compiles="graph" if peer.graphs else None,
            tensors=500 if peer.graphs else None,
            absent=peers.absent(peer, device),
        )
        for peer in peers.PEERS
    ]
    return [*_torchs(), *_ours(device), *others]


def chosen(known: Sequence[Contestant], only: Iterable[str] | None) -> list[Contestant]:
    """Those that were asked for, and the reference, without which there are no ratios.

    Args:
        known: all there are.
        only: names, or patterns with * in them; None for all.

    Raises:
        UsageError: a pattern fits none.
    """
    if only is None:
        return list(known)
    wanted = {REFERENCE}
    for pattern in only:
        found = {each.name for each in known if fnmatch.fnmatchcase(each.name, pattern)}
        if not found:
            names = ", ".join(each.name for each in known)
            raise UsageError(
                f"--only {pattern!r} fits no contestant. There are, and * fits any part of a name: "
                f"{names}."
            )
        wanted |= found
    return [replace(each, elements=None) for each in known if each.name in wanted]


def _torchs() -> list[Contestant]:
    ways = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    adamw = [
        Contestant(
            f"torch-adamw-{way}",
            f"torch AdamW, {way}",
            "adamw",
            _plain(torch.optim.AdamW, **options),
            state=8,
            passing=12 if way == "foreach" else 0,
        )
        for way, options in reversed(ways.items())
    ]
    adamax = [
        Contestant(
            f"torch-adamax-{way}",
            f"torch Adamax, {way}",
            "adamax",
            _plain(torch.optim.Adamax, **ways[way]),
            state=8,
            passing=12 if way == "foreach" else 0,
        )
        for way in ("loop", "foreach")
    ]
    sgd = [
        Contestant(
            f"torch-sgd-{way}",
            f"torch SGD with momentum, {way}",
            "sgd",
            _plain(torch.optim.SGD, momentum=0.9, **options),
            state=4,
            passing=4 if way == "foreach" else 0,
        )
        for way, options in ways.items()
    ]
    return [*adamw, *adamax, *sgd]


def _ours(device: str) -> list[Contestant]:
    fused = "triton" if device == "cuda" else "fused"
    missing = None
    if device == "cpu" and not cpu.compiler():
        missing = "there is no C++ compiler (g++, clang++ or what CXX names)"
    sizes = dict(zip(STATE_FORMATS, (12.0, 8.0, 6.0, 3.2), strict=True))
    found = []
    for name, state in sizes.items():
        found.append(
            Contestant(
                f"sage-adamw-{fused}-{name}",
                f"SageAdamW, {fused}, {name}",
                "adamw",
                _plain(SageAdamW, fused=True, state_format=name),
                state,
                compiles="kernel",
                absent=missing,
            )
        )
    # An average whose memory is at most 0.95 is rounded to nearest: what does chance cost?
    nearest = _plain(SageAdamW, fused=True, state_format="bfloat16", betas=(0.9, 0.95))
    found.append(
        Contestant(
            f"sage-adamw-{fused}-bfloat16-nearest",
            f"SageAdamW, {fused}, bfloat16 rounded to nearest",
            "adamw",
            nearest,
            sizes["bfloat16"],
            compiles="kernel",
            absent=missing,
        )
    )
    if device == "cuda":
        found += [
            Contestant(
                f"sage-adamw-compiled-{name}",
                f"SageAdamW, lists through torch.compile, {name}",
                "adamw",
                _compiled(SageAdamW, foreach=True, state_format=name),
                state,
                compiles="graph",
            )
            for name, state in sizes.items()
        ]
    for engine, options in (("foreach", {"foreach": True}), ("eager", {"foreach": False})):
        found += [
            Contestant(
                f"sage-adamw-{engine}-{name}",
                f"SageAdamW, {engine}, {name}",
                "adamw",
                _plain(SageAdamW, state_format=name, **options),
                state,
                passing=28 if engine == "foreach" else 8,
                # Minutes for what "small" shows as well.
                elements=None if name == "float32" or device == "cuda" else 20_000_000,
            )
            for name, state in sizes.items()
        ]
    for cls, family, options, state in (
        (SageAdamax, "adamax", {}, 12.0),
        (SageSGD, "sgd", {"momentum": 0.9}, 8.0),
    ):
        found.append(
            Contestant(
                f"sage-{family}-{fused}-float32",
                f"{cls.__name__}, {fused}, float32",
                family,
                _plain(cls, fused=True, **options),
                state,
                compiles="kernel",
                absent=missing,
            )
        )
    return found


def _plain(cls: Callable[..., torch.optim.Optimizer], **options: object) -> Make:
    return lambda params: cls(list(params), lr=LR, **options).step


def _compiled(cls: Callable[..., torch.optim.Optimizer], **options: object) -> Make:
    def make(params: Sequence[Parameter]) -> Step:
        # As a float, lr would be a constant of the graph.
        optimizer = cls(list(params), lr=torch.tensor(LR), **options)
        return torch.compile(optimizer.step)

    return make
