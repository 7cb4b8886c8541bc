"""What SAGE would do next in a run that kept its optimizer's state."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sagelr.audit.scoring import TrainingBatches
from sagelr.audit.sensitivity import buffers_kept, modes_kept
from sagelr.errors import SagelrError
from sagelr.optim.base import SageOptimizer
from sagelr.schema import Recipe, Setting
from sagelr.tasks import Task, hub
from sagelr.training.optimizers import make_optimizer
from sagelr.view import MultiplierRow, View, Viewer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEPS = 8
TOKEN_ROWS = 32  # of a batch, where a training counts its batches in tokens


def multipliers(
    model: PreTrainedModel, task: Task, recipe: Recipe, arm: str, setting: Setting, state: Path
) -> list[MultiplierRow] | None:
    """Ī, U and multipliers by layer of the step that would follow a run's last.

    Eight steps from the run's last weights and state stand for that one: with batches, smoothing of
    labels, dropout and clipping as in training. Nothing is changed.

    Args:
        model: as trained.
        task: that it was trained on.
        recipe: of the run.
        arm: of the run.
        setting: of the run.
        state: the file that its optimizer's state was saved in.

    Returns:
        None if the arm is without SAGE, or with a control in its place.

    Raises:
        SagelrError: the state does not fit.
    """
    optimizer = make_optimizer(model, recipe.arms[arm], setting)
    if not isinstance(optimizer, SageOptimizer) or not optimizer.follows_rule:
        return None
    try:
        held = torch.load(state, map_location=model.device, weights_only=True)
        optimizer.load_state_dict(held)
    except (ValueError, KeyError, RuntimeError, *hub.DAMAGE) as error:
        raise SagelrError(
            f"{state} is damaged or does not fit the run's optimizer: "
            f"{' '.join(str(error).split())}. Move it away to audit the model without it."
        ) from error
    viewer, options = Viewer(model, optimizer), recipe.train
    size, parts = options.batch_size or TOKEN_ROWS, options.accumulate
    batches = TrainingBatches(task, size, STEPS * parts * size).on(model.device)
    views: list[View] = []
    with modes_kept(model), buffers_kept(model), torch.random.fork_rng(), torch.enable_grad():
        model.train()
        torch.manual_seed(0)
        while step := list(islice(batches, parts)):
            for batch in step:
                (_loss(model, batch, options.label_smoothing) / len(step)).backward()
            if options.max_grad_norm:
                nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
            if (view := viewer.look()) is not None:
                views.append(view)
            model.zero_grad()
    return View.together(views).rows(_steps(optimizer) + 1)


def _loss(model: PreTrainedModel, batch: dict[str, Any], smoothing: float) -> Tensor:
    from transformers.trainer_pt_utils import LabelSmoother

    output = model(**batch)
    return LabelSmoother(smoothing)(output, batch["labels"]) if smoothing else output.loss


def _steps(optimizer: torch.optim.Optimizer) -> int:
    return int(max((float(state.get("step", 0)) for state in optimizer.state.values()), default=0))
