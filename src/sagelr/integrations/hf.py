"""SAGE in the Hugging Face Trainer, and in all that are built on it: optimizer and live probe.

::

    trainer = Trainer(model, args, ..., optimizer_cls_and_kwargs=sage_optimizer(args, model))
    trainer.add_callback(SageProbeCallback(file="probe.jsonl", log=trainer.log))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainingArguments

from sagelr.groups import Selector, param_groups
from sagelr.live import SageProbe
from sagelr.optim import SageAdamW
from sagelr.optim.base import SageOptimizer


def sage_optimizer(
    args: TrainingArguments,
    model: nn.Module | None = None,
    cls: type[SageOptimizer] = SageAdamW,
    *,
    sage: Selector = "attention+ffn",
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """What the Trainer takes as `optimizer_cls_and_kwargs`.

    lr, betas, eps and weight decay are those of the TrainingArguments, as far as the optimizer has
    them.

    Args:
        args: the Trainer's.
        model: as given to the Trainer; None leaves grouping to the Trainer, with SAGE on
            everything. Parameters are put into named groups by `sagelr.param_groups` when the
            Trainer makes its optimizer: those of the model that it trains, which may be another by
            then (`model_init`, TRL's `peft_config`) or sharded. FSDP1 flattens parameters: None.
        cls: SageAdamW, SageAdamax or SageSGD. The last two add weight decay to the gradient unless
            given `decay="scaled"` or "decoupled".
        sage: which parameters get SAGE, see `sagelr.param_groups`; without a model "all" or "none".
        options: further options of the optimizer, over those of args.

    Returns:
        The class, or with a model what makes the optimizer in its place, and its options.

    Raises:
        ValueError: the scope selects nothing in the model, or has none to select from;
            weight_decay without a model, where the Trainer's groups have that of args. When the
            optimizer is made, with transformers 5.0 and 5.1: the Trainer trains another model.

    Examples:
        >>> args = TrainingArguments(learning_rate=1e-3, adam_beta2=0.98, report_to="none")
        >>> cls, kwargs = sage_optimizer(args, beta0=0.8)
        >>> cls.__name__, kwargs["lr"], kwargs["betas"], kwargs["beta0"]
        ('SageAdamW', 0.001, (0.9, 0.98), 0.8)
    """
    if model is not None:
        made = _Later(args, cls, sage, model)
        made.groups(model, options.get("weight_decay", args.weight_decay))  # tell at once
        return made, options
    if "weight_decay" in options:
        raise ValueError(
            "sage_optimizer: without a model the Trainer makes the groups, with the weight_decay "
            "of its arguments. Set it there, or give sage_optimizer(args, model, …)."
        )
    kwargs = _taken(args, cls) | options
    if sage in ("all", "none"):
        kwargs["sage"] = sage == "all"
    elif sage != "attention+ffn":  # the default, which has to give way to the Trainer's grouping
        raise ValueError(
            f"sage_optimizer: sage={sage!r} selects parameters of a model, and none was given. "
            "Give sage_optimizer(args, model, sage=…), or sage='all' or 'none'."
        )
    return cls, kwargs


def _taken(args: TrainingArguments, cls: type[SageOptimizer]) -> dict[str, Any]:
    """What an optimizer has of the Trainer's arguments."""
    found = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "weight_decay": args.weight_decay,
    }
    known = _options_of(cls)
    return {name: value for name, value in found.items() if name in known}


def _options_of(cls: type) -> set[str]:
    """Names that a class takes; of a subclass that hands others on, those of its base too."""
    known: set[str] = set()
    for kind in cls.__mro__:
        if "__init__" not in vars(kind):
            continue
        parameters = inspect.signature(kind.__init__).parameters
        known |= parameters.keys()
        if all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
            break
    return known


class _Later:
    """Makes the optimizer when the Trainer has the model that it trains, and its last arguments.

    Called without anything, as transformers calls a factory from 5.2 on, it gives what takes the
    model; called with the Trainer's groups, as it calls a class, the optimizer.
    """

    def __init__(
        self, args: TrainingArguments, cls: type[SageOptimizer], sage: Selector, model: nn.Module
    ) -> None:
        self.args, self.cls, self.sage, self.model = args, cls, sage, model

    def __call__(
        self, groups: Iterable[Mapping[str, Any]] | None = None, **options: Any
    ) -> Optimizer | Callable[..., Optimizer]:
        if groups is None:
            return self.make
        wanted = {param for group in groups for param in group["params"]}
        if wanted != {param for param in self.model.parameters() if param.requires_grad}:
            raise ValueError(
                "sage_optimizer: the Trainer trains another model than it was given "
                f"({type(self.model).__name__}), as with model_init or peft_config. Use "
                "transformers 5.2 or later, or sage_optimizer(args) without a model."
            )
        return self.make(self.model, **options)

    def make(self, model: nn.Module, **options: Any) -> Optimizer:
        options = _taken(self.args, self.cls) | options
        return self.cls(self.groups(model, options.pop("weight_decay")), **options)

    def groups(self, model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        return param_groups(model, weight_decay=weight_decay, sage=self.sage)


class SageProbeCallback(TrainerCallback):
    """Looks at SAGE while a Trainer trains; see `sagelr.live.SageProbe`.

    With `log=trainer.log` every logger in `report_to` gets the scalars. With `writer=` a
    TensorBoard SummaryWriter gets histograms too. Process 0 alone looks.

    Args:
        options: of SageProbe, but for `step` and `attach`, which are the Trainer's to know.

    Raises:
        ValueError: at the start of training, as SageProbe does.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.probe: SageProbe | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the probe; the Trainer has made model and optimizer by now."""
        if state.is_world_process_zero:
            self.probe = SageProbe(
                kwargs["model"],
                kwargs["optimizer"],
                step=state.global_step,
                attach=False,
                **self.options,
            )

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, if it is time; gradients are clipped already."""
        if self.probe is not None:
            self.probe.step = state.global_step
            self.probe.before_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the file."""
        if self.probe is not None:
            self.probe.close()
