"""The worker processes of a study on one machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any

import torch

from sagelr.errors import SagelrError
from sagelr.recipe import Recipe
from sagelr.study.worker import Worker
from sagelr.train import Run


def gpus(recipe: Recipe) -> list[str]:
    """The CUDA devices that trainings of a recipe can use, as CUDA_VISIBLE_DEVICES names them.

    A worker sees one alone: the Trainer would spread a training over all that it sees.
    """
    count = torch.cuda.device_count() if recipe.train.device == "auto" else 0
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[:count] if given else [str(number) for number in range(count)]


class Crew:
    """As many workers as there is work for, up to a number of jobs.

    Args:
        recipe: what they train.
        jobs: workers at once.
    """

    def __init__(self, recipe: Recipe, jobs: int) -> None:
        self.recipe, self.jobs = recipe.to_json(), jobs
        self.threads = recipe.train.threads
        self.gpus = gpus(recipe)
        self.workers: list[Worker] = []

    def staff(self, runs: int) -> None:
        """Start workers until there are enough for a number of runs, spread over the GPUs."""
        while len(self.workers) < min(self.jobs, runs):
            taken = [worker.gpu for worker in self.workers]
            gpu = min(self.gpus, key=taken.count, default=None)
            self.workers.append(Worker(self.recipe, self.threads, gpu))

    @property
    def running(self) -> list[Run]:
        """What they train."""
        return [worker.run for worker in self.workers if worker.run is not None]

    @property
    def share(self) -> float:
        """How many runs that amounts to, by how far each is."""
        return sum(worker.share for worker in self.workers)

    @property
    def idle(self) -> list[Worker]:
        """Those that could."""
        return [worker for worker in self.workers if worker.ready and worker.run is None]

    def messages(self, seconds: float) -> Iterator[tuple[Worker, str, Any]]:
        """What they have to say; waits a while for the first of it."""
        handles: list[Any] = [worker.pipe for worker in self.workers]
        handles += [worker.process.sentinel for worker in self.workers]
        connection.wait(handles, timeout=seconds)
        for worker in self.workers:
            for kind, content in worker.messages():
                yield worker, kind, content

    def bury(self) -> Iterator[tuple[Worker, str, Any]]:
        """Remove the dead.

        Yields:
            What they said last, and then ("died", how).

        Raises:
            SagelrError: one died before it could train.
        """
        for worker in list(self.workers):
            if (death := worker.death()) is None:
                continue
            yield from ((worker, kind, content) for kind, content in worker.messages())
            self.workers.remove(worker)
            worker.pipe.close()
            if not worker.ready:
                raise SagelrError(
                    f"A worker could not start: {death}. With little memory, try --jobs 1."
                )
            yield worker, "died", death

    def stop(self) -> None:
        """End all of them now."""
        for worker in self.workers:
            worker.stop()
        self.workers = []
