"""Loading state: what torch's own load_state_dict would change, kept as it was saved.

torch casts every loaded tensor to its parameter's dtype, takes execution flags from the file and
drops options that the file does not know. Here a tensor keeps its own dtype, the flags stay as the
optimizer was made, and options missing from the file keep the value they had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sagelr.state import codes, formats, shards

COUNTS = ("step", "sensitivity_step")
# How a step is executed is for the machine at hand, not for the one that saved.
EXECUTION = ("foreach", "fused", "capturable", "differentiable", "state_format")
# Averages, and who keeps them; the first moment is of several kinds.
AVERAGES = {
    "exp_avg_sq": "SageAdamW or torch's AdamW",
    "exp_inf": "SageAdamax or torch's Adamax",
    "momentum_buffer": "SageSGD or torch's SGD",
}
# What torch's other optimizers keep, which nothing here goes on from.
OTHERS = frozenset(
    (
        "acc_delta",
        "ax",
        "eta",
        "mu",
        "mu_product",
        "prev",
        "row_var",
        "square_avg",
        "step_size",
        "sum",
    )
)
# Options of torch's optimizers that have no meaning here.
FOREIGN = ("amsgrad", "decoupled_weight_decay")


def load(
    optimizer: Optimizer,
    state_dict: Mapping[str, Any],
    torch_load: Callable[[Any], None],
    counts: tuple[str, ...] = COUNTS,
    averages: tuple[str, ...] | None = None,
    kept: tuple[str, ...] | None = None,
    decays: Callable[[Mapping[str, Any]], str] | None = None,
) -> None:
    """Load as torch does, hooks and all, then put back what torch changed.

    Args:
        optimizer: the optimizer to load into.
        state_dict: from its kind, or from torch's AdamW, Adamax or SGD.
        torch_load: the optimizer's inherited load_state_dict.
        counts: step counts kept by this package; others stay as torch loads them.
        averages: that the optimizer goes on from; None where its base knows best.
        kept: names of state that keeps its dtype; all by default.
        decays: how a wrapped base decays in a group, as `Plan.decay` has it.

    Raises:
        ValueError: the state is that of another kind of optimizer, was saved with amsgrad or
            without a step count, is of other shapes, or its codes were cast on the way; or the
            groups do not match.
    """
    seen: dict[str, Any] = {}

    def before(_: Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
        # Registered last, so that it sees what the user's own hooks made of the file.
        _refuse_amsgrad(optimizer, incoming)
        if averages is None:
            _refuse_codes(optimizer, incoming)
            _refuse_options(optimizer, incoming, decays)
        else:
            _refuse_foreign(optimizer, incoming, averages)
            incoming = _plain(optimizer, _with_counts(optimizer, incoming, averages), averages)
        _refuse_cast(optimizer, incoming)
        _refuse_shapes(optimizer, incoming, averages or ())
        seen.update(_with_options(optimizer, incoming))
        return seen

    def after(_: Optimizer) -> None:
        _restore(optimizer, seen, counts, kept)

    handles = (
        optimizer.register_load_state_dict_pre_hook(before),
        optimizer.register_load_state_dict_post_hook(after, prepend=True),
    )
    try:
        torch_load(state_dict)
    finally:
        for handle in handles:
            handle.remove()


def _refuse_amsgrad(optimizer: Optimizer, incoming: Mapping[str, Any]) -> None:
    if "amsgrad" in optimizer.defaults:  # a wrapped base that has it
        return
    saved_with = any(group.get("amsgrad") for group in incoming["param_groups"])
    if saved_with or any("max_exp_avg_sq" in state for state in incoming["state"].values()):
        raise ValueError(
            f"This state was saved with amsgrad=True, which {type(optimizer).__name__} does not "
            "have: its denominator would be another from here on. Start afresh from the model's "
            "weights, or go on with torch's optimizer."
        )


def _refuse_foreign(
    optimizer: Optimizer, incoming: Mapping[str, Any], averages: tuple[str, ...]
) -> None:
    """Refuse what would go on from a step count with averages that are not there."""
    name = type(optimizer).__name__
    own = AVERAGES.get(averages[-1], name)
    afresh = "or start afresh from the model's weights."
    for entry in incoming["state"].values():
        held = {name for name, value in entry.items() if value is not None}
        others = held.difference(averages) & {*AVERAGES, *OTHERS, "exp_avg"}
        foreign = sorted(others, key=lambda name: (name not in AVERAGES, name))
        begun = not held.isdisjoint((*averages, *COUNTS))
        lacking = [name for name in averages if name not in held and begun]
        # torch's SGD, and SageSGD, keep no buffer where they have no momentum.
        if foreign or (lacking and lacking != ["momentum_buffer"]):
            has = ", ".join(sorted(held))
            what = f"has {foreign[0]}" if foreign else f"has no {lacking[0]} but {has}"
            known = AVERAGES.get(foreign[0]) if foreign else None
            other = f" load this one into {known}," if known else ""
            raise ValueError(
                f"This state {what}: it is not that of {name}, nor of the optimizer {name} is "
                f"built on. Give a state of {own},{other} {afresh}"
            )
    for group in incoming["param_groups"]:
        # torch's RAdam, which keeps what AdamW keeps and takes other steps with it.
        if "decoupled_weight_decay" in group and "amsgrad" not in group:
            raise ValueError(
                f"This state is that of torch's RAdam, whose steps {name} does not take. Give a "
                f"state of {own}, {afresh}"
            )
        if "ns_steps" in group:  # torch's Muon, whose momentum is an average
            raise ValueError(
                f"This state is that of torch's Muon, whose momentum {name} does not keep. Give a "
                f"state of {own}, {afresh}"
            )


def _refuse_codes(optimizer: Optimizer, incoming: Mapping[str, Any]) -> None:
    """Refuse 8-bit codes of this package, which no base can read."""
    for entry in incoming["state"].values():
        coded = "exp_avg_sensitivity" + formats.SCALE in entry
        if coded or getattr(entry.get("exp_avg_sensitivity"), "dtype", None) == torch.uint8:
            raise ValueError(
                "This state was saved with state_format='8bit', which "
                f"{type(optimizer).__name__} cannot read. Load it into a SageAdamW with "
                "state_format='float32', and give on what that saves."
            )


def _refuse_options(
    optimizer: Optimizer,
    incoming: Mapping[str, Any],
    decays: Callable[[Mapping[str, Any]], str] | None,
) -> None:
    """Refuse what changes a step of this package's optimizers, and the base does otherwise."""
    name = f"{type(optimizer).__name__}({type(getattr(optimizer, 'base', None)).__name__})"
    for group, own in zip(incoming["param_groups"], optimizer.param_groups, strict=False):
        options = [
            ("relative", group.get("relative"), None),
            ("lr_scale", group.get("sage_lr_scale", 1), 1),
        ]
        if "bias_correction" not in own:
            options.append(("bias_correction", group.get("bias_correction", True), True))
        if decays is not None and group.get("decay") and group.get("weight_decay"):
            kind = decays({**own, "weight_decay": group["weight_decay"]})
            options.append(("decay", group["decay"], kind))
        for option, value, off in options:
            if value != off:
                raise ValueError(
                    f"This state was saved with {option}={value}, which {name} does not have. Load "
                    "it into the optimizer that saved it, or start afresh from the model's weights."
                )


