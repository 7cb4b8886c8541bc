"""What audit.json holds, key by key: the contract between the audit and the page.

Every number is finite; what is not known is null. Sensitivities are in units of the loss. Where a
key ends in `_by_loss` the sensitivity is divided by the mean loss it was measured at, which makes
models that are trained to a different loss comparable; it is null where that loss is not above 0.

What a run of a study carries is described by `Summary`. The live probe's file, probe.jsonl, holds
one `sagelr.view.MultiplierRow` a line.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from sagelr.view import MultiplierRow

SCHEMA = 1

Structure = Literal["unstructured", "2:4", "heads", "neurons"]

# Term → what it means, for the page to show on demand. audit.json carries them.
DEFINITIONS = {
    "sensitivity": "I = |θ·g|, with g the gradient of the mean loss of one batch: to first order, "
    "how much the loss changes if θ is set to zero. The mean over batches is shown. It depends on "
    "the batch size, which is therefore fixed and stated.",
    "sensitivity by loss": "The sensitivity divided by the mean loss of the same batches. A model "
    "with a lower loss has smaller gradients; this takes most of that out.",
    "variation": "U = |I − Ī| with Ī just updated, averaged over batches. In a measurement Ī is "
    "the mean over the batches so far, in training the optimizer's smoothed sensitivity.",
    "multiplier": "r = (U + ε) / (Ī + ε): the factor that SAGE puts on the lr of a parameter.",
    "frozen": "Share of the parameters with a multiplier under 0.01.",
    "boosted": "Share of the parameters with a multiplier over 1.",
    "share below": "Share of the parameters whose sensitivity is at most so many times the median "
    "of those that are not zero. Zeros count as below.",
    "Gini coefficient": "How unevenly sensitivity is spread: 0 if every parameter has as much as "
    "any other, near 1 if a few have nearly all. From the sketch: at most 0.006 too low.",
    "effective parameters": "The participation ratio (ΣI)² / ΣI²: how many parameters of equal "
    "sensitivity would concentrate it as much.",
    "sparsity": "Share of the prunable parameters (or heads, or neurons) that are set to zero. "
    "Prunable are the weight matrices of attention and feed-forward.",
    "keeps 99%": "The largest sparsity of the curve up to which every point has at least 99% of "
    "the unpruned model's score (for a score where less is better: at most 1/99% of it).",
    "magnitude": "Pruning score |θ|.",
    "sensitivity-variation": "Pruning score Ī·U.",
    "upper-confidence": "Pruning score Ī + U, an upper bound of the sensitivity, as in PLATON.",
    "quantile": "From a sketch with 100 bins a decade: within 1.2% of the exact one.",
    "matched loss": "Both runs at the level of the loss that both have reached: of each run the "
    "checkpoint whose loss on the measured batches is nearest to that level.",
}


class Histogram(TypedDict):
    """Counts in log-spaced bins, those of value 0 apart.

    Bin i holds 10**((first + i) / per_decade) ≤ I < 10**((first + i + 1) / per_decade).
    """

    per_decade: int
    first: int
    counts: list[int]


class Distribution(TypedDict):
    """How sensitivity is spread over a set of parameters."""

    parameters: int
    mean: float
    mean_by_loss: float | None
    zero: int  # parameters whose sensitivity is exactly 0
    quantiles: dict[str, float]  # "1" "5" "25" "50" "75" "95" "99" → sensitivity
    histogram: Histogram
    share_below: dict[str, float]  # "0.001" "0.01" "0.1" times the median → share
    gini: float
    effective: float  # number of parameters
    effective_share: float  # of `parameters`
    variation: float  # mean of U


class Group(Distribution):
    """A layer or a kind of module."""

    name: str
    kind: str
    # a layer's: attention, feed-forward, embedding, norm, head, other
    # a kind's, as its name: attention query, … key, … value, … output, attention (fused or other),
    # feed-forward, embedding, norm, head, other
    depth: int | None  # number of the layer; null for kinds and outside layers


class Units(TypedDict):
    """Heads of one attention layer, or neurons of one feed-forward layer."""

    layer: str
    depth: int | None
    count: int
    parameters_each: int
    means: list[float] | None  # one for each unit, in order; null beyond 512 units
    histogram: Histogram  # of the means
    zero: int  # units whose mean is exactly 0


class Sensitivity(TypedDict):
    """One model's sensitivities."""

    loss: float  # mean over the measured batches
    all: Distribution
    layers: list[Group]
    kinds: list[Group]
    heads: list[Units]
    neurons: list[Units]


