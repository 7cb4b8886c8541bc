"""Who takes part, and on what."""

import sys
from types import ModuleType

import pytest
import torch
from torch.nn import Parameter

from sagelr.bench import peers
from sagelr.bench.contestants import REFERENCE, chosen, everyone
from sagelr.bench.peers import PEERS, Peer, absent
from sagelr.bench.shapes import SHAPES, named
from sagelr.errors import UsageError
from sagelr.state.formats import STATE_FORMATS

CPU = everyone("cpu")


def test_the_lists_are_what_they_are_said_to_be():
    counts = {name: sum(torch.Size(s).numel() for s in shapes) for name, shapes in SHAPES.items()}
    assert counts == {
        "bert-base": 109_483_778,
        "flat": 10**8,
        "small": 2000 * 4096,
        "flat-1b": 10**9,
    }
    assert [len(SHAPES[name]) for name in ("bert-base", "flat", "small")] == [201, 1, 2000]


def test_bert_base_has_the_shapes_of_bert_base():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(transformers.BertConfig())
    assert sorted(SHAPES["bert-base"]) == sorted(tuple(p.shape) for p in model.parameters())


def test_a_list_that_there_is_not():
    with pytest.raises(UsageError, match=r"--shapes 'bert' .* Allowed: bert-base, flat, small"):
        named(["small", "bert"])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_engine_and_format_of_ours_takes_part(device):
    names = [each.name for each in everyone(device)]
    assert len(set(names)) == len(names)
    assert names[0] == REFERENCE
    engines = ["eager", "foreach", *(["fused"] if device == "cpu" else ["triton", "compiled"])]
    assert {f"sage-adamw-{e}-{f}" for e in engines for f in STATE_FORMATS} <= set(names)
    assert {f"torch-adamw-{way}" for way in ("loop", "foreach", "fused")} <= set(names)
    assert {peer.name for peer in PEERS} <= set(names)


@pytest.mark.parametrize(
    "each", [e for e in CPU if not e.absent and e.name.startswith(("torch-", "sage-"))],
    ids=lambda each: each.name,
)  # fmt: skip
def test_everyone_takes_a_step_in_the_way_it_is_named_for(each):
    param = Parameter(torch.full((64, 64), 1e-3))  # from which a step of 1e-6 can be told
    param.grad = torch.full((64, 64), 0.5)
    step = each.make([param])
    start = param.detach().clone()
    step()
    param.grad = torch.full((64, 64), -2.0)  # SAGE does not move while nothing changes
    step()
    assert (param != start).all()
    optimizer = step.__self__
    (group,) = optimizer.param_groups
    way = each.name.split("-")[2]
    wanted = {"loop": (False, None), "eager": (False, None), "foreach": (True, None)}
    assert (group["foreach"], group.get("fused") or None) == wanted.get(way, (None, True))
    state = optimizer.state[param]
    kept = sum(t.numel() * t.element_size() for n, t in state.items() if "step" not in n) / 4096
    assert kept <= each.state < kept + 0.2


def test_the_one_rounded_to_nearest_has_no_chance_in_it():
    (each,) = (e for e in CPU if e.name == "sage-adamw-fused-bfloat16-nearest")
    optimizer = each.make([Parameter(torch.ones(3))]).__self__
    plan = optimizer._plan(optimizer.param_groups[0])
    assert not any(plan.storage(name).stochastic for name in plan.state_names())
    (usual,) = (e for e in CPU if e.name == "sage-adamw-fused-bfloat16")
    optimizer = usual.make([Parameter(torch.ones(3))]).__self__
    plan = optimizer._plan(optimizer.param_groups[0])
    assert any(plan.storage(name).stochastic for name in plan.state_names())


def test_choosing_keeps_the_reference_and_what_fits():
    assert chosen(CPU, None) == CPU
    assert [e.name for e in chosen(CPU, ["torch-sgd-*"])] == [
        REFERENCE, "torch-sgd-loop", "torch-sgd-foreach", "torch-sgd-fused",
    ]  # fmt: skip
    (_, eager) = chosen(CPU, ["sage-adamw-eager-8bit"])
    assert eager.elements is None  # asked for by name, it runs on whatever there is
    with pytest.raises(UsageError, match=r"--only 'sgd' fits no contestant.*torch-sgd-fused"):
        chosen(CPU, ["torch-*", "sgd"])


def test_a_peer_that_is_not_installed_or_not_for_this_device_says_so():
    missing = Peer("x", "X", "no_such_module_at_all", "x-package", "X", 8)
    assert absent(missing, "cpu") == "not installed: pip install x-package"
    there = Peer("x", "X", "json", "x-package", "X", 8, devices=("cuda",))
    assert absent(there, "cpu") == "x-package runs on cuda alone"
    assert absent(there, "cuda") is None


def test_a_peer_with_two_sets_of_weights_is_put_to_training(monkeypatch):
    module = ModuleType("schedulefree")

    class AdamWScheduleFree:
        def __init__(self, params, lr):
            self.params, self.lr, self.training = params, lr, False

        def train(self):
            self.training = True

        def step(self):
            return self.training

    monkeypatch.setitem(sys.modules, "schedulefree", module)
    module.AdamWScheduleFree = AdamWScheduleFree
    (peer,) = (p for p in PEERS if p.module == "schedulefree")
    step = peer.make([Parameter(torch.ones(1))])
    assert step() is True
    assert step.__self__.lr == peers.LR
