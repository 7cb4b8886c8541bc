"""The trace of a run: enough looks for a chart in time, and the same after a checkpoint."""

import io
import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from sagelr import SageAdamW, param_groups
from sagelr.trace import LOOKS, Trace, steps_to_probe


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def model_and_optimizer(**options):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.ModuleDict({"layers": nn.ModuleList([layer]), "head": nn.Linear(8, 2)})
    return model, SageAdamW(param_groups(model), lr=1e-3, beta0=0.8, **options)


def train(model, optimizer, trace, steps):
    seen = {}
    for step in steps:
        optimizer.zero_grad()
        torch.manual_seed(step)
        model["head"](model["layers"][0](torch.randn(4, 3, 8))).square().mean().backward()
        trace.look(step, step / 10)
        weight = model["layers"][0].self_attn
        seen[step] = torch.cat([optimizer.multiplier(p).flatten() for p in weight.parameters()])
        optimizer.step()
    return seen


@pytest.mark.parametrize("total", [1, 2, 5, 20, 300, 12_345])
def test_the_looks_are_spread_over_the_run(total):
    steps = steps_to_probe(total)
    assert steps == sorted(set(steps))
    assert all(min(2, total) <= step <= total for step in steps)
    if total >= 2 * LOOKS:
        assert len(steps) == LOOKS + 1
        gaps = [after - before for before, after in pairwise(steps)]
        assert max(gaps) <= total / LOOKS + 1
        assert steps[-1] == total - 1


def test_what_is_written_is_what_the_optimizer_did():
    model, optimizer = model_and_optimizer()
    trace = Trace(model, optimizer, 30)
    assert trace.to_json() is None
    seen = train(model, optimizer, trace, range(1, 31))
    found = json.loads(json.dumps(trace.to_json(), allow_nan=False))
    assert found["steps"] == steps_to_probe(30)
    assert found["beta0"] == 0.8
    assert [row["step"] for row in found["history"]] == found["steps"]
    for row in found["history"]:
        assert row["multiplier"].keys() == {"layers.0.self_attn", "layers.0.feed-forward"}
        expected = float(seen[row["step"]].mean())
        assert row["multiplier"]["layers.0.self_attn"] == pytest.approx(expected, rel=1e-3)
        assert row["sensitivity"]["layers.0.self_attn"] > 0
    attention, feed_forward = found["layers"]
    last = seen[found["steps"][-1]]
    assert (attention["kind"], feed_forward["kind"]) == ("attention", "feed-forward")
    assert attention["parameters"] == attention["sampled"] == len(last)
    assert attention["multiplier"] == pytest.approx(float(last.mean()), rel=1e-5)
    assert attention["boosted"] == pytest.approx(float((last > 1).float().mean()))
    assert attention["quantiles"]["50"] == pytest.approx(float(last.median()), rel=0.05)
    shares = [entry["quantile"] for entry in found["by_sensitivity"]]
    assert (shares[0][0], shares[-1][1], len(shares)) == (0, 1, 20)
    levels = [entry["sensitivity"] for entry in found["by_sensitivity"]]
    assert levels == sorted(levels)


def test_the_scatter_lies_on_the_rule():
    """Late in a run, when bias correction has faded, r is a function of x = I / Ī alone."""
    from sagelr.rule import ratio_multiplier

    model, optimizer = model_and_optimizer(sage_eps=1e-30)  # ε far below every sensitivity
    trace = Trace(model, optimizer, 120)
    train(model, optimizer, trace, range(1, 121))
    pairs = trace.to_json()["scatter"]
    assert 300 < len(pairs) <= 1500
    # Late means after a quarter of the run: 0.8³⁰ is a thousandth.
    assert all(abs(r - ratio_multiplier(x, 0.8)) < 0.01 * (1 + x) for x, r in pairs)


def test_a_trace_goes_on_from_a_checkpoint_as_if_it_had_not_stopped():
    model, optimizer = model_and_optimizer()
    whole = Trace(model, optimizer, 20)
    file = io.BytesIO()
    train(model, optimizer, whole, range(1, 11))
    torch.save(whole.state(), file)
    file.seek(0)
    resumed = Trace(model, optimizer, 20)
    resumed.load(torch.load(file, weights_only=True))
    for step in range(11, 21):
        optimizer.zero_grad()
        model["head"](model["layers"][0](torch.randn(4, 3, 8))).square().mean().backward()
        whole.look(step, step / 10)
        resumed.look(step, step / 10)
        optimizer.step()
    assert resumed.to_json() == whole.to_json()


def test_a_step_that_a_scaler_leaves_out_is_not_seen():
    """Its gradients overflowed in 16 bits; the training goes on, and so does the trace."""
    model, optimizer = model_and_optimizer()
    trace = Trace(model, optimizer, 30)
    train(model, optimizer, trace, range(1, 12))
    known = trace.to_json()
    skipped = next(step for step in trace.steps if step > 11)
    weight = model["layers"][0].self_attn.in_proj_weight
    for value in (torch.inf, torch.nan):
        model["head"](model["layers"][0](torch.randn(4, 3, 8))).square().mean().backward()
        weight.grad[0, 0] = value
        trace.look(skipped, 0.5)
        optimizer.zero_grad()
    assert trace.to_json() == known
    train(model, optimizer, trace, range(skipped, 31))
    found = json.loads(json.dumps(trace.to_json(), allow_nan=False))
    assert skipped in found["steps"]


def test_a_run_that_ended_early_has_what_was_seen():
    model, optimizer = model_and_optimizer()
    trace = Trace(model, optimizer, 1000)
    train(model, optimizer, trace, range(24, 27))
    found = trace.to_json()
    assert found["steps"] == [25]
    assert found["scatter"] == []
