"""SAGE under DeepSpeed, ZeRO stage 1 or 2.

    deepspeed --num_gpus 2 examples/deepspeed_zero.py
    torchrun --nproc_per_node 2 examples/deepspeed_zero.py      (on CPUs)

ZeRO 1 and 2 give the optimizer flat pieces of each parameter group. Names and dimensions are gone
there, so that groups are made before; and DeepSpeed has to be told that it does not know the
optimizer: "zero_allow_untested_optimizer". Of the state formats take "float32", "compact" or
"bfloat16": 8-bit codes need the rows of a matrix, and flat pieces keep fp32 in their place.
"""

import os

import deepspeed
import torch
from torch import nn

from sagelr import SageAdamW, param_groups

CONFIG = {
    "train_micro_batch_size_per_gpu": 16,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": int(os.environ.get("ZERO_STAGE", "2"))},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "bf16": {"enabled": True},
}


def main(steps: int = 60) -> tuple[float, float]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
    model = nn.Sequential(encoder, nn.Linear(32, 2))
    optimizer = SageAdamW(param_groups(model), lr=3e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        inputs = torch.randn(16, 4, 32, device=engine.device)
        labels = (inputs.mean(1)[:, :4].sum(-1) > 0).long()
        logits = engine(inputs.bfloat16()).mean(1).float()
        loss = nn.functional.cross_entropy(logits, labels)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    if engine.global_rank == 0:
        print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
    torch.distributed.destroy_process_group()
