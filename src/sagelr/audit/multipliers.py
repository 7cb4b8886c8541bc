"""What SAGE would do next in a run that kept its optimizer's state."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from sagelr.audit.scoring import TrainingBatches
from sagelr.audit.sensitivity import modes_kept
from sagelr.errors import SagelrError
from sagelr.optim.base import SageOptimizer
from sagelr.schema import Recipe, Setting
from sagelr.tasks import Task
from sagelr.training.optimizers import make_optimizer
from sagelr.view import MultiplierRow, View, Viewer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCHES = 8
TOKEN_ROWS = 32  # of a batch, where a training counts its batches in tokens


def multipliers(
    model: PreTrainedModel, task: Task, recipe: Recipe, arm: str, setting: Setting, state: Path
) -> list[MultiplierRow] | None:
    """Ī, U and multipliers by layer of the step that would follow a run's last.

    Eight batches of the size that it was trained with stand for that step, one after another, with
    dropout and clipping as in training. Nothing is changed.

    Args:
        model: as trained.
        task: that it was trained on.
        recipe: of the run.
        arm: of the run.
        setting: of the run.
        state: the file that its optimizer's state was saved in.

    Returns:
        None if the arm is without SAGE.

    Raises:
        SagelrError: the state does not fit.
    """
    optimizer = make_optimizer(model, recipe.arms[arm], setting)
    if not isinstance(optimizer, SageOptimizer):
        return None
    try:
        held = torch.load(state, map_location=model.device, weights_only=True)
        optimizer.load_state_dict(held)
    except (ValueError, KeyError, RuntimeError) as error:
        raise SagelrError(
            f"{state} does not fit the run's optimizer: {' '.join(str(error).split())}. Move it "
            "away to audit the model without it."
        ) from error
    viewer = Viewer(model, optimizer)
    size = recipe.train.batch_size or TOKEN_ROWS
    batches = TrainingBatches(task, size, BATCHES * size).on(model.device)
    views: list[View] = []
    with modes_kept(model), torch.random.fork_rng(), torch.enable_grad():
        model.train()
        torch.manual_seed(0)
        for batch in islice(batches, BATCHES):
            model(**batch).loss.backward()
            if recipe.train.max_grad_norm:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.train.max_grad_norm)
            if (view := viewer.look()) is not None:
                views.append(view)
            model.zero_grad()
    return View.together(views).rows(_steps(optimizer) + 1)


def _steps(optimizer: torch.optim.Optimizer) -> int:
    return int(max((float(state.get("step", 0)) for state in optimizer.state.values()), default=0))
