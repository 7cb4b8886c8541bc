"""SAGE on optimizers that have none built in: Muon for matrices, Lion of another library, and more.

    python examples/wrapped_optimizer.py

`Sage(base)` lets the base step, then scales what it did. It shares groups and state with the base,
so schedulers and checkpoints see one optimizer. Its price is three copies of the weights in
passing: they as they were, Ī and the multipliers.
"""

import torch
from torch import nn

from sagelr import Sage


def make(name: str, model: nn.Module) -> torch.optim.Optimizer:
    params = list(model.parameters())
    match name:
        case "RMSprop":
            return torch.optim.RMSprop(params, lr=1e-3)
        case "Adafactor":
            return torch.optim.Adafactor(params, lr=1e-2)
        case "Muon":  # for matrices alone, as torch's own asks for
            return torch.optim.Muon([p for p in params if p.ndim == 2], lr=2e-2)
        case "Lion":
            from lion_pytorch import Lion

            return Lion(params, lr=3e-4)
        case "AdamW8bit":
            from torchao.optim import AdamW8bit

            return AdamW8bit(params, lr=1e-3)
    raise ValueError(name)


def main(names: tuple[str, ...] = ("RMSprop", "Adafactor", "Muon", "Lion", "AdamW8bit")) -> dict:
    found = {}
    for name in names:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        try:
            optimizer = Sage(make(name, model), beta0=0.75)
        except ImportError as missing:
            print(f"{name}: {missing.name} is not installed")
            continue
        target = nn.Linear(64, 64).requires_grad_(False)
        for _ in range(150):
            inputs = torch.randn(64, 64)
            loss = (model(inputs) - target(inputs)).square().mean()
            found.setdefault(name, [loss.item()])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[name].append(loss.item())
        print(f"Sage({name}): loss {found[name][0]:.3f} → {found[name][1]:.3f}")
    return found


if __name__ == "__main__":
    main()
