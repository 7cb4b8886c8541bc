"""A model's measured sensitivities in figures: for all of it, by layer, kind, head and neuron."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from sagelr.audit.places import Anatomy, Part, dissect
from sagelr.audit.places import Units as Split
from sagelr.audit.schema import Group, Sensitivity, Units
from sagelr.audit.sensitivity import Measured
from sagelr.audit.sketch import Sketch, distribution, merged, short

LISTED = 512  # units of a layer that are told one by one


def describe(model: nn.Module, measured: Measured) -> Sensitivity:
    """Every distribution of one model, as JSON; see `schema` for what each key is.

    Args:
        model: that was measured.
        measured: its sensitivities, see `sagelr.audit.audit`.
    """
    anatomy = dissect(model, measured.sensitivity)
    layers = list(_layers(anatomy, measured))
    whole = merged(sketch for sketch, _, _ in layers)
    variation = sum(sketch.count * mean for sketch, mean, _ in layers) / max(1, whole.count)
    return {
        "loss": measured.loss,
        "all": distribution(whole, variation, measured.loss),
        "layers": [_group(measured, sketch, mean, *place) for sketch, mean, place in layers],
        "kinds": [
            _group(measured, *_sketched(measured, parts), kind, kind, None)
            for kind, parts in sorted(anatomy.kinds.items())
        ],
        "heads": [_units(each, measured) for each in anatomy.units if each.kind == "heads"],
        "neurons": [_units(each, measured) for each in anatomy.units if each.kind == "neurons"],
    }


def layer_names(anatomy: Anatomy) -> dict[tuple[str, str, int | None], list[str]]:
    """Layer, kind and number → its parameters, in the order of the model."""
    found: dict[tuple[str, str, int | None], list[str]] = {}
    for name, place in anatomy.places.items():
        found.setdefault((place.layer, place.kind, place.depth), []).append(name)
    return found


def _layers(
    anatomy: Anatomy, measured: Measured
) -> Iterator[tuple[Sketch, float, tuple[str, str, int | None]]]:
    for place, names in layer_names(anatomy).items():
        sketch, variation = _sketched(measured, map(Part, names))
        if sketch.count:
            yield sketch, variation, place


def _sketched(measured: Measured, parts: Iterable[Part]) -> tuple[Sketch, float]:
    """A sketch of the sensitivities of some parts, and the mean of their variation."""
    sketch, total = Sketch(), 0.0
    for part in parts:
        if part.parameter in measured.sensitivity:
            sketch.add(part.of(measured.sensitivity))
            total += _sum(part.of(measured.variation))
    return sketch, total / max(1, sketch.count)


def _group(
    measured: Measured,
    sketch: Sketch,
    variation: float,
    name: str,
    kind: str,
    depth: int | None,
) -> Group:
    return {
        "name": name,
        "kind": kind,
        "depth": depth,
        **distribution(sketch, variation, measured.loss),
    }


def _units(units: Split, measured: Measured) -> Units:
    means = units.means(measured.sensitivity)
    sketch = Sketch()
    sketch.add(means)
    return {
        "layer": units.layer,
        "depth": units.depth,
        "count": units.count,
        "parameters_each": units.parameters_each(measured.sensitivity),
        "means": [short(mean) for mean in means.tolist()] if units.count <= LISTED else None,
        "histogram": sketch.histogram(),
        "zero": sketch.zeros,
    }


def _sum(tensor: Tensor) -> float:
    return float(tensor.double().sum())
