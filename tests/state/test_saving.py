"""State in low formats through files and back, bit for bit, and from one format to another."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from sagelr import Sage, SageAdamax, SageAdamW, SageSGD
from sagelr.state import codes, formats

SHAPES = [(64, 70), (65,), (4097,), (130, 32), (3, 4)]


def net(draw, dtype: torch.dtype = torch.float32) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(draw(*shape).to(dtype)) for shape in SHAPES)


def make(cls: type, model: nn.Module, state_format: str, **options: Any) -> torch.optim.Optimizer:
    own = {"momentum": 0.97} if cls is SageSGD else {}
    return cls(model.parameters(), lr=1e-2, state_format=state_format, **own, **options)


def gradients(draw, model: nn.Module) -> list[Tensor]:
    return [draw(*p.shape).to(p.dtype) for p in model.parameters()]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, grads: list[Tensor]) -> None:
    for param, grad in zip(model.parameters(), grads, strict=True):
        param.grad = grad.clone()
    optimizer.step()


def assert_same(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> None:
    ours, theirs = a.state_dict()["state"], b.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for key, state in ours.items():
        assert state.keys() == theirs[key].keys()
        for name, value in state.items():
            other = theirs[key][name]
            assert value.dtype == other.dtype
            assert torch.equal(value, other), name


# -- through files ---------------------------------------------------------------------------------


def through_torch(optimizer: Any, model: nn.Module, folder: Path) -> Any:
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def through_safetensors(optimizer: Any, model: nn.Module, folder: Path) -> Any:
    """Flat tensors in one file, as its format wants them; groups go beside it."""
    saved = optimizer.state_dict()
    flat = {f"{i}.{name}": t for i, own in saved["state"].items() for name, t in own.items()}
    safetensors.torch.save_file(flat, folder / "state.safetensors")
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in safetensors.torch.load_file(folder / "state.safetensors").items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": copy.deepcopy(saved["param_groups"])}


@pytest.mark.parametrize("through", [through_torch, through_safetensors])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saved_loaded_and_gone_on_is_bit_identical(kind, dtype, through, engine, draw, tmp_path):
    cls, state_format = kind
    model = net(draw, dtype)
    options = {"rounding": "stochastic", **engine}
    optimizer = make(cls, model, state_format, **options)
    for _ in range(3):
        step(model, optimizer, gradients(draw, model))
    again = copy.deepcopy(model)
    resumed = make(cls, again, state_format, **options)
    resumed.load_state_dict(through(optimizer, model, tmp_path))
    assert_same(optimizer, resumed)
    for _ in range(2):
        grads = gradients(draw, model)
        step(model, optimizer, grads)
        step(again, resumed, grads)
    assert_same(optimizer, resumed)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore")  # of torch.distributed, that there are no other processes
def test_a_distributed_checkpoint_is_bit_identical(kind, draw, tmp_path):
    cls, state_format = kind
    model = net(draw)
    optimizer = make(cls, model, state_format)
    for _ in range(3):
        step(model, optimizer, gradients(draw, model))
    saved = get_optimizer_state_dict(model, optimizer)
    dcp.save({"optimizer": saved}, checkpoint_id=tmp_path / "at", no_dist=True)

    again = copy.deepcopy(model)
    resumed = make(cls, again, state_format)
    into = {"optimizer": get_optimizer_state_dict(again, resumed)}
    dcp.load(into, checkpoint_id=tmp_path / "at", no_dist=True)
    set_optimizer_state_dict(again, resumed, into["optimizer"])
    assert_same(optimizer, resumed)
    grads = gradients(draw, model)
    step(model, optimizer, grads)
    step(again, resumed, grads)
    assert_same(optimizer, resumed)


# -- from one format to another --------------------------------------------------------------------

BOTH = [(a, b) for a in formats.STATE_FORMATS for b in formats.STATE_FORMATS if a != b]


@pytest.mark.parametrize(("saved_in", "loaded_in"), BOTH)
def test_a_state_of_another_format_is_converted(saved_in, loaded_in, draw):
    model = net(draw)
    optimizer = make(SageAdamW, model, saved_in)
    for _ in range(4):
        step(model, optimizer, gradients(draw, model))
    again = copy.deepcopy(model)
    other = make(SageAdamW, again, loaded_in)
    other.load_state_dict(optimizer.state_dict())
    fresh = make(SageAdamW, copy.deepcopy(model), loaded_in)
    for _ in range(4):
        step(nn.ParameterList(fresh.param_groups[0]["params"]), fresh, gradients(draw, model))
    for i, param in enumerate(again.parameters()):
        ours, theirs = optimizer.state[model[i]], other.state[param]
        made = fresh.state[fresh.param_groups[0]["params"][i]]
        assert {k: (v.dtype, v.shape) for k, v in theirs.items()} == {
            k: (v.dtype, v.shape) for k, v in made.items()
        }
        assert theirs["step"] == ours["step"] == 4
        for name in ("exp_avg", "exp_avg_sq", "exp_avg_sensitivity"):
            before = formats.read(ours, name, torch.float32)
            after = formats.read(theirs, name, torch.float32)
            kept = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.uint8: 2.0**-4}
            # The grid of the signed codes is even next to zero.
            finest = 2.0**-18 * before.abs().max() if theirs[name].dtype == torch.uint8 else 0
            assert (
                (after - before).abs() <= kept[theirs[name].dtype] * before.abs() + finest
            ).all()
            assert torch.equal(after > 0, before > 0) or name == "exp_avg"
    step(again, other, gradients(draw, model))  # and goes on


def test_a_state_of_torchs_is_taken_into_a_low_format(draw):
    model = net(draw)
    theirs = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step(model, theirs, gradients(draw, model))
    ours = make(SageAdamW, model, "8bit")
    ours.load_state_dict(theirs.state_dict())
    step(model, ours, gradients(draw, model))
    state = ours.state[model[0]]
    assert state["exp_avg_sq"].dtype == torch.uint8
    assert state["exp_avg_sq_scale"].shape == codes.blocks(model[0].shape)
    assert state["step"] == 2
    assert state["sensitivity_step"] == 1


@pytest.mark.parametrize("cls", [SageAdamW, SageAdamax, SageSGD])
def test_a_state_of_another_kind_is_refused(cls, draw):
    """Its step count would go on with averages that begin at zero."""
    param = nn.Parameter(draw(3, 2))
    of_torch = [getattr(torch.optim, name) for name in ("Adagrad", "Adafactor", "NAdam", "RMSprop")]
    for other in (SageAdamW, SageAdamax, SageSGD, Lion, *of_torch):
        if other is cls:
            continue
        param.grad = draw(3, 2)
        saved = other([param], lr=0.1, **({"momentum": 0.9} if other is SageSGD else {}))
        saved.step()
        optimizer = cls([param])
        with pytest.raises(ValueError, match=f"it is not that of {cls.__name__}"):
            optimizer.load_state_dict(saved.state_dict())
        assert not optimizer.state


class Lion(torch.optim.Optimizer):
    """As lion_pytorch has it: a first moment, and no count."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99), "weight_decay": 0.0})

    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["exp_avg"] = param.grad.clone()


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (SageAdamW, {}),
        (SageAdamW, {"state_format": "8bit"}),
        (SageAdamax, {}),
        (SageSGD, {"momentum": 0.9}),
    ],
)
def test_a_state_of_other_shapes_is_refused(cls, options, draw):
    """Of a transposed weight, say: as many elements, and in codes not as many scales."""
    wide, tall = (nn.Parameter(draw(*shape).float()) for shape in ((48, 96), (96, 48)))
    optimizer, other = cls([wide], **options), cls([tall], **options)
    wide.grad = torch.ones_like(wide)
    optimizer.step()
    with pytest.raises(ValueError, match=r"shape \(48, 96\) where a parameter of shape \(96, 48\)"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state


def test_scales_of_other_blocks_are_refused(draw):
    param = nn.Parameter(draw(48, 96).float())
    optimizer = SageAdamW([param], state_format="8bit")
    param.grad = torch.ones_like(param)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg_scale"] = saved["state"][0]["exp_avg_scale"][:, :2]
    with pytest.raises(ValueError, match=r"exp_avg_scale of shape \(48, 2\)"):
        optimizer.load_state_dict(saved)


def test_a_wrapped_base_may_keep_state_of_any_shape(draw):
    """Adafactor's second moment is a row and a column; Ī has its parameter's shape."""
    param, other = nn.Parameter(draw(4, 6).float()), nn.Parameter(draw(6, 4).float())
    optimizer, transposed = (Sage(torch.optim.Adafactor([p], lr=0.1)) for p in (param, other))
    param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"exp_avg_sensitivity of shape \(4, 6\)"):
        transposed.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("fused", [None, False])
