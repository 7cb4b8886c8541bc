"""Checks of options: each error names the value, what is allowed, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from sagelr.engines.plan import DECAYS, OVERS, ROUNDINGS
from sagelr.state.formats import STATE_FORMATS

_Range = tuple[float, float, str, str]

# option: (low, high, allowed in words, remedy). "[" and "(" in the words tell open from closed.
RANGES: dict[str, _Range] = {
    "eps": (0.0, math.inf, "[0, ∞)", "torch's default is 1e-8"),
    "weight_decay": (0.0, math.inf, "[0, ∞)", "0 turns it off"),
    "beta0": (
        0.0,
        1.0,
        "(0, 1)",
        "it is the memory of the smoothed sensitivity; 0.6 to 0.9 is usual, 0.75 the default",
    ),
    "sage_eps": (
        0.0,
        math.inf,
        "(0, ∞)",
        "with 0 a parameter that is exactly 0 would divide 0 by 0; the default is 1e-12",
    ),
    "sage_lr_scale": (
        0.0,
        math.inf,
        "(0, ∞)",
        "1 leaves lr as it is; the authors tell to try 2 to 5",
    ),
    "momentum": (0.0, math.inf, "[0, ∞)", "0 turns it off, 0.9 is usual"),
    "dampening": (-math.inf, math.inf, "finite", "0 is the default"),
}
SMALLEST_EPS = 1e-37  # that float32 holds in full
DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
FLAGS = (
    "sage",
    "bias_correction",
    "sage_bias_correction",
    "nesterov",
    "maximize",
    "capturable",
    "differentiable",
    "relative_confidence",
)


def check_group(
    name: str, group: Mapping[str, Any], known: Mapping[str, Any], state_names: tuple[str, ...]
) -> None:
    """Check every option of one parameter group.

    Args:
        name: of the optimizer, for the message.
        group: a parameter group with all its options.
        known: the optimizer's own options, by name.
        state_names: of the averages its base keeps.

    Raises:
        ValueError: a value out of range, or options that exclude each other.
        TypeError: a value of the wrong kind.
    """
    where = f"{name}: "
    _check_lr(where, group["lr"])
    if "betas" in known:
        _check_betas(where, group["betas"])
    check_numbers(name, group, known)
    if group["decay"] not in DECAYS:
        allowed = ", ".join(repr(decay) for decay in DECAYS)
        raise ValueError(
            f'{where}decay={group["decay"]!r} is not one of {allowed}. "decoupled" keeps weight '
            'decay outside the multiplier, "scaled" puts it under the multiplier, "l2" adds it to '
            "the gradient."
        )
    if group.get("nesterov") and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError(
            f"{where}nesterov=True needs momentum > 0 and dampening = 0, got momentum="
            f"{group['momentum']!r} and dampening={group['dampening']!r}. Set them so, or leave "
            "nesterov out."
        )
    if group["state_format"] not in STATE_FORMATS:
        allowed = ", ".join(repr(known) for known in STATE_FORMATS)
        raise ValueError(
            f'{where}state_format={group["state_format"]!r} is not one of {allowed}. "float32" is '
            'exact; "compact" takes AdamW\'s memory, the others less.'
        )
    if group["state_format"] == "8bit" and "exp_avg_sq" not in state_names:
        raise ValueError(
            f"{where}state_format='8bit' exists for SageAdamW alone. Use 'bfloat16', the smallest "
            "here."
        )
    if group["rounding"] not in ROUNDINGS:
        allowed = ", ".join(repr(known) for known in ROUNDINGS)
        raise ValueError(
            f"{where}rounding={group['rounding']!r} is not one of {allowed}. It says how a bf16 "
            "parameter is rounded after its step."
        )
    seed = group["rounding_seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 32:
        raise ValueError(
            f"{where}rounding_seed={seed!r} is not an integer in [0, 2^32). 0 is the default."
        )
    for option in ("foreach", "fused"):
        if group[option] not in (None, True, False):
            raise TypeError(f"{where}{option}={group[option]!r} is not None, True or False.")
        if group[option] and group["differentiable"]:
            raise ValueError(
                f"{where}{option}=True cannot keep the autograd graph that differentiable=True "
                f"asks for. Leave {option} out."
            )
    if group["foreach"] and group["fused"]:
        raise ValueError(
            f"{where}foreach=True and fused=True exclude each other. Leave both out for the "
            "fastest engine that can run."
        )
    _check_relative(where, group)
    for option, exact in (("state_format", "float32"), ("rounding", "nearest")):
        if group["differentiable"] and group[option] != exact:
            raise ValueError(
                f"{where}differentiable=True needs {option}={exact!r}, got {group[option]!r}: "
                "rounding has no gradient."
            )


def _check_relative(where: str, group: Mapping[str, Any]) -> None:
    strength = group["relative"]
    if group["relative_over"] not in OVERS:
        allowed = " or ".join(repr(over) for over in OVERS)
        raise ValueError(
            f"{where}relative_over={group['relative_over']!r} is not {allowed}. It says which "
            "sensitivities are compared."
        )
    if strength is None:
        return
    _check_number(where, "relative", strength, (0.0, 2.0, "(0, 2)", "0.5 is what was tried most"))
    for option in ("foreach", "fused"):
        if group[option]:
            raise ValueError(
                f"{where}relative={strength!r} runs in the eager engine alone, and {option}=True "
                f"asks for another. Leave {option} out."
            )


def check_numbers(name: str, group: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Check the plain numbers and flags among a group's options.

    Raises:
        ValueError: a value out of range.
        TypeError: a value of the wrong kind.
    """
    where = f"{name}: "
    for option, allowed in RANGES.items():
        if option in known:
            shown = "lr_scale" if option == "sage_lr_scale" else option
            _check_number(where, shown, group[option], allowed)
    for option in FLAGS:
        if option in known and not isinstance(group[option], bool):
            raise TypeError(f"{where}{option}={group[option]!r} is not a bool. Use True or False.")