def _with_counts(
    optimizer: Optimizer, incoming: Mapping[str, Any], averages: tuple[str, ...]
) -> dict[str, Any]:
    """The file with a step count beside averages, where it has one for a whole group, as Apex does.

    torch's SGD counts nothing, and its buffer does not ask for it.
    """
    states = dict(incoming["state"])
    for group in incoming["param_groups"]:
        for key in group["params"]:
            state = states.get(key, {})
            held = [name for name in averages if state.get(name) is not None]
            if not held or "step" in state or held == ["momentum_buffer"]:
                continue
            if not isinstance(group.get("step"), int | float | Tensor):
                raise ValueError(
                    f"This state has {held[0]} and no step: from a step count of 1 on "
                    f"{type(optimizer).__name__} would take other steps than it was saved for. Put "
                    'the number of steps taken beside it ("step"), or start afresh from the '
                    "model's weights."
                )
            states[key] = {**state, "step": group["step"]}
    return {**incoming, "state": states}


def _plain(
    optimizer: Optimizer, incoming: Mapping[str, Any], averages: tuple[str, ...]
) -> dict[str, Any]:
    """The file with averages as tensors that engines can walk: torchao's as the numbers they code.

    State of a sharded model that goes to a whole one is gathered, for which every process has to
    load it.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    keys = [key for group in incoming["param_groups"] for key in group["params"]]
    states = dict(incoming["state"])
    for key, param in zip(keys, params, strict=False):
        state = dict(states.get(key, {}))
        for name in (*averages, "exp_avg_sensitivity"):
            for kept in (name, name + formats.SCALE):
                value = state.get(kept)
                if isinstance(value, Tensor):
                    state[kept] = _readable(kept, value, param)
        if key in states:
            states[key] = state
    return {**incoming, "state": states}


def _readable(name: str, value: Tensor, param: Tensor) -> Tensor:
    if type(value) in (Tensor, torch.nn.Parameter):
        return value
    if shards.is_dtensor(value):
        return value if shards.is_dtensor(param) else value.full_tensor()  # type: ignore[attr-defined]
    try:
        plain = value.dequantize()
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"This state has {name} as a {type(value).__name__}, which cannot be read here: "
            f"{error}. Start afresh from the model's weights."
        ) from None
    return plain


def _refuse_cast(optimizer: Optimizer, incoming: Mapping[str, Any]) -> None:
    """Refuse codes that were taken for numbers, or numbers for codes.

    Where state is sharded, torch copies what was saved into the tensors that the optimizer has, and
    casts without a word. That is a conversion between formats only where neither has codes.
    """
    for saved, own in zip(incoming["param_groups"], optimizer.param_groups, strict=False):
        saved_as, wanted = saved.get("state_format"), own.get("state_format")
        for key, param in zip(saved["params"], own["params"], strict=False):
            coded = formats.is_coded(str(saved_as), param)
            for name, value in incoming["state"].get(key, {}).items():
                average = isinstance(value, Tensor) and value.ndim and formats.SCALE not in name
                if saved_as and average and coded != (value.dtype == torch.uint8):
                    raise ValueError(
                        f"This state was saved with state_format={saved_as!r}, and torch, filling "
                        f"sharded state of {wanted!r} with it, has cast {name} to {value.dtype}, "
                        "which means nothing. Make the optimizer with the format it was saved in; "
                        "where nothing is sharded, state is converted."
                    )


def _refuse_shapes(
    optimizer: Optimizer, incoming: Mapping[str, Any], averages: tuple[str, ...]
) -> None:
    """Refuse what cannot go with its parameter element for element, such as that of another model.

    What a sharded parameter is given as a whole is checked when its part is taken.
    """
    for saved, own in zip(incoming["param_groups"], optimizer.param_groups, strict=False):
        for key, param in zip(saved["params"], own["params"], strict=False):
            state = incoming["state"].get(key, {})
            for name in (*averages, "exp_avg_sensitivity"):
                for kept, shape in (
                    (name, param.shape),
                    (name + formats.SCALE, codes.blocks(param.shape) if param.ndim else ()),
                ):
                    value = state.get(kept)
                    if not isinstance(value, Tensor) or value.shape == torch.Size(shape):
                        continue
                    if shards.is_dtensor(param) and not shards.is_dtensor(value):
                        continue
                    raise ValueError(
                        f"This state has {kept} of shape {tuple(value.shape)} where a parameter of "
                        f"shape {tuple(param.shape)} stands: it is that of another model, or its "
                        "parameters are in another order. Give the state that was saved with "
                        "these weights, or start afresh from them."
                    )


def _with_options(optimizer: Optimizer, incoming: Mapping[str, Any]) -> dict[str, Any]:
    """The file with every option a group needs, and without torch's that mean nothing here."""
    groups = []
    if len(incoming["param_groups"]) == len(optimizer.param_groups):
        for saved, own in zip(incoming["param_groups"], optimizer.param_groups, strict=True):
            foreign = set(FOREIGN) - set(optimizer.defaults)
            group = {key: value for key, value in saved.items() if key not in foreign}
            for key in optimizer.defaults:
                if key in own and (key in EXECUTION or key not in group):
                    group[key] = own[key]
            adam = saved.get("decoupled_weight_decay") is False and saved.get("weight_decay")
            if adam and "decay" not in saved and group.get("decay") == "decoupled":
                group["decay"] = "l2"  # as torch's Adam decays
            groups.append(group)
    else:  # torch says what is wrong
        groups = incoming["param_groups"]
    return {**incoming, "param_groups": groups}


