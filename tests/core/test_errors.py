"""Every mistake is met by an error that names the value, what is allowed, and what to do."""

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from sagelr import Sage, SageAdamax, SageAdamW, SageSGD

NAN, INF = math.nan, math.inf
ADAM = [SageAdamW, SageAdamax]
ALL = [*ADAM, SageSGD]

# classes, options, the error, and what its message says: the value, the range, the remedy.
BAD: list[tuple[list[type], dict[str, Any], type[Exception], list[str]]] = [
    (ALL, {"lr": -0.1}, ValueError, ["lr=-0.1", "[0, ∞)", "1e-3"]),
    (ALL, {"lr": NAN}, ValueError, ["lr=nan", "[0, ∞)", "1e-3"]),
    (ALL, {"lr": INF}, ValueError, ["lr=inf", "[0, ∞)", "1e-3"]),
    (ALL, {"lr": "1e-3"}, TypeError, ["lr='1e-3'", "not a number", "[0, ∞)", "1e-3 is"]),
    (ALL, {"lr": True}, TypeError, ["lr=True", "not a number", "[0, ∞)"]),
    (ALL, {"lr": None}, TypeError, ["lr=None", "not a number", "[0, ∞)"]),
    (ALL, {"lr": torch.ones(2)}, ValueError, ["(2,)", "one element"]),
    (ALL, {"lr": torch.tensor(-1.0)}, ValueError, ["lr=-1.0", "[0, ∞)"]),
    (ALL, {"lr": torch.tensor(NAN)}, ValueError, ["lr=nan", "[0, ∞)"]),
    (ALL, {"weight_decay": -0.1}, ValueError, ["weight_decay=-0.1", "[0, ∞)", "0 turns it off"]),
    (ALL, {"weight_decay": NAN}, ValueError, ["weight_decay=nan", "[0, ∞)"]),
    (ALL, {"weight_decay": False}, TypeError, ["weight_decay=False", "not a number", "[0, ∞)"]),
    (ALL, {"beta0": 0.0}, ValueError, ["beta0=0.0", "(0, 1)", "0.75"]),
    (ALL, {"beta0": 1.0}, ValueError, ["beta0=1.0", "(0, 1)", "0.6 to 0.9"]),
    (ALL, {"beta0": 1}, ValueError, ["beta0=1", "(0, 1)"]),
    (ALL, {"beta0": -0.5}, ValueError, ["beta0=-0.5", "(0, 1)"]),
    (ALL, {"beta0": NAN}, ValueError, ["beta0=nan", "(0, 1)"]),
    (ALL, {"beta0": "high"}, TypeError, ["beta0='high'", "not a number", "(0, 1)"]),
    (ALL, {"beta0": torch.tensor(0.75)}, TypeError, ["beta0=tensor(0.7500)", "not a number"]),
    (ALL, {"sage_eps": 0.0}, ValueError, ["sage_eps=0.0", "(0, ∞)", "1e-12"]),
    (ALL, {"sage_eps": -1e-12}, ValueError, ["sage_eps=-1e-12", "(0, ∞)", "1e-12"]),
    (ALL, {"sage_eps": INF}, ValueError, ["sage_eps=inf", "(0, ∞)"]),
    (ALL, {"lr_scale": 0.0}, ValueError, ["lr_scale=0.0", "(0, ∞)", "1 leaves lr"]),
    (ALL, {"lr_scale": NAN}, ValueError, ["lr_scale=nan", "(0, ∞)"]),
    (ALL, {"lr_scale": True}, TypeError, ["lr_scale=True", "not a number"]),
    (ALL, {"sage": 1}, TypeError, ["sage=1", "not a bool", "True or False"]),
    (ALL, {"sage": None}, TypeError, ["sage=None", "not a bool", "True or False"]),
    (ALL, {"sage_bias_correction": "yes"}, TypeError, ["sage_bias_correction='yes'", "bool"]),
    (ALL, {"maximize": 0}, TypeError, ["maximize=0", "not a bool", "True or False"]),
    (ALL, {"capturable": 1}, TypeError, ["capturable=1", "not a bool", "True or False"]),
    (ALL, {"differentiable": "no"}, TypeError, ["differentiable='no'", "not a bool"]),
    (ALL, {"decay": "inside"}, ValueError, ["decay='inside'", "'decoupled'", "'l2'", "outside"]),
    (ALL, {"decay": None}, ValueError, ["decay=None", "'scaled'"]),
    (ALL, {"foreach": "yes"}, TypeError, ["foreach='yes'", "None, True or False"]),
    (ALL, {"fused": "yes"}, TypeError, ["fused='yes'", "None, True or False"]),
    (ALL, {"foreach": True, "differentiable": True}, ValueError, ["foreach=True", "Leave foreach"]),
    (ALL, {"fused": True, "differentiable": True}, ValueError, ["fused=True", "Leave fused"]),
    (ALL, {"foreach": True, "fused": True}, ValueError, ["exclude each other", "Leave both out"]),
    (ALL, {"state_format": "fp4"}, ValueError, ["state_format='fp4'", "'bfloat16'", "exact"]),
    (ALL, {"rounding": "up"}, ValueError, ["rounding='up'", "'nearest'", "'stochastic'"]),
    (ALL, {"rounding_seed": -1}, ValueError, ["rounding_seed=-1", "[0, 2^32)", "0 is the default"]),
    (ALL, {"rounding_seed": 0.5}, ValueError, ["rounding_seed=0.5", "[0, 2^32)"]),
    (
        ALL,
        {"differentiable": True, "state_format": "bfloat16"},
        ValueError,
        ["state_format='float32'", "'bfloat16'"],
    ),
    (
        ALL,
        {"differentiable": True, "rounding": "stochastic"},
        ValueError,
        ["rounding='nearest'", "'stochastic'", "no gradient"],
    ),
    (
        [SageAdamax, SageSGD],
        {"state_format": "8bit"},
        ValueError,
        ["'8bit'", "SageAdamW alone", "Use 'bfloat16'"],
    ),
    (ADAM, {"betas": 0.9}, ValueError, ["betas=0.9", "pair", "(0.9, 0.999)"]),
    (ADAM, {"betas": (0.9,)}, ValueError, ["betas=(0.9,)", "pair", "(0.9, 0.999)"]),
    (ADAM, {"betas": (0.9, 0.9, 0.9)}, ValueError, ["pair", "(0.9, 0.999)"]),
    (ADAM, {"betas": (1.0, 0.999)}, ValueError, ["betas[0]=1.0", "[0, 1)", "(0.9, 0.999)"]),
    (ADAM, {"betas": (0.9, -0.1)}, ValueError, ["betas[1]=-0.1", "[0, 1)", "(0.9, 0.999)"]),
    (ADAM, {"betas": (0.9, NAN)}, ValueError, ["betas[1]=nan", "[0, 1)"]),
    (ADAM, {"betas": (True, 0.9)}, TypeError, ["betas[0]=True", "not a number", "[0, 1)"]),
    (ADAM, {"betas": (torch.tensor(0.9), 0.999)}, TypeError, ["betas as tensors", "two floats"]),
    (ADAM, {"eps": -1e-8}, ValueError, ["eps=-1e-08", "[0, ∞)", "1e-8"]),
    (ADAM, {"eps": NAN}, ValueError, ["eps=nan", "[0, ∞)"]),
    (ADAM, {"bias_correction": 1}, TypeError, ["bias_correction=1", "bool", "True or False"]),
    ([SageSGD], {"momentum": -0.9}, ValueError, ["momentum=-0.9", "[0, ∞)", "0 turns it off"]),
    ([SageSGD], {"momentum": NAN}, ValueError, ["momentum=nan", "[0, ∞)"]),
    ([SageSGD], {"momentum": True}, TypeError, ["momentum=True", "not a number"]),
    ([SageSGD], {"dampening": INF}, ValueError, ["dampening=inf", "finite", "0 is the default"]),
    (
        [SageSGD],
        {"nesterov": True},
        ValueError,
        ["momentum=0.0", "dampening = 0", "leave nesterov"],
    ),
    (
        [SageSGD],
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        ValueError,
        ["momentum=0.9", "dampening=0.1", "leave nesterov"],
    ),
    ([SageSGD], {"nesterov": 1, "momentum": 0.9}, TypeError, ["nesterov=1", "not a bool"]),
]
TABLE = [
    pytest.param(cls, options, error, says, id=f"{cls.__name__}-{options}")
    for classes, options, error, says in BAD
    for cls in classes
]


