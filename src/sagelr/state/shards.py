"""Parameters that lie on several devices: the step is element by element, so it works on shards.

A DTensor's own arithmetic would give the same and ask the dispatcher for every operation. Here the
local shards of parameter, gradient and state are taken out once, and the engines never see more.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sagelr.state import codes, formats


def is_dtensor(tensor: Tensor) -> bool:
    """Whether it is a DTensor, without importing what makes them."""
    if type(tensor) in (Tensor, Parameter):
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of it that is on this device."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def read(state: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    """An average in the dtype of arithmetic, laid out as it is stored; see `formats.read`.

    A DTensor's codes are decoded shard by shard, beside the scales of that shard.
    """
    stored = state[name]
    if not is_dtensor(stored):
        return formats.read(state, name, dtype)
    from torch.distributed.tensor import DTensor

    here = formats.read({key: local(value) for key, value in state.items()}, name, dtype)
    layout: Any = stored
    return DTensor.from_local(
        here,
        layout.device_mesh,
        layout.placements,
        run_check=False,
        shape=layout.shape,
        stride=layout.stride(),
    )


def local_grad(name: str, param: Tensor, grad: Tensor, label: str) -> Tensor:
    """The part of a parameter's gradient that is here, laid out as the parameter is.

    Raises:
        RuntimeError: the gradient is not reduced yet, or laid out otherwise.
    """
    if is_dtensor(param) and is_dtensor(grad):
        ours: Any = param
        theirs: Any = grad
        if any(placement.is_partial() for placement in theirs.placements):
            raise RuntimeError(
                f"{name}: the gradient of {label} is a partial sum over {theirs.device_mesh} "
                f"({theirs.placements}), which a rule with |θ·g| cannot take. Reduce it first: "
                "grad.redistribute(placements=param.placements)."
            )
        if theirs.placements == ours.placements and theirs.device_mesh == ours.device_mesh:
            return theirs.to_local()
    raise RuntimeError(
        f"{name}: the gradient of {label} is laid out as {_layout(grad)}, the parameter as "
        f"{_layout(param)}. Redistribute the gradient to the parameter's layout."
    )


def _layout(tensor: Tensor) -> str:
    if not is_dtensor(tensor):
        return "a plain tensor"
    shown: Any = tensor
    return f"{shown.placements} over {shown.device_mesh}"


def offset(name: str, param: Tensor, label: str) -> int:
    """Index in the whole parameter of the first element that is here.

    Raises:
        RuntimeError: it is sharded in a way that leaves no run of elements together.
    """
    if not is_dtensor(param):
        return 0
    sharded: Any = param
    # Not is_shard(), which is False for the strided shards of FSDP2 over tensor parallelism.
    if any(getattr(placement, "dim", 0) != 0 for placement in sharded.placements):
        raise RuntimeError(
            f"{name}: {label} is sharded as {sharded.placements}. State formats and rounding by "
            "chance need shards on dimension 0. Use state_format='float32' with "
            "rounding='nearest', or shard on dimension 0."
        )
    return _first_row(sharded.shape, sharded.device_mesh, sharded.placements) * (
        sharded.shape[1:].numel()
    )


@functools.lru_cache(maxsize=4096)  # torch makes a list of all rows, at every step
def _first_row(shape: torch.Size, mesh: Any, placements: tuple[Any, ...]) -> int:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
    return offsets[0] if offsets else 0


def zeros(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros of a parameter's shape and layout."""
    return torch.zeros_like(
        param, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False
    )


def scale_zeros(param: Tensor) -> Tensor:
    """Scales for a parameter's 8-bit codes, sharded as its rows are."""
    if not is_dtensor(param):
        return torch.zeros(codes.blocks(param.shape), dtype=torch.uint8, device=param.device)
    whole: Any = param
    from torch.distributed.tensor import DTensor

    rows, per_row = codes.blocks(whole.shape)
    here = torch.zeros(
        (whole.to_local().shape[0], per_row), dtype=torch.uint8, device=whole.to_local().device
    )
    return DTensor.from_local(
        here,
        whole.device_mesh,
        whole.placements,
        run_check=False,
        shape=torch.Size((rows, per_row)),
        stride=(per_row, 1),
    )


def part(name: str, value: Tensor, param: Tensor) -> Tensor:
    """What of a whole average, or of the scales of its codes, belongs to a parameter's shards.

    Raises:
        ValueError: it is not of the whole parameter's shape.
    """
    whole: Any = param
    wanted = codes.blocks(whole.shape) if name.endswith(formats.SCALE) else whole.shape
    if value.shape != torch.Size(wanted):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, and its parameter, sharded as "
            f"{whole.placements}, {tuple(wanted)} in all. Load the whole state, or use "
            "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict."
        )
    from torch.distributed.tensor import distribute_tensor

    # Every process has the whole, so nothing has to be sent.
    return distribute_tensor(
        value.detach().to(whole.device), whole.device_mesh, whole.placements, src_data_rank=None
    )
