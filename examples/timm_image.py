"""SAGE on a timm model. Needs timm, and torchvision under it.

    python examples/timm_image.py

timm makes optimizers by name from a registry, which other packages can add to.
"""

import torch
from timm import create_model
from timm.optim import OptimInfo, create_optimizer_v2
from timm.optim._optim_factory import default_registry

from sagelr import SageAdamW, param_groups


def main(steps: int = 20) -> tuple[float, float]:
    torch.manual_seed(0)
    default_registry.register(
        OptimInfo(
            name="sageadamw", opt_class=SageAdamW, description="AdamW with SAGE", has_betas=True
        )
    )
    model = create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=10, depth=2)
    # By name SAGE is on everything; param_groups puts it where the authors do.
    create_optimizer_v2(model, opt="sageadamw", lr=1e-3, weight_decay=0.01)
    optimizer = SageAdamW(param_groups(model, weight_decay=0.01), lr=1e-3)
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
