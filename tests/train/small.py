"""A training of a second: a very small ViT on sixty digits, five steps an epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sagelr.recipe import Recipe, load
from sagelr.tasks import family
from sagelr.train import Run

TIMES = ("seconds", "peak_memory_mib", "started")
SMALL = {
    "task.train": 60,
    "task.validation": 40,
    "model.hidden": 16,
    "model.layers": 1,
    "model.heads": 2,
    "model.feed_forward": 32,
    "train.epochs": 2,
    "train.batch_size": 12,
}

Digits: Any = family("digits")


class Recorded(Digits):
    """Digits that notes what training does with them; float64, so that sums have no order."""

    def __init__(self, data: Any, model: Any) -> None:
        super().__init__(data, model)
        self.batches: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []  # at every evaluation
        self.scripted: list[float] = []  # validation accuracies to give, one an epoch
        self.made: Any = None

    def model(self, seed: int) -> Any:
        self.made = super().model(seed).double()
        return self.made

    def collate(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        batch = super().collate(rows)
        batch["pixel_values"] = batch["pixel_values"].double()
        if len(rows) < 40:  # the splits that are evaluated are larger
            self.batches.append(batch)
        return batch

    def scores(self, prediction: Any) -> dict[str, float]:
        self.weights.append({k: each.clone() for k, each in self.made.state_dict().items()})
        found = super().scores(prediction)
        return {"accuracy": self.scripted.pop(0)} if self.scripted else found

    def train_lengths(self) -> list[int]:
        return [1 + int(label) for label in self.train.images.labels]


def small(**settings: Any) -> Recipe:
    """The recipe, with settings by dotted name, written with two underscores for a dot."""
    return load("digits-vit", SMALL | {k.replace("__", "."): v for k, v in settings.items()})


def recorded(recipe: Recipe) -> Recorded:
    return Recorded(Digits.DataOptions(**recipe.task), Digits.ModelOptions(**recipe.model))


def normalized(recipe: Recipe) -> Recorded:
    """As `recorded`, with running means, variances and a count before the head."""
    task = recorded(recipe)
    model = task.model

    def made(seed: int) -> Any:
        found = model(seed)
        found.classifier = nn.Sequential(nn.BatchNorm1d(16).double(), found.classifier)
        return found

    task.model = made
    return task


def sage(seed: int = 0, stage: str = "train", lr: float = 4e-3) -> Run:
    return Run(stage, "sage-adamw", {"lr": lr, "beta0": 0.8}, seed)


def base(seed: int = 0, stage: str = "train", lr: float = 2e-3) -> Run:
    return Run(stage, "adamw", {"lr": lr}, seed)


def without_times(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in TIMES}


def state_in(folder: Path) -> dict[str, Tensor]:
    """Every number that a training leaves: weights and optimizer state."""
    held = dict(load_file(folder / "model.safetensors"))
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    for index, entries in optimizer["state"].items():
        held |= {f"{index}.{name}": torch.as_tensor(value) for name, value in entries.items()}
    return held


def assert_same(one: Path, other: Path, within: float = 0.0) -> None:
    left, right = state_in(one), state_in(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=within)
