"""SAGE on a torchvision model. Needs torchvision.

python examples/torchvision_image.py
"""

import torch
from torchvision.models import VisionTransformer

from sagelr import SageSGD, param_groups


def main(steps: int = 20) -> tuple[float, float]:
    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128,
        num_classes=10,
    )  # fmt: skip
    optimizer = SageSGD(param_groups(model, weight_decay=0.0), lr=0.1, momentum=0.9)
    images, labels = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
