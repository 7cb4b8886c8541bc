"""`Sage(base)`: SAGE on top of any torch optimizer that takes a plain step."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import StateDict

from sagelr import probe, rule
from sagelr.engines.plan import compute_dtype
from sagelr.optim.base import SageOptimizer
from sagelr.optim.checks import check_numbers, check_params, with_grad
from sagelr.state import checkpoint, rounding

# Optimizers that decay weights by θ ← (1 − lr·λ)·θ, apart from their direction, of whatever width
# their state is and wherever it is paged to. Others say so in a group option
# (decoupled_weight_decay in torch, weight_decouple in pytorch-optimizer).
DECOUPLED = re.compile(r"Adafactor|Muon|_?(Paged)?(AdamW|Lion)(4bit|8bit|32bit|Fp8)?")
DECOUPLED_OPTIONS = ("decoupled_weight_decay", "weight_decouple")

# What cannot be wrapped rightly, and why. The name of the class, or a mark that its kind carries.
REFUSED = {
    "LBFGS": "it evaluates the model several times within one step",
    "SparseAdam": "it takes sparse gradients, for which SAGE has no rule",
    "ASGD": "it averages the weights it has set itself, not those that SAGE sets",
    "AcceleratedOptimizer": "it may leave its step out; wrap what is within it, and prepare that",
}
MARKS = (
    ("first_step", "it takes two steps for one gradient, as SAM does"),
    ("base_optimizer", "it steps another optimizer within its own step"),
    ("master_weights", "it keeps fp32 master weights, which would undo SAGE's step"),
    ("master_params", "it keeps fp32 master weights, which would undo SAGE's step"),
    ("single_partition_of_fp32_groups", "it keeps fp32 master weights that would undo SAGE's step"),
)


@dataclass(frozen=True)
class _Kept:
    """What is needed of a parameter after the base has moved it."""

    group: Mapping[str, Any]
    param: Tensor
    theta: Tensor
    smoothed: Tensor
    multiplier: Tensor


class Sage(Optimizer):
    """SAGE on another torch optimizer: θ ← θ_old + r·(θ_new − θ_old).

    The base steps as it always does; SAGE then takes back what the multiplier does not allow.
    Groups and state are the base's own, so schedulers, checkpoints and the rest see one optimizer.
    With torch.optim.AdamW as base it equals `SageAdamW`, at a cost: while stepping it holds a copy
    of the weights under SAGE, their new Ī and their multipliers. Use the three classes where they
    serve. Hooks that change gradients belong on this optimizer: the base's own run after SAGE has
    looked at them.

    Args:
        base: the optimizer to wrap, made as usual. Set `sage` to False in one of its groups to
            leave that group alone.
        beta0: memory of the smoothed sensitivity, in (0, 1).
        sage_eps: ε > 0 of the multiplier, in units of the loss.
        sage_bias_correction: correct Ī for its start from zero.
        decay: "decoupled" leaves the base's decay (1 − lr·λ)·θ outside the multiplier, "inside"
            scales it with everything else. None takes "decoupled" for AdamW, Lion, Muon, Adafactor
            and others known to decay so, and for groups that say so (`decoupled_weight_decay` and
            the like), else "inside": name it for any other base that decays by itself.

    Raises:
        TypeError: `base` is not an optimizer, or cannot be wrapped rightly: LBFGS, SAM,
            schedule-free, averaging, differentiable, or with fp32 master weights.
        ValueError: an option out of range.
        RuntimeError: in `step`, a sparse gradient, or master weights found in the state.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = Sage(torch.optim.RMSprop(model.parameters(), lr=1e-3), beta0=0.75)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()

    Source: Liang et al., ICLR 2022, arXiv 2202.02664. The wrapping is ours.
    """

    base: Optimizer
    _own: dict[str, Any]
    _decay: Literal["decoupled", "inside"] | None

    def __init__(
        self,
        base: Optimizer,
        *,
        beta0: float = 0.75,
        sage_eps: float = 1e-12,
        sage_bias_correction: bool = True,
        decay: Literal["decoupled", "inside"] | None = None,
    ) -> None:
        _refuse(base)
        if decay not in (None, "decoupled", "inside"):
            raise ValueError(
                f"Sage: decay={decay!r} is not None, 'decoupled' or 'inside'. None takes what is "
                f"known of {type(base).__name__}."
            )
        own = {
            "sage": True,
            "beta0": beta0,
            "sage_eps": sage_eps,
            "sage_bias_correction": sage_bias_correction,
        }
        # torch's own way to make an optimizer without groups of its own: hooks and profiling.
        super().__setstate__({"base": base, "_own": own, "_decay": decay})
        self._warned_capturable_if_run_uncaptured = True
        for group in base.param_groups:
            self._adopt(group)
            self._begin(group)

    # -- what is the base's ---------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        for group in self.base.param_groups:
            if not self._own.keys() <= group.keys():  # added to the base, or loaded into it
                self._adopt(group)
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return {"differentiable": False, **self.base.defaults, **self._own}

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; it may set sage, beta0, sage_eps and sage_bias_correction."""
        self.base.add_param_group(param_group)
        try:
            self._adopt(self.base.param_groups[-1])
        except (TypeError, ValueError):
            self.base.param_groups.pop()
            raise

    def _begin(self, group: Mapping[str, Any]) -> None:
        """Give Ī to parameters whose state the base makes when it is made, as Adagrad does.

        What reads a state by the names that a new optimizer has, as torch.distributed.checkpoint
        does, would leave Ī out.
        """
        for param in group["params"] if group["sage"] else ():
            if self.base.state.get(param):
                smoothed = torch.zeros_like(param, dtype=compute_dtype(param.dtype))
                self._set(group, param, smoothed, 0.0)

    def _set(self, group: Mapping[str, Any], param: Tensor, smoothed: Tensor, step: float) -> None:
        """Begin the state that is SAGE's."""
        state = self.base.state[param]
        state["exp_avg_sensitivity"] = smoothed
        state["sensitivity_step"] = checkpoint.count(step, param, bool(group.get("capturable")))

    def _adopt(self, group: dict[str, Any]) -> None:
        for option, value in self._own.items():
            group.setdefault(option, value)
        check_numbers("Sage", group, self._own)
        check_params("Sage", group)
        own_lr = "scale_parameter" in group and not hasattr(self.base, "_get_lr")
        estimates = "d0" in group or "growth_rate" in group  # as Prodigy and D-Adaptation do
        if (own_lr or estimates) and self._is_decoupled(group):
            raise ValueError(
                f"Sage: {type(self.base).__name__} scales lr by itself, so that what its "
                "weight_decay takes off cannot be told from its step. Set weight_decay=0, or give "
                "Sage decay='inside'."
            )

    def __repr__(self) -> str:
        return f"Sage({self.base!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "_own": self._own, "_decay": self._decay}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base" in state:
            super().__setstate__(state)
            self._warned_capturable_if_run_uncaptured = True
        else:  # from load_state_dict
            self.base.__setstate__(state)
            for group in self.base.param_groups:
                self._adopt(group)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state of this optimizer, or of its base alone; Ī then starts afresh.

        State of torch's own optimizers takes its parameter's dtype, as they need it; that of others
        stays as it was saved.

        Raises:
            ValueError: the groups do not match, the state is in 8-bit codes of this package, or was
                saved with `relative` or `lr_scale`, which a wrapped base does not have, or with
                another `decay` or `bias_correction` than it has.
        """
        casts = any(
            kind is not Optimizer and kind.__module__.startswith("torch.optim")
            for kind in type(self.base).__mro__
        )
        checkpoint.load(
            self,
            state_dict,
            super().load_state_dict,
            counts=("sensitivity_step",),
            kept=("exp_avg_sensitivity",) if casts else None,
            decays=self._decays_as,
        )
        for state in self.state.values():
            if "exp_avg_sensitivity" in state:  # of a narrower format of SageAdamW
                kept = state["exp_avg_sensitivity"]
                state["exp_avg_sensitivity"] = kept.to(compute_dtype(kept.dtype))

    # -- the step -------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Let the base take its step, then scale it.

        Args:
            closure: evaluates the model anew and returns the loss; evaluated once, here.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kept = [
            self._keep(group, param)
            for group in self.param_groups
            if group["sage"]
            for _, param, _ in with_grad("Sage", group)
        ]
        self.base.step()
        for item in kept:
            self._scale(item)
        return loss

    def _keep(self, group: Mapping[str, Any], param: Tensor) -> _Kept:
        sensitivity, smoothed, corrected = probe.observe(self, group, param)
        variation = rule.variation(sensitivity, corrected)
        multiplier = rule.multiplier(variation, corrected, group["sage_eps"])
        return _Kept(group, param, param.detach().clone(), smoothed, multiplier)

    def _scale(self, item: _Kept) -> None:
        state = self.state[item.param]
        if any("master" in str(name) for name in state):
            raise RuntimeError(
                f"Sage: {type(self.base).__name__} keeps fp32 master weights in its state, which "
                "would undo SAGE's step. Use SageAdamW, SageAdamax or SageSGD instead."
            )
        if "exp_avg_sensitivity" in state:
            state["exp_avg_sensitivity"].copy_(item.smoothed)
            state["sensitivity_step"] += 1
        else:
            # Only now: many optimizers make their state when they find it empty.
            self._set(item.group, item.param, item.smoothed, 1.0)
        dtype = compute_dtype(item.param.dtype)
        start = item.theta.to(dtype) * (1 - self._decayed(item.group, state))
        moved = item.param.to(dtype) - start
        scaled = start + item.multiplier * moved
        if item.param.dtype == torch.bfloat16 and getattr(self.base, "bf16_stochastic_round", None):
            # torchao's rounds so; rounded to nearest, a part of one of its steps would be none.
            bits = torch.randint_like(scaled, 2**16, dtype=torch.int32) << 16
            scaled = rounding.stochastic_bfloat16(scaled, bits)
        item.param.copy_(scaled)

    def _decayed(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> float | Tensor:
        """The share of a parameter that the base's step just took off as decay, apart from r."""
        if not self._is_decoupled(group):
            return 0.0
        lr, decay, base = group["lr"], group["weight_decay"], vars(self.base)
        if "scale_parameter" in group:  # Transformers' Adafactor makes its own lr of it
            lr = self.base._get_lr(group, state)  # type: ignore[attr-defined]
        if group.get("fixed_decay"):  # pytorch-optimizer: decay is given for a step, whatever lr
            lr = 1.0
        if base.get("decoupled_wd"):  # lion_pytorch: decay is given for the first lr
            decay = decay / base["_init_lr"]
        return lr * decay

    def _is_decoupled(self, group: Mapping[str, Any]) -> bool:
        if not group.get("weight_decay"):
            return False
        if self._decay is not None:
            return self._decay == "decoupled"
        return self._base_decouples(group)

    def _decays_as(self, group: Mapping[str, Any]) -> str:
        """As `Plan.decay` has it."""
        if self._is_decoupled(group):
            return "decoupled"
        return "scaled" if self._base_decouples(group) else "l2"

    def _base_decouples(self, group: Mapping[str, Any]) -> bool:
        for option in DECOUPLED_OPTIONS:
            if option in group:
                return bool(group[option])
        return any(DECOUPLED.fullmatch(name) for name in _kinds(self.base))

    # -- looking inside -------------------------------------------------------------------------

    sensitivity = SageOptimizer.sensitivity
    variation = SageOptimizer.variation
    multiplier = SageOptimizer.multiplier


