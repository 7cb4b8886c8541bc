"""Texts as numbers of a vocabulary: encoded once, padded batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sagelr.tasks.language.corpus import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 4096  # texts


class Tokens(Dataset[dict[str, Tensor]]):
    """A split as tokens, end to end in one tensor for each input of the model.

    Attributes:
        labels: (rows,), int64 for classes, float32 for scores.
        lengths: tokens of each row.
        full: rows of the greatest length allowed; what is longer was cut.
        highest: of the numbers.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, rows: Rows, labels: Tensor, longest: int
    ) -> None:
        """Encode.

        Args:
            tokenizer: of the model.
            rows: the texts.
            labels: (rows,).
            longest: tokens kept of a row, special ones among them.
        """
        names = [name for name in ("input_ids", "token_type_ids") if _takes(tokenizer, name)]
        flat: dict[str, list[Tensor]] = {name: [] for name in names}
        self.lengths: list[int] = []
        self.full = 0
        for start in range(0, len(rows), AT_ONCE):
            span = slice(start, start + AT_ONCE)
            encoded = tokenizer(
                list(rows.texts[span]),
                None if rows.pairs is None else list(rows.pairs[span]),
                truncation=True,
                max_length=longest,
                return_attention_mask=False,
            )
            lengths = [len(ids) for ids in encoded["input_ids"]]  # type: ignore[union-attr]
            self.lengths += lengths
            self.full += sum(length == longest for length in lengths)
            for name in names:
                joined = [token for ids in encoded[name] for token in ids]  # type: ignore[union-attr]
                flat[name].append(torch.tensor(joined, dtype=torch.int32))
        self._flat = {name: torch.cat(parts) for name, parts in flat.items()}
        self.highest = max((int(part.max()) for part in flat["input_ids"] if len(part)), default=0)
        self._ends = torch.tensor(self.lengths).cumsum(0).tolist()
        self.labels = labels

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        end = self._ends[index]
        span = slice(end - self.lengths[index], end)
        row = {name: tensor[span] for name, tensor in self._flat.items()}
        return row | {"labels": self.labels[index]}


def _takes(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    return name in tokenizer.model_input_names


def pad(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack rows to a batch, each as long as its longest one.

    Returns:
        input_ids, attention_mask and, where the model takes them, token_type_ids, each int64 of
        shape (rows, longest); labels (rows,).
    """
    lengths = [len(row["input_ids"]) for row in rows]
    shape = (len(rows), max(lengths))
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    batch = {
        name: torch.full(shape, fill[name], dtype=torch.int64)
        for name in rows[0]
        if name != "labels"
    }
    batch["attention_mask"] = torch.zeros(shape, dtype=torch.int64)
    left = tokenizer.padding_side == "left"
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        span = slice(shape[1] - length, None) if left else slice(length)
        batch["attention_mask"][place, span] = 1
        for name, tensor in row.items():
            if name != "labels":
                batch[name][place, span] = tensor
    batch["labels"] = torch.stack([row["labels"] for row in rows])
    return batch
