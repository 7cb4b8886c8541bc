"""Which column is the text, which the label, and what the label is: guessed, and told."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sagelr.errors import UsageError
from sagelr.tasks.language.tables import Table

# Names that say what a column is, the surest first; compared without regard to case.
LABELS = (
    *("label", "labels", "gold_label", "class", "category", "target", "sentiment", "score"),
    *("rating", "stars", "similarity", "is_duplicate", "quality", "y"),
)
PAIRS = (
    *(("sentence1", "sentence2"), ("text1", "text2"), ("text_a", "text_b"), ("text", "text_pair")),
    *(("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence")),
    *(("question", "answer"), ("question", "context"), ("question", "passage")),
    *(("query", "passage"), ("query", "document")),
)
TEXTS = (
    *("text", "sentence", "review", "content", "comment", "message", "tweet", "body"),
    *("document", "question", "description", "title"),
)
SCORES = ("score", "rating", "similarity")  # names that say that a number is a score
SURROGATE = re.compile("[\ud800-\udfff]")
WHOLE = re.compile(r"^([+-]?\d+)\.0*$")
COMMA = re.compile(r"-?\d+,\d+")  # a number as half of the world writes it
CLASSES = 100  # more different values are taken for classes only when the user says so


@dataclass(frozen=True)
class Columns:
    """The columns that are read, by name, and what the guesses were."""

    text: str
    pair: str | None
    label: str
    guessed: tuple[str, ...]

    def __str__(self) -> str:
        texts = f"text from {self.text!r}"
        if self.pair is not None:
            texts += f" and {self.pair!r}"
        said = f"{texts}, label from {self.label!r}"
        if not self.guessed:
            return said
        keys = ", ".join(f"--set task.{key}=NAME" for key in self.guessed)
        return f"{said} (guessed; to choose another: {keys})"


def find_columns(table: Table, text: str | None, pair: str | None, label: str | None) -> Columns:
    """The columns of a table, as named by the user and else guessed.

    Args:
        table: what to look at.
        text: the name that the user gave, if any.
        pair: the same for the second text.
        label: the same for the label.

    Raises:
        UsageError: a named column is missing, or nothing looks like what is wanted.
    """
    for key, name in (("text", text), ("text_pair", pair), ("label", label)):
        if name is not None and name not in table.columns:
            raise UsageError(
                f"{table.name} has no column {name!r}, which task.{key} names. "
                f"Its columns: {', '.join(table.columns)}."
            )
    guessed = []
    if label is None:
        label = _label(table, {text, pair})
        guessed.append("label")
    if text is None:
        text, found = _texts(table, {label, pair})
        pair = pair or found
        guessed = ["text", *(["text_pair"] if found else []), *guessed]
    if len({text, pair, label}) < 3:
        raise UsageError(
            f"{table.name}: text, text_pair and label have to be different columns; they are "
            f"{text!r}, {pair!r} and {label!r}."
        )
    headed = table.unit == "line" and not table.name.endswith(".jsonl")
    if (
        headed
        and "label" in guessed
        and label in {str(value).strip() for value in table.columns[label]}
    ):
        raise UsageError(
            f"{table.name}: {label!r} in the first line is also a value below it, so that line "
            "seems to be a row. Put a line with names of columns above it, for example: "
            f"text,label; or, if it is the name of the column too, --set task.label={label}"
        )
    return Columns(text, pair, label, tuple(guessed))


def _label(table: Table, taken: set[str | None]) -> str:
    names = {name.lower(): name for name in table.columns if name not in taken}
    for name in LABELS:
        if name in names:
            return names[name]
    # Else the column with the fewest values, each of which comes again; the last one of equals.
    few = {}
    for name in names.values():
        values = len({str(value) for value in table.columns[name]})
        if 2 <= values <= min(CLASSES, len(table) // 2):
            few[name] = values
    if not few:
        raise UsageError(
            f"{table.name}: no column looks like a label, by its name or by having few different "
            f"values. Its columns: {', '.join(table.columns)}. Say which: --set task.label=NAME"
        )
    return min(reversed(few), key=lambda name: few[name])


def _texts(table: Table, taken: set[str | None]) -> tuple[str, str | None]:
    names = {name.lower(): name for name in table.columns if name not in taken}
    if None in taken:  # the user names no second text
        for first, second in PAIRS:
            if first in names and second in names:
                return names[first], names[second]
    for name in TEXTS:
        if name in names:
            return names[name], None
    # Else the column with the longest text.
    lengths = {}
    for name in names.values():
        values = table.columns[name]
        strings = all(isinstance(value, str) for value in values)
        if strings and any(number(value) is None for value in values):
            lengths[name] = sum(map(len, values)) / len(values)
    if not lengths:
        raise UsageError(
            f"{table.name}: no column holds text beside the label. Its columns: "
            f"{', '.join(table.columns)}. Say which: --set task.text=NAME"
        )
    return max(lengths, key=lambda name: lengths[name]), None


def texts_of(table: Table, column: str) -> list[str]:
    """A column of text.

    Raises:
        UsageError: there is none, or something in it is no text.
    """
    if column not in table.columns:
        raise UsageError(
            f"{table.name} has no column {column!r}, from which the training data's text is taken. "
            f"Its columns: {', '.join(table.columns)}. Give every file the same columns."
        )
    values = table.columns[column]
    for row, value in enumerate(values):
        _check_whole(table, row, column, value)
        if not isinstance(value, str):
            what = "nothing" if value is None else f"{value!r}"
            raise UsageError(f"{table.where(row)}: {column} holds {what} where text is wanted.")
    return list(values)


def _check_whole(table: Table, row: int, column: str, value: Any) -> None:
    if isinstance(value, str) and not value.isascii() and SURROGATE.search(value):
        raise UsageError(
            f"{table.where(row)}: {column} holds half of a character (a surrogate without the "
            "other half), as when an emoji was cut. Mend the text."
        )


def is_score(kind: str, tables: Sequence[Table], column: str) -> tuple[bool, str]:
    """Whether labels are scores or classes, and why.

    Args:
        kind: "auto", "classification" or "regression", as the user chose.
        tables: all that have labels.
        column: the label's.

    Raises:
        UsageError: it cannot be told, or the choice does not fit the values.
    """
    values = {name for _, _, name in _labels(tables, column)}
    numbers = {value: number(value) for value in values}
    numeric = all(each is not None for each in numbers.values())
    others = [value for value, each in numbers.items() if each is None]
    if others and kind != "classification" and all(map(COMMA.fullmatch, others)):
        word = min(others)
        raise UsageError(
            f"{tables[0].name}: {column} holds numbers with a comma, such as {word!r}. Write "
            f"{word.replace(',', '.')} for {word}; if they are the names of classes, --set "
            "task.kind=classification"
        )
    if kind != "auto":
        if kind == "regression" and not numeric:
            raise UsageError(
                f'{tables[0].name}: task.kind = "regression" wants numbers, and {column} holds '
                f'{others[0]!r}. Use task.kind = "classification", or choose another task.label.'
            )
        return kind == "regression", f"as task.kind says ({kind})"
    if numeric:
        if any(each % 1 for each in numbers.values()):  # type: ignore[operator]
            return True, "numbers with fractions"
        if column.lower() in SCORES and len(values) > 2:
            return True, f"numbers in a column called {column}"
    else:
        _check_finite(tables, column, numbers)
    if len(values) > CLASSES:
        raise UsageError(
            f"{tables[0].name}: {column} has {len(values):,} different values. If they are scores, "
            "--set task.kind=regression; if they are classes, --set task.kind=classification; if "
            "it is the wrong column, --set task.label=NAME"
        )
    return False, f"{len(values)} different values"


def classes_of(tables: Sequence[Table], column: str) -> list[str]:
    """The classes in the training data, in order: by number if all are numbers, else by name.

    Raises:
        UsageError: there is only one, or another table has one that is not there.
    """
    found = {name for _, _, name in _labels(tables[:1], column)}
    if len(found) < 2:
        raise UsageError(
            f"{tables[0].name}: every label in {column} is {next(iter(found))!r}. There has to be "
            "a second class to tell it from. Is it the right column? --set task.label=NAME"
        )
    for table, row, name in _labels(tables[1:], column):
        if name not in found:
            raise UsageError(
                f"{table.where(row)}: the label {name!r} is not in the training data, which has "
                f"{', '.join(sorted(found)[:10])}."
            )
    whole = all((each := number(value)) is not None and each % 1 == 0 for value in found)
    # "7" and "07" are one number and two classes.
    return sorted(found, key=lambda name: (float(name), name)) if whole else sorted(found)


def labels_of(table: Table, column: str, classes: Sequence[str] | None) -> list[int] | list[float]:
    """The labels of a table: places in `classes`, or numbers where there are none."""
    found = [name for _, _, name in _labels([table], column)]
    if classes is None:
        return [float(value) for value in found]
    places = {name: place for place, name in enumerate(classes)}
    return [places[value] for value in found]


def _check_finite(
    tables: Sequence[Table], column: str, numbers: Mapping[str, float | None]
) -> None:
    """See that no infinity is among labels that else are numbers.

    Raises:
        UsageError: naming the row.
    """
    others = {value for value, each in numbers.items() if each is None}
    if len(others) == len(numbers) or not all(map(_is_infinite, others)):
        return
    table, row, name = next(each for each in _labels(tables, column) if each[2] in others)
    raise UsageError(
        f"{table.where(row)}: {column} holds {name!r} among numbers. Mend the row or remove it; if "
        "it is the name of a class, --set task.kind=classification"
    )


def _labels(tables: Sequence[Table], column: str) -> Iterator[tuple[Table, int, str]]:
    """Every label as a string, with the place it stands; 1.0 is 1, as another file may write it.

    Raises:
        UsageError: one is missing, or is no text.
    """
    for table in tables:
        if column not in table.columns:
            raise UsageError(
                f"{table.name} has no column {column!r}, where {tables[0].name} has the label. Its "
                f"columns: {', '.join(table.columns)}. Give every file the same columns."
            )
        for row, value in enumerate(table.columns[column]):
            if value is None or str(value).strip().lower() in ("", "nan"):
                raise UsageError(
                    f"{table.where(row)}: {column} is empty. Every row needs its label: fill it "
                    "in, or remove the row."
                )
            if isinstance(value, list | dict):
                raise UsageError(
                    f"{table.where(row)}: {column} holds {value!r} where one label is wanted. Give "
                    "each row one class or one score, or choose another column: --set "
                    "task.label=NAME"
                )
            _check_whole(table, row, column, value)
            yield table, row, WHOLE.sub(r"\1", str(value).strip())


def _is_infinite(value: str) -> bool:
    try:
        return math.isinf(float(value))
    except ValueError:
        return False


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, str) and "_" in value:  # Python's own way to write one
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
