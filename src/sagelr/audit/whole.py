"""All of `sagelr audit`: one model, or two side by side, measured, pruned and saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from sagelr.audit import sides
from sagelr.audit.curves import Tuner, curve
from sagelr.audit.describe import describe
from sagelr.audit.export import check_export, export
from sagelr.audit.finetune import finetune
from sagelr.audit.multipliers import multipliers
from sagelr.audit.pruning import STRUCTURES, Pruner, check
from sagelr.audit.schema import Audited, Curve, Export, Pruning, Structure
from sagelr.audit.scoring import Scorer, SplitName, TrainingBatches, measured
from sagelr.audit.sensitivity import Measured
from sagelr.audit.subjects import OPTIMIZER, Subject, labels, load
from sagelr.errors import UsageError
from sagelr.groups import param_groups
from sagelr.tasks import Task
from sagelr.training.arguments import eval_batch_size
from sagelr.training.optimizers import make_optimizer
from sagelr.training.trainer import missing_score

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRID = tuple(n / 20 for n in range(20))  # 0, 5, … 95%


@dataclass(frozen=True)
class Request:
    """What to audit, and how.

    Attributes:
        subjects: the one that is asked for, and perhaps one to hold it against.
        batch_size: rows whose gradient makes one sensitivity.
        examples: training rows measured on.
        split: that curves are scored on. Validation, because a sparsity may be chosen by it.
        curves: whether to make pruning curves.
        structures: to prune.
        scores: to prune by.
        scope: to prune in.
        sparsities: of the curves.
        finetune: epochs after pruning; curves are then made with and without.
        finetune_lr: of that; a run's own lr by default.
        export: folder for a pruned model of the first subject.
        sparsity: of that model; by the first structure and the first score.
        begin: called when all is loaded that may be refused, before anything is measured.
        note: called with a line that the user should read.
        progress: called with the share of the work done and what is being done.
        failed: called with what kept the pruned model from being saved, so that what was measured
            is not lost; None raises it.
    """

    subjects: list[Subject]
    batch_size: int = 32
    examples: int = 1000
    split: SplitName = "validation"
    curves: bool = True
    structures: tuple[Structure, ...] = STRUCTURES
    scores: tuple[str, ...] = ("sensitivity", "magnitude")
    scope: Literal["global", "layer"] = "global"
    sparsities: tuple[float, ...] = GRID
    finetune: int = 0
    finetune_lr: float | None = None
    export: Path | None = None
    sparsity: float | None = None
    begin: Callable[[], None] = field(default=lambda: None)
    note: Callable[[str], None] = field(default=lambda line: None)
    progress: Callable[[float, str], None] = field(default=lambda share, doing: None)
    failed: Callable[[Exception], None] | None = None

    def check(self) -> None:
        """See that it can be done.

        Raises:
            UsageError: it cannot.
        """
        for structure in self.structures:
            for score in self.scores:
                check(structure, score, self.scope)
        for value in (*self.sparsities, *([] if self.sparsity is None else [self.sparsity])):
            if not 0 <= value < 1:
                raise UsageError(f"A sparsity of {value:g} is not a share from 0 to below 1.")
        if (self.export is None) != (self.sparsity is None):
            raise UsageError("--export DIR and --sparsity belong together: give both or neither.")
        if self.export is not None and self.structures[0] == "2:4" and self.sparsity != 0.5:
            raise UsageError("2:4 prunes a half. Give --sparsity 0.5, or another --structure.")
        if self.finetune_lr is not None and self.finetune_lr <= 0:
            raise UsageError("--finetune-lr has to be more than 0.")
        if self.finetune and self.finetune_lr is None:
            for subject in self.subjects:
                if subject.setting is None:
                    raise UsageError(
                        f"{subject.source} is no run, so the lr to train it with is not known. "
                        "Give --finetune-lr."
                    )


def run(request: Request) -> dict[str, Any]:
    """Audit what is asked for.

    Returns:
        audit.json, but for what the command knows: when, where and by what it was made.

    Raises:
        UsageError: it cannot be done, or two subjects are of different data.
        SagelrError: a model does not fit its recipe, or a loss is no number.
    """
    request.check()
    torch.set_num_threads(request.subjects[0].recipe.train.threads)
    inspections = [_Inspection(request, index) for index in range(len(request.subjects))]
    first = inspections[0]
    for other in inspections[1:]:
        if other.data["sha256"] != first.data["sha256"]:
            raise UsageError(
                f"{first.subject.source} and {other.subject.source} are of different data "
                f"({first.data['name']}; {other.data['name']}), or of different splits of them. "
                "Their sensitivities cannot be compared; audit them apart."
            )
    request.begin()
    models = [inspection.audited() for inspection in inspections]
    comparison = None
    if len(models) == 2:
        request.progress(0.95, "comparing")
        comparison = sides.compare(
            request.subjects,
            [inspection.load for inspection in inspections],
            [inspection.batches for inspection in inspections],
            [model["sensitivity"] for model in models],
        )
    recipe = first.subject.recipe
    return {
        "recipe": recipe.to_json() | {"metric": recipe.score.to_json()},
        "data": first.data,
        "measurement": first.batches.to_json(),
        "models": models,
        "comparison": comparison,
        "notices": list(dict.fromkeys(line for each in inspections for line in each.notices)),
    }


class _Inspection:
    """One subject's part of an audit."""

    def __init__(self, request: Request, index: int) -> None:
        self.request, self.index = request, index
        self.subject = request.subjects[index]
        self.label = labels(request.subjects)[index]
        self.task: Task = self.subject.recipe.make_task()
        self.batches = TrainingBatches(self.task, request.batch_size, request.examples)
        self.data = self.task.describe()
        self.subject.check_data(self.data)
        self.live = self.subject.live()
        metric = self.subject.recipe.metric
        if self.task.given and metric not in self.task.given:
            raise UsageError(missing_score("metric", metric, self.task.given))
        self.notices: list[str] = []

    def load(self, checkpoint: Path | None = None) -> PreTrainedModel:
        """The model, as it was in the end or at a checkpoint."""
        model, notice = load(self.subject, self.task, checkpoint)
        if notice:
            self._note(notice)
        return model

    def audited(self) -> Audited:
        """Everything of this subject."""
        request, subject = self.request, self.subject
        model = self.load()
        self._progress(0.0, "measuring")
        found = measured(model, self.batches)
        state = subject.folder / OPTIMIZER if subject.folder else None
        seen = None
        if state is not None and state.is_file() and subject.arm and subject.setting:
            seen = multipliers(
                model, self.task, subject.recipe, subject.arm, subject.setting, state
            )
        pruning, exported = None, None
        if request.curves or request.export is not None:
            pruning, exported = self._pruned(model, found)
        return {
            "name": subject.name,
            "label": self.label,
            "path": subject.source,
            "model_class": type(model).__name__,
            "arm": subject.arm,
            "setting": subject.setting,
            "seed": subject.seed,
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "sensitivity": describe(model, found),
            "optimizer": seen,
            "trace": subject.trace,
            "live": self.live,
            "pruning": pruning,
            "export": exported,
        }

    def _pruned(self, model: PreTrainedModel, found: Measured) -> tuple[Pruning, Export | None]:
        request, recipe = self.request, self.subject.recipe
        rows = eval_batch_size(recipe.train)
        scorer = Scorer(self.task, request.split, rows)
        unpruned = scorer(model)
        if recipe.metric not in unpruned:
            scorer = Scorer(self.task, request.split, rows, decode=True)
            unpruned = scorer(model)
        tuners = [None, *([self._tuner()] if request.finetune else [])]
        curves: list[Curve] = []
        exported, to, sparsity = None, request.export, request.sparsity
        how = (request.structures[0], request.scores[0], request.scope)
        with Pruner(model, found, whole=bool(request.finetune)) as pruner:
            if to is not None and sparsity is not None and self.index == 0:
                check_export(pruner, *how, sparsity)
            plan: list[tuple[Structure, str, Tuner | None]] = [
                (structure, score, tuner)
                for structure in (request.structures if request.curves else ())
                for score in request.scores
                for tuner in tuners
                if pruner.total(structure)
            ]
            for done, (structure, score, tuner) in enumerate(plan):
                trained = f", then {tuner.shown}" if tuner else ""
                doing = f"pruning {structure} by {score}{trained}"
                self._progress(0.2 + 0.7 * done / len(plan), doing)
                curves.append(
                    curve(
                        pruner,
                        structure,
                        score,
                        request.scope,
                        request.sparsities,
                        partial(scorer, model),
                        self.task.metrics,
                        tuner,
                        unpruned,
                    )
                )
            if to is not None and sparsity is not None and self.index == 0:
                self._progress(0.9, f"saving {to}")
                try:
                    exported = export(model, pruner, scorer, to, *how, sparsity, tuners[-1])
                except Exception as error:
                    if request.failed is None:
                        raise
                    request.failed(error)
            return {
                "split": request.split,
                "prunable": pruner.total("unstructured"),
                "curves": curves,
                "skipped": pruner.notes,
            }, exported

    def _tuner(self) -> Tuner:
        request, subject = self.request, self.subject
        options = subject.recipe.train
        size = options.batch_size or request.batch_size

        def make(model: Any) -> torch.optim.Optimizer:
            if subject.trained_as is None or subject.setting is None:
                groups = param_groups(model, sage="none")
                for group in groups:
                    del group["sage"]
                return torch.optim.AdamW(groups, lr=request.finetune_lr or 0.0)
            lr = request.finetune_lr or subject.setting["lr"]
            return make_optimizer(model, subject.trained_as, {**subject.setting, "lr": lr})

        def train(pruner: Pruner) -> None:
            finetune(
                pruner,
                self.task,
                make,
                epochs=request.finetune,
                batch_size=size,
                accumulate=options.accumulate,
            )

        return Tuner(request.finetune, train)

    def _note(self, line: str) -> None:
        if line not in self.notices:
            self.notices.append(line)
            self.request.note(line)

    def _progress(self, share: float, doing: str) -> None:
        """Each subject has its equal part of the whole."""
        every = len(self.request.subjects)
        self.request.progress((self.index + share) / every, f"{self.label}: {doing}")
