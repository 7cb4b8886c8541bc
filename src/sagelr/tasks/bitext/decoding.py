"""Beam search over a whole split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A translation ends at this many tokens, whether it is at an end or not.
TIMES_SOURCE, AND = 2, 10


def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Tensor],
    *,
    batch_size: int,
) -> list[str]:
    """Translate sentences, the longest together first.

    Beam search has no chance in it: the same model gives the same translations. Its width and
    length penalty are those of the model's generation_config.

    Args:
        model: as trained, on its device.
        tokenizer: that the model was trained with.
        sources: tokens of each sentence, the end sign among them.
        batch_size: sentences at a time.
    """
    lengths = torch.tensor([len(ids) for ids in sources])
    order = lengths.argsort(descending=True, stable=True).tolist()
    texts = [""] * len(sources)
    pad: Any = tokenizer.pad_token_id
    room = model.config.max_position_embeddings - 1
    training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids = pad_sequence([sources[row].long() for row in rows], True, pad).to(model.device)
        found: Any = model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids,
            attention_mask=ids.ne(pad).long(),
            max_new_tokens=min(TIMES_SOURCE * ids.shape[1] + AND, room),
        )
        decoded = tokenizer.batch_decode(found, skip_special_tokens=True)
        for row, text in zip(rows, decoded, strict=True):
            texts[row] = text.strip()
    model.train(training)
    return texts
