"""What the page needs to find in the files it reads, and a check that says what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Each:
    """Any keys, each with a value of this shape."""

    shape: Any


@dataclass(frozen=True)
class Maybe:
    """Null, or a value of this shape."""

    shape: Any


NUMBER = (int, float)
METRIC = {"name": str, "scale": NUMBER, "unit": str, "greater_is_better": bool}
GRID_POINT = Each(NUMBER)

CURVE = {
    "structure": str,
    "score": str,
    "scope": str,
    "finetuned": NUMBER,
    "points": [{"sparsity": NUMBER, "scores": Each(Maybe(NUMBER))}],
    "keeps99": Each(NUMBER),
}
HISTOGRAM = {"per_decade": int, "first": int, "counts": [int]}
MEASUREMENT = {"batch_size": int, "examples": int}
SPREAD = {"gini": NUMBER, "effective_share": NUMBER, "share_below": Each(NUMBER)}

SUMMARY = SPREAD | {
    "measurement": MEASUREMENT,
    "loss": NUMBER,
    "layers": [{"name": str, "kind": str, "sensitivity": NUMBER}],
    "histogram": HISTOGRAM,
    "split": str,
    "curves": [CURVE],
}

LIVE = {
    "step": int,
    "layer": str,
    "kind": str,
    "sensitivity": Maybe(NUMBER),
    "variation": Maybe(NUMBER),
    "multiplier": Maybe(NUMBER),
    "frozen": Maybe(NUMBER),
    "boosted": Maybe(NUMBER),
    "quantiles": Each(Maybe(NUMBER)),
}

TRACE = {
    "beta0": NUMBER,
    "scatter": [[NUMBER]],
    "by_sensitivity": [{"quantile": [NUMBER], "sensitivity": NUMBER, "multiplier": NUMBER}],
    "layers": [
        {
            "name": str,
            "kind": str,
            "parameters": int,
            "sensitivity": NUMBER,
            "multiplier": NUMBER,
            "quantiles": Each(NUMBER),
            "frozen": NUMBER,
            "boosted": NUMBER,
        }
    ],
    "history": [{"step": int, "multiplier": Each(NUMBER)}],
}

RUN = {
    "key": str,
    "stage": str,
    "arm": str,
    "setting": GRID_POINT,
    "seed": int,
    "status": str,
    "error": Maybe(str),
    "scores": {"validation": Maybe(Each(NUMBER)), "test": Maybe(Each(NUMBER))},
    "curve": [{"epoch": NUMBER}],
    "options": dict,
    "seconds": Maybe(NUMBER),
    "peak_memory_mib": Maybe(NUMBER),
    "sage": Maybe(TRACE),
}

COMPARISON = {
    "base": str,
    "sage": str,
    "seeds": [int],
    "n": int,
    "arms": Each({"values": [NUMBER], "mean": NUMBER}),
    "difference": {
        "mean": NUMBER,
        "ci95": [NUMBER],
        "ci90": [NUMBER],
        "p_value": Maybe(NUMBER),
        "effect_size": Maybe(NUMBER),
    },
    "gain": NUMBER,
    "smallest_detectable": Maybe(NUMBER),
    "margin": NUMBER,
    "verdict": str,
    "significant": bool,
    "seeds_needed": Maybe(int),
    "settles": Maybe(str),
    "failed": Each(int),
}  # and, where they are known, examples_ci95 and p_holm

RESULTS = {
    "schema": int,
    "sagelr": str,
    "created": str,
    "updated": str,
    "status": str,
    "quick": bool,
    "progress": {"done": int, "total": int},
    "command": str,
    "recipe": {
        "name": str,
        "title": str,
        "description": str,
        "metric": METRIC,
        "study": {"select_by": str, "report_seeds": int, "margin": NUMBER},
        "arms": Each({"optimizer": str, "options": dict, "scope": (str, list)}),
    },
    "overrides": dict,
    "machine": Each((str, int, float)),
    "versions": Each(str),
    "data": Maybe({"name": str, "source": str, "rows": Each(int)}),
    "arms": Each({"label": str, "role": str, "base": Maybe(str), "optimizer": str}),
    "runs": [RUN],
    "tuning": Each({"chosen": Maybe(GRID_POINT), "on_edge": bool, "extended": [str]}),
    "comparisons": [COMPARISON],
    "looks": [int],
}  # and, since it is kept, selector: a METRIC

GROUP = SPREAD | {
    "name": str,
    "kind": str,
    "parameters": int,
    "mean": NUMBER,
    "mean_by_loss": Maybe(NUMBER),
    "zero": int,
    "histogram": HISTOGRAM,
    "effective": NUMBER,
    "variation": NUMBER,
}
UNITS = {"layer": str, "count": int, "means": Maybe([NUMBER]), "zero": int}
SIDE = SPREAD | {"model": int, "loss": NUMBER, "layers": Each(NUMBER)}

AUDIT = {
    "schema": int,
    "sagelr": str,
    "created": str,
    "command": str,
    "machine": Each((str, int, float)),
    "versions": Each(str),
    "recipe": {"name": str, "title": str, "metric": METRIC},
    "data": {"name": str, "source": str, "rows": Each(int)},
    "measurement": MEASUREMENT,
    "models": [
        {
            "label": str,
            "path": str,
            "model_class": str,
            "parameters": int,
            "sensitivity": {
                "loss": NUMBER,
                "all": {key: shape for key, shape in GROUP.items() if key not in ("name", "kind")},
                "layers": [GROUP],
                "kinds": [GROUP],
                "heads": [UNITS],
                "neurons": [UNITS],
            },
            "optimizer": Maybe([LIVE]),
            "pruning": Maybe({"split": str, "curves": [CURVE], "skipped": [str]}),
            "export": Maybe(dict),
        }
    ],
    "comparison": Maybe({"own": [SIDE], "matched": Maybe([SIDE]), "note": str}),
    "notices": [str],
}


def fault(value: Any, shape: Any) -> str | None:
    """The first place where a value is not of a shape, in words; None if it is.

    Args:
        value: as JSON gives it.
        shape: a type or several, a dict of keys that must be there, a list of one shape, Each or
            Maybe.

    Examples:
        >>> fault({"runs": [{"seed": "one"}]}, {"runs": [{"seed": int}]})
        'runs[0].seed is a string'
        >>> fault({}, {"runs": [int]})
        'runs is missing'
        >>> fault([], {})
        'all of it is a list'
    """
    found = _fault(value, shape)
    if found is None:
        return None
    return f"all of it{found}" if found.startswith(" ") else found.removeprefix(".")


def _fault(value: Any, shape: Any) -> str | None:
    """The rest of the sentence, from the place where the value is on."""
    if isinstance(shape, Maybe):
        return None if value is None else _fault(value, shape.shape)
    if isinstance(shape, type | tuple):
        return None if isinstance(value, shape) else f" is {_kind(value)}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f" is {_kind(value)}"
        pieces = ((f"[{i}]", each, shape[0]) for i, each in enumerate(value))
    elif not isinstance(value, Mapping):
        return f" is {_kind(value)}"
    elif isinstance(shape, Each):
        pieces = ((f".{key}", each, shape.shape) for key, each in value.items())
    else:
        missing = next((key for key in shape if key not in value), None)
        if missing is not None:
            return f".{missing} is missing"
        pieces = ((f".{key}", value[key], inner) for key, inner in shape.items())
    for name, each, inner in pieces:
        found = _fault(each, inner)
        if found is not None:
            return f"{name}{found}"
    return None


def _kind(value: Any) -> str:
    names = {str: "a string", bool: "a boolean", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a number")
