"""What torch promises of an optimizer, held against torch's own AdamW, Adamax and SGD."""

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.optim import lr_scheduler, swa_utils

from sagelr import SageAdamax, SageAdamW, SageSGD

LIBRARY = "torch"
TORCH = {SageAdamW: torch.optim.AdamW, SageAdamax: torch.optim.Adamax, SageSGD: torch.optim.SGD}
AVERAGES = {
    SageAdamW: ["exp_avg", "exp_avg_sq"],
    SageAdamax: ["exp_avg", "exp_inf"],
    SageSGD: ["momentum_buffer"],
}
SAGE_STATE = ["exp_avg_sensitivity", "sensitivity_step"]


def options_of(cls: type) -> dict[str, Any]:
    """Options with which an optimizer uses all its state."""
    return {"momentum": 0.9} if cls is SageSGD else {}


def params_of(
    draw: Callable[..., Tensor], dtype: torch.dtype = torch.float64
) -> list[nn.Parameter]:
    return [nn.Parameter(draw(4, 3, dtype=dtype)), nn.Parameter(draw(5, dtype=dtype))]


def copies(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(param.detach().clone()) for param in params]


def train(
    optimizers: list[torch.optim.Optimizer], params: list[list[nn.Parameter]], draw, steps: int = 4
) -> None:
    """Give several optimizers the same gradients."""
    for _ in range(steps):
        grads = [draw(*param.shape, dtype=param.dtype) for param in params[0]]
        for optimizer, own in zip(optimizers, params, strict=True):
            for param, grad in zip(own, grads, strict=True):
                param.grad = grad.clone()
            optimizer.step()


def assert_equal(a: list[nn.Parameter], b: list[nn.Parameter], within: float = 0.0) -> None:
    torch.testing.assert_close(a, b, rtol=within, atol=within)


