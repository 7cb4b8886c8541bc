"""What the three optimizers share: groups, state, the step, and looking inside."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import StateDict, _use_grad_for_differentiable

from sagelr import engines, probe
from sagelr.bases import Base
from sagelr.engines.plan import Place, Plan, compute_dtype
from sagelr.optim.checks import check_group, check_params, label, with_grad
from sagelr.state import checkpoint, formats, shards

CAPTURABLE_ON = engines.ACCELERATORS | {"xla"}


class _Item(NamedTuple):
    """A parameter that has a gradient."""

    param: Tensor
    grad: Tensor  # what of it is on this device
    place: Place
    sharded: bool


class SageOptimizer(Optimizer):
    """SAGE on a base optimizer. Use one of its three kinds, or `Sage` for any other base."""

    base_state_names: ClassVar[tuple[str, ...]]
    follows_rule: ClassVar[bool] = True  # whether its multiplier is `sagelr.rule`'s

    @abstractmethod
    def _base(self, group: Mapping[str, Any]) -> Base:
        """The direction that a group's options ask for."""

    # -- groups ---------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch does, with its options and parameters checked."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(type(self).__name__, group, self.defaults, self.base_state_names)
            check_params(type(self).__name__, group)
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
            state_format=group["state_format"],
            rounding=group["rounding"],
            seed=group["rounding_seed"],
            relative=group["relative"],
            relative_over=group["relative_over"],
            relative_confidence=group["relative_confidence"],
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
            RuntimeError: a gradient is sparse or not laid out as its parameter, or one is where no
                graph can be captured; nothing has been changed then.
        """
        self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        position = 0
        work = []
        for group in self.param_groups:
            items = self._items(group, position)
            position += len(group["params"])
            if items:
                work.append((group, items))
        for group, items in work:
            self._step_group(group, items)
        return loss

    def _items(self, group: Mapping[str, Any], position: int) -> list[_Item]:
        """What of a group has a gradient, every one of them checked before anything changes."""
        name = type(self).__name__
        by_chance = group["state_format"] != "float32" or group["rounding"] != "nearest"
        items = []
        held = group["capturable"] and not torch.compiler.is_compiling()
        for i, param, grad in with_grad(name, group):
            if held:
                _check_capturable(name, param)
            offset, sharded = 0, False
            if shards.is_dtensor(param) or shards.is_dtensor(grad):
                shown, sharded = label(group, i), True
                if group["relative"] is not None:
                    raise RuntimeError(
                        f"{name}: {shown} is sharded, and relative={group['relative']!r} compares "
                        "it with the whole of its tensor. Leave relative out, or train without "
                        "sharding."
                    )
                grad = shards.local_grad(name, param, grad, shown)
                offset = shards.offset(name, param, shown) if by_chance else 0
            items.append(_Item(param, grad, Place(position + i, offset), sharded))
        return items

    def _step_group(self, group: Mapping[str, Any], items: list[_Item]) -> None:
        plan = self._plan(group)
        names = set(plan.stored_names())
        for item in items:
            if not names <= self.state[item.param].keys():
                self._ensure_state(plan, item.param)
        relative: dict[int, Tensor] = {}  # by the parameter's position
        if plan.relative is not None and plan.sage:  # over the group, of whatever kinds it has
            params, grads = [item.param for item in items], [item.grad for item in items]
            own = [self.state[param] for param in params]
            multipliers = engines.eager.relative_multipliers(plan, params, grads, own)
            positions = [item.place.parameter for item in items]
            relative = dict(zip(positions, multipliers, strict=True))
        for coded, same in _alike(plan, items):
            kind = plan.with_codes() if coded else plan
            states = [self.state[item.param] for item in same]
            params = [item.param for item in same]
            state = {name: [own[name] for own in states] for name in kind.stored_names()}
            if any(item.sharded for item in same):
                params = [shards.local(param) for param in params]
                state = {name: [shards.local(t) for t in column] for name, column in state.items()}
            grads, places = [item.grad for item in same], [item.place for item in same]
            if relative:
                multipliers = [relative[place.parameter] for place in places]
                engines.eager.update(kind, params, grads, state, places, multipliers)
                continue
            update = engines.choose(kind, params, grads, group["fused"], group["foreach"])
            update(kind, params, grads, state, places)

    def _ensure_state(self, plan: Plan, param: Tensor) -> None:
        """Make what is missing: all of it at first, Ī alone after loading torch's state."""
        state = self.state[param]
        if "step" not in state:
            # torch's SGD keeps no count; a buffer that is there has taken its first step.
            resumed = any(name in state for name in plan.base.state_names)
            state["step"] = checkpoint.count(float(resumed), param, plan.capturable)
        if plan.sage and "sensitivity_step" not in state:
            state["sensitivity_step"] = checkpoint.count(0.0, param, plan.capturable)
        for name in plan.state_names():
            if name not in state:
                coded = formats.is_coded(plan.state_format, param)
                dtype = plan.with_codes(coded).storage(name).dtype or compute_dtype(param.dtype)
                state[name] = shards.zeros(param, dtype)
                if coded:
                    state[name + formats.SCALE] = shards.scale_zeros(param)

    # -- saving and loading ---------------------------------------------------------------------

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state of this optimizer, or of the torch optimizer it is built on.

        A tensor keeps the dtype it was saved in, or is converted where this optimizer was made
        with another `state_format`. Options that the saved groups lack keep the values they have;
        how a step is executed (foreach, fused, capturable, differentiable, state_format) stays as
        the optimizer was made. A state of torch's own optimizer goes on where it stopped, with the
        smoothed sensitivity starting afresh; from torch's Adam with weight decay that is
        `decay="l2"`.

        Args:
            state_dict: from `state_dict()`.

        Raises:
            ValueError: the groups do not match, it is that of another kind of optimizer, or it was
                saved with amsgrad.
        """
        checkpoint.load(self, state_dict, super().load_state_dict, averages=self.base_state_names)
        for group in self.param_groups:
            plan = self._plan(group)
            for param in group["params"]:
                if param in self.state:
                    self._convert(plan, param)

    @torch.no_grad()
    def _convert(self, plan: Plan, param: Tensor) -> None:
        """Bring averages of another format to this optimizer's."""
        state = self.state[param]
        # Ī too where SAGE is off for now.
        plan = replace(plan, sage=True).with_codes(formats.is_coded(plan.state_format, param))
        wide = compute_dtype(param.dtype)
        for name in plan.state_names():
            how = plan.storage(name)
            if name not in state or state[name].dtype == (how.dtype or wide):
                continue
            here = {key: shards.local(value) for key, value in state.items()}
            value = formats.read(here, name, wide)
            state.pop(name + formats.SCALE, None)
            state[name] = shards.zeros(param, how.dtype or wide)
            if plan.coded:
                state[name + formats.SCALE] = shards.scale_zeros(param)
            here = {key: shards.local(kept) for key, kept in state.items()}
            formats.write(here, name, value, how, None)

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


def _alike(plan: Plan, items: list[_Item]) -> Iterable[tuple[bool, list[_Item]]]:
    """Lists of parameters that one engine can take together, and whether they are in codes."""
    kinds: dict[tuple[bool, torch.device, torch.dtype], list[_Item]] = {}
    may_be_coded = plan.state_format == "8bit"
    for item in items:
        param = item.param
        coded = may_be_coded and formats.is_coded(plan.state_format, param)
        kinds.setdefault((coded, param.device, param.dtype), []).append(item)
    return [(coded, same) for (coded, _, _), same in kinds.items()]


def _check_capturable(name: str, param: Tensor) -> None:
    if param.device.type not in CAPTURABLE_ON:
        allowed = ", ".join(sorted(CAPTURABLE_ON))
        raise RuntimeError(
            f"{name}: capturable=True with a parameter on {param.device}. Graphs are captured on "
            f"{allowed}. Move the model there before the first step, or leave capturable out."
        )
