"""Families of tasks: data, model and metric. They know nothing of optimizers.

A family is light to import: what it needs for loading and training is imported when it is used.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel

from sagelr.errors import UsageError

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from transformers import EvalPrediction, PreTrainedModel


@dataclass(frozen=True)
class Metric:
    """A score of a task.

    Attributes:
        name: as in the scores that the task gives.
        greater_is_better: False for errors and losses.
        scale: what a score is multiplied by to be shown.
        unit: what stands after a shown score.
    """

    name: str
    greater_is_better: bool = True
    scale: float = 1.0
    unit: str = ""

    def show(self, value: float, digits: int = 2) -> str:
        """A score as a person reads it.

        Example:
            >>> Metric("accuracy", scale=100, unit="%").show(0.9612)
            '96.12%'
        """
        return f"{value * self.scale:.{digits}f}{self.unit}"

    def to_json(self) -> dict[str, Any]:
        """The metric as results.json holds it."""
        return asdict(self)


class Task(Protocol):
    """Data, model and metric of one recipe, ready to be trained on."""

    DataOptions: ClassVar[type[BaseModel]]
    ModelOptions: ClassVar[type[BaseModel]]
    metrics: ClassVar[Mapping[str, Metric]]

    def __init__(self, data: Any, model: Any) -> None:
        """Load the data.

        Args:
            data: validated `DataOptions`.
            model: validated `ModelOptions`.
        """

    @property
    def train(self) -> Dataset[Any]: ...

    @property
    def validation(self) -> Dataset[Any]: ...

    @property
    def test(self) -> Dataset[Any]: ...

    def model(self, seed: int) -> PreTrainedModel:
        """A model as it is before training; the same for the same seed, whatever ran before."""
        ...

    def collate(self, rows: Sequence[Any]) -> dict[str, Any]:
        """A batch of rows, as keyword arguments of the model, `labels` among them."""
        ...

    def scores(self, prediction: EvalPrediction) -> dict[str, float]:
        """Every metric of the task, in natural units."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the data are: name, source, rows by split, sha256 of what is trained on."""
        ...


# Family → where its class is. A new family joins with one line.
FAMILIES = {"digits": "sagelr.tasks.digits:Digits"}


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
