"""Sage(base): θ_old + r·(θ_new − θ_old), for whatever torch optimizer makes θ_new."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from sagelr import Sage, SageAdamax, SageAdamW, SageSGD
from sagelr.state import rounding

F64 = torch.float64


class Lion(Optimizer):
    """Chen et al. 2023: the sign of a blend, decay decoupled; as third parties write it."""

    def __init__(self, params, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, (beta1, beta2) = self.state[p], group["betas"]
                if len(state) == 0:
                    state["exp_avg"] = torch.zeros_like(p)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                blend = state["exp_avg"] * beta1 + p.grad * (1 - beta1)
                p.add_(blend.sign(), alpha=-group["lr"])
                state["exp_avg"].mul_(beta2).add_(p.grad, alpha=1 - beta2)


class Clobbering(torch.optim.SGD):
    """Leaves nothing of the gradients, as a base may that saves memory."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(-3).add_(1)
        return loss


optim = torch.optim


class MyAdafactor(optim.Adafactor):
    """Decays as what it is a kind of."""


class MyASGD(optim.ASGD):
    """Averages as what it is a kind of."""


# How the base is made, and whether its decay is known to lie outside its direction.
BASES: dict[str, tuple[Callable[..., Optimizer], bool]] = {
    "AdamW": (lambda p: optim.AdamW(p, lr=0.05, weight_decay=0.1), True),
    "AdamW-amsgrad": (lambda p: optim.AdamW(p, lr=0.05, amsgrad=True), True),
    "AdamW-foreach": (lambda p: optim.AdamW(p, lr=0.05, weight_decay=0.1, foreach=True), True),
    "AdamW-fused": (lambda p: optim.AdamW(p, lr=0.05, weight_decay=0.1, fused=True), True),
    "Adam": (lambda p: optim.Adam(p, lr=0.05, weight_decay=0.1), False),
    "Adam-decoupled": (
        lambda p: optim.Adam(p, lr=0.05, weight_decay=0.1, decoupled_weight_decay=True), True
    ),
    "NAdam": (lambda p: optim.NAdam(p, lr=0.05, weight_decay=0.1), False),
    "NAdam-decoupled": (
        lambda p: optim.NAdam(p, lr=0.05, weight_decay=0.1, decoupled_weight_decay=True), True
    ),
    "RAdam": (lambda p: optim.RAdam(p, lr=0.05, weight_decay=0.1), False),
    "RMSprop": (lambda p: optim.RMSprop(p, lr=0.05, momentum=0.9, weight_decay=0.1), False),
    "Adagrad": (lambda p: optim.Adagrad(p, lr=0.05, weight_decay=0.1), False),
    "Adadelta": (lambda p: optim.Adadelta(p, lr=1.0, weight_decay=0.1), False),
    "Rprop": (lambda p: optim.Rprop(p, lr=0.05), False),
    "SGD": (lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1), False),
    "SGD-maximize": (lambda p: optim.SGD(p, lr=0.05, maximize=True), False),
    "Adamax": (lambda p: optim.Adamax(p, lr=0.05, weight_decay=0.1), False),
    "Muon": (lambda p: optim.Muon(p, lr=0.05, weight_decay=0.1), True),
    "Adafactor": (lambda p: optim.Adafactor(p, lr=0.05, weight_decay=0.1), True),
    "Lion": (lambda p: Lion(p, lr=0.05, weight_decay=0.1), True),
    "Adafactor of one's own": (lambda p: MyAdafactor(p, lr=0.05, weight_decay=0.1), True),
    "Clobbering": (lambda p: Clobbering(p, lr=0.05), False),
}  # fmt: skip


@pytest.fixture(params=BASES)
def base_of(request: pytest.FixtureRequest) -> Callable[..., Optimizer]:
    return BASES[request.param][0]


def params_of(draw: Callable[..., Tensor], dtype: torch.dtype = F64) -> list[nn.Parameter]:
    """Matrices alone, since Muon takes no others."""
    return [nn.Parameter(draw(4, 3, dtype=dtype)), nn.Parameter(draw(2, 5, dtype=dtype))]


