"""Two models side by side: each at its own loss, and both at a loss that both have reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from sagelr.audit.describe import describe
from sagelr.audit.schema import Comparison, Sensitivity, Side
from sagelr.audit.scoring import TrainingBatches, measured, outputs
from sagelr.audit.sensitivity import modes_kept
from sagelr.audit.subjects import Subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Where = TypeVar("Where")
Loader = Callable[[Path | None], "PreTrainedModel"]  # checkpoint, or the finished model


def side(index: int, found: Sensitivity, checkpoint: Path | None) -> Side:
    """One model at one point of its training.

    Args:
        index: of the model in the audit.
        found: its sensitivities there.
        checkpoint: None for the finished run.
    """
    whole = found["all"]
    by_loss = {layer["name"]: layer["mean_by_loss"] for layer in found["layers"]}
    known = {name: value for name, value in by_loss.items() if value is not None}
    return {
        "model": index,
        "checkpoint": checkpoint.name if checkpoint else None,
        "loss": found["loss"],
        "layers": {layer["name"]: layer["mean"] for layer in found["layers"]},
        "layers_by_loss": known or None,
        "gini": whole["gini"],
        "effective_share": whole["effective_share"],
        "share_below": whole["share_below"],
    }


def compare(
    subjects: Sequence[Subject],
    loaders: Sequence[Loader],
    batches: Sequence[TrainingBatches],
    found: Sequence[Sensitivity],
) -> Comparison:
    """Two models at their own loss, and at matched loss where both kept checkpoints.

    The level and the checkpoints are those of `at_one_loss`. Losses are means over the batches
    that sensitivity is measured on.

    Args:
        subjects: the two.
        loaders: of their models.
        batches: to measure on; the same rows.
        found: sensitivities of the two finished models.
    """
    own = [side(index, each, None) for index, each in enumerate(found)]
    without = [subject.name for subject in subjects if not subject.checkpoints()]
    if without:
        return {
            "own": own,
            "matched": None,
            "level": None,
            "note": f"No checkpoints of {' and '.join(without)} were kept (sagelr train "
            "--keep-checkpoints), so sensitivities are matched by dividing each by its loss "
            "alone.",
        }
    losses: list[dict[Path | None, float]] = []
    for subject, loader, rows, each in zip(subjects, loaders, batches, found, strict=True):
        reached = {path: mean_loss(loader(path), rows) for path in subject.checkpoints()}
        losses.append({**reached, None: each["loss"]})
    level, nearest = at_one_loss(losses)
    matched = []
    for index, (loader, rows, path) in enumerate(zip(loaders, batches, nearest, strict=True)):
        if path is None:
            matched.append(own[index])
            continue
        model = loader(path)
        matched.append(side(index, describe(model, measured(model, rows)), path))
    shown = " and ".join(f"{each['loss']:.4g}" for each in matched)
    return {
        "own": own,
        "matched": matched,
        "level": level,
        "note": f"Both reached a loss of {level:.4g} on the measured batches; of each, the "
        f"checkpoint nearest to it was measured, at {shown}.",
    }


def at_one_loss(reached: Sequence[Mapping[Where, float]]) -> tuple[float, list[Where]]:
    """A loss that every run has reached, and where each was nearest to it.

    The level is the highest of the runs' lowest losses.

    Args:
        reached: of each run, its checkpoints and their losses.

    Examples:
        >>> at_one_loss([{1: 0.9, 2: 0.3}, {1: 0.8, 2: 0.28, 3: 0.1}])
        (0.3, [2, 2])
    """
    level = max(min(losses.values()) for losses in reached)
    return level, [min(losses, key=lambda at: abs(losses[at] - level)) for losses in reached]


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: TrainingBatches) -> float:
    """Mean of a model's loss over batches, as in evaluation."""
    with modes_kept(model):
        model.eval()
        losses = [outputs(model, batch)[0] for batch in batches.on(model.device)]
    return sum(losses) / len(losses)
