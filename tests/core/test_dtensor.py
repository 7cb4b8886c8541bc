"""Sharded parameters, in real processes: FSDP2 on gloo, whole runs and checkpoints.

This file is also the program those processes run: a task, the rank, how many there are, a folder.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from sagelr import SageAdamax, SageAdamW, SageSGD

pytestmark = pytest.mark.processes

STEPS = 4
CASES: dict[str, tuple[type, dict[str, Any], torch.dtype]] = {
    "float32": (SageAdamW, {}, torch.float32),
    "compact": (SageAdamW, {"state_format": "compact"}, torch.float32),
    "bfloat16": (SageAdamW, {"state_format": "bfloat16"}, torch.float32),
    "8bit": (SageAdamW, {"state_format": "8bit"}, torch.float32),
    "eager 8bit": (SageAdamW, {"state_format": "8bit", "foreach": False}, torch.float32),
    "foreach": (SageAdamW, {"state_format": "bfloat16", "foreach": True}, torch.float32),
    "bf16 parameters": (SageAdamW, {"rounding": "stochastic"}, torch.bfloat16),
    "Adamax": (SageAdamax, {"state_format": "bfloat16"}, torch.float32),
    "SGD": (SageSGD, {"state_format": "bfloat16", "momentum": 0.97}, torch.float32),
}


class Model(nn.Module):
    """Rows that neither 2 nor 3 processes share evenly, and two of them for 3."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(70, 65, dtype=dtype), nn.Linear(65, 100, dtype=dtype))
        self.head = nn.Linear(100, 2, dtype=dtype)
        self.scale = nn.Parameter(torch.ones(5, dtype=dtype))  # left whole
        self.idle = nn.Linear(3, 4, dtype=dtype)  # without a gradient until the last step

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(inputs))) * self.scale.mean()


def shard(model: Model) -> Model:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model.body, model.idle):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh, ignored_params={model.scale})


def set_gradients(model: Model, step: int) -> None:
    """The same on every process and in every run, laid out as each parameter is."""
    generator = torch.Generator().manual_seed(step)
    for name, param in model.named_parameters():
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        if name.startswith("idle") and step < STEPS - 1:
            param.grad = None
        elif isinstance(param, DTensor):
            param.grad = distribute_tensor(grad, param.device_mesh, param.placements)
        else:
            param.grad = grad


def train(case: str, model: Model, steps: range = range(STEPS)) -> torch.optim.Optimizer:
    cls, options, _ = CASES[case]
    optimizer = cls(model.parameters(), lr=0.05, **options)
    walk(model, optimizer, steps)
    return optimizer