def copies(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(param.detach().clone()) for param in params]


def train(optimizers: list[Optimizer], params: list[list[nn.Parameter]], draw, steps: int = 3):
    for _ in range(steps):
        grads = [draw(*param.shape, dtype=param.dtype) for param in params[0]]
        for optimizer, own in zip(optimizers, params, strict=True):
            for param, grad in zip(own, grads, strict=True):
                param.grad = grad.clone()
            optimizer.step()


def assert_equal(a: list[nn.Parameter], b: list[nn.Parameter], within: float = 0.0) -> None:
    torch.testing.assert_close(a, b, rtol=within, atol=within)


# -- the step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("corrected", [True, False])
def test_the_base_moves_and_the_multiplier_scales(name, corrected, draw):
    make, decoupled = BASES[name]
    ours = params_of(draw)
    theirs = copies(ours)
    optimizer = Sage(make(ours), beta0=0.8, sage_eps=1e-3, sage_bias_correction=corrected)
    base = make(theirs)
    smoothed = [torch.zeros_like(param.detach()) for param in ours]
    for t in range(1, 8):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            # Some steps without a gradient, and the base from where SAGE has come.
            grad = None if (t + i) % 5 == 0 else draw(*a.shape)
            a.grad, b.grad = grad, None if grad is None else grad.clone()
            b.data.copy_(a.detach())
        seen = [None if a.grad is None else a.grad.clone() for a in ours]
        counts = [
            1 + int(optimizer.state.get(a, {}).get("sensitivity_step", torch.tensor(0.0)))
            for a in ours
        ]
        optimizer.step()
        start = [b.detach().clone() for b in theirs]
        base.step()
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if seen[i] is None:
                assert torch.equal(a, start[i])
                continue
            current = (start[i] * seen[i]).abs()
            smoothed[i] = 0.8 * smoothed[i] + 0.2 * current
            average = smoothed[i] / (1 - 0.8 ** counts[i]) if corrected else smoothed[i]
            r = ((current - average).abs() + 1e-3) / (average + 1e-3)
            group = base.param_groups[0]
            shrunk = start[i] * (1 - group["lr"] * group.get("weight_decay", 0) * decoupled)
            expected = shrunk + r * (b.detach() - shrunk)
            torch.testing.assert_close(a.detach(), expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(
                optimizer.state[a]["exp_avg_sensitivity"], smoothed[i], rtol=1e-12, atol=1e-14
            )


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize(
    ("cls", "base", "options"),
    [
        (SageAdamW, optim.AdamW, {"weight_decay": 0.1}),
        (SageAdamax, optim.Adamax, {}),
        (SageSGD, optim.SGD, {"momentum": 0.9, "dampening": 0.2}),
        (SageSGD, optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ],
)
def test_it_equals_the_optimizer_with_sage_built_in(cls, base, options, corrected, draw):
    ours = params_of(draw)
    theirs = copies(ours)
    own = {"beta0": 0.85, "sage_eps": 1e-6, "sage_bias_correction": corrected}
    wrapped = Sage(base(ours, lr=0.05, **options), **own)
    train([wrapped, cls(theirs, lr=0.05, **options, **own)], [ours, theirs], draw, steps=20)
    assert_equal(ours, theirs, 1e-12)


def test_decay_may_be_put_inside(draw):
    """As the authors' Adamax has it: SageAdamW with decay under the multiplier."""
    ours = params_of(draw)
    theirs = copies(ours)
    wrapped = Sage(optim.AdamW(ours, lr=0.05, weight_decay=0.1), decay="inside")
    built_in = SageAdamW(theirs, lr=0.05, weight_decay=0.1, decay="scaled")
    train([wrapped, built_in], [ours, theirs], draw, steps=10)
    assert_equal(ours, theirs, 1e-12)


def test_decay_of_an_unknown_base_may_be_said_to_be_outside(draw):
    class Own(Lion):
        pass

    ours = params_of(draw)
    theirs = copies(ours)
    told = Sage(Own(ours, weight_decay=0.1), decay="decoupled")
    known = Sage(Lion(theirs, weight_decay=0.1))
    train([told, known], [ours, theirs], draw, steps=5)
    assert_equal(ours, theirs)


def test_a_group_may_go_without(draw):
    ours = params_of(draw)
    theirs = copies(ours)
    groups = [{"params": ours[:1], "sage": False}, {"params": ours[1:]}]
    wrapped = Sage(optim.AdamW(groups, lr=0.05))
    base = optim.AdamW(theirs, lr=0.05)
    train([wrapped, base], [ours, theirs], draw, steps=4)
    assert_equal(ours[:1], theirs[:1])
    assert not torch.allclose(ours[1], theirs[1])
    assert "exp_avg_sensitivity" not in wrapped.state[ours[0]]


def test_closure_is_evaluated_once(base_of, draw):
    params = params_of(draw)
    optimizer = Sage(base_of(params))
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum(param.square().sum() for param in params)
        loss.backward()
        return loss

    with torch.no_grad():
        expected = sum(param.square().sum() for param in params)
        assert torch.equal(optimizer.step(closure), expected)
    assert calls == [True]
    assert optimizer.step() is None


def test_a_step_without_gradients_changes_nothing(base_of, draw):
    params = params_of(draw)
    before = copies(params)
    optimizer = Sage(base_of(params))
    optimizer.step()
    assert_equal(params, before)


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "SGD", "Lion", "Muon"])
def test_bf16_parameters(name, draw):
    """The base rounds its step to bf16; SAGE works in fp32 from there and rounds once more."""
    make, decoupled = BASES[name]
    params = params_of(draw, torch.bfloat16)
    theirs = copies(params)
    optimizer, base = Sage(make(params), sage_bias_correction=False), make(theirs)
    begun = [param.detach().float() for param in params]
    train([optimizer, base], [params, theirs], draw, steps=1)
    group = base.param_groups[0]
    keep = 1 - group["lr"] * group["weight_decay"] * decoupled
    for param, moved, old in zip(params, theirs, begun, strict=True):
        assert param.dtype == torch.bfloat16
        assert optimizer.state[param]["exp_avg_sensitivity"].dtype == torch.float32
        # The first uncorrected step has r = 3.
        expected = old * keep + 3 * (moved.detach().float() - old * keep)
        torch.testing.assert_close(param.float().detach(), expected, rtol=2**-8, atol=1e-6)


