"""Moving over from the authors' script: their options, parameter groups, schedule and checkpoints.

::

    groups = released_groups(model)
    optimizer = SageAdamax(groups, **released_options("usadamax", lr=2e-4, beta3=0.85))
    scheduler = LambdaLR(optimizer, released_schedule("usadamax", warmup=0.1, t_total=steps))
    load_released(optimizer, "checkpoint/model_2.pt")

What remains different: ε stands in the numerator of the multiplier too; usadamw's eps enters the
corrected root of the second moment; usadamax's eps is added to u once, not twice; weights decay
before the step and by the scheduled lr, where usadamw decays them after it and by the unscheduled
one. And what is not part of the optimizer here: theirs clips each tensor's gradient by itself to
`max_grad_norm`, whatever was clipped before.

Facts about the script: its repository as of 2022, github.com/cliang1453/SAGE.
"""

from __future__ import annotations

import difflib
import pickle
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sagelr.groups import param_groups
from sagelr.optim import SageAdamax, SageAdamW

__all__ = ["load_released", "released_groups", "released_options", "released_schedule"]

SCOPE = r"attention\.self|attention\.output\.dense|intermediate\.dense|output\.dense"
NO_DECAY = r"bias|gamma|beta|LayerNorm\.weight"
# Theirs → ours, where an option has a twin.
RENAMED = {"lr": "lr", "betas": "betas", "beta3": "beta0", "weight_decay": "weight_decay"}
ELSEWHERE = {
    "warmup": "is part of the schedule: give it to released_schedule",
    "t_total": "is part of the schedule: give it to released_schedule",
    "schedule": "is part of the schedule: give it to released_schedule",
    "max_grad_norm": "is not part of the optimizer here: clip between backward and step with "
    "torch.nn.utils.clip_grad_norm_, each parameter by itself if it has to be as theirs",
}
STATE = {"usadamw": "exp_avg_sq", "usadamax": "exp_inf"}


def released_options(name: str, **options: Any) -> dict[str, Any]:
    """Keyword arguments of SageAdamW or SageAdamax that make it step as the released one.

    Args:
        name: "usadamw" or "usadamax", as in the script's --optimizer.
        options: those of their class: lr, betas, beta3, eps, weight_decay, correct_bias (usadamw).

    Raises:
        ValueError: an unknown optimizer.
        TypeError: an option that theirs does not have, or that belongs elsewhere here.

    Examples:
        >>> released_options("usadamax", lr=2e-4, beta3=0.85)["beta0"]
        0.85
    """
    _check_name(name)
    known = [*RENAMED, "eps", *(["correct_bias"] if name == "usadamw" else [])]
    for option in options:
        if option in ELSEWHERE:
            raise TypeError(f"{option} {ELSEWHERE[option]}.")
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise TypeError(f"{name} has no option {option!r}.{hint} It has {', '.join(known)}.")
    found = {RENAMED[key]: value for key, value in options.items() if key in RENAMED}
    eps = options.get("eps", 1e-6)
    corrected = name == "usadamw" and options.get("correct_bias", True)
    return {
        "beta0": 0.75,
        "weight_decay": 0.0 if name == "usadamw" else 0.01,
        **found,
        "eps": eps,
        "sage_eps": eps**2,
        "bias_correction": corrected,
        "sage_bias_correction": corrected,
        "decay": "decoupled" if name == "usadamw" else "scaled",
    }


