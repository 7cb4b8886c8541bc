"""Ratios, quartiles and bytes: worked out by hand, and the form of what is written."""

import json

import pytest

from sagelr.bench import document as found
from sagelr.bench import table
from sagelr.bench.contestants import REFERENCE, Contestant
from sagelr.bench.measure import PROBE, Heat, Measured

SHAPES = [(10, 20), (300,)]
COUNT = 500


def who(name: str, family: str = "adamw") -> Contestant:
    return Contestant(name, name.upper(), family, lambda params: lambda: None, state=8)


def timed(name: str, seconds: dict[int, float], family: str = "adamw", **more) -> Measured:
    turns = [{"round": r, "seconds": s} for r, s in seconds.items()]
    return Measured(
        who(name, family), turns=turns, **{"heat": 0, "state": 4000, "peak": 6000, **more}
    )


def probes(*seconds: float) -> dict[str, list[dict[str, float]]]:
    turns = [{"round": i, "seconds": s} for i, s in enumerate(seconds)]
    return {"copy": turns, "add": turns}


def entries(*heats: Heat) -> dict[str, dict]:
    made = found.suite("tiny", "a test", SHAPES, heats)
    return {entry["name"]: entry for entry in made["contestants"]}


def test_a_ratio_is_taken_within_each_round():
    base = {0: 1.0, 1: 10.0, 2: 2.0, 3: 4.0}
    ours = {0: 2.0, 2: 6.0, 3: 4.0}
    heat = Heat([timed(REFERENCE, base), timed("ours", ours)], probes(1.0))
    entry = entries(heat)["ours"]
    # 2, 3 and 1: the median of ratios, not the ratio of medians, which would be 4/3.
    assert entry["ratio"] == {"to": REFERENCE, "median": 2.0, "quartiles": [1.5, 2.5]}
    assert entry["median_seconds"] == 4.0
    assert entry["quartiles_seconds"] == [3.0, 5.0]
    assert entry["ratio_to_base"] is None
    assert found.ratios(heat.measured[1].turns, heat.measured[0].turns) == [2.0, 3.0, 1.0]


def test_adamax_is_also_held_to_the_fastest_of_torchs_own():
    heat = Heat(
        [
            timed(REFERENCE, {0: 1.0, 1: 1.0}),
            timed("torch-adamax-loop", {0: 2.0, 1: 4.0}, "adamax"),
            timed("torch-adamax-foreach", {0: 9.0, 1: 9.0}, "adamax"),
            timed("sage-adamax-fused-float32", {0: 3.0, 1: 3.0}, "adamax"),
        ],
        probes(1.0),
    )
    entry = entries(heat)["sage-adamax-fused-float32"]
    assert entry["ratio"]["median"] == 3.0
    assert entry["ratio_to_base"]["to"] == "torch-adamax-loop"
    assert entry["ratio_to_base"]["median"] == pytest.approx((1.5 + 0.75) / 2)


def test_rounds_of_two_heats_are_never_compared():
    one = Heat([timed(REFERENCE, {0: 1.0, 1: 1.0}), timed("a", {0: 2.0, 1: 2.0})], probes(1.0))
    two = Heat(
        [timed(REFERENCE, {0: 4.0, 1: 4.0}, heat=1), timed("b", {0: 8.0, 1: 8.0}, heat=1)],
        probes(3.0),
    )
    made = entries(one, two)
    assert made["a"]["ratio"]["median"] == made["b"]["ratio"]["median"] == 2.0
    assert [(t["heat"], t["seconds"]) for t in made[REFERENCE]["turns"]] == [
        (0, 1.0), (0, 1.0), (1, 4.0), (1, 4.0),
    ]  # fmt: skip
    assert made[REFERENCE]["median_seconds"] == 2.5
    assert made[REFERENCE]["ratio"]["median"] == 1.0


