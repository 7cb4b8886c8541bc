"""Evaluation that gives the same scores and the same loss on any number of devices.

The Trainer fills up the last batch, takes the loss of the processes as if their parts of a batch
were of one size, and weights batches by rows where the loss is a mean over tokens. Here every
process has its part of each batch, and the loss of a split is the mean over its labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from sagelr.tasks import evaluation_order
from sagelr.training.batches import Batches, in_order, loader

IGNORED = -100  # a label that does not count


def labels_of(batch: dict[str, Any]) -> Tensor:
    """How many labels of a batch count."""
    return batch["labels"].ne(IGNORED).sum()


class SharedEvaluation(Trainer):
    """A Trainer that evaluates in parts and puts them together again."""

    _parts: list[Tensor]  # of each: its loss times its labels, and its labels

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The rows of a split, as far as they are this process's; no score depends on order."""
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        args, count = self.args, self.args.world_size
        size = args.per_device_eval_batch_size * count
        batches = Batches(in_order(evaluation_order(rows), size, count), args.process_index, count)
        collate: Callable[[list[Any]], Any] = self.data_collator
        pinned = args.dataloader_pin_memory
        return loader(rows, batches, collate, self.accelerator.device, pinned=pinned)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate this process's part of a batch."""
        found: Any = super().prediction_step(model, inputs, *args, **kwargs)
        count = labels_of(inputs).to(found[0])
        self._parts.append(torch.stack([found[0] * count, count]))
        return found

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate, and put together what the processes found."""
        self._parts = []
        if self.args.world_size > 1:
            self.gather_function = self._joined
        found: Any = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if len(self._parts) > 1 or self.args.world_size > 1:
            sums: Any = torch.stack(self._parts).cpu().double().sum(0)
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums.to(self.args.device), "sum")
            total, count = sums.tolist()
            found.metrics[f"{metric_key_prefix}_loss"] = total / count
        return found

    def _joined(self, part: Any) -> Any:
        """The parts of all processes after each other, of whatever length they are."""
        if isinstance(part, tuple | list):
            return type(part)(self._joined(each) for each in part)
        accelerator: Any = self.accelerator
        lengths = accelerator.gather(torch.tensor([len(part)], device=accelerator.device)).tolist()
        padded = accelerator.pad_across_processes(part.contiguous(), dim=0)
        parts = accelerator.gather(padded).chunk(len(lengths))
        return torch.cat([each[:length] for each, length in zip(parts, lengths, strict=True)])
