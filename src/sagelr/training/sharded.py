"""Whole tensors out of shards and back, so that a checkpoint fits any number of processes.

FSDP2 leaves every process a part of each weight and of its state. A checkpoint holds them whole, in
the files that a training on one device writes, and can be taken up by one process or by many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from sagelr.errors import SagelrError
from sagelr.state import shards


def shard(model: nn.Module, device: torch.device) -> None:
    """Spread a model over all processes (FSDP2): layer by layer, and what is around the layers.

    The units are the members of the outermost lists of modules, as every Transformer has them; all
    that is tied, embeddings and heads, lies in the one unit around them. Accelerate (1.15) would
    cut through embeddings, and on CPUs it would not shard at all.

    Args:
        model: on any device.
        device: where it is trained.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if hasattr(model, "generate"):
        register_fsdp_forward_method(model, "generate")


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def reshard(model: nn.Module) -> None:
    """Leave a sharded model its shards; after an evaluation it would hold whole weights."""
    for module in model.modules():
        if callable(release := getattr(module, "reshard", None)):
            release()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every process has to ask for it at the same time."""
    return tensor.full_tensor().cpu() if shards.is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def like(tensor: Tensor, param: Tensor) -> Tensor:
    """A whole tensor, laid out as a parameter is: in shards, if the parameter is in shards."""
    if not shards.is_dtensor(param) or not tensor.ndim:  # a step count is the same everywhere
        return tensor
    from torch.distributed.tensor import distribute_tensor

    layout: Any = param
    # Every process has read the same file: nothing has to be sent.
    return distribute_tensor(tensor, layout.device_mesh, layout.placements, src_data_rank=None)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state with whole tensors, as its `state_dict()` on one device would be."""
    held = optimizer.state_dict()
    state = {
        index: {
            name: whole(value) if isinstance(value, Tensor) else value
            for name, value in sorted(held["state"][index].items())
        }
        for index in sorted(held["state"])
    }
    return {**held, "state": state}


def load_optimizer_state(optimizer: torch.optim.Optimizer, held: Mapping[str, Any]) -> None:
    """Load what `optimizer_state` gave, into shards where there are any."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state = {
        index: {
            name: like(value, params[index]) if isinstance(value, Tensor) else value
            for name, value in entries.items()
        }
        for index, entries in held["state"].items()
    }
    optimizer.load_state_dict({**held, "state": state})


def state_dict(model: nn.Module) -> dict[str, Tensor] | None:
    """A sharded model's whole state; None of a model that is not sharded, which has it already."""
    if not any(shards.is_dtensor(param) for param in model.parameters()):
        return None
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights, and the buffers that are saved with them, each once."""
    every = dict(model.named_parameters()) | dict(model.named_buffers())
    kept = model.state_dict().keys()
    return {name: each for name, each in every.items() if name in kept}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """What `tensors` gives, whole."""
    return {name: whole(each.detach()).contiguous() for name, each in tensors(model).items()}


@torch.no_grad()
def load_weights(model: nn.Module, held: Mapping[str, Tensor]) -> None:
    """Load what `weights` gave, into shards where there are any.

    Raises:
        SagelrError: they are of another model.
    """
    targets = dict(model.named_parameters()) | dict(model.named_buffers())
    missing = dict(model.named_parameters()).keys() - held.keys()
    if missing:
        raise SagelrError(f"The checkpoint does not hold {min(missing)}: it is of another model.")
    for name, tensor in held.items():
        shards.local(targets[name]).copy_(shards.local(like(tensor, targets[name])))
