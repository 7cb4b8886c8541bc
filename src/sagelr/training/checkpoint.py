"""Checkpoints: the Trainer's files, and one that says whose they are and that all are there.

A checkpoint is the folder `checkpoint-STEP` with weights (safetensors), state of optimizer and
scheduler, random numbers, and `sagelr.pt`, which is written last: what is without it was cut off.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from sagelr.errors import UsageError
from sagelr.schema import Recipe, changes, first_of, flat
from sagelr.training.run import Run

SEAL = "sagelr.pt"
WEIGHTS = "weights"  # -STEP: a folder with the model as it was at that step, to look at
# What a training may be resumed with otherwise than it was begun. It changes nothing of the
# training, or no more than the last bits of its numbers.
FREE = {
    "title",
    "description",
    "metric",
    "train.device",
    "train.threads",
    "train.parallel",
    "train.save_every",
    "train.report_to",
    "train.eval_batch_size",
}
FREE_TABLES = ("quick", "aliases", "audit", "study", "arms")


def last(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; None if there is none."""
    return max(_sealed(folder), key=_step, default=None)


def seal(checkpoint: Path, content: Mapping[str, Any]) -> None:
    """Write the file that makes a checkpoint whole, and remove the checkpoints before it."""
    scratch = checkpoint / f".{SEAL}"
    torch.save(dict(content), scratch)
    scratch.replace(checkpoint / SEAL)
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            shutil.rmtree(other)


def read(checkpoint: Path) -> dict[str, Any]:
    """What `seal` wrote."""
    return torch.load(checkpoint / SEAL, weights_only=True)


def remove(folder: Path, kind: str = "checkpoint") -> None:
    """Remove every checkpoint in a folder, or, as WEIGHTS, what was kept of them."""
    for checkpoint in folder.glob(f"{kind}-*"):
        shutil.rmtree(checkpoint)


def identity(recipe: Recipe, run: Run, data: Mapping[str, Any]) -> dict[str, Any]:
    """Whose a checkpoint is."""
    arm = recipe.arms[run.arm].model_dump(mode="json", exclude={"grid"})
    return {
        "recipe": recipe.to_json(),
        "run": {"arm": run.arm, **{f"arm.{key}": value for key, value in arm.items()}}
        | {f"setting.{axis}": value for axis, value in run.setting.items()}
        | {"seed": run.seed},
        "data": data.get("sha256"),
    }


def check(checkpoint: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another training.

    Raises:
        UsageError: naming what differs.
    """
    before, after = (
        {key: value for key, value in (flat(of["recipe"]) | of["run"]).items() if not _is_free(key)}
        for of in (then, now)
    )
    differing = changes(before, after)
    if then["data"] != now["data"]:
        differing.append("the data have changed (their sha256 is another)")
    if differing:
        raise UsageError(
            f"{checkpoint} is of another training: {first_of(differing)}. Resume it with what it "
            "was begun with, or begin afresh in another --out."
        )


def _is_free(key: str) -> bool:
    return key in FREE or key.partition(".")[0] in FREE_TABLES


def _sealed(folder: Path) -> Iterator[Path]:
    return (path.parent for path in folder.glob(f"checkpoint-*/{SEAL}"))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
