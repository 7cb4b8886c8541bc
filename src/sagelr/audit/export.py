"""Saving a pruned model, and seeing that what was saved is what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from sagelr.audit.curves import Tuner, finite
from sagelr.audit.pruning import Pruner, unit
from sagelr.audit.schema import Export, Structure
from sagelr.audit.scoring import Scorer
from sagelr.errors import SagelrError, UsageError
from sagelr.tasks import hub

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_export(
    pruner: Pruner,
    structure: Structure,
    score: str,
    scope: Literal["global", "layer"],
    sparsity: float,
) -> None:
    """See that there is something to prune, before curves are made that may take long.

    Args:
        pruner: of the model; its weights are back afterwards.
        structure: see `Pruner.prune`, as for the next three.
        score: by which the lowest go.
        scope: "global" or "layer".
        sparsity: share that goes.

    Raises:
        UsageError: it rounds to nothing.
    """
    if sparsity and not pruner.prune(structure, score, scope, sparsity):
        raise UsageError(
            f"--sparsity {sparsity:g} prunes nothing: of {pruner.total(structure):,} "
            f"{unit(structure)} it takes none. Give a higher one, or another --structure."
        )
    pruner.restore()


def export(
    model: PreTrainedModel,
    pruner: Pruner,
    scorer: Scorer,
    folder: Path,
    structure: Structure,
    score: str,
    scope: Literal["global", "layer"],
    sparsity: float,
    tuner: Tuner | None = None,
) -> Export:
    """Prune a model, save it as save_pretrained does, load it anew and score both.

    Args:
        model: whose weights are back afterwards.
        pruner: of the model.
        scorer: to see that both score the same.
        folder: where to save.
        structure: see `Pruner.prune`, as for the next three.
        score: by which the lowest go.
        scope: "global" or "layer".
        sparsity: share that goes.
        tuner: trains the pruned model before it is saved.

    Raises:
        SagelrError: what was loaded does not score as what was saved.
    """
    pruned = pruner.prune(structure, score, scope, sparsity)
    if tuner is not None and pruned:  # as for the curves
        tuner.train(pruner)
    before = scorer(model)
    with hub.quiet():
        model.save_pretrained(folder)
        scorer.task.save(folder)
        pruner.restore()
        loaded = type(model).from_pretrained(folder, dtype=torch.float32)
    after = scorer(loaded.to(model.device))  # pyright: ignore[reportArgumentType]
    if {name: finite(value) for name, value in before.items()} != {
        name: finite(value) for name, value in after.items()
    }:
        raise SagelrError(
            f"The model saved in {folder} scores {after} when loaded, and scored {before} before. "
            "Do not use it, and report this with the versions of torch and transformers."
        )
    return {
        "folder": str(folder),
        "structure": structure,
        "score": score,
        "scope": "layer" if structure == "2:4" else scope,
        "sparsity": sparsity,
        "pruned": pruned,
        "scores": {name: finite(value) for name, value in before.items()},
        "scores_reloaded": {name: finite(value) for name, value in after.items()},
    }
