"""The tasks of GLUE: their official files, the same from the hub, and the leaderboard's files.

"GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", Wang et
al., ICLR 2019. The labels of its test sets are not public. So the official development set is
reported, and what chooses settings is held out of the training data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sagelr.errors import UsageError
from sagelr.tasks import hub
from sagelr.tasks.language.corpus import Corpus, Rows
from sagelr.tasks.language.tables import fields_of, read_text

HUB = "nyu-mll/glue"
TRUTH = ("entailment", "not_entailment")
INFERENCE = ("entailment", "neutral", "contradiction")
COLA = ("source", "label", "mark", "sentence")  # the columns of a file without a header


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        title: as GLUE calls it.
        texts: columns of its text in the official files.
        label: column of its label there.
        classes: their names, by the hub's numbers; empty for a score from 0 to 5.
        scores: its metrics. Their mean is the task's score on the leaderboard.
        words: whether files hold the names of the classes, and not their numbers.
        hub_texts: columns of its text on the hub, where they have other names.
        half: "matched" or "mismatched" for MNLI, whose two variants share all but what is reported.
    """

    title: str
    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    scores: tuple[str, ...] = ("accuracy",)
    words: bool = False
    hub_texts: tuple[str, ...] = ()
    half: str = ""

    @property
    def configuration(self) -> str:
        """What the hub calls it."""
        return self.title.lower().replace("-", "")

    @property
    def dev(self) -> str:
        """Name of the official development file, without .tsv."""
        return f"dev_{self.half}" if self.half else "dev"

    @property
    def tests(self) -> dict[str, str]:
        """The leaderboard's files → the test sets that they predict, here and on the hub."""
        if self.half:
            return {"MNLI-m.tsv": "test_matched", "MNLI-mm.tsv": "test_mismatched"}
        return {f"{self.title}.tsv": "test"}


PAIR = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
EQUIVALENT = ("not_equivalent", "equivalent")
MNLI = GlueTask(
    *("MNLI", PAIR, "gold_label", INFERENCE),
    words=True,
    hub_texts=("premise", "hypothesis"),
    half="matched",
)
TASKS = {
    "cola": GlueTask(
        "CoLA", ("sentence",), "label", ("unacceptable", "acceptable"), scores=("matthews",)
    ),
    "sst2": GlueTask("SST-2", ("sentence",), "label", ("negative", "positive")),
    "mrpc": GlueTask(
        *("MRPC", ("#1 String", "#2 String"), "Quality", EQUIVALENT),
        scores=("accuracy", "f1"),
        hub_texts=PAIR,
    ),
    "stsb": GlueTask("STS-B", PAIR, "score", (), scores=("pearson", "spearman")),
    "qqp": GlueTask(
        *("QQP", QUESTIONS, "is_duplicate", ("not_duplicate", "duplicate")),
        scores=("accuracy", "f1"),
    ),
    "mnli": MNLI,
    "mnli-mm": replace(MNLI, half="mismatched"),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", TRUTH, words=True),
    "rte": GlueTask("RTE", PAIR, "label", TRUTH, words=True),
    "wnli": GlueTask("WNLI", PAIR, "label", TRUTH[::-1]),
}


def task_of(name: str | None) -> GlueTask:
    """A task by its name, in GLUE's spelling or the hub's.

    Raises:
        UsageError: there is none.

    Examples:
        >>> task_of("SST-2").title, task_of("mnli-mm").dev
        ('SST-2', 'dev_mismatched')
    """
    plain = (name or "").lower().replace("_", "-")
    for key, task in TASKS.items():
        if plain in (key, task.title.lower()):  # the mismatched half comes after the matched one
            return task
    raise UsageError(f"task.name = {name!r} is not a task of GLUE. Allowed: {', '.join(TASKS)}.")


# -- loading ------------------------------------------------------------------------------------


def load(task: GlueTask, folder: Path | None) -> Corpus:
    """A task from its official files, where there is a folder of them, and else from the hub.

    Args:
        task: which.
        folder: the task's folder, or the one that holds it; None looks in $SAGELR_DATA/glue.

    Raises:
        UsageError: the files are not what they should be, or neither way leads to the data.
    """
    found = find(task, folder)
    if found is None:
        return _from_hub(task)
    splits: dict[str, Rows] = {}
    notices = []
    for role, stem in (("train", "train"), ("test", task.dev)):
        path = found / f"{stem}.tsv"
        splits[role], broken = _read(task, path, labelled=True)
        if broken:
            lines = ", ".join(f"{line:,}" for line in broken[:3])
            notices.append(
                f"{path}: rows that lack fields, left out: {len(broken):,} (line {lines}"
                f"{', …' if len(broken) > 3 else ''})."
            )
    return _corpus(task, splits, str(found), f"local files: {found}", notices)


def find(task: GlueTask, folder: Path | None) -> Path | None:
    """The folder of a task's official files, if there is one.

    Raises:
        UsageError: a folder was named and lacks a file.
    """
    shared = os.environ.get("SAGELR_DATA")
    if folder is None and not shared:
        return None
    named = folder or Path(str(shared)) / "glue"
    files = [f"{stem}.tsv" for stem in ("train", task.dev)]
    for place in (named / task.title, named):
        if all((place / file).is_file() for file in files):
            return place
    if folder is None:
        return None
    raise UsageError(
        f"task.folder = {str(folder)!r} lacks {' or '.join(files)}, there and in its folder "
        f"{task.title}. {_wanted(task)}"
    )