def assert_same_state(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> None:
    """To the bit, dtypes and all."""
    first, second = a.state_dict(), b.state_dict()
    assert first["param_groups"] == second["param_groups"]
    assert first["state"].keys() == second["state"].keys()
    for key, state in first["state"].items():
        assert list(state) == list(second["state"][key])
        for name, value in state.items():
            torch.testing.assert_close(value, second["state"][key][name], rtol=0, atol=0)


# -- sage=False is torch ---------------------------------------------------------------------------

ADAM = [
    {},
    {"weight_decay": 0.1},
    {"betas": (0.5, 0.9), "eps": 1e-3},
    {"maximize": True, "weight_decay": 0.1},
    {"lr": torch.tensor(0.03, dtype=torch.float64)},
]
GRID = [
    *((SageAdamW, options) for options in ADAM),
    *((SageAdamax, options) for options in ADAM),
    (SageSGD, {}),
    (SageSGD, {"weight_decay": 0.1, "maximize": True}),
    (SageSGD, {"momentum": 0.9}),
    (SageSGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (SageSGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (SageSGD, {"momentum": 0.9, "maximize": True, "lr": torch.tensor(0.03, dtype=torch.float64)}),
]


@pytest.mark.parametrize(
    ("cls", "options"), GRID, ids=[f"{cls.__name__}-{'-'.join(o) or 'plain'}" for cls, o in GRID]
)
def test_with_sage_off_it_is_torchs_optimizer(engine, cls, options, draw):
    ours = params_of(draw)
    theirs = copies(ours)
    options = {"lr": 0.03, **options}
    train(
        [
            cls(ours, sage=False, **options, **engine.options),
            TORCH[cls](theirs, **options, foreach=False),
        ],
        [ours, theirs],
        draw,
        steps=20,
    )
    assert_equal(ours, theirs, 1e-12)


def test_defaults_are_torchs(cls):
    param = [nn.Parameter(torch.ones(1))]
    ours, theirs = cls(param).defaults, TORCH[cls](param).defaults
    shared = ours.keys() & theirs.keys()
    assert {"lr", "weight_decay", "maximize", "foreach", "capturable", "differentiable"} >= (
        shared - {"betas", "eps", "momentum", "dampening", "nesterov", "fused"}
    )
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}


def test_sage_options_have_the_documented_defaults(cls):
    defaults = cls([nn.Parameter(torch.ones(1))]).defaults
    assert defaults["beta0"] == 0.75
    assert defaults["sage_eps"] == 1e-12
    assert defaults["sage"] is True
    assert defaults["sage_lr_scale"] == 1.0
    assert defaults["sage_bias_correction"] is True
    assert defaults["decay"] == ("decoupled" if cls is SageAdamW else "l2")


def test_lr_scale_is_a_factor_on_lr(engine, cls, draw):
    a = params_of(draw)
    b = copies(a)
    options = {"weight_decay": 0.1, **engine.options}
    train([cls(a, lr=0.02, lr_scale=2.5, **options), cls(b, lr=0.05, **options)], [a, b], draw)
    assert_equal(a, b, 1e-12)


# -- schedulers ------------------------------------------------------------------------------------

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 4], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


def test_every_scheduler_of_torch_is_in_the_list():
    base = lr_scheduler.LRScheduler
    found = {
        name
        for name in lr_scheduler.__all__
        if issubclass(vars(lr_scheduler)[name], base) and vars(lr_scheduler)[name] is not base
    }
    assert found <= SCHEDULERS.keys(), "a new scheduler: say above how it is made"


@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_drive_lr(name, as_tensor, cls, draw):
    lr = torch.tensor(0.1, dtype=torch.float64) if as_tensor else 0.1
    ours = params_of(draw)
    theirs = copies(ours)
    a = cls(ours, lr=lr, **options_of(cls))
    b = cls(theirs, lr=0.1, **options_of(cls))
    # torch's own scheduler on torch's own optimizer says what lr should have been.
    model = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    ours_schedule, true_schedule = SCHEDULERS[name](a), SCHEDULERS[name](model)
    seen = []
    for _ in range(7):
        b.param_groups[0]["lr"] = model.param_groups[0]["lr"]
        seen.append(b.param_groups[0]["lr"])
        train([a, b], [ours, theirs], draw, steps=1)
        model.step()
        for schedule in (ours_schedule, true_schedule):
            plateau = isinstance(schedule, lr_scheduler.ReduceLROnPlateau)
            schedule.step(1.0) if plateau else schedule.step()
    assert len(set(seen)) > 1
    assert_equal(ours, theirs, 1e-12)
    assert (a.param_groups[0]["lr"] is lr) == as_tensor  # changed in place, the object kept


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_schedulers_cycle_momentum_too(name, cls, draw):
    params = params_of(draw)
    optimizer = cls(params, lr=0.1, **options_of(cls))
    if name == "OneCycleLR":
        schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8)
    else:
        schedule = lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, 2)
    seen = set()
    for _ in range(5):
        train([optimizer], [params], draw, steps=1)
        group = optimizer.param_groups[0]
        seen.add(group["momentum"] if "momentum" in group else group["betas"][0])
        schedule.step()
    assert len(seen) > 2


# -- step: closure, maximize, hooks ----------------------------------------------------------------


def test_closure_is_evaluated_once_with_gradients_on(cls):
    param = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = cls([param], lr=0.1)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 5.0
    assert calls == [True]
    assert optimizer.state[param]["step"] == 1
    assert optimizer.step() is None


def test_maximize_is_descent_on_the_negative(engine, cls, draw):
    up = params_of(draw)
    down = copies(up)
    a = cls(up, lr=0.05, maximize=True, **options_of(cls), **engine.options)
    b = cls(down, lr=0.05, **options_of(cls), **engine.options)
    for _ in range(5):
        for p, q in zip(up, down, strict=True):
            p.grad = draw(*p.shape)
            q.grad = -p.grad
        a.step()
        b.step()
    assert_equal(up, down)


