"""What the three optimizers share: groups, state, the step, and looking inside."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, StateDict, _use_grad_for_differentiable

from sagelr import engines, probe
from sagelr.bases import Base
from sagelr.engines.plan import Plan, compute_dtype
from sagelr.optim.checks import check_grad, check_group, check_param, labelled
from sagelr.state import checkpoint

CAPTURABLE_ON = engines.ACCELERATORS | {"xla"}


class SageOptimizer(Optimizer):
    """SAGE on a base optimizer. Use one of its three kinds, or `Sage` for any other base."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    @abstractmethod
    def _base(self, group: Mapping[str, Any]) -> Base:
        """The direction that a group's options ask for."""

    # -- groups ---------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch does, with its options and parameters checked."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(type(self).__name__, group, self.defaults)
            for param, label in labelled(group):
                check_param(type(self).__name__, param, label)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _plan(self, group: Mapping[str, Any]) -> Plan:
        lr = group["lr"]
        if isinstance(lr, Tensor):
            lr = lr.reshape(())
            held = torch.compiler.is_compiling() or group["capturable"] or group["differentiable"]
            lr = lr if held else lr.item()
        return Plan(
            base=self._base(group),
            lr=lr * group["sage_lr_scale"],
            weight_decay=group["weight_decay"],
            decay=group["decay"],
            sage=group["sage"],
            beta0=group["beta0"],
            sage_eps=group["sage_eps"],
            sage_bias_correction=group["sage_bias_correction"],
            maximize=group["maximize"],
            differentiable=group["differentiable"],
            capturable=group["capturable"],
        )

    # -- the step -------------------------------------------------------------------------------

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: evaluates the model anew and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a gradient is sparse; nothing has been changed then.
        """
        self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = []
        for group in self.param_groups:
            params = [param for param, _ in self._with_grad(group)]
            if params:
                work.append((group, params))
        for group, params in work:
            self._step_group(group, params)
        return loss

    def _with_grad(self, group: Mapping[str, Any]) -> list[tuple[Tensor, str]]:
        found = []
        for param, label in labelled(group):
            if param.grad is not None:
                check_grad(type(self).__name__, param.grad, label)
                found.append((param, label))
        return found

    def _step_group(self, group: Mapping[str, Any], params: list[Tensor]) -> None:
        plan = self._plan(group)
        for param in params:
            self._ensure_state(plan, param)
        for same in _by_device_and_dtype(params):
            names = (*plan.state_names(), "step", *(("sensitivity_step",) if plan.sage else ()))
            state = {name: [self.state[param][name] for param in same] for name in names}
            grads = [param.grad for param in same]
            engines.choose(plan, same, group["foreach"])(plan, same, grads, state)  # type: ignore[arg-type]

    def _ensure_state(self, plan: Plan, param: Tensor) -> None:
        """Make what is missing: all of it at first, Ī alone after loading torch's state."""
        state = self.state[param]
        if plan.capturable and not torch.compiler.is_compiling():
            _check_capturable(type(self).__name__, param)
        if "step" not in state:
            # torch's SGD keeps no count; a buffer that is there has taken its first step.
            resumed = any(name in state for name in plan.base.state_names)
            state["step"] = checkpoint.count(float(resumed), param, plan.capturable)
        for name in plan.state_names():
            if name not in state:
                dtype = compute_dtype(param.dtype)
                state[name] = torch.zeros_like(
                    param, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False
                )
        if plan.sage and "sensitivity_step" not in state:
            state["sensitivity_step"] = checkpoint.count(0.0, param, plan.capturable)

    # -- saving and loading ---------------------------------------------------------------------

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state of this optimizer, or of the torch optimizer it is built on.

        Every tensor keeps the dtype it was saved in. Options that the saved groups lack keep the
        values they have; how a step is executed (foreach, capturable, differentiable) stays as the
        optimizer was made. A state of torch's own optimizer goes on where it stopped, with the
        smoothed sensitivity starting afresh.

        Args:
            state_dict: from `state_dict()`.

        Raises:
            ValueError: the groups do not match, or it was saved with amsgrad.
        """
        checkpoint.load(self, state_dict, super().load_state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for option, value in self.defaults.items():
                group.setdefault(option, value)

    # -- looking inside -------------------------------------------------------------------------

    def sensitivity(self, param: Tensor) -> Tensor:
        """I = |θ·g| of the coming step, between `backward()` and `step()`.

        Args:
            param: one of this optimizer's parameters, with a gradient.

        Returns:
            I ≥ 0, of its shape, in units of the loss; fp32 for narrower parameters.

        Raises:
            ValueError: the optimizer does not hold it.
            RuntimeError: it has no gradient.
        """
        return probe.sensitivity(self, param)

    def variation(self, param: Tensor) -> Tensor:
        """U = |I − Ī| of the coming step, between `backward()` and `step()`.

        Raises:
            ValueError: the optimizer does not hold the parameter, or its group has sage=False.
            RuntimeError: it has no gradient.
        """
        return probe.variation(self, param)

    def multiplier(self, param: Tensor) -> Tensor:
        """r, the factor on the lr of each element in the coming step; 1 where sage=False.

        Raises:
            ValueError: the optimizer does not hold the parameter.
            RuntimeError: it has no gradient.
        """
        return probe.multiplier(self, param)


def _by_device_and_dtype(params: list[Tensor]) -> Iterable[list[Tensor]]:
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for param in params:
        kinds.setdefault((param.device, param.dtype), []).append(param)
    return kinds.values()


def _check_capturable(name: str, param: Tensor) -> None:
    if param.device.type not in CAPTURABLE_ON:
        allowed = ", ".join(sorted(CAPTURABLE_ON))
        raise RuntimeError(
            f"{name}: capturable=True with a parameter on {param.device}. Graphs are captured on "
            f"{allowed}. Move the model there before the first step, or leave capturable out."
        )
