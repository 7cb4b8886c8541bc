"""A vocabulary trained on the training text, and a small Transformer to go with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sagelr.cache import kept

if TYPE_CHECKING:
    from transformers import BertConfig, PreTrainedTokenizerBase

SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
BYTES = 256  # each is in every vocabulary, so there is no unknown token


class ScratchOptions(BaseModel):
    """`[model.from_scratch]`: the sizes of a Transformer encoder with BERT's layers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocabulary: int = Field(8000, ge=BYTES + len(SPECIAL), description="pieces, at most")
    hidden: int = Field(128, ge=4, description="width")
    layers: int = Field(2, ge=1, description="of the encoder")
    heads: int = Field(4, ge=1, description="of attention; they divide hidden")
    feed_forward: int = Field(512, ge=4, description="width within feed-forward")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of the activations")
    initial_scale: float = Field(0.02, gt=0, description="standard deviation of the first weights")

    @model_validator(mode="after")
    def _divides(self) -> ScratchOptions:
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} is not a multiple of heads = {self.heads}")
        return self


def trained_tokenizer(texts: Iterable[str], size: int, longest: int) -> PreTrainedTokenizerBase:
    """A lower-casing byte-pair encoding trained on texts, or the one trained on them before.

    Over bytes, and not WordPiece: that trainer numbers its pieces in the order of a hash map, and
    gives another vocabulary every time.

    Args:
        texts: what is trained on, and nothing that is tested on.
        size: pieces in the vocabulary, at most.
        longest: tokens that the model takes.
    """
    import tokenizers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    texts = list(texts)
    digest = hashlib.sha256(repr((tokenizers.__version__, size)).encode())
    for text in texts:
        digest.update(text.encode() + b"\0")

    def make(path: Path) -> None:
        tokenizer: Any = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIAL.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        cls, sep = SPECIAL["cls_token"], SPECIAL["sep_token"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
        )
        tokenizer.save(str(path))

    path = kept(f"vocabulary-{digest.hexdigest()[:20]}.json", make)
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
        **SPECIAL,
    )


def scratch_config(options: ScratchOptions, tokenizer: Any, longest: int) -> BertConfig:
    """The configuration of a Transformer of the given sizes."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.feed_forward,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        initializer_range=options.initial_scale,
        max_position_embeddings=longest,
        pad_token_id=tokenizer.pad_token_id,
    )
