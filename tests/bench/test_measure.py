"""What is measured of tiny tensors, and what becomes of those who cannot take part."""

import os
from pathlib import Path

import pytest
import torch
from torch.nn import Parameter

from sagelr.bench import measure as measuring
from sagelr.bench.contestants import REFERENCE, Contestant, chosen, everyone
from sagelr.bench.measure import Heat, Measured, fresh_caches, measure
from sagelr.bench.memory import allocated
from sagelr.errors import SagelrError

SHAPES = [(64, 64), (70,), (96, 80)]
COUNT = 64 * 64 + 70 + 96 * 80


def some(*patterns: str) -> list[Contestant]:
    return chosen(everyone("cpu"), patterns)


def measured(heats: list[Heat]) -> dict[str, Measured]:
    return {each.contestant.name: each for heat in heats for each in heat.measured}


def run(contestants: list[Contestant], **options) -> list[Heat]:
    return measure(SHAPES, contestants, rounds=3, device="cpu", compiling={}, **options)


# -- memory ----------------------------------------------------------------------------------------


def test_what_work_allocates_is_counted_to_the_byte():
    kept = []

    def work() -> None:
        passing = torch.ones(1000)
        kept.append(torch.ones(500, dtype=torch.float64))
        del passing
        kept.append(torch.ones(10))

    assert allocated(work, "cpu") == (4000 + 40, 8000)


def test_state_and_peak_are_those_of_the_optimizers():
    found = measured(run(some("torch-adamw-foreach", "sage-adamw-*-float32", "*-fused-8bit")))
    counts = 8 * 3 * 4  # two counts a tensor, with room to spare
    for name, state in (
        (REFERENCE, 8),
        ("torch-adamw-foreach", 8),
        ("sage-adamw-eager-float32", 12),
    ):
        assert 0 <= found[name].state - state * COUNT <= counts
    assert found[REFERENCE].peak - found[REFERENCE].state < 100
    assert found["torch-adamw-foreach"].peak >= found["torch-adamw-foreach"].state + 4 * COUNT
    if "sage-adamw-fused-8bit" in found and found["sage-adamw-fused-8bit"].status == "measured":
        eight = found["sage-adamw-fused-8bit"].state
        assert eight < 3.2 * (COUNT - 70) + 12 * 70 + counts


# -- turns -----------------------------------------------------------------------------------------


def test_everyone_of_a_heat_has_its_turns_and_the_probes_too():
    heats = run(some("torch-adamw-loop", "torch-sgd-*"))
    assert [sorted(m.contestant.name for m in heat.measured) for heat in heats] == [
        [REFERENCE, "torch-adamw-loop"],
        [REFERENCE, "torch-sgd-foreach", "torch-sgd-fused", "torch-sgd-loop"],
    ]
    for number, heat in enumerate(heats):
        for each in heat.measured:
            assert each.status == "measured"
            assert each.heat == number
            assert [turn["round"] for turn in each.turns] == [0, 1, 2]
            assert all(turn["seconds"] > 0 for turn in each.turns)
        assert {name: len(turns) for name, turns in heat.probes.items()} == {"copy": 3, "add": 3}


def failing(params) -> None:
    raise RuntimeError("no kernel\nfor this machine")


def stealing(params: list[Parameter]):
    """Takes the gradients away, as some do to save memory."""
    optimizer = torch.optim.SGD(params, lr=1e-6)

    def step() -> None:
        assert all(param.grad is not None for param in params)
        optimizer.step()
        for param in params:
            param.grad = None

    return step


def test_one_that_fails_or_takes_the_gradients_does_not_disturb_the_others():
    bad = Contestant("bad", "Bad", "adamw", failing, state=8)
    thief = Contestant("thief", "Thief", "adamw", stealing, state=0)
    absent = Contestant("away", "Away", "adamw", failing, state=8, absent="not installed: pip x")
    heats = run([*some("torch-adamw-loop"), bad, thief, absent])
    found = measured(heats)
    assert found["bad"].status == "failed"
    assert found["bad"].reason == "RuntimeError: no kernel for this machine"
    assert (found["away"].status, found["away"].reason) == ("absent", "not installed: pip x")
    for name in (REFERENCE, "torch-adamw-loop", "thief"):
        assert found[name].status == "measured"


def test_without_the_reference_there_is_nothing_to_compare_with():
    bad = Contestant(REFERENCE, "Bad", "adamw", failing, state=8)
    with pytest.raises(SagelrError, match=r"torch-adamw-fused.* cannot run: RuntimeError: no kern"):
        run([bad])


def test_heats_are_as_large_as_memory_allows(monkeypatch):
    # The reference takes 8 bytes a parameter; with it there is room for two more of 8.
    room = (8 + 8 + 8) * COUNT + 1000 + 8 * COUNT
    monkeypatch.setattr(measuring, "free", lambda device: int(room / measuring.ROOM) + 1)
    more = [
        Contestant(f"c{i}", f"C{i}", "adamw", some("torch-adamw-loop")[1].make, state=8)
        for i in range(3)
    ]
    huge = Contestant("huge", "Huge", "adamw", failing, state=1000)
    heats = run([some(REFERENCE)[0], *more, huge])
    (left,) = [m for heat in heats for m in heat.measured if m.status != "measured"]
    assert left.contestant is huge
    assert left.status == "left out"
    assert "GiB" in left.reason
    names = [[m.contestant.name for m in heat.measured] for heat in heats if heat.probes]
    assert names == [[REFERENCE, "c0", "c1"], [REFERENCE, "c2"]]


def test_the_slow_and_those_who_compile_long_are_left_out_of_what_is_large(monkeypatch):
    make = some(REFERENCE)[0].make
    slow = Contestant("slow", "Slow", "adamw", make, state=8, elements=COUNT - 1)
    graph = Contestant("graph", "Graph", "adamw", make, state=8, tensors=2)
    found = measured(run([some(REFERENCE)[0], slow, graph]))
    assert found["slow"].status == found["graph"].status == "left out"
    assert "--only" in found["slow"].reason
    assert "graph" in found["graph"].reason
    found = measured(run(chosen([some(REFERENCE)[0], slow], ["slow"])))
    assert found["slow"].status == "measured"


def test_caches_are_fresh_while_it_measures_and_the_users_afterwards(monkeypatch, tmp_path):
    monkeypatch.setenv("SAGELR_CACHE", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    with fresh_caches():
        inside = Path(os.environ["SAGELR_CACHE"])
        assert inside != tmp_path
        assert "TRITON_CACHE_DIR" in os.environ
    assert os.environ["SAGELR_CACHE"] == str(tmp_path)
    assert "TRITON_CACHE_DIR" not in os.environ
    assert not inside.parent.exists()
