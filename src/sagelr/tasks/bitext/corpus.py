"""Sentences and their translations from any source, in the splits that they come in."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sagelr.errors import UsageError
from sagelr.tasks import hub
from sagelr.tasks.language.tables import read_text
from sagelr.tasks.splits import ROLES

if TYPE_CHECKING:
    from datasets import Dataset

Languages = tuple[str, str]  # of the source and of the target


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations.

    Attributes:
        source, target: one sentence each; equally many.
        names: of the files or columns that they are from, for messages.
        unit: what a place in them is called.
    """

    source: Sequence[str]
    target: Sequence[str]
    names: tuple[str, str]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.source)

    def pick(self, rows: Sequence[int]) -> Self:
        """Some of the pairs, where that leaves out any."""
        if len(rows) == len(self):
            return self
        source, target = ([side[row] for row in rows] for side in (self.source, self.target))
        return type(self)(source, target, self.names, self.unit)

    def empty(self) -> list[int]:
        """Rows with nothing on one side or on both."""
        both = zip(self.source, self.target, strict=True)
        return [row for row, (source, target) in enumerate(both) if not source or not target]

    def where(self, row: int) -> str:
        """An empty sentence of a row, as a message names it."""
        return f"{self.names[0] if not self.source[row] else self.names[1]}, {self.unit} {row + 1}"


