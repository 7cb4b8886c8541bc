"""SAGE is what the authors released: recorded trajectories, and an oracle written from the paper.

The oracle is numpy in float64 and shares nothing with the package. It is itself held to the
recordings, so that a checkout without them still checks trajectories.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sagelr import SageAdamax, SageAdamW

Array = np.ndarray
# Distances that still are SAGE, of the largest weight. With decoupled decay it remains that the
# authors decay after the step and torch before it.
WITH_DECOUPLED_DECAY, WITHOUT = 3e-5, 1e-8

CASES: dict[str, dict[str, Any]] = {
    "adamw_bias_corrected": {
        "lr": 0.003, "betas": (0.9, 0.999), "beta3": 0.75, "eps": 1e-10, "weight_decay": 0.01,
        "correct_bias": True,
    },
    "adamw_uncorrected": {
        "lr": 0.002, "betas": (0.9, 0.98), "beta3": 0.6, "eps": 1e-10, "weight_decay": 0.0,
        "correct_bias": False,
    },
    "adamax": {
        "lr": 0.003, "betas": (0.9, 0.999), "beta3": 0.85, "eps": 1e-10, "weight_decay": 0.01,
    },
}  # fmt: skip


def released(name: str, hyper: dict[str, Any], theta: Array, grads: Array) -> Iterator[tuple]:
    """What the authors' released code does, step by step: θ and Ī after each."""
    (beta1, beta2), beta3, eps = hyper["betas"], hyper["beta3"], hyper["eps"]
    lr, decay, adamax = hyper["lr"], hyper["weight_decay"], name == "adamax"
    m, second, smoothed = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(grads, 1):
        sensitivity = np.abs(theta * g)
        smoothed = beta3 * smoothed + (1 - beta3) * sensitivity
        average, size = smoothed, lr
        m = beta1 * m + (1 - beta1) * g
        if adamax:
            second = np.maximum(beta2 * second, np.abs(g) + eps)
            direction = m / (second + eps) + decay * theta
        else:
            second = beta2 * second + (1 - beta2) * g * g
            direction = m / (np.sqrt(second) + eps)
            if hyper["correct_bias"]:
                average = smoothed / (1 - beta3**t)
                size = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        multiplier = np.abs(sensitivity - average) / (average + eps**2)
        theta = theta - size * multiplier * direction
        if not adamax:
            theta = theta - lr * decay * theta
        yield theta, smoothed


def table(hyper: dict[str, Any], theta: Array, grads: Array) -> Iterator[tuple]:
    """The table of the rule on torch's AdamW: ε in both places, decay before the step."""
    (beta1, beta2), beta0, eps = hyper["betas"], hyper["beta0"], hyper["sage_eps"]
    m, v, smoothed = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(grads, 1):
        sensitivity = np.abs(theta * g)
        smoothed = beta0 * smoothed + (1 - beta0) * sensitivity
        average = smoothed / (1 - beta0**t)
        r = (np.abs(sensitivity - average) + eps) / (average + eps)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        direction = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + hyper["eps"])
        theta = (1 - hyper["lr"] * hyper["weight_decay"]) * theta - hyper["lr"] * r * direction
        yield theta, smoothed


def follow(name: str, hyper: dict[str, Any], theta: Array, grads: Array, engine) -> Iterator[tuple]:
    """The same case by the package: θ and Ī after each step."""
    param = torch.nn.Parameter(torch.tensor(theta))
    options = {key: hyper[key] for key in ("lr", "betas", "eps", "weight_decay")}
    options |= {"beta0": hyper["beta3"], "sage_eps": hyper["eps"] ** 2, **engine.options}
    if name == "adamax":
        optimizer = SageAdamax(
            [param], bias_correction=False, sage_bias_correction=False, decay="scaled", **options
        )
    else:
        correct = hyper["correct_bias"]
        optimizer = SageAdamW(
            [param], bias_correction=correct, sage_bias_correction=correct, **options
        )
    for grad in grads:
        param.grad = torch.tensor(grad)
        optimizer.step()
        yield param.detach().numpy(), optimizer.state[param]["exp_avg_sensitivity"].numpy()


