"""Where in a model things are: roles within attention, heads, and feed-forward neurons."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from sagelr.groups import Place, locate, unwrapped_name

# What a component of a parameter's name says of its role in attention, the innermost first.
ROLES = {
    "query": re.compile(r"(?i)(w|to_)?(q|query)(_(proj|lin|linear))?(_weight|_bias)?"),
    "key": re.compile(r"(?i)(w|to_)?(k|key)(_(proj|lin|linear))?(_weight|_bias)?"),
    "value": re.compile(r"(?i)(w|to_)?(v|value)(_(proj|lin|linear))?(_weight|_bias)?"),
    "fused": re.compile(r"(?i)in_proj(_weight|_bias)?|c_attn|w?qkv(_proj)?"),
    "by head": re.compile(r"(?i)query_key_value"),  # q, k, v of one head, then of the next
    "output": re.compile(r"(?i)(w|to_|c_)?(o|out|output|proj)(_(proj|lin|linear))?|dense"),
}
HEAD_SIZES = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "d_head")
ADAPTER = re.compile(r"lora_|adapter")
# Under these names, query, key and value lie one after the other in these libraries; elsewhere
# some lay out one head after the other.
QKV = re.compile(r"(?i)w?qkv(_proj)?")
LIBRARIES = {"torch", "torchvision", "transformers", "timm"}


@dataclass(frozen=True)
class Part:
    """Part of a parameter: along one dimension, from `start`, `size` wide; by default all of it."""

    parameter: str
    dim: int = 0
    start: int = 0
    size: int | None = None

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A view of this part of the parameter's tensor among several."""
        tensor = tensors[self.parameter]
        return tensor if self.size is None else tensor.narrow(self.dim, self.start, self.size)


