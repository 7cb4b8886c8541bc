"""Reading tables of text: CSV, TSV and JSONL, with an error that names the line.

A .tsv file is read without quoting, as GLUE's are: a quotation mark is a character like any other.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagelr.errors import UsageError

KINDS = (".csv", ".tsv", ".jsonl")
LONGEST = 2**31 - 1  # characters of a field; Python's own limit is 131,072


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        name: of the file or data set, for messages.
        columns: name → values; text in a CSV or TSV, whatever JSON holds in a JSONL.
        lines: where each row is; the line that it ends on, in a file.
        unit: what `lines` counts.
    """

    name: str
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """A row as a message names it."""
        return f"{self.name}, {self.unit} {self.lines[row]}"


def read_table(path: Path) -> Table:
    """Read a .csv, .tsv or .jsonl file in UTF-8. The first line of a CSV or TSV names its columns.

    Raises:
        UsageError: there is no such file, it is of another kind, it is not UTF-8, it is empty, or
            a row does not fit the columns.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise UsageError(f"{path}: not a kind of table. Allowed: {', '.join(KINDS)}.")
    text = read_text(path)
    if not text.strip():
        raise UsageError(f"{path} is empty. Its first line has to name the columns.")
    lines, columns = _objects(path, text) if kind == ".jsonl" else _rows(path, text, kind)
    return Table(str(path), columns, lines)


def read_text(path: Path) -> str:
    """A whole file of UTF-8 text, without a byte order mark, its lines ended by a newline alone.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or type(error).__name__}.") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        encoding = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "ISO-8859-1"
        raise UsageError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8 text. Save the file "
            f"as UTF-8, for example with: iconv -f {encoding} -t UTF-8."
        ) from None
    return text.replace("\r\n", "\n")


def fields_of(text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every line of an unquoted TSV that is not empty."""
    for number, line in enumerate(text.split("\n"), 1):
        if line:
            yield number, line.split("\t")


def _rows(path: Path, text: str, kind: str) -> tuple[list[int], dict[str, list[str]]]:
    """Lines and columns of a CSV or TSV."""
    rows = fields_of(text) if kind == ".tsv" else _csv(path, text)
    first, header = next(rows)
    header = [name.strip() for name in header]
    if "" in header:
        raise UsageError(
            f"{path}, line {first}: column {header.index('') + 1} has no name. The first line "
            "names the columns, for example: text,label"
        )
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UsageError(f"{path}, line {first}: two columns are called {twice!r}. Rename one.")
    lines: list[int] = []
    columns: dict[str, list[str]] = {name: [] for name in header}
    for line, row in rows:
        if len(row) != len(header):
            hint = (
                "a .tsv is read without quoting, so a text may hold no tab and no line break"
                if kind == ".tsv"
                else 'put text with a comma or a line break into "…", and write " inside it as ""'
            )
            raise UsageError(
                f"{path}, line {line}: {len(row)} fields where the first line names "
                f"{len(header)} columns ({', '.join(header)}). Mend the row: {hint}."
            )
        lines.append(line)
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    if not lines:
        raise UsageError(f"{path} names its columns and has no rows. Add rows below line {first}.")
    return lines, columns


def _csv(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV; its delimiter is that of , ; and tab which its first line has most of."""
    head = re.split("[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    head = re.sub('"[^"]*"', "", head)  # what is quoted delimits nothing
    delimiter = max(",;\t", key=head.count)
    before = csv.field_size_limit(LONGEST)
    # With strict, a quotation mark that is left open is an error and does not swallow the rest.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise UsageError(
            f"{path}, line {reader.line_num}: {error}. A text in quotation marks ends with one, "
            'and " inside it is written "".'
        ) from None
    finally:
        csv.field_size_limit(before)


def _objects(path: Path, text: str) -> tuple[list[int], dict[str, list[Any]]]:
    """Lines and columns of a JSONL; a key that an object lacks is None there."""
    lines: list[int] = []
    columns: dict[str, list[Any]] = {}
    example = 'for example {"text": "…", "label": 1}'
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{path}, line {number}: not JSON ({error.msg}, character {error.pos + 1}). A "
                f"JSONL file has one object a line, {example}."
            ) from None
        except (ValueError, RecursionError) as error:  # a number too long, or too deep a nesting
            raise UsageError(
                f"{path}, line {number}: cannot be read ({error}). Shorten or remove it: a line "
                f"holds one object, {example}."
            ) from None
        if not isinstance(found, dict):
            raise UsageError(
                f"{path}, line {number}: a JSON {type(found).__name__}, not an object. Every line "
                f"is one object, {example}."
            )
        for name in found:
            columns.setdefault(name, [None] * len(lines))
        for name, column in columns.items():
            column.append(found.get(name))
        lines.append(number)
    return lines, columns