def label(group: Mapping[str, Any], index: int) -> str:
    """What to call a parameter of a group in a message."""
    names = group.get("param_names")
    name = f" {names[index]!r}" if names else ""
    return f"parameter{name} of shape {tuple(group['params'][index].shape)}"


def check_params(name: str, group: Mapping[str, Any]) -> None:
    """Refuse parameters that cannot be trained with SAGE.

    Raises:
        TypeError: one is complex, or not of a floating point that torch computes in.
        ValueError: the group's sage_eps is nothing in its dtype.
    """
    for i, param in enumerate(group["params"]):
        if param.is_complex():
            raise TypeError(
                f"{name}: {label(group, i)} is complex ({param.dtype}), for which sensitivity "
                "|θ·g| is not defined here. Store it as real tensors (torch.view_as_real), or give "
                "it to torch's optimizer."
            )
        if not param.is_floating_point():
            if isinstance(param, torch.nn.Parameter):  # quantized and frozen: it has no gradient
                continue
            raise TypeError(
                f"{name}: {label(group, i)} has dtype {param.dtype}. Give it floating-point "
                "tensors."
            )
        if param.is_neg():
            raise TypeError(
                f"{name}: {label(group, i)} has its sign beside its memory, as a part of a "
                "conjugate has. Give param.resolve_neg()."
            )
        if param.dtype not in DTYPES:
            raise TypeError(
                f"{name}: {label(group, i)} has dtype {param.dtype}, which torch cannot compute "
                "in. Train in bfloat16 or wider, and convert afterwards."
            )
        if group["sage_eps"] < SMALLEST_EPS and param.dtype != torch.float64:
            raise ValueError(
                f"{name}: sage_eps={group['sage_eps']!r} is 0 in float32, in which "
                f"{label(group, i)} is computed: where it is exactly 0 it would divide 0 by 0. "
                f"Give at least {SMALLEST_EPS}; the default is 1e-12."
            )


def with_grad(name: str, group: Mapping[str, Any]) -> list[tuple[int, Tensor, Tensor]]:
    """Index, parameter and gradient of those in a group that have one.

    Raises:
        RuntimeError: a gradient is sparse. Nothing has been changed yet.
    """
    found = []
    for i, param in enumerate(group["params"]):
        grad = param.grad
        if grad is None:
            continue
        if grad.layout is not torch.strided:
            raise RuntimeError(
                f"{name}: {label(group, i)} has a sparse gradient ({grad.layout}). A row without a "
                "gradient would keep a stale smoothed sensitivity. Make the layer with "
                "sparse=False, or give its parameters to torch.optim.SparseAdam."
            )
        found.append((i, param, grad))
    return found


def _check_lr(where: str, lr: object) -> None:
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"{where}lr is a tensor of shape {tuple(lr.shape)}. Give one element.")
        # Its value is not read: on an accelerator that would wait for it.
        if lr.device.type != "cpu" or torch.compiler.is_compiling():
            return
        lr = lr.item()
    _check_number(where, "lr", lr, (0.0, math.inf, "[0, ∞)", "1e-3 is a usual start"))


def _check_betas(where: str, betas: object) -> None:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"{where}betas={betas!r} is not a pair. The default is (0.9, 0.999).")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor):
            raise TypeError(f"{where}betas as tensors are not supported. Give two floats.")
        words = (0.0, 1.0, "[0, 1)", "the default is (0.9, 0.999)")
        _check_number(where, f"betas[{i}]", beta, words)


def _check_number(where: str, option: str, value: object, allowed: _Range) -> None:
    low, high, words, remedy = allowed
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{where}{option}={value!r} is not a number. Allowed: {words}; {remedy}.")
    number = float(value)
    above = number > low if words.startswith("(") else number >= low
    if not (above and number < high and math.isfinite(number)):
        raise ValueError(f"{where}{option}={value!r} is out of range. Allowed: {words}; {remedy}.")
