"""Optimizers of other libraries under `Sage`; torch's own are in tests/core/test_wrap.py."""

import pytest
import torch
from torch import nn

from sagelr import Sage

LIBRARY = "sagelr"


def test_the_example_learns_with_every_base(example):
    pytest.importorskip("lion_pytorch")
    pytest.importorskip("torchao")
    found = example("wrapped_optimizer").main()
    assert set(found) == {"RMSprop", "Adafactor", "Muon", "Lion", "AdamW8bit"}
    assert all(last < 0.8 * first for first, last in found.values())


@pytest.mark.parametrize("name", ["Lion", "AdamW8bit"])
def test_the_base_moves_and_the_multiplier_scales(name, example):
    pytest.importorskip({"Lion": "lion_pytorch", "AdamW8bit": "torchao"}[name])
    make = example("wrapped_optimizer").make
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(64, 128) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer, base = Sage(make(name, ours)), make(name, theirs)
    for _ in range(3):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.data.copy_(p.data)
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        multipliers = [optimizer.multiplier(p) for p in ours.parameters()]
        before = [p.detach().clone() for p in ours.parameters()]
        optimizer.step()
        base.step()
        decay = {group["lr"] * group["weight_decay"] for group in base.param_groups}.pop()
        for p, q, r, old in zip(
            ours.parameters(), theirs.parameters(), multipliers, before, strict=True
        ):
            start = old * (1 - decay)
            torch.testing.assert_close(p.detach(), start + r * (q.detach() - start))


def test_a_checkpoint_of_an_8bit_base_goes_on(example, tmp_path):
    pytest.importorskip("torchao")
    make = example("wrapped_optimizer").make

    def steps(model, optimizer, count):
        for step in range(count):
            inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = nn.Linear(64, 128)
    optimizer = Sage(make("AdamW8bit", model))
    steps(model, optimizer, 3)
    again = nn.Linear(64, 128)
    again.load_state_dict(model.state_dict())
    resumed = Sage(make("AdamW8bit", again))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    steps(model, optimizer, 3)
    steps(again, resumed, 3)
    torch.testing.assert_close(again.weight, model.weight)