@dataclass(frozen=True)
class Units:
    """Heads of an attention layer, or neurons of a feed-forward layer.

    A unit is what feeds it (rows of query, key and value, or of the first half, with biases) and
    what reads it (columns of the output, or of the second half). With the latter at zero, nothing
    of the unit reaches the model; it is all that a head is where the order of query, key and value
    in one matrix is not known.

    Attributes:
        kind: "heads" or "neurons".
        layer: as `sagelr.groups.locate` calls it.
        depth: its number.
        count: units.
        parts: each of them holds its share of every unit, in order.
    """

    kind: Literal["heads", "neurons"]
    layer: str
    depth: int | None
    count: int
    parts: tuple[Part, ...]

    def split(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Views of every part with the units as first dimension."""
        found = []
        for part in self.parts:
            view = part.of(tensors)
            found.append(view.unflatten(part.dim, (self.count, -1)).movedim(part.dim, 0))
        return found

    def means(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Mean over the parameters of each unit, shape (count,)."""
        split = [view.reshape(self.count, -1) for view in self.split(tensors)]
        total = torch.stack([view.double().sum(1) for view in split]).sum(0)
        return total / sum(view.shape[1] for view in split)

    def parameters_each(self, tensors: Mapping[str, Tensor]) -> int:
        """Parameters of one unit."""
        return sum(part.of(tensors).numel() for part in self.parts) // self.count


@dataclass
class Anatomy:
    """A model taken apart.

    Attributes:
        places: of every parameter.
        kinds: kind → parts of parameters that are of it; together, all there is.
        units: heads and neurons, in the order of the layers.
        notes: layers whose heads or neurons could not be told, as sentences.
    """

    places: dict[str, Place]
    kinds: dict[str, list[Part]] = field(default_factory=dict)
    units: list[Units] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Weight:
    """A matrix of a layer, whichever way round its module holds it."""

    name: str
    bias: str | None
    rows: int  # outputs
    columns: int  # inputs
    output_dim: int

    def outputs(self, start: int, size: int) -> Iterator[Part]:
        yield Part(self.name, self.output_dim, start, size)
        if self.bias is not None:
            yield Part(self.bias, 0, start, size)

    def inputs(self) -> Part:
        return Part(self.name, 1 - self.output_dim, 0, self.columns)


def dissect(model: nn.Module, measured: Container[str] | None = None) -> Anatomy:
    """Find the roles, heads and neurons of a model, by names, shapes and head sizes.

    Args:
        model: any module. What it holds that is unlike a Transformer is counted under the kind
            that `sagelr.groups.locate` finds.
        measured: names of the parameters that have a sensitivity; heads and neurons that others
            are part of are left out. None is all.
    """
    params = dict(model.named_parameters())
    places = locate(model)
    anatomy = Anatomy({name: places[name] for name in params})
    layers: dict[tuple[str, str], list[str]] = {}
    for name in params:
        layers.setdefault((places[name].layer, places[name].kind), []).append(name)
    for (layer, kind), names in layers.items():
        depth = places[names[0]].depth
        if kind == "attention":
            _attention(model, anatomy, layer, depth, names)
        else:
            anatomy.kinds.setdefault(kind, []).extend(map(Part, names))
        if kind == "feed-forward":
            _feed_forward(model, anatomy, layer, depth, names)
    if measured is not None:
        _leave_frozen(anatomy, measured)
    return anatomy


def _leave_frozen(anatomy: Anatomy, measured: Container[str]) -> None:
    """Leave out units that hold what was not measured, such as those under adapters."""
    kept = []
    for units in anatomy.units:
        if all(part.parameter in measured for part in units.parts):
            kept.append(units)
        else:
            anatomy.notes.append(f"The {units.kind} of {units.layer} are frozen, or in part.")
    anatomy.units = kept


def _attention(
    model: nn.Module, anatomy: Anatomy, layer: str, depth: int | None, names: Sequence[str]
) -> None:
    roles = {name: _role(unwrapped_name(name).removeprefix(layer)) for name in names}
    if "fused" in roles.values() and (other := _fused_otherwise(model, layer)):
        roles = {name: other if role == "fused" else role for name, role in roles.items()}
    weights: dict[str, list[_Weight]] = {}
    for weight in _weights(model, names):
        weights.setdefault(roles[weight.name] or "", []).append(weight)
    heads = _heads(model, layer, weights)
    whole = weights["fused"][0] if "fused" in weights else None
    for name in names:
        role = roles[name]
        if heads is not None and whole is not None and name in (whole.name, whole.bias):
            dim = whole.output_dim if name == whole.name else 0
            for third, (start, size) in heads.spans.items():
                part = Part(name, dim, start, size)
                anatomy.kinds.setdefault(f"attention {third}", []).append(part)
        else:
            told = role if role in ("query", "key", "value", "output") else None
            kind = f"attention {told}" if told else "attention"
            anatomy.kinds.setdefault(kind, []).append(Part(name))
    if heads is None:
        anatomy.notes.append(f"The heads of {layer} cannot be told from its names and shapes.")
    else:
        anatomy.units.append(Units("heads", layer, depth, heads.count, tuple(heads.parts)))


def _fused_otherwise(model: nn.Module, layer: str) -> str | None:
    """The role of a fused matrix that is not query, key and value one after the other."""
    for module in _within(model, layer):
        kind = type(module).__name__
        if kind.startswith("Disentangled") or getattr(module, "multi_query", None) is False:
            return "by head"  # DeBERTa; GPTBigCode
        own = any(map(QKV.fullmatch, [*module._modules, *module._parameters]))
        if kind.startswith("CodeGen") or (own and not _of_a_library(module)):
            return "in an order of its own"
    return None


def _of_a_library(module: nn.Module) -> bool:
    """Whether the module's class, or one that it is made from, is of a library that is known."""
    classes = set(type(module).__mro__) - {nn.Module}
    return any(each.__module__.partition(".")[0] in LIBRARIES for each in classes)


def _within(model: nn.Module, layer: str) -> Iterator[nn.Module]:
    """The modules of a layer, the outermost first, whatever wrappers stand around them."""
    for name, module in model.named_modules():
        own = unwrapped_name(name)
        if own == layer or own.startswith(f"{layer}."):
            yield module


@dataclass(frozen=True)
class _Heads:
    count: int
    parts: list[Part]
    spans: dict[str, tuple[int, int]]  # role → where it is in a fused matrix


def _heads(model: nn.Module, layer: str, weights: Mapping[str, list[_Weight]]) -> _Heads | None:
    """The heads of an attention layer; None where it is not built as usual.

    Where several query heads share a key and a value, these are nobody's own and stay.
    """
    if any(len(found) > 1 for role, found in weights.items() if role) or "output" not in weights:
        return None
    output = weights["output"][0]
    width = output.columns
    size = _head_size(model, layer, width)
    if not size or width % size:
        return None
    parts: list[Part] = []
    spans: dict[str, tuple[int, int]] = {}
    if "fused" in weights:
        fused = weights["fused"][0]
        shared, odd = divmod(fused.rows - width, 2)
        if shared <= 0 or odd:
            return None
        spans = {"query": (0, width), "key": (width, shared), "value": (width + shared, shared)}
        for start, span in spans.values():
            parts += fused.outputs(start, span) if span == width else ()
    elif "by head" in weights:
        whole = weights["by head"][0]
        if whole.rows != 3 * width:
            return None
        parts += whole.outputs(0, whole.rows)
    elif "in an order of its own" in weights:
        pass  # of a head, only what reads it is known
    elif {"query", "key", "value"} <= weights.keys():
        for role in ("query", "key", "value"):
            weight = weights[role][0]
            parts += weight.outputs(0, width) if weight.rows == width else ()
    else:
        return None
    return _Heads(width // size, [*parts, output.inputs()], spans)


def _head_size(model: nn.Module, layer: str, width: int) -> int | None:
    """Features of one head, as the attention module or the model's config says."""
    for module in _within(model, layer):
        for attribute in HEAD_SIZES:
            if isinstance(size := getattr(module, attribute, None), int):
                return size
        for attribute in ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads"):
            if isinstance(count := getattr(module, attribute, None), int) and count > 0:
                return width // count
    for module in _within(model, ""):
        count = getattr(getattr(module, "config", None), "num_attention_heads", None)
        if isinstance(count, int) and count > 0:
            return width // count
    return None


def _feed_forward(
    model: nn.Module, anatomy: Anatomy, layer: str, depth: int | None, names: Sequence[str]
) -> None:
    """One matrix reads the neurons; the others feed them, a gate as well as a value."""
    # A bottleneck widens what the neurons have given; of the width of a gate it is none.
    weights = [each for each in _weights(model, names) if "bottleneck" not in each.name]
    for second in reversed(weights):
        first = [weight for weight in weights if weight is not second]
        count = second.columns
        fits = all(w.columns == second.rows and w.rows % count == 0 for w in first)
        if first and fits:
            parts = [
                part
                for weight in first
                for start in range(0, weight.rows, count)
                for part in weight.outputs(start, count)
            ]
            parts.append(second.inputs())
            anatomy.units.append(Units("neurons", layer, depth, count, tuple(parts)))
            return
    if weights:
        anatomy.notes.append(f"The neurons of {layer} cannot be told from its names and shapes.")


def _weights(model: nn.Module, names: Sequence[str]) -> Iterator[_Weight]:
    """The matrices among some parameters, without those of adapters."""
    for name in names:
        param = model.get_parameter(name)
        if param.ndim != 2 or ADAPTER.search(name):
            continue
        owner, _, own = name.rpartition(".")
        output_dim = 1 - input_dim(model, name)
        bias = f"{owner}.{own.replace('weight', 'bias')}".lstrip(".")
        yield _Weight(
            name,
            bias if bias in names and bias != name else None,
            rows=param.shape[output_dim],
            columns=param.shape[1 - output_dim],
            output_dim=output_dim,
        )


def input_dim(model: nn.Module, name: str) -> int:
    """Which dimension of a matrix its inputs lie along."""
    # transformers' Conv1D, in GPT-2 and its kin, holds inputs × outputs.
    return 0 if type(model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D" else 1


def _role(path: str) -> str | None:
    for component in reversed(path.split(".")):
        for role, pattern in ROLES.items():
            if pattern.fullmatch(component):
                return role
    return None
