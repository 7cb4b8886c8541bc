"""Accelerate: prepare, accumulate, DDP, FSDP2, save_state and load_state."""

import re

import pytest
import torch
from torch import nn

from sagelr import SageAdamW, param_groups

from .conftest import EXAMPLES, LEAVE

LIBRARY = "accelerate"


def test_the_example_learns(example):
    assert example("accelerate_loop").main() < 0.69


def test_save_state_and_load_state_go_on_bit_for_bit(tmp_path):
    from accelerate import Accelerator

    def make():
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)  # with dropout
        model = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        groups = param_groups(model)
        return accelerator, *accelerator.prepare(
            model, SageAdamW(groups, lr=1e-2, state_format="compact")
        )

    def train(accelerator, model, optimizer, steps):
        for step in steps:
            inputs = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(step))
            accelerator.backward(model(inputs).square().mean())
            optimizer.step()
            optimizer.zero_grad()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    first = make()
    train(*first, range(5))
    first[0].save_state(str(tmp_path))
    whole = train(*first, range(5, 10))
    second = make()
    second[0].load_state(str(tmp_path))
    assert torch.equal(train(*second, range(5, 10)), whole)


@pytest.mark.processes
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_the_example_runs_on_two_processes(how, launch):
    if how == "fsdp2" and torch.cuda.device_count() < 2:
        pytest.skip("Accelerate shards on accelerators alone; FSDP2 on CPUs is in test_fsdp2.py")
    options = {
        "ddp": ("--cpu",),
        "fsdp2": (
            "--use_fsdp",
            "--fsdp_version=2",
            "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP",
            "--fsdp_transformer_layer_cls_to_wrap=TransformerEncoderLayer",
        ),
    }
    shown = launch(
        "accelerate.commands.launch",
        "--num_processes=2",
        "--num_machines=1",
        "--mixed_precision=no",
        "--main_process_port=0",
        *options[how],
        LEAVE,
        str(EXAMPLES / "accelerate_loop.py"),
    )
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)", shown)]
    assert len(losses) == 3
    assert losses[-1] < 0.69
