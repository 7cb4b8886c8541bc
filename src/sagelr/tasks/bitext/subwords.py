"""Joint subwords: one byte-pair encoding for both languages, trained on the training text.

"Neural Machine Translation of Rare Words with Subword Units", Sennrich et al., ACL 2016. Over
bytes, so that every text can be written and read back, and there is no unknown token.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sagelr.cache import kept
from sagelr.tasks.bitext.corpus import Pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD, END = "<pad>", "</s>"
AT_ONCE = 8192  # sentences
SMALLEST = 256 + 2  # every byte, and the two special tokens


def trained(pairs: Pairs, size: int, *, lowercase: bool, words: bool) -> PreTrainedTokenizerBase:
    """A tokenizer trained on both sides of a text, or the one trained on the same before.

    Args:
        pairs: what is trained on, and nothing that is tested on.
        size: tokens in the vocabulary, at most.
        lowercase: whether text is put into lower case first.
        words: whether the text is in words already, parted by spaces; else punctuation is parted
            from words here.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    digest = hashlib.sha256(repr((tokenizers.__version__, size, lowercase, words)).encode())
    for text in itertools.chain(pairs.source, pairs.target):
        digest.update(text.encode() + b"\n")

    def make(path: Path) -> None:
        tokenizer = _untrained(lowercase=lowercase, words=words)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[PAD, END],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(itertools.chain(pairs.source, pairs.target), trainer)
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
        )
        tokenizer.save(str(path))

    path = kept(f"subwords-{digest.hexdigest()[:20]}.json", make)
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        pad_token=PAD,
        eos_token=END,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # a text that holds "</s>" does not end there
    )


def _untrained(*, lowercase: bool, words: bool) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer: Any = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    # Each word carries the space before it, the first one too: it is the same at every place.
    if words:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(" "), "merged_with_next"),
                pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return tokenizer


class Encoded(Dataset[dict[str, Any]]):
    """A split as tokens.

    Attributes:
        lengths: tokens of the longer side of each row, the end sign among them.
        long: how many pairs were longer than allowed.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, pairs: Pairs, longest: int, *, cut: bool
    ) -> None:
        """Encode.

        Args:
            tokenizer: of both sides.
            pairs: the text.
            longest: tokens allowed on a side, the end sign among them.
            cut: whether longer sentences are cut; else their pair is left out.
        """
        self._source, self._target = (
            _Side(tokenizer, each) for each in (pairs.source, pairs.target)
        )
        self._text, self._longest = pairs.target, longest
        lengths = torch.maximum(self._source.lengths, self._target.lengths)
        fits = lengths <= longest
        self.long = int((~fits).sum())
        self._rows = torch.arange(len(pairs)) if cut else fits.nonzero().flatten()
        self.lengths: list[int] = lengths[self._rows].clamp(max=longest).tolist()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Tokens of both sides, and the text of the target as it was read."""
        row = int(self._rows[index])
        return {
            "input_ids": self._source.row(row, self._longest),
            "labels": self._target.row(row, self._longest),
            "text": self._text[row],
        }


class _Side:
    """Sentences end to end in one tensor: lists for millions of them would take ten times as much.

    Attributes:
        lengths: (rows,), tokens of each row.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
        flat: list[Tensor] = []
        lengths: list[int] = []
        for start in range(0, len(texts), AT_ONCE):
            encoded = tokenizer(list(texts[start : start + AT_ONCE]), return_attention_mask=False)
            rows: Any = encoded["input_ids"]
            lengths += map(len, rows)
            flat.append(torch.tensor(list(itertools.chain(*rows)), dtype=torch.int32))
        self.lengths = torch.tensor(lengths)
        self._flat = torch.cat(flat)
        self._ends = self.lengths.cumsum(0)

    def row(self, row: int, longest: int) -> Tensor:
        """Tokens of a row; of a longer one the first and the end sign."""
        end, length = int(self._ends[row]), int(self.lengths[row])
        ids = self._flat[end - length : end]
        return ids if length <= longest else torch.cat([ids[: longest - 1], ids[-1:]])
