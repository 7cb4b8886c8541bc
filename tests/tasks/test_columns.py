"""Which column is what: guesses, the user's word, and what is wrong with a label."""

import json
from pathlib import Path
from typing import Any

import pytest

from sagelr.errors import UsageError
from sagelr.tasks.language import corpus
from sagelr.tasks.language.columns import find_columns
from sagelr.tasks.language.tables import Table

LONG = ["a rather long sentence", "another one of some length", "short", "and a last one here"]
CLASSES = ["yes", "no", "yes", "no"]


def table(**columns: list[Any]) -> Table:
    return Table("data.csv", columns, range(2, 2 + len(next(iter(columns.values())))))


GUESSED: dict[str, tuple[Table, tuple[str, str | None, str]]] = {
    "names": (
        table(id=[1, 2, 3, 4], Review=LONG, Sentiment=CLASSES),
        ("Review", None, "Sentiment"),
    ),
    "length": (table(a=["p", "q", "r", "s"], b=LONG, c=CLASSES), ("b", None, "c")),
    "pair": (
        table(premise=LONG, hypothesis=LONG, label=CLASSES),
        ("premise", "hypothesis", "label"),
    ),
    "case": (table(Question1=LONG, Question2=LONG, y=CLASSES), ("Question1", "Question2", "y")),
    "last": (table(split=CLASSES, words=LONG, answer=CLASSES), ("words", None, "answer")),
    "numbers": (
        table(n=["100000000000001"] * 4, w=["a", "b", "c", "d"], label=CLASSES),
        ("w", None, "label"),
    ),
}


@pytest.mark.parametrize("name", GUESSED)
def test_guesses(name: str) -> None:
    given, (text, pair, label) = GUESSED[name]
    found = find_columns(given, None, None, None)
    assert (found.text, found.pair, found.label) == (text, pair, label)
    assert "guessed" in str(found)
    assert repr(text) in str(found)


def test_the_users_word_goes_before_a_guess() -> None:
    given = table(text=LONG, other=LONG[::-1], label=CLASSES, split=CLASSES)
    found = find_columns(given, "other", "text", "split")
    assert (found.text, found.pair, found.label) == ("other", "text", "split")
    assert "guessed" not in str(found)


@pytest.mark.parametrize(
    ("given", "chosen", "message"),
    [
        (table(text=LONG, label=CLASSES), ("txt", None, None), "no column 'txt', which task.text"),
        (
            table(text=LONG, label=CLASSES),
            (None, None, "text2"),
            "no column 'text2', which task.la",
        ),
        (
            table(a=LONG, b=LONG),
            (None, None, None),
            "no column looks like a label.*Its columns: a, b",
        ),
        (table(label=CLASSES, n=["1", "2", "3", "4"]), (None,) * 3, "no column holds text beside"),
        (table(text=LONG, label=CLASSES), ("text", "text", None), "have to be different columns"),
        (table(great=LONG, yes=CLASSES), (None,) * 3, "'yes' in the first line is also a"),
    ],
)
def test_what_cannot_be_found(given: Table, chosen: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_columns(given, *chosen)


def load(
    folder: Path, lines: list[str], kind: str = "auto", test: list[str] | None = None
) -> corpus.Corpus:
    files = {"train": folder / "data.csv"}
    files["train"].write_text("\n".join(lines))
    if test is not None:
        files["test"] = folder / "test.csv"
        files["test"].write_text("\n".join(test))
    return corpus.from_files(files, kind=kind, text=None, pair=None, label=None)


def rows(header: str, labels: list[Any]) -> list[str]:
    delimiter = ";" if ";" in header else ","
    return [header, *(f"text number {n}{delimiter}{label}" for n, label in enumerate(labels))]


@pytest.mark.parametrize(
    ("header", "labels", "kind", "classes"),
    [
        ("text,label", ["b", "a", "b", "a"], "auto", ["a", "b"]),
        ("text,label", [10, 9, 10, 9], "auto", ["9", "10"]),
        ("text,stars", [1, 2, 3, 4], "auto", ["1", "2", "3", "4"]),
        ("text,score", [0, 1, 0, 1], "auto", ["0", "1"]),
        ("text,score", [1, 2, 3, 4], "classification", ["1", "2", "3", "4"]),
        ("text,score", [1, 2, 3, 4], "auto", None),
        ("text,label", [0.5, 1, 2.5, 3], "auto", None),
        ("text,label", [1, 2, 1, 2], "regression", None),
        ("text,label", ["inf", "to", "inf", "to"], "auto", ["inf", "to"]),
    ],
)
def test_what_a_label_is(
    tmp_path: Path, header: str, labels: list[Any], kind: str, classes: list[str] | None
) -> None:
    found = load(tmp_path, rows(header, labels), kind)
    assert found.classes == classes
    values = found.splits["train"].labels
    if classes is None:
        assert list(values) == [float(label) for label in labels]
        assert found.standardize
    else:
        assert [classes[int(value)] for value in values] == [str(label) for label in labels]
    asked = any("To change: --set task.kind" in line for line in found.notices)
    assert asked == (kind == "auto" and labels[0] not in ("b", "inf"))


def test_a_whole_number_is_the_same_label_however_it_is_written(tmp_path: Path) -> None:
    """As where one file was written from integers and the other from floats."""
    train = rows("text,label", [0, 1, "1.0", "10."])
    found = load(tmp_path, train, test=rows("text,label", ["1.0", "0.0"]))
    assert found.classes == ["0", "1", "10"]
    assert found.splits["train"].labels == [0, 1, 1, 2]
    assert found.splits["test"].labels == [1, 0]


@pytest.mark.parametrize(
    ("lines", "kind", "message"),
    [
        (rows("text,label", ["a", "", "b"]), "auto", r"data\.csv, line 3: label is empty"),
        (rows("text,label", ["a"] * 3), "auto", "every label in label is 'a'"),
        (rows("text,label", [7, 7, 7]), "regression", "every label is the same number"),
        (rows("text,label", ["a", "1"]), "regression", "wants numbers, and label holds 'a'"),
        (rows("text,label", ["nan", "1"]), "regression", "line 2: label is empty"),
        (rows("text,label", list(range(300))), "auto", "label has 300 different values"),
        (rows("text,label", [0.5, "inf", 1]), "auto", r"line 3: label holds 'inf' among numbers"),
        (rows("text;label", ["3,5", "4"]), "regression", r"data\.csv: .*Write 3\.5 for 3,5; if"),
        (rows("text;label", ["3,5", "-0,25"]), "auto", r"data\.csv: .*Write -0\.25 for -0,25; if"),
        (rows("text,label", [0.5, "inf"]), "regression", "wants numbers, and label holds 'inf'"),
    ],
)
def test_labels_that_cannot_be_right(
    tmp_path: Path, lines: list[str], kind: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load(tmp_path, lines, kind)


def test_numbers_with_a_comma_may_be_the_names_of_classes(tmp_path: Path) -> None:
    found = load(tmp_path, rows("text;label", ["3,5", "4,0", "3,5"]), "classification")
    assert found.classes == ["3,5", "4,0"]


@pytest.mark.parametrize("label", [["a", "b"], {"a": 1}])
def test_several_labels_are_none(tmp_path: Path, label: Any) -> None:
    found = [{"text": "one", "label": "a"}, {"text": "two", "label": label}] * 3
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, found)))
    with pytest.raises(UsageError, match=r"line 2: label holds [\[{]'a'.* where one label is want"):
        corpus.from_files({"train": path}, kind="auto", text=None, pair=None, label=None)


