"""SAGE in JAX: a gradient transformation like any other of optax.

python examples/optax_train.py
"""

import jax
import jax.numpy as jnp
import optax

from sagelr.integrations.optax import scale_by_sage


def predict(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x @ params["up"]) @ params["down"]


def main(steps: int = 300) -> tuple[float, float]:
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "up": 0.2 * jax.random.normal(keys[0], (16, 64)),
        "down": 0.1 * jax.random.normal(keys[1], (64, 4)),
    }
    truth = jax.random.normal(keys[2], (16, 4))
    # Clipping before SAGE, so that the sensitivity sees clipped gradients, as the authors' does.
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        scale_by_sage(optax.scale_by_adam(), beta0=0.75),
        optax.add_decayed_weights(0.01),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(1e-2, steps)),
    )
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        x = jax.random.normal(key, (128, 16))
        loss, grads = jax.value_and_grad(
            lambda p: jnp.mean((predict(p, x) - jnp.tanh(x @ truth)) ** 2)
        )(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    first = last = 0.0
    for i, key in enumerate(jax.random.split(keys[3], steps)):
        params, state, loss = step(params, state, key)
        first, last = (float(loss), float(loss)) if i == 0 else (first, float(loss))
    print(f"loss {first:.3f} → {last:.3f}")
    return first, last


if __name__ == "__main__":
    main()