def _wanted(task: GlueTask) -> str:
    """What to download, and where to put it."""
    tests = ", ".join(f"{stem}.tsv" for stem in task.tests.values())
    return (
        f"Download {task.title} from gluebenchmark.com/tasks and unpack it, so that there are "
        f"{task.title}/train.tsv and {task.title}/{task.dev}.tsv ({tests} too, for predictions); "
        f"then --set task.folder=DIR, or put {task.title} into $SAGELR_DATA/glue."
    )


def _from_hub(task: GlueTask) -> Corpus:
    found = hub.load_dataset(HUB, task.configuration, _wanted(task))
    splits = {}
    for role, split in (("train", "train"), ("test", task.dev.replace("dev", "validation"))):
        rows = found[split]
        texts = [list(rows[column]) for column in task.hub_texts or task.texts]
        labels = list(rows["label"])
        splits[role] = Rows(texts[0], texts[1] if len(texts) > 1 else None, labels)
    shown = f"{HUB}, {task.configuration}"
    return _corpus(task, splits, f"hub: {shown}", hub.said(HUB, task.configuration), [])


def _corpus(
    task: GlueTask, splits: Mapping[str, Rows], source: str, loader: str, notices: Sequence[str]
) -> Corpus:
    told = f"{task.title}: the test split is GLUE's {task.dev}; its test labels are not public."
    return Corpus(
        f"GLUE {task.title}",
        source,
        loader,
        splits,
        task.classes or None,
        task.scores,
        (told, *notices),
    )


def _read(task: GlueTask, path: Path, *, labelled: bool) -> tuple[Rows, list[int]]:
    """Rows of an official file, and the lines of those that lack fields.

    Some published files have such rows (QQP's, a few dozen); they are left out of the labelled
    ones. A test set has to stay whole.

    Raises:
        UsageError: the file is not in GLUE's form.
    """
    lines = fields_of(read_text(path))
    headless = labelled and task.configuration == "cola"
    header: list[str] = list(COLA) if headless else next(lines, (1, []))[1]
    wanted = (*task.texts, *((task.label,) if labelled else ()))
    missing = [name for name in wanted if name not in header]
    if missing:
        raise UsageError(
            f"{path}, line 1: no column {missing[0]!r} among {', '.join(header)}. "
            f"It is not GLUE's file for {task.title}: download it again."
        )
    places = [header.index(name) for name in wanted]
    columns: list[list[str]] = [[] for _ in wanted]
    labels: list[int | float] = []
    broken = []
    for line, fields in lines:
        if len(fields) <= max(places):
            if not labelled:
                raise UsageError(
                    f"{path}, line {line}: {len(fields)} fields of {len(header)}. Predictions need "
                    "the whole test set: download it again."
                )
            broken.append(line)
            continue
        for column, place in zip(columns, places, strict=True):
            column.append(fields[place])
        if labelled:
            labels.append(_label(task, columns[-1][-1], path, line))
    if not columns[0]:
        raise UsageError(f"{path} has no rows. Download it again.")
    second = columns[1] if len(task.texts) > 1 else None
    return Rows(columns[0], second, labels or [0] * len(columns[0])), broken


def _label(task: GlueTask, value: str, path: Path, line: int) -> int | float:
    allowed = task.classes if task.words else tuple(map(str, range(len(task.classes))))
    try:
        if task.classes:
            return allowed.index(value)
        # Scores are 32 bits wide on the hub; the same data are to have the same hash.
        score = float(np.float32(value))
        if not 0 <= score <= 5:  # nor is it NaN
            raise ValueError
        return score
    except ValueError:
        raise UsageError(
            f"{path}, line {line}: the label {value!r}; allowed: "
            f"{', '.join(allowed) or 'a number from 0 to 5'}. Download the file again."
        ) from None


# -- predictions --------------------------------------------------------------------------------


def test_sets(task: GlueTask, folder: Path | None) -> Iterator[tuple[str, Rows]]:
    """The leaderboard's file name, and unlabelled rows, for every test set of a task.

    MNLI's model also predicts the diagnostic set, where the local folder has it beside MNLI's.

    Raises:
        UsageError: a test set is missing.
    """
    found = find(task, folder)
    if found is None:
        data = hub.load_dataset(HUB, task.configuration, _wanted(task))
        splits = {file: data[split] for file, split in task.tests.items()}
        if task.configuration == "mnli":
            splits["AX.tsv"] = hub.load_dataset(HUB, "ax", _wanted(task))["test"]
        for file, rows in splits.items():
            texts = [list(rows[column]) for column in task.hub_texts or task.texts]
            second = texts[1] if len(texts) > 1 else None
            yield file, Rows(texts[0], second, [0] * len(texts[0]))
        return
    for file, stem in task.tests.items():
        path = found / f"{stem}.tsv"
        if not path.is_file():
            raise UsageError(f"{path} is missing, so {file} cannot be written. {_wanted(task)}")
        yield file, _read(task, path, labelled=False)[0]
    diagnostic = found.parent / "diagnostic" / "diagnostic.tsv"
    if task.configuration == "mnli" and diagnostic.is_file():
        yield "AX.tsv", _read(task, diagnostic, labelled=False)[0]


def write_predictions(path: Path, task: GlueTask, values: Sequence[int] | Sequence[float]) -> None:
    """Write a file that GLUE's leaderboard takes: index, and prediction in its words.

    Args:
        path: named as in `test_sets`.
        task: whose words are used.
        values: classes by number, or scores; a score is cut to the range from 0 to 5.
    """
    lines = ["index\tprediction"]
    for index, value in enumerate(values):
        if not task.classes:
            shown = f"{min(max(float(value), 0.0), 5.0):.3f}"
        else:
            shown = task.classes[int(value)] if task.words else str(int(value))
        lines.append(f"{index}\t{shown}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