def walk(model: Model, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        set_gradients(model, step)
        optimizer.step()


def whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def everything(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters and state, gathered."""
    found = {}
    for name, param in model.named_parameters():
        found[name] = whole(param)
        for key, value in optimizer.state[param].items():
            found[f"{name} {key}"] = whole(value)
    return found


def multipliers(model: Model, optimizer: Any) -> dict[str, Tensor]:
    """Of the coming step, gathered."""
    return {
        f"{name} multiplier": whole(optimizer.multiplier(param))
        for name, param in model.named_parameters()
    }


# -- what the processes do ------------------------------------------------------------------------


def compare(rank: int, folder: Path) -> None:
    """Every case, sharded; the first process keeps what came of it."""
    found = {}
    for case, (_, _, dtype) in CASES.items():
        model = shard(Model(dtype))
        optimizer = train(case, model)
        found[case] = everything(model, optimizer) | multipliers(model, optimizer)
        late = optimizer.state[model.idle.weight]
        assert late["step"].item() == 1  # made when its gradient came
        assert isinstance(late["exp_avg_sensitivity"], DTensor)
    if rank == 0:
        torch.save(found, folder / "found.pt")


def learn(rank: int, folder: Path) -> None:
    """Steps with the gradients that FSDP2 reduces, each process seeing its own examples."""
    model = shard(Model(torch.float32))
    optimizer = SageAdamW(model.parameters(), lr=0.01, state_format="compact")
    world = dist.get_world_size()
    for inputs, targets in batches():
        optimizer.zero_grad()
        mine = slice(rank, None, world)
        nn.functional.mse_loss(model(inputs[mine]), targets[mine]).backward()
        dist.all_reduce(model.scale.grad)
        model.scale.grad /= world
        optimizer.step()
    found = everything(model, optimizer)
    if rank == 0:
        torch.save(found, folder / "found.pt")


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    for _ in range(5):
        yield torch.randn(12, 70, generator=generator), torch.randn(12, 2, generator=generator)


def refuse(rank: int, folder: Path) -> None:
    """Gradients and shards that no step can be taken with; each leaves all as it was."""
    mesh, plane = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2, 1))
    plain = torch.ones(4, 6)
    rows = distribute_tensor(plain, mesh, [Shard(0)])
    columns = distribute_tensor(plain, mesh, [Shard(1)])
    strided = distribute_tensor(plain, plane, [_StridedShard(1, split_factor=1), Shard(1)])
    partial = DTensor.from_local(plain, mesh, [Partial()])
    narrow = {"state_format": "bfloat16"}
    for value, grad, options, message in (
        (rows, partial, {}, "is a partial sum"),
        (rows, columns, {}, "Redistribute the gradient"),
        (rows, plain, {}, "laid out as a plain tensor"),
        (plain, rows, {}, "the parameter as a plain tensor"),
        (columns, columns, narrow, "need shards on dimension 0"),
        (strided, strided, narrow, "need shards on dimension 0"),
    ):
        before, param = nn.Parameter(torch.ones(3)), nn.Parameter(value.detach().clone())
        optimizer = SageAdamW([before, param], lr=0.1, **options)
        before.grad, param.grad = torch.ones(3), grad
        with pytest.raises(RuntimeError, match=message):
            optimizer.step()
        assert torch.equal(before, torch.ones(3))
        assert not optimizer.state
    param = nn.Parameter(columns)
    optimizer = SageAdamW([param], lr=0.1)  # an exact format does not ask where an element stands
    param.grad = columns
    optimizer.step()


def save(rank: int, folder: Path) -> None:
    """Checkpoints of every case, sharded and whole, and what they ought to hold."""
    found = {}
    for case, (_, _, dtype) in CASES.items():
        model = shard(Model(dtype))
        optimizer = train(case, model)
        dcp.save({"state": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder / case)
        full = get_optimizer_state_dict(model, optimizer, options=FULL)
        if rank == 0:
            torch.save(full, folder / f"{case}.pt")
        found[case] = everything(model, optimizer)
        walk(model, optimizer, range(STEPS, STEPS + 1))
        found[f"{case} goes on"] = everything(model, optimizer)
    if rank == 0:
        torch.save(found, folder / "found.pt")


def load(rank: int, folder: Path) -> None:
    """Take the checkpoints up again, on any number of processes, or on one without a group."""
    expected = torch.load(folder / "found.pt")
    for case in CASES:
        for fill in (fill_sharded, fill_whole):
            model = Model(CASES[case][2])
            if dist.is_initialized():
                model = shard(model)
            optimizer = train(case, model, range(0))
            fill(model, optimizer, folder, case, rank)
            set_parameters(model, expected[case])
            assert_equal(everything(model, optimizer), expected[case])
            walk(model, optimizer, range(STEPS, STEPS + 1))
            assert_equal(everything(model, optimizer), expected[f"{case} goes on"])


def plain(rank: int, folder: Path) -> None:
    """State dicts of a whole run, loaded as they are into one that is sharded, and back."""
    for case, (_, _, dtype) in CASES.items():
        alone = Model(dtype)
        saved = train(case, alone)
        model = shard(Model(dtype))
        optimizer = train(case, model, range(0))
        optimizer.load_state_dict(saved.state_dict())
        set_parameters(model, everything(alone, saved))
        walk(model, optimizer, range(STEPS, STEPS + 1))
        walk(alone, saved, range(STEPS, STEPS + 1))
        assert_equal(everything(model, optimizer), everything(alone, saved))
        back = Model(dtype)
        whole = train(case, back, range(0))
        whole.load_state_dict(optimizer.state_dict())
        set_parameters(back, everything(alone, saved))
        assert_equal(everything(back, whole), everything(alone, saved))
        walk(back, whole, range(STEPS + 1, STEPS + 2))
    wrong = saved.state_dict()
    wrong["state"][1]["momentum_buffer"] = wrong["state"][1]["momentum_buffer"][:7]
    with pytest.raises(ValueError, match="momentum_buffer has shape"):
        optimizer.load_state_dict(wrong)


def convert(rank: int, folder: Path) -> None:
    """Whole checkpoints of one format into another: narrow ones, but no codes."""
    expected = torch.load(folder / "found.pt")
    for saved, wanted in (("float32", "8bit"), ("8bit", "float32"), ("8bit", "bfloat16")):
        model = shard(Model(torch.float32))
        with pytest.raises(ValueError, match=f"was saved with state_format='{saved}'"):
            fill_whole(model, train(wanted, model, range(0)), folder, saved, rank)
    model = shard(Model(torch.float32))
    optimizer = train("bfloat16", model, range(0))
    fill_whole(model, optimizer, folder, "compact", rank)
    found = everything(model, optimizer)
    for name, value in expected["compact"].items():
        if "exp_avg_sq" in name:
            assert torch.equal(found[name], value.to(torch.bfloat16))
        elif "exp_avg" in name:
            assert torch.equal(found[name], value)


FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def fill_sharded(
    model: Model, optimizer: torch.optim.Optimizer, folder: Path, case: str, rank: int
) -> None:
    state = get_optimizer_state_dict(model, optimizer)
    dcp.load({"state": state}, checkpoint_id=folder / case, no_dist=not dist.is_initialized())
    set_optimizer_state_dict(model, optimizer, state)


def fill_whole(
    model: Model, optimizer: torch.optim.Optimizer, folder: Path, case: str, rank: int
) -> None:
    state = torch.load(folder / f"{case}.pt") if rank == 0 else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=dist.is_initialized())
    set_optimizer_state_dict(model, optimizer, state, options=options)


@torch.no_grad()
def set_parameters(model: Model, values: dict[str, Tensor]) -> None:
    for name, param in model.named_parameters():
        value = values[name]
        if isinstance(param, DTensor):
            value = distribute_tensor(value, param.device_mesh, param.placements)
        param.copy_(value)


# -- what is asked of them ------------------------------------------------------------------------


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)


def launch(task: Callable[[int, Path], None], world: int, folder: Path) -> None:
    """Run a task in several processes, until one fails or all are done."""
    told = [folder / f"{task.__name__}-{world}-{rank}.log" for rank in range(world)]
    processes = []
    for rank, log in enumerate(told):
        with log.open("w") as file:
            command = [sys.executable, __file__, task.__name__, str(rank), str(world), str(folder)]
            processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
    codes: list[int | None] = [None]
    deadline = time.monotonic() + 600
    while None in codes and not any(codes) and time.monotonic() < deadline:
        time.sleep(0.1)
        codes = [process.poll() for process in processes]
    for process in processes:  # the others would wait for one that has failed
        process.kill()
        process.wait()
    assert codes == [0] * world, "\n".join(log.read_text()[-5000:] for log in told)


@pytest.mark.parametrize("world", [2, 3])
def test_a_sharded_run_is_the_whole_one(world, tmp_path):
    launch(compare, world, tmp_path)
    found = torch.load(tmp_path / "found.pt")
    for case, (_, _, dtype) in CASES.items():
        model = Model(dtype)
        optimizer = train(case, model)
        assert_equal(found[case], everything(model, optimizer) | multipliers(model, optimizer))


def test_it_trains_with_the_gradients_of_fsdp(tmp_path):
    launch(learn, 3, tmp_path)
    found = torch.load(tmp_path / "found.pt")
    model = Model(torch.float32)
    optimizer = SageAdamW(model.parameters(), lr=0.01, state_format="compact")
    for inputs, targets in batches():
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    for name, param in model.named_parameters():
        torch.testing.assert_close(found[name], param.detach(), rtol=1e-3, atol=1e-4)


def test_what_no_step_can_be_taken_with_is_an_error(tmp_path):
    launch(refuse, 2, tmp_path)


def test_checkpoints_of_three_processes_go_on_with_two_and_with_one(tmp_path):
    launch(save, 3, tmp_path)
    launch(load, 2, tmp_path)
    launch(convert, 2, tmp_path)
    load(0, tmp_path)


def test_a_whole_state_is_shared_out(tmp_path):
    launch(plain, 2, tmp_path)


if __name__ == "__main__":
    name, rank, world, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{name}-{world}", rank=rank, world_size=world
    )
    tasks = {task.__name__: task for task in (compare, learn, refuse, save, load, plain, convert)}
    tasks[name](rank, folder)
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # see tests/integrations/leave.py