def test_gradients_are_left_as_they_are(engine, cls, draw):
    params = params_of(draw)
    optimizer = cls(
        params, lr=0.1, weight_decay=0.1, decay="l2", maximize=True, **options_of(cls),
        **engine.options,
    )  # fmt: skip
    for _ in range(3):
        grads = [draw(*param.shape) for param in params]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        kept = [param.grad for param in params]
        optimizer.step()
        for param, grad, own in zip(params, grads, kept, strict=True):
            assert param.grad is own
            assert torch.equal(own, grad)


def test_step_without_any_gradient_changes_nothing(engine, cls, draw):
    params = params_of(draw)
    before = copies(params)
    optimizer = cls(params, **engine.options)
    optimizer.step()
    assert_equal(params, before)
    assert not optimizer.state


def test_step_hooks_run_around_the_step(cls, draw):
    params = params_of(draw)
    optimizer = cls(params, lr=0.1)
    start = params[0].detach().clone()
    seen = []

    def note(word: str) -> Callable[..., None]:
        def hook(owner: object, args: tuple, kwargs: dict) -> None:
            seen.append((word, owner is optimizer, torch.equal(params[0], start)))

        return hook

    handles = [
        optimizer.register_step_pre_hook(note("pre")),
        optimizer.register_step_post_hook(note("post")),
    ]
    train([optimizer], [params], draw, steps=2)
    assert [word for word, *_ in seen] == ["pre", "post", "pre", "post"]
    assert all(owner for _, owner, _ in seen)
    unmoved = [still for *_, still in seen]
    assert unmoved[0]
    assert not unmoved[3]
    for handle in handles:
        handle.remove()
    train([optimizer], [params], draw, steps=1)
    assert len(seen) == 4


