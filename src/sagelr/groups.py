"""Parameter groups of a model: which weights decay, and which get SAGE.

The authors apply SAGE to attention and feed-forward weights and biases alone; embeddings, norms,
pooler and head get the plain base optimizer. Here that scope is found for any model that keeps its
attention and feed-forward modules in numbered layers (`encoder.layer.0`, `h.0`, `blocks.0`), from
the names of the modules, their classes and their neighbours.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from sagelr.selection import Names, Selector, listing, matching, select

logger = logging.getLogger("sagelr")

__all__ = ["Place", "locate", "param_groups"]

Kind = Literal["attention", "feed-forward", "embedding", "norm", "head", "other"]


class Place(NamedTuple):
    """Where a parameter sits: the layer it is part of, that layer's number, and what it is."""

    layer: str
    depth: int | None
    kind: Kind


SCOPES: Mapping[str, frozenset[Kind]] = {
    "attention+ffn": frozenset({"attention", "feed-forward"}),
    "attention": frozenset({"attention"}),
    "ffn": frozenset({"feed-forward"}),
}


# What tells a kind, first come first served: a component of the dotted name, or a module's class.
MARKS: Mapping[Kind, tuple[str, str]] = {
    "norm": (r"norm|(^|_)(ln|bn)(_|\d|$)", r"(?<!pre)(?<!post)norm(\d*d|fp32|gated|_)?$"),
    "embedding": (
        r"embed|(^|_)(emb|wte|wpe|rel_pos|cpb)(_|$)|relative_attention_bias|position_bias"
        r"|attention_bias(es)?$"
        r"|(cls|class|mask|dist|distillation|reg|register|pos)_tokens?$",
        r"embedding(bag)?$",
    ),
    "attention": (r"atten|attn|(^|_)(mha|mhsa|msa)(_|$)", r"^(?!.*layer).*(attention|attn)\d*$"),
    "feed-forward": (
        # The r of "forward" is missing in code that is much copied.
        r"(^|_)(mlp|ff(n|wd)?|feed_?for?ward|dense(relu|act|gatedact)dense|moe|expert|intermediate)"
        r"s?(_|\d|$)",
        r"(mlp|ffn|ffwd|feed_?for?ward|glu|experts)\d*$",
    ),
}
# Halves of a feed-forward network that lie loose in their layer, beside its attention.
HALF = re.compile(r"(?i)(fc|lin|linear|w)_?[1-3]|fc_(in|out)|wi(_[01])?|wo|output")
# The whole of one beside attention, if it is a sequence that gives back the width it takes.
SEQUENCE = re.compile(r"(?i)linear(_net)?")
ROUTER = re.compile(r"(?i)router|shared_experts?_gate")
HEAD = re.compile(
    r"(?i)(^|_)(heads?|classifiers?|cls|pool(er|ing)?|predictions?|logits|summary)(_|$)"
    r"|^(score|qa_outputs|proj_out)$"
)
NUMBER = re.compile(r"(?i)(?:.*(?:layer|block)_?)?(\d+)")
BLOCK = re.compile(r"(?i)h|(res)?blocks?")
BIAS = re.compile(r"(?i)(^|[._])bias(es)?([._]|$)")
# Factors of what a layer gives, named after it: bare ones that begin or end so, and modules.
FACTOR = re.compile(r"(?i)^(gate|alpha)_|_(gate|scale)$")
LAYER_SCALE = re.compile(r"(?i)layer_?scale|_hc$")
# Such as have two dimensions or more, most of them of size 1: of a gate, (IA)³, RWKV.
SCALES = re.compile(r"(?i)(^|[._])(ia3_l|layer_?scale|time_(mix|decay|first|faaaa|maa))([._]|$)")
HALVES = re.compile(r"(^|_)(intermediate|output)(_|$)")
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def param_groups(
    model: nn.Module,
    weight_decay: float = 0.01,
    sage: Selector = "attention+ffn",
    *,
    no_decay: Selector | None = None,
) -> list[dict[str, Any]]:
    """Groups of a model's trainable parameters: with and without decay, with and without SAGE.

    Biases, norms and everything else with fewer than two dimensions (layer scales, logit scales,
    gates) get no decay: such a parameter sets an offset or a scale, whose right value is not near
    zero. A relative-position bias is a bias, whatever its shape. A tied weight appears once, under
    its first name; it is in a scope if any of its names is. Parameters with requires_grad=False
    are left out.

    Call it before a wrapper that flattens or partitions parameters (FSDP1, ZeRO-3): afterwards
    their dimensions are gone. FSDP2, DDP and torch.compile keep them.

    Args:
        model: any module with trainable parameters; LoRA adapters count as the module they adapt.
        weight_decay: finite, ≥ 0; of every parameter but those above, which get 0. SageAdamW keeps
            it apart from the gradient. SageAdamax and SageSGD add it to the gradient, as torch's
            do, unless given decay="scaled" or "decoupled"; for Adamax 0.01 is much there.
        sage: "attention+ffn", the authors' scope, without the norms, relative-position tables and
            mixture-of-experts routers inside it (where a model's layers show one of the two alone,
            beside other matrices, a warning names these); "attention" or "ffn", half of it; "all";
            "none"; a regular expression, searched for (`re.search`) in each parameter's name; a
            list of them, any of which may match; or a callable (name, parameter) -> bool.
        no_decay: more parameters without decay: a regular expression, a list of them or a
            callable. None adds nothing.

    Returns:
        At most four groups {"params": [(name, parameter), ...], "weight_decay": float,
        "sage": bool}: SAGE before the rest, decayed before not decayed, each in the order of
        `model.named_parameters()`; empty groups are left out.

    Raises:
        ValueError: weight_decay is negative or not finite; the model has no trainable parameter;
            a scope, pattern or callable that selects none of them; an invalid pattern.
        TypeError: model, weight_decay, sage or no_decay of the wrong type.

    Examples:
        >>> layer = nn.TransformerEncoderLayer(d_model=8, nhead=2, dim_feedforward=16)
        >>> model = nn.ModuleDict({"layers": nn.ModuleList([layer]), "head": nn.Linear(8, 2)})
        >>> for group in param_groups(model):
        ...     first_name, _ = group["params"][0]
        ...     print(group["sage"], group["weight_decay"], len(group["params"]), first_name)
        True 0.01 4 layers.0.self_attn.in_proj_weight
        True 0.0 4 layers.0.self_attn.in_proj_bias
        False 0.01 1 head.weight
        False 0.0 5 layers.0.norm1.weight

    Source: the scope and the decay are those of the code released with Liang et al., ICLR 2022,
    arXiv 2202.02664, which names them for BERT and RoBERTa.
    """
    _check(model, weight_decay)
    names: dict[Tensor, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(param, []).append(name)
    trainable = {param: found for param, found in names.items() if param.requires_grad}
    if not trainable:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameter ({len(names)} parameters, none "
            "with requires_grad=True). Unfreeze some, or add adapters, before making groups."
        )
    scope = _scope(model, trainable, sage)
    spared = set() if no_decay is None else select(trainable, no_decay, "no_decay")
    modules = dict(model.named_modules(remove_duplicate=False))
    groups: dict[tuple[bool, float], list[tuple[str, Tensor]]] = {
        (scaled, decay): [] for scaled in (True, False) for decay in (float(weight_decay), 0.0)
    }
    for param, found in trainable.items():
        exempt = param.ndim < 2 or param in spared or any(_is_offset(n, modules) for n in found)
        decay = 0.0 if exempt else float(weight_decay)
        groups[param in scope, decay].append((found[0], param))
    return [
        {"params": params, "weight_decay": decay, "sage": scaled}
        for (scaled, decay), params in groups.items()
        if params
    ]


def locate(model: nn.Module) -> dict[str, Place]:
    """The place of every parameter of a model, by each of its names (a tied weight has several).

    This is what `param_groups` decides by. A feed-forward module counts as one if its layer, or
    the list its layer is in, holds attention, or nothing in the model does; attention outside
    numbered layers counts only in a model that has none inside them, so that attention pooling
    in a head stays out.

    Args:
        model: any module.

    Returns:
        Parameter name → `Place(layer, depth, kind)`, in the order of the parameters.

    Examples:
        >>> layer = nn.TransformerEncoderLayer(d_model=8, nhead=2, batch_first=True)
        >>> locate(nn.TransformerEncoder(layer, num_layers=2))["layers.1.linear2.weight"]
        Place(layer='layers.1.feed-forward', depth=1, kind='feed-forward')
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if isinstance(model, nn.MultiheadAttention):
        return {name: Place("attention", None, "attention") for name in names}
    structure = _Structure(model)
    return {name: _locate(name, structure) for name in names}


class _Structure:
    """What the names alone do not tell: the modules, and which of them stand near attention."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = {
            name: _unwrapped(module) for name, module in model.named_modules(remove_duplicate=False)
        }
        self.beside: set[str] = set()  # modules with an attention module as a child
        self.above: set[str] = set()  # and those with one anywhere below
        self.mixtures: set[str] = set()  # modules with experts as a child
        self.numbered = False  # whether attention occurs in numbered layers
        for name, module in self.modules.items():
            parent, _, component = name.rpartition(".")
            if component in WRAPPERS:  # told already where it is wrapped
                continue
            if "expert" in component.lower():
                self.mixtures.add(parent)
            if not name or _kind_of(component, module) != "attention":
                continue
            outer = parent.split(".") if parent else []
            if any(map(HEAD.search, outer)) or next(module.parameters(), None) is None:
                continue
            self.beside.add(parent)
            self.above.update(".".join(outer[:end]) for end in range(len(outer) + 1))
            self.numbered |= any(map(NUMBER.fullmatch, outer))


