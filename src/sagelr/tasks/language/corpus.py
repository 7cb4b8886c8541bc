"""Texts with labels from any source, in the splits that they come in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sagelr.errors import UsageError
from sagelr.tasks import hub
from sagelr.tasks.language import columns
from sagelr.tasks.language.tables import KINDS, Table, read_table
from sagelr.tasks.splits import ROLES

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Rows:
    """Texts, second texts where there are any, and labels: places in the classes, or scores."""

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: Sequence[int] | Sequence[float]

    def __len__(self) -> int:
        return len(self.texts)

    def pick(self, rows: Sequence[int]) -> Self:
        """Some of the rows."""
        pairs = None if self.pairs is None else [self.pairs[row] for row in rows]
        return replace(
            self,
            texts=[self.texts[row] for row in rows],
            pairs=pairs,
            labels=[self.labels[row] for row in rows],
        )

    def keys(self) -> list[tuple[str, str | None]]:
        """What a model sees of each row: equal for rows that repeat each other."""
        pairs = [None] * len(self) if self.pairs is None else self.pairs
        return list(zip(self.texts, pairs, strict=True))


@dataclass(frozen=True)
class Corpus:
    """A data set as it was found.

    Attributes:
        name: for people.
        source: file, folder or data set.
        loader: a sentence: which loader, and where from.
        splits: by role: train, and validation and test where there are such.
        classes: names of the classes in order; None for scores.
        scores: names of the metrics that go with it.
        notices: what the user should know.
        standardize: whether scores are to be brought to mean 0 and deviation 1 for training.
    """

    name: str
    source: str
    loader: str
    splits: Mapping[str, Rows]
    classes: Sequence[str] | None
    scores: tuple[str, ...]
    notices: tuple[str, ...] = ()
    standardize: bool = False


def digest(splits: Sequence[Rows]) -> str:
    """SHA-256 over every text and label, in order."""
    whole = hashlib.sha256()
    for rows in splits:
        for (text, pair), label in zip(rows.keys(), rows.labels, strict=True):
            whole.update(repr((text, pair, label)).encode())
        whole.update(b"\0")
    return whole.hexdigest()


def from_files(
    files: Mapping[str, Path],
    *,
    kind: str,
    text: str | None,
    pair: str | None,
    label: str | None,
) -> Corpus:
    """The user's own tables: one file by role.

    Raises:
        UsageError: a file, a column or a label is wrong; the message says where.
    """
    tables = {role: read_table(path) for role, path in files.items()}
    shown = ", ".join(str(path) for path in files.values())
    return _from_tables(
        tables,
        Path(files["train"]).name,
        shown,
        f"local files: {shown}",
        kind=kind,
        found=columns.find_columns(tables["train"], text, pair, label),
    )


def from_hub(
    name: str,
    configuration: str | None,
    *,
    kind: str,
    text: str | None,
    pair: str | None,
    label: str | None,
) -> Corpus:
    """A data set of the hub, its splits told by their names.

    Raises:
        UsageError: it cannot be had, has no training split, or a column is wrong.
    """
    found = hub.load_dataset(
        name,
        configuration,
        f"If {name} is meant to be a file, there is none; a file ends in {', '.join(KINDS)}.",
    )
    tables: dict[str, Table] = {}
    for split, rows in found.items():
        role = ROLES.get(str(split).lower())
        if role is not None:
            tables[role] = _table(f"{name}, split {split}", rows)
    if "train" not in tables:
        raise UsageError(
            f"The data set {name} has no train split; it has {', '.join(map(str, found))}. "
            "Save the rows to train on as a .jsonl file, and give task.data that file."
        )
    chosen = columns.find_columns(tables["train"], text, pair, label)
    tables = {
        role: table for role, table in tables.items() if role == "train" or _labelled(table, chosen)
    }
    shown = name if configuration is None else f"{name}, {configuration}"
    return _from_tables(
        tables, shown, f"hub: {shown}", hub.said(name, configuration), kind=kind, found=chosen
    )


def _from_tables(
    tables: Mapping[str, Table],
    name: str,
    source: str,
    loader: str,
    *,
    kind: str,
    found: columns.Columns,
) -> Corpus:
    labelled = [tables["train"], *(table for role, table in tables.items() if role != "train")]
    score, why = columns.is_score(kind, labelled, found.label)
    classes = None if score else columns.classes_of(labelled, found.label)
    splits = {
        role: Rows(
            columns.texts_of(table, found.text),
            None if found.pair is None else columns.texts_of(table, found.pair),
            columns.labels_of(table, found.label, classes),
        )
        for role, table in tables.items()
    }
    if classes is None and len(set(splits["train"].labels)) < 2:
        raise UsageError(f"{tables['train'].name}: every {found.label} is the same number.")
    shown = "a score" if classes is None else f"one of {len(classes)} classes"
    told = f"{found.label} is {shown}: {why}."
    numeric = all(columns.number(each) is not None for each in classes or ())
    if kind == "auto" and numeric:
        told += f" To change: --set task.kind={'classification' if score else 'regression'}"
    notices = [f"Columns of {name}: {found}.", told]
    for role, rows in splits.items():
        empty = [row for row, each in enumerate(rows.texts) if not each.strip()]
        if empty:
            where = tables[role].where(empty[0])
            notices.append(
                f"Rows with an empty {found.text}: {len(empty):,}; the first is {where}."
            )
    return Corpus(
        name,
        source,
        loader,
        splits,
        classes,
        ("pearson", "spearman", "rmse") if score else ("accuracy", "macro_f1"),
        tuple(notices),
        standardize=score,
    )


def _table(name: str, rows: Dataset) -> Table:
    """A split of the hub, with the names of classes in place of their numbers."""
    from datasets import ClassLabel

    values: dict[str, Any] = {}
    for column in rows.column_names:
        feature = rows.features[column]
        values[column] = list(rows[column])
        if isinstance(feature, ClassLabel):
            names = feature.names
            values[column] = [
                None if value is None or value < 0 else names[value] for value in values[column]
            ]
    return Table(name, values, range(len(rows)), unit="row")


def _labelled(table: Table, found: columns.Columns) -> bool:
    """Whether a split has labels; the hub gives -1 where they are kept secret."""
    values = table.columns.get(found.label, [])
    return any(value is not None and value != -1 for value in values)


def looks_like_file(data: str) -> bool:
    """Whether task.data names a file, and not a data set of the hub."""
    return Path(data).suffix.lower() in KINDS or Path(data).exists()
