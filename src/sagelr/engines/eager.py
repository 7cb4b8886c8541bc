"""The definition of a step, one tensor at a time. Slow, plain, float64-exact, differentiable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    relative: Sequence[Tensor | None] | None = None,
) -> None:
    """Take one step on every parameter, in place; with `relative_multipliers` where given."""
    own = [{name: tensors[i] for name, tensors in state.items()} for i in range(len(params))]
    relative = relative or [None] * len(params)
    for each in zip(params, grads, own, places, relative, strict=True):
        _update_one(plan, *each)


def _update_one(
    plan: Plan,
    param: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    place: Place,
    relative: Tensor | None,
) -> None:
    theta, gradient = _operands(plan, param, grad)
    dtype = theta.dtype
    state["step"] += 1
    step = plan.count(state["step"])
    chance = plan.chance(state["step"], place)
    averages = {name: formats.read(state, name, dtype) for name in plan.state_names()}
    updated: dict[str, Tensor] = {}

    multiplier = relative
    if plan.sage:
        state["sensitivity_step"] += 1
        before, count = averages["exp_avg_sensitivity"], plan.correct_at(state["sensitivity_step"])
        observed = rule.observe(theta, gradient, before, plan.beta0, count)
        sensitivity, updated["exp_avg_sensitivity"], smoothed = observed
        if relative is None:
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


def _operands(plan: Plan, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """θ and g in the dtype of arithmetic, g in the direction of descent."""
    dtype = compute_dtype(param.dtype)
    # Autograd remembers θ as an operand, and param is about to be overwritten.
    theta = param.clone() if plan.differentiable else param
    gradient = grad.to(dtype)
    return theta.to(dtype), -gradient if plan.maximize else gradient


def relative_multipliers(
    plan: Plan,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    own: Sequence[Mapping[str, Tensor]],
) -> list[Tensor]:
    """Multipliers that compare parameters with each other: of matrices; 1 for everything else.

    A pass of its own, which changes nothing: the mean has to be known before any step is taken.

    Args:
        plan: of a group with `relative`.
        params: all of the group that have a gradient, on whatever device and of whatever dtype.
        grads: their gradients.
        own: the state of each.
    """
    smoothed, variation = [], []
    for param, grad, state in zip(params, grads, own, strict=True):
        theta, gradient = _operands(plan, param, grad)
        before = formats.read(state, "exp_avg_sensitivity", theta.dtype)
        count = plan.correct_at(state["sensitivity_step"] + 1)
        sensitivity, _, average = rule.observe(theta, gradient, before, plan.beta0, count)
        smoothed.append(average)
        variation.append(rule.variation(sensitivity, average))
    assert plan.relative is not None
    return rule.relative_multipliers(
        smoothed,
        variation,
        [param.ndim for param in params],
        strength=plan.relative,
        eps=plan.sage_eps,
        over=plan.relative_over,
        confidence=plan.relative_confidence,
    )