def _unwrapped(module: nn.Module) -> nn.Module:
    """A module itself, where torch.compile, FSDP or activation checkpointing stands around it."""
    inner = next((module._modules[name] for name in WRAPPERS if name in module._modules), None)
    return module if inner is None else _unwrapped(inner)


def unwrapped_name(name: str) -> str:
    """The name of a parameter or module without what wrappers add: as it is in `Place.layer`."""
    full = name.split(".")
    return ".".join(full[i] for i in _own(full))


def _own(parts: list[str]) -> list[int]:
    """Which components of a name are no wrapper's."""
    return [i for i, part in enumerate(parts) if part not in WRAPPERS and (i or part != "module")]


def _kind_of(component: str, module: nn.Module | None) -> Kind | None:
    """What a component of a name, or the class of its module, says of it."""
    for kind, (name_mark, class_mark) in MARKS.items():
        by_class = re.search(class_mark, type(module).__name__, re.IGNORECASE)
        if by_class or re.search(name_mark, component, re.IGNORECASE):
            return kind
    return None


def _locate(name: str, structure: _Structure) -> Place:
    """Read a name from its end: the innermost component that says something decides."""
    full = name.split(".")
    kept = _own(full)
    parts = [full[i] for i in kept]
    paths = [".".join(full[: i + 1]) for i in kept]  # the names of their modules
    kinds = _kinds(parts, paths, structure)
    inner: Kind | None = next((kind for kind in reversed(kinds) if kind), None)
    if inner == "attention" or inner == "feed-forward":
        for at, kind in enumerate(kinds):  # the outermost module of this kind is the layer
            if kind == inner and _counts(parts, paths, at, inner, structure):
                return _layer(parts, at + _is_list(paths, at, inner, structure), inner)
        inner = None
    head = any(map(HEAD.search, parts))
    shared = "shared" in parts[-2:]  # T5, BART and Marian call their token embedding so
    kind = inner or ("head" if head else "embedding" if shared else "other")
    owner = ".".join(parts[:-1] or parts) or name
    outside = kind == "head" or "embedding" in kinds
    return Place(owner, None if outside else _depth(parts), kind)


