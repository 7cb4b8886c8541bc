"""SAGE for JAX: `scale_by_sage` around any optax transformation, and thin aliases on top.

::

    import optax
    from sagelr.integrations.optax import sage_adamw, scale_by_sage

    optimizer = sage_adamw(2e-3)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        scale_by_sage(optax.scale_by_lion()),
        optax.scale_by_learning_rate(1e-4),
    )

The rule is that of `sagelr.rule`, in jax.numpy. Needs optax: pip install 'sagelr[optax]'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

__all__ = ["ScaleBySageState", "sage_adamax", "sage_adamw", "sage_sgd", "scale_by_sage"]

Array = jax.Array
Mask = Any | Callable[[optax.Params], Any] | None
Decay = Literal["decoupled", "scaled", "l2"]


class ScaleBySageState(NamedTuple):
    """State of `scale_by_sage`.

    Attributes:
        inner: of the inner transformation.
        sensitivity_step: t, steps taken; int32, 0-d.
        exp_avg_sensitivity: Ī, a tree of the parameters' shapes, not bias-corrected; fp32 for
            narrower parameters.
    """

    inner: optax.OptState
    sensitivity_step: Array
    exp_avg_sensitivity: optax.Updates


def scale_by_sage(
    inner: optax.GradientTransformation,
    beta0: float = 0.75,
    *,
    sage_eps: float = 1e-12,
    sage_bias_correction: bool = True,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale what another transformation makes of gradients by SAGE's multiplier.

    ::

        I = |θ·g|;  Ī ← β0·Ī + (1−β0)·I;  r = (|I − Ī| + ε) / (Ī + ε);  update = r · inner(g)

    It stands where the base optimizer's own scaling would, after clipping and before the learning
    rate, and hands the gradients that it gets to `inner`: clipping within `inner` would not reach
    the sensitivity. Weight decay within `inner` is scaled with the rest; decay that is to stay
    outside the multiplier comes after it.

    Args:
        inner: what makes a direction of a gradient, as `optax.scale_by_adam()`.
        beta0: memory of the smoothed sensitivity, in (0, 1).
        sage_eps: ε > 0, in units of the loss, in numerator and denominator.
        sage_bias_correction: correct Ī for its start from zero.
        mask: a tree of booleans, or a callable that makes one of the parameters: False leaves a
            leaf to `inner` alone. None puts SAGE on everything.

    Returns:
        A transformation whose `update` needs params.

    Raises:
        ValueError: an option out of range; in `update`, params=None.

    Examples:
        >>> tx = scale_by_sage(optax.identity(), sage_bias_correction=False)
        >>> params = jnp.array([1.0, 2.0])
        >>> updates, state = tx.update(jnp.array([0.5, -1.0]), tx.init(params), params)
        >>> print(updates)  # β0/(1−β0) = 3 times the gradient at an uncorrected first step
        [ 1.5 -3. ]

    Source: Liang et al., ICLR 2022, arXiv 2202.02664.
    """
    _check(beta0=beta0, sage_eps=sage_eps)
    transformation: Any = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> ScaleBySageState:
        zeros = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), _wide(p)), params)
        return ScaleBySageState(transformation.init(params), jnp.zeros([], jnp.int32), zeros)

    def update(
        updates: optax.Updates,
        state: ScaleBySageState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, ScaleBySageState]:
        if params is None:
            raise ValueError(
                "scale_by_sage needs the parameters, since sensitivity is |θ·g|. Call "
                "update(grads, state, params)."
            )
        step: Any = optax.safe_increment(state.sensitivity_step)
        sensitivity = jax.tree.map(_sensitivity, params, updates)
        smoothed = jax.tree.map(
            lambda average, now: average + (1 - beta0) * (now - average),
            state.exp_avg_sensitivity,
            sensitivity,
        )
        corrected = smoothed
        if sage_bias_correction:
            corrected = jax.tree.map(lambda s: s / (1 - beta0 ** step.astype(s.dtype)), smoothed)
        multiplier = jax.tree.map(
            lambda now, average: (jnp.abs(now - average) + sage_eps) / (average + sage_eps),
            sensitivity,
            corrected,
        )
        if mask is not None:
            chosen = mask(params) if callable(mask) else mask
            multiplier = jax.tree.map(
                lambda on, part: jax.tree.map(lambda r: jnp.where(on, r, 1), part),
                chosen,
                multiplier,
            )
        direction, inner_state = transformation.update(updates, state.inner, params, **extra)
        scaled = jax.tree.map(
            lambda r, d: (r * d.astype(r.dtype)).astype(d.dtype), multiplier, direction
        )
        return scaled, ScaleBySageState(inner_state, step, smoothed)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def sage_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 1e-2,
    *,
    beta0: float = 0.75,
    sage_eps: float = 1e-12,
    sage_bias_correction: bool = True,
    decay: Decay = "decoupled",
    decay_mask: Mask = None,
    sage_mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with SAGE; the same steps as `sagelr.SageAdamW`.

    Args:
        learning_rate: η, a number or an optax schedule. Tune it, from AdamW's best upwards; the
            authors tell to try 2 to 5 times that.
        b1: memory of the first moment, in [0, 1).
        b2: memory of the second moment, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: λ ≥ 0, or a schedule of it.
        beta0: memory of the smoothed sensitivity, in (0, 1).
        sage_eps: ε > 0 of the multiplier, in units of the loss.
        sage_bias_correction: correct Ī for its start from zero.
        decay: "decoupled" leaves weight decay outside the multiplier, "scaled" puts it under it,
            "l2" adds it to the gradient that Adam sees.
        decay_mask: which leaves decay; as optax's masks.
        sage_mask: which leaves get SAGE.

    Raises:
        ValueError: an option out of range; in `update`, params=None.

    Source: Liang et al., ICLR 2022, arXiv 2202.02664; Loshchilov and Hutter, arXiv 1711.05101.
    """
    _check(b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    base = optax.scale_by_adam(b1, b2, eps)
    sage = _Sage(beta0, sage_eps, sage_bias_correction, sage_mask)
    return _with_decay(base, sage, learning_rate, weight_decay, decay, decay_mask)


def sage_adamax(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    *,
    beta0: float = 0.75,
    sage_eps: float = 1e-12,
    sage_bias_correction: bool = True,
    decay: Decay = "l2",
    decay_mask: Mask = None,
    sage_mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Adamax with SAGE; the same steps as `sagelr.SageAdamax`. Arguments as in `sage_adamw`.

    Source: Liang et al., ICLR 2022, arXiv 2202.02664; Kingma and Ba, arXiv 1412.6980, section 7.
    """
    _check(b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    base = optax.scale_by_adamax(b1, b2, eps)
    sage = _Sage(beta0, sage_eps, sage_bias_correction, sage_mask)
    return _with_decay(base, sage, learning_rate, weight_decay, decay, decay_mask)


def sage_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.0,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    nesterov: bool = False,
    *,
    beta0: float = 0.75,
    sage_eps: float = 1e-12,
    sage_bias_correction: bool = True,
    decay: Decay = "l2",
    decay_mask: Mask = None,
    sage_mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD with SAGE; the same steps as `sagelr.SageSGD` without dampening.

    Args:
        learning_rate: η, a number or an optax schedule.
        momentum: μ ≥ 0.
        weight_decay: λ ≥ 0, or a schedule of it.
        nesterov: step along g + μ·b.
        beta0: memory of the smoothed sensitivity, in (0, 1).
        sage_eps: ε > 0 of the multiplier, in units of the loss.
        sage_bias_correction: correct Ī for its start from zero.
        decay: where weight decay enters, as in `sage_adamw`.
        decay_mask: which leaves decay.
        sage_mask: which leaves get SAGE.

    Raises:
        ValueError: an option out of range; in `update`, params=None.

    Source: Liang et al., ICLR 2022, arXiv 2202.02664; Sutskever et al., ICML 2013.
    """
    _check(momentum=momentum, weight_decay=weight_decay)
    plain = isinstance(momentum, int | float) and momentum == 0
    base = optax.identity() if plain else optax.trace(momentum, nesterov)
    sage = _Sage(beta0, sage_eps, sage_bias_correction, sage_mask)
    return _with_decay(base, sage, learning_rate, weight_decay, decay, decay_mask)


class _Sage(NamedTuple):
    """The options of the rule."""

    beta0: float
    eps: float
    bias_correction: bool
    mask: Mask

    def __call__(self, inner: optax.GradientTransformation) -> optax.GradientTransformation:
        return scale_by_sage(
            inner,
            self.beta0,
            sage_eps=self.eps,
            sage_bias_correction=self.bias_correction,
            mask=self.mask,
        )


def _with_decay(
    base: optax.GradientTransformation,
    sage: _Sage,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    decay: Decay,
    mask: Mask,
) -> optax.GradientTransformationExtraArgs:
    """Decay where it is wanted, SAGE around what it scales, then the learning rate."""
    weights = optax.add_decayed_weights(weight_decay, mask)
    last = optax.scale_by_learning_rate(learning_rate)
    match decay:
        case "decoupled":
            return optax.chain(sage(base), weights, last)
        case "scaled":
            return optax.chain(sage(optax.chain(base, weights)), last)
        case "l2":
            return optax.chain(sage(optax.chain(weights, base)), last)
    raise ValueError(
        f"decay={decay!r} is not one of 'decoupled', 'scaled', 'l2'. \"decoupled\" keeps weight "
        "decay outside the multiplier."
    )


# option: (lowest, beyond the highest, whether the lowest itself is out, in words with a remedy)
RANGES: dict[str, tuple[float, float, bool, str]] = {
    "beta0": (0.0, 1.0, True, "(0, 1); 0.75 is the default"),
    "sage_eps": (0.0, math.inf, True, "(0, ∞); with 0 a parameter that is 0 would divide 0 by 0"),
    "b1": (0.0, 1.0, False, "[0, 1); the default is 0.9"),
    "b2": (0.0, 1.0, False, "[0, 1); the default is 0.999"),
    "eps": (0.0, math.inf, False, "[0, ∞); the default is 1e-8"),
    "momentum": (0.0, math.inf, False, "[0, ∞); 0 turns it off, 0.9 is usual"),
    "weight_decay": (0.0, math.inf, False, "[0, ∞); 0 turns it off"),
}


def _check(**options: Any) -> None:
    """Refuse what is out of range. What JAX traces has no value yet, and passes.

    Raises:
        ValueError: an option out of range.
    """
    for name, value in options.items():
        low, high, open_, words = RANGES[name]
        if isinstance(value, Tracer) or (not callable(value) and jnp.ndim(value)):
            continue  # in optax.inject_hyperparams
        if callable(value) and name == "weight_decay":  # a schedule
            continue
        if callable(value) or not low <= value < high or (open_ and value == low):
            raise ValueError(f"{name}={value!r} is out of range. Allowed: {words}.")


def _wide(param: Array) -> Any:
    """The dtype of arithmetic: fp32 for anything narrower."""
    return jnp.promote_types(jnp.asarray(param).dtype, jnp.float32)


def _sensitivity(param: Array, grad: Array) -> Array:
    wide = _wide(param)
    return jnp.abs(jnp.asarray(param).astype(wide) * grad.astype(wide))
