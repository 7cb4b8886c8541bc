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
from pathlib import Path

from run import ROOT, write

from sagelr.audit import summary
from sagelr.audit.scoring import TrainingBatches
from sagelr.audit.sides import at_one_loss, mean_loss
from sagelr.quiet import quiet
from sagelr.recipe import check, of_results
from sagelr.schema import Recipe
from sagelr.tasks import Task
from sagelr.train import Run, train
from sagelr.training import checkpoint


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
    recipe = check(of_results(results), results["recipe"]["name"])
    if not recipe.audit.enabled:
        print(f"{recipe.name} asks for no audit.", file=sys.stderr)
        return 2
    partial = ROOT / "runs" / "evidence" / options.tier / f"{options.task}-matched.json"
    partial.parent.mkdir(parents=True, exist_ok=True)
    pairs = json.loads(partial.read_text()) if partial.is_file() else []
    done = {(pair["sage"], pair["seed"]) for pair in pairs}
    settings = {arm: tuned["chosen"] for arm, tuned in results["tuning"].items()}
    base = results["comparisons"][0]["base"]
    task = recipe.make_task()
    cls = type(task.model(0))
    for seed in results["comparisons"][0]["seeds"]:
        wanted = [arm for arm in settings if arm != base and (arm, seed) not in done]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory(prefix="sagelr-") as scratch:
            reached = {
                arm: losses(recipe, task, Run("report", arm, settings[arm], seed), Path(scratch))
                for arm in (base, *wanted)
            }
            for arm in wanted:
                level, nearest = at_one_loss([reached[base], reached[arm]])
                measured = {
                    name: {
                        "checkpoint": path.name if path.name != name else None,
                        **summary(cls.from_pretrained(path), task, recipe.audit),
                    }
                    for name, path in zip((base, arm), nearest, strict=True)
                }
                pairs.append(
                    {"seed": seed, "base": base, "sage": arm, "level": level, "measured": measured}
                )
        partial.write_text(json.dumps(pairs, indent=1))
        print(f"seed {seed} done", flush=True)
    write(folder / "matched.json", json.dumps(pairs, indent=1))
    return 0


def losses(recipe: Recipe, task: Task, run: Run, scratch: Path) -> dict[Path, float]:
    """Train a run; the folder of every checkpoint, the last one too, and its loss."""
    folder = scratch / run.arm
    train(recipe, run, task, save=folder, keep_checkpoints=True, score_test=False)
    batches = TrainingBatches(task, recipe.audit.batch_size, recipe.audit.examples)
    cls = type(task.model(run.seed))
    return {
        each: mean_loss(cls.from_pretrained(each), batches)
        for each in [*sorted(folder.glob(f"{checkpoint.WEIGHTS}-*")), folder]
    }


if __name__ == "__main__":
    sys.exit(main())
