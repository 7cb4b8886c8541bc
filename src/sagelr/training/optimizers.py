"""An arm's optimizer: checked before anything is trained, and made for a model."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

import sagelr
from sagelr.errors import SagelrError, UsageError
from sagelr.groups import param_groups
from sagelr.optim.base import SageOptimizer
from sagelr.optim.controls import ControlAdamW
from sagelr.schema import Arm, Setting, settings_of
from sagelr.training.run import name_of

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "Adamax": torch.optim.Adamax,
    "SGD": torch.optim.SGD,
    "SageAdamW": sagelr.SageAdamW,
    "SageAdamax": sagelr.SageAdamax,
    "SageSGD": sagelr.SageSGD,
    "ControlAdamW": ControlAdamW,
}
# Where torch has fused kernels for its own optimizers.
FUSED_ON = frozenset({"cpu", "cuda", "mps", "xpu"})
EXECUTION = frozenset({"fused", "foreach", "differentiable"})


def check_arm(name: str, arm: Arm) -> None:
    """Build the arm's optimizer at every setting, on a single number, to see that it can be.

    Raises:
        UsageError: no such optimizer, an option that it does not have, or a value out of range.
    """
    cls = OPTIMIZERS.get(arm.optimizer)
    if cls is None:
        raise UsageError(
            f"arms.{name}.optimizer = {arm.optimizer!r} is not an optimizer. "
            f"Allowed: {', '.join(OPTIMIZERS)}."
        )
    if issubclass(cls, SageOptimizer) != (arm.role == "sage"):
        raise UsageError(
            f"arms.{name}.role = {arm.role!r} does not fit its optimizer {arm.optimizer}: the "
            "Sage optimizers are for the role sage, torch's own for the roles base and variant."
        )
    # Whether SAGE is on is what an arm's scope says.
    parameters = inspect.signature(cls).parameters
    known = [key for key in parameters if key not in {"params", "sage"}]
    grid = arm.grid_at(1.0)
    for option in (*arm.options, *grid):
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"the nearest right one is {near[0]!r}; " if near else ""
            raise UsageError(
                f"arms.{name}: {arm.optimizer} has no option {option!r}; {hint}"
                f"allowed: {', '.join(known)}."
            )
    for option, value in arm.options.items():
        # torch's take any text for true, "False" too.
        flag = isinstance(parameters[option].default, bool) or option in EXECUTION
        if flag and isinstance(value, str):
            raise UsageError(
                f"arms.{name}.options.{option} = {value!r} is text. Write true or false, as in "
                "TOML."
            )
    for setting in settings_of(grid):
        try:
            cls([nn.Parameter(torch.zeros(1))], **_options(arm, setting))
        except (IndexError, TypeError, ValueError) as error:  # torch's takes betas=[] apart
            raise UsageError(f"arms.{name} at {name_of(setting)}: {error}") from None


def check_scope(name: str, arm: Arm, model: nn.Module) -> None:
    """See that an arm's scope can be found in a model.

    Raises:
        UsageError: a pattern that is none, or a scope that selects nothing.
    """
    try:
        groups = _groups(model, arm, 0.0)
    except SagelrError as error:
        raise UsageError(f"arms.{name}.scope: {str(error).rstrip('.')}.") from None
    if arm.role == "sage" and not any(group["sage"] for group in groups):
        raise UsageError(
            f"arms.{name}.scope = {arm.scope!r} leaves SAGE on nothing. Name parameters, "
            "or compare with the base itself."
        )


def make_optimizer(model: nn.Module, arm: Arm, setting: Setting) -> torch.optim.Optimizer:
    """The arm's optimizer over the groups of a model: no decay on biases and norms, SAGE in scope.

    Parameters in scope go at the arm's lr times its `scope_lr_scale`, with SAGE or without.

    torch's own optimizers take their fused step where they have one on the model's device, as the
    Sage optimizers do by themselves, unless the arm's options say how the step is executed.

    Raises:
        SagelrError: the scope selects nothing in this model.
    """
    cls, options = OPTIMIZERS[arm.optimizer], _options(arm, setting)
    parameters = inspect.signature(cls).parameters
    decay = options.get("weight_decay")
    if decay is None:
        decay = parameters["weight_decay"].default
    sage = arm.role == "sage"
    groups = _groups(model, arm, decay)
    for group in groups:
        if arm.scope_lr_scale != 1 and group["sage"]:
            group["lr"] = arm.scope_lr_scale * options["lr"]
    if not sage:
        for group in groups:
            del group["sage"]
        device = next(model.parameters()).device.type
        if "fused" in parameters and device in FUSED_ON and not EXECUTION & options.keys():
            options["fused"] = True
    return cls(groups, **options)


def _groups(model: nn.Module, arm: Arm, decay: float) -> list[dict[str, Any]]:
    """The arm's parameter groups, before its options go over them."""
    try:
        return param_groups(model, weight_decay=decay, sage=arm.scope if arm.scoped else "none")
    except (TypeError, ValueError) as error:
        raise SagelrError(f"{arm.label}, scope {arm.scope!r}: {error}") from None


def _options(arm: Arm, setting: Setting) -> dict[str, Any]:
    options: dict[str, Any] = {**arm.options, **setting}
    return options | ({"betas": tuple(options["betas"])} if "betas" in options else {})


def as_used(optimizer: torch.optim.Optimizer, arm: Arm) -> dict[str, Any]:
    """Every option of the optimizer, and what its groups hold, as results.json has it."""
    options: dict[str, Any] = {key: _plain(value) for key, value in optimizer.defaults.items()}
    if "sage_lr_scale" in options:
        options["lr_scale"] = options.pop("sage_lr_scale")
    groups = []
    for group in optimizer.param_groups:
        entry = {"parameters": sum(param.numel() for param in group["params"])}
        entry |= {"weight_decay": group["weight_decay"]}
        groups.append(entry | ({"sage": group["sage"]} if "sage" in group else {}))
    options["groups"] = groups
    if arm.scope_lr_scale != 1:
        options["scope_lr_scale"] = arm.scope_lr_scale
    return options | ({"scope": arm.scope} if arm.scoped else {})


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
