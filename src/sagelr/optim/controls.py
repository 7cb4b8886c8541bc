"""Controls: AdamW with multipliers that share one property of SAGE's and lack the others.

If SAGE helps, a control that helps as much shows what did it. They are for experiments, in fp32,
one tensor at a time; see docs/evidence/protocol.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sagelr import rule
from sagelr.engines.plan import Place, Plan
from sagelr.optim.adamw import SageAdamW
from sagelr.optim.base import _Item

Control = Literal["gradient", "shuffled", "norm", "inverse", "variation", "constant"]
CONTROLS: tuple[str, ...] = get_args(Control)
LARGEST = 10.0  # of a multiplier that has no bound of its own
CONSTANT = 0.5  # about SAGE's mean on noise


class ControlAdamW(SageAdamW):
    """AdamW with one of the control multipliers in place of SAGE's.

    ::

        gradient    I = |g| in place of |θ·g|
        shuffled    SAGE's r, its elements in random order within their tensor
        norm        one r for a whole tensor: ‖r·d‖ / ‖d‖ with SAGE's r
        inverse     1/(Ī + ε), divided by its mean over the tensor, clipped to [0, 10]
        variation   U, divided by its mean over the tensor, clipped to [0, 10]
        constant    0.5 everywhere: half the lr, decay apart, for the parameters that SAGE is on

    Args:
        params: parameters, named parameters, or groups of either.
        lr: η ≥ 0.
        betas: memories of the moments, each in [0, 1).
        eps: added to the root of the second moment, ≥ 0.
        weight_decay: λ ≥ 0, outside the multiplier.
        control: which.
        beta0: memory of the smoothed sensitivity, in (0, 1).
        sage_eps: ε > 0, in units of the loss.
        sage_bias_correction: correct Ī for its start from zero.
        seed: of the random order, ≥ 0.

    Raises:
        ValueError, TypeError: an option out of range or of the wrong kind.
        RuntimeError: in `step`, a sparse or sharded gradient.
    """

    follows_rule = False

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        control: Control = "gradient",
        beta0: float = 0.75,
        sage_eps: float = 1e-12,
        sage_bias_correction: bool = True,
        seed: int = 0,
    ) -> None:
        if control not in CONTROLS:
            raise ValueError(
                f"ControlAdamW: control={control!r} is not one of {', '.join(CONTROLS)}."
            )
        self.control = control
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            beta0=beta0,
            sage_eps=sage_eps,
            sage_bias_correction=sage_bias_correction,
            rounding_seed=seed,
        )

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"control": self.control}

    @torch.no_grad()
    def _step_group(self, group: Mapping[str, Any], items: list[_Item]) -> None:
        plan = self._plan(group)
        for item in items:
            if item.sharded:
                raise RuntimeError("ControlAdamW: a parameter is sharded. Train without sharding.")
            self._ensure_state(plan, item.param)
            state = self.state[item.param]
            state["step"] += 1
            direction, moments = plan.base.direction(item.grad, state, state["step"].item())
            for name, value in moments.items():
                state[name].copy_(value)
            if plan.sage:
                direction = self._multiplier(plan, item, state, direction) * direction
            item.param.mul_(1 - plan.lr * plan.weight_decay).sub_(plan.lr * direction)

    def _multiplier(
        self, plan: Plan, item: _Item, state: Mapping[str, Tensor], direction: Tensor
    ) -> Tensor:
        state["sensitivity_step"].add_(1)
        if self.control == "constant":
            return torch.full_like(direction, CONSTANT)
        # |g| is the sensitivity of a parameter that is 1.
        param = torch.ones_like(item.param) if self.control == "gradient" else item.param
        step = state["sensitivity_step"].item() if plan.sage_bias_correction else None
        sensitivity, stored, smoothed = rule.observe(
            param, item.grad, state["exp_avg_sensitivity"], plan.beta0, step
        )
        state["exp_avg_sensitivity"].copy_(stored)
        variation = rule.variation(sensitivity, smoothed)
        match self.control:
            case "inverse":
                return _mean_one(1 / (smoothed + plan.sage_eps))
            case "variation":
                return _mean_one(variation + plan.sage_eps)
        multiplier = rule.multiplier(variation, smoothed, plan.sage_eps)
        match self.control:
            case "shuffled":
                return _shuffled(multiplier, plan.seed, int(state["step"].item()), item.place)
            case "norm":
                length = direction.norm()
                moved = (multiplier * direction).norm()
                return torch.where(length > 0, moved / length, torch.ones_like(length))
        return multiplier


def _mean_one(weights: Tensor) -> Tensor:
    return (weights / weights.mean()).clamp(max=LARGEST)


def _shuffled(multiplier: Tensor, seed: int, step: int, place: Place) -> Tensor:
    """Its elements in an order that depends on seed, step and parameter alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 1009 + place.parameter)
    order = torch.randperm(multiplier.numel(), generator=generator).to(multiplier.device)
    return multiplier.flatten()[order].view_as(multiplier)
