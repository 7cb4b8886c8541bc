"""SAGE in the Hugging Face Trainer: one argument, and a callback to watch it.

python examples/hf_trainer.py
"""

import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from sagelr.integrations.hf import SageProbeCallback, sage_optimizer


def make_trainer(folder: str, epochs: int = 4) -> Trainer:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16, num_labels=2, initializer_range=0.1,
    )  # fmt: skip
    model = BertForSequenceClassification(config)  # from_pretrained(...) in earnest
    tokens = torch.randint(5, 100, (1024, 6))
    rows = Dataset.from_dict({"input_ids": tokens.tolist(), "labels": (tokens[:, 0] < 50).long()})
    args = TrainingArguments(
        output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=32,
        learning_rate=3e-3, weight_decay=0.01, lr_scheduler_type="linear", warmup_steps=0.1,
        logging_steps=16, save_strategy="epoch", report_to="none", use_cpu=True, disable_tqdm=True,
        seed=0,
    )  # fmt: skip
    trainer = Trainer(
        model,
        args,
        train_dataset=rows,
        optimizer_cls_and_kwargs=sage_optimizer(args, model, beta0=0.75),
    )
    # Every 32 steps, since this is short: mean sensitivity and multipliers, layer by layer.
    trainer.add_callback(SageProbeCallback(file=Path(folder) / "probe.jsonl", every=32))
    return trainer


def main() -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        lines = (Path(folder) / "probe.jsonl").read_text().splitlines()
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}; last look: {json.loads(lines[-1])}")
    return losses


if __name__ == "__main__":
    main()
