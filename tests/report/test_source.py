"""What the page is made of, and what is said of files that are something else."""

import ast
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sagelr.commands import app
from sagelr.errors import SagelrError, UsageError
from sagelr.report import sections, shape
from sagelr.report.source import read


def test_a_folder_gives_whatever_it_holds(study, audit, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(study()))
    assert read(tmp_path).audits == []
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    found = read(tmp_path)
    assert found.results is not None
    assert len(found.audits) == 1
    assert read(tmp_path / "audit.json").results is None
    assert len(read([tmp_path / "audit.json", audit]).audits) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"runs": [', r"is not JSON: .* in line 1, column"),
        ("[1]", "neither a results.json nor an audit.json"),
        ("{}", "holds neither the results of a study nor an audit"),
        ('{"runs": [], "schema": 7, "sagelr": "9.1"}', r"has schema 7; .* reads schema 1.*9\.1"),
        ('{"runs": [], "schema": 1}', "is not whole: sagelr is missing"),
        ('{"kind": "audit", "schema": 1}', "is not whole: sagelr is missing"),
        ("[" * 100_000 + "]" * 100_000, r"cannot be read \(maximum recursion depth"),
        (f'{{"runs": {"9" * 5000}}}', r"cannot be read \(Exceeds the limit"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path, text, told):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(SagelrError, match=told) as error:
        read(path)
    assert str(path) in str(error.value)


def test_what_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read(tmp_path / "results.json")
    with pytest.raises(UsageError, match="holds neither"):
        read(tmp_path)
    (tmp_path / "results.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not even text"):
        read(tmp_path)
    with pytest.raises(UsageError, match="Nothing to show"):
        read([])


def test_two_studies_do_not_fit_on_one_page(study):
    with pytest.raises(UsageError, match="a second study"):
        read([study(), study()])


def test_a_study_that_lacks_something_is_refused_by_name(study):
    document = study()
    del document["runs"][5]["scores"]["test"]
    with pytest.raises(SagelrError, match=r"not whole: runs\[5\]\.scores\.test is missing"):
        read(document)


def test_a_runs_audit_is_checked_as_well(study, run_audit):
    document = study()
    run = next(run for run in document["runs"] if run["stage"] == "report")
    run["audit"] = run_audit(0)
    assert read(document).results is document
    del run["audit"]["curves"][0]["points"]
    with pytest.raises(SagelrError, match=rf"{run['key']}.* not whole: curves\[0\]\.points"):
        read(document)


def test_real_documents_fit_the_shapes(study, audit, run_audit):
    assert shape.fault(study(), shape.RESULTS) is None
    assert shape.fault(audit, shape.AUDIT) is None
    assert shape.fault(run_audit(0), shape.SUMMARY) is None


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner)
                    | st.dictionaries(st.sampled_from(["runs", "seed", "x"]), inner)))  # fmt: skip
def test_a_fault_is_found_wherever_the_shape_is_not_kept(value):
    wanted = {"runs": [{"seed": int}]}
    kept = (
        isinstance(value, dict)
        and isinstance(value.get("runs"), list)
        and all(isinstance(run, dict) and isinstance(run.get("seed"), int) for run in value["runs"])
    )
    assert (shape.fault(value, wanted) is None) == kept


# -- the live probe's files ---------------------------------------------------------------------

ROW = {
    "step": 100,
    "layer": "layers.0.attention",
    "kind": "attention",
    "depth": 0,
    "parameters": 10,
    "sampled": 10,
    "sensitivity": 1e-5,
    "variation": 1e-6,
    "multiplier": 0.5,
    "quantiles": {"5": 0.1, "25": 0.3, "50": 0.5, "75": 0.7, "95": 1.0},
    "frozen": 0.01,
    "boosted": 0.1,
}


def test_a_probe_that_is_still_writing_can_be_read(tmp_path):
    path = tmp_path / "probe.jsonl"
    whole = json.dumps(ROW) + "\n"
    path.write_text(whole + whole + whole[:30])
    assert len(read(path).live[0].rows) == 2
    path.write_text(whole[:30] + "\n" + whole)
    with pytest.raises(UsageError, match="not JSON in line 1"):
        read(path)
    path.write_text("")
    with pytest.raises(UsageError, match="has not looked yet"):
        read(path)
    for text in ("[" * 100_000 + "]" * 100_000, "9" * 5000):
        path.write_text(whole + text)
        with pytest.raises(UsageError, match="line 2: cannot be read"):
            read(path)


def test_both_files_of_a_probe_read_alike(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    flat = {key: value for key, value in ROW.items() if key != "quantiles"}
    flat |= {f"q{level}": value for level, value in ROW["quantiles"].items()}
    pyarrow.parquet.write_table(arrow.Table.from_pylist([flat]), tmp_path / "probe.parquet")
    (tmp_path / "probe.jsonl").write_text(json.dumps(ROW) + "\n")
    rows = [read(tmp_path / f"probe.{kind}").live[0].rows[0] for kind in ("parquet", "jsonl")]
    assert {key: rows[0][key] for key in ROW} == rows[1]


def test_what_is_not_finite_is_nothing_in_either_file_of_a_probe(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    flat = {key: value for key, value in ROW.items() if key != "quantiles"}
    flat |= {f"q{level}": math.inf for level in ROW["quantiles"]} | {"sensitivity": math.nan}
    pyarrow.parquet.write_table(arrow.Table.from_pylist([flat]), tmp_path / "probe.parquet")
    (row,) = read(tmp_path / "probe.parquet").live[0].rows
    assert row["sensitivity"] is None
    assert set(row["quantiles"].values()) == {None}
    assert sections.page(read(tmp_path / "probe.parquet")).figures()


def test_a_probe_alone_makes_a_page(tmp_path):
    path = tmp_path / "probe.jsonl"
    rows = [ROW | {"step": step, "layer": layer} for step in (100, 200) for layer in ("a", "b")]
    rows[2]["sensitivity"] = None  # as where it overflowed
    path.write_text("\n".join(map(json.dumps, rows)))
    figures = {figure.id: figure for figure in sections.page(read(path)).figures()}
    assert figures["live-1-multiplier"].data[0]["z"] == [[0.5, 0.5], [0.5, 0.5]]
    assert figures["live-1-sensitivity"].data[0]["z"][0] == [-5.0, None]
    assert figures["live-1-frozen"].data[0]["z"][0] == [1.0, 1.0]
    assert "live-1-last" in figures


# -- the command --------------------------------------------------------------------------------


def test_the_command_writes_beside_what_it_read(study, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(study()))
    done = CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert (tmp_path / "report.html").is_file()


def test_the_command_fails_in_one_line(tmp_path):
    command = [sys.executable, "-m", "sagelr", "report", str(tmp_path / "elsewhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "elsewhere does not exist" in done.stderr


# -- the house ----------------------------------------------------------------------------------


def test_the_page_needs_nothing_of_ours_but_the_errors():
    for path in Path(sections.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sagelr"):
                assert node.module == "sagelr.errors" or node.module.startswith("sagelr.report")