def test_a_model_converted_in_between_goes_on(fused, draw):
    """State keeps the dtype and the layout it was made in; what is stepped on is another."""
    found = []
    for converted in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).to(
            memory_format=torch.channels_last
        )
        optimizer = SageAdamW(model.parameters(), lr=0.01, fused=fused)
        generator = torch.Generator().manual_seed(1)
        for change in (
            {},
            {"dtype": torch.float64},
            {"dtype": torch.float32},
            {"memory_format": torch.contiguous_format},
        ):
            if converted and change:
                model.to(**change)
            for _ in range(2):
                for param in model.parameters():
                    grad = torch.randn(param.shape, generator=generator)
                    param.grad = torch.empty_like(param).copy_(grad)
                optimizer.step()
        found.append([param.detach() for param in model.parameters()])
    for straight, other in zip(*found, strict=True):
        torch.testing.assert_close(other, straight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 9), (2, 3), (6,)])
def test_a_parameter_of_another_shape_than_its_state_is_an_error(shape, draw):
    param = nn.Parameter(draw(3, 2).float())
    optimizer = SageAdamW([param])
    param.grad = torch.ones(3, 2)
    optimizer.step()
    param.data, param.grad = torch.ones(shape), torch.ones(shape)
    with pytest.raises(RuntimeError, match=r"of shape \(.*\) has exp_avg of shape \(3, 2\)"):
        optimizer.step()


