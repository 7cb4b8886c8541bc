"""`sagelr compare FAMILY` on one's own files, as a user runs it: a verdict and a page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from num2words import num2words

pytestmark = pytest.mark.processes
PROGRAM = [sys.executable, "-m", "sagelr", "compare"]


def compared(out: Path, family: str, **settings: object) -> tuple[dict, str]:
    words = [f"--set={key}={value}" for key, value in settings.items()]
    done = subprocess.run(
        [*PROGRAM, family, "--quick", "--jobs=2", f"--out={out}", *words],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(out / "report.html") in done.stdout
    return json.loads((out / "results.json").read_text()), (out / "report.html").read_text()


def check(document: dict, page: str, metric: str) -> None:
    assert document["status"] == "complete"
    (comparison,) = document["comparisons"]
    assert comparison["seeds"] == [1000, 1001]
    assert ("examples_ci95" in comparison) == (metric == "accuracy")
    reports = [run for run in document["runs"] if run["stage"] == "report"]
    assert len(reports) == 4
    assert all(metric in run["scores"]["test"] for run in reports)
    assert "SageAdamW" in page
    assert "AdamW" in page


def test_a_table_of_texts(reviews_csv: Path, tiny_bert: Path, tmp_path: Path) -> None:
    document, page = compared(
        tmp_path / "out",
        "text-classification",
        data=reviews_csv,
        model=tiny_bert,
        **{"task.max_length": 64},
    )
    check(document, page, "accuracy")
    assert all(s["score_mean"] > 0 for s in document["tuning"]["adamw"]["settings"])


def test_two_aligned_texts(tmp_path: Path) -> None:
    """BLEU is not decoded in tuning, where the loss chooses."""
    for language in ("de", "en"):
        lines = [num2words(number, lang=language) for number in range(500, 900)]
        (tmp_path / f"numbers.{language}").write_text("\n".join(lines), encoding="utf-8")
    document, page = compared(
        tmp_path / "out",
        "translation",
        source=tmp_path / "numbers.de",
        target=tmp_path / "numbers.en",
        **{"task.vocabulary": 320},
    )
    check(document, page, "bleu")
    assert document["recipe"]["metric"]["label"] == "BLEU"
    assert "mean BLEU" in page
    assert [s["score_mean"] for s in document["tuning"]["adamw"]["settings"]] == [None] * 4


def test_a_folder_of_images(digit_images: Path, tmp_path: Path) -> None:
    document, page = compared(
        tmp_path / "out", "image-classification", data=digit_images, model="from-scratch"
    )
    check(document, page, "accuracy")


def test_a_setting_that_the_data_do_not_allow(
    reviews_csv: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    words = [f"--set=data={reviews_csv}", f"--set=model={tiny_bert}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(
        [*PROGRAM, "text-classification", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert "Set it to 64 or less" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
