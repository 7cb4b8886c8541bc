"""Checkpoints: the Trainer's files, and one that says whose they are and that all are there.

A checkpoint is the folder `checkpoint-STEP` with weights (safetensors), state of optimizer and
scheduler, random numbers, and `sagelr.pt`, which is written last: what is without it was cut off.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import safetensors
import torch

from sagelr.errors import SagelrError, UsageError
from sagelr.recipe import as_now
from sagelr.schema import Recipe, changes, first_of, flat
from sagelr.tasks import hub
from sagelr.training.run import Run

SEAL = "sagelr.pt"
WEIGHTS = "weights"  # -STEP: a folder with the model as it was at that step, to look at
SEALED = {"identity", "losses", "record", "kept", "spent"}  # what a training goes on from
IDENTITY = {"recipe", "run", "data"}
FILES = ("optimizer.pt", "model.safetensors", "model-*-of-*.safetensors")  # of a model
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
    for other in _numbered(checkpoint.parent, "checkpoint"):
        if other != checkpoint:
            _drop(other)


def read(checkpoint: Path) -> dict[str, Any]:
    """What `seal` wrote.

    Raises:
        SagelrError: the file is damaged, or another program's.
    """
    file = checkpoint / SEAL
    try:
        content = torch.load(file, weights_only=True)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, *hub.DAMAGE):
        content = None  # torch would advise to load it without its guard
    if not _is_whole(content):
        raise SagelrError(
            f"{file} is damaged or not sagelr's, so that the training cannot go on from it. Bring "
            "the file back, or begin afresh with --overwrite."
        )
    return content


def _is_whole(content: Any) -> TypeGuard[dict[str, Any]]:
    if not (isinstance(content, dict) and content.keys() >= SEALED):
        return False
    whose = content["identity"]
    return (
        isinstance(whose, dict)
        and whose.keys() >= IDENTITY
        and all(isinstance(whose[part], dict) for part in ("recipe", "run"))
    )


def remove(folder: Path) -> None:
    """Remove every checkpoint in a folder."""
    for checkpoint in _numbered(folder, "checkpoint"):
        _drop(checkpoint)


def folders(folder: Path) -> list[Path]:
    """What was kept of checkpoints in a folder, and every checkpoint."""
    return [*_numbered(folder, WEIGHTS), *_numbered(folder, "checkpoint")]


def foreign(folder: Path) -> list[Path]:
    """What `clear` would remove, where nothing says that a training of ours wrote it."""
    if (folder / "run.json").exists() or last(folder) is not None:
        return []
    return sorted(_outcome(folder))


def clear(folder: Path) -> None:
    """Remove what makes a folder the training that was in it, and leave whatever else is there.

    Files of the model and the tokenizer but for the weights stay until they are written over.
    """
    predictions = _predictions(folder)
    (folder / "run.json").unlink(missing_ok=True)  # first: what is left is no run
    for file in predictions:
        file.unlink(missing_ok=True)
    for each in _outcome(folder):
        _drop(each)


def _outcome(folder: Path) -> list[Path]:
    """Weights, state and checkpoints."""
    files = [file for pattern in FILES for file in folder.glob(pattern)]
    return [*files, *folders(folder)]


def _drop(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _predictions(folder: Path) -> list[Path]:
    """The files of predictions that a run says it wrote."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        names = run["predictions"]["files"]
        return [folder / "predictions" / Path(name).name for name in names]
    except (OSError, ValueError, KeyError, TypeError):  # none, or it is no run's
        return []


def check_whole(checkpoint: Path) -> None:
    """See that no file of a checkpoint was cut off after it was sealed.

    Raises:
        SagelrError: naming the file.
    """
    for file in sorted(checkpoint.iterdir()):
        try:
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.suffix == ".safetensors":
                with safetensors.safe_open(file, "pt"):
                    pass
            elif file.suffix in (".pt", ".pth") and not zipfile.is_zipfile(file):
                raise ValueError("its end is missing")
        except (ValueError, safetensors.SafetensorError) as error:
            raise SagelrError(
                f"{file} is damaged ({' '.join(str(error).split())}), so that the training cannot "
                "go on from it. Bring the file back, or begin afresh with --overwrite."
            ) from None


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
    then = _as_now(then)
    stops = then["recipe"]["train"]["early_stopping"] or now["recipe"]["train"]["early_stopping"]
    bound = {"study.select_by"} if stops else set()  # the best so far is in its unit
    before, after = (
        {
            key: value
            for key, value in (flat(of["recipe"]) | of["run"]).items()
            if key in bound or not _is_free(key)
        }
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


def _as_now(whose: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of what recipes and arms have had since."""
    recipe = as_now(whose["recipe"])
    arm = (recipe.get("arms") or {}).get(whose["run"].get("arm")) or {}
    since = {f"arm.{key}": value for key, value in arm.items() if key != "grid"}
    return {**whose, "recipe": recipe, "run": since | whose["run"]}


def _is_free(key: str) -> bool:
    return key in FREE or key.partition(".")[0] in FREE_TABLES


def _sealed(folder: Path) -> Iterator[Path]:
    return (each for each in _numbered(folder, "checkpoint") if (each / SEAL).is_file())


def _numbered(folder: Path, kind: str) -> list[Path]:
    """Folders that a training made; a user may have others whose names begin so."""
    named = re.compile(rf"{kind}-\d+")
    return [path for path in folder.glob(f"{kind}-*") if named.fullmatch(path.name)]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
