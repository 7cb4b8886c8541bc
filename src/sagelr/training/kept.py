"""Weights put aside while training goes on: the best epoch's, or the sum over several epochs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sagelr.errors import SagelrError
from sagelr.training.sharded import like, tensors, whole


class Kept:
    """The weights of a model at one moment, or the mean of them over several.

    Buffers that are saved with the weights, such as running means, are kept with them; of those
    that are no fractions, such as counts, the last moment's stand for the mean.
    """

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
        for name, tensor in tensors(model).items():
            if not tensor.is_floating_point():
                self.sums[name] = tensor.clone()
            elif self.count:
                self.sums[name] += tensor
            else:
                wide = torch.promote_types(tensor.dtype, torch.float32)
                self.sums[name] = tensor.detach().to(wide, copy=True)
        self.count += 1

    @torch.no_grad()
    def put(self, model: nn.Module) -> None:
        """Give the model what was kept; nothing if nothing was."""
        if self.count:
            for name, tensor in tensors(model).items():
                kept = self.sums[name]
                tensor.copy_(kept / self.count if kept.is_floating_point() else kept)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "count": self.count,
            "sums": {name: whole(each) for name, each in self.sums.items()},
        }

    def load(self, state: dict[str, Any], model: nn.Module) -> None:
        """Go on from a checkpoint.

        Raises:
            SagelrError: it is of a version that kept no buffers, and the model has some.
        """
        targets = tensors(model)
        if state["count"] and (missing := targets.keys() - state["sums"].keys()):
            raise SagelrError(
                f"The checkpoint put weights aside without {min(missing)}, as earlier versions of "
                "sagelr did, so that the training cannot go on from it. Begin afresh with "
                "--overwrite."
            )
        self.count = state["count"]
        self.sums = {
            name: like(each.to(targets[name].device), targets[name])
            for name, each in state["sums"].items()
        }