# -- what is the base's ----------------------------------------------------------------------------


def test_groups_and_state_are_the_bases(base_of, draw):
    params = params_of(draw)
    base = base_of(params)
    optimizer = Sage(base, beta0=0.9)
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert not optimizer.state.get(params[0], {}).get("sensitivity_step")
    plain = copies(params)
    alone = base_of(plain)
    train([optimizer, alone], [params, plain], draw, steps=2)
    # Flat beside the base's own, and the base has not been kept from making that.
    names = set(alone.state[plain[0]])
    assert set(base.state[params[0]]) == names | {"exp_avg_sensitivity", "sensitivity_step"}
    assert base.state[params[0]]["sensitivity_step"] == 2
    assert base.param_groups[0]["beta0"] == 0.9


def test_schedulers_drive_the_base(base_of, draw):
    ours = params_of(draw)
    theirs = copies(ours)
    scheduled, by_hand = Sage(base_of(ours)), Sage(base_of(theirs))
    schedule = lr_scheduler.LinearLR(scheduled, 0.1, 1.0, 4)
    lr = by_hand.param_groups[0]["lr"]
    for t in range(5):
        by_hand.param_groups[0]["lr"] = lr * (0.1 + 0.9 * min(t, 4) / 4)
        train([scheduled, by_hand], [ours, theirs], draw, steps=1)
        schedule.step()
    assert_equal(ours, theirs, 1e-12)


