"""The published report is what its results give."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "evidence"))
    return importlib.import_module("report")


def test_the_page_and_its_pictures_are_those_of_the_results(report: Any) -> None:
    pages = report.pages()
    assert {path.name for path in pages} >= {"index.md", "differences-small.svg"}
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `make evidence-report`"


def test_a_record_does_not_contradict_itself() -> None:
    """`comparison` is the first of `comparisons`, and what was replaced is so in the recipe."""
    found = sorted((ROOT / "results" / "evidence").glob("*/*/results.json"))
    assert found
    for path in found:
        data = json.loads(path.read_text())
        assert data["comparison"] == data["comparisons"][0], path
        summary = json.loads(path.with_name("summary.json").read_text())
        assert all(data[key] == value for key, value in summary.items()), path
        for key, value in data["overrides"].items():
            at = data["recipe"]
            for part in key.split("."):
                at = at[part]
            assert at == value, (path, key)


def test_a_row_without_results_says_how_to_run_it(report: Any) -> None:
    row = {"task": "none-such", "title": "None such", "base": "adamw", "sage": "sage-adamw"}
    assert list(report.table("full", [row]))[2].endswith(
        "not run: `make evidence-none-such TIER=full` | |"
    )
    assert "no row has been run" in list(report.conclusions([row]))[1]


def test_controls_share_a_table_where_they_share_runs(
    report: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One study trained its base anew, and its scores came out otherwise."""
    published = importlib.import_module("published")
    monkeypatch.setattr(published, "RESULTS", tmp_path)
    for name, score in (("gradient", 0.5), ("norm", 0.5), ("shuffled", 0.4)):
        arms = {"adamw": {"values": [score, 0.6]}, "sage-adamw": {"values": [0.7, 0.8]}}
        folder = tmp_path / "shared" / f"here-controls-{name}"
        folder.mkdir(parents=True)
        results = {"comparisons": [{"seeds": [1, 2], "arms": arms}]}
        (folder / "results.json").write_text(json.dumps(results))
    found = [[name for name, _ in group] for group in published.controls("shared", "here")]
    assert found == [["here-controls-gradient", "here-controls-norm"], ["here-controls-shuffled"]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "evidence"))
    return importlib.import_module("run")


def test_controls_of_a_built_in_recipe_are_found_too(run: Any) -> None:
    assert run.controls("digits-vit")[:2] == ["adamw", "sage-adamw"]
    assert len(run.controls("evidence/digits.toml")) > 2


def test_the_relative_rule_is_not_run_without_its_base(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr(run.subprocess, "run", started)
    monkeypatch.setattr(run.sys, "argv", ["run.py", "rte-adamax", "--relative"])
    assert run.main() == 2
    assert "the row rte-adamax is about adamax" in capsys.readouterr().err


def test_rows_are_recipes_that_load(report: Any) -> None:
    from sagelr import recipe

    for row in report.read_rows():
        for tier in ("small", "full"):
            name = row.get(f"recipe_{tier}", row["recipe"])
            name = str(ROOT / name) if name.endswith(".toml") else name
            found = recipe.load(name, row[tier], arms=row["arms"])
            assert found.arms[row["sage"]].base == row["base"]
            assert found.study.report_seeds >= 5


def test_images_of_others_do_not_take_the_place_of_ours(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SAGELR_DATA", raising=False)
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: pytest.fail("it began"))
    monkeypatch.setattr("sys.argv", ["run.py", "cifar10-adamw"])
    with pytest.raises(SystemExit) as stopped:
        run.main()
    assert stopped.value.code == 2
    assert "SAGELR_DATA=DIR" in capsys.readouterr().err


def test_what_is_published_can_be_repeated(
    report: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the recipe in its results, whatever became of recipes since."""
    monkeypatch.setenv("SAGELR_DATA", str(tmp_path))  # where data lie is another question
    from sagelr import recipe

    found = sorted((ROOT / "results" / "evidence").glob("*/*/results.json"))
    assert found
    for path in found:
        again = recipe.load(str(path))
        data = json.loads(path.read_text())
        assert list(data["arms"]) == again.study.arms
        for name, arm in data["arms"].items():
            assert set(again.arms[name].grid) <= {"lr_ratio", *arm["grid"]}
            for axis, values in again.arms[name].grid.items():
                assert axis == "lr_ratio" or set(values) <= set(arm["grid"][axis])
