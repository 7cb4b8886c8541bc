"""The same step on lists of tensors: a few kernel launches for a whole group.

Costs about six copies of the parameters in passing, in the dtype it computes in. The default on
accelerators where no fused engine can run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sagelr import rule
from sagelr.engines.plan import Place, Plan, State, compute_dtype
from sagelr.state import formats, rounding


def update(
    plan: Plan,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    places: Sequence[Place],
) -> None:
    """Take one step on every parameter, in place; all share one device and one dtype."""
    dtype = compute_dtype(params[0].dtype)
    theta = [param.to(dtype) for param in params]
    gradient = [grad.to(dtype) for grad in grads]
    if plan.maximize:
        gradient = list(torch._foreach_neg(gradient))
    torch._foreach_add_(state["step"], 1)
    steps = [plan.count(step) for step in state["step"]]
    own = [{name: tensors[i] for name, tensors in state.items()} for i in range(len(params))]
    # Averages stored in the dtype of arithmetic are updated where they lie.
    averages = {
        name: [formats.read(tensors, name, dtype) for tensors in own] for name in plan.state_names()
    }

    multiplier = None
    if plan.sage:
        smoothed = averages["exp_avg_sensitivity"]
        torch._foreach_add_(state["sensitivity_step"], 1)
        sensitivity = rule.sensitivity(theta, gradient)
        torch._foreach_lerp_(smoothed, sensitivity, 1 - plan.beta0)  # rule.smooth, in place
        if plan.sage_bias_correction:
            counts = [plan.count(step) for step in state["sensitivity_step"]]
            smoothed = rule.bias_correct(smoothed, plan.beta0, counts)
        variation = rule.variation(sensitivity, smoothed)
        multiplier = rule.multiplier(variation, smoothed, plan.sage_eps)

    if plan.decay == "l2" and plan.weight_decay:
        gradient = list(torch._foreach_add(gradient, theta, alpha=plan.weight_decay))
    direction = plan.base.directions(gradient, averages, steps)

    chances = [plan.chance(step, place) for step, place in zip(state["step"], places, strict=True)]
    for name, values in averages.items():
        how = plan.storage(name)
        for tensors, value, chance in zip(own, values, chances, strict=True):
            formats.write(tensors, name, value, how, chance)

    if plan.decay == "scaled" and plan.weight_decay:
        torch._foreach_add_(direction, theta, alpha=plan.weight_decay)
    if multiplier is not None:
        torch._foreach_mul_(direction, multiplier)
    torch._foreach_mul_(direction, plan.lr)
    if plan.decay == "decoupled" and plan.weight_decay:
        torch._foreach_mul_(theta, 1 - plan.lr * plan.weight_decay)
    torch._foreach_sub_(theta, direction)
    if dtype == params[0].dtype:
        return
    if plan.rounding == "stochastic" and params[0].dtype == torch.bfloat16:
        theta = [
            value
            if chance is None
            else rounding.stochastic_bfloat16(value, chance.bits("param", value))
            for value, chance in zip(theta, chances, strict=True)
        ]
    torch._foreach_copy_(list(params), theta)
