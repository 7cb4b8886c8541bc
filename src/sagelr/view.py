"""A look at a running SAGE optimizer: multipliers and sensitivities by layer, from a sample.

Between backward and step, of all that `probe` can show this takes every n-th element and
makes figures of it, cheaply enough to be done while training. `live` and `trace` look with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sagelr import probe, rule
from sagelr.engines.plan import compute_dtype
from sagelr.groups import locate
from sagelr.state import formats, shards

ELEMENTS = 20_000  # looked at in one look, over all layers
QUANTILES = (5, 25, 50, 75, 95)
FROZEN, BOOSTED = 0.01, 1.0
COLUMNS = ("layer", "sensitivity", "before", "smoothed", "variation", "multiplier")


class MultiplierRow(TypedDict):
    """One layer in one look: what SAGE is about to do to it.

    The probe's JSONL file holds one such object a line. Its Parquet file has the same columns, but
    for the quantiles, which are q5 … q95.
    """

    step: int  # that is about to be taken, counted from 1
    layer: str
    kind: str  # attention, feed-forward, embedding, norm, head, other
    depth: int | None  # number of the layer
    parameters: int
    sampled: int  # of these, looked at; in several looks together, of all of them
    sensitivity: float  # mean of Ī as the multiplier takes it
    variation: float  # mean of U
    multiplier: float  # mean of r
    quantiles: dict[str, float]  # "5" "25" "50" "75" "95" of r
    frozen: float  # share with r < 0.01
    boosted: float  # share with r > 1


class Layer(NamedTuple):
    """A layer under SAGE."""

    name: str
    kind: str
    depth: int | None
    parameters: int


@dataclass(frozen=True)
class View:
    """What one look saw: one entry an element, in fp32 on the CPU.

    Attributes:
        layers: those under SAGE.
        layer: index into `layers`.
        sensitivity: I of the coming step.
        before: Ī before it.
        smoothed: Ī after its update, bias-corrected where that is in use.
        variation: U.
        multiplier: r.
    """

    layers: list[Layer]
    layer: Tensor
    sensitivity: Tensor
    before: Tensor
    smoothed: Tensor
    variation: Tensor
    multiplier: Tensor

    @staticmethod
    def together(views: Sequence[View]) -> View:
        """Several looks of one `Viewer` as one."""
        return View(
            views[0].layers,
            *(torch.cat([getattr(view, name) for view in views]) for name in COLUMNS),
        )

    def rows(self, step: int) -> list[MultiplierRow]:
        """Figures of every layer that was seen."""
        if not len(self.layer):  # a process may hold none of what is sharded
            return []
        count = len(self.layers)
        sampled = torch.bincount(self.layer, minlength=count)

        def mean(values: Tensor) -> list[float]:
            sums = torch.bincount(self.layer, weights=values.double(), minlength=count)
            return (sums / sampled).tolist()

        means = [mean(each) for each in (self.smoothed, self.variation, self.multiplier)]
        frozen, boosted = mean(self.multiplier < FROZEN), mean(self.multiplier > BOOSTED)
        quantiles = self._quantiles(sampled).tolist()
        return [
            {
                "step": step,
                "layer": layer.name,
                "kind": layer.kind,
                "depth": layer.depth,
                "parameters": layer.parameters,
                "sampled": int(sampled[i]),
                "sensitivity": means[0][i],
                "variation": means[1][i],
                "multiplier": means[2][i],
                "quantiles": dict(zip(map(str, QUANTILES), quantiles[i], strict=True)),
                "frozen": frozen[i],
                "boosted": boosted[i],
            }
            for i, layer in enumerate(self.layers)
            if sampled[i]
        ]

    def _quantiles(self, sampled: Tensor) -> Tensor:
        """Of r, for each layer: shape (layers, quantiles)."""
        order = self.multiplier.argsort()
        order = order[self.layer[order].argsort(stable=True)]  # by layer, and by r within it
        r = self.multiplier[order]
        level = torch.tensor(QUANTILES, dtype=torch.float64, device="cpu") / 100
        first = (sampled.cumsum(0) - sampled)[:, None]
        place = first + level * (sampled - 1).clamp_(min=0)[:, None]
        place = place.clamp_(max=len(r) - 1)  # a layer that was not seen has no place of its own
        below, above = r[place.floor().long()], r[place.ceil().long()]
        return below.lerp(above, place.frac().to(r.dtype))


class Viewer:
    """Looks at the parameters of an optimizer that are under SAGE.

    Args:
        model: in training, wrapped or not.
        optimizer: a SageAdamW, SageAdamax or SageSGD, or a `Sage`, over its parameters.
        elements: about how many are looked at; more parameters than that are sampled with a stride.
        whole: gather sharded parameters, which every process has to ask for at once; else each
            process sees its own shards.

    Raises:
        ValueError: the optimizer has nothing under SAGE, another multiplier than SAGE's, or
            parameters that the model has not.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        elements: int = ELEMENTS,
        whole: bool = False,
    ) -> None:
        # Accelerate and Lightning wrap it; the groups are the same, the hooks and state are not.
        self.optimizer: Optimizer = getattr(optimizer, "optimizer", optimizer)
        if any("sage" in g for g in self.optimizer.param_groups) and not hasattr(
            self.optimizer, "multiplier"
        ):
            raise ValueError(
                f"{type(self.optimizer).__name__} has SAGE's parameter groups but not its state. "
                "Give the optimizer that it wraps (ZeroRedundancyOptimizer has it as `.optim`)."
            )
        probe.check_rule(self.optimizer)
        self._whole = whole
        places, names = locate(model), {p: name for name, p in model.named_parameters()}
        found: dict[tuple[str, str, int | None], list[Tensor]] = {}
        for group in self.optimizer.param_groups:
            for param in group["params"] if group.get("sage") else ():
                if param not in names:
                    raise ValueError(
                        f"The optimizer holds a parameter of shape {tuple(param.shape)} that "
                        f"{type(model).__name__} has not. Give the model that it was made for."
                    )
                place = places[names[param]]
                found.setdefault((place.layer, place.kind, place.depth), []).append(param)
        if not found:
            raise ValueError(
                f"{type(self.optimizer).__name__} has no parameter under SAGE, so there is nothing "
                "to look at. Use SageAdamW, SageAdamax, SageSGD or Sage(optimizer)."
            )
        self.layers = [
            Layer(name, kind, depth, sum(param.numel() for param in params))
            for name, ((_, kind, depth), params) in zip(
                _told_apart(found, names), found.items(), strict=True
            )
        ]
        index = {param: i for i, params in enumerate(found.values()) for param in params}
        self._params: list[tuple[Tensor, Mapping[str, Any], int]] = [
            (param, group, index[param])
            for group in self.optimizer.param_groups
            for param in group["params"]
            if param in index
        ]
        self.stride = _stride(sum(layer.parameters for layer in self.layers), elements)

    @property
    def beta0(self) -> float:
        """Of the first group under SAGE."""
        return self._params[0][1]["beta0"]

    @torch.no_grad()
    def look(self) -> View | None:
        """What the coming step will do; None while no parameter has a gradient."""
        alike: dict[tuple[Any, ...], list[tuple[Tensor, int]]] = {}
        groups: dict[int, Mapping[str, Any]] = {}
        for param, group, layer in self._params:
            if param.grad is not None and group["sage"]:
                groups[id(group)] = group
                step = float(self.optimizer.state.get(param, {}).get("sensitivity_step", 0.0))
                key = (id(group), param.device, param.dtype, step)
                alike.setdefault(key, []).append((param, layer))
        if not alike:
            return None
        pieces: dict[int, list[_Piece]] = {}
        for (group, _, _, step), items in alike.items():
            params, layers = [param for param, _ in items], [layer for _, layer in items]
            pieces.setdefault(group, []).append(self._seen(groups[group], params, layers, step))
        multipliers = [
            multiplier
            for group, seen in pieces.items()
            for multiplier in _multipliers(groups[group], seen)
        ]
        seen = [piece for each in pieces.values() for piece in each]
        columns = [*zip(*(piece.columns() for piece in seen), strict=True), multipliers]
        return View(
            self.layers,
            torch.cat([piece.layer for piece in seen]),
            *(torch.cat([value.float().cpu() for value in column]) for column in columns),
        )

    def _seen(
        self, group: Mapping[str, Any], params: list[Tensor], layers: list[int], step: float
    ) -> _Piece:
        """What is seen of parameters that differ in nothing but their values."""
        dtype = compute_dtype(params[0].dtype)
        thetas = [self._take(param) for param in params]
        grads = [self._take(param.grad) for param in params]  # pyright: ignore[reportArgumentType]
        before = torch.cat(
            [self._before(param, theta) for param, theta in zip(params, thetas, strict=True)]
        ).to(dtype)
        sizes = [theta.numel() for theta in thetas]
        theta, grad = torch.cat(thetas).to(dtype), torch.cat(grads).to(dtype)
        count = step + 1 if group["sage_bias_correction"] else None
        current, _, smoothed = rule.observe(theta, grad, before, group["beta0"], count)
        layer = torch.tensor(layers, device="cpu").repeat_interleave(
            torch.tensor(sizes, device="cpu")
        )
        variation = rule.variation(current, smoothed)
        return _Piece(params, sizes, layer, current, before, smoothed, variation)

    def _before(self, param: Tensor, like: Tensor) -> Tensor:
        state = self.optimizer.state.get(param, {})
        if "exp_avg_sensitivity" not in state:
            return torch.zeros_like(like)
        held = {name: self._plain(each) for name, each in state.items() if "sensitivity" in name}
        wide = compute_dtype(param.dtype)
        return formats.read_every(held, "exp_avg_sensitivity", self.stride, wide).detach()

    def _take(self, tensor: Tensor) -> Tensor:
        return self._plain(tensor).detach().reshape(-1)[:: self.stride]

    def _plain(self, tensor: Tensor) -> Tensor:
        if self._whole and shards.is_dtensor(tensor):
            return tensor.full_tensor()  # pyright: ignore[reportAttributeAccessIssue]
        return shards.local(tensor)