def test_a_test_file_has_to_fit(tmp_path: Path) -> None:
    train = rows("text,label", ["a", "b", "a"])
    with pytest.raises(
        UsageError, match=r"test\.csv, line 3: the label 'c' is not in the training"
    ):
        load(tmp_path, train, test=rows("text,label", ["a", "c"]))
    with pytest.raises(UsageError, match=r"test\.csv has no column 'label'"):
        load(tmp_path, train, test=rows("text,other", ["a", "b"]))


def test_empty_texts_are_told(tmp_path: Path) -> None:
    found = load(tmp_path, ["text,label", "some words,a", ",b", "more words,b"])
    assert any(
        line.startswith("Rows with an empty text: 1; the first is ") for line in found.notices
    )


def test_a_text_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": 5, "label": 0}\n{"label": 0}\n')
    with pytest.raises(UsageError, match=r"data\.jsonl, line 2: text holds 5 where text is wanted"):
        corpus.from_files({"train": path}, kind="auto", text=None, pair=None, label=None)


def _own(path: Path) -> corpus.Corpus:
    return corpus.from_files({"train": path}, kind="auto", text=None, pair=None, label=None)


def test_a_column_may_be_called_like_a_class(tmp_path: Path) -> None:
    """Where the user says so, or where names stand in every row."""
    found = find_columns(table(spam=CLASSES, text=LONG), None, None, "spam")
    assert (found.text, found.label) == ("text", "spam")
    rows = [{"text": text, "yes": label} for text, label in zip(LONG, CLASSES, strict=True)]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(_own(tmp_path / "l.jsonl").classes or ()) == ["no", "yes"]


def test_an_underscore_makes_no_number(tmp_path: Path) -> None:
    rows = [f"text {n},{n % 3}_{n % 3 + 1}" for n in range(30)]
    (tmp_path / "b.csv").write_text("\n".join(["text,score", *rows]))
    found = _own(tmp_path / "b.csv")
    assert list(found.classes or ()) == ["0_1", "1_2", "2_3"]


def test_classes_that_are_one_number_have_an_order(tmp_path: Path) -> None:
    rows = [f"text {n},{('1', '01', '001', '2')[n % 4]}" for n in range(40)]
    (tmp_path / "c.csv").write_text("\n".join(["text,label", *rows]))
    found = _own(tmp_path / "c.csv")
    assert found.classes is not None
    assert list(found.classes) == ["001", "01", "1", "2"]