def assert_says(caught: pytest.ExceptionInfo, words: list[str]) -> None:
    message = str(caught.value)
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"


def in_group(options: dict[str, Any]) -> dict[str, Any]:
    """lr_scale stands in groups under a name that schedulers of other libraries do not use."""
    return {{"lr_scale": "sage_lr_scale"}.get(key, key): value for key, value in options.items()}


@pytest.mark.parametrize(("cls", "options", "error", "says"), TABLE)
def test_bad_options_of_the_constructor(cls, options, error, says):
    with pytest.raises(error) as caught:
        cls([nn.Parameter(torch.ones(2))], **options)
    assert_says(caught, [cls.__name__, *says])


@pytest.mark.parametrize(("cls", "options", "error", "says"), TABLE)
def test_bad_options_of_a_group(cls, options, error, says):
    good, bad = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with pytest.raises(error) as caught:
        cls([{"params": [good]}, {"params": [bad], **in_group(options)}])
    assert_says(caught, [cls.__name__, *says])


@pytest.mark.parametrize(("cls", "options", "error", "says"), TABLE)
def test_a_bad_group_is_not_left_behind(cls, options, error, says):
    optimizer = cls([nn.Parameter(torch.ones(2))])
    late = nn.Parameter(torch.ones(2))
    with pytest.raises(error) as caught:
        optimizer.add_param_group({"params": [late], **in_group(options)})
    assert_says(caught, [cls.__name__, *says])
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [late]})  # and the parameter is still free to be added
    assert len(optimizer.param_groups) == 2


