"""Parameters of a model that patterns or a callable select, and what is said where none are."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

Selector = str | Sequence[str] | Callable[[str, Tensor], bool]
Names = Mapping[Tensor, Sequence[str]]  # each parameter (it hashes by identity), all its names

PATTERNS = "Allowed: a regular expression, a list of them, or a callable (name, parameter) -> bool."
ALLOWED = f'{PATTERNS[:-1]}; "attention+ffn" (the default), "attention", "ffn", "all" or "none".'
COUNT = re.compile(r"(?<![^.])\d+(?![^.])")  # a component that is a number


def select(trainable: Names, selector: Selector, option: str) -> set[Tensor]:
    """The parameters that regular expressions or a callable select."""
    allowed = ALLOWED if option == "sage" else PATTERNS
    if callable(selector):
        if found := matching(trainable, selector):
            return found
        raise ValueError(
            f"The callable given as {option} selected none of {len(trainable)} trainable "
            f"parameters. {listing(trainable)} It must return True for some. {allowed}"
        )
    patterns = [selector] if isinstance(selector, str) else selector
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f"{option}={selector!r} of type {type(selector).__name__}. {allowed}")
    if not patterns:
        raise ValueError(f"{option}={selector!r} holds no pattern. {allowed}")
    selected: set[Tensor] = set()
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{option}={pattern!r} is not a valid regular expression: {error}. Put a "
                f"backslash before a character that stands for itself. {allowed}"
            ) from error
        found = matching(trainable, lambda name, _, search=expression.search: search(name))
        if not found:
            raise ValueError(
                f"{option}={pattern!r} matches none of {len(trainable)} trainable parameters. "
                f"{_near_misses(pattern, trainable)} {allowed}"
            )
        selected |= found
    return selected


def matching(trainable: Names, accept: Callable[[str, Tensor], Any]) -> set[Tensor]:
    """The parameters of which one of the names is accepted."""
    return {p for p, names in trainable.items() if any(accept(name, p) for name in names)}


def _near_misses(pattern: str, trainable: Names) -> str:
    """A sentence with the names, and parts of names, that look most like a pattern."""
    text = re.sub(r"\\d[+*]?", "0", pattern)
    text = re.sub(r"\\[A-Za-z]|[\\^$*+?{}\[\]()|]", "", text).strip(".").lower()
    candidates: dict[str, str] = {}  # one of those that differ in their numbers alone
    for parts in (name.split(".") for names in trainable.values() for name in names):
        for start, end in itertools.combinations(range(len(parts) + 1), 2):
            if not (parts[start].isdigit() or parts[end - 1].isdigit()):
                piece = ".".join(parts[start:end])
                candidates.setdefault(COUNT.sub("0", piece.lower()), piece)
    close = difflib.get_close_matches(COUNT.sub("0", text), candidates, n=8, cutoff=0.6)
    if not close:
        return listing(trainable)
    return f"Near misses: {', '.join(candidates[each] for each in close)}."


def listing(trainable: Names) -> str:
    """A sentence with the first names."""
    first = [names[0] for names in trainable.values()]
    rest = f", … ({len(first)} in all)" if len(first) > 8 else ""
    return f"Its trainable parameters: {', '.join(first[:8])}{rest}."
