"""SAGE in one's own loop: a small Transformer learns to sort, in half a minute on one core.

    python examples/plain_pytorch.py

What differs from a loop with AdamW is two lines: the groups, and the optimizer.
"""

import torch
from torch import nn

from sagelr import SageAdamW, param_groups

STEPS, BATCH, LENGTH, SYMBOLS = 300, 64, 8, 10


class Sorter(nn.Module):
    """Reads digits, writes them in order."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, 48)
        self.position = nn.Parameter(0.1 * torch.randn(LENGTH, 48))
        layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(48, SYMBOLS)

    def forward(self, digits: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(digits) + self.position))


def main(steps: int = STEPS) -> float:
    torch.manual_seed(0)
    model = Sorter()
    # SAGE on attention and feed-forward, no decay on biases and norms.
    optimizer = SageAdamW(param_groups(model, weight_decay=0.01), lr=3e-3, beta0=0.75)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-3, total_steps=steps, cycle_momentum=False
    )
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.98)
    )
    accuracy = 0.0
    for step in range(1, steps + 1):
        digits = torch.randint(SYMBOLS, (BATCH, LENGTH))
        logits = model(digits)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), digits.sort(1).values.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if step % 100 == 0:
            r = optimizer.multiplier(model.encoder.layers[0].linear1.weight)
            print(f"step {step}: loss {loss:.3f}, multiplier {r.mean():.2f} on average")
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
    with torch.no_grad():
        digits = torch.randint(SYMBOLS, (1000, LENGTH))
        accuracy = (average(digits).argmax(-1) == digits.sort(1).values).float().mean().item()
    print(f"{accuracy:.1%} of the digits in their place")
    return accuracy


if __name__ == "__main__":
    main()