def _kinds(parts: list[str], paths: list[str], structure: _Structure) -> list[Kind | None]:
    """What each component of a name says, corrected by its neighbours."""
    modules = structure.modules
    kinds: list[Kind | None] = []
    for index, (part, path) in enumerate(zip(parts, paths, strict=True)):
        kind = _kind_of(part, modules.get(path))
        parent = path.rpartition(".")[0]
        if kind is None and HALF.fullmatch(part):
            if part == "output":
                loose = f"{parent}.intermediate".lstrip(".") in modules
            else:
                loose = parent in structure.beside
            kind = "feed-forward" if loose else None
        elif kind is None and SEQUENCE.fullmatch(part):
            loose = parent in structure.beside and _keeps_width(modules.get(path))
            kind = "feed-forward" if loose else None
        elif kind is None and HALVES.search(part) and "output" in part:
            other = f"{parent}.{part.replace('output', 'intermediate')}".lstrip(".")
            kind = "feed-forward" if other in modules else None
        bare = index == len(parts) - 1 and path not in modules
        if kind and (LAYER_SCALE.search(part) or (bare and FACTOR.search(part))):
            kind = "other"
        # The gate of a mixture's experts, and not that of a gated unit.
        gate = part == "gate" and kinds[-1:] == ["feed-forward"] and parent in structure.mixtures
        if gate or ROUTER.search(part):
            kind = "other"
        kinds.append(kind)
    return kinds


