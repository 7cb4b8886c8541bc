"""A training in float64 that torchrun starts in several processes, or python in one.

follow.py FOLDER ARM [key=value …] [--resume] [--stop=STEPS]
"""

import itertools
import json
import sys
from pathlib import Path

import torch.distributed
from small import base, recorded, sage, small  # run as a script

from sagelr.recipe import parse_override
from sagelr.train import StoppedTrainingError, rank, train


def main(folder: Path, arm: str, *words: str) -> None:
    settings = dict(parse_override(word) for word in words if not word.startswith("--"))
    stops = [int(word.partition("=")[2]) for word in words if word.startswith("--stop=")]
    steps = itertools.count(1)
    recipe = small(**settings)
    try:
        entry = train(
            recipe,
            sage() if arm == "sage" else base(),
            recorded(recipe),
            save=folder,
            keep_optimizer=True,
            score_test=True,
            resume="--resume" in words,
            stop=(lambda: next(steps) >= stops[0]) if stops else None,
        )
    except StoppedTrainingError:
        assert stops
    else:
        (folder / f"entry-{rank()}.json").write_text(json.dumps(entry))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
