"""What follows from the rule, each property by itself."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sagelr import SageSGD, rule

F64 = torch.float64
NO_EPS = 1e-200  # ε → 0

beta0s = st.floats(0.05, 0.99)
# Sensitivities of any size, 0 among them, far from where float64 under- or overflows.
sizes = st.just(0.0) | st.floats(1e-30, 1e12)
histories = st.lists(sizes, min_size=1, max_size=25)


def multipliers(
    history: Sequence[float] | Tensor, beta0: float, corrected: bool, eps: float = 1e-12
) -> Tensor:
    """r after each sensitivity of a history; dimension 0 is time."""
    history = torch.as_tensor(history, dtype=F64)
    smoothed, found = torch.zeros_like(history[0]), []
    for t, current in enumerate(history, 1):
        smoothed = rule.smooth(smoothed, current, beta0)
        average = rule.bias_correct(smoothed, beta0, t) if corrected else smoothed
        found.append(rule.multiplier(rule.variation(current, average), average, eps))
    return torch.stack(found)


# -- the rule as a function of one ratio -----------------------------------------------------------


@given(beta0s, st.floats(1e-6, 1e6), st.just(0.0) | st.floats(1e-6, 1e6))
def test_r_depends_on_the_ratio_alone(beta0, before, x):
    before = torch.tensor(before, dtype=F64)
    current = before * x
    smoothed = rule.smooth(before, current, beta0)
    r = rule.multiplier(rule.variation(current, smoothed), smoothed, NO_EPS)
    torch.testing.assert_close(
        r.item(), rule.ratio_multiplier(x, beta0), rtol=1e-9, atol=1e-14 / (1 - beta0)
    )


@given(beta0s)
def test_the_ratio_form_at_its_marks(beta0):
    assert rule.ratio_multiplier(0.0, beta0) == 1
    assert rule.ratio_multiplier(1.0, beta0) == 0
    assert math.isclose(rule.ratio_multiplier(1e12, beta0), beta0 / (1 - beta0), rel_tol=1e-6)
    tensor = rule.ratio_multiplier(torch.tensor([0.0, 1.0], dtype=F64), beta0)
    torch.testing.assert_close(tensor, torch.tensor([1.0, 0.0], dtype=F64))


# -- bounds, beginnings and ends -------------------------------------------------------------------


@given(histories, beta0s)
def test_bounds_without_bias_correction(history, beta0):
    r = multipliers(history, beta0, corrected=False)
    assert (r >= 0).all()
    assert (r <= rule.multiplier_bound(beta0) * (1 + 1e-9)).all()


@given(histories, beta0s)
def test_bounds_with_bias_correction_at_every_step(history, beta0):
    r = multipliers(history, beta0, corrected=True)
    assert (r >= 0).all()
    for t, value in enumerate(r.tolist(), 1):
        bound = max(1.0, (beta0 - beta0**t) / (1 - beta0))
        assert value <= bound * (1 + 1e-9)
        assert math.isclose(rule.multiplier_bound(beta0, t), bound)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(("beta0", "largest"), [(0.6, 1.5), (0.75, 3.0), (0.9, 9.0)])
def test_the_bounds_are_reached(beta0, largest, corrected):
    # The worst case: nothing for long, then a jump.
    r = multipliers([0.0] * 400 + [1.0], beta0, corrected, eps=NO_EPS)
    assert math.isclose(rule.multiplier_bound(beta0), largest)
    assert math.isclose(r[-1].item(), largest, rel_tol=1e-9)


@given(st.floats(1e-6, 1e6), beta0s)
def test_the_first_step(size, beta0):
    # With correction Ī = I: SAGE does not move. Without it the step is the longest there is.
    assert multipliers([size], beta0, corrected=True).item() <= 1e-5
    first = multipliers([size], beta0, corrected=False, eps=NO_EPS).item()
    assert math.isclose(first, beta0 / (1 - beta0), rel_tol=1e-9)


@given(st.floats(1e-6, 1e6), beta0s, st.integers(1, 60))
def test_constant_sensitivity_brings_r_to_zero(size, beta0, steps):
    assert (multipliers([size] * steps, beta0, corrected=True) <= 1e-5).all()
    r = multipliers([size] * steps, beta0, corrected=False, eps=NO_EPS)[-1].item()
    expected = beta0**steps / (1 - beta0**steps)
    assert math.isclose(r, expected, rel_tol=1e-9, abs_tol=1e-13)


@given(histories, beta0s, st.booleans())
def test_sensitivity_that_drops_to_zero_gives_one_at_once(history, beta0, corrected):
    assert multipliers([*history, 0.0], beta0, corrected)[-1].item() == 1


@given(
    st.lists(st.floats(1.0, 1e6), min_size=1, max_size=20),
    st.floats(1.0, 1e6),
    st.floats(0.3, 0.95),
    st.booleans(),
)
def test_scaling_the_loss_leaves_r_as_it_is(history, factor, beta0, corrected):
    eps = 1e-6  # sensitivities are at least 1e6 of these
    small = multipliers(history, beta0, corrected, eps)
    large = multipliers([factor * size for size in history], beta0, corrected, eps)
    # ε moves r by at most (1 + r)·ε/Ī, and Ī is at least (1 − β0)·I uncorrected.
    allowed = (1 + small) * 1e-6 / (1 - beta0) + 1e-9
    assert ((small - large).abs() <= allowed).all()


# -- how large r is, on average --------------------------------------------------------------------


def last(sensitivity_at, steps: int, beta0: float, corrected: bool = True) -> Tensor:
    """r of many parameters after some steps."""
    history = torch.stack([sensitivity_at(t) for t in range(steps)])
    return multipliers(history, beta0, corrected)[-1]


@pytest.mark.parametrize(
    ("beta0", "mean", "rms"), [(0.6, 0.41, 0.50), (0.75, 0.48, 0.58), (0.9, 0.56, 0.68)]
)
def test_mean_and_rms_for_half_normal_sensitivity(draw, beta0, mean, rms):
    r = last(lambda t: draw(100_000).abs(), 50, beta0)
    assert abs(r.mean().item() - mean) < 0.006
    assert abs(r.square().mean().sqrt().item() - rms) < 0.006


@pytest.mark.parametrize(("ratio", "mean"), [(0, 0.48), (1, 0.45), (2, 0.32), (4, 0.16)])
def test_mean_falls_as_signal_overtakes_noise(draw, ratio, mean):
    r = last(lambda t: (ratio + draw(100_000)).abs(), 30, 0.75)
    assert abs(r.mean().item() - mean) < 0.006


@pytest.mark.parametrize("corrected", [False, True])
def test_rarely_used_rows_get_the_longest_steps(draw, corrected):
    steps, rows = 60, 100_000
    comes = torch.rand(steps, rows, generator=torch.Generator().manual_seed(1)) < 0.01
    r = last(lambda t: draw(rows).abs() * comes[t], steps, 0.75, corrected)
    assert abs(r[comes[-1]].mean().item() - 2.9) < 0.05
    torch.testing.assert_close(r[~comes[-1]], torch.ones_like(r[~comes[-1]]))


# -- a parameter that is exactly zero --------------------------------------------------------------


def test_a_parameter_that_is_zero_has_multiplier_one():
    zero = torch.zeros(3, dtype=F64)
    current = rule.sensitivity(zero, torch.ones(3, dtype=F64))
    smoothed = rule.smooth(zero, current, 0.75)
    variation = rule.variation(current, smoothed)
    assert rule.multiplier(variation, smoothed, 1e-12).tolist() == [1, 1, 1]
    # With ε in the denominator alone, as released, it is frozen for ever.
    assert (variation / (smoothed + 1e-12)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("corrected", [False, True])
def test_a_parameter_that_is_zero_trains(cls, engine, corrected):
    param = torch.nn.Parameter(torch.zeros(5))
    optimizer = cls([param], lr=0.1, sage_bias_correction=corrected, **engine.options)
    param.grad = torch.ones(5)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((5,), -0.1))  # each base's first step


# -- what the rule does not see --------------------------------------------------------------------


@given(st.integers(0, 1000), beta0s, st.booleans())
def test_the_level_of_sensitivity_cancels(seed, beta0, corrected):
    generator = torch.Generator().manual_seed(seed)
    history = torch.rand(12, 30, generator=generator, dtype=F64) + 1e-3
    level = 10 ** torch.linspace(-6, 6, 30, dtype=F64)
    plain = multipliers(history, beta0, corrected, NO_EPS)
    leveled = multipliers(history * level, beta0, corrected, NO_EPS)
    torch.testing.assert_close(plain, leveled, rtol=1e-9, atol=1e-12 / (1 - beta0))


@pytest.fixture(scope="module")
def drift() -> dict[str, Tensor]:
    """A trajectory whose weights drift by about 1% a step, as in training: r with θ and without."""
    generator = torch.Generator().manual_seed(3)
    theta = torch.randn(5000, generator=generator, dtype=F64)
    scale = 10 ** torch.randn(5000, generator=generator, dtype=F64)
    grads = torch.randn(60, 5000, generator=generator, dtype=F64) * scale
    path = theta - torch.cumsum(0.01 * grads / scale * theta.abs(), 0)
    return {
        "sensitivity": (path * grads).abs(),
        "sage": multipliers((path * grads).abs(), 0.75, True)[20:],
        "control": multipliers(grads.abs(), 0.75, True)[20:],
    }


def test_the_control_without_theta_gives_nearly_the_same_multipliers(drift):
    pairs = torch.stack([drift["sage"].flatten(), drift["control"].flatten()])
    assert torch.corrcoef(pairs)[0, 1] > 0.96


def test_low_sensitivity_hardly_means_a_larger_multiplier(drift):
    level = drift["sensitivity"].mean(0)
    order = level.argsort()
    mean = drift["sage"].mean(0)[order]
    assert level[order[-1000]] > 50 * level[order[1000]]  # fifths that are far apart
    assert abs(mean[:1000].mean() - mean[-1000:].mean()) < 0.05


# -- the functions themselves ----------------------------------------------------------------------


def tensors(seed: int, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=F64) for shape in shapes]


@given(
    st.integers(0, 1000),
    st.lists(st.sampled_from([(), (0,), (1,), (3,), (2, 4), (2, 1, 3)]), min_size=1, max_size=5),
    beta0s,
)
def test_lists_give_what_tensors_give_and_no_argument_changes(seed, shapes, beta0):
    a, b = tensors(seed, shapes), [tensor.abs() for tensor in tensors(seed + 1, shapes)]
    steps = list(range(1, len(shapes) + 1))
    kept = [tensor.clone() for tensor in (*a, *b)]
    each = range(len(shapes))
    pairs = [
        (rule.sensitivity(a, b), [rule.sensitivity(a[i], b[i]) for i in each]),
        (rule.smooth(b, a, beta0), [rule.smooth(b[i], a[i], beta0) for i in each]),
        (rule.variation(a, b), [rule.variation(a[i], b[i]) for i in each]),
        (rule.multiplier(a, b, 0.1), [rule.multiplier(a[i], b[i], 0.1) for i in each]),
        (
            rule.bias_correct(a, beta0, steps),
            [rule.bias_correct(a[i], beta0, steps[i]) for i in each],
        ),
    ]
    for together, apart in pairs:
        torch.testing.assert_close(together, apart, rtol=1e-13, atol=1e-15)
        assert not {x.data_ptr() for x in together if x.numel()} & {
            x.data_ptr() for x in (*a, *b) if x.numel()
        }
    torch.testing.assert_close([*a, *b], kept, rtol=0, atol=0)


@given(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0.1, 5), beta0s)
def test_every_function_is_what_its_formula_says(theta, grad, before, beta0):
    def scalar(value: float) -> Tensor:
        return torch.tensor(value, dtype=F64)

    sensitivity = rule.sensitivity(scalar(-theta), scalar(grad))
    smoothed = rule.smooth(scalar(before), sensitivity, beta0)
    corrected = rule.bias_correct(smoothed, beta0, 3)
    variation = rule.variation(sensitivity, corrected)
    r = rule.multiplier(variation, corrected, 0.1)
    current, average = theta * grad, beta0 * before + (1 - beta0) * theta * grad
    average /= 1 - beta0**3
    for actual, expected in [
        (sensitivity, current),
        (corrected, average),
        (variation, abs(current - average)),
        (r, (abs(current - average) + 0.1) / (average + 0.1)),
    ]:
        assert math.isclose(actual.item(), expected, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_is_kept(dtype):
    one = torch.ones(2, dtype=dtype)
    found = [
        rule.sensitivity(one, one),
        rule.smooth(one, one, 0.75),
        rule.bias_correct(one, 0.75, 2),
        rule.bias_correct(one, 0.75, torch.tensor(2.0)),
        rule.variation(one, one),
        rule.multiplier(one, one, 1e-12),
        *rule.sensitivity([one], [one]),
        *rule.multiplier([one], [one], 1e-12),
    ]
    assert {tensor.dtype for tensor in found} == {dtype}


def test_the_rule_is_differentiable():
    theta = torch.tensor([0.5, -1.5], dtype=F64, requires_grad=True)
    grad = torch.tensor([0.3, 0.7], dtype=F64, requires_grad=True)
    before = torch.tensor([0.4, 0.2], dtype=F64, requires_grad=True)

    def r(theta: Tensor, grad: Tensor, before: Tensor) -> Tensor:
        current = rule.sensitivity(theta, grad)
        smoothed = rule.bias_correct(rule.smooth(before, current, 0.75), 0.75, 4)
        return rule.multiplier(rule.variation(current, smoothed), smoothed, 1e-3)

    assert torch.autograd.gradcheck(r, (theta, grad, before))


def test_the_step_is_the_rule_on_the_gradient(engine, draw):
    # SGD's direction is the gradient, so that the movement shows r itself.
    start = draw(6)
    param = torch.nn.Parameter(start.clone())
    optimizer = SageSGD([param], lr=0.5, beta0=0.8, **engine.options)
    history = []
    for _ in range(10):
        before, grad = param.detach().clone(), draw(6)
        history.append((before * grad).abs())
        param.grad = grad
        optimizer.step()
        r = multipliers(torch.stack(history), 0.8, corrected=True)[-1]
        torch.testing.assert_close(param.detach(), before - 0.5 * r * grad, rtol=1e-12, atol=1e-13)
