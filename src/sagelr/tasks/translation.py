"""Translation from scratch: a Transformer, subwords of both languages, BLEU of beam search.

Data: any pair of text files of which line N in one is the translation of line N in the other; a
folder of such files; a data set of the hub; the benchmarks Multi30k, IWSLT'14 and WMT'16; and
numbers in words, which need no data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sagelr.errors import UsageError
from sagelr.tasks import Metric, Split, Task
from sagelr.tasks.bitext import corpus, decoding, number_words, scoring, subwords
from sagelr.tasks.bitext.corpus import Corpus, Pairs
from sagelr.tasks.bitext.model import transformer
from sagelr.tasks.bitext.options import NUMBER_WORDS, TransformerOptions, TranslationOptions
from sagelr.tasks.splits import MOST, arrange

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedModel

IGNORED = -100  # a label that no loss counts
ROLES = ("train", "validation", "test")


class Translation(Task):
    """The task of the `translation` recipe, and of every recipe named for two languages."""

    DataOptions: ClassVar[type[BaseModel]] = TranslationOptions
    ModelOptions: ClassVar[type[BaseModel]] = TransformerOptions
    metrics: ClassVar[Mapping[str, Metric]] = scoring.METRICS

    def __init__(self, data: TranslationOptions, model: TransformerOptions) -> None:
        self._data, self._model = data, model
        self._corpus = found = _load(data)
        train = found.splits["train"]
        self._parts = arrange(
            {role: [0] * len(pairs) for role, pairs in found.splits.items()},
            validation=data.validation,
            test=data.test or min(round(len(train) / 10), MOST),
            seed=data.split_seed,
            limit=data.limit,
            # What a model sees: sentences that differ in case alone are one.
            groups=[text.lower() for text in train.source] if data.lowercase else train.source,
            as_named=data.validation_source is not None,
        )
        self._pairs = {
            role: found.splits[part.source].pick(part.rows) for role, part in self._parts.items()
        }
        self.tokenizer = subwords.trained(
            self._pairs["train"],
            data.vocabulary,
            lowercase=data.lowercase,
            words=data.bleu_words == "none",
        )
        self._encoded = {
            role: subwords.Encoded(self.tokenizer, pairs, data.max_length, cut=role != "train")
            for role, pairs in self._pairs.items()
        }
        self.train, self.validation, self.test = (self._encoded[role] for role in ROLES)
        if not len(self.train):
            raise UsageError(
                f"No training pair fits into task.max_length = {data.max_length} tokens; the "
                "shortest are longer. Set it higher."
            )
        self._scorer = scoring.Scorer(data.bleu_words, lowercase=data.lowercase)
        self.given = list(self._scorer.describe())

    # -- batches ------------------------------------------------------------------------------

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch as wide as its longest sentence on each side.

        Returns:
            input_ids and attention_mask (rows, source tokens); labels and decoder_input_ids (rows,
            target tokens): the decoder reads the end sign, then the target without its last token.
        """
        pad: Any = self.tokenizer.pad_token_id
        source = pad_sequence([row["input_ids"].long() for row in rows], True, pad)
        target = pad_sequence([row["labels"].long() for row in rows], True, pad)
        start = torch.full_like(target[:, :1], self.tokenizer.eos_token_id)  # type: ignore[arg-type]
        return {
            "input_ids": source,
            "attention_mask": source.ne(pad).long(),
            "decoder_input_ids": torch.cat([start, target[:, :-1]], dim=1),
            "labels": target.masked_fill(target.eq(pad), IGNORED),
        }

    def train_lengths(self) -> list[int]:
        """Tokens of the longer side of each training pair, which is what fairseq counts."""
        return self._encoded["train"].lengths

    # -- model --------------------------------------------------------------------------------

    def model(self, seed: int) -> PreTrainedModel:
        """A Transformer with its first weights drawn from the seed alone."""
        data = self._data
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return transformer(
                self._model, self.tokenizer, beam=data.beam, length_penalty=data.length_penalty
            )

    def save(self, folder: Path) -> None:
        """Save the tokenizer beside the weights: AutoTokenizer loads it."""
        self.tokenizer.save_pretrained(folder)

    # -- scores -------------------------------------------------------------------------------

    def keep_logits(self, logits: Any, labels: Any) -> Tensor:
        """The likeliest token of each place."""
        return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)

    def scores(self, prediction: EvalPrediction) -> dict[str, float]:
        """The share of reference tokens that are the likeliest one after those before them."""
        labels: Any = prediction.label_ids
        counted = labels != IGNORED
        right = (prediction.predictions == labels) & counted
        return {"token_accuracy": float(right.sum() / counted.sum())}

    def generation_scores(
        self, model: PreTrainedModel, dataset: Split, *, batch_size: int
    ) -> dict[str, float]:
        """BLEU, chrF and exact matches of the translations that beam search finds.

        Args:
            model: as trained, on its device.
            dataset: the validation or the test split.
            batch_size: sentences decoded at a time.
        """
        rows = [dataset[index] for index in range(len(dataset))]
        sources = [row["input_ids"] for row in rows]
        found = decoding.translate(model, self.tokenizer, sources, batch_size=batch_size)
        return self._scorer(found, [row["text"] for row in rows])

    # -- words --------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What the data are, and what the scores are."""
        return {
            "name": self._corpus.name,
            "source": self._corpus.source,
            "loader": self._corpus.loader,
            "languages": list(self._corpus.languages),
            "rows": {role: len(self._encoded[role]) for role in ROLES},
            "splits": {role: part.origin for role, part in self._parts.items()},
            "vocabulary": len(self.tokenizer),
            "lowercase": self._data.lowercase,
            "metrics": self._scorer.describe(),
            "decoding": f"beam search, width {self._data.beam}, length penalty "
            f"{self._data.length_penalty:g}",
            "sha256": _sha256(self._pairs.values()),
        }

    def notices(self) -> list[str]:
        """The loader, the splits, what was left out, and how BLEU counts."""
        rows = "; ".join(
            f"{role} {len(self._pairs[role]):,} pairs ({part.origin})"
            for role, part in self._parts.items()
        )
        lines = [f"Data by {self._corpus.loader}.", *self._corpus.notices, f"Splits: {rows}."]
        limit = self._data.max_length
        long = {role: encoded.long for role, encoded in self._encoded.items()}
        if long["train"]:
            lines.append(
                f"{long['train']:,} training pairs are longer than task.max_length = {limit} "
                "tokens and are left out."
            )
        if cut := long["validation"] + long["test"]:
            lines.append(
                f"{cut:,} pairs that are scored are longer than task.max_length = {limit} tokens; "
                "their sentences are cut, their references are not."
            )
        lines.append(
            f"{len(self.tokenizer):,} subwords, trained on both sides of the training text."
        )
        lines.append(f"BLEU: {self._scorer.describe()['bleu']}.")
        return lines


