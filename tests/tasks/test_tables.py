"""Reading tables: what was written is read, and what is wrong is named with its line."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagelr.errors import UsageError
from sagelr.tasks.language.tables import read_table

# A carriage return alone ends a line for some programs and not for others; the rest of Unicode
# goes through, with its own line separators.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")).filter(
    lambda text: not text.startswith("\ufeff")
)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1), delimiter=st.sampled_from(",;\t"))
def test_csv_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], delimiter: str
) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    table = read_table(write(tmp_path_factory.getbasetemp(), "round.csv", file.getvalue()))
    columns = [table.columns["text"], table.columns["label"]]
    assert list(zip(*columns, strict=True)) == rows


@given(rows=st.lists(st.dictionaries(st.sampled_from("abc"), TEXT, min_size=1), min_size=1))
def test_jsonl_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    table = read_table(write(tmp_path_factory.getbasetemp(), "round.jsonl", content))
    for place, row in enumerate(rows):
        assert {name: column[place] for name, column in table.columns.items()} == {
            name: row.get(name) for name in table.columns
        }


def test_rows_are_placed_by_the_line_they_end_on(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a.csv", 'text,label\r\n"two\r\nlines",1\r\n\r\nb,0\r\n'))
    assert table.columns == {"text": ["two\nlines", "b"], "label": ["1", "0"]}
    assert table.where(1) == f"{tmp_path / 'a.csv'}, line 5"


def test_tsv_has_no_quoting_and_the_mark_of_byte_order_goes(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", '\ufefftext\tlabel\n"He said\t1\nshe "did"\t0\n'.encode())
    assert read_table(path).columns == {"text": ['"He said', 'she "did"'], "label": ["1", "0"]}


def test_a_long_field(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    table = read_table(write(tmp_path, "a.csv", f"text,label\n{'x' * 200_000},1\n"))
    assert len(table.columns["text"][0]) == 200_000
    assert csv.field_size_limit() == limit


WRONG = {
    "a.txt": ("text,label\na,1\n", r"a\.txt: not a kind of table\. Allowed: \.csv, \.tsv, \.jsonl"),
    "empty.csv": ("\n \n", r"empty\.csv is empty"),
    "head.csv": ("text,label\n", r"head\.csv names its columns and has no rows"),
    "short.csv": ("text,label\na,1\nb\n", r"short\.csv, line 3: 1 fields .* 2 columns \(text, la"),
    "long.csv": (
        "text,label\na,b,1\n",
        r'long\.csv, line 2: 3 fields .*put text with a comma .*"…"',
    ),
    "long.tsv": ("text\tlabel\na\tb\t1\n", r"long\.tsv, line 2: 3 fields .* read without quoting"),
    "open.csv": ('text,label\na,1\n"b,0\nc,1\n', r"open\.csv, line 4: unexpected end of data"),
    "twice.csv": ("text,text\na,1\n", r"twice\.csv, line 1: two columns are called 'text'"),
    "noname.csv": ("text,\na,1\n", r"noname\.csv, line 1: column 2 has no name"),
    "latin.csv": (b"text,label\na,1\ncaf\xe9,0\n", r"latin\.csv, line 3: byte 0xe9 is not UTF-8"),
    "wide.csv": ("text,label\na,1\n".encode("utf-16"), r"0xff is not UTF-8.*iconv -f UTF-16"),
    "bad.jsonl": ('{"text": "a"}\n{"text": }\n', r"bad\.jsonl, line 2: not JSON"),
    "long.jsonl": (
        f'{{"label": {"1" * 5000}}}\n',
        r"long\.jsonl, line 1: cannot be read \(Exceeds",
    ),
    "deep.jsonl": ('{"a": 1}\n' + "[" * 10**5, r"deep\.jsonl, line 2: cannot be read \(max"),
    "list.jsonl": ("[1, 2]\n", r"list\.jsonl, line 1: a JSON list, not an object"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_file_and_line(tmp_path: Path, name: str) -> None:
    content, message = WRONG[name]
    with pytest.raises(UsageError, match=message):
        read_table(write(tmp_path, name, content))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.csv: No such file"):
        read_table(tmp_path / "no.csv")


def test_the_delimiter_is_told_by_the_first_line_without_what_is_quoted(tmp_path: Path) -> None:
    for name, text in (
        ("mac.csv", "text;label\rone, two, three;a\rfour, five;b\r"),
        ("quoted.csv", '"How, in your words, was it?";label\none;a\n'),
    ):
        (tmp_path / name).write_text(text, newline="")
        assert list(read_table(tmp_path / name).columns)[-1] == "label"
