"""SAGE on one page: sensitivity, smoothing, variation, multiplier.

For a parameter θ with gradient g, element by element::

    sensitivity            I = |θ·g|
    smoothed sensitivity   Ī ← β0·Ī + (1−β0)·I            from 0
    variation              U = |I − Ī|                    with the Ī just updated
    multiplier             r = (U + ε) / (Ī + ε)
    update                 θ ← θ − η·r·d                  d: direction of the base optimizer

Those of the rule take one tensor or a list of tensors and give back the same. None changes its
arguments, and all keep their dtype: whoever holds bf16 parameters casts to fp32 first, as the
engines do. All are differentiable when given one tensor.

Source: Liang et al., "No Parameters Left Behind: Sensitivity Guided Adaptive Learning Rate for
Training Large Transformer Models", ICLR 2022, arXiv 2202.02664. Where the released code departs
from the paper (ε in the denominator alone), this follows the paper: see `multiplier`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

import torch
from torch import Tensor

__all__ = [
    "bias_correct",
    "multiplier",
    "multiplier_bound",
    "observe",
    "ratio_multiplier",
    "relative_multiplier",
    "relative_multipliers",
    "sensitivity",
    "smooth",
    "variation",
]

Tensors = Sequence[Tensor]
Step = float | Tensor
Number = TypeVar("Number", float, Tensor)


@overload
def sensitivity(param: Tensor, grad: Tensor) -> Tensor: ...
@overload
def sensitivity(param: Tensors, grad: Tensors) -> list[Tensor]: ...
def sensitivity(param: Tensor | Tensors, grad: Tensor | Tensors) -> Tensor | list[Tensor]:
    """I = |θ·g|: how much the loss changes, to first order, if θ is set to zero.

    Args:
        param: θ, any shape; or a list of such.
        grad: g, the gradient of the loss at θ, same shape. Unscaled (after `GradScaler.unscale_`).

    Returns:
        I ≥ 0, same shape, in units of the loss.

    Examples:
        >>> sensitivity(torch.tensor([2.0, -3.0]), torch.tensor([0.5, 1.0]))
        tensor([1., 3.])
    """
    if isinstance(param, Tensor) and isinstance(grad, Tensor):
        return (param * grad).abs()
    product = torch._foreach_mul(param, grad)  # type: ignore[arg-type]
    torch._foreach_abs_(product)
    return list(product)


@overload
def smooth(smoothed: Tensor, sensitivity: Tensor, beta0: float) -> Tensor: ...
@overload
def smooth(smoothed: Tensors, sensitivity: Tensors, beta0: float) -> list[Tensor]: ...
def smooth(
    smoothed: Tensor | Tensors, sensitivity: Tensor | Tensors, beta0: float
) -> Tensor | list[Tensor]:
    """Ī ← β0·Ī + (1−β0)·I: one mini-batch is noisy, the average over a few is less so.

    Args:
        smoothed: Ī before this step (0 at the start), any shape; or a list of such.
        sensitivity: I of this step, same shape.
        beta0: memory of the average, in (0, 1); it spans about 1/(1−β0) steps.

    Returns:
        Ī after this step, not bias-corrected.

    Examples:
        >>> smooth(torch.tensor([0.0, 4.0]), torch.tensor([4.0, 4.0]), 0.75)
        tensor([1., 4.])
    """
    if isinstance(smoothed, Tensor) and isinstance(sensitivity, Tensor):
        return torch.lerp(smoothed, sensitivity, 1 - beta0)
    return list(torch._foreach_lerp(smoothed, sensitivity, 1 - beta0))  # type: ignore[arg-type]


@overload
def bias_correct(smoothed: Tensor, beta0: float, step: Step) -> Tensor: ...
@overload
def bias_correct(smoothed: Tensors, beta0: float, step: Sequence[Step]) -> list[Tensor]: ...
def bias_correct(
    smoothed: Tensor | Tensors, beta0: float, step: Step | Sequence[Step]
) -> Tensor | list[Tensor]:
    """Ī / (1 − β0^t): undo the pull of the zero that Ī started from.

    Args:
        smoothed: Ī after step t, any shape; or a list of such.
        beta0: memory of the average, in (0, 1).
        step: t ≥ 1, a number or a 0-d tensor; one for each tensor of a list.

    Returns:
        The corrected average. At t = 1 it equals I, so that U and with it r are 0.

    Examples:
        >>> bias_correct(torch.tensor([1.0]), 0.75, 1)
        tensor([4.])
    """
    if isinstance(smoothed, Tensor):
        return smoothed / (1 - beta0**step)  # type: ignore[operator]
    corrections = [1 - beta0**t for t in step]  # type: ignore[union-attr]
    return list(torch._foreach_div(smoothed, corrections))  # type: ignore[arg-type]


@overload
def variation(sensitivity: Tensor, smoothed: Tensor) -> Tensor: ...
@overload
def variation(sensitivity: Tensors, smoothed: Tensors) -> list[Tensor]: ...
def variation(sensitivity: Tensor | Tensors, smoothed: Tensor | Tensors) -> Tensor | list[Tensor]:
    """U = |I − Ī|: how far this step's sensitivity is from its running average.

    Args:
        sensitivity: I of this step, any shape; or a list of such.
        smoothed: Ī after this step's update (bias-corrected where that is in use), same shape.

    Returns:
        U ≥ 0, same shape, in units of the loss.

    Examples:
        >>> variation(torch.tensor([4.0]), torch.tensor([1.0]))
        tensor([3.])
    """
    if isinstance(sensitivity, Tensor) and isinstance(smoothed, Tensor):
        return (sensitivity - smoothed).abs()
    difference = torch._foreach_sub(sensitivity, smoothed)  # type: ignore[arg-type]
    torch._foreach_abs_(difference)
    return list(difference)


@overload
def multiplier(variation: Tensor, smoothed: Tensor, eps: float) -> Tensor: ...
@overload
def multiplier(variation: Tensors, smoothed: Tensors, eps: float) -> list[Tensor]: ...
def multiplier(
    variation: Tensor | Tensors, smoothed: Tensor | Tensors, eps: float
) -> Tensor | list[Tensor]:
    """r = (U + ε) / (Ī + ε): the factor on the learning rate of each parameter.

    ε stands in the numerator too. With ε in the denominator alone, as in the released code, a
    parameter that is exactly zero (a fresh bias, LoRA's B) has I = Ī = 0 and r = 0: it could never
    move. With ε in both places its r is 1 and it trains.

    Args:
        variation: U, any shape; or a list of such.
        smoothed: the Ī that U was computed with, same shape.
        eps: ε > 0, in units of the loss, far below a typical sensitivity.

    Returns:
        r, same shape, with 0 ≤ r ≤ `multiplier_bound`.

    Examples:
        >>> multiplier(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0]), 1e-12)
        tensor([3., 1.])
    """
    if isinstance(variation, Tensor) and isinstance(smoothed, Tensor):
        return (variation + eps) / (smoothed + eps)
    ratio = torch._foreach_add(variation, eps)  # type: ignore[arg-type]
    torch._foreach_div_(ratio, torch._foreach_add(smoothed, eps))  # type: ignore[arg-type]
    return list(ratio)


def observe(
    param: Tensor, grad: Tensor, smoothed: Tensor, beta0: float, step: Step | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a step sees: I, Ī after its update, and that Ī as the multiplier takes it.

    Args:
        param: θ, any shape.
        grad: g, same shape.
        smoothed: Ī before this step, same shape.
        beta0: memory of the average, in (0, 1).
        step: t ≥ 1 where Ī is bias-corrected for the multiplier; None where it is not.

    Returns:
        I, Ī to be stored, and Ī corrected (the stored one itself where step is None).

    Examples:
        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> observe(2 * one, one, zero, 0.75, step=1)
        (tensor([2.]), tensor([0.5000]), tensor([2.]))
    """
    current = sensitivity(param, grad)
    after = smooth(smoothed, current, beta0)
    return current, after, after if step is None else bias_correct(after, beta0, step)


