"""The definition of a step, one tensor at a time. Slow, plain, float64-exact, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sagelr import rule
from sagelr.engines.plan import Plan, State, compute_dtype


def update(plan: Plan, params: Sequence[Tensor], grads: Sequence[Tensor], state: State) -> None:
    """Take one step on every parameter, in place."""
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        _update_one(plan, param, grad, {name: tensors[i] for name, tensors in state.items()})


def _update_one(plan: Plan, param: Tensor, grad: Tensor, state: dict[str, Tensor]) -> None:
    dtype = compute_dtype(param.dtype)
    # Autograd remembers θ as an operand, and param is about to be overwritten.
    theta = param.clone() if plan.differentiable else param
    theta, gradient = theta.to(dtype), grad.to(dtype)
    if plan.maximize:
        gradient = -gradient

    multiplier = None
    if plan.sage:
        state["sensitivity_step"] += 1
        sensitivity = rule.sensitivity(theta, gradient)
        smoothed = rule.smooth(state["exp_avg_sensitivity"], sensitivity, plan.beta0)
        state["exp_avg_sensitivity"].copy_(smoothed)
        if plan.sage_bias_correction:
            step = plan.count(state["sensitivity_step"])
            smoothed = rule.bias_correct(smoothed, plan.beta0, step)
        variation = rule.variation(sensitivity, smoothed)
        multiplier = rule.multiplier(variation, smoothed, plan.sage_eps)

    if plan.decay == "l2" and plan.weight_decay:
        gradient = gradient + plan.weight_decay * theta

    state["step"] += 1
    direction, averages = plan.base.direction(gradient, state, plan.count(state["step"]))
    for name, average in averages.items():
        state[name].copy_(average)

    if plan.decay == "scaled" and plan.weight_decay:
        direction = direction + plan.weight_decay * theta
    if multiplier is not None:
        direction = multiplier * direction
    if plan.decay == "decoupled" and plan.weight_decay:
        theta = theta * (1 - plan.lr * plan.weight_decay)
    param.copy_(theta - plan.lr * direction)
