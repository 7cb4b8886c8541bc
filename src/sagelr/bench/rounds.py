"""Taking turns: many short rounds, in each a turn of everyone in an order of chance."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

SHORTEST = 0.01  # seconds; a shorter turn is taken several times over
FEWEST = 3  # turns of anyone, however slow


@dataclass(frozen=True)
class Turn:
    """What is timed.

    Attributes:
        call: does it once.
        before: is done before, untimed.
    """

    call: Callable[[], object]
    before: Callable[[], object] = lambda: None


def synchronize(device: str) -> None:
    """Wait for what was asked of an accelerator."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(turn: Turn, device: str, times: int = 1) -> float:
    """Seconds that one call takes, as the mean of some in a row."""
    turn.before()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        turn.call()
    synchronize(device)
    return (time.perf_counter() - start) / times


def take_turns(
    turns: Mapping[str, Turn],
    *,
    rounds: int,
    seconds: float,
    device: str,
    always: str,
    progress: Callable[[float], None] = lambda share: None,
    seed: int = 0,
) -> dict[str, list[dict[str, float]]]:
    """Time everyone, in turns.

    Args:
        turns: by name; each has been warmed up.
        rounds: at most.
        seconds: about what each may take in all; who is slow misses rounds, evenly spread.
        device: "cpu" or "cuda".
        always: name of the one who takes part in every round.
        progress: is told the share that is done.
        seed: of the order.

    Returns:
        For each name its turns: {"round": number, "seconds": of one call}.
    """
    alone = {name: timed(turn, device) for name, turn in turns.items()}
    times = {name: max(1, math.ceil(SHORTEST / max(s, 1e-9))) for name, s in alone.items()}
    counts = {
        name: max(FEWEST, min(rounds, int(seconds / (alone[name] * times[name])))) for name in turns
    }
    rounds = counts[always]
    order = random.Random(seed)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in turns}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            names = [name for name in turns if _due(number, min(counts[name], rounds), rounds)]
            order.shuffle(names)
            for name in names:
                took = timed(turns[name], device, times[name])
                found[name].append({"round": number, "seconds": took})
            progress((number + 1) / rounds)
    finally:
        if collecting:
            gc.enable()
    return found


def _due(number: int, count: int, rounds: int) -> bool:
    """Whether someone with this many turns has one in this round; the first has everyone."""
    return number * count % rounds < count
