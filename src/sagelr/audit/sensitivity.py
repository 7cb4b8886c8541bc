"""Sensitivity of every parameter, in one pass over batches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sagelr import rule
from sagelr.engines.plan import compute_dtype
from sagelr.errors import SagelrError, UsageError

Loss = Callable[[nn.Module, Any], Tensor]
CHUNK = 2**18  # elements folded at a time: temporaries stay this small


@dataclass(frozen=True)
class Measured:
    """What one pass over batches found; tensors by name of the parameter, of its shape.

    Attributes:
        loss: mean over the batches.
        batches: how many.
        sensitivity: Ī, the mean of I = |θ·g| over the batches, in units of the loss.
        variation: the mean of U = |I − Ī|, with Ī the mean so far, this batch included.
    """

    loss: float
    batches: int
    sensitivity: dict[str, Tensor]
    variation: dict[str, Tensor]


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a transformers model gives when its batch holds labels.

    Raises:
        SagelrError: it gives none.
    """
    loss = getattr(model(**batch), "loss", None)
    if not isinstance(loss, Tensor):
        raise SagelrError(
            f"{type(model).__name__} gives no loss for a batch with {', '.join(batch)}. Take a "
            "model with a head for the task, or give a loss(model, batch) of your own."
        )
    return loss


def audit(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss = model_loss,
    *,
    frozen: bool = True,
) -> Measured:
    """Measure the sensitivity of every parameter over batches, with dropout off.

    ::

        I_b = |θ·g_b|                      g_b: gradient of the mean loss of batch b
        Ī   = mean of I_b over the batches so far
        U_b = |I_b − Ī|                    with Ī just updated

    The absolute value is taken of a batch's mean gradient, so sensitivity falls as batches grow:
    give batches of one size, and compare only what was measured with the same.

    Besides the model and what the loss itself needs, it holds one gradient and two copies of the
    parameters (in fp32 where they are narrower). The model and its gradients are left as they were.

    Args:
        model: any module.
        batches: what `loss` takes, one after another; read once.
        loss: (model, batch) → the batch's mean loss, a scalar. By default the `.loss` of
            `model(**batch)`.
        frozen: measure parameters with requires_grad=False too. In the models that are trained here
            these are constants, such as tables of sines; in others a backbone under adapters.

    Returns:
        Ī, mean U and mean loss.

    Raises:
        UsageError: there are no batches, or the model has no parameters of floating point.
        SagelrError: the loss is no number, or does not depend on the parameters.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 2.0)
        >>> found = audit(model, [torch.tensor([1.0, 3.0])], lambda m, x: m(x).sum())
        >>> found.loss, found.sensitivity["weight"]
        (8.0, tensor([[2., 6.]]))
    """
    params = {
        name: param
        for name, param in model.named_parameters()
        if param.is_floating_point() and (frozen or param.requires_grad)
    }
    if not params:
        raise UsageError(f"{type(model).__name__} has no parameters to measure.")
    means = {name: _zeros(param) for name, param in params.items()}
    variations = {name: _zeros(param) for name, param in params.items()}
    total, count = 0.0, 0
    with modes_kept(model), _all_required(params.values()):
        model.eval()
        for batch in batches:
            count += 1
            value, gradients = _gradients(model, batch, loss, list(params.values()), count)
            total += value
            for i, (name, param) in enumerate(params.items()):
                gradient, gradients[i] = gradients[i], None
                _fold(param, gradient, means[name], variations[name], count)
                del gradient
    if count == 0:
        raise UsageError("No batches to measure sensitivity on: give at least one.")
    return Measured(total / count, count, means, variations)


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Every module back in its own mode, training or evaluation, afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Every buffer as it was afterwards: passes as in training change running means."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


@contextlib.contextmanager
def _all_required(params: Iterable[nn.Parameter]) -> Iterator[None]:
    frozen = [param for param in params if not param.requires_grad]
    for param in frozen:
        param.requires_grad_(True)
    try:
        yield
    finally:
        for param in frozen:
            param.requires_grad_(False)


def _zeros(param: Tensor) -> Tensor:
    return torch.zeros(param.shape, dtype=compute_dtype(param.dtype), device=param.device)


def _gradients(
    model: nn.Module, batch: Any, loss: Loss, params: list[nn.Parameter], number: int
) -> tuple[float, list[Tensor | None]]:
    """The loss of a batch, and its gradients; the parameters' own `.grad` stays untouched."""
    with torch.enable_grad():
        found = loss(model, batch)
        value = float(found.detach())
        if not math.isfinite(value):
            raise SagelrError(
                f"The loss of batch {number} is {value}, so it has no sensitivities. Look at the "
                "batch and the weights."
            )
        try:
            return value, list(torch.autograd.grad(found, params, allow_unused=True))
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise SagelrError(
                "The loss does not depend on the model's parameters. Compute it from the model's "
                "output, without detach() and no_grad()."
            ) from None


@torch.no_grad()
def _fold(
    param: Tensor, gradient: Tensor | None, mean: Tensor, variation: Tensor, count: int
) -> None:
    """Let one batch enter the two means."""
    if gradient is None:  # not part of this batch's loss
        gradient = torch.zeros_like(param)
    elif gradient.is_sparse:  # of an embedding
        gradient = gradient.to_dense()
    pieces = zip(
        param.reshape(-1).split(CHUNK),
        gradient.reshape(-1).split(CHUNK),
        mean.view(-1).split(CHUNK),
        variation.view(-1).split(CHUNK),
        strict=True,
    )
    for theta, g, smoothed, spread in pieces:
        current = rule.sensitivity(theta.to(mean.dtype), g.to(mean.dtype))
        smoothed.lerp_(current, 1 / count)
        spread.lerp_(rule.variation(current, smoothed), 1 / count)
