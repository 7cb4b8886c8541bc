"""Run one row of the evidence, or go on with it, and publish what there is.

    python evidence/run.py TASK [--tier small|full] [--reuse [NAME]]
                                [--controls [A,B] | --relative] [--variant NAME]

The study is kept in runs/evidence/; when it is complete, results with the recipe, summary and page
go to results/evidence/TIER/TASK. What is there already is repeated with the recipe that it was made
with, whatever became of recipes since. With --controls the controls of the recipe, or some of them,
are compared with SageAdamW's base in a study of their own, TASK-controls or TASK-controls-A-B; with
--relative the relative rule alone, in TASK-relative, where the row's tier leaves it out. With
--variant it is TASK-variant-NAME, the row under other conditions, in the place of the row.
With --reuse these take over what the row itself has run, or another published study of its tier:
NAME. SAGELR_DATA names a folder of data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sagelr.jsonfile import dumps
from sagelr.recipe import read

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "evidence" / "rows.toml"
BASE_AND_SAGE = ["adamw", "sage-adamw"]
OTHER_ARMS = ["relative", "adamax", "sage-adamax", "sgd", "sage-sgd"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("--tier", choices=("small", "full"), default="small")
    further = parser.add_mutually_exclusive_group()
    further.add_argument("--controls", nargs="?", const="all", metavar="A,B")
    further.add_argument("--relative", action="store_true")
    parser.add_argument("--variant", metavar="NAME")
    parser.add_argument("--reuse", nargs="?", const="", metavar="NAME")
    parser.add_argument("--jobs", type=int)
    options = parser.parse_args()
    rows = {row["task"]: row for row in tomllib.loads(ROWS.read_text())["row"]}
    if options.task not in rows:
        return unknown("row", options.task, rows)
    row = rows[options.task]
    recipe = row.get(f"recipe_{options.tier}", row["recipe"])
    arms, name = row.get(f"arms_{options.tier}", row["arms"]), options.task
    conditions: dict[str, Any] = {}
    if options.variant:
        variants = row.get("variants", {})
        if options.variant not in variants:
            return unknown("variant", options.variant, variants)
        conditions = variants[options.variant]
        arms, name = [row["base"], row["sage"]], f"{name}-variant-{options.variant}"
    whole = name  # what --reuse takes over from
    if options.controls:
        arms, name = controls(recipe), f"{name}-controls"
        if options.controls != "all":
            wanted = options.controls.split(",")
            if missing := sorted(set(wanted) - set(arms)):
                known = [arm for arm in arms if arm not in BASE_AND_SAGE]
                return unknown("control", missing[0], known)
            arms, name = [*BASE_AND_SAGE, *wanted], "-".join([name, *wanted])
    elif options.relative:
        base = arms_of(recipe).get("relative", {}).get("base")
        if base != row["base"]:
            print(
                f"The relative rule is an arm on {base or 'no base here'}, and the row "
                f"{options.task} is about {row['base']}: there would be nothing to compare.",
                file=sys.stderr,
            )
            return 2
        arms, name = [row["base"], "relative"], f"{name}-relative"
    study = ROOT / "runs" / "evidence" / options.tier / name
    published = ROOT / "results" / "evidence" / options.tier
    if (made := published / name / "results.json").is_file():
        recipe = str(made.relative_to(ROOT))
        arms = controls(recipe) if options.controls == "all" else arms
    command = [sys.executable, "-m", "sagelr", "compare", recipe, "--out", str(study)]
    command += ["--arms", ",".join(arms)]
    for key, value in {**row[options.tier], **conditions, **data_of(row)}.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    if options.reuse is not None:
        command += ["--reuse", str(published / (options.reuse or whole))]
    if options.jobs:
        command += ["--jobs", str(options.jobs)]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if (study / "results.json").is_file():
        publish(study, published / name)
    return status


def unknown(what: str, name: str, known: Iterable[str]) -> int:
    """Tell of a name that is none; the exit status."""
    print(f"There is no {what} {name}. Known: {', '.join(known) or 'none'}.", file=sys.stderr)
    return 2


def controls(recipe: str) -> list[str]:
    """AdamW, SageAdamW, and every arm of a recipe that is a control, or SAGE otherwise."""
    found = arms_of(recipe)
    return [*BASE_AND_SAGE, *(arm for arm in found if arm not in {*BASE_AND_SAGE, *OTHER_ARMS})]


def arms_of(recipe: str) -> dict[str, Any]:
    """The arms of a recipe: a built-in one, or a file of this repository."""
    return read(str(ROOT / recipe) if Path(recipe).suffix else recipe)[0]["arms"]


def data_of(row: dict[str, Any]) -> dict[str, str]:
    """Where the data of a row lie whose images no hub has."""
    if "data" not in row:
        return {}
    folder = os.environ.get("SAGELR_DATA")
    if not folder:
        print(
            f"The row {row['task']} is about {row['data']} in a folder of data, and no hub has the "
            "same images. Name the folder: SAGELR_DATA=DIR (CONTRIBUTING.md says what it holds).",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return {"task.data": str(Path(folder) / row["data"]), "task.title": "CIFAR-10 (JPEG)"}


def publish(study: Path, target: Path) -> None:
    """Copy a complete study to where it stays."""
    results = json.loads((study / "results.json").read_text())
    if results["status"] != "complete":
        print(f"Not complete yet, so not published: {study}")
        return
    target.mkdir(parents=True, exist_ok=True)
    page = (study / "report.html").read_text(encoding="utf-8")
    (target / "report.html").write_text(elsewhere(page), encoding="utf-8")
    seen = set()
    for run in results["runs"]:
        # One run's pairs (x, r) an arm is enough to look at; the rest would be most of the file.
        if run["sage"] and run["stage"] == "report":
            if run["arm"] in seen:
                run["sage"]["scatter"] = []
            seen.add(run["arm"])
    write(target / "results.json", dumps(results))
    summary = {
        key: results[key] for key in ("comparisons", "tuning", "machine", "versions", "data")
    }
    write(target / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False))
    print(f"Published: {target.relative_to(ROOT)}")


def write(path: Path, text: str) -> None:
    path.write_text(elsewhere(text) + "\n", encoding="utf-8")


def elsewhere(text: str) -> str:
    """A text that names folders as anybody can read it who has them at another place."""
    if folder := os.environ.get("SAGELR_DATA"):
        text = text.replace(folder.rstrip("/") + "/", "$SAGELR_DATA/")
    return text.replace(f"{ROOT}/", "")


if __name__ == "__main__":
    sys.exit(main())
