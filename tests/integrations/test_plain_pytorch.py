"""A loop of one's own. What the optimizers keep of torch's contract is in tests/core."""

import math

import torch
from torch import nn

from sagelr import SageAdamW, param_groups

LIBRARY = "torch"


def test_the_example_learns(example):
    assert example("plain_pytorch").main() > 0.95


def test_a_compiled_model_has_the_same_groups_and_trains():
    """torch.compile puts a prefix before every name, which the scope must see through."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
    compiled = torch.compile(model, backend="eager")
    plain, through = param_groups(model), param_groups(compiled)
    assert [(g["sage"], len(g["params"])) for g in plain] == [
        (g["sage"], len(g["params"])) for g in through
    ]
    optimizer = SageAdamW(through, lr=1e-2)
    inputs, losses = torch.randn(8, 4, 16), []
    for _ in range(20):
        loss = (compiled(inputs) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_accumulated_gradients_are_one_batch():
    """Sensitivity is |θ·g| of the accumulated gradient, so that micro-batches change nothing."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(32, 6).double(), torch.randn(32, 2).double()
    found = []
    for pieces in (1, 4):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        optimizer = SageAdamW(model.parameters(), lr=1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            for x, y in zip(inputs.chunk(pieces), targets.chunk(pieces), strict=True):
                ((model(x) - y).square().mean() / pieces).backward()
            optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)
    assert math.isfinite(found[0].sum().item())