def test_bytes_are_counted_by_parameter():
    heat = Heat([timed(REFERENCE, {0: 0.5})], probes(0.25))
    made = found.suite("tiny", "a test", SHAPES, [heat])
    (entry,) = made["contestants"]
    assert made["parameters"] == COUNT
    assert entry["state_bytes_a_parameter"] == 8.0
    assert entry["peak_bytes_a_parameter"] == 12.0
    assert entry["moved_bytes_a_parameter"] == 12 + 16  # torch's AdamW
    assert entry["bytes_per_second"] == 28 * COUNT / 0.5
    assert made["probes"]["copy"]["bytes_per_second"] == 8 * min(COUNT, PROBE) / 0.25
    assert made["probes"]["add"]["bytes_per_second"] == 12 * COUNT / 0.25


def whole(warning: str | None = None) -> dict:
    absent = Measured(who("away"), "absent", "not installed: pip install away")
    heat = Heat(
        [
            timed(REFERENCE, {0: 0.5, 1: 0.25, 2: 0.5}),
            timed("ours", {0: 0.25, 1: 0.25, 2: 0.125}, compiling=1.25),
        ],
        probes(0.25, 0.5),
    )
    training = Heat(
        [timed(REFERENCE, {0: 2.0}, state=None, peak=None)],
        {"forward and backward": [{"round": 0, "seconds": 1.75}]},
    )
    about = {
        "created": "2026-01-02T03:04:05+00:00",
        "command": "sagelr bench",
        "machine": {"processor": "P", "cores": 2, "device": "cpu"},
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "threads": 2,
        "rounds": 20,
        "idle": {"cpu_percent_before": 1.0, "load_average_before": 0.1, "warning": warning},
    }
    return found.document(
        about,
        [
            found.suite("tiny", "a test", SHAPES, [Heat([absent], {}), heat]),
            found.suite("end-to-end", "a training step", SHAPES, [training]),
        ],
    )


def test_the_document_has_every_rounds_times():
    document = json.loads(json.dumps(whole(), allow_nan=False))
    assert {"schema", "sagelr", "reference", "machine", "versions", "threads", "idle"} <= set(
        document
    )
    assert "load_average_after" in document["idle"]
    tiny, training = document["suites"]
    assert {"name", "title", "parameters", "tensors", "heats", "probes", "contestants"} == set(tiny)
    assert tiny["heats"] == 1
    by_name = {entry["name"]: entry for entry in tiny["contestants"]}
    assert by_name["away"]["status"] == "absent"
    assert by_name["away"]["reason"] == "not installed: pip install away"
    assert by_name["ours"]["turns"] == [
        {"heat": 0, "round": i, "seconds": s} for i, s in enumerate([0.25, 0.25, 0.125])
    ]
    assert by_name["ours"]["compile_seconds"] == 1.25
    assert "state_bytes" not in training["contestants"][0]
    assert training["probes"]["forward and backward"]["median_seconds"] == 1.75


def test_the_table_has_the_fastest_first_and_tells_who_is_missing():
    text = table.markdown(whole())
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| OURS"))
    second = next(i for i, line in enumerate(lines) if line.startswith(f"| {REFERENCE.upper()}"))
    assert first < second
    assert "| 250 (188 to 250) | 0.50 (0.38 to 0.75) |" in lines[first]
    assert "| 8.00 | 12.00 | 1.2 |" in lines[first]
    assert "- AWAY: absent, not installed: pip install away" in lines
    assert "- forward and backward: 1750.0 ms" in lines
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {9, 4}  # a step of training has no bytes
    assert "busy" not in text


def test_a_busy_machine_is_told_in_the_table():
    warning = "The machine is busy: 80% of its cores before this began."
    assert f"**{warning}**" in table.markdown(whole(warning))


@pytest.mark.parametrize(("percent", "busy"), [(3.0, False), (50.0, True)])
def test_what_else_runs_is_looked_at_first(percent, busy, monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: percent)
    idle = found.idle()
    assert idle["cpu_percent_before"] == percent
    assert (idle["warning"] is not None) == busy
