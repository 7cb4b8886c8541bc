"""The definition of a step, one tensor at a time. Slow, plain, float64-exact, differentiable."""

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
    """Take one step on every parameter, in place."""
    for i, (param, grad, place) in enumerate(zip(params, grads, places, strict=True)):
        own = {name: tensors[i] for name, tensors in state.items()}
        _update_one(plan, param, grad, own, place)


def _update_one(
    plan: Plan, param: Tensor, grad: Tensor, state: dict[str, Tensor], place: Place
) -> None:
    dtype = compute_dtype(param.dtype)
    # Autograd remembers θ as an operand, and param is about to be overwritten.
    theta = param.clone() if plan.differentiable else param
    theta, gradient = theta.to(dtype), grad.to(dtype)
    if plan.maximize:
        gradient = -gradient
    state["step"] += 1
    step = plan.count(state["step"])
    chance = plan.chance(state["step"], place)
    averages = {name: formats.read(state, name, dtype) for name in plan.state_names()}
    updated: dict[str, Tensor] = {}

    multiplier = None
    if plan.sage:
        state["sensitivity_step"] += 1
        sensitivity = rule.sensitivity(theta, gradient)
        smoothed = rule.smooth(averages["exp_avg_sensitivity"], sensitivity, plan.beta0)
        updated["exp_avg_sensitivity"] = smoothed
        if plan.sage_bias_correction:
            sensitivity_step = plan.count(state["sensitivity_step"])
            smoothed = rule.bias_correct(smoothed, plan.beta0, sensitivity_step)
        variation = rule.variation(sensitivity, smoothed)
        multiplier = rule.multiplier(variation, smoothed, plan.sage_eps)

    if plan.decay == "l2" and plan.weight_decay:
        gradient = gradient + plan.weight_decay * theta
    direction, moments = plan.base.direction(gradient, averages, step)
    updated.update(moments)
    for name, value in updated.items():
        formats.write(state, name, value, plan.storage(name), chance)

    if plan.decay == "scaled" and plan.weight_decay:
        direction = direction + plan.weight_decay * theta
    if multiplier is not None:
        direction = multiplier * direction
    if plan.decay == "decoupled" and plan.weight_decay:
        theta = theta * (1 - plan.lr * plan.weight_decay)
    theta = theta - plan.lr * direction
    if plan.rounding == "stochastic" and param.dtype == torch.bfloat16 and chance is not None:
        theta = rounding.stochastic_bfloat16(theta, chance.bits("param", param))
    param.copy_(theta)
