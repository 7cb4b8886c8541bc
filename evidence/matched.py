"""Sensitivity and pruning at matched loss: what of a difference is left at one and the same loss.

    python evidence/matched.py TASK [--tier small|full]

For a row that has been run and whose recipe asks for an audit. Its report runs are trained again,
at the settings that tuning chose, and the weights of every epoch are kept. Of the two runs of a
seed, base and SAGE, the checkpoints nearest to the loss that both reached (the higher of the two
lowest) are measured as the report runs were. Goes on where it stopped; when it is complete,
matched.json goes beside the row's results.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import torch

from sagelr import recipe as recipes
from sagelr.audit import audit, summary
from sagelr.audit.scoring import TrainingBatches
from sagelr.quiet import quiet
from sagelr.schema import Recipe
from sagelr.tasks import Task
from sagelr.train import Run, train
from sagelr.training import checkpoint

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("--tier", choices=("small", "full"), default="small")
    options = parser.parse_args()
    folder = ROOT / "results" / "evidence" / options.tier / options.task
    if not (folder / "results.json").is_file():
        print(f"{folder} has no results.json: run the row first.", file=sys.stderr)
        return 2
    results = json.loads((folder / "results.json").read_text())
    rows = tomllib.loads((ROOT / "evidence" / "rows.toml").read_text())["row"]
    row = next(row for row in rows if row["task"] == options.task)
    recipe = recipes.load(
        str(ROOT / row.get(f"recipe_{options.tier}", row["recipe"])),
        row[options.tier],
        arms=row["arms"],
    )
    if not recipe.audit.enabled:
        print(f"{row['recipe']} asks for no audit.", file=sys.stderr)
        return 2
    partial = ROOT / "runs" / "evidence" / options.tier / f"{options.task}-matched.json"
    partial.parent.mkdir(parents=True, exist_ok=True)
    pairs = json.loads(partial.read_text()) if partial.is_file() else []
    done = {(pair["sage"], pair["seed"]) for pair in pairs}
    settings = {arm: tuned["chosen"] for arm, tuned in results["tuning"].items()}
    task = recipe.make_task()
    base, *others = row["arms"]
    for seed in results["comparisons"][0]["seeds"]:
        wanted = [arm for arm in others if (arm, seed) not in done]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory(prefix="sagelr-") as scratch:
            reached = {
                arm: losses(recipe, task, Run("report", arm, settings[arm], seed), Path(scratch))
                for arm in (base, *wanted)
            }
            for arm in wanted:
                pairs.append(matched(recipe, task, seed, base, arm, reached))
        partial.write_text(json.dumps(pairs, indent=1))
        print(f"seed {seed} done", flush=True)
    (folder / "matched.json").write_text(json.dumps(pairs, indent=1) + "\n")
    return 0


def losses(recipe: Recipe, task: Task, run: Run, scratch: Path) -> dict[Path, float]:
    """Train a run; the folder of every checkpoint, the last one too, and its loss."""
    folder = scratch / run.arm
    train(recipe, run, task, save=folder, keep_checkpoints=True, score_test=False)
    batches = TrainingBatches(task, recipe.audit.batch_size, recipe.audit.examples)
    found = {}
    for each in [*sorted(folder.glob(f"{checkpoint.WEIGHTS}-*")), folder]:
        model = load(task, run.seed, each)
        found[each] = audit(model, batches.on(model.device)).loss
    return found


def matched(
    recipe: Recipe,
    task: Task,
    seed: int,
    base: str,
    sage: str,
    reached: dict[str, dict[Path, float]],
) -> dict[str, Any]:
    """The two runs of a seed at the loss that both have reached."""
    level = max(min(reached[arm].values()) for arm in (base, sage))
    measured = {}
    for arm in (base, sage):
        nearest = min(reached[arm], key=lambda path: abs(reached[arm][path] - level))
        measured[arm] = {
            "checkpoint": nearest.name if nearest.name != arm else None,
            **summary(load(task, seed, nearest), task, recipe.audit),
        }
    return {"seed": seed, "base": base, "sage": sage, "level": level, "measured": measured}


def load(task: Task, seed: int, folder: Path) -> Any:
    model = type(task.model(seed)).from_pretrained(folder, dtype=torch.float32)
    return model.eval()


if __name__ == "__main__":
    sys.exit(main())