def released_groups(model: nn.Module, weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """The script's four parameter groups, in its order, so that its checkpoints fit.

    The order is: without SAGE and decayed, with SAGE and decayed, without SAGE and not decayed,
    with SAGE and not decayed. Empty groups are kept.

    Args:
        model: a BERT or RoBERTa, or any model whose modules are named as theirs.
        weight_decay: theirs is 0.01.

    Raises:
        ValueError: no parameter has a name that the script's scope matches.
    """
    made = param_groups(model, weight_decay=1.0, sage=SCOPE, no_decay=lambda name, param: True)
    sage = {name for group in made if group["sage"] for name, _ in group["params"]}
    groups: dict[tuple[bool, bool], list[tuple[str, Tensor]]] = {
        (scaled, decayed): [] for decayed in (True, False) for scaled in (False, True)
    }
    for name, param in model.named_parameters():
        if param.requires_grad:
            groups[name in sage, re.search(NO_DECAY, name) is None].append((name, param))
    return [
        {"params": params, "weight_decay": weight_decay if decayed else 0.0, "sage": scaled}
        for (scaled, decayed), params in groups.items()
    ]


def released_schedule(name: str, warmup: float, t_total: int) -> Callable[[int], float]:
    """The script's "warmup_linear", as a factor on lr for torch's LambdaLR.

    With x the share of the steps done: x / warmup while x < warmup, then (1 − x) / (1 − warmup).
    usadamw counts a step before it takes it, usadamax after, so that its very first step has lr 0.

    Args:
        name: "usadamw" or "usadamax".
        warmup: share of the steps, in [0, 1).
        t_total: steps of the whole training, ≥ 1.

    Raises:
        ValueError: one of these is out of range.

    Examples:
        >>> factor = released_schedule("usadamax", warmup=0.1, t_total=100)
        >>> factor(0), factor(5), round(factor(55), 3)
        (0.0, 0.5, 0.5)
    """
    _check_name(name)
    if not 0 <= warmup < 1:
        raise ValueError(
            f"released_schedule: warmup={warmup!r} is not a share of the steps in [0, 1). Where "
            "the script had -1, it used no schedule: leave this one out."
        )
    if t_total < 1:
        raise ValueError(
            f"released_schedule: t_total={t_total!r} is not a number of steps. Where the script "
            "had -1, it used no schedule: leave this one out."
        )
    ahead = 1 if name == "usadamw" else 0

    def factor(step: int) -> float:
        x = (step + ahead) / t_total
        return x / warmup if x < warmup else max(0.0, (1 - x) / (1 - warmup))

    return factor


def load_released(
    optimizer: SageAdamW | SageAdamax, source: str | Path | Mapping[str, Any]
) -> None:
    """Load the optimizer state of the script's checkpoint, to go on with its training.

    Args:
        optimizer: over `released_groups`, or any groups that hold the parameters in their order.
        source: the script's checkpoint file, or the state dict of its optimizer. A file is read
            without running code that is pickled in it: classes it names stay empty shells.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such checkpoint, it is that of another optimizer, or its groups do not
            fit.
    """
    saved = source if isinstance(source, Mapping) else _read(Path(source))
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    if isinstance(saved.get("optimizer"), Mapping):
        saved = saved["optimizer"]
    if not ("state" in saved and "param_groups" in saved):
        raise ValueError(
            f"{where} holds no optimizer state (keys: {', '.join(map(str, saved))}). Give a "
            "checkpoint of the authors' script, whose key 'optimizer' is its optimizer's state."
        )
    second = "exp_inf" if isinstance(optimizer, SageAdamax) else "exp_avg_sq"
    other = "usadamw" if second == "exp_inf" else "usadamax"
    state = {}
    for key, entry in saved["state"].items():
        if second not in entry:
            raise ValueError(
                f"{where} has no {second}, which {type(optimizer).__name__} goes on from (it has "
                f"{', '.join(entry)}). A state of {other} goes into the other class."
            )
        state[key] = {"step": entry["step"], "exp_avg": entry["exp_avg"], second: entry[second]}
        if "exp_avg_ipt" in entry:
            state[key]["exp_avg_sensitivity"] = entry["exp_avg_ipt"]
            state[key]["sensitivity_step"] = entry["step"]
    # lr and the other options stay as the optimizer was made; the file says which tensor is which.
    own = optimizer.state_dict()["param_groups"]
    sizes = [len(group["params"]) for group in own]
    theirs = [len(group["params"]) for group in saved["param_groups"]]
    if sizes != theirs:
        raise ValueError(
            f"{where} has groups of {theirs} parameters, the optimizer of {sizes}. Make its groups "
            "with released_groups(model), of the model that was trained."
        )
    groups = [
        {**mine, "params": group["params"]}
        for mine, group in zip(own, saved["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _check_name(name: str) -> None:
    if name not in STATE:
        raise ValueError(f"{name!r} is not an optimizer of the script with SAGE: {list(STATE)}.")


class _Shell:
    """Stands for a class that a file names, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Give a checkpoint of the authors' script.")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with ExitStack() as stack:
            shells: list[Any] = [(type(name, (_Shell,), {}), name) for name in names]
            stack.enter_context(torch.serialization.safe_globals(shells))
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a checkpoint that torch can read: {reason}") from None
    if not isinstance(saved, Mapping):
        raise ValueError(f"{path} holds a {type(saved).__name__}, not a checkpoint.")
    return saved
