"""SAGE in TRL's SFTTrainer, on a tiny causal language model made on the spot.

python examples/trl_sft.py
"""

import tempfile

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from sagelr.integrations.hf import sage_optimizer

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main(steps: int = 60) -> list[float]:
    vocabulary = {
        word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", "plus", "is", *WORDS])
    }
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    sums = [(a, b) for a in range(10) for b in range(10 - a)]
    rows = [{"text": f"{WORDS[a]} plus {WORDS[b]} is {WORDS[a + b]}"} for a, b in sums]
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32,
        pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=16, learning_rate=5e-3,
            logging_steps=10, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
            disable_tqdm=True, seed=0, max_length=16,
        )  # fmt: skip
        trainer = SFTTrainer(
            model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            optimizer_cls_and_kwargs=sage_optimizer(args, model, weight_decay=0.01),
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.2f} → {losses[-1]:.2f}")
    return losses


if __name__ == "__main__":
    main()
