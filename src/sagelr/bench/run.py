"""A whole run: every list of tensors that was asked for, and the training steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sagelr.bench import training
from sagelr.bench.contestants import Contestant
from sagelr.bench.document import suite
from sagelr.bench.measure import fresh_caches, measure
from sagelr.bench.shapes import ABOUT, Shape

TRAINING = "end-to-end"


def run(
    lists: Mapping[str, Sequence[Shape]],
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    device: str,
    end_to_end: bool,
    progress: Callable[[str, str, float], None] = lambda suite, what, share: None,
) -> list[dict[str, Any]]:
    """Measure everyone on everything.

    Args:
        lists: shapes of tensors, by the name of the list.
        contestants: the reference among them.
        rounds: at most.
        device: "cpu" or "cuda".
        end_to_end: whether to time training steps, too.
        progress: is told where it is: the list, what is going on, and the share of the list.

    Returns:
        What was found, a dictionary for each list, as `document.suite` makes it.

    Raises:
        SagelrError: the reference cannot run, or MiniLM is not installed.
    """
    suites = []
    compiling: dict[str, float | None] = {}
    if end_to_end:
        training.folder()  # before minutes are spent on the rest
    with fresh_caches():
        for name, shapes in lists.items():
            heats = measure(
                shapes,
                contestants,
                rounds=rounds,
                device=device,
                compiling=compiling,
                progress=lambda what, share, name=name: progress(name, what, share),
            )
            suites.append(suite(name, ABOUT.get(name, name), shapes, heats))
        if end_to_end:
            heat, shapes = training.measure(
                contestants,
                rounds=rounds,
                device=device,
                progress=lambda what, share: progress(TRAINING, what, share),
            )
            title = f"a training step of {training.MODEL}, {training.ROWS} × {training.TOKENS}"
            suites.append(suite(TRAINING, f"{title} tokens", shapes, [heat]))
    return suites