def test_a_step_inside_backward(cls):
    """One optimizer for each parameter, its gradient gone before the next one is made."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    twin = copy.deepcopy(model)
    own = {param: cls([param], lr=0.05) for param in model.parameters()}

    def step(param: Tensor) -> None:
        own[param].step()
        own[param].zero_grad()

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(step)
    usual = cls(twin.parameters(), lr=0.05)
    for _ in range(3):
        inputs = torch.randn(6, 4)
        model(inputs).square().mean().backward()
        usual.zero_grad()
        twin(inputs).square().mean().backward()
        usual.step()
    assert all(param.grad is None for param in model.parameters())
    assert_equal(list(model.parameters()), list(twin.parameters()))


# -- differentiable, capturable, compiled ----------------------------------------------------------


def unrolled(cls: type, start: Tensor, lr: Tensor | float, **options: Any) -> Tensor:
    """The loss after three steps down a curved one, differentiable in start and lr."""
    theta = start.clone()
    optimizer = cls([theta], lr=lr, differentiable=True, **options)
    weight = torch.tensor([1.0, 0.5, -0.7], dtype=torch.float64)

    def loss_at(point: Tensor) -> Tensor:
        return (point.pow(4) + weight * point.sin()).sum()

    for _ in range(3):
        # A clone, since θ itself is about to be overwritten in place.
        (theta.grad,) = torch.autograd.grad(loss_at(theta.clone()), theta, create_graph=True)
        optimizer.step()
    return loss_at(theta.clone())


@pytest.mark.parametrize("decay", ["decoupled", "scaled", "l2"])
@pytest.mark.parametrize("corrected", [False, True])
def test_gradients_pass_through_the_step(cls, decay, corrected):
    options = {"weight_decay": 0.1, "decay": decay, "sage_bias_correction": corrected}
    options |= {"momentum": 0.9, "dampening": 0.5} if cls is SageSGD else {}
    start = torch.tensor([0.8, -0.6, 0.4], dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    to_start, to_lr = torch.autograd.grad(unrolled(cls, start, lr, **options), (start, lr))

    def slope(bump: Tensor, of_lr: float) -> float:
        up, down = (
            unrolled(cls, start.detach().add(sign * bump).requires_grad_(), 0.05 + sign * of_lr,
                     **options).item()
            for sign in (1, -1)
        )  # fmt: skip
        return (up - down) / 2e-6

    for i, bump in enumerate(1e-6 * torch.eye(3, dtype=torch.float64)):
        assert to_start[i].item() == pytest.approx(slope(bump, 0.0), rel=1e-5, abs=1e-7)
    by_lr = slope(torch.zeros(3, dtype=torch.float64), 1e-6)
    assert to_lr.item() == pytest.approx(by_lr, rel=1e-5, abs=1e-7)


def test_a_differentiable_step_is_the_same_step(cls, draw):
    a = params_of(draw)
    b = copies(a)
    options = {"lr": 0.05, "weight_decay": 0.1, **options_of(cls)}
    kept = [param.clone() for param in a]  # not leaves, as in unrolled training
    ours = cls(kept, differentiable=True, **options)
    theirs = cls(b, **options)
    for _ in range(4):
        for p, q in zip(kept, b, strict=True):
            p.grad = draw(*p.shape)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(kept, [param.detach() for param in b], rtol=1e-13, atol=1e-13)


def test_capturable_on_a_cpu_is_an_error_with_the_remedy(cls):
    param = nn.Parameter(torch.ones(3))
    optimizer = cls([param], capturable=True)
    param.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"capturable=True.*on cpu.*cuda.*leave capturable out"):
        optimizer.step()
    assert torch.equal(param, torch.ones(3))
    assert not optimizer.state.get(param)


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
@pytest.mark.parametrize("foreach", [False, True], ids=["eager", "foreach"])
def test_a_compiled_step_is_the_same_step_and_a_schedule_compiles_nothing(cls, foreach, draw):
    torch._dynamo.reset()
    params = params_of(draw, torch.float32)
    twin = copies(params)
    lr, counter = torch.tensor(0.05), CompileCounter()
    plain = cls(params, lr=0.05, foreach=foreach, **options_of(cls))
    optimizer = cls(twin, lr=lr, foreach=foreach, **options_of(cls))
    step = torch.compile(optimizer.step, backend=counter)  # runs what was traced, as it is
    compiled = []
    for t in range(5):
        plain.param_groups[0]["lr"] = 0.05 / (t + 1)
        lr.fill_(0.05 / (t + 1))
        for a, b in zip(params, twin, strict=True):
            a.grad = draw(*a.shape, dtype=torch.float32)
            b.grad = a.grad.clone()
        plain.step()
        step()
        compiled.append(counter.frame_count)
    torch.testing.assert_close(params, twin, rtol=1e-5, atol=1e-6)
    # One graph that makes the state and one that finds it made.
    assert compiled == [1, 2, 2, 2, 2]


# -- groups and names ------------------------------------------------------------------------------


def test_a_group_added_in_mid_training_starts_afresh(engine, cls, draw):
    first, second = params_of(draw), params_of(draw)
    optimizer = cls(first, lr=0.05, **options_of(cls), **engine.options)
    train([optimizer], [first], draw, steps=3)
    alone = copies(second)
    optimizer.add_param_group({"params": second, "beta0": 0.9, "lr": 0.01})
    other = cls(alone, lr=0.01, beta0=0.9, **options_of(cls), **engine.options)
    train([optimizer, other], [second, alone], draw, steps=3)
    assert_equal(second, alone)
    assert optimizer.state[second[0]]["sensitivity_step"] == 3
    assert optimizer.param_groups[1]["weight_decay"] == optimizer.defaults["weight_decay"]


def test_names_of_parameters_go_with_the_state(cls):
    model = nn.Linear(3, 2)
    optimizer = cls(model.named_parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"] == ["weight", "bias"]
    fresh = cls(copy.deepcopy(model).named_parameters())
    fresh.load_state_dict(saved)
    assert fresh.param_groups[0]["param_names"] == ["weight", "bias"]
    assert fresh.param_groups[0]["lr"] == 0.1


def test_groups_of_named_parameters(cls):
    model = nn.Linear(3, 2)
    groups = [
        {"params": [("weight", model.weight)], "beta0": 0.9},
        {"params": [("bias", model.bias)], "sage": False},
    ]
    optimizer = cls(groups)
    assert [group["param_names"] for group in optimizer.param_groups] == [["weight"], ["bias"]]
    assert [group["sage"] for group in optimizer.param_groups] == [True, False]


def test_zero_grad(cls, draw):
    params = params_of(draw)
    optimizer = cls(params)
    train([optimizer], [params], draw, steps=1)
    optimizer.zero_grad(set_to_none=False)
    assert all(not param.grad.any() for param in params)
    optimizer.zero_grad()
    assert all(param.grad is None for param in params)


# -- state -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_state_is_made_when_it_is_needed(engine, cls, dtype, draw):
    params = params_of(draw, dtype)
    optimizer = cls(params, **options_of(cls), **engine.options)
    assert not optimizer.state
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert params[1] not in optimizer.state
    state = optimizer.state[params[0]]
    assert sorted(state) == sorted(["step", *AVERAGES[cls], *SAGE_STATE])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, value in state.items():
        count = name in ("step", "sensitivity_step")
        assert value.dtype == (torch.float32 if count else wide)
        assert value.shape == (() if count else params[0].shape)
        assert not value.requires_grad
    assert state["step"] == state["sensitivity_step"] == 1


def test_state_with_sage_off_is_that_of_the_base(cls, draw):
    params = params_of(draw)
    optimizer = cls(params, sage=False, **options_of(cls))
    train([optimizer], [params], draw, steps=1)
    assert sorted(optimizer.state[params[0]]) == sorted(["step", *AVERAGES[cls]])


def test_sgd_without_momentum_keeps_sensitivity_alone(draw):
    params = params_of(draw)
    optimizer = SageSGD(params)
    train([optimizer], [params], draw, steps=1)
    assert sorted(optimizer.state[params[0]]) == sorted(["step", *SAGE_STATE])


def test_sage_turned_on_in_mid_training_starts_afresh(engine, cls, draw):
    params = params_of(draw)
    optimizer = cls(params, lr=0.05, sage=False, **options_of(cls), **engine.options)
    train([optimizer], [params], draw, steps=3)
    optimizer.param_groups[0]["sage"] = True
    before = copies(params)
    train([optimizer], [params], draw, steps=1)
    state = optimizer.state[params[0]]
    assert (state["step"], state["sensitivity_step"]) == (4, 1)
    # The first corrected step has r = 0: only decay outside the multiplier moves anything.
    shrunk = 1 - 0.05 * optimizer.param_groups[0]["weight_decay"]
    torch.testing.assert_close(params[0], before[0] * shrunk, rtol=1e-9, atol=1e-9)


# -- saving and loading ----------------------------------------------------------------------------


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_save_load_go_on_is_bit_identical(engine, cls, dtype, draw):
    params = params_of(draw, dtype)
    options = {**options_of(cls), **engine.options}
    optimizer = cls(params, lr=0.05, beta0=0.9, **options)
    train([optimizer], [params], draw, steps=3)
    resumed = copies(params)
    fresh = cls(resumed, **options)
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same_state(optimizer, fresh)
    train([optimizer, fresh], [params, resumed], draw, steps=3)
    assert_equal(params, resumed)
    assert_same_state(optimizer, fresh)


def remade(how: str, params: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> Any:
    """Parameters and optimizer together, as a program that stores both does."""
    both = (params, optimizer)
    return pickle.loads(pickle.dumps(both)) if how == "pickle" else copy.deepcopy(both)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_pickled_and_copied_optimizers_go_on(engine, cls, how, draw):
    params = params_of(draw)
    optimizer = cls(params, lr=0.05, beta0=0.9, **options_of(cls), **engine.options)
    train([optimizer], [params], draw, steps=3)
    again, twin = remade(how, params, optimizer)
    assert again[0] is not params[0]
    assert twin.param_groups[0]["params"][0] is again[0]
    train([optimizer, twin], [params, again], draw, steps=3)
    assert_equal(params, again)
    assert_same_state(optimizer, twin)


def torch_states() -> list[Any]:
    return [
        pytest.param(SageAdamW, {"weight_decay": 0.1}, id="AdamW"),
        pytest.param(SageAdamax, {"weight_decay": 0.1}, id="Adamax"),
        pytest.param(SageSGD, {"momentum": 0.9, "dampening": 0.4}, id="SGD"),
        pytest.param(SageSGD, {"momentum": 0.9, "nesterov": True}, id="SGD-nesterov"),
        pytest.param(SageSGD, {"weight_decay": 0.1}, id="SGD-without-momentum"),
    ]


@pytest.mark.parametrize(("cls", "options"), torch_states())
def test_a_state_of_torchs_goes_on_where_it_stopped(engine, cls, options, draw):
    theirs = params_of(draw)
    base = TORCH[cls](theirs, lr=0.05, **options)
    train([base], [theirs], draw, steps=3)
    ours = copies(theirs)
    optimizer = cls(ours, sage=False, **engine.options)
    optimizer.load_state_dict(through_a_file(base.state_dict()))
    train([base, optimizer], [theirs, ours], draw, steps=5)
    assert_equal(theirs, ours, 1e-12)


@pytest.mark.parametrize(("cls", "options"), torch_states())
def test_sensitivity_starts_afresh_in_a_state_of_torchs(engine, cls, options, draw):
    theirs = params_of(draw)
    base = TORCH[cls](theirs, lr=0.05, **options)
    train([base], [theirs], draw, steps=3)
    ours = copies(theirs)
    optimizer = cls(ours, beta0=0.9, **engine.options)
    optimizer.load_state_dict(base.state_dict())
    assert not set(SAGE_STATE) & optimizer.state[ours[0]].keys()
    assert optimizer.param_groups[0]["sage"] is True
    assert optimizer.param_groups[0]["beta0"] == 0.9
    sensitivity = []
    for t in (1, 2):
        ours[0].grad = draw(4, 3)
        sensitivity.append((ours[0] * ours[0].grad).abs().detach())
        optimizer.step()
        assert optimizer.state[ours[0]]["sensitivity_step"] == t
    smoothed = 0.9 * 0.1 * sensitivity[0] + 0.1 * sensitivity[1]
    torch.testing.assert_close(optimizer.state[ours[0]]["exp_avg_sensitivity"], smoothed)


@pytest.mark.parametrize("stepped", [True, False])
def test_amsgrad_is_refused_before_anything_changes(stepped, draw):
    theirs = params_of(draw)
    base = torch.optim.AdamW(theirs, lr=0.7, amsgrad=True)
    if stepped:
        train([base], [theirs], draw, steps=1)
    ours = params_of(draw)
    optimizer = SageAdamW(ours)
    train([optimizer], [ours], draw, steps=2)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"amsgrad=True.*SageAdamW.*Start afresh"):
        optimizer.load_state_dict(base.state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)


def test_a_state_of_torchs_adam_decays_on_as_adam_does(engine, draw):
    theirs = params_of(draw)
    base = torch.optim.Adam(theirs, lr=0.05, weight_decay=0.3)
    train([base], [theirs], draw, steps=3)
    ours = copies(theirs)
    optimizer = SageAdamW(ours, sage=False, **engine.options)
    optimizer.load_state_dict(through_a_file(base.state_dict()))
    assert optimizer.param_groups[0]["decay"] == "l2"
    train([base, optimizer], [theirs, ours], draw, steps=5)
    assert_equal(theirs, ours, 1e-12)


@pytest.mark.parametrize("saved", ["Adam-without-decay", "AdamW"])
def test_decay_stays_as_the_optimizer_was_made(saved, draw):
    theirs = params_of(draw)
    cls, decay = {
        "Adam-without-decay": (torch.optim.Adam, 0.0),
        "AdamW": (torch.optim.AdamW, 0.3),
    }[saved]
    base = cls(theirs, weight_decay=decay)
    train([base], [theirs], draw, steps=1)
    for kept in ("decoupled", "scaled"):
        optimizer = SageAdamW(copies(theirs), decay=kept)
        optimizer.load_state_dict(base.state_dict())
        assert optimizer.param_groups[0]["decay"] == kept


def test_a_state_of_radam_is_refused(draw):
    theirs = params_of(draw)
    base = torch.optim.RAdam(theirs, lr=0.05)
    train([base], [theirs], draw, steps=1)
    with pytest.raises(ValueError, match=r"RAdam.*SageAdamW or torch's AdamW"):
        SageAdamW(copies(theirs)).load_state_dict(base.state_dict())


def test_a_state_of_muon_is_refused():
    param = nn.Parameter(torch.ones(3, 3))
    base = torch.optim.Muon([param], lr=0.05)
    param.grad = torch.ones(3, 3)
    base.step()
    with pytest.raises(ValueError, match=r"Muon.*SageSGD or torch's SGD"):
        SageSGD([nn.Parameter(torch.ones(3, 3))]).load_state_dict(base.state_dict())


def test_options_that_a_file_lacks_keep_each_groups_values(cls, draw):
    def groups(params: list[nn.Parameter], **options: Any) -> list[dict[str, Any]]:
        return [{"params": params[:1]}, {"params": params[1:], **options}]

    theirs = params_of(draw)
    base = TORCH[cls](groups(theirs, lr=0.3), lr=0.1, weight_decay=0.25)
    train([base], [theirs], draw, steps=1)
    ours = copies(theirs)
    optimizer = cls(groups(ours, sage=False, beta0=0.8), sage_eps=1e-9)
    optimizer.load_state_dict(base.state_dict())
    first, second = optimizer.param_groups
    assert (first["sage"], second["sage"]) == (True, False)
    assert (first["beta0"], second["beta0"]) == (0.75, 0.8)
    assert first["sage_eps"] == second["sage_eps"] == 1e-9
    assert (first["lr"], second["lr"]) == (0.1, 0.3)  # and what it has is taken
    assert first["weight_decay"] == 0.25
    train([optimizer], [ours], draw, steps=1)
    assert "exp_avg_sensitivity" in optimizer.state[ours[0]]
    assert "exp_avg_sensitivity" not in optimizer.state[ours[1]]


def test_how_a_step_is_executed_stays_as_the_optimizer_was_made(cls):
    param = [nn.Parameter(torch.ones(2))]
    saved = cls(param, foreach=True, maximize=True).state_dict()
    saved["param_groups"][0]["capturable"] = True
    optimizer = cls(param, foreach=False)
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert (group["foreach"], group["capturable"], group["maximize"]) == (False, False, True)


def test_loading_shares_no_memory_with_the_file(cls, draw):
    params = params_of(draw)
    optimizer = cls(params, lr=0.05, **options_of(cls))
    train([optimizer], [params], draw, steps=2)
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    twin = copies(params)
    fresh = cls(twin, **options_of(cls))
    fresh.load_state_dict(saved)
    theirs = {t.data_ptr() for state in saved["state"].values() for t in state.values()}
    ours = {t.data_ptr() for state in fresh.state.values() for t in state.values()}
    assert not ours & theirs
    train([fresh], [twin], draw, steps=2)
    torch.testing.assert_close(saved["state"], kept["state"], rtol=0, atol=0)
    assert saved["param_groups"] == kept["param_groups"]


def test_a_file_with_other_groups_is_refused(cls, draw):
    params = params_of(draw)
    saved = cls(params).state_dict()
    two = cls([{"params": [param]} for param in params])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        two.load_state_dict(saved)
    with pytest.raises(ValueError, match="doesn't match the size"):
        cls(params[:1]).load_state_dict(saved)


def test_hooks_of_saving_and_loading_run_in_order(cls, draw):
    params = params_of(draw)
    optimizer = cls(params, lr=0.05)
    train([optimizer], [params], draw, steps=1)
    seen = []

    def on_save(_: object, state: dict[str, Any]) -> dict[str, Any]:
        seen.append("saved")
        return {**state, "note": 7}

    optimizer.register_state_dict_pre_hook(lambda _: seen.append("saving"))
    optimizer.register_state_dict_post_hook(on_save)
    saved = optimizer.state_dict()
    assert saved["note"] == 7

    def on_load(_: object, state: dict[str, Any]) -> dict[str, Any]:
        seen.append("loading")
        groups = [{**group, "lr": 0.5} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    def loaded(owner: torch.optim.Optimizer) -> None:
        # By then all is in place, dtypes included.
        state = owner.state[owner.param_groups[0]["params"][0]]
        seen.append(("loaded", state["exp_avg_sensitivity"].dtype, owner.param_groups[0]["lr"]))

    twin = [nn.Parameter(param.detach().bfloat16()) for param in params]
    fresh = cls(twin)
    fresh.register_load_state_dict_pre_hook(lambda *_: seen.append("first"))
    fresh.register_load_state_dict_pre_hook(on_load)
    fresh.register_load_state_dict_post_hook(loaded)
    fresh.load_state_dict(saved)
    assert seen[:4] == ["saving", "saved", "first", "loading"]
    word, dtype, lr = seen[4]
    assert (word, lr) == ("loaded", 0.5)
    assert dtype != torch.bfloat16
    fresh.load_state_dict(saved)  # the hooks of loading itself are gone
    assert len(seen) == 8


# -- what stands around an optimizer in a training loop --------------------------------------------


def test_grad_scaler_skips_without_a_trace_and_scales_without_one(engine, cls, draw):
    params = params_of(draw, torch.float32)
    plain = copies(params)
    options = {"lr": 0.05, **options_of(cls), **engine.options}
    optimizer, reference = cls(params, **options), cls(plain, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t in range(6):
        inputs = [draw(*param.shape, dtype=torch.float32) for param in params]
        optimizer.zero_grad()
        loss = sum((param.square() * x).sum() for param, x in zip(params, inputs, strict=True))
        scaler.scale(loss).backward()
        before = copy.deepcopy(optimizer.state_dict()["state"])
        values = copies(params)
        overflow = t in (0, 3)
        if overflow:
            params[0].grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        if overflow:
            assert_equal(params, values)
            after = optimizer.state_dict()["state"]
            torch.testing.assert_close(after, before, rtol=0, atol=0)
            continue
        reference.zero_grad()
        sum((p.square() * x).sum() for p, x in zip(plain, inputs, strict=True)).backward()
        reference.step()
    assert optimizer.state[params[0]]["sensitivity_step"] == 4
    assert scaler.get_scale() == 256.0  # halved twice: both overflows were seen
    assert_equal(params, plain)  # scales are powers of two, so nothing is lost


def test_averaged_weights(cls):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    optimizer = cls(model.parameters(), lr=0.1)
    averaged = swa_utils.AveragedModel(model)
    schedule = swa_utils.SWALR(optimizer, swa_lr=0.02, anneal_epochs=2)
    path = []
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        averaged.update_parameters(model)
        schedule.step()
        path.append(model[0].weight.detach().clone())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    torch.testing.assert_close(averaged.module[0].weight, torch.stack(path).mean(0))
    assert not torch.equal(path[0], path[3])


def test_the_signature_is_torchs_with_sages_options_by_name(cls):
    ours = inspect.signature(cls).parameters
    theirs = inspect.signature(TORCH[cls]).parameters
    positional = [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)]
    for name in ("beta0", "sage_eps", "sage", "lr_scale", "sage_bias_correction", "decay"):
        assert ours[name].kind is inspect.Parameter.KEYWORD_ONLY
