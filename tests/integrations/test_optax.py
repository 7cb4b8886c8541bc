"""The optax transformations are the torch optimizers, and keep optax's contract."""

import json
import re

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402

from sagelr import SageAdamax, SageAdamW, SageSGD  # noqa: E402
from sagelr.integrations.optax import (  # noqa: E402
    sage_adamax,
    sage_adamw,
    sage_sgd,
    scale_by_sage,
)

LIBRARY = "optax"
STEPS = 100
DECAYS = [{"decay": decay, "weight_decay": 0.1} for decay in ("decoupled", "scaled", "l2")]
COMMON = [{}, {"beta0": 0.9, "sage_eps": 0.01}, {"sage_bias_correction": False}, *DECAYS]
CASES = [
    *((SageAdamW, sage_adamw, options) for options in COMMON),
    *((SageAdamax, sage_adamax, options) for options in COMMON),
    *((SageSGD, sage_sgd, options) for options in COMMON),
    (SageSGD, sage_sgd, {"momentum": 0.9, "weight_decay": 0.1}),
    (SageSGD, sage_sgd, {"momentum": 0.9, "nesterov": True}),
]


def problem(seed=0):
    random = np.random.default_rng(seed)
    params = {"w": random.normal(size=(5, 4)), "b": np.zeros(3)}
    grads = [{k: random.normal(size=v.shape) for k, v in params.items()} for _ in range(STEPS)]
    return params, grads


def run(tx, params, grads):
    """Parameters after every step, jitted."""
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)

    @jax.jit
    def step(params, state, grad):
        updates, state = tx.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    found = []
    for grad in grads:
        params, state = step(params, state, grad)
        found.append(jax.tree.map(np.asarray, params))
    return found, state


@pytest.mark.parametrize(
    ("torch_cls", "alias", "options"), CASES, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_the_torch_optimizer_is_followed_for_100_steps(torch_cls, alias, options):
    params, grads = problem()
    found, _ = run(alias(0.01, **options), params, grads)
    ours = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in params.items()}
    optimizer = torch_cls(ours.values(), lr=0.01, **options)
    for grad, after in zip(grads, found, strict=True):
        for name, param in ours.items():
            param.grad = torch.tensor(grad[name])
        optimizer.step()
        for name, param in ours.items():
            np.testing.assert_allclose(after[name], param.detach().numpy(), rtol=0, atol=1e-10)


