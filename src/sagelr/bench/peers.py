"""Optimizers of other packages, where they are installed. None of them is needed for anything."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.nn import Parameter

# Small, so that parameters stay ordinary numbers through thousands of steps on one gradient.
LR = 1e-6


@dataclass(frozen=True)
class Peer:
    """One optimizer of another package.

    Attributes:
        name: by which it is asked for.
        label: as it is shown.
        module: that is imported, with `make` the name of its class.
        package: that brings it.
        cls: its class.
        state: bytes of state a parameter, at a guess.
        graphs: whether it compiles a graph for the shapes it is given.
        devices: on which it runs.
    """

    name: str
    label: str
    module: str
    package: str
    cls: str
    state: float
    graphs: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    def make(self, params: Sequence[Parameter]) -> Callable[[], object]:
        optimizer = getattr(importlib.import_module(self.module), self.cls)(list(params), lr=LR)
        if self.module == "schedulefree":  # it has two sets of weights
            optimizer.train()
        return optimizer.step


PEERS = (
    Peer("optimi-adamw", "optimi AdamW", "optimi", "torch-optimi", "AdamW", 8),
    Peer("heavyball-adamw", "heavyball AdamW", "heavyball", "heavyball", "AdamW", 8, graphs=True),
    Peer(
        "torchao-adamw-8bit", "torchao AdamW, 8 bits", "torchao.optim", "torchao", "AdamW8bit", 2.1,
        graphs=True,
    ),
    Peer(
        "bitsandbytes-adamw-8bit", "bitsandbytes AdamW, 8 bits", "bitsandbytes.optim",
        "bitsandbytes", "AdamW8bit", 2.1, devices=("cuda",),
    ),
    Peer(
        "schedulefree-adamw", "schedule-free AdamW", "schedulefree", "schedulefree",
        "AdamWScheduleFree", 8,
    ),
    Peer(
        "pytorch-optimizer-stableadamw", "pytorch-optimizer StableAdamW", "pytorch_optimizer",
        "pytorch-optimizer", "StableAdamW", 8,
    ),
)  # fmt: skip


def absent(peer: Peer, device: str) -> str | None:
    """Why a peer cannot take part; None if it can, as far as one sees without importing it."""
    if device not in peer.devices:
        return f"{peer.package} runs on {', '.join(peer.devices)} alone"
    if importlib.util.find_spec(peer.module.partition(".")[0]) is None:
        return f"not installed: pip install {peer.package}"
    return None
