"""Setting the least of a model's weights to zero, and putting them back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from sagelr.audit.lowest import Ranking
from sagelr.audit.places import Anatomy, Units, dissect, input_dim
from sagelr.audit.schema import Structure
from sagelr.audit.sensitivity import Measured
from sagelr.errors import UsageError

STRUCTURES: tuple[Structure, ...] = get_args(Structure)
KINDS = ("attention", "feed-forward")

# What the lowest of is pruned, from θ, Ī and U.
SCORES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sensitivity": lambda theta, smoothed, variation: smoothed,
    "magnitude": lambda theta, smoothed, variation: theta.abs(),
    "sensitivity-variation": lambda theta, smoothed, variation: smoothed * variation,
    "upper-confidence": lambda theta, smoothed, variation: smoothed + variation,
}


class Pruner:
    """Prunes one model again and again, each time from its weights as they were at first.

    Prunable are the matrices of attention and feed-forward, and where a model has none, all its
    matrices. Use it as a context: at its end the weights are back.

    Args:
        model: what is pruned, in place.
        measured: its sensitivities, see `sagelr.audit.audit`.
        whole: keep all of the model, so that all of it may be trained in between; else only what
            pruning touches.

    Attributes:
        prunable: names of the parameters that unstructured pruning chooses among.
        masks: name → what of it is zero since the last pruning.
        notes: what could not be pruned and why, as sentences.
    """

    def __init__(self, model: nn.Module, measured: Measured, *, whole: bool = False) -> None:
        self.model, self.measured = model, measured
        self.anatomy: Anatomy = dissect(model, measured.sensitivity)
        params = {n: p for n, p in model.named_parameters() if n in measured.sensitivity}
        self.notes = list(self.anatomy.notes)
        inside = [name for name in params if self.anatomy.places[name].kind in KINDS]
        if not any(params[name].ndim >= 2 for name in inside):
            self.notes.append("No attention or feed-forward was found: all matrices are prunable.")
            inside = list(params)
        self.prunable = [name for name in inside if params[name].ndim >= 2]
        self.fours = [name for name in self.prunable if self._in_fours(name)]
        others = [params[name].ndim == 2 for name in self.prunable if name not in self.fours]
        if left := sum(others):
            self.notes.append(f"{left} matrices have no rows of a multiple of 4: not pruned 2:4.")
        if left := len(others) - sum(others):
            self.notes.append(f"{left} tensors are no matrices: not pruned 2:4.")
        self._tensors: dict[str, Tensor] = {name: params[name] for name in inside}
        if whole:
            self._tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self._original = {name: each.detach().clone() for name, each in self._tensors.items()}
        self.masks: dict[str, Tensor] = {}

    def __enter__(self) -> Pruner:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Put every weight back."""
        self.masks = {}
        for name, tensor in self._tensors.items():
            tensor.copy_(self._original[name])

    @torch.no_grad()
    def hold(self) -> None:
        """Set to zero what was pruned; after a step of training, set it to zero again."""
        for name, mask in self.masks.items():
            self._tensors[name].masked_fill_(mask, 0)

    def total(self, structure: Structure) -> int:
        """Parameters, or units, that a structure chooses among."""
        match structure:
            case "unstructured":
                return sum(self._tensors[name].numel() for name in self.prunable)
            case "2:4":
                return sum(self._tensors[name].numel() for name in self.fours)
        return sum(units.count for units in self._units(structure))

    @torch.no_grad()
    def prune(self, structure: Structure, score: str, scope: str, sparsity: float) -> int:
        """Prune the original model.

        Args:
            structure: "unstructured" takes single weights; "2:4" two of every four inputs in a
                row, whatever the sparsity; "heads" and "neurons" whole units, by the mean score
                of their parameters.
            score: one of `SCORES`.
            scope: "global" ranks all together, "layer" takes the same share of each layer.
            sparsity: share that goes, from 0 to 1; rounded to whole weights or units.

        Returns:
            How many parameters, or units, were set to zero.

        Raises:
            UsageError: an unknown structure, score or scope.
        """
        check(structure, score, scope)
        self.restore()
        if structure == "unstructured":
            found = self._weights(self._score(score), scope, sparsity)
            pruned = sum(int(mask.sum()) for mask in found.values())
        elif structure == "2:4":
            found = {name: self._two_of_four(name, self._score(score)) for name in self.fours}
            pruned = sum(int(mask.sum()) for mask in found.values())
        else:
            found, pruned = self._whole_units(structure, self._score(score), scope, sparsity)
        self.masks = found
        self.hold()
        return pruned

    # -- what goes ------------------------------------------------------------------------------

    def _score(self, score: str) -> Callable[[str], Tensor]:
        how, measured = SCORES[score], self.measured
        return lambda name: how(
            self._original[name], measured.sensitivity[name], measured.variation[name]
        )

    def _weights(
        self, score: Callable[[str], Tensor], scope: str, sparsity: float
    ) -> dict[str, Tensor]:
        layers = {name: self.anatomy.places[name].layer for name in self.prunable}
        return _lowest(layers, score, scope, sparsity)

    def _whole_units(
        self, structure: str, score: Callable[[str], Tensor], scope: str, sparsity: float
    ) -> tuple[dict[str, Tensor], int]:
        units = {each.layer: each for each in self._units(structure)}
        means = {}
        for layer, each in units.items():
            scores = {part.parameter: score(part.parameter) for part in each.parts}
            means[layer] = each.means(scores)
        chosen = _lowest({name: name for name in units}, means.__getitem__, scope, sparsity)
        masks: dict[str, Tensor] = {}
        for layer, each in units.items():
            for part in each.parts:
                like = self._tensors[part.parameter]
                masks.setdefault(part.parameter, torch.zeros_like(like, dtype=torch.bool))
            for view in each.split(masks):
                view[chosen[layer]] = True
        return masks, sum(int(mask.sum()) for mask in chosen.values())

    def _units(self, structure: str) -> Iterable[Units]:
        return [units for units in self.anatomy.units if units.kind == structure]

    def _in_fours(self, name: str) -> bool:
        param = self.model.get_parameter(name)
        return param.ndim == 2 and param.shape[input_dim(self.model, name)] % 4 == 0

    def _two_of_four(self, name: str, score: Callable[[str], Tensor]) -> Tensor:
        dim = input_dim(self.model, name)
        scores = score(name).movedim(dim, -1)
        fours = scores.reshape(-1, 4)
        lowest = fours.argsort(dim=1, stable=True)[:, :2]
        mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, lowest, True)
        return mask.view(scores.shape).movedim(-1, dim)


def _lowest(
    layers: Mapping[str, str], score: Callable[[str], Tensor], scope: str, sparsity: float
) -> dict[str, Tensor]:
    """Masks of the lowest share, of all together or of each layer.

    Args:
        layers: name of a tensor → its layer.
        score: name → its scores.
        scope: "global" or "layer".
        sparsity: the share.
    """
    groups: dict[Any, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(layer if scope == "layer" else None, []).append(name)
    masks: dict[str, Tensor] = {}
    for names in groups.values():
        ranking = Ranking(names, score)
        masks |= dict(ranking.lowest(round(sparsity * ranking.count)))
    return masks


def unit(structure: str) -> str:
    """What a structure counts by."""
    return structure if structure in ("heads", "neurons") else "weights"


def check(structure: str, score: str, scope: str) -> None:
    """See that there is such a pruning.

    Raises:
        UsageError: there is not.
    """
    for what, given, allowed in (
        ("structure", structure, STRUCTURES),
        ("score", score, SCORES),
        ("scope", scope, ("global", "layer")),
    ):
        if given not in allowed:
            raise UsageError(f"{given!r} is not a {what}. Allowed: {', '.join(allowed)}.")
