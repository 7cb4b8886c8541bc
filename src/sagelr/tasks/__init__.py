"""Families of tasks: data, model and metric. They know nothing of optimizers.

A family is light to import: what it needs for loading and training is imported when it is used.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel

from sagelr.errors import UsageError

if TYPE_CHECKING:
    from transformers import EvalPrediction, PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Metric:
    """A score of a task.

    Attributes:
        name: as in the scores that the task gives.
        greater_is_better: False for errors and losses.
        scale: what a score is multiplied by to be shown.
        unit: what stands after a shown score.
        label: the name as a person reads it; the name itself by default.
    """

    name: str
    greater_is_better: bool = True
    scale: float = 1.0
    unit: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)

    def show(self, value: float) -> str:
        """A score as a person reads it: percentages with two decimals, small numbers with more.

        Examples:
            >>> Metric("accuracy", scale=100, unit="%").show(0.9612)
            '96.12%'
            >>> Metric("rmse", greater_is_better=False).show(0.01234)
            '0.0123'
        """
        shown = value * self.scale
        places = 2 if self.scale == 100 or abs(shown) >= 10 else 3 if abs(shown) >= 1 else 4
        return f"{shown:.{places}f}{self.unit}"

    def to_json(self) -> dict[str, Any]:
        """The metric as results.json holds it."""
        return asdict(self)


class Split(Protocol):
    """The rows of one split: a torch or Hugging Face Dataset of known length.

    A training split whose rows change from epoch to epoch has `set_epoch(epoch)`, which is called
    before each epoch, and `seed`, which is set to the run's. What it changes is a function of seed,
    epoch and index alone, so that a training that is resumed sees the same rows.

    A split whose rows are padded to the longest of a batch may have `lengths`, one a row, which
    `evaluation_order` goes by.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def evaluation_order(rows: Split) -> Sequence[int]:
    """The rows of a split in the order to evaluate them in: by length, where they have lengths.

    With rows of like length in a batch little is padded. In any other order padding may take
    several times as long as the rows themselves.
    """
    lengths: Sequence[int] | None = getattr(rows, "lengths", None)
    places = range(len(rows))
    return places if lengths is None else sorted(places, key=lengths.__getitem__)


def logits_of(prediction: EvalPrediction) -> Any:
    """Logits alone, where a model gives more."""
    found: Any = prediction.predictions
    return found[0] if isinstance(found, tuple) else found


def right(prediction: EvalPrediction) -> list[int]:
    """1 for an example whose class has the largest logit, 0 for another."""
    return (logits_of(prediction).argmax(-1) == prediction.label_ids).astype(int).tolist()


class Task(ABC):
    """Data, model and metrics of one recipe, ready to be trained on.

    Attributes:
        DataOptions: what `[task]` of a recipe may hold, `family` with its name among it; frozen,
            and strict on unknown keys.
        ModelOptions: the same for `[model]`.
        metrics: every metric that the family knows; `scores` and `generation_scores` give those
            that apply to the data at hand.
        given: the names of those; empty where it is all of them.
        pretrained: name or folder of the model that training starts from; None from scratch.
        train: what is trained on.
        validation: chooses settings.
        test: is scored once, at the end.
    """

    DataOptions: ClassVar[type[BaseModel]]
    ModelOptions: ClassVar[type[BaseModel]]
    metrics: ClassVar[Mapping[str, Metric]]
    given: Sequence[str] = ()
    pretrained: str | None = None
    train: Split
    validation: Split
    test: Split

    @abstractmethod
    def __init__(self, data: Any, model: Any) -> None:
        """Load the data.

        Args:
            data: validated `DataOptions`.
            model: validated `ModelOptions`.
        """

    @abstractmethod
    def model(self, seed: int) -> PreTrainedModel:
        """A model as it is before training; the same for the same seed, whatever ran before."""

    @abstractmethod
    def collate(self, rows: Sequence[Any]) -> dict[str, Any]:
        """A batch of rows, as keyword arguments of the model, `labels` among them."""

    @abstractmethod
    def scores(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metrics from logits and labels, in natural units."""

    @property
    def decodes(self) -> bool:
        """Whether there are `generation_scores`, which take decoding."""
        return type(self).generation_scores is not Task.generation_scores

    def example_scores(self, prediction: EvalPrediction, metric: str) -> list[int] | None:
        """What each example scored, where a metric is their mean; None where it is not.

        Args:
            prediction: what `scores` is given.
            metric: name of one of `metrics`.

        Returns:
            1 for an example that is right, 0 for one that is not, in the order of the prediction.
        """
        return None

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the data are.

        Returns:
            name, source, loader (a sentence: which loader, and where the data came from), rows by
            split, and sha256 of what is trained on.
        """

    def adopt(self, source: str, config: PretrainedConfig) -> str:
        """Speak of labels as a trained model does, which is to be scored as it is.

        Its classes may be in another order than those of the data, and its scores in another unit.

        Args:
            source: the model, for messages.
            config: of the model.

        Returns:
            A notice that is empty if there is nothing to say.

        Raises:
            UsageError: its classes are others.
        """
        return ""

    def keep_logits(self, logits: Any, labels: Any) -> Any:
        """What `scores` needs of a batch's logits; all of them, unless a task says otherwise.

        A whole split's logits are held in memory until it is scored. Where they are large, as with
        a vocabulary, a task keeps less: a guess in place of a distribution, for example.

        Args:
            logits: the model's outputs after the loss; a tuple if there are several.
            labels: of the same batch.
        """
        return logits

    def train_lengths(self) -> list[int] | None:
        """Tokens of each training row, for batches by length or by token count; None without."""
        return None

    def generation_scores(
        self, model: PreTrainedModel, dataset: Split, *, batch_size: int
    ) -> dict[str, float]:
        """Metrics that need decoding, such as BLEU; computed once, after training.

        Args:
            model: as trained, on its device.
            dataset: the validation or the test split.
            batch_size: rows decoded at a time.
        """
        return {}

    def prepare_predictions(self) -> None:
        """Load what `predictions` needs, so that what is missing is told before training.

        Raises:
            UsageError: the task has no unlabelled data, or they are missing or malformed.
        """
        raise UsageError(
            "--predict: this task has no unlabelled data to predict on. Leave it out; --test "
            "scores the test split."
        )

    def predictions(self, model: PreTrainedModel, folder: Path) -> list[Path]:
        """Write predictions on unlabelled data, as a leaderboard wants them.

        Args:
            model: as trained, on its device.
            folder: where to write; it exists.

        Returns:
            The files written.

        Raises:
            UsageError: as `prepare_predictions`.
        """
        self.prepare_predictions()
        return []

    def save(self, folder: Path) -> None:  # noqa: B027  (most models need nothing)
        """Save what a model needs beside its weights, such as a tokenizer."""

    def notices(self) -> list[str]:
        """What a user should be told once: columns guessed, splits made, the loader used."""
        return []


# Family → where its class is. A new family joins with one line.
FAMILIES = {
    "digits": "sagelr.tasks.digits:Digits",
    "image-classification": "sagelr.tasks.images:ImageClassification",
    "text-classification": "sagelr.tasks.text:TextClassification",
    "translation": "sagelr.tasks.translation:Translation",
}


def family(name: object) -> type[Task]:
    """The class of a family of tasks.

    Raises:
        UsageError: there is none of that name.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        near = difflib.get_close_matches(str(name), FAMILIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"task.family = {name!r} is not a family of tasks.{hint} "
            f"Allowed: {', '.join(sorted(FAMILIES))}."
        )
    module, _, cls = FAMILIES[name].partition(":")
    return getattr(import_module(module), cls)
