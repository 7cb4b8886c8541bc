"""SageSGD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from sagelr import bases
from sagelr.engines.plan import Decay, Over, Rounding
from sagelr.optim.base import SageOptimizer
from sagelr.state.formats import StateFormat


class SageSGD(SageOptimizer):
    """SGD, with momentum if wanted, and a learning rate of its own for every parameter, by SAGE.

    ::

        I = |θ·g|;  Ī ← β0·Ī + (1−β0)·I;  r = (|I − Ī| + ε) / (Ī + ε)     Ī corrected by 1−β0^t
        b ← μ·b + (1−τ)·g;  θ ← θ − η·r·b

    With `sage=False` a group follows torch.optim.SGD.

    Args:
        params: parameters, named parameters, or groups of either; see `sagelr.param_groups`.
        lr: η ≥ 0, a float or a one-element tensor.
        momentum: μ ≥ 0.
        dampening: τ, the share of the gradient kept out of the buffer.
        weight_decay: λ ≥ 0.
        nesterov: step along g + μ·b; needs momentum and no dampening.
        beta0: memory of the smoothed sensitivity, in (0, 1).
        sage_eps: ε > 0 of the multiplier, in units of the loss.
        sage: whether SAGE is on.
        lr_scale: a constant factor on lr, > 0; see `SageAdamW`.
        sage_bias_correction: correct Ī for its start from zero.
        decay: where weight decay enters: "l2" (torch's SGD), "scaled", or "decoupled".
        maximize: ascend instead of descend.
        foreach: lists of tensors at once; None uses it on accelerators where `fused` cannot run.
        fused: one pass over memory; None uses it wherever it can run, unless `foreach` is given.
        capturable: safe to capture in a CUDA graph; accelerators alone.
        differentiable: let autograd go through the step.
        state_format: "float32", exact, twice the memory of SGD with momentum; "compact" or
            "bfloat16", here the same: as much as that. See `sagelr.state.formats`.
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
        >>> optimizer = SageSGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()

    Source: Liang et al., ICLR 2022, arXiv 2202.02664; Sutskever et al., ICML 2013.
    """

    base_state_names = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        beta0: float = 0.75,
        sage_eps: float = 1e-12,
        sage: bool = True,
        lr_scale: float = 1.0,
        sage_bias_correction: bool = True,
        decay: Decay = "l2",
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
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "beta0": beta0,
                "sage_eps": sage_eps,
                "sage": sage,
                "sage_lr_scale": lr_scale,
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
        return bases.SGD(group["momentum"], group["dampening"], group["nesterov"])