def relative_multiplier(
    smoothed: Tensors,
    strength: float,
    eps: float,
    *,
    variation: Tensors | None = None,
    bound: float = 4.0,
) -> list[Tensor]:
    """Beyond the paper: a factor on lr from sensitivity compared with that of other parameters.

    ::

        w = ((Ī + ε) / (mean Ī + ε))^(−α)     clipped to [1/bound, bound]
        w ← 1 + c·(w − 1)                      with c = Ī / (Ī + U), where U is given
        r = w / mean w

    `multiplier` compares a parameter with its own recent past, and the level of its sensitivity
    cancels (see `ratio_multiplier`). This one does what the paper's words say: what is less
    sensitive than the rest gets a larger lr. The variation is a confidence: a sensitivity that
    varies as much as it is large has half a say.

    Args:
        smoothed: Ī of the tensors that are compared with each other, of any shapes, and on any
            devices; a list of one for a comparison within a tensor.
        strength: α in (0, 2); 0.5 takes a root.
        eps: ε > 0, in units of the loss.
        variation: U of each, or None to leave confidence out.
        bound: > 1.

    Returns:
        r of each tensor, of its shape; their mean over all elements is 1.

    Examples:
        >>> relative_multiplier([torch.tensor([1.0, 4.0])], 0.5, 1e-12)
        [tensor([1.3333, 0.6667])]

    Source: ours; it has not been shown to help, see docs/evidence.
    """
    count = sum(each.numel() for each in smoothed)
    if count == 0:
        return [torch.ones_like(each) for each in smoothed]
    mean = _sum(smoothed) / count
    weights = [
        ((each + eps) / (mean.to(each) + eps)).pow(-strength).clamp(1 / bound, bound)
        for each in smoothed
    ]
    if variation is not None:
        weights = [
            1 + (each + eps) / (each + u + eps) * (weight - 1)
            for each, u, weight in zip(smoothed, variation, weights, strict=True)
        ]
    total = _sum(weights)
    return [weight * (count / total.to(weight)) for weight in weights]