@dataclass(frozen=True)
class Corpus:
    """A corpus as it was found.

    Attributes:
        name: for people.
        source: files, folder or data set.
        loader: which loader, and where from.
        languages: of the source and of the target.
        splits: by role: train, and validation and test where there are such.
        notices: what the user should know.
    """

    name: str
    source: str
    loader: str
    languages: Languages
    splits: Mapping[str, Pairs]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A corpus that others report on.

    Attributes:
        title: as people call it.
        hub, configuration, revision: where the hub has it.
        files: what a folder of it holds, and how one gets it.
    """

    title: str
    hub: str
    configuration: str | None
    revision: str | None
    files: str


BENCHMARKS = {
    "multi30k": Benchmark(
        "Multi30k (Elliott et al., 2016)",
        "bentrevett/multi30k",
        None,
        None,
        "task 1 of the GitHub repository multi30k/dataset, unpacked: train, val and test2016 or "
        "test_2016_flickr, each with .de and .en",
    ),
    # The rows of fairseq's prepare-iwslt14.sh: 160,239 / 7,283 / 6,750, in Moses' tokens and lower
    # case. Its repository holds a script, so what is loaded is the hub's own copy as parquet.
    "iwslt14": Benchmark(
        "IWSLT'14 German-English (Cettolo et al., 2014)",
        "bbaaaa/iwslt14-de-en-preprocess",
        None,
        "refs/convert/parquet",
        "what fairseq's prepare-iwslt14.sh leaves in iwslt14.tokenized.de-en/tmp: train, valid "
        "and test, each with .de and .en (those beside tmp are cut into subwords already)",
    ),
    "wmt16": Benchmark(
        "WMT'16 German-English (Bojar et al., 2016)",
        "wmt/wmt16",
        "de-en",
        None,
        "the news translation task's training data and test sets as plain text: train, valid and "
        "test, each with .de and .en",
    ),
}


def load(
    data: str, configuration: str | None, revision: str | None, languages: Languages
) -> Corpus:
    """A benchmark, a folder, or a data set of the hub; for a benchmark, a folder is looked for.

    Args:
        data: name of a benchmark, a folder, or a name of the hub.
        configuration: of a data set of the hub.
        revision: of a data set of the hub.
        languages: ends of file names in a folder, names of columns on the hub.

    Raises:
        UsageError: there is no such thing, or something about it is wrong.
    """
    if Path(data).is_dir():
        return from_folder(Path(data), languages, Path(data).resolve().name)
    if Path(data).exists():
        raise UsageError(
            f"task.data = {data!r} is a file. Translations are two files, of which line N in one "
            "is the translation of line N in the other: --set task.source=FILE --set "
            "task.target=FILE"
        )
    known = BENCHMARKS.get(data)
    if known is None:
        otherwise = (
            "With two files of one's own: --set task.source=FILE --set task.target=FILE. With a "
            f"folder of train, validation and test files: --set task.data=DIR. Benchmarks: "
            f"{', '.join(BENCHMARKS)}."
        )
        return from_hub(data, configuration, revision, languages, data, otherwise)
    shared = os.environ.get("SAGELR_DATA")
    if shared and (Path(shared) / data).is_dir():
        return from_folder(Path(shared) / data, languages, known.title)
    otherwise = (
        f"To go without the hub, get {known.files}; put them into a folder, and give it by --set "
        f"task.data=DIR or as $SAGELR_DATA/{data}."
    )
    return from_hub(
        known.hub, known.configuration, known.revision, languages, known.title, otherwise
    )


# -- files ----------------------------------------------------------------------------------------


def read_pairs(source: Path, target: Path) -> Pairs:
    """Two files in UTF-8, of which line N in one is the translation of line N in the other.

    Only a newline ends a line: other signs that Unicode counts as line ends stay text.

    Raises:
        UsageError: one cannot be read, is not UTF-8 or is empty, or their lengths differ.
    """
    sides = [_lines(path) for path in (source, target)]
    counts = [len(side) for side in sides]
    if counts[0] != counts[1]:
        shorter = (source, target)[counts.index(min(counts))]
        raise UsageError(
            f"{source} has {counts[0]:,} lines and {target} has {counts[1]:,}. Line N of one has "
            f"to be the translation of line N of the other; {shorter} ends after line "
            f"{min(counts):,}. Look for a line that is missing, or that is broken in two."
        )
    return Pairs(sides[0], sides[1], (str(source), str(target)))


def _lines(path: Path) -> list[str]:
    lines = read_text(path).removesuffix("\n").split("\n")
    if lines == [""]:
        raise UsageError(f"{path} is empty. It has to hold one sentence a line.")
    return [line.strip() for line in lines]


def from_files(files: Mapping[str, tuple[Path, Path]], languages: Languages) -> Corpus:
    """The user's own pairs of files, by role.

    Raises:
        UsageError: a file is wrong; the message says which, and where.
    """
    splits = {role: read_pairs(*pair) for role, pair in files.items()}
    shown = ", ".join(f"{source} with {target}" for source, target in files.values())
    source, target = files["train"]
    name = f"{source.name} and {target.name}"
    return _corpus(name, shown, f"local files: {shown}", languages, splits)


def from_folder(folder: Path, languages: Languages, name: str) -> Corpus:
    """A folder with train, validation and test files, named as usual and ending in the language.

    Example of what it finds: train.de and train.en, val.de and val.en, test2016.de and test2016.en.

    Raises:
        UsageError: there is no pair of training files, or there are two for one split.
    """
    ends = [f".{language}" for language in languages]
    files: dict[str, tuple[Path, Path]] = {}
    for source in sorted(folder.iterdir()):
        target = folder / (source.name.removesuffix(ends[0]) + ends[1])
        word = re.match("[a-z]*", source.name.lower())
        role = ROLES.get(word[0] if word else "")
        if role is None or not source.name.endswith(ends[0]) or not target.is_file():
            continue
        if role in files:
            raise UsageError(
                f"{folder} has two pairs of files for {role}: {files[role][0].name} and "
                f"{source.name}. Leave one in the folder, or name each file: task.source, "
                "task.target, task.validation_source and so on."
            )
        files[role] = (source, target)
    if "train" not in files:
        here = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise UsageError(
            f"{folder} has no train{ends[0]} with a train{ends[1]} beside it; it has {here}. Name "
            f"its files train, valid and test, each with {ends[0]} and {ends[1]}, or say which "
            "languages: --set task.source_language=… --set task.target_language=…"
        )
    splits = {role: read_pairs(*pair) for role, pair in files.items()}
    return _corpus(name, str(folder), f"local files: {folder}", languages, splits)


# -- the hub --------------------------------------------------------------------------------------


def from_hub(
    name: str,
    configuration: str | None,
    revision: str | None,
    languages: Languages,
    title: str,
    otherwise: str,
) -> Corpus:
    """A data set of the hub: a column for each language, or one column `translation` of both.

    Args:
        name: as datasets.load_dataset takes it.
        configuration: the same.
        revision: the same.
        languages: names of the columns.
        title: for people.
        otherwise: what to do where it cannot be had.

    Raises:
        UsageError: it cannot be had, or lacks a language or a training split.
    """
    found = hub.load_dataset(name, configuration, otherwise, revision=revision)
    splits = {}
    for split, rows in found.items():
        role = ROLES.get(str(split).lower())
        if role is not None:
            splits[role] = _columns(f"{name}, split {split}", rows, languages)
    if "train" not in splits:
        raise UsageError(
            f"The hub's data set {name} has no train split; it has {', '.join(map(str, found))}."
        )
    loader = hub.said(name, configuration, revision)
    return _corpus(title, f"hub: {name}", loader, languages, splits)


def _columns(name: str, rows: Dataset, languages: Languages) -> Pairs:
    flat = rows.flatten()  # translation: {de, en} becomes translation.de, translation.en
    sides, names = [], []
    for language in languages:
        column = next(
            (each for each in (language, f"translation.{language}") if each in flat.column_names),
            None,
        )
        if column is None:
            raise UsageError(
                f"{name} has no column for {language!r}; it has {', '.join(flat.column_names)}. "
                "Say which: --set task.source_language=… --set task.target_language=…"
            )
        sides.append([(text or "").strip() for text in flat[column][:]])
        names.append(f"{name}, column {column}")
    return Pairs(sides[0], sides[1], (names[0], names[1]), "row")


# -- both -----------------------------------------------------------------------------------------


def _corpus(
    name: str, source: str, loader: str, languages: Languages, splits: Mapping[str, Pairs]
) -> Corpus:
    """A corpus without the training pairs that lack a side.

    Raises:
        UsageError: a pair that is scored lacks a side, or no training pair is left.
    """
    notices, kept = [], dict(splits)
    for role, pairs in splits.items():
        empty = pairs.empty()
        if not empty:
            continue
        if role != "train":
            raise UsageError(
                f"{pairs.where(empty[0])} is empty. Every sentence that is scored needs its "
                "translation: fill it in, or remove the line from both sides."
            )
        gone = set(empty)
        kept[role] = pairs.pick([row for row in range(len(pairs)) if row not in gone])
        if not kept[role]:
            raise UsageError(f"{pairs.names[0]}: every sentence lacks its translation.")
        notices.append(
            f"{len(empty):,} training pairs lack a side and are left out; the first: "
            f"{pairs.where(empty[0])}."
        )
    return Corpus(name, source, loader, languages, kept, tuple(notices))
