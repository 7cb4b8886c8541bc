"""From the authors' released script, or from AdamW in the middle of a training, to sagelr.

python examples/moving_over.py
"""

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertConfig, BertForSequenceClassification

from sagelr import SageAdamax, SageAdamW, param_groups
from sagelr.integrations.released import released_groups, released_options, released_schedule


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, schedule=None) -> float:
    loss = torch.tensor(0.0)
    for step in range(steps):
        torch.manual_seed(step)
        tokens = torch.randint(5, 100, (32, 8))
        loss = model(input_ids=tokens, labels=(tokens[:, 0] < 50).long()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return loss.item()


def main() -> None:
    # 1. The script's MNLI settings: --optimizer usadamax --learning_rate 2e-4 --beta3 0.85.
    model, steps = bert(), 40
    optimizer = SageAdamax(
        released_groups(model), **released_options("usadamax", lr=2e-4, beta3=0.85, eps=1e-6)
    )
    factor = released_schedule("usadamax", warmup=0.1, t_total=steps)
    # load_released(optimizer, "checkpoint/model_1.pt") goes on where the script stopped.
    print(f"as the script: loss {train(model, optimizer, steps, LambdaLR(optimizer, factor)):.3f}")

    # 2. From torch's AdamW: its moments are taken, the smoothed sensitivity starts afresh. The
    # groups have to hold the same parameters in the same order.
    model = bert()
    groups = [{k: v for k, v in g.items() if k != "sage"} for g in param_groups(model)]
    adamw = torch.optim.AdamW(groups, lr=1e-3)
    print(f"AdamW: loss {train(model, adamw, 20):.3f}")
    sage = SageAdamW(param_groups(model), lr=2e-3)
    sage.load_state_dict(adamw.state_dict())
    for group in sage.param_groups:
        group["lr"] = 2e-3  # the file brought AdamW's; SAGE's is tuned anew
    print(f"on with SAGE: loss {train(model, sage, 20):.3f}")


if __name__ == "__main__":
    main()
