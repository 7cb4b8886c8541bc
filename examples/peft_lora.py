"""SAGE on LoRA adapters: their B matrices begin at exactly zero, and train.

    python examples/peft_lora.py

A parameter that is zero has sensitivity |θ·g| = 0. With ε in the denominator of the multiplier
alone, as in the code that the authors released, such a parameter has multiplier 0 for ever. sagelr
has ε in the numerator too: it starts with multiplier 1.
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from sagelr import SageAdamW, param_groups


def main(steps: int = 200, **lora: object) -> dict[str, float]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16, num_labels=2, initializer_range=0.1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    base = BertForSequenceClassification(config)  # from_pretrained(...) in earnest
    adapters = LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=32, target_modules="all-linear", **lora
    )
    model = get_peft_model(base, adapters)
    # Frozen weights stay out; adapters count as the module they adapt.
    optimizer = SageAdamW(param_groups(model, weight_decay=0.0), lr=5e-3)
    first = last = 0.0
    for step in range(1, steps + 1):
        tokens = torch.randint(5, 100, (64, 6))
        labels = (tokens[:, 0] < 50).long()
        loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        if step in (1, steps):
            for name, param in model.named_parameters():
                if "layer.0.attention.self.query.lora" in name:
                    r = optimizer.multiplier(param)
                    print(f"step {step}: multiplier {r.mean():.2f}  {name.split('layer.0.')[-1]}")
        optimizer.step()
        first, last = (loss.item(), loss.item()) if step == 1 else (first, loss.item())
    moved = {n: p.abs().max().item() for n, p in model.named_parameters() if "lora_B" in n}
    print(f"loss {first:.3f} → {last:.3f}; every B has moved: {min(moved.values()) > 0}")
    return {"first": first, "last": last, "least_B": min(moved.values())}


if __name__ == "__main__":
    main()
