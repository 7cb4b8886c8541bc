"""A task's batches as an audit takes them, and a model's scores on a split."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sagelr.audit.schema import Measurement
from sagelr.audit.sensitivity import Measured, audit, model_loss, modes_kept
from sagelr.errors import SagelrError, UsageError
from sagelr.tasks import Split, Task, evaluation_order

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ORDER_SEED = 0
SplitName = Literal["validation", "test"]


class TrainingBatches:
    """Batches of one size from the training split, the same rows for every model.

    Args:
        task: whose.
        batch_size: rows of a batch; less if the split has fewer.
        examples: rows in all, rounded down to whole batches, at least one.
    """

    def __init__(self, task: Task, batch_size: int, examples: int) -> None:
        rows = len(task.train)
        if rows == 0:
            raise UsageError("The training split is empty: there is nothing to measure on.")
        self.task, self.batch_size = task, min(batch_size, rows)
        whole = max(1, min(examples, rows) // self.batch_size)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(ORDER_SEED))
        self.batches = order[: whole * self.batch_size].split(self.batch_size)

    def on(self, device: torch.device) -> Iterator[dict[str, Any]]:
        """The batches, one after another."""
        train = self.task.train
        if hasattr(train, "set_epoch"):  # the rows of the first epoch, every time
            train.set_epoch(0)  # pyright: ignore[reportAttributeAccessIssue]
        for rows in self.batches:
            yield to(device, self.task.collate([train[row] for row in rows.tolist()]))

    def to_json(self) -> Measurement:
        """What was measured on, for the record."""
        return {
            "split": "train",
            "batch_size": self.batch_size,
            "batches": len(self.batches),
            "examples": len(self.batches) * self.batch_size,
            "order": f"rows of the training split in a random order, seed {ORDER_SEED}, as in its "
            "first epoch; whole batches only",
        }


def to(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch on a device."""
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


class Scorer:
    """Scores of a model on one split of its task.

    Args:
        task: whose.
        split: "validation" or "test".
        batch_size: rows at a time; the longest of them bounds the length that is decoded, so that
            what a model translates without an end depends on it; nothing else does but rounding.
        decode: also scores that need decoding, such as BLEU.
    """

    def __init__(
        self, task: Task, split: SplitName, batch_size: int = 256, *, decode: bool = False
    ) -> None:
        self.task, self.split, self.batch_size, self.decode = task, split, batch_size, decode
        self.rows: Split = getattr(task, split)
        if len(self.rows) == 0:
            raise UsageError(f"The {split} split is empty: there is nothing to score on.")
        self.order = evaluation_order(self.rows)

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """The task's metrics in natural units, and the mean loss as "loss".

        Raises:
            SagelrError: the model does not fit the task.
        """
        from transformers import EvalPrediction
        from transformers.trainer_pt_utils import EvalLoopContainer

        from sagelr.training.evaluation import labels_of

        kept, labels = (EvalLoopContainer(True, padding_index=-100) for _ in range(2))
        total = count = 0.0
        with modes_kept(model):
            model.eval()
            for start in range(0, len(self.order), self.batch_size):
                rows = self.order[start : start + self.batch_size]
                batch = to(model.device, self.task.collate([self.rows[row] for row in rows]))
                loss, logits = outputs(model, batch)
                counted = int(labels_of(batch))
                total, count = total + loss * counted, count + counted
                kept.add(self.task.keep_logits(logits, batch["labels"]))
                labels.add(batch["labels"])
            guesses: Any = kept.get_arrays()
            truths: Any = labels.get_arrays()
            found = self.task.scores(EvalPrediction(guesses, truths))
            if self.decode:
                found |= self.task.generation_scores(model, self.rows, batch_size=self.batch_size)
        scores = {"loss": total / count, **found}
        return {name: float(value) for name, value in scores.items()}


def outputs(model: nn.Module, batch: dict[str, Any]) -> tuple[float, Any]:
    """Loss and logits of a batch, the latter as the Trainer gives them to a task.

    Raises:
        SagelrError: the model does not take such a batch, or gives no loss.
    """
    with fitting(model, batch):
        found = model(**batch)
    if not isinstance(getattr(found, "loss", None), Tensor):
        raise SagelrError(unfit(model, batch, "It gives no loss"))
    ignored = {"loss", *getattr(model.config, "keys_to_ignore_at_inference", ())}
    rest = tuple(value for name, value in found.items() if name not in ignored)
    return float(found.loss), rest[0] if len(rest) == 1 else rest


@contextlib.contextmanager
def fitting(model: nn.Module, names: Sequence[str] | dict[str, Any]) -> Iterator[None]:
    """Turn what a model says of a batch that is not for it into one message.

    Raises:
        SagelrError: the model does not take such a batch.
    """
    try:
        yield
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())
        raise SagelrError(unfit(model, names, reason)) from error


def unfit(model: nn.Module, names: Sequence[str] | dict[str, Any], reason: str) -> str:
    """What to say of a model that is not for a task."""
    return (
        f"{type(model).__name__} does not fit the recipe's data, whose batches hold "
        f"{', '.join(names)}: {reason.rstrip('.')}. Give a model with a head for this task, or the "
        "recipe that it was trained with."
    )


def measured(model: PreTrainedModel, batches: TrainingBatches) -> Measured:
    """The sensitivities of what is trained of a model.

    Args:
        model: with a loss of its own.
        batches: to measure on.

    Raises:
        SagelrError: the batches are not for this model, or a loss is no number.
    """
    return audit(model, batches.on(model.device), _fitting_loss, frozen=False)


def _fitting_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    with fitting(model, batch):
        return model_loss(model, batch)