def _keeps_width(module: nn.Module | None) -> bool:
    """Whether this is a sequence of linear maps as wide at its end as at its beginning."""
    if not isinstance(module, nn.Sequential):
        return False
    maps = [each for each in module.modules() if isinstance(each, nn.Linear)]
    return len(maps) > 1 and maps[0].in_features == maps[-1].out_features


def _counts(parts: list[str], paths: list[str], at: int, kind: Kind, structure: _Structure) -> bool:
    """Whether what is named like attention or feed-forward is a layer's own."""
    if any(map(HEAD.search, parts[:at])):
        return False
    numbers = [i for i in range(at) if NUMBER.fullmatch(parts[i])]
    if not numbers:
        if structure.numbered and not _is_list(paths, at, kind, structure):
            return False
        return kind == "attention" or paths[at].rpartition(".")[0] in structure.beside
    if kind == "attention" or not structure.above:
        return True
    layers = {paths[i] for i in numbers}
    lists = {layer.rpartition(".")[0] for layer in layers} - {""}
    return not structure.above.isdisjoint(layers | lists)


def _is_list(paths: list[str], at: int, kind: Kind, structure: _Structure) -> bool:
    """Whether this is a list of layers of one kind, as XLM keeps them: `attentions.0`."""
    if at + 1 == len(paths):
        return False
    outer, inner = (structure.modules.get(paths[i]) for i in (at, at + 1))
    return isinstance(outer, nn.ModuleList) and _kind_of("", inner) == kind


def _layer(parts: list[str], at: int, kind: Kind) -> Place:
    """The attention or feed-forward layer at this component."""
    name = parts[at]
    if kind == "feed-forward":
        if name != "ffn_output" and HALVES.search(name):  # there may be several pairs in a layer
            name = HALVES.sub(r"\1feed-forward\3", name)
        elif name == "ffn_output" or at == len(parts) - 2 or HALF.fullmatch(name):
            name = "feed-forward"
    layer = ".".join([*parts[:at], name])
    depth = _depth(parts[:at])
    return Place(layer, _depth(parts[: at + 1]) if depth is None else depth, kind)


def _depth(parts: list[str]) -> int | None:
    """The number of the block, or else the innermost number: T5 has `block.3.layer.1`."""
    depth = None
    for before, part in zip(["", *parts], parts, strict=False):
        if found := NUMBER.fullmatch(part):
            depth = int(found[1])
            if BLOCK.fullmatch(before):
                return depth
    return depth


