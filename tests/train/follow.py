"""Trainings in float64, one after the other, that torchrun starts in several processes.

    follow.py JOBS.json

where the jobs are a list of folder, arm, settings, and the steps to stop after or null; a folder
with a checkpoint is gone on with.
"""

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed
from small import base, recorded, sage, small  # run as a script

from sagelr.train import StoppedTrainingError, rank, train
from sagelr.training import checkpoint


def follow(folder: Path, arm: str, settings: dict[str, Any], stop: int | None) -> None:
    recipe = small(**settings)
    steps = itertools.count(1)
    try:
        entry = train(
            recipe,
            sage() if arm == "sage" else base(),
            recorded(recipe),
            save=folder,
            keep_optimizer=True,
            score_test=True,
            resume=checkpoint.last(folder) is not None,
            stop=None if stop is None else lambda: next(steps) >= stop,
        )
    except StoppedTrainingError:
        assert stop is not None
    else:
        (folder / f"entry-{rank()}.json").write_text(json.dumps(entry))


if __name__ == "__main__":
    for name, *job in json.loads(Path(sys.argv[1]).read_text()):
        follow(Path(name), *job)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)  # see tests/integrations/leave.py
