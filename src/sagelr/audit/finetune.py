"""Training a pruned model for a little, with its zeros held."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sagelr.audit.pruning import Pruner
from sagelr.audit.scoring import to
from sagelr.audit.sensitivity import modes_kept
from sagelr.tasks import Task

CLIPPED = 1.0
SEED = 0


def finetune(
    pruner: Pruner,
    task: Task,
    make: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    epochs: int,
    batch_size: int,
    accumulate: int = 1,
) -> None:
    """Train the model of a pruner as it stands, setting what is pruned to zero after every step.

    The lr falls linearly to zero, gradients are clipped to norm 1, and order and dropout are drawn
    from one seed, the same for every model.

    Args:
        pruner: whose model is pruned; made with `whole=True`.
        task: whose training split is trained on.
        make: the optimizer for the model, at its first lr.
        epochs: passes over the training split.
        batch_size: rows of a batch; the last of an epoch may hold fewer.
        accumulate: batches of a step; the last step of an epoch may have fewer rows.
    """
    model, rows = pruner.model, len(task.train)
    device = next(model.parameters()).device
    steps = epochs * -(-rows // (batch_size * accumulate))
    optimizer = make(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    with modes_kept(model), torch.random.fork_rng(), torch.enable_grad():
        model.train()
        torch.manual_seed(SEED)
        for epoch in range(epochs):
            if hasattr(task.train, "set_epoch"):
                task.train.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
            for step in torch.randperm(rows).split(batch_size * accumulate):
                for batch in step.split(batch_size):
                    given = to(device, task.collate([task.train[row] for row in batch.tolist()]))
                    (model(**given).loss * len(batch) / len(step)).backward()
                nn.utils.clip_grad_norm_(model.parameters(), CLIPPED)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                pruner.hold()
