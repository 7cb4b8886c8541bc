"""Small models and a small task to audit."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sagelr.recipe import load
from sagelr.schema import Recipe
from sagelr.tasks import Task

SMALL = {
    "task.train": 96,
    "task.validation": 40,
    "model.hidden": 16,
    "model.heads": 2,
    "model.feed_forward": 24,
    "train.epochs": 2,
    "train.batch_size": 16,
}


class Tiny(nn.Module):
    """Four inputs, six hidden units, two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.dropout(torch.tanh(self.first(x))))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def tiny() -> Tiny:
    return Tiny().double()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(8, 4, dtype=torch.float64), torch.randint(0, 2, (8,))) for _ in range(5)]


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return load("digits-vit", SMALL)


@pytest.fixture(scope="session")
def task(recipe: Recipe) -> Task:
    return recipe.make_task()


@pytest.fixture(scope="session")
def run(recipe: Recipe, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as sagelr train --keep-optimizer leaves it."""
    from sagelr.jsonfile import write
    from sagelr.train import Run, train

    folder = tmp_path_factory.mktemp("run")
    setting = {"lr": 4e-3, "beta0": 0.75}
    found = train(
        recipe, Run("train", "sage-adamw", setting, 0), task, save=folder, keep_optimizer=True
    )
    write(folder / "run.json", {**found, "recipe": recipe.to_json(), "data": task.describe()})
    return folder
