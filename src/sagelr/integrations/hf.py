"""SAGE in the Hugging Face Trainer, and in all that are built on it: optimizer and live probe.

::

    trainer = Trainer(model, args, ..., optimizer_cls_and_kwargs=sage_optimizer(args, model))
    trainer.add_callback(SageProbeCallback(file="probe.jsonl", log=trainer.log))
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
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
) -> tuple[type[SageOptimizer], dict[str, Any]]:
    """What the Trainer takes as `optimizer_cls_and_kwargs`.

    lr, betas, eps and weight decay are those of the TrainingArguments, as far as the optimizer has
    them.

    Args:
        args: the Trainer's.
        model: as given to the Trainer. Its parameters are put into named groups by
            `sagelr.param_groups`; None leaves grouping to the Trainer, with SAGE on everything.
            Under FSDP give None or a model that is sharded already: groups made before sharding
            hold parameters that are gone afterwards.
        cls: SageAdamW, SageAdamax or SageSGD.
        sage: which parameters get SAGE, see `sagelr.param_groups`; without a model "all" or "none".
        options: further options of the optimizer, over those of args.

    Raises:
        ValueError: the scope selects nothing in the model, or has none to select from.

    Examples:
        >>> args = TrainingArguments(learning_rate=1e-3, adam_beta2=0.98, report_to="none")
        >>> cls, kwargs = sage_optimizer(args, beta0=0.8)
        >>> cls.__name__, kwargs["lr"], kwargs["betas"], kwargs["beta0"]
        ('SageAdamW', 0.001, (0.9, 0.98), 0.8)
    """
    known = inspect.signature(cls).parameters
    taken = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "weight_decay": args.weight_decay,
    }
    kwargs = {name: value for name, value in taken.items() if name in known} | options
    if model is not None:
        kwargs["params"] = param_groups(model, weight_decay=kwargs.pop("weight_decay"), sage=sage)
    elif sage in ("all", "none"):
        kwargs["sage"] = sage == "all"
    elif sage != "attention+ffn":  # the default, which has to give way to the Trainer's grouping
        raise ValueError(
            f"sage_optimizer: sage={sage!r} selects parameters of a model, and none was given. "
            "Give sage_optimizer(args, model, sage=…), or sage='all' or 'none'."
        )
    return cls, kwargs


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