def test_a_gradient_of_another_shape_is_an_error(engine, draw):
    """An embedding resized between backward and the first step."""
    param = nn.Parameter(draw(3, 2).float())
    optimizer = SageSGD([param], sage=False, lr=0.1, **engine)  # keeps no average
    param.grad = torch.ones(3, 2)
    param.data = torch.ones(64, 2)
    with pytest.raises(RuntimeError, match=r"gradient of shape \(3, 2\)|must match the size"):
        optimizer.step()
    assert torch.equal(param, torch.ones(64, 2))


@pytest.mark.parametrize("held", ["exp_avg_sq", "exp_avg_sensitivity"])
def test_state_on_another_device_is_an_error(held, draw):
    param = nn.Parameter(draw(3, 2).float())
    optimizer = SageAdamW([param])
    param.grad = torch.ones(3, 2)
    optimizer.step()
    optimizer.state[param][held] = optimizer.state[param][held].to("meta")
    with pytest.raises(RuntimeError, match=rf"on cpu has {held} on meta.*moved after"):
        optimizer.step()


@pytest.mark.parametrize(("saved_as", "wanted"), [("8bit", "float32"), ("float32", "8bit")])
def test_a_state_is_converted_while_sage_is_off(saved_as, wanted, engine, draw):
    values = draw(128, 64)
    first, second = nn.Parameter(values.clone()), nn.Parameter(values.clone())
    optimizer = SageAdamW([first], state_format=saved_as, **engine)
    for _ in range(3):
        first.grad = draw(128, 64)
        optimizer.step()
    optimizer.param_groups[0]["sage"] = False
    other = SageAdamW([second], state_format=wanted, **engine)
    other.load_state_dict(optimizer.state_dict())
    kept = [
        formats.read(each.state[param], "exp_avg_sensitivity", torch.float32)
        for each, param in ((optimizer, first), (other, second))
    ]
    torch.testing.assert_close(*kept, rtol=0.07, atol=0)
    other.param_groups[0]["sage"] = True
    second.grad = draw(128, 64)
    other.step()
    assert other.state[second]["exp_avg_sensitivity"].dtype == (
        torch.uint8 if wanted == "8bit" else torch.float32
    )


class _OwnAdamW(torch.optim.AdamW):
    """As a user may derive it."""


@pytest.mark.parametrize("base", [torch.optim.AdamW, _OwnAdamW])
@pytest.mark.parametrize("shape", [(3, 2), ()])
def test_a_wrapped_state_goes_into_a_narrower_model(base, shape, draw):
    """As torch's own does: its averages take the parameter's dtype, and Ī keeps its own."""
    wide = nn.Parameter(draw(*shape).float())
    narrow = nn.Parameter(wide.detach().bfloat16())
    optimizer, other = Sage(base([wide])), Sage(base([narrow]))
    for each, param in ((optimizer, wide), (other, narrow)):
        if each is other:
            other.load_state_dict(optimizer.state_dict())
        param.grad = torch.ones_like(param)
        each.step()
    state = other.state[narrow]
    assert state["exp_avg"].dtype == torch.bfloat16
    assert state["exp_avg_sensitivity"].dtype == torch.float32