def _kinds(base: object) -> list[str]:
    """Names of its class and of those that it is a kind of."""
    return [kind.__name__ for kind in type(base).__mro__]


def _refuse(base: object) -> None:
    """Raise where the base's step is not one plain step on the weights it shows."""
    if not isinstance(base, Optimizer):
        raise TypeError(
            f"Sage wraps a torch.optim.Optimizer, got {type(base).__name__}. Make the base first: "
            "Sage(torch.optim.AdamW(model.parameters(), lr=1e-3))."
        )
    name = type(base).__name__
    reason = next((REFUSED[kind] for kind in _kinds(base) if kind in REFUSED), None)
    if isinstance(base, (SageOptimizer, Sage)):
        reason = "it is SAGE already"
    elif "ScheduleFree" in name or any("train_mode" in group for group in base.param_groups):
        reason = "its weights while training are interpolated from two others that it keeps"
    elif base.defaults.get("differentiable"):
        reason = "SAGE on a wrapped base cannot keep its autograd graph (differentiable=True)"
    for mark, why in MARKS:
        if reason is None and getattr(base, mark, None):
            reason = why
    if reason is not None:
        raise TypeError(
            f"Sage cannot wrap {name}: {reason}. SageAdamW, SageAdamax and SageSGD have SAGE built "
            "in; any optimizer with one plain step can be wrapped."
        )