def test_a_group_added_later(draw):
    params, late = params_of(draw), params_of(draw)
    optimizer = Sage(optim.AdamW(params, lr=0.05))
    train([optimizer], [params], draw)
    optimizer.add_param_group({"params": late, "beta0": 0.6})
    assert optimizer.base.param_groups[1]["beta0"] == 0.6
    assert optimizer.base.param_groups[1]["sage"] is True
    train([optimizer], [late], draw, steps=2)
    assert optimizer.state[late[0]]["sensitivity_step"] == 2


def test_a_group_added_to_the_base_itself(draw):
    params, late = params_of(draw), params_of(draw)
    optimizer = Sage(optim.AdamW(params, lr=0.05), beta0=0.9)
    optimizer.base.add_param_group({"params": late})
    train([optimizer], [late], draw, steps=2)
    assert optimizer.state[late[0]]["sensitivity_step"] == 2
    assert optimizer.param_groups[1]["beta0"] == 0.9


def test_hooks(draw):
    params = params_of(draw)
    optimizer = Sage(optim.SGD(params, lr=0.1))
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.base.register_step_post_hook(lambda *_: seen.append("base"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    train([optimizer], [params], draw, steps=2)
    assert seen == ["pre", "base", "post"] * 2
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": 1})
    assert optimizer.state_dict()["note"] == 1
    optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("loading"))
    optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen[6:] == ["loading", "loaded"]


def test_zero_grad_and_repr(draw):
    params = params_of(draw)
    optimizer = Sage(optim.SGD(params, lr=0.1))
    train([optimizer], [params], draw, steps=1)
    optimizer.zero_grad(set_to_none=False)
    assert not params[0].grad.any()
    optimizer.zero_grad()
    assert params[0].grad is None
    assert repr(optimizer).startswith("Sage(SGD (")


def test_grad_scaler_skips_without_a_trace(draw):
    params = params_of(draw, torch.float32)
    optimizer = Sage(optim.AdamW(params, lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for overflow in (False, True):
        optimizer.zero_grad()
        scaler.scale(sum(param.square().sum() for param in params)).backward()
        before, values = copy.deepcopy(optimizer.state_dict()["state"]), copies(params)
        if overflow:
            params[0].grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    assert_equal(params, values)
    torch.testing.assert_close(optimizer.state_dict()["state"], before, rtol=0, atol=0)
    assert optimizer.state[params[0]]["sensitivity_step"] == 1


# -- saving and loading ----------------------------------------------------------------------------


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_save_load_go_on_is_bit_identical(base_of, dtype, draw):
    params = params_of(draw, dtype)
    optimizer = Sage(base_of(params), beta0=0.9)
    train([optimizer], [params], draw)
    resumed = copies(params)
    fresh = Sage(base_of(resumed))
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    for name, value in optimizer.state[params[0]].items():
        if isinstance(value, Tensor):
            assert fresh.state[resumed[0]][name].dtype == value.dtype
            assert fresh.state[resumed[0]][name].data_ptr() != value.data_ptr()
    train([optimizer, fresh], [params, resumed], draw)
    assert_equal(params, resumed)
    assert fresh.param_groups[0]["beta0"] == 0.9


@pytest.mark.parametrize("into", ["wrapper", "base"])
def test_a_state_of_the_base_alone_is_taken(base_of, into, draw):
    theirs = params_of(draw)
    base = base_of(theirs)
    train([base], [theirs], draw)
    ours = copies(theirs)
    optimizer = Sage(base_of(ours), beta0=0.9)
    # A copy, since torch's own loading shares the tensors of the file.
    saved = copy.deepcopy(base.state_dict())
    (optimizer if into == "wrapper" else optimizer.base).load_state_dict(saved)
    before = copies(ours)
    train([optimizer, base], [ours, theirs], draw, steps=1)
    assert optimizer.state[ours[0]]["sensitivity_step"] == 1
    assert optimizer.param_groups[0]["beta0"] == 0.9
    # The base took its fourth step, and Ī its first: r = 0, so nothing moved but by decay.
    for name, value in base.state[theirs[0]].items():
        kept = optimizer.state[ours[0]][name]
        if into == "wrapper":
            torch.testing.assert_close(kept, value, rtol=0, atol=0)
        else:  # torch brings every tensor to the parameter's dtype
            torch.testing.assert_close(kept, value, check_dtype=False)
    moved = max((a - b).abs().max().item() for a, b in zip(ours, before, strict=True))
    assert moved <= 0.05 * 0.1 * max(b.abs().max().item() for b in before) + 1e-9


def test_the_base_takes_the_state_back(draw):
    """Whoever leaves SAGE again can."""
    params = params_of(draw)
    optimizer = Sage(optim.AdamW(params, lr=0.05))
    train([optimizer], [params], draw)
    plain = copies(params)
    base = optim.AdamW(plain)
    base.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in optimizer.param_groups:
        group["sage"] = False
    train([optimizer, base], [params, plain], draw)
    assert_equal(params, plain)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_pickled_and_copied_wrappers_go_on(how, draw):
    params = params_of(draw)
    optimizer = Sage(optim.AdamW(params, lr=0.05), beta0=0.9, sage_eps=1e-6, decay="inside")
    train([optimizer], [params], draw)
    both = (params, optimizer)
    again, twin = pickle.loads(pickle.dumps(both)) if how == "pickle" else copy.deepcopy(both)
    assert twin.base is not optimizer.base
    assert twin.param_groups is twin.base.param_groups
    train([optimizer, twin], [params, again], draw)
    assert_equal(params, again)


# -- what cannot be wrapped ------------------------------------------------------------------------


class SAM(Optimizer):
    def __init__(self, params):
        super().__init__(params, {})

    def first_step(self):
        pass


class ScheduleFreeAdam(optim.SGD):
    pass


class Renamed(optim.SGD):
    """Schedule-free under another name: its groups say so."""

    def __init__(self, params):
        super().__init__([{"params": params, "train_mode": True}], lr=0.1)


class Lookahead(optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.base_optimizer = optim.SGD(params, lr=0.1)


class Masters(optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.master_weights = True


REFUSED = {
    "LBFGS": (optim.LBFGS, "several times"),
    "SparseAdam": (optim.SparseAdam, "sparse"),
    "ASGD": (optim.ASGD, "averages"),
    "MyASGD": (MyASGD, "averages"),
    "SAM": (SAM, "two steps for one gradient"),
    "ScheduleFreeAdam": (ScheduleFreeAdam, "interpolated"),
    "Renamed": (Renamed, "interpolated"),
    "Lookahead": (Lookahead, "another optimizer within"),
    "Masters": (Masters, "fp32 master weights"),
    "AdamW": (lambda p: optim.AdamW(p, differentiable=True), "differentiable=True"),
    "SageAdamW": (SageAdamW, "SAGE already"),
    "Sage": (lambda p: Sage(optim.SGD(p)), "SAGE already"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_wrapped_is_refused_with_the_reason(name):
    make, reason = REFUSED[name]
    base = make([nn.Parameter(torch.ones(2))])
    groups = copy.deepcopy([{**group, "params": None} for group in base.param_groups])
    with pytest.raises(TypeError, match=rf"cannot wrap {name}: .*{reason}.*SageAdamW"):
        Sage(base)
    after = [{**group, "params": None} for group in base.param_groups]
    assert after == groups  # it goes on being usable by itself


@pytest.mark.parametrize("base", [None, optim.SGD, nn.Linear(1, 1)])
def test_what_is_no_optimizer_is_refused(base):
    with pytest.raises(TypeError, match=r"Sage wraps a torch.optim.Optimizer, got .*Sage\(torch"):
        Sage(base)


def test_master_weights_found_in_the_state_are_refused():
    class Hidden(optim.SGD):
        def step(self, closure=None):
            for param in self.param_groups[0]["params"]:
                self.state[param]["master_param"] = param.detach().float()
            return super().step(closure)

    param = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = Sage(Hidden([param], lr=0.1))
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"Hidden keeps fp32 master weights.*Use SageAdamW"):
        optimizer.step()


def test_the_gradient_is_left_to_the_base(draw):
    param = nn.Parameter(draw(3))
    optimizer = Sage(optim.AdamW([param], lr=0.1))
    grad = draw(3)
    param.grad = grad.clone()
    optimizer.step()
    assert torch.equal(param.grad, grad)


def test_a_state_takes_the_dtype_that_the_base_steps_in(draw):
    """Weights may be loaded narrower than they were trained; torch casts for its own optimizers."""
    wide, narrow = nn.Parameter(draw(8, 6).float()), nn.Parameter(draw(8, 6).bfloat16())
    for saved in (optim.AdamW([wide]), Sage(optim.AdamW([wide])), SageAdamW([wide])):
        wide.grad, narrow.grad = torch.ones(8, 6), torch.ones(8, 6, dtype=torch.bfloat16)
        saved.step()
        wrapped = Sage(optim.AdamW([narrow]))
        wrapped.load_state_dict(saved.state_dict())
        wrapped.step()
        assert wrapped.state[narrow]["exp_avg"].dtype == torch.bfloat16
        assert wrapped.state[narrow]["exp_avg_sensitivity"].dtype == torch.float32


def test_codes_are_nothing_a_base_can_read():
    param = nn.Parameter(torch.ones(128, 64))
    param.grad = torch.ones(128, 64)
    coded = SageAdamW([param], state_format="8bit")
    coded.step()
    with pytest.raises(ValueError, match="saved with state_format='8bit'"):
        Sage(optim.AdamW([param])).load_state_dict(coded.state_dict())


def test_groups_made_elsewhere_get_the_options_they_lack():
    param, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    wrapped = Sage(optim.SGD([param], lr=0.1))
    wrapped.base.add_param_group({"params": [late], "sage": True})
    param.grad = late.grad = torch.ones(2)
    wrapped.step()
    assert wrapped.param_groups[1]["beta0"] == 0.75


def test_decay_that_is_given_for_the_first_lr(draw):
    """As lion_pytorch has it: a share of λ in each step, whatever the first lr was."""

    class Own(Lion):
        def __init__(self, params, lr, weight_decay):
            super().__init__(params, lr=lr, weight_decay=weight_decay / lr)
            self.decoupled_wd, self._init_lr, self._given = True, lr, weight_decay
            for group in self.param_groups:
                group["weight_decay"] = weight_decay

        def step(self, closure=None):
            for group in self.param_groups:
                group["weight_decay"] = self._given / self._init_lr
            super().step(closure)
            for group in self.param_groups:
                group["weight_decay"] = self._given

    Own.__name__ = "Lion"
    param = nn.Parameter(torch.full((2,), 2.0, dtype=F64))
    wrapped = Sage(Own([param], lr=1e-3, weight_decay=0.1))
    param.grad = torch.ones(2, dtype=F64)
    wrapped.step()  # r is 0 in a first step, so that decay alone moves it
    torch.testing.assert_close(param.detach(), torch.full((2,), 1.8, dtype=F64))


@pytest.mark.parametrize(
    "options", [{"lr": None}, {"lr": 0.1, "relative_step": False}], ids=["own lr", "lr"]
)
def test_decay_at_an_lr_that_the_base_makes_itself(options):
    adafactor = pytest.importorskip("transformers.optimization").Adafactor
    ours, theirs = (nn.Parameter(torch.full((3, 2), 2.0)) for _ in range(2))
    wrapped = Sage(adafactor([ours], weight_decay=0.5, **options))
    base = adafactor([theirs], weight_decay=0.5, **options)
    ours.grad, theirs.grad = torch.ones(3, 2), torch.zeros(3, 2)
    wrapped.step()
    base.step()  # without a gradient there is decay alone
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("lr", "fixed"), [(0.1, False), (0.001, True)])
def test_decay_that_is_given_for_a_step(lr, fixed):
    """As pytorch-optimizer has it: fixed_decay takes λ off, without lr."""

    class Own(optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["params"][0].data.mul_(1 - 0.1 * (1.0 if fixed else group["lr"]))

    param = nn.Parameter(torch.full((2,), 2.0, dtype=F64))
    wrapped = Sage(Own([param], lr=lr))
    wrapped.param_groups[0] |= {"weight_decouple": True, "fixed_decay": fixed, "weight_decay": 0.1}
    param.grad = torch.ones(2, dtype=F64)
    wrapped.step()
    expected = 2.0 * (1 - 0.1 * (1.0 if fixed else lr))
    torch.testing.assert_close(param.detach(), torch.full((2,), expected, dtype=F64))


def test_decay_at_an_lr_that_the_base_estimates_is_refused():
    """Prodigy and D-Adaptation of pytorch-optimizer decay by d·lr·λ, with lr = 1."""
    group = {"params": [nn.Parameter(torch.ones(2))], "d0": 1e-6, "weight_decouple": True}
    with pytest.raises(ValueError, match=r"scales lr by itself.*weight_decay=0"):
        Sage(optim.SGD([group], lr=1.0, weight_decay=0.01))
    Sage(optim.SGD([group], lr=1.0, weight_decay=0.01), decay="inside")


def test_decay_that_cannot_be_told_is_refused():
    class Own(optim.SGD):
        pass

    Own.__name__ = "Adafactor"
    groups = [{"params": [nn.Parameter(torch.ones(2))], "scale_parameter": True}]
    with pytest.raises(ValueError, match="scales lr by itself"):
        Sage(Own(groups, lr=0.1, weight_decay=0.1))
    Sage(Own(groups, lr=0.1, weight_decay=0.1), decay="inside")


def test_accelerates_wrapper_is_to_be_put_around():
    class AcceleratedOptimizer(optim.SGD):
        pass

    base = AcceleratedOptimizer([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(TypeError, match="wrap what is within it"):
        Sage(base)


def test_a_base_that_makes_its_state_at_once_has_the_smoothed_sensitivity_in_it(draw):
    """What fills in a new optimizer's state by its names would leave it out."""
    params = params_of(draw)
    optimizer = Sage(optim.Adagrad(params, lr=0.05))
    for param in params:
        state = optimizer.state[param]
        assert state["sensitivity_step"] == 0
        assert not state["exp_avg_sensitivity"].any()
    train([optimizer], [params], draw, steps=1)
    assert all(optimizer.state[param]["sensitivity_step"] == 1 for param in params)
    without = Sage(optim.Adagrad([{"params": params, "sage": False}], lr=0.05))
    assert "exp_avg_sensitivity" not in without.state[params[0]]


def test_a_base_that_rounds_by_chance_moves_as_far():
    """A part of one of bf16's steps, rounded to nearest, is none of it."""

    class Rounding(optim.SGD):
        bf16_stochastic_round = True

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    wide = p.float() - group["lr"] * p.grad.float()
                    bits = torch.randint_like(wide, 2**16, dtype=torch.int32) << 16
                    p.copy_(rounding.stochastic_bfloat16(wide, bits))

    torch.manual_seed(0)
    start = torch.ones(4000)
    wide, narrow = nn.Parameter(start.clone()), nn.Parameter(start.bfloat16())
    plain = Sage(optim.SGD([wide], lr=2e-4), beta0=0.9)
    rounded = Sage(Rounding([narrow], lr=2e-4), beta0=0.9)
    for _ in range(40):
        grad = 4 + torch.randn(4000)
        wide.grad, narrow.grad = grad, grad.bfloat16()
        plain.step()
        rounded.step()
    moved = [float((start - p.detach().float()).mean()) for p in (wide, narrow)]
    assert moved[1] == pytest.approx(moved[0], rel=0.1)


def test_torchaos_adamw_is_known_as_one():
    low_bit = pytest.importorskip("torchao.optim")
    param = nn.Parameter(torch.ones(4))
    optimizer = Sage(low_bit._AdamW([param], lr=0.1, weight_decay=0.5))
    assert optimizer._is_decoupled(optimizer.param_groups[0])