def test_values_on_the_edge_are_allowed(cls):
    param = [nn.Parameter(torch.ones(2))]
    cls(param, lr=0, weight_decay=0, beta0=1e-9, sage_eps=1e-37, lr_scale=1e-9)
    cls(param, lr=torch.tensor([0.1]), beta0=1 - 1e-9)
    if cls is SageSGD:
        cls(param, momentum=0, dampening=-1.0)
    else:
        cls(param, betas=(0, 0.0), eps=0)
        cls(param, betas=[0.9, 0.99])


def test_an_unknown_option_is_an_error(cls):
    with pytest.raises(TypeError, match="beta3"):
        cls([nn.Parameter(torch.ones(1))], beta3=0.75)


def test_no_parameters_is_torchs_own_error(cls):
    with pytest.raises(ValueError, match="empty parameter list"):
        cls([])


# -- tensors that SAGE has no rule for -------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.ones(2, dtype=torch.complex64), ["complex", "view_as_real", "torch's optimizer"]),
        (torch.ones(2, dtype=torch.int64), ["int64", "floating-point"]),
        (torch.ones(2, dtype=torch.complex64).conj().imag, ["conjugate", "resolve_neg()"]),
    ],
    ids=["complex", "integer", "negative"],
)
def test_parameters_of_other_kinds_are_refused(cls, tensor, says):
    tensor.requires_grad_(tensor.is_complex())
    with pytest.raises(TypeError) as caught:
        cls([tensor])
    assert_says(caught, [cls.__name__, "(2,)", *says])
    optimizer = cls([nn.Parameter(torch.ones(2))])
    with pytest.raises(TypeError) as caught:
        optimizer.add_param_group({"params": [tensor]})
    assert_says(caught, says)
    assert len(optimizer.param_groups) == 1