def uncorrected(b1, b2, eps, largest):
    """The authors' moments, which optax has with a correction alone."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, zeros

    def update(grads, state, params=None):
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state[0], grads)
        if largest:
            v = jax.tree.map(lambda v, g: jnp.maximum(b2 * v, abs(g) + eps), state[1], grads)
            return jax.tree.map(lambda m, v: m / v, m, v), (m, v)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state[1], grads)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), m, v), (m, v)

    return optax.GradientTransformation(init, update)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["adamw_bias_corrected", "adamw_uncorrected", "adamax"])
def test_recorded_trajectories(shared_data, name):
    hyper = json.loads((shared_data / "reference" / "cases.json").read_text())[name]["hyper"]
    b1, b2 = hyper["betas"]
    eps, decay, lr = hyper["eps"], hyper["weight_decay"], hyper["lr"]
    sage = {"beta0": hyper["beta3"], "sage_eps": eps**2}
    if name == "adamw_bias_corrected":
        tx, within = sage_adamw(lr, b1, b2, eps, decay, **sage), 3e-5
    else:
        base = uncorrected(b1, b2, eps, largest=name == "adamax")
        base = optax.chain(base, optax.add_decayed_weights(decay))
        scaled = scale_by_sage(base, **sage, sage_bias_correction=False)
        tx, within = optax.chain(scaled, optax.scale_by_learning_rate(lr)), 1e-8
    with np.load(shared_data / "reference" / f"{name}.npz") as arrays:
        for i in range(sum(key.startswith("param") for key in arrays)):
            found, _ = run(tx, arrays[f"param{i}"], arrays[f"grads{i}"])
            for theta, after in zip(found, arrays[f"after{i}"], strict=True):
                assert np.abs(theta - after).max() <= within * np.abs(after).max()


def test_vmap_is_a_loop():
    params, grads = problem()
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p, 3 * p + 1]), params)
    grad = jax.tree.map(lambda g: jnp.stack([g, -g, g * g]), grads[0])
    tx = sage_adamw(0.01, sage_bias_correction=False)
    updates, _ = jax.vmap(tx.update)(grad, jax.vmap(tx.init)(many), many)
    for i in range(3):
        one, part = (jax.tree.map(lambda x, i=i: x[i], tree) for tree in (many, grad))
        alone, _ = tx.update(part, tx.init(one), one)
        jax.tree.map(
            lambda u, v, i=i: np.testing.assert_allclose(u[i], v, rtol=1e-12), updates, alone
        )


def test_a_mask_leaves_a_leaf_to_the_base():
    params, grads = problem()
    plain, _ = run(optax.adamw(0.01, weight_decay=0.01), params, grads)
    sage, _ = run(sage_adamw(0.01, weight_decay=0.01), params, grads)
    for mask in ({"w": True, "b": False}, lambda tree: {name: name == "w" for name in tree}):
        mixed, _ = run(sage_adamw(0.01, weight_decay=0.01, sage_mask=mask), params, grads)
        np.testing.assert_allclose(mixed[-1]["b"], plain[-1]["b"], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(mixed[-1]["w"], sage[-1]["w"])


def test_masked_and_chained_by_optax():
    params, grads = problem()
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(scale_by_sage(optax.scale_by_adam()), {"w": True, "b": False}),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.01, STEPS)),
    )
    found, _ = run(tx, params, grads)
    assert np.isfinite(found[-1]["w"]).all()
    clipped = [jax.tree.map(np.asarray, optax.clip_by_global_norm(1.0).update(g, ())[0])
               for g in grads]  # fmt: skip
    rates = optax.cosine_decay_schedule(0.01, STEPS)
    b = params["b"] - sum(float(rates(t)) * g["b"] for t, g in enumerate(clipped))
    np.testing.assert_allclose(found[-1]["b"], b, rtol=1e-9)


def test_the_state_is_what_is_documented():
    params, grads = problem()
    tx = scale_by_sage(optax.scale_by_adam())
    _, state = tx.update(grads[0], tx.init(params), params)
    assert state.sensitivity_step == 1
    expected = {k: 0.25 * np.abs(params[k] * grads[0][k]) for k in params}
    jax.tree.map(np.testing.assert_allclose, state.exp_avg_sensitivity, expected)
    assert jax.tree.structure(state.exp_avg_sensitivity) == jax.tree.structure(params)


def test_narrow_parameters_are_computed_in_fp32():
    params = jnp.array([0.5, 0.25], jnp.bfloat16)
    tx = scale_by_sage(optax.identity())
    updates, state = tx.update(jnp.array([1.0, 2.0], jnp.bfloat16), tx.init(params), params)
    assert state.exp_avg_sensitivity.dtype == jnp.float32
    assert updates.dtype == jnp.bfloat16


def test_a_zero_parameter_trains():
    tx = scale_by_sage(optax.identity())
    params = jnp.zeros(2)
    updates, _ = tx.update(jnp.ones(2), tx.init(params), params)
    np.testing.assert_array_equal(updates, np.ones(2))


def test_clear_errors():
    tx = scale_by_sage(optax.identity())
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    with pytest.raises(ValueError, match=r"beta0=1.0 is out of range. Allowed: \(0, 1\)"):
        scale_by_sage(optax.identity(), beta0=1.0)
    with pytest.raises(ValueError, match="sage_eps=0"):
        scale_by_sage(optax.identity(), sage_eps=0)
    with pytest.raises(ValueError, match="decay='none' is not one of"):
        sage_adamw(0.1, decay="none")


def test_decay_on_a_schedule():
    decay = optax.linear_schedule(0.1, 0.0, 4)
    theirs, ours = optax.adamw(0.1, weight_decay=decay), sage_adamw(0.1, weight_decay=decay)
    params = jnp.array([1.0, -2.0])
    zero = jnp.zeros(2)  # nothing moves but by decay
    for made in (theirs, ours):
        state, at = made.init(params), params
        for _ in range(3):
            updates, state = made.update(zero, state, at)
            at = optax.apply_updates(at, updates)
        made_by = np.asarray(at)
        np.testing.assert_allclose(made_by, params * (1 - 0.01) * (1 - 0.0075) * (1 - 0.005))
    with pytest.raises(ValueError, match=r"beta0=.* is out of range"):
        sage_adamw(0.1, beta0=decay)


def test_the_example_learns(example):
    first, last = example("optax_train").main()
    assert last < 0.3 * first


@pytest.mark.parametrize(("make", "options"), [(sage_adamw, {}), (sage_sgd, {"momentum": 0.9})])
def test_hyperparameters_may_be_injected(make, options):
    """They are traced then, and have no value to check."""
    injected = optax.inject_hyperparams(make)(learning_rate=0.1, **options)
    transformations = (make(0.1, **options), injected)
    params, grads = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
    states = [tx.init(params) for tx in transformations]
    for _ in range(3):
        results = [
            jax.jit(tx.update)(grads, state, params)
            for tx, state in zip(transformations, states, strict=True)
        ]
        states = [state for _, state in results]
        np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)


def test_an_option_out_of_range_is_an_error():
    for make, name, value in (
        (sage_adamw, "weight_decay", -1.0),
        (sage_adamw, "b1", 1.0),
        (sage_adamax, "b2", 2.0),
        (sage_sgd, "momentum", -0.9),
        (sage_sgd, "sage_eps", float("inf")),
        (sage_sgd, "beta0", np.float32(2.0)),
        (sage_adamw, "beta0", jnp.float32(1.0)),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{name}={value!r} is out of range")):
            make(0.1, **{name: value})