def _restore(
    optimizer: Optimizer,
    incoming: Mapping[str, Any],
    counts: tuple[str, ...],
    kept: tuple[str, ...] | None,
) -> None:
    """Each tensor in its own dtype, its own memory, and the counts where the step wants them."""
    for saved, group in zip(incoming["param_groups"], optimizer.param_groups, strict=True):
        for key, param in zip(saved["params"], group["params"], strict=True):
            if key not in incoming["state"]:
                continue
            state = optimizer.state[param]
            for name, value in incoming["state"][key].items():
                if value is None:  # SGD without momentum saves momentum_buffer=None
                    del state[name]
                elif name in counts:
                    state[name] = count(value, param, bool(group.get("capturable")))
                elif isinstance(value, Tensor) and name not in COUNTS:
                    casts = kept is not None and name not in kept
                    casts = casts and (value.ndim > 0 or param.ndim == 0)
                    state[name] = _placed(name, state[name] if casts else value, param)
                elif kept is None:
                    state[name] = _nested(value, param)


def _nested(value: Any, param: Tensor) -> Any:
    """Tensors in lists and dicts, as Shampoo keeps them, each in its own dtype."""
    if isinstance(value, Tensor):
        return _placed("", value, param)
    if isinstance(value, dict):
        return {key: _nested(each, param) for key, each in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_nested(each, param) for each in value)
    return value


def _placed(name: str, value: Tensor, param: Tensor) -> Tensor:
    """A copy where the parameter is, and in memory as it is: engines walk both side by side."""
    ours = name.removesuffix(formats.SCALE) in {"exp_avg", "exp_avg_sensitivity", *AVERAGES}
    if ours and shards.is_dtensor(param) and not shards.is_dtensor(value):
        return shards.part(name, value, param)
    plain = type(value) is Tensor and type(param) in (Tensor, torch.nn.Parameter)
    if plain and value.shape == param.shape:
        return torch.empty_like(param, dtype=value.dtype, requires_grad=False).copy_(value)
    return value.detach().to(param.device, copy=True)


def count(value: float | Tensor, param: Tensor, capturable: bool) -> Tensor:
    """A step count: a 0-d fp32 tensor, on the device of the parameter where a graph must hold it.

    In fp32 a count is exact up to 2^24 steps, as torch's is.
    """
    device = param.device if capturable else torch.device("cpu")
    if isinstance(value, Tensor):
        return value.detach().to(device=device, dtype=torch.float32, copy=True)
    return torch.tensor(float(value), dtype=torch.float32, device=device)
