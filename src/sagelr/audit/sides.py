"""Two models side by side: each at its own loss, and both at a loss that both have reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sagelr.audit.describe import describe
from sagelr.audit.schema import Comparison, Sensitivity, Side
from sagelr.audit.scoring import TrainingBatches, outputs
from sagelr.audit.sensitivity import audit, modes_kept
from sagelr.audit.subjects import Subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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

    The level is the higher of the two lowest losses, so that both have reached it; of each run the
    checkpoint whose loss is nearest to it is measured. Losses are means over the batches that
    sensitivity is measured on.

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
    losses: list[list[tuple[Path | None, float]]] = []
    for subject, loader, rows, each in zip(subjects, loaders, batches, found, strict=True):
        reached = [(path, _loss(loader(path), rows)) for path in subject.checkpoints()]
        losses.append([*reached, (None, each["loss"])])
    level = max(min(loss for _, loss in reached) for reached in losses)
    matched = []
    for index, (loader, rows) in enumerate(zip(loaders, batches, strict=True)):
        path, _ = min(losses[index], key=lambda item: abs(item[1] - level))
        if path is None:
            matched.append(own[index])
            continue
        model = loader(path)
        matched.append(side(index, describe(model, audit(model, rows.on(model.device))), path))
    shown = " and ".join(f"{each['loss']:.4g}" for each in matched)
    return {
        "own": own,
        "matched": matched,
        "level": level,
        "note": f"Both reached a loss of {level:.4g} on the measured batches; of each, the "
        f"checkpoint nearest to it was measured, at {shown}.",
    }


@torch.no_grad()
def _loss(model: PreTrainedModel, batches: TrainingBatches) -> float:
    with modes_kept(model):
        model.eval()
        losses = [outputs(model, batch)[0] for batch in batches.on(model.device)]
    return sum(losses) / len(losses)
