"""Reading what the page is made of: results.json, audit.json, probe files, or a folder of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagelr.errors import SagelrError, UsageError
from sagelr.report import shape

RESULTS, AUDIT = "results.json", "audit.json"
PROBES = (".jsonl", ".parquet")  # what the live probe writes
SCHEMA = 1  # of results.json and audit.json
GIVE = (
    f"Give the folder of a study or of an audit, or the path of its {RESULTS} or {AUDIT}, or of "
    f"the .jsonl or .parquet file of a live probe."
)

Document = Mapping[str, Any]
Source = Document | Path


@dataclass(frozen=True)
class Live:
    """What a live probe wrote: a row for each layer and look."""

    name: str
    rows: list[dict[str, Any]]


@dataclass
class Found:
    """What there is to show.

    Attributes:
        results: a study, or None.
        audits: each of one model or two.
        live: of one training each.
    """

    results: Document | None = None
    audits: list[Document] = field(default_factory=list)
    live: list[Live] = field(default_factory=list)


def read(sources: Source | Iterable[Source]) -> Found:
    """Read and check everything.

    Args:
        sources: one or several: data as read from results.json or audit.json, the path of such a
            file or of a probe's, or a folder that holds results.json, audit.json or both.

    Raises:
        UsageError: a path leads nowhere, or to something else.
        SagelrError: a file is not whole.
    """
    found = Found()
    each: Iterable[Source] = (
        [sources] if isinstance(sources, Mapping | Path) else sources  # pyright: ignore[reportAssignmentType]
    )
    for source in each:
        if isinstance(source, Mapping):
            _add(found, source, "The data")
            continue
        for path in _files(source):
            if path.suffix in PROBES:
                found.live.append(_live(path))
            else:
                _add(found, _parse(path), str(path))
    if not (found.results or found.audits or found.live):
        raise UsageError(f"Nothing to show. {GIVE}")
    return found


def _add(found: Found, document: Document, name: str) -> None:
    if document.get("kind") == "audit":
        _check(document, shape.AUDIT, name)
        found.audits.append(document)
        for model in document["models"]:
            if rows := model.get("live"):
                _whole(rows, [shape.LIVE], f"What the probe saw of {model['label']} in {name}")
                found.live.append(Live(model["label"], rows))
    elif "runs" in document:
        if found.results is not None:
            raise UsageError(f"{name} is a second study; a page shows one. Render a page for each.")
        _check(document, shape.RESULTS, name)
        for run in document["runs"]:
            if run.get("audit"):
                _whole(run["audit"], shape.SUMMARY, f"The audit of {run['key']} in {name}")
        found.results = document
    else:
        raise UsageError(f"{name} holds neither the results of a study nor an audit. {GIVE}")


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UsageError(f"{path} does not exist. {GIVE}")
    if not path.is_dir():
        return [path]
    files = [file for name in (RESULTS, AUDIT) if (file := path / name).is_file()]
    if not files:
        raise UsageError(f"{path} holds neither {RESULTS} nor {AUDIT}. {GIVE}")
    return files


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not JSON: not even text (byte {error.start}). {GIVE}"
        ) from None


def _parse(path: Path) -> Document:
    try:
        document = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}. If it "
            "was cut off, the command that wrote it can write it anew."
        ) from None
    except (ValueError, RecursionError) as error:  # a number too long, or too deep a nesting
        raise UsageError(f"{path} cannot be read ({error}). {GIVE}") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path} is JSON, but neither a {RESULTS} nor an {AUDIT}. {GIVE}")
    return document


def _check(document: Document, wanted: Any, name: str) -> None:
    schema = document.get("schema")
    if schema != SCHEMA:
        raise UsageError(
            f"{name} has schema {schema!r}; this version of sagelr reads schema {SCHEMA}. Render "
            f"it with the version that wrote it ({document.get('sagelr', 'unknown')}), or write it "
            "anew with this one."
        )
    _whole(document, wanted, name)


def _whole(value: Any, wanted: Any, name: str) -> None:
    problem = shape.fault(value, wanted)
    if problem:
        raise SagelrError(
            f"{name} is not whole: {problem}. The command that wrote it can write it anew."
        )


def _live(path: Path) -> Live:
    rows = _table(path) if path.suffix == ".parquet" else _lines(path)
    _whole(rows, [shape.LIVE], str(path))
    if not rows:
        raise UsageError(f"{path} is empty: the probe has not looked yet.")
    return Live(path.name, rows)


def _lines(path: Path) -> list[Any]:
    rows = []
    lines = _text(path).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break  # still being written
            raise UsageError(f"{path} is not JSON in line {number}: {error.msg}.") from None
        except (ValueError, RecursionError) as error:  # as in _parse
            raise UsageError(f"{path}, line {number}: cannot be read ({error}). {GIVE}") from None
    return rows


def finite(value: Any) -> Any:
    """Data with None in the place of floats that are no numbers, for which JSON has no word."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            f"{path} takes pyarrow to read. Install it: pip install pyarrow. Or give the probe a "
            ".jsonl file."
        ) from None
    try:
        rows = finite(pyarrow.parquet.read_table(path).to_pylist())
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path} is not a whole Parquet file: {error}.") from None
    levels = [key for key in (rows[0] if rows else {}) if key[:1] == "q" and key[1:].isdigit()]
    return [row | {"quantiles": {key[1:]: row[key] for key in levels}} for row in rows]
