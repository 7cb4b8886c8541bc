"""SAGE under FSDP2, with a sharded checkpoint that any number of processes can load.

    torchrun --nproc_per_node 2 examples/fsdp2_checkpoint.py

Moments and smoothed sensitivity are sharded as the parameters are, in any state format.
"""

import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sagelr import SageAdamW, param_groups


def build(mesh: object) -> tuple[nn.Module, SageAdamW]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # After sharding: the optimizer is to hold the sharded parameters.
    return model, SageAdamW(param_groups(model), lr=1e-3, state_format="compact")


def train(model: nn.Module, optimizer: SageAdamW, steps: int) -> float:
    loss = torch.tensor(0.0)
    for step in range(steps):
        torch.manual_seed(1000 * step + dist.get_rank())
        loss = model(torch.randn(8, 4, 32)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def main() -> None:
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    mesh = init_device_mesh("cuda" if cuda else "cpu", (dist.get_world_size(),))
    model, optimizer = build(mesh)
    train(model, optimizer, 5)
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder[0])

    again, resumed = build(mesh)
    weights, state = get_state_dict(again, resumed)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
    set_state_dict(again, resumed, model_state_dict=weights, optim_state_dict=state)
    first, second = train(model, optimizer, 5), train(again, resumed, 5)
    if dist.get_rank() == 0:
        print(f"went on at loss {first:.6f}; after loading {second:.6f}")
    assert first == second
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
