"""Lists of tensors that the optimizers are measured on."""

from __future__ import annotations

from collections.abc import Sequence

from sagelr.errors import UsageError

Shape = tuple[int, ...]

# Those that a run takes if it is not told otherwise, by kind of device.
DEFAULTS = {
    "cpu": ("bert-base", "flat", "small"),
    "cuda": ("bert-base", "flat", "small", "flat-1b"),
}


def _bert_base() -> list[Shape]:
    """BERT-base with a head of two classes: 109.5 million parameters in 201 tensors."""
    wide, inner = 768, 3072
    norm: list[Shape] = [(wide,), (wide,)]

    def linear(out: int, into: int) -> list[Shape]:
        return [(out, into), (out,)]

    embeddings: list[Shape] = [(30522, wide), (512, wide), (2, wide), *norm]
    attention = [*linear(wide, wide) * 4, *norm]
    feed_forward = [*linear(inner, wide), *linear(wide, inner), *norm]
    return [*embeddings, *(attention + feed_forward) * 12, *linear(wide, wide), *linear(2, wide)]


SHAPES: dict[str, list[Shape]] = {
    "bert-base": _bert_base(),
    "flat": [(100_000, 1000)],
    "small": [(64, 64)] * 2000,
    "flat-1b": [(1_000_000, 1000)],
}

ABOUT = {
    "bert-base": "BERT-base with a classifier, 201 tensors",
    "flat": "one tensor of 100 million",
    "small": "2,000 tensors of 4,096",
    "flat-1b": "one tensor of a billion",
}


def named(names: Sequence[str]) -> dict[str, list[Shape]]:
    """The lists of these names.

    Raises:
        UsageError: there is none of a name.
    """
    for name in names:
        if name not in SHAPES:
            known = ", ".join(SHAPES)
            raise UsageError(f"--shapes {name!r} is not a list of tensors. Allowed: {known}.")
    return {name: SHAPES[name] for name in names}