def relative_multipliers(
    smoothed: Tensors,
    variation: Tensors,
    ndims: Sequence[int],
    *,
    strength: float,
    eps: float,
    over: str,
    confidence: bool,
) -> list[Tensor]:
    """`relative_multiplier` of the tensors of a group: matrices are compared; 1 for the others.

    Args:
        smoothed: Ī of each, of its shape or as some of its elements.
        variation: U of each, alike.
        ndims: dimensions of each whole tensor.
        strength: α.
        eps: ε.
        over: "tensor" compares within each matrix, "group" over all of them.
        confidence: whether the variation has a say.

    Returns:
        r of each tensor, of the shape of its Ī.
    """
    found = [torch.ones_like(each) for each in smoothed]
    matrices = [i for i, ndim in enumerate(ndims) if ndim >= 2]
    for compared in [matrices] if over == "group" else [[i] for i in matrices]:
        multipliers = relative_multiplier(
            [smoothed[i] for i in compared],
            strength,
            eps,
            variation=[variation[i] for i in compared] if confidence else None,
        )
        for i, multiplier in zip(compared, multipliers, strict=True):
            found[i] = multiplier
    return found


def _sum(tensors: Tensors) -> Tensor:
    """Of all elements, wherever they lie: 0-d, on the device of the first."""
    sums = [each.sum() for each in tensors]
    return torch.stack([each.to(sums[0].device) for each in sums]).sum()


def ratio_multiplier(x: Number, beta0: float) -> Number:
    """r(x) = β0·|x−1| / (β0 + (1−β0)·x): the whole rule as a function of one ratio.

    x = I / (Ī before this step). It follows from the rule without bias correction as ε → 0, and
    shows what the rule responds to: the level of a parameter's sensitivity cancels, only its
    change against its own recent past is left. r is 1 at x = 0, 0 at x = 1, and tends to
    β0/(1−β0) for large x.

    Args:
        x: ratio ≥ 0, a number or a tensor.
        beta0: in (0, 1).

    Examples:
        >>> [round(ratio_multiplier(x, 0.75), 3) for x in (0.0, 1.0, 2.0)]
        [1.0, 0.0, 0.6]
    """
    return beta0 * abs(x - 1) / (beta0 + (1 - beta0) * x)  # type: ignore[return-value]


def multiplier_bound(beta0: float, step: int | None = None) -> float:
    """The largest r the rule can give: a multiplier cannot explode.

    max(1, β0/(1−β0)) without bias correction, max(1, (β0−β0^t)/(1−β0)) with it at step t.

    Args:
        beta0: in (0, 1).
        step: t ≥ 1 with bias correction; None without, or for the limit of many steps.

    Examples:
        >>> [round(multiplier_bound(b), 3) for b in (0.6, 0.75, 0.9)]
        [1.5, 3.0, 9.0]
    """
    decayed = 0.0 if step is None else beta0**step
    return max(1.0, (beta0 - decayed) / (1 - beta0))
