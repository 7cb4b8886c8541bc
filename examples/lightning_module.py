"""SAGE in Lightning: the optimizer is what configure_optimizers returns.

    python examples/lightning_module.py

With Lightning's command line, name the class in the configuration instead:

    optimizer:
      class_path: sagelr.SageAdamW
      init_args: {lr: 3.0e-3, beta0: 0.75}
"""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sagelr import SageAdamW, param_groups


class Classifier(lightning.LightningModule):
    def __init__(self, lr: float = 3e-3) -> None:
        super().__init__()
        self.lr = lr
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 2)
        self.losses: list[float] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.head(self.encoder(inputs).mean(1)), labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = SageAdamW(param_groups(self), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(epochs: int = 4) -> list[float]:
    lightning.seed_everything(0, verbose=False)
    inputs = torch.randn(512, 4, 32)
    labels = (inputs.mean(1)[:, :4].sum(-1) > 0).long()
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=32, shuffle=True)
    module = Classifier()
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(module, loader)
    print(f"loss {module.losses[0]:.3f} → {module.losses[-1]:.3f}")
    return module.losses


if __name__ == "__main__":
    main()
