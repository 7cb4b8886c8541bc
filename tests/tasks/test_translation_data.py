"""Reading translations: what was written is read, what is wrong is named with file and line."""

import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sagelr.errors import UsageError
from sagelr.tasks.bitext import corpus, number_words
from sagelr.tasks.bitext.options import TransformerOptions, TranslationOptions
from sagelr.tasks.translation import Translation

DE_EN = ("de", "en")
# A line ends at a newline and nowhere else; a carriage return before one goes with it.
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff")).filter(
    lambda line: line == line.strip() != ""
)


def write(folder: Path, **files: str | bytes) -> None:
    """Files such as train_de="…", which is train.de."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("_", ".")).write_bytes(raw)


def task(**data: Any) -> Translation:
    model = {"hidden": 8, "layers": 1, "heads": 2, "feed_forward": 8}
    return Translation(
        TranslationOptions(vocabulary=300, **data), TransformerOptions.model_validate(model)
    )


def told(made: Translation) -> str:
    return "\n".join(made.notices())


# -- files ----------------------------------------------------------------------------------------


@given(rows=st.lists(st.tuples(LINE, LINE), min_size=1), ending=st.sampled_from(["\n", "\r\n"]))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], ending: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    sides = [ending.join(side) for side in zip(*rows, strict=True)]
    write(folder, a_de=sides[0], a_en=sides[1] + ending)  # with an end of the last line, or without
    pairs = corpus.read_pairs(folder / "a.de", folder / "a.en")
    assert list(zip(pairs.source, pairs.target, strict=True)) == rows


def test_signs_that_unicode_calls_line_ends_are_text(tmp_path: Path) -> None:
    write(tmp_path, a_de="\ufeffeins\u2028zwei\ndrei\n", a_en="one\x85two\nthree\n")
    pairs = corpus.read_pairs(tmp_path / "a.de", tmp_path / "a.en")
    assert pairs.source == ["eins\u2028zwei", "drei"]
    assert pairs.target == ["one\x85two", "three"]


@pytest.mark.parametrize(
    ("de", "en", "message"),
    [
        (
            "a\nb\nc\n",
            "a\nb\n",
            r"a\.de has 3 lines and .*a\.en has 2\..*a\.en ends after line 2\. Look for",
        ),
        ("a\nb\n", b"a\n\xe4b\n", r"a\.en, line 2: byte 0xe4 is not UTF-8 text\. Save"),
        ("", "a\n", r"a\.de is empty\. It has to hold one sentence a line"),
        ("\n \n", "a\nb\n", r"every sentence lacks its translation"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, de: str, en: str | bytes, message: str) -> None:
    write(tmp_path, a_de=de, a_en=en)
    with pytest.raises(UsageError, match=message):
        task(source=tmp_path / "a.de", target=tmp_path / "a.en")


def test_a_missing_file(tmp_path: Path) -> None:
    write(tmp_path, a_de="a\n")
    with pytest.raises(UsageError, match=r"a\.en: No such file"):
        task(source=tmp_path / "a.de", target=tmp_path / "a.en")


def numbers(count: int, start: int = 0) -> tuple[str, str]:
    rows = range(start, start + count)
    return "\n".join(f"Zahl {n}" for n in rows), "\n".join(f"number {n}" for n in rows)


def test_training_pairs_without_a_side_are_left_out_and_told(tmp_path: Path) -> None:
    de, en = numbers(40)
    write(tmp_path, a_de=de.replace("Zahl 7\n", "\n"), a_en=en.replace("number 9\n", "  \n"))
    made = task(source=tmp_path / "a.de", target=tmp_path / "a.en")
    assert sum(made.describe()["rows"].values()) == 38
    assert (
        f"2 training pairs lack a side and are left out; the first: {tmp_path}/a.de, line 8."
        in (told(made))
    )


def test_a_scored_pair_has_both_sides(tmp_path: Path) -> None:
    de, en = numbers(40)
    write(tmp_path, train_de=de, train_en=en, test_de="eins\nzwei", test_en="one\n")
    write(tmp_path, test_en="one\n\n")
    with pytest.raises(UsageError, match=r"test\.en, line 2 is empty\. Every sentence that is sco"):
        task(data=str(tmp_path), source_language="de", target_language="en")


# -- splits ---------------------------------------------------------------------------------------


def test_one_pair_of_files_becomes_three_splits(tmp_path: Path) -> None:
    de, en = numbers(100)
    write(tmp_path, a_de=de, a_en=en)
    files = {"source": tmp_path / "a.de", "target": tmp_path / "a.en"}
    made = task(**files)
    described = made.describe()
    assert described["rows"] == {"train": 80, "validation": 10, "test": 10}
    assert described["languages"] == ["de", "en"]
    assert described["loader"].startswith("local files: ")
    seen = [row["text"] for split in (made.train, made.validation, made.test) for row in split]  # type: ignore[attr-defined]
    assert sorted(seen) == sorted(en.split("\n"))
    assert "validation 10 pairs (held out of the training data, seed 0)" in told(made)
    assert task(**files).describe() == described
    assert task(**files, split_seed=1).describe()["sha256"] != described["sha256"]
    few = task(**files, validation=0.05, test=7, limit=20)
    assert few.describe()["rows"] == {"train": 20, "validation": 5, "test": 7}


def test_sentences_that_come_again_stay_in_one_split(tmp_path: Path) -> None:
    write(
        tmp_path,
        a_de="\n".join(f"Satz {n % 30}" for n in range(120)),
        a_en="\n".join(f"sentence {n}" for n in range(120)),
    )
    made = task(source=tmp_path / "a.de", target=tmp_path / "a.en")
    sources = [set(pairs.source) for pairs in made._pairs.values()]
    assert sum(map(len, sources)) == len(set.union(*sources)) == 30


def test_files_of_their_own(tmp_path: Path) -> None:
    for name, count in (("a", 50), ("b", 6), ("c", 4)):
        de, en = numbers(count)
        write(tmp_path, **{f"{name}_de": de, f"{name}_en": en})
    paths = [tmp_path / f"{name}.{language}" for name in "abc" for language in DE_EN]
    splits = ("", "validation_", "test_")
    keys = [f"{split}{side}" for split in splits for side in ("source", "target")]
    made = task(**dict(zip(keys, paths, strict=True)))
    assert made.describe()["rows"] == {"train": 50, "validation": 6, "test": 4}
    alone = task(**dict(zip(keys[:4], paths[:4], strict=True)))
    assert alone.describe()["rows"] == {"train": 45, "validation": 6, "test": 5}


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    de, en = numbers(50)
    write(tmp_path / "multi30k", train_de=de, train_en=en, val_de=de, val_en=en)
    write(tmp_path / "multi30k", test2016_de="eins", test2016_en="one", notes_de="", train_fr="")
    languages = {"source_language": "en", "target_language": "de"}
    made = task(data=str(tmp_path / "multi30k"), **languages)
    assert made.describe()["rows"] == {"train": 50, "validation": 50, "test": 1}
    assert made.test[0]["text"] == "eins"
    monkeypatch.setenv("SAGELR_DATA", str(tmp_path))
    found = task(data="multi30k", **languages).describe()
    assert found["loader"] == f"local files: {tmp_path / 'multi30k'}"
    assert found["name"] == "Multi30k (Elliott et al., 2016)"
    assert found["sha256"] == made.describe()["sha256"]


def test_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    de, en = numbers(50)
    write(tmp_path, train_de=de, train_en=en, test2016_de=de, test2016_en=en)
    with pytest.raises(UsageError, match=r"has no train\.de with a train\.fr beside it; it has"):
        corpus.from_folder(tmp_path, ("de", "fr"), "x")
    write(tmp_path, test2017_de=de, test2017_en=en)
    with pytest.raises(UsageError, match=r"two pairs of files for test: test2016\.de and test2017"):
        corpus.from_folder(tmp_path, DE_EN, "x")
    with pytest.raises(UsageError, match=r"train\.de' is a file\. Translations are two files"):
        corpus.load(str(tmp_path / "train.de"), None, None, DE_EN)


# -- the hub --------------------------------------------------------------------------------------

ROWS = [{"de": f"Zahl {n}", "en": f"number {n}"} for n in range(40)]
COLUMNS = {language: [row[language] for row in ROWS] for language in DE_EN}


@pytest.mark.parametrize("columns", [{"translation": ROWS}, COLUMNS], ids=["nested", "flat"])
def test_a_data_set_of_the_hub(columns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*names: Any, **more: Any) -> datasets.DatasetDict:
        asked.append((names, more))
        whole = datasets.Dataset.from_dict(columns)
        parts = {"train": whole, "validation": whole.select(range(5)), "extra": whole}
        return datasets.DatasetDict(parts)  # type: ignore[arg-type]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    languages = {"source_language": "de", "target_language": "en"}
    made = task(data="some/corpus", name="de-en", revision="v1", **languages)
    assert asked == [(("some/corpus", "de-en"), {"revision": "v1"})]
    assert made.describe()["rows"] == {"train": 36, "validation": 4, "test": 5}
    assert made.describe()["loader"] == (
        "the hub, datasets.load_dataset('some/corpus', 'de-en', revision='v1')"
    )
    assert made.test[3]["text"] == "number 3"
    with pytest.raises(
        UsageError, match=r"some/corpus, split train has no column for 'fr'; it has"
    ):
        corpus.load("some/corpus", None, None, ("de", "fr"))


@pytest.mark.parametrize("name", corpus.BENCHMARKS)
def test_without_a_network_it_says_what_to_get_and_where_to_put_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGELR_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        corpus.load(name, None, None, DE_EN)
    said = str(caught.value)
    assert "The hub cannot be reached from here, and its cache on this machine" in said
    assert corpus.BENCHMARKS[name].files in said
    assert said.endswith(f"give it by --set task.data=DIR or as $SAGELR_DATA/{name}.")


# -- number words ---------------------------------------------------------------------------------


def test_number_words() -> None:
    made = number_words.load(("en", "de")).splits["train"]
    assert len(made) == number_words.NUMBERS
    assert (made.source[42], made.target[42]) == ("forty-two", "zweiundvierzig")
    assert len(set(made.source)) == len(set(made.target)) == len(made)
    with pytest.raises(UsageError, match="German and English alone, not de and fr"):
        number_words.load(("de", "fr"))


def test_number_words_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "num2words", None)
    number_words._words.cache_clear()
    with pytest.raises(UsageError, match="pip install num2words"):
        number_words.load(DE_EN)


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": "a"}, "source is given without target"),
        ({"source": "a", "target": "b", "test_target": "c"}, "given without test_source"),
        ({"test_source": "a", "test_target": "b"}, "test_source goes with source and target"),
        ({"source": "a", "target": "b", "data": "c"}, "two ways to say what is trained on"),
        ({"data": "x"}, "data goes with source_language and target_language"),
        ({"source_language": "de", "target_language": "de"}, "are both 'de'"),
        ({"vocabulary": 100}, "greater than or equal to 258"),
    ],
)
def test_what_does_not_fit_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TranslationOptions(**given)


def test_nothing_to_learn_from() -> None:
    with pytest.raises(UsageError, match=r"give two files.*--set source=FILE --set target=FILE"):
        task()


@pytest.mark.shared_data
def test_multi30k(shared_data: Path) -> None:
    found = corpus.from_folder(shared_data / "multi30k", DE_EN, "Multi30k")
    rows = {role: len(pairs) for role, pairs in found.splits.items()}
    assert rows == {"train": 29_000, "validation": 1014, "test": 1000}
    assert found.splits["test"].source[0].startswith("Ein Mann mit einem orangefarbenen Hut")
    assert found.notices == ()
