"""Moving over from the authors' script, in the middle of a training."""

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from sagelr import SageAdamax, SageAdamW
from sagelr.integrations.released import (
    load_released,
    released_groups,
    released_options,
    released_schedule,
)

LR, BETAS, BETA3, EPS = 0.003, (0.9, 0.999), 0.8, 1e-10


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=10,
    )  # fmt: skip
    return BertForSequenceClassification(config).double()


def released(name, theta, grads, sage, decay, schedule, state=None):
    """The script's step, in numpy: yields θ and its state."""
    theta, second = theta.copy(), "exp_inf" if name == "usadamax" else "exp_avg_sq"
    zeros = np.zeros_like(theta)
    state = state or {"step": 0, "exp_avg": zeros, second: zeros, "exp_avg_ipt": zeros}
    m, v, ipt, t = state["exp_avg"], state[second], state["exp_avg_ipt"], state["step"]
    (b1, b2), b3 = BETAS, BETA3
    for g in grads:
        x = t if name == "usadamax" else t + 1
        size, t = LR * schedule(x), t + 1
        now = np.abs(theta * g)
        m, ipt = b1 * m + (1 - b1) * g, b3 * ipt + (1 - b3) * now
        if name == "usadamax":
            v = np.maximum(b2 * v, np.abs(g) + EPS)
            direction, average = m / (v + EPS) + decay * theta, ipt
        else:
            v = b2 * v + (1 - b2) * g * g
            direction, average = m / (np.sqrt(v) + EPS), ipt / (1 - b3**t)
            size *= np.sqrt(1 - b2**t) / (1 - b1**t)
        r = np.abs(now - average) / (average + EPS**2) if sage else 1.0
        theta = theta - size * r * direction
        state = {"step": t, "exp_avg": m, second: v}
        yield theta, state | ({"exp_avg_ipt": ipt} if sage else {})


@pytest.mark.parametrize("name", ["usadamw", "usadamax"])
def test_a_training_of_the_script_goes_on(name, tmp_path, monkeypatch):
    """20 steps by the script, saved as it saves, 20 more by sagelr: as 40 by the script."""
    model, steps = bert(), 40
    decay = 0.01 if name == "usadamax" else 0.0
    groups = released_groups(model, weight_decay=decay)
    params = [(p, g["sage"], g["weight_decay"]) for g in groups for _, p in g["params"]]
    random = np.random.default_rng(0)
    grads = [random.normal(0, 0.02, (steps, *p.shape)) for p, _, _ in params]

    def schedule(x):
        return min(x / 4, (steps - x) / (steps - 4))  # a tenth of them is warm-up

    whole = []
    for (p, sage, wd), g in zip(params, grads, strict=True):
        whole.append(list(released(name, p.detach().numpy(), g, sage, wd, schedule)))
    saved = {i: {k: torch.as_tensor(v) if k != "step" else v for k, v in found[19][1].items()}
             for i, found in enumerate(whole)}  # fmt: skip
    first = iter(range(len(params)))
    theirs = [
        {"params": [next(first) for _ in group["params"]], "lr": LR, "betas": (*BETAS, BETA3),
         "params_type": "mask" if group["sage"] else "common"}
        for group in groups
    ]  # fmt: skip
    checkpoint = {
        "state": {},
        "optimizer": {"state": saved, "param_groups": theirs},
        "config": {"task_def_list": [script_class(monkeypatch)(3)]},
    }
    torch.save(checkpoint, tmp_path / "model_1.pt")
    del sys.modules["experiments_of_the_script"]

    cls = SageAdamax if name == "usadamax" else SageAdamW
    options = {"weight_decay": decay, "lr": LR, "betas": BETAS, "beta3": BETA3, "eps": EPS}
    optimizer = cls(groups, **released_options(name, **options))
    load_released(optimizer, tmp_path / "model_1.pt")
    with torch.no_grad():
        for (p, _, _), found in zip(params, whole, strict=True):
            p.copy_(torch.as_tensor(found[19][0]))
    factor = released_schedule(name, warmup=0.1, t_total=steps)
    scheduler = LambdaLR(optimizer, lambda t: factor(t + 20))
    for t in range(20, steps):
        for (p, _, _), g in zip(params, grads, strict=True):
            p.grad = torch.as_tensor(g[t])
        optimizer.step()
        scheduler.step()
        for (p, _, _), found in zip(params, whole, strict=True):
            true = found[t][0]
            # A weight that is exactly zero is where ε in the numerator shows: it trains here.
            moved = true != 0
            distance = np.abs(p.detach().numpy() - true)[moved]
            assert distance.max(initial=0) <= 1e-7 * np.abs(true).max(initial=1e-3)