def test_frozen_quantized_weights_stand_among_the_others(cls):
    """As when a whole model is given, whose base is in integers and whose adapters train."""
    codes = nn.Parameter(torch.ones(2, dtype=torch.uint8), requires_grad=False)
    trained = nn.Parameter(torch.ones(2))
    optimizer = cls([codes, trained], lr=0.1)
    for _ in range(2):
        trained.grad = torch.randn(2)
        optimizer.step()
    assert codes.tolist() == [1, 1]
    assert not torch.equal(trained.detach(), torch.ones(2))


def test_the_name_of_a_parameter_is_told(cls):
    with pytest.raises(TypeError, match=r"parameter 'phase' of shape \(3,\) is complex"):
        cls([("phase", nn.Parameter(torch.ones(3, dtype=torch.complex64)))])


def test_a_sparse_gradient_is_refused_and_nothing_changes(engine, cls):
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(4, 2))
    third = nn.Parameter(torch.ones(3))
    groups = [{"params": [first, second]}, {"params": [third]}]
    optimizer = cls(groups, lr=0.1, **engine.options)
    for param in (first, second, third):
        param.grad = torch.ones_like(param)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    values = [param.detach().clone() for param in (first, second, third)]

    # As late as can be: the last group, after all the others would have moved.
    sparse = nn.Parameter(torch.ones(4, 2))
    optimizer.add_param_group({"params": [sparse]})
    sparse.grad = torch.eye(4, 2).to_sparse()
    with pytest.raises(RuntimeError) as caught:
        optimizer.step()
    assert_says(caught, [cls.__name__, "(4, 2)", "torch.sparse_coo", "sparse=False"])
    assert_says(caught, ["torch.optim.SparseAdam"])
    torch.testing.assert_close([first, second, third], values, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], before["state"], rtol=0, atol=0)


def test_an_embedding_with_sparse_gradients_is_told_the_remedy(cls):
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = cls(embedding.named_parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match=re.escape("parameter 'weight' of shape (5, 3)")):
        optimizer.step()
    assert not optimizer.state


# -- the wrapper -----------------------------------------------------------------------------------

WRAPPER: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"beta0": 1.0}, ValueError, ["beta0=1.0", "(0, 1)", "0.75"]),
    ({"beta0": True}, TypeError, ["beta0=True", "not a number"]),
    ({"beta0": NAN}, ValueError, ["beta0=nan", "(0, 1)"]),
    ({"sage_eps": 0}, ValueError, ["sage_eps=0", "(0, ∞)", "1e-12"]),
    ({"sage_bias_correction": 1}, TypeError, ["sage_bias_correction=1", "bool"]),
    ({"decay": "l2"}, ValueError, ["decay='l2'", "'decoupled'", "'inside'", "AdamW"]),
]


@pytest.mark.parametrize(("options", "error", "says"), WRAPPER, ids=lambda value: str(value)[:30])
def test_bad_options_of_the_wrapper(options, error, says):
    with pytest.raises(error) as caught:
        Sage(torch.optim.AdamW([nn.Parameter(torch.ones(1))]), **options)
    assert_says(caught, ["Sage", *says])


@pytest.mark.parametrize(
    ("options", "error", "says"), WRAPPER[:5], ids=lambda value: str(value)[:30]
)
def test_a_bad_group_is_not_left_in_the_base(options, error, says):
    base = torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    optimizer = Sage(base)
    with pytest.raises(error) as caught:
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], **options})
    assert_says(caught, ["Sage", *says])
    assert len(base.param_groups) == 1


def test_the_wrapper_refuses_sparse_gradients_before_the_base_steps():
    first, sparse = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, 2))
    optimizer = Sage(torch.optim.SGD([first, sparse], lr=0.1))
    first.grad, sparse.grad = torch.ones(2), torch.eye(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match=r"Sage: .*shape \(3, 2\) has a sparse gradient"):
        optimizer.step()
    assert torch.equal(first, torch.ones(2))
    assert not optimizer.state


def test_the_wrapper_refuses_complex_parameters():
    with pytest.raises(TypeError, match=r"complex64.*view_as_real"):
        Sage(torch.optim.SGD([nn.Parameter(torch.ones(1, dtype=torch.complex64))]))