class Point(TypedDict):
    """A pruned model, scored."""

    sparsity: float  # asked for
    pruned: int  # parameters (unstructured, 2:4) or units (heads, neurons) set to zero, exactly
    scores: dict[
        str, float | None
    ]  # the task's metrics, natural units, and "loss"; null if no number


class Curve(TypedDict):
    """Scores against sparsity."""

    structure: Structure
    score: str  # what the lowest of is pruned: sensitivity, magnitude, sensitivity-variation, …
    scope: Literal["global", "layer"]
    finetuned: float  # epochs after pruning, 0 for none
    total: int  # prunable parameters, or units
    points: list[Point]  # by sparsity; "2:4" has two, at 0 and at 0.5
    keeps99: dict[str, float]  # metric → sparsity


class Pruning(TypedDict):
    """All curves of one model."""

    split: Literal["validation", "test"]
    prunable: int  # parameters that unstructured pruning chooses among
    curves: list[Curve]
    skipped: list[str]  # what could not be pruned and why, as sentences


class Export(TypedDict):
    """A pruned model that was saved."""

    folder: str
    structure: Structure
    score: str
    scope: str
    sparsity: float
    pruned: int
    scores: dict[str, float | None]  # before saving
    scores_reloaded: dict[str, float | None]  # after loading it anew; equal


class Audited(TypedDict):
    """One model of an audit."""

    name: str  # of the folder or on the hub
    label: str  # arm, or the name; arms of one label with the name
    path: str
    model_class: str
    arm: str | None
    setting: dict[str, float] | None
    seed: int | None
    parameters: int
    sensitivity: Sensitivity
    optimizer: list[MultiplierRow] | None  # of the step after the run, where it kept its state
    trace: dict[str, Any] | None  # what run.json has as `sage`, as in results.json
    live: list[MultiplierRow] | None  # what a probe.jsonl in its folder holds
    pruning: Pruning | None
    export: Export | None


class Side(TypedDict):
    """One side of a comparison at one point of training."""

    model: int  # index into `models`
    checkpoint: str | None  # folder; null for the finished run
    loss: float
    layers: dict[str, float]  # layer → mean sensitivity
    layers_by_loss: dict[str, float] | None
    gini: float
    effective_share: float
    share_below: dict[str, float]


class Comparison(TypedDict):
    """Two models at their own loss and at matched loss, in the order of `models`."""

    own: list[Side]
    matched: list[Side] | None
    level: float | None  # the matched loss
    note: str  # how it was matched, or why it could not be


class Measurement(TypedDict):
    """How sensitivity was measured, the same for every model."""

    split: Literal["train"]
    batch_size: int
    batches: int
    examples: int
    order: str  # which rows, as a sentence


class Audit(TypedDict):
    """audit.json."""

    kind: Literal["audit"]
    schema: int
    sagelr: str
    created: str
    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    recipe: dict[str, Any]  # as in results.json: `metric` is an object
    data: dict[str, Any]  # Task.describe()
    measurement: Measurement
    models: list[Audited]  # one, or two: the model, then what it is held against
    comparison: Comparison | None
    notices: list[str]
    definitions: dict[str, str]
    seconds: float


class LayerSummary(TypedDict):
    """A layer in a run's summary."""

    name: str
    kind: str
    depth: int | None
    parameters: int
    sensitivity: float
    sensitivity_by_loss: float | None


class Summary(TypedDict):
    """What a report run of a study carries as `audit` where the recipe's [audit] is enabled."""

    measurement: Measurement
    loss: float
    layers: list[LayerSummary]
    histogram: Histogram  # of all parameters' sensitivity
    gini: float
    effective_share: float
    share_below: dict[str, float]
    split: Literal["test"]  # of the curves: nothing is chosen by them
    prunable: int
    curves: list[Curve]
