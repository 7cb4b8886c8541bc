"""SAGE under Accelerate: one process, DDP or FSDP2, by how the script is started.

    python examples/accelerate_loop.py
    accelerate launch --num_processes 2 examples/accelerate_loop.py
    accelerate launch --num_processes 2 --use_fsdp --fsdp_version 2 examples/accelerate_loop.py

The optimizer's state is made at the first step, so that it is sharded as the parameters are.
"""

import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sagelr import SageAdamW, param_groups


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean(1))


def main(epochs: int = 3) -> float:
    set_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    inputs = torch.randn(512, 4, 32)
    labels = (inputs.mean(1)[:, :4].sum(-1) > 0).long()
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=32, shuffle=True)
    model = Net()
    optimizer = SageAdamW(param_groups(model), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader) // 2)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    loss = torch.tensor(0.0)
    for epoch in range(epochs):
        for batch, target in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(batch), target)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    [folder] = broadcast_object_list([tempfile.mkdtemp()])  # one for all processes
    accelerator.save_state(folder)
    accelerator.wait_for_everyone()
    accelerator.load_state(folder)
    accelerator.end_training()
    return loss.item()


if __name__ == "__main__":
    main()