def tolerance(name: str) -> float:
    decoupled = name != "adamax" and CASES[name]["weight_decay"]
    return WITH_DECOUPLED_DECAY if decoupled else WITHOUT


def assert_near(actual: Array, expected: Array, within: float, what: str) -> None:
    distance = np.abs(actual - expected).max() / np.abs(expected).max()
    assert distance <= within, f"{what}: off by {distance:.2g} of the largest, allowed {within:g}"


def recorded(folder: Path, name: str) -> list[dict[str, Array]]:
    with np.load(folder / "reference" / f"{name}.npz") as arrays:
        count = sum(key.startswith("param") for key in arrays)
        keys = ("param", "grads", "after", "sensitivity")
        return [{key: arrays[f"{key}{i}"] for key in keys} for i in range(count)]


def assert_recorded(steps: Iterator[tuple], tensor: dict[str, Array], within: float) -> None:
    found = [(theta.copy(), smoothed.copy()) for theta, smoothed in steps]
    for t, ((theta, _), after) in enumerate(zip(found, tensor["after"], strict=True), 1):
        assert_near(theta, after, within, f"θ at step {t}")
    assert_near(found[-1][1], tensor["sensitivity"], within, "Ī after the last step")


@pytest.mark.shared_data
@pytest.mark.parametrize("name", CASES)
def test_recorded_trajectories_are_followed_at_every_step(shared_data, name, engine):
    for tensor in recorded(shared_data, name):
        steps = follow(name, CASES[name], tensor["param"], tensor["grads"], engine)
        assert_recorded(steps, tensor, tolerance(name))


@pytest.mark.shared_data
@pytest.mark.parametrize("name", CASES)
def test_the_oracle_is_the_released_code(shared_data, name):
    hyper = json.loads((shared_data / "reference" / "cases.json").read_text())[name]["hyper"]
    assert {**hyper, "betas": tuple(hyper["betas"])} == CASES[name]
    for tensor in recorded(shared_data, name):
        steps = released(name, hyper, tensor["param"], tensor["grads"])
        assert_recorded(steps, tensor, 1e-13)


def case(seed: int, shape: tuple[int, ...] = (7, 5), steps: int = 40) -> tuple[Array, Array]:
    """Weights and gradients of the size that the recordings have."""
    random = np.random.default_rng(seed)
    return random.normal(0, 0.1, shape), random.normal(0, 0.02, (steps, *shape))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_the_released_code_is_followed_at_every_step(name, seed, engine):
    theta, grads = case(seed)
    hyper = {**CASES[name], "eps": 1e-12}  # so small that it does not matter where it enters
    ours = follow(name, hyper, theta, grads, engine)
    theirs = released(name, hyper, theta, grads)
    for t, (mine, true) in enumerate(zip(ours, theirs, strict=True), 1):
        assert_near(mine[0], true[0], tolerance(name), f"θ at step {t}")
        assert_near(mine[1], true[1], tolerance(name), f"Ī at step {t}")


def test_the_table_is_followed_to_rounding(engine):
    hyper = {"lr": 0.01, "betas": (0.8, 0.99), "beta0": 0.85, "sage_eps": 1e-4}
    hyper |= {"eps": 1e-3, "weight_decay": 0.1}  # large, so that where they enter shows
    theta, grads = case(0)
    param = torch.nn.Parameter(torch.tensor(theta))
    optimizer = SageAdamW([param], **hyper, **engine.options)
    for t, (grad, (true, smoothed)) in enumerate(
        zip(grads, table(hyper, theta, grads), strict=True), 1
    ):
        param.grad = torch.tensor(grad)
        optimizer.step()
        state = optimizer.state[param]
        assert_near(param.detach().numpy(), true, 1e-13, f"θ at step {t}")
        assert_near(state["exp_avg_sensitivity"].numpy(), smoothed, 1e-13, f"Ī at step {t}")
