"""The same step on lists of tensors: a few kernel launches for a whole group.

Costs about three copies of the parameters in passing. The default on accelerators.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sagelr import rule
from sagelr.engines.plan import Plan, State, compute_dtype


def update(plan: Plan, params: Sequence[Tensor], grads: Sequence[Tensor], state: State) -> None:
    """Take one step on every parameter, in place; all share one device and one dtype."""
    dtype = compute_dtype(params[0].dtype)
    narrow = dtype != params[0].dtype
    theta = [param.to(dtype) for param in params] if narrow else list(params)
    gradient = [grad.to(dtype) for grad in grads]
    if plan.maximize:
        gradient = list(torch._foreach_neg(gradient))

    multiplier = None
    if plan.sage:
        smoothed = state["exp_avg_sensitivity"]
        torch._foreach_add_(state["sensitivity_step"], 1)
        sensitivity = rule.sensitivity(theta, gradient)
        torch._foreach_lerp_(smoothed, sensitivity, 1 - plan.beta0)  # rule.smooth, in place
        if plan.sage_bias_correction:
            steps = [plan.count(step) for step in state["sensitivity_step"]]
            smoothed = rule.bias_correct(smoothed, plan.beta0, steps)
        variation = rule.variation(sensitivity, smoothed)
        multiplier = rule.multiplier(variation, smoothed, plan.sage_eps)

    if plan.decay == "l2" and plan.weight_decay:
        gradient = list(torch._foreach_add(gradient, theta, alpha=plan.weight_decay))

    torch._foreach_add_(state["step"], 1)
    steps = [plan.count(step) for step in state["step"]]
    direction = plan.base.directions(gradient, state, steps)

    if plan.decay == "scaled" and plan.weight_decay:
        torch._foreach_add_(direction, theta, alpha=plan.weight_decay)
    if multiplier is not None:
        torch._foreach_mul_(direction, multiplier)
    torch._foreach_mul_(direction, plan.lr)
    if plan.decay == "decoupled" and plan.weight_decay:
        torch._foreach_mul_(theta, 1 - plan.lr * plan.weight_decay)
    torch._foreach_sub_(theta, direction)
    if narrow:
        torch._foreach_copy_(list(params), theta)
