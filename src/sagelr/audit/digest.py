"""What a run of a study is measured for after its training, as a small JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagelr.audit.curves import curve
from sagelr.audit.describe import layer_names
from sagelr.audit.places import Anatomy
from sagelr.audit.pruning import Pruner
from sagelr.audit.schema import LayerSummary, Summary
from sagelr.audit.scoring import Scorer, TrainingBatches, measured
from sagelr.audit.sensitivity import Measured
from sagelr.audit.sketch import BELOW, Sketch, by_loss, short
from sagelr.schema import AuditOptions
from sagelr.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def summary(model: PreTrainedModel, task: Task, options: AuditOptions) -> Summary:
    """Sensitivity by layer, and pruning curves on the test split.

    The curves are a result like the test scores: nothing is chosen by them. The model is left as
    it was.

    Args:
        model: as trained, on its device.
        task: that it was trained on.
        options: `[audit]` of the recipe.

    Raises:
        UsageError: the options name an unknown score.
    """
    batches = TrainingBatches(task, options.batch_size, options.examples)
    found = measured(model, batches)
    sketch = Sketch()
    for tensor in found.sensitivity.values():
        sketch.add(tensor)
    scorer = Scorer(task, "test")
    unpruned = scorer(model)
    with Pruner(model, found) as pruner:
        curves = [
            curve(
                pruner,
                "unstructured",
                score,
                options.scope,
                options.sparsities,
                lambda: scorer(model),
                task.metrics,
                unpruned=unpruned,
            )
            for score in options.scores
        ]
        return {
            "measurement": batches.to_json(),
            "loss": found.loss,
            "layers": layer_means(pruner.anatomy, found),
            "histogram": sketch.histogram(),
            "gini": short(sketch.gini()),
            "effective_share": short(sketch.effective() / sketch.count),
            "share_below": {key: short(sketch.share_below(n)) for key, n in BELOW.items()},
            "split": "test",
            "prunable": pruner.total("unstructured"),
            "curves": curves,
        }


def layer_means(anatomy: Anatomy, measured: Measured) -> list[LayerSummary]:
    """Mean sensitivity of every layer."""
    rows: list[LayerSummary] = []
    for (layer, kind, depth), names in layer_names(anatomy).items():
        found = [measured.sensitivity[name] for name in names if name in measured.sensitivity]
        count = sum(each.numel() for each in found)
        if count == 0:
            continue
        mean = sum(float(each.double().sum()) for each in found) / count
        rows.append(
            {
                "name": layer,
                "kind": kind,
                "depth": depth,
                "parameters": count,
                "sensitivity": short(mean),
                "sensitivity_by_loss": by_loss(mean, measured.loss),
            }
        )
    return rows