def _told_apart(
    found: Mapping[tuple[str, str, int | None], list[Tensor]], names: Mapping[Any, str]
) -> list[str]:
    """A name for every layer. What shares one with a layer of another kind has its parameter's."""
    told: list[str] = []
    for (layer, _, _), params in found.items():
        told.append(names[params[0]] if layer in told else layer)
    return told


class _Piece(NamedTuple):
    """Of parameters that are alike, one entry an element, on their device."""

    params: list[Tensor]
    sizes: list[int]
    layer: Tensor
    sensitivity: Tensor
    before: Tensor
    smoothed: Tensor
    variation: Tensor

    def columns(self) -> list[Tensor]:
        """All of a `View` but the multiplier."""
        return [self.sensitivity, self.before, self.smoothed, self.variation]


def _multipliers(group: Mapping[str, Any], pieces: Sequence[_Piece]) -> list[Tensor]:
    """r of every piece of one group."""
    if group.get("relative") is None:
        return [rule.multiplier(p.variation, p.smoothed, group["sage_eps"]) for p in pieces]
    # Of the relative rule, whose mean over a tensor is that over its sample.
    params = [param for piece in pieces for param in piece.params]
    smoothed, variation = (
        [part for piece in pieces for part in getattr(piece, name).split(piece.sizes)]
        for name in ("smoothed", "variation")
    )
    multipliers = rule.relative_multipliers(
        smoothed,
        variation,
        [param.ndim for param in params],
        strength=group["relative"],
        eps=group["sage_eps"],
        over=group["relative_over"],
        confidence=group["relative_confidence"],
    )
    of = iter(multipliers)
    return [torch.cat([next(of) for _ in piece.params]) for piece in pieces]


def _stride(count: int, elements: int) -> int:
    """The first prime that keeps a sample within so many: no width of a layer is a multiple of it.

    Examples:
        >>> _stride(20_000, 20_000), _stride(85_000_000, 20_000)
        (1, 4253)
    """
    stride = max(1, math.ceil(count / elements))
    while any(stride % divisor == 0 for divisor in range(2, math.isqrt(stride) + 1)):
        stride += 1
    return stride