def _load(data: TranslationOptions) -> Corpus:
    if data.source is not None and data.target is not None:
        pairs = {
            "train": (data.source, data.target),
            "validation": (data.validation_source, data.validation_target),
            "test": (data.test_source, data.test_target),
        }
        files = {
            role: (first, second) for role, (first, second) in pairs.items() if first and second
        }
        languages = (
            data.source_language or data.source.suffix.lstrip(".") or "source",
            data.target_language or data.target.suffix.lstrip(".") or "target",
        )
        return corpus.from_files(files, languages)
    if data.data is None:
        raise UsageError(
            "No text to learn from: give two files, of which line N in one is the translation of "
            "line N in the other, with --set source=FILE --set target=FILE; or a folder of such "
            "files or a data set of the hub with --set task.data=…"
        )
    assert data.source_language is not None
    assert data.target_language is not None
    languages = (data.source_language, data.target_language)
    if data.data == NUMBER_WORDS:
        return number_words.load(languages)
    return corpus.load(data.data, data.name, data.revision, languages)


def _sha256(splits: Iterable[Pairs]) -> str:
    """Of every sentence and its translation, in the order of the splits."""
    digest = hashlib.sha256()
    for pairs in splits:
        for source, target in zip(pairs.source, pairs.target, strict=True):
            digest.update(f"{source}\n{target}\n".encode())
        digest.update(b"\0")
    return digest.hexdigest()
