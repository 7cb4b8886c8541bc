"""A small Transformer learns as well in every format as in fp32."""

import statistics
from functools import cache

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from sagelr import SageAdamax, SageAdamW

SEEDS = 5
EPOCHS = 6
LR = {SageAdamW: 4e-3, SageAdamax: 8e-3}


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:1024]
    return torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]


class Net(nn.Module):
    """Rows of an image as a sequence of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 64)
        self.position = nn.Parameter(torch.randn(8, 64) * 0.02)
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(images.view(-1, 8, 8)) + self.position).mean(1))


@cache
def final_losses(cls: type, state_format: str) -> list[float]:
    """Of each seed, over all training images after the last epoch."""
    images, labels = digits()
    found = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        model = Net()
        optimizer = cls(
            model.parameters(), lr=LR[cls], state_format=state_format, rounding_seed=seed
        )
        steps = EPOCHS * len(labels) // 64
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(labels)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            found.append(nn.functional.cross_entropy(model(images), labels).item())
    return found


@pytest.mark.processes
@pytest.mark.parametrize(
    ("cls", "state_format"),
    [
        (SageAdamW, "compact"),
        (SageAdamW, "bfloat16"),
        (SageAdamW, "8bit"),
        (SageAdamax, "bfloat16"),
    ],
)
def test_the_final_loss_is_within_the_spread_of_the_fp32_seeds(cls, state_format):
    wide, low = final_losses(cls, "float32"), final_losses(cls, state_format)
    assert max(wide) < 0.6  # by chance it is 2.3
    deviation = statistics.stdev(wide)
    assert abs(statistics.mean(low) - statistics.mean(wide)) < deviation / 4
    for one, other in zip(low, wide, strict=True):  # the same start, the same batches
        assert abs(one - other) < deviation
