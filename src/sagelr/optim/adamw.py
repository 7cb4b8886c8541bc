"""SageAdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from sagelr import bases
from sagelr.engines.plan import Decay, Over, Rounding
from sagelr.optim.base import SageOptimizer
from sagelr.state.formats import StateFormat


class SageAdamW(SageOptimizer):
    """AdamW with a learning rate of its own for every parameter, by SAGE.

    ::

        I = |θ·g|;  Ī ← β0·Ī + (1−β0)·I;  r = (|I − Ī| + ε) / (Ī + ε)     Ī corrected by 1−β0^t
        θ ← θ − η·λ·θ − η·r·m̂ / (√v̂ + eps)

    With `sage=False` a group follows torch.optim.AdamW.

    Args:
        params: parameters, named parameters, or groups of either; `sagelr.param_groups(model)`
            makes the groups the authors used. Every option below but `params` may stand in a
            group.
        lr: η ≥ 0, a float or a one-element tensor. A comparison at AdamW's own lr is not fair to
            either side: r is about 0.5 on average. Tune it, from AdamW's best upwards; the authors
            tell to try 2 to 5 times that.
        betas: memories of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment, ≥ 0.
        weight_decay: λ ≥ 0.
        beta0: memory of the smoothed sensitivity, in (0, 1); 0.6 to 0.9 by task.
        sage_eps: ε > 0 of the multiplier, in units of the loss, in numerator and denominator.
        sage: whether SAGE is on.
        lr_scale: a constant factor on lr, > 0, so that one line can be changed without touching a
            schedule. The same as multiplying lr, weight decay's share included. A heuristic: tune
            it as you would lr. Stands in the groups as `sage_lr_scale`, since schedulers of other
            libraries use the key `lr_scale` for factors of their own.
        bias_correction: correct the moments for their start from zero.
        sage_bias_correction: correct Ī likewise. With it the very first step has r = 0; without
            it that step has r = β0/(1−β0).
        decay: where weight decay enters: "decoupled", outside the multiplier; "scaled", under it;
            "l2", added to the gradient that Adam sees.
        maximize: ascend instead of descend.
        foreach: lists of tensors at once; None uses it on accelerators where `fused` cannot run.
        fused: one pass over memory; None uses it wherever it can run, unless `foreach` is given.
        capturable: safe to capture in a CUDA graph; accelerators alone.
        differentiable: let autograd go through the step.
        state_format: "float32", exact; "compact", AdamW's memory and traffic; "bfloat16", less of
            both; "8bit", a quarter of the memory and half of the traffic of "float32". See
            `sagelr.state.formats`.
        rounding: of bf16 parameters after the step, "nearest" or "stochastic".
        rounding_seed: of the random bits, which depend on it, the step and the element alone.
        relative: beyond the paper, off by default: α in (0, 2) of
            `sagelr.rule.relative_multiplier`, which compares the sensitivities of different
            parameters and takes the place of the multiplier in matrices; other tensors get 1. Runs
            in the eager engine.
        relative_over: "tensor" compares within each matrix, "group" over all of the group.
        relative_confidence: let a sensitivity that varies much count less in that.

    Raises:
        ValueError, TypeError: an option out of range or of the wrong kind.
        RuntimeError: in `step`, a sparse gradient.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = SageAdamW(model.parameters(), lr=2e-3)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> bool(optimizer.multiplier(model.weight).max() < 1e-3)  # the first, corrected step
        True
        >>> optimizer.step()

    Source: Liang et al., ICLR 2022, arXiv 2202.02664; Loshchilov and Hutter, arXiv 1711.05101.
    """

    base_state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        beta0: float = 0.75,
        sage_eps: float = 1e-12,
        sage: bool = True,
        lr_scale: float = 1.0,
        bias_correction: bool = True,
        sage_bias_correction: bool = True,
        decay: Decay = "decoupled",
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_format: StateFormat = "float32",
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        relative: float | None = None,
        relative_over: Over = "tensor",
        relative_confidence: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "beta0": beta0,
                "sage_eps": sage_eps,
                "sage": sage,
                "sage_lr_scale": lr_scale,
                "bias_correction": bias_correction,
                "sage_bias_correction": sage_bias_correction,
                "decay": decay,
                "maximize": maximize,
                "foreach": foreach,
                "fused": fused,
                "capturable": capturable,
                "differentiable": differentiable,
                "state_format": state_format,
                "rounding": rounding,
                "rounding_seed": rounding_seed,
                "relative": relative,
                "relative_over": relative_over,
                "relative_confidence": relative_confidence,
            },
        )

    def _base(self, group: Mapping[str, Any]) -> bases.Base:
        beta1, beta2 = group["betas"]
        return bases.AdamW(beta1, beta2, group["eps"], group["bias_correction"])