def script_class(monkeypatch):
    """A class of the script's, as its checkpoints hold in their configuration."""
    module = types.ModuleType("experiments_of_the_script")
    exec("class TaskDef:\n    def __init__(self, kind): self.kind = kind", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.TaskDef


class Bomb:
    """Runs code when it is unpickled the usual way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = SageAdamW(model.parameters())
    state = {"state": {}, "param_groups": [{"params": [0, 1]}]}
    torch.save({"optimizer": state, "config": Bomb(tmp_path / "ran")}, tmp_path / "bad.pt")
    load_released(optimizer, tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


def test_the_groups_are_the_script_s():
    groups = released_groups(bert())
    assert [(g["sage"], g["weight_decay"]) for g in groups] == [
        (False, 0.01), (True, 0.01), (False, 0.0), (True, 0.0),
    ]  # fmt: skip
    names = [[name for name, _ in group["params"]] for group in groups]
    assert "bert.pooler.dense.weight" in names[0]
    assert "bert.encoder.layer.0.output.dense.weight" in names[1]
    assert "bert.encoder.layer.0.output.LayerNorm.weight" in names[2]
    assert "bert.encoder.layer.1.attention.self.query.bias" in names[3]
    assert sum(map(len, names)) == len(list(bert().parameters()))


def test_options_that_belong_elsewhere_or_nowhere():
    with pytest.raises(TypeError, match="t_total is part of the schedule"):
        released_options("usadamw", t_total=10)
    with pytest.raises(TypeError, match="clip between backward and step"):
        released_options("usadamax", max_grad_norm=1.0)
    with pytest.raises(TypeError, match=r"no option 'beta0'\. Did you mean betas"):
        released_options("usadamax", beta0=0.75)
    with pytest.raises(TypeError, match="usadamax has no option 'correct_bias'"):
        released_options("usadamax", correct_bias=True)
    with pytest.raises(ValueError, match="'adamw' is not an optimizer of the script with SAGE"):
        released_options("adamw")


def test_what_does_not_fit(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = SageAdamax(model.parameters())
    entry = {"step": 1, "exp_avg": torch.zeros(2, 2), "exp_avg_sq": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"has no exp_inf.*A state of usadamw goes into the other"):
        load_released(optimizer, {"state": {0: entry}, "param_groups": [{"params": [0, 1]}]})
    with pytest.raises(ValueError, match=r"groups of \[1\] parameters, the optimizer of \[2\]"):
        load_released(optimizer, {"state": {}, "param_groups": [{"params": [0]}]})
    with pytest.raises(ValueError, match="holds no optimizer state"):
        load_released(optimizer, {"state": {}})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_released(optimizer, tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="is not a checkpoint that torch can read"):
        load_released(optimizer, tmp_path / "text.pt")


def test_a_schedule_that_the_script_did_not_have_is_refused():
    for given in ({"warmup": -1, "t_total": 10}, {"warmup": 0.1, "t_total": -1}):
        with pytest.raises(ValueError, match="it used no schedule"):
            released_schedule("usadamw", **given)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        released_schedule("usadamax", warmup=1.0, t_total=10)
