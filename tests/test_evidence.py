"""The published report is what its results give."""

from __future__ import annotations

import importlib
import json
import tomllib
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


def test_a_study_that_is_not_complete_is_not_published(run: Any, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"status": "reporting", "runs": []}')
    run.publish(tmp_path, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_the_pairs_of_one_run_of_each_arm_are_published(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "ROOT", tmp_path)
    keys = [("a", "tune"), ("a", "report"), ("a", "report"), ("b", "report"), ("b", "report")]
    runs: list[dict[str, Any]] = [
        {
            "arm": arm,
            "stage": stage,
            "sage": {"scatter": [[1, 0.5]]} if stage == "report" else None,
        }
        for arm, stage in keys
    ]
    document = dict.fromkeys(("comparisons", "tuning", "machine", "versions", "data"))
    (tmp_path / "report.html").write_text("")
    (tmp_path / "results.json").write_text(
        json.dumps(document | {"status": "complete", "runs": runs})
    )
    run.publish(tmp_path, tmp_path / "published")
    found = json.loads((tmp_path / "published" / "results.json").read_text())["runs"]
    assert [len(each["sage"]["scatter"]) if each["sage"] else None for each in found] == [
        None, 1, 0, 1, 0
    ]  # fmt: skip


@pytest.mark.parametrize("further", [[], ["--controls", "constant", "--reuse"]])
def test_a_variant_is_its_row_under_its_conditions(
    run: Any, monkeypatch: pytest.MonkeyPatch, further: list[str]
) -> None:
    commands: list[list[str]] = []

    class Done:
        returncode = 0

    monkeypatch.setattr(run.subprocess, "run", lambda words, **_: commands.append(words) or Done)
    monkeypatch.setattr(run, "publish", lambda *_: None)
    rows = {"digits": {row["task"]: row for row in _rows(run)}["digits"]}
    [(name, conditions)] = [
        each for each in rows["digits"]["variants"].items() if each[0] == "epochs-5"
    ]
    monkeypatch.setattr(run.sys, "argv", ["run.py", "digits", "--variant", name, *further])
    assert run.main() == 0
    [words] = commands
    sets = dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--set")
    for key, value in conditions.items():
        assert json.loads(sets[key]) == value
    arms = words[words.index("--arms") + 1].split(",")
    assert arms == ["adamw", "sage-adamw", *(["constant"] if further else [])]
    if further:
        assert words[words.index("--reuse") + 1].endswith(f"/small/digits-variant-{name}")


def _rows(run: Any) -> list[dict[str, Any]]:

    return tomllib.loads(run.ROWS.read_text())["row"]


@pytest.fixture
def matched(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "evidence"))
    return importlib.import_module("matched")


def test_models_at_matched_loss_are_those_of_the_report_runs(
    matched: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Trained again with their seeds, at what tuning chose, with every epoch's weights kept."""
    source = ROOT / "results" / "evidence" / "small" / "digits" / "results.json"
    results = json.loads(source.read_text())
    comparison = results["comparisons"][0]
    comparison["seeds"] = comparison["seeds"][:2]
    folder = tmp_path / "results" / "evidence" / "small" / "digits"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    trained: list[Any] = []

    def trains(recipe: Any, run: Any, task: Any, **how: Any) -> None:
        trained.append((run, how))
        task.model(0).save_pretrained(how["save"])

    monkeypatch.setattr(matched, "ROOT", tmp_path)
    monkeypatch.setattr(matched, "train", trains)
    monkeypatch.setattr(matched, "mean_loss", lambda *_: 1.0)
    monkeypatch.setattr(matched, "summary", lambda *_: {"loss": 1.0})
    monkeypatch.setattr(matched.sys, "argv", ["matched.py", "digits"])
    assert matched.main() == 0
    arms = [comparison["base"], *(arm for arm in results["tuning"] if arm != comparison["base"])]
    assert [(run.seed, run.arm) for run, _ in trained] == [
        (seed, arm) for seed in comparison["seeds"] for arm in arms
    ]
    for run, how in trained:
        assert run.stage == "report"
        assert run.setting == results["tuning"][run.arm]["chosen"]
        assert how["keep_checkpoints"]
        assert not how["score_test"]
    assert len(json.loads((folder / "matched.json").read_text())) == 2 * (len(arms) - 1)
