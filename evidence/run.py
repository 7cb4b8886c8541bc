"""Run one row of the evidence, or go on with it, and publish what there is.

    python evidence/run.py TASK [--tier small|full] [--controls] [--jobs N]

The study is kept in runs/evidence/; when it is complete, recipe, results, summary and page go to
results/evidence/TIER/TASK. With --controls the recipe's other arms are compared with SageAdamW's
base in a study of their own, TASK-controls.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASE_AND_SAGE = ["adamw", "sage-adamw"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("--tier", choices=("small", "full"), default="small")
    parser.add_argument("--controls", action="store_true")
    parser.add_argument("--jobs", type=int)
    options = parser.parse_args()
    recipe = ROOT / "evidence" / options.tier / f"{options.task}.toml"
    if not recipe.is_file():
        known = sorted(path.stem for path in recipe.parent.glob("*.toml"))
        print(f"There is no {recipe.relative_to(ROOT)}. Known tasks: {', '.join(known)}.")
        return 2
    name = options.task + ("-controls" if options.controls else "")
    study = ROOT / "runs" / "evidence" / options.tier / name
    command = [sys.executable, "-m", "sagelr", "compare", str(recipe), "--out", str(study)]
    if options.jobs:
        command += ["--jobs", str(options.jobs)]
    if options.controls:
        data = tomllib.loads(recipe.read_text())
        others = [arm for arm in data["arms"] if arm not in data["study"]["arms"]]
        command += ["--arms", ",".join([*BASE_AND_SAGE, *others])]
    status = subprocess.run(command, check=False).returncode
    if (study / "results.json").is_file():
        publish(study, recipe, ROOT / "results" / "evidence" / options.tier / name)
    return status


def publish(study: Path, recipe: Path, target: Path) -> None:
    """Copy a complete study to where it stays."""
    results = json.loads((study / "results.json").read_text())
    if results["status"] != "complete":
        print(f"Not complete yet, so not published: {study}")
        return
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(recipe, target / "recipe.toml")
    shutil.copy(study / "report.html", target / "report.html")
    seen = set()
    for run in results["runs"]:
        # One run's pairs (x, r) an arm is enough to look at; the rest would be most of the file.
        if run["sage"] and run["stage"] == "report":
            if run["arm"] in seen:
                run["sage"]["scatter"] = []
            seen.add(run["arm"])
    write(target / "results.json", results)
    summary = {
        key: results[key] for key in ("comparisons", "tuning", "machine", "versions", "data")
    }
    write(target / "summary.json", summary)
    print(f"Published: {target.relative_to(ROOT)}")


def write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
