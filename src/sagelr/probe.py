"""Looking inside a running optimizer: what the rule sees, and what the next step will do.

Between backward and step, θ, g and Ī are all there, and `rule.py` makes the rest of them. Nothing
is stored for this and nothing computed until it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sagelr import rule
from sagelr.engines.plan import compute_dtype
from sagelr.state import shards


def sensitivity(optimizer: Optimizer, param: Tensor) -> Tensor:
    """I = |θ·g| of this step, in the dtype of arithmetic."""
    group_of(optimizer, param)
    return rule.sensitivity(*_operands(param))


def variation(optimizer: Optimizer, param: Tensor) -> Tensor:
    """U = |I − Ī|, with the Ī that the next step will have after its update."""
    check_rule(optimizer)
    group = group_of(optimizer, param)
    if not group["sage"]:
        raise ValueError(
            f"variation() of a parameter of shape {tuple(param.shape)} whose group has sage=False: "
            "no smoothed sensitivity is kept for it. Set sage=True in its group, or ask for "
            "sensitivity(), which needs no state."
        )
    current, _, smoothed = observe(optimizer, group, param)
    return rule.variation(current, smoothed)


def multiplier(optimizer: Optimizer, param: Tensor) -> Tensor:
    """r, the factor the next step will put on this parameter's lr; 1 where sage=False."""
    check_rule(optimizer)
    group = group_of(optimizer, param)
    if not group["sage"]:
        return torch.ones_like(param, dtype=compute_dtype(param.dtype))
    if group.get("relative") is not None:
        return _relative(optimizer, group, param)
    current, _, smoothed = observe(optimizer, group, param)
    return rule.multiplier(rule.variation(current, smoothed), smoothed, group["sage_eps"])


def _relative(optimizer: Optimizer, group: Mapping[str, Any], param: Tensor) -> Tensor:
    if param.ndim < 2:
        return torch.ones_like(param, dtype=compute_dtype(param.dtype))
    compared = [param]
    if group["relative_over"] == "group":
        members = (p for p in group["params"] if p.ndim >= 2)
        compared = [p for p in members if p.grad is not None or p is param]
    seen = [observe(optimizer, group, each) for each in compared]
    multipliers = rule.relative_multipliers(
        [smoothed for _, _, smoothed in seen],
        [rule.variation(current, smoothed) for current, _, smoothed in seen],
        [each.ndim for each in compared],
        strength=group["relative"],
        eps=group["sage_eps"],
        over=group["relative_over"],
        confidence=group["relative_confidence"],
    )
    return next(r for each, r in zip(compared, multipliers, strict=True) if each is param)


def check_rule(optimizer: Optimizer) -> None:
    """See that an optimizer's multiplier is the rule's.

    Raises:
        ValueError: it is another one, as in the controls.
    """
    if not getattr(optimizer, "follows_rule", True):
        raise ValueError(
            f"{type(optimizer).__name__} puts another multiplier in the place of SAGE's, which "
            "cannot be looked at. sensitivity() can."
        )


def group_of(optimizer: Optimizer, param: Tensor) -> Mapping[str, Any]:
    """The parameter group that holds this parameter.

    Raises:
        ValueError: none does.
    """
    for group in optimizer.param_groups:
        if any(param is member for member in group["params"]):
            return group
    raise ValueError(
        f"This optimizer holds no such parameter (shape {tuple(param.shape)}). Give a parameter "
        "from its param_groups itself, not a copy of one."
    )


@torch.no_grad()
def _operands(param: Tensor) -> tuple[Tensor, Tensor]:
    """θ and g in the dtype of arithmetic."""
    if param.grad is None:
        raise RuntimeError(
            f"A parameter of shape {tuple(param.shape)} has no gradient. Sensitivity exists "
            "between backward() and step(): look before zero_grad()."
        )
    if param.grad.layout is not torch.strided:
        raise RuntimeError(
            f"A parameter of shape {tuple(param.shape)} has a sparse gradient, for which there is "
            "no rule. Make the layer with sparse=False."
        )
    dtype = compute_dtype(param.dtype)
    return param.detach().to(dtype), param.grad.to(dtype)


@torch.no_grad()
def observe(
    optimizer: Optimizer, group: Mapping[str, Any], param: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """I of this step, Ī after its update, and that Ī as the multiplier takes it (corrected)."""
    theta, grad = _operands(param)
    state = optimizer.state.get(param, {})
    if "exp_avg_sensitivity" in state:
        before = shards.read(state, "exp_avg_sensitivity", theta.dtype)
    else:
        before = torch.zeros_like(theta)
    step = None
    if group["sage_bias_correction"]:
        taken = state.get("sensitivity_step", 0.0)
        # Read, but in a graph, which must not wait for a number.
        step = (taken if group.get("capturable") else float(taken)) + 1
    return rule.observe(theta, grad, before, group["beta0"], step)
