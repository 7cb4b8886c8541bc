"""Weights put aside while training goes on: the best epoch's, or the sum over several epochs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sagelr.training.sharded import like, whole


class Kept:
    """The weights of a model at one moment, or the mean of them over several."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, Tensor] = {}

    def take(self, model: nn.Module) -> None:
        """Keep the weights as they are now, and no others."""
        self.count = 0
        self.add(model)

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """Let the weights as they are now enter the mean."""
        for name, param in model.named_parameters():
            if self.count:
                self.sums[name] += param
            else:
                wide = torch.promote_types(param.dtype, torch.float32)
                self.sums[name] = param.detach().to(wide, copy=True)
        self.count += 1

    @torch.no_grad()
    def put(self, model: nn.Module) -> None:
        """Give the model what was kept; nothing if nothing was."""
        if self.count:
            for name, param in model.named_parameters():
                param.copy_(self.sums[name] / self.count)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "count": self.count,
            "sums": {name: whole(each) for name, each in self.sums.items()},
        }

    def load(self, state: dict[str, Any], model: nn.Module) -> None:
        """Go on from a checkpoint."""
        params = dict(model.named_parameters())
        self.count = state["count"]
        self.sums = {
            name: like(each.to(params[name].device), params[name])
            for name, each in state["sums"].items()
        }