def _is_offset(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a parameter is a bias, part of a norm, or a scale."""
    owner = name.rpartition(".")[0]
    if BIAS.search(name) or SCALES.search(name):
        return True
    return _kind_of(owner.rpartition(".")[2], modules[owner]) == "norm"


def _scope(model: nn.Module, trainable: Names, sage: Selector) -> set[Tensor]:
    """The parameters that get SAGE."""
    if sage == "all" or sage == "none":
        return set(trainable if sage == "all" else ())
    if not (isinstance(sage, str) and sage in SCOPES):
        return select(trainable, sage, "sage")
    places, kinds = locate(model), SCOPES[sage]
    found = matching(trainable, lambda name, _: places[name].kind in kinds)
    if found:
        if sage == "attention+ffn":
            _warn_of_one_kind(model, trainable, places)
        return found
    frozen = sum(place.kind in kinds for place in places.values())
    raise ValueError(
        f"sage={sage!r} found no trainable {' or '.join(sorted(kinds))} parameter in "
        f"{type(model).__name__}{f' ({frozen} such are frozen)' if frozen else ''}. It looks for "
        "them in numbered layers, by the names of the modules (self_attn, attention, mlp, ffn, "
        f"fc1, …) and their classes. {listing(trainable)} Give a regular expression or a callable "
        'that selects them, or sage="all", or sage="none".'
    )


def _warn_of_one_kind(model: nn.Module, trainable: Names, places: Mapping[str, Place]) -> None:
    """Say it where layers hold attention or feed-forward alone, beside matrices of no kind."""
    both = SCOPES["attention+ffn"]
    inside = {name: place for name, place in places.items() if place.kind in both}
    if len(kinds := {place.kind for place in inside.values()}) != 1:
        return
    [found], [missing] = kinds, both - kinds
    layers = {place.layer for place in inside.values()}
    blocks = {block for layer in layers for block in _blocks(layer)}

    def is_left(name: str) -> bool:
        own = unwrapped_name(name)  # routers and gates are in a layer, and are left on purpose
        within = any(own.startswith(f"{layer}.") for layer in layers)
        offset = BIAS.search(own) or SCALES.search(own)
        return not (within or offset or blocks.isdisjoint(_blocks(own)))

    matrices = [names[0] for param, names in trainable.items() if param.ndim > 1]
    left = [name for name in matrices if places[name].kind == "other" and is_left(name)]
    if left:
        rest = f", … ({len(left)} in all)" if len(left) > 3 else ""
        _say_once(
            f'sage="attention+ffn" found {found} in the layers of {type(model).__name__}, and '
            f"nothing that its name or class tells as {missing}. Without SAGE are "
            f"{', '.join(left[:3])}{rest}. If it should be on these too, name all it should be "
            f"on: sage=[{', '.join(_patterns([*inside, *left], blocks))}]."
        )


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)


def _blocks(name: str) -> set[str]:
    """The numbered modules that something is in, and the lists that these are in."""
    parts = name.split(".")
    ends = [i for i, part in enumerate(parts[:-1]) if NUMBER.fullmatch(part)]
    return {".".join(parts[:end]) for i in ends for end in (i, i + 1)} - {""}


def _patterns(names: Sequence[str], blocks: set[str]) -> list[str]:
    """Patterns, as Python has them, of the parts of their blocks that parameters are in."""
    found: dict[str, dict[str, None]] = {}
    for parts in (unwrapped_name(name).split(".") for name in names):
        ends = [end for end in range(len(parts)) if ".".join(parts[:end]) in blocks]
        if ends:
            end = ends[-1]
            end += parts[end].isdigit() and end + 1 < len(parts)  # a layer may be a list itself
            block = [r"\d+" if part.isdigit() else re.escape(part) for part in parts[:end]]
            found.setdefault(r"\.".join(block), {})[re.escape(parts[end])] = None
    return [f'r"{block}\\.({"|".join(parts)})\\b"' for block, parts in found.items()]


def _check(model: nn.Module, weight_decay: float) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is of type {type(model).__name__}, not a torch.nn.Module. Give the model "
            "itself, not its parameters: their names are needed."
        )
    number = isinstance(weight_decay, int | float) and not isinstance(weight_decay, bool)
    if not (number and math.isfinite(weight_decay) and weight_decay >= 0):
        raise (ValueError if number else TypeError)(
            f"weight_decay={weight_decay!r}. Allowed: a finite number ≥ 0; 0 for none."
        )