class _Nested(torch.optim.Optimizer):
    """Keeps its state in a list and a dict."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    def step(self, closure=None):
        for param in self.param_groups[0]["params"]:
            self.state[param].setdefault("factors", [torch.full((2, 2), 1.0001)])
            self.state[param].setdefault("by_name", {"a": torch.full((2,), 1.0001)})


def test_nested_state_of_a_wrapped_base_stays_as_it_was(draw):
    wide = nn.Parameter(draw(2, 2))
    narrow = nn.Parameter(wide.detach().bfloat16())
    optimizer, other = Sage(_Nested([wide])), Sage(_Nested([narrow]))
    wide.grad = torch.ones_like(wide)
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    saved, state = optimizer.state[wide], other.state[narrow]
    for mine, theirs in (
        (state["factors"][0], saved["factors"][0]),
        (state["by_name"]["a"], saved["by_name"]["a"]),
    ):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize("options", [{"relative": 0.5}, {"lr_scale": 3.0}])
def test_options_that_a_wrapped_base_has_not_are_refused(options, draw):
    param = nn.Parameter(draw(4, 3).float())
    saved = SageAdamW([param], **options).state_dict()
    with pytest.raises(ValueError, match=rf"saved with {next(iter(options))}="):
        Sage(torch.optim.AdamW([param])).load_state_dict(saved)


@pytest.mark.parametrize(
    ("options", "base", "wrapped"),
    [
        ({"decay": "l2"}, torch.optim.AdamW, {}),
        ({"decay": "scaled"}, torch.optim.AdamW, {}),
        ({"decay": "decoupled"}, torch.optim.AdamW, {"decay": "inside"}),
        ({"decay": "decoupled"}, torch.optim.Adam, {}),
        ({"bias_correction": False}, torch.optim.AdamW, {}),
    ],
)
def test_options_that_a_wrapped_base_has_otherwise_are_refused(options, base, wrapped, draw):
    """Its next step would be another one, by a third of its length or by all of it."""
    param = nn.Parameter(draw(4, 3).float())
    saved = SageAdamW([param], weight_decay=0.1, **options).state_dict()
    with pytest.raises(ValueError, match=rf"{next(iter(options))}=.* Sage\({base.__name__}\)"):
        Sage(base([param], weight_decay=0.1), **wrapped).load_state_dict(saved)


@pytest.mark.parametrize(
    ("decay", "base", "wrapped"),
    [
        ("decoupled", torch.optim.AdamW, {}),
        ("scaled", torch.optim.AdamW, {"decay": "inside"}),
        ("l2", torch.optim.Adam, {}),
    ],
)
def test_decay_that_a_wrapped_base_has_too_goes_on(decay, base, wrapped, draw):
    start = draw(4, 3)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    first = SageAdamW([ours], lr=0.1, weight_decay=0.1, decay=decay, foreach=False)
    second = Sage(base([theirs], lr=0.1, weight_decay=0.1), **wrapped)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        ours.grad = draw(4, 3)
        theirs.grad = ours.grad.clone()
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs)


def test_a_count_that_stands_in_the_group_is_taken_and_none_is_refused(draw):
    """As Apex keeps it. Moments of many steps at a count of 1 would move three times as far."""
    start, grads = draw(4, 3), [draw(4, 3) for _ in range(4)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    first = torch.optim.AdamW([theirs], lr=0.1)
    for grad in grads[:3]:
        theirs.grad = grad.clone()
        first.step()
    saved = copy.deepcopy(first.state_dict())
    del saved["state"][0]["step"]
    second = SageAdamW([ours], lr=0.1, sage=False, foreach=False)
    with pytest.raises(ValueError, match="has exp_avg and no step"):
        second.load_state_dict(saved)
    saved["param_groups"][0]["step"] = 3
    second.load_state_dict(saved)
    ours.data.copy_(theirs)
    for param, optimizer in ((theirs, first), (ours, second)):
        param.grad = grads[3].clone()
        optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_state_in_codes_of_torchao_is_taken_as_the_numbers_that_they_stand_for(draw):
    """A kernel that walks memory finds none behind such a tensor."""
    coded = pytest.importorskip("torchao.optim.subclass_8bit").OptimState8bit
    param = nn.Parameter(draw(64, 64).float())
    param.grad = draw(64, 64).float()
    other = torch.optim.AdamW([param])
    other.step()
    saved, [state] = other.state_dict(), other.state.values()
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        state[name] = coded.zeros((64, 64), signed).copy_(state[name])
    optimizer = SageAdamW([param])
    optimizer.load_state_dict(saved)
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[param][name], state[name].dequantize())
    optimizer.step()
    assert param.isfinite().all()
    optimizer.state[param]["exp_avg"] = state["exp_avg"]  # put there by hand: the eager step
    optimizer.step()
    assert param.isfinite().all()


def test_a_state_converted_with_its_model_goes_on(draw):
    """Counts too: in float64 they are not what a kernel reads."""
    found = []
    for fused in (None, False):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = SageAdamW(model.parameters(), lr=0.1, fused=fused)
        x = torch.randn(2, 4)
        for dtype in (torch.float32, torch.float64):
            model.to(dtype)
            for state in optimizer.state.values():
                state.update({name: value.to(dtype) for name, value in state.items()})
            for _ in range(3):
                optimizer.zero_grad()
                model(x.to(dtype)).square().sum().backward()
                optimizer.step()
        counts = {state["step"].item() for state in optimizer.state.values()}
        assert counts == {6.0}
        found.append(model.weight.detach())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
