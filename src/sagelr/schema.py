"""What a recipe holds: its tables and keys, checked by pydantic.

`sagelr.recipe` finds, reads and changes recipes; this is what they must look like.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sagelr.tasks import Metric, Task, family

Setting = dict[str, float]
LR_RATIO = "lr_ratio"
TOLD = 3  # differences that a message names
LR_AXES = ("lr", LR_RATIO)  # of a grid, which has one of them
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Train(_Strict):
    """`[train]`: one training, the same for every arm."""

    epochs: int = Field(ge=1, description="over the training split")
    max_steps: int | None = Field(None, ge=1, description="ends the training, in place of epochs")
    batch_size: int | None = Field(None, ge=1, description="rows of a batch, over all devices")
    tokens_per_batch: int | None = Field(
        None, ge=1, description="in place of batch_size: padded tokens of a batch, over all devices"
    )
    eval_batch_size: int | None = Field(
        None,
        ge=1,
        description="rows on one device; a translation without an end is cut at a length that "
        "hangs on the longest source of its batch, so that BLEU may move a little with it",
    )
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one step")
    length_grouped: bool = Field(False, description="rows of like length share a batch")
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt"] = Field(
        "linear", description="of lr, after the warm-up"
    )
    warmup: Finite = Field(
        0.1, ge=0, description="of lr: a share of the steps if below 1, else steps"
    )
    max_grad_norm: Finite = Field(1.0, ge=0, description="of all gradients; 0 turns clipping off")
    label_smoothing: Finite = Field(
        0.0, ge=0, lt=1, description="in the loss, of validation and test too"
    )
    early_stopping: int | None = Field(
        None, ge=1, description="epochs without a better study.select_by; the best one is kept"
    )
    average_checkpoints: int = Field(
        0, ge=0, description="the weights are the mean over the ends of this many last epochs"
    )
    precision: Literal["auto", "float32", "bf16", "fp16"] = Field(
        "float32", description='"auto" is bf16 where the device computes in it, else float32'
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass, to save memory"
    )
    compile: bool = Field(False, description="torch.compile the model")
    save_every: int | None = Field(
        None, ge=1, description="steps from checkpoint to checkpoint; an epoch by default"
    )
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        default=[], description="where losses are logged as well"
    )
    parallel: Literal["ddp", "fsdp2"] = Field("ddp", description="how several devices train one")
    device: Literal["auto", "cpu"] = Field(
        "auto", description='"auto" is an accelerator where there is one'
    )
    threads: int = Field(1, ge=1, description="CPU threads of one training")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.batch_size is None and self.tokens_per_batch is None:
            raise ValueError("batch_size is missing (or tokens_per_batch, in its place)")
        if self.batch_size is not None and self.tokens_per_batch is not None:
            raise ValueError(
                "batch_size counts the rows of a batch, tokens_per_batch its tokens: choose one"
            )
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ValueError(
                f"warmup = {self.warmup:g} is neither a share of the steps (below 1) nor a whole "
                "number of them"
            )
        if self.tokens_per_batch is not None and self.length_grouped:
            raise ValueError(
                "tokens_per_batch puts rows of like length together as it is: leave "
                "length_grouped out"
            )
        if self.early_stopping is not None and self.average_checkpoints:
            raise ValueError(
                "early_stopping keeps the weights of the best epoch, average_checkpoints the mean "
                "of the last ones: choose one of them"
            )
        if self.max_steps is None and self.average_checkpoints > self.epochs:
            raise ValueError(
                f"average_checkpoints = {self.average_checkpoints} is more than the "
                f"{self.epochs} epochs there are"
            )
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError('precision = "fp16" needs a GPU; a CPU trains in "bf16"')
        return self


class Study(_Strict):
    """`[study]`: how arms are tuned and compared."""

    arms: list[str] = Field(min_length=1, description="names of the arms that are compared")
    select_by: str = Field(
        "loss", description="validation score that settings are chosen by; loss, or a metric"
    )
    tune_seeds: int = Field(2, ge=1, le=1000, description="trainings of each setting")
    report_seeds: int = Field(
        10, ge=2, le=100_000, description="trainings of each arm at its chosen setting"
    )
    max_extensions: int = Field(
        3, ge=0, le=20, description="how often grids may grow whose best lr is at an end"
    )
    margin: Finite = Field(
        gt=0, description="in natural units: differences within it do not matter"
    )


class Arm(_Strict):
    """`[arms.NAME]`: one side of a comparison."""

    label: str = Field(description="what pages call it")
    role: Literal["base", "sage", "variant"] = Field(
        description="a variant is one of torch's optimizers used otherwise than the base"
    )
    base: str | None = Field(None, description="the arm that this one is compared with")
    optimizer: str = Field(
        description="AdamW, Adamax or SGD; for the role sage SageAdamW, SageAdamax, SageSGD or, "
        "for experiments, ControlAdamW with its option control"
    )
    options: dict[str, Any] = Field(
        default={}, description="what the optimizer is given beside its setting"
    )
    scope: str | list[str] = Field(
        "attention+ffn",
        description='parameters that SAGE is on: "attention+ffn", "all", or patterns of names',
    )
    scope_lr_scale: Finite = Field(1.0, gt=0, description="factor on lr for what is in scope")
    grid: dict[str, list[Finite]] = Field(
        description=f"lr, or {LR_RATIO} (multiples of the base's best), and what else is tuned"
    )

    @field_validator("grid")
    @classmethod
    def _grid(cls, grid: dict[str, list[float]]) -> dict[str, list[float]]:
        rates = [axis for axis in LR_AXES if axis in grid]
        if not rates:
            raise ValueError("a grid needs lr: each arm has its own tuned lr")
        if len(rates) > 1:
            raise ValueError(f"a grid has lr or {LR_RATIO}, not both")
        for axis, values in grid.items():
            # Six digits are what the names of runs have of a setting.
            if not values or len({f"{value:.6g}" for value in values}) < len(values):
                raise ValueError(
                    f"{axis} needs one or more values, each once (to six digits); got {values}"
                )
        if min(grid[rates[0]]) <= 0:
            raise ValueError(f"{rates[0]} must be above 0; got {min(grid[rates[0]])}")
        # lr first, however the grid came about: the names of runs tell settings in this order.
        return {
            axis: sorted(grid[axis]) for axis in sorted(grid, key=lambda axis: axis != rates[0])
        }

    @model_validator(mode="after")
    def _role(self) -> Self:
        if self.role != "base" and self.base is None:
            raise ValueError(f"a {self.role} arm names its base, the arm that it is compared with")
        if self.role == "base" and self.base is not None:
            raise ValueError("base = … is for other arms; this one is a base itself")
        if self.role == "base" and self.follows_base:
            raise ValueError(f"{LR_RATIO} is a multiple of the lr of a base; this one is a base")
        if both := sorted(self.options.keys() & self.grid_at(1.0).keys()):
            raise ValueError(f"{both[0]} stands both in options and in the grid")
        return self

    @property
    def scoped(self) -> bool:
        """Whether parameters in scope are stepped otherwise than the rest."""
        return self.role == "sage" or self.scope_lr_scale != 1

    @property
    def follows_base(self) -> bool:
        """Whether its grid is placed by the lr that tuning found for its base."""
        return LR_RATIO in self.grid

    @property
    def lr(self) -> list[float]:
        """The grid's lr, or its multiples of the base's."""
        return self.grid[LR_RATIO if self.follows_base else "lr"]

    def grid_at(self, base_lr: float) -> dict[str, list[float]]:
        """The grid in lr.

        Args:
            base_lr: lr of its base, which multiples are of.
        """
        return {
            "lr" if axis == LR_RATIO else axis: [
                float(f"{value * base_lr:.6g}") if axis == LR_RATIO else value for value in values
            ]
            for axis, values in self.grid.items()
        }

    def settings(self) -> list[Setting]:
        """Every point of the grid."""
        return settings_of(self.grid)


class AuditOptions(_Strict):
    """`[audit]`: what every run that is reported is measured for, beside its scores."""

    enabled: bool = Field(default=False, description="measure sensitivity and pruning curves")
    sparsities: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=[0.0, 0.2, 0.4, 0.6, 0.8], min_length=1, description="shares of the weights that go"
    )
    scores: list[
        Literal["sensitivity", "magnitude", "sensitivity-variation", "upper-confidence"]
    ] = Field(
        default=["sensitivity", "magnitude"],
        min_length=1,
        description="by which the lowest weights go",
    )
    scope: Literal["global", "layer"] = Field(
        default="global", description="the lowest of all layers together, or of each"
    )
    batch_size: int = Field(default=32, ge=1, description="sensitivity depends on it")
    examples: int = Field(
        default=1000, ge=1, description="training rows that sensitivity is a mean over"
    )


class Recipe(_Strict):
    """A whole recipe. `task` and `model` are checked by the task's family."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$", description="its own, and that of its folder under runs/"
    )
    title: str = Field(description="what pages are headed with")
    description: str = Field("", description="a few sentences for the page")
    metric: str = Field(description="of the task's, what arms are compared by")
    task: dict[str, Any]
    model: dict[str, Any] = {}
    train: Train
    study: Study
    arms: dict[str, Arm]
    audit: AuditOptions = AuditOptions()
    aliases: dict[str, str] = Field(default={}, description="short name → key, for --set")
    quick: dict[str, Any] = Field(default={}, description="key → what --quick puts in its place")

    @model_validator(mode="after")
    def _arms(self) -> Self:
        for name in self.study.arms:
            if name not in self.arms:
                raise ValueError(f"study.arms names {name!r}; {nearest(name, self.arms)}")
        if len(set(self.study.arms)) < len(self.study.arms):
            raise ValueError("study.arms names an arm twice")
        labels = [self.arms[name].label for name in self.study.arms]
        if same := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(
                f"two arms of the study have the label {same[0]!r}, and pages could not tell them "
                "apart. Give each its own"
            )
        for name, arm in self.arms.items():
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
                raise ValueError(
                    f"arms.{name!r} is not a name for an arm: small letters, digits, - and _, so "
                    "that --arms and --set can give it"
                )
            base = self.arms.get(arm.base or "")
            if arm.base is not None and (base is None or base.role != "base"):
                raise ValueError(
                    f"arms.{name}.base = {arm.base!r} is not an arm whose role is base"
                )
        sizes = {name: len(self.arms[name].settings()) for name in self.study.arms}
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(
                f"grids of different size ({shown} settings): the arm with more settings would be "
                "tuned better. Give every arm in study.arms as many"
            )
        return self

    @property
    def family(self) -> type[Task]:
        """The family of tasks that this recipe is of."""
        return family(self.task["family"])

    @property
    def score(self) -> Metric:
        """The metric that arms are compared by."""
        return self.family.metrics[self.metric]

    def chosen_arms(self) -> dict[str, Arm]:
        """The arms of the study, in its order."""
        return {name: self.arms[name] for name in self.study.arms}

    def chosen_pairs(self) -> list[tuple[str, str]]:
        """Base and arm of every comparison of the study."""
        arms = self.chosen_arms()
        return [(arm.base, name) for name, arm in arms.items() if arm.base and arm.base in arms]

    def middle(self, name: str) -> Setting:
        """The middle of an arm's grid as written, before anything is tuned."""
        arm = self.arms[name]
        grid = arm.grid_at(self.middle(arm.base)["lr"] if arm.base and arm.follows_base else 1.0)
        return {axis: values[(len(values) - 1) // 2] for axis, values in grid.items()}

    def make_task(self) -> Task:
        """Load the data."""
        cls = self.family
        data, model = cls.DataOptions(**self.task), cls.ModelOptions(**self.model)
        return cls(data, model)

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain data, which `check` takes back."""
        return self.model_dump(mode="json")


def settings_of(grid: Mapping[str, Sequence[float]]) -> list[Setting]:
    """Every point of a grid.

    Examples:
        >>> settings_of({"lr": [0.1, 0.2], "beta0": [0.75]})
        [{'lr': 0.1, 'beta0': 0.75}, {'lr': 0.2, 'beta0': 0.75}]
    """
    return [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe's values by dotted name.

    Examples:
        >>> flat({"train": {"epochs": 2}, "quick": {}})
        {'train.epochs': 2, 'quick': {}}
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def not_finite(value: Any, name: str = "") -> str | None:
    """The first number within that is not finite, by dotted name; None without.

    Examples:
        >>> not_finite({"arms": {"sgd": {"options": {"eps": float("inf"), "nesterov": True}}}})
        'arms.sgd.options.eps = inf'
    """
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{name} = {value}"
    if isinstance(value, Mapping):
        parts = ((f"{name}.{key}" if name else str(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        parts = ((f"{name}[{index}]", part) for index, part in enumerate(value))
    else:
        return None
    return next((found for key, part in parts if (found := not_finite(part, key))), None)


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two flat tables, in words.

    Examples:
        >>> changes({"train.epochs": 2}, {"train.epochs": 3})
        ['train.epochs was 2 and is now 3']
    """
    return [
        f"{key} was {then.get(key, 'not set')!r} and is now {now.get(key, 'not set')!r}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]


def first_of(differing: Sequence[str]) -> str:
    """The first few of what differs, and how many more there are."""
    more = f" (and {len(differing) - TOLD} more)" if len(differing) > TOLD else ""
    return "; ".join(differing[:TOLD]) + more


def nearest(name: str, allowed: Mapping[str, Any] | Sequence[str], *, listed: bool = True) -> str:
    """What to say after an unknown name: the nearest right one, and which are allowed."""
    known = list(allowed)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    tail = f"allowed: {', '.join(known)}" if listed or not near else ""
    nearest = f"the nearest right one is {near[0]!r}" if near else ""
    return "; ".join(part for part in (nearest, tail) if part)
