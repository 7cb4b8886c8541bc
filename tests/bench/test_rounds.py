"""Taking turns, with a clock that the turns themselves move."""

import gc

import pytest

from sagelr.bench import rounds
from sagelr.bench.rounds import Turn, take_turns

SHORT = 2.0**-9  # five of these are just under the shortest turn


class Clock:
    """Moved by what is timed, so that nothing here depends on a machine."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def turn(self, name: str, seconds: float, before: float = 0.0) -> Turn:
        def call() -> None:
            assert not gc.isenabled() or len(self.calls) < self.warming
            self.calls.append(name)
            self.now += seconds

        def first() -> None:
            self.now += before

        return Turn(call, first)

    warming = 0


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(rounds.gc, "collect", lambda: 0)  # slow beside all that tests import
    return clock


def test_everyone_has_one_turn_a_round_and_the_slow_fewer_evenly_spread(clock):
    turns = {
        "base": clock.turn("base", 0.125),
        "same": clock.turn("same", 0.125),
        "slow": clock.turn("slow", 1.0),
        "slowest": clock.turn("slowest", 100.0),
    }
    clock.warming = len(turns)
    found = take_turns(turns, rounds=20, seconds=5.0, device="cpu", always="base")
    assert [turn["round"] for turn in found["base"]] == list(range(20))
    assert [turn["round"] for turn in found["same"]] == list(range(20))
    assert [turn["round"] for turn in found["slow"]] == [0, 4, 8, 12, 16]
    assert len(found["slowest"]) == rounds.FEWEST
    assert {turn["seconds"] for turn in found["slow"]} == {1.0}
    # In an order that changes from round to round.
    order = [name for name in clock.calls[len(turns) :] if name in ("base", "same")]
    pairs = {tuple(order[i : i + 2]) for i in range(0, 40, 2)}
    assert pairs == {("base", "same"), ("same", "base")}


def test_the_order_is_the_same_in_every_run(clock):
    def order() -> list[str]:
        clock.calls.clear()
        turns = {name: clock.turn(name, 0.5) for name in "abcd"}
        clock.warming = 4
        take_turns(turns, rounds=6, seconds=99.0, device="cpu", always="a", seed=3)
        return list(clock.calls)

    assert order() == order()


def test_the_one_who_is_always_there_sets_the_rounds(clock):
    turns = {"base": clock.turn("base", 2.0), "fast": clock.turn("fast", 0.125)}
    clock.warming = 2
    found = take_turns(turns, rounds=20, seconds=8.0, device="cpu", always="base")
    assert len(found["base"]) == len(found["fast"]) == 4


def test_a_short_turn_is_taken_several_times_and_what_is_before_it_is_not_timed(clock):
    turns = {"base": clock.turn("base", SHORT, before=7.0)}
    clock.warming = 1
    found = take_turns(turns, rounds=3, seconds=1.0, device="cpu", always="base")
    assert len(clock.calls) == 1 + 3 * 6
    assert [turn["seconds"] for turn in found["base"]] == pytest.approx([SHORT] * 3)


def test_garbage_is_collected_again_after_a_turn_that_fails(clock):
    def fail() -> None:
        if clock.calls:
            raise RuntimeError("out of memory")
        clock.calls.append("once")
        clock.now += 1.0

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="out of memory"):
        take_turns({"base": Turn(fail)}, rounds=3, seconds=9.0, device="cpu", always="base")
    assert gc.isenabled()


def test_progress_reaches_the_end(clock):
    told: list[float] = []
    clock.warming = 1
    take_turns(
        {"base": clock.turn("base", 1.0)},
        rounds=4,
        seconds=99.0,
        device="cpu",
        always="base",
        progress=told.append,
    )
    assert told == [0.25, 0.5, 0.75, 1.0]
