"""One training: recipe, arm, setting and seed in; scores out. On the Hugging Face Trainer."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import sagelr
from sagelr.errors import SagelrError, UsageError
from sagelr.groups import param_groups
from sagelr.optim.base import SageOptimizer
from sagelr.recipe import Arm, Recipe, Setting
from sagelr.tasks import Task
from sagelr.trace import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "Adamax": torch.optim.Adamax,
    "SGD": torch.optim.SGD,
    "SageAdamW": sagelr.SageAdamW,
    "SageAdamax": sagelr.SageAdamax,
    "SageSGD": sagelr.SageSGD,
}
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        stage: "tune", "report", or "train" for a training of its own. The test split is scored
            after the last epoch of a "report" run alone.
        arm: name of the arm.
        setting: point of the arm's grid.
        seed: of first weights, order of the data and dropout; the same for every arm, so that
            two arms differ in nothing but the optimizer.
    """

    stage: str
    arm: str
    setting: Setting = field(hash=False)
    seed: int

    @property
    def key(self) -> str:
        """What the run is called; each key of a study has exactly one published result."""
        return f"{self.stage}/{self.arm}/{name_of(self.setting)}/seed={self.seed}"


def name_of(setting: Mapping[str, float]) -> str:
    """A setting in words.

    Example:
        >>> name_of({"lr": 0.001, "beta0": 0.75})
        'lr=0.001,beta0=0.75'
    """
    return ",".join(f"{axis}={value:.6g}" for axis, value in setting.items())


# -- optimizers ---------------------------------------------------------------------------------


def check_arm(name: str, arm: Arm) -> None:
    """Build the arm's optimizer at every setting, on a single number, to see that it can be.

    Raises:
        UsageError: no such optimizer, an option that it does not have, or a value out of range.
    """
    cls = OPTIMIZERS.get(arm.optimizer)
    if cls is None:
        raise UsageError(
            f"arms.{name}.optimizer = {arm.optimizer!r} is not an optimizer. "
            f"Allowed: {', '.join(OPTIMIZERS)}."
        )
    if issubclass(cls, SageOptimizer) != (arm.role == "sage"):
        raise UsageError(
            f"arms.{name}.role = {arm.role!r} does not fit its optimizer {arm.optimizer}: the "
            "Sage optimizers are for the role sage, torch's own for the role base."
        )
    known = [key for key in inspect.signature(cls).parameters if key != "params"]
    for option in (*arm.options, *arm.grid):
        if option not in known:
            import difflib

            near = difflib.get_close_matches(option, known, n=1)
            hint = f"the nearest right one is {near[0]!r}; " if near else ""
            raise UsageError(
                f"arms.{name}: {arm.optimizer} has no option {option!r}; {hint}"
                f"allowed: {', '.join(known)}."
            )
    for setting in arm.settings():
        try:
            cls([nn.Parameter(torch.zeros(1))], **_options(arm, setting))
        except (TypeError, ValueError) as error:
            raise UsageError(f"arms.{name} at {name_of(setting)}: {error}") from None


def _options(arm: Arm, setting: Setting) -> dict[str, Any]:
    options: dict[str, Any] = {**arm.options, **setting}
    return options | ({"betas": tuple(options["betas"])} if "betas" in options else {})


def make_optimizer(model: nn.Module, arm: Arm, setting: Setting) -> torch.optim.Optimizer:
    """The arm's optimizer over the groups of a model: no decay on biases and norms, SAGE in scope.

    Raises:
        SagelrError: the scope selects nothing in this model.
    """
    cls, options = OPTIMIZERS[arm.optimizer], _options(arm, setting)
    decay = options.get("weight_decay")
    if decay is None:
        decay = inspect.signature(cls).parameters["weight_decay"].default
    sage = arm.role == "sage"
    try:
        groups = param_groups(model, weight_decay=decay, sage=arm.scope if sage else "none")
    except (TypeError, ValueError) as error:
        raise SagelrError(f"{arm.label}, scope {arm.scope!r}: {error}") from None
    if not sage:
        for group in groups:
            del group["sage"]
    return cls(groups, **options)


# -- one run ------------------------------------------------------------------------------------


def train(
    recipe: Recipe,
    run: Run,
    task: Task | None = None,
    *,
    progress: Progress | None = None,
    score_test: bool | None = None,
    save: Path | None = None,
) -> dict[str, Any]:
    """Train once.

    Bit-identical for the same recipe and run on the same machine and number of threads, whatever
    the process did before.

    Args:
        recipe: what to train.
        run: which arm, setting and seed.
        task: the recipe's task, if it is loaded already.
        progress: called with the share of the steps done.
        score_test: whether to score the test split after the last epoch; None does for the stage
            "report" alone.
        save: folder for the trained model, as safetensors.

    Returns:
        An entry of `runs` in results.json. A loss that is no number ends the run with the status
        "diverged", which is a result too.

    Raises:
        SagelrError: the run cannot be done.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    torch.set_num_threads(recipe.train.threads)
    memory = _PeakMemory()
    task = recipe.make_task() if task is None else task
    arm = recipe.arms[run.arm]
    model = task.model(run.seed)
    with _quiet(), tempfile.TemporaryDirectory(prefix="sagelr-") as scratch:
        trainer = _make_trainer(recipe, arm, run, task, model, progress, scratch)
        trainer.train()
        watch: _Watch = trainer.watch
        scores = watch.scores()
        if score_test is None:
            score_test = run.stage == "report"
        if score_test and not watch.diverged:
            scores["test"] = watch.named(trainer.evaluate(task.test, metric_key_prefix="test"))
    if save is not None:
        model.save_pretrained(save)
    return {
        "key": run.key,
        "stage": run.stage,
        "arm": run.arm,
        "setting": run.setting,
        "seed": run.seed,
        "status": "diverged" if watch.diverged else "complete",
        "error": watch.diverged,
        "scores": scores,
        "curve": watch.curve,
        "options": _as_used(trainer.made, arm),
        "seconds": round(time.perf_counter() - clock, 3),
        "peak_memory_mib": memory.mib(),
        "started": started.isoformat(timespec="seconds"),
        "sagelr": sagelr.__version__,
        "sage": watch.trace.to_json() if watch.trace and not watch.diverged else None,
    }


def _make_trainer(
    recipe: Recipe,
    arm: Arm,
    run: Run,
    task: Task,
    model: PreTrainedModel,
    progress: Progress | None,
    scratch: str,
) -> Any:
    """A quiet Trainer that builds the arm's optimizer and keeps an eye on the loss."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    class Training(Trainer):
        made: torch.optim.Optimizer
        watch: _Watch

        def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
            self.made = self.optimizer = make_optimizer(model or self.model, arm, run.setting)  # type: ignore[arg-type]
            return self.optimizer

        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().training_step(*args, **kwargs)
            self.watch.see_loss(loss, self.state.global_step + 1)
            return loss

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # counted at every step, and of no use here

    options = recipe.train
    args = TrainingArguments(
        output_dir=scratch,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=max(512, options.batch_size),
        learning_rate=run.setting["lr"],
        lr_scheduler_type=options.schedule,
        warmup_steps=options.warmup,
        max_grad_norm=options.max_grad_norm,
        seed=run.seed,
        data_seed=run.seed,
        eval_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=options.device == "cpu",
    )
    trainer = Training(
        model,
        args,
        train_dataset=task.train,
        eval_dataset=task.validation,
        data_collator=task.collate,  # type: ignore[arg-type]
        compute_metrics=task.scores,
    )
    trainer.pop_callback(PrinterCallback)
    trainer.watch = _Watch(run, progress)
    trainer.add_callback(_callback(trainer.watch))
    return trainer


class _Watch:
    """What is kept of a training while it runs."""

    def __init__(self, run: Run, progress: Progress | None) -> None:
        self.run = run
        self.progress = progress
        self.curve: list[dict[str, Any]] = []
        self.trace: Trace | None = None
        self.diverged: str | None = None
        self._logged: dict[str, float] = {}
        self._validation: dict[str, float] = {}
        # On an accelerator reading the loss waits for it, so it is read less often there.
        self._every = 1 if not torch.cuda.is_available() else 20

    def see_loss(self, loss: Tensor, step: int) -> None:
        if self.diverged is None and step % self._every == 0 and not bool(torch.isfinite(loss)):
            self.diverged = f"training loss {float(loss)} at step {step}"

    def begin(self, model: nn.Module, optimizer: Any, total: int) -> None:
        optimizer = getattr(optimizer, "optimizer", optimizer)  # as Accelerate wraps it
        if self.run.stage != "tune" and isinstance(optimizer, SageOptimizer):
            self.trace = Trace(model, optimizer, total)

    def logged(self, logs: dict[str, float]) -> None:
        if "loss" in logs:
            self._logged = logs
            if not math.isfinite(logs["loss"]) and self.diverged is None:
                self.diverged = f"training loss {logs['loss']} in epoch {logs['epoch']:g}"

    def evaluated(self, metrics: dict[str, float], step: int) -> None:
        if not any(key.startswith("eval_") for key in metrics):
            return  # the test split, after training
        self._validation = self.named(metrics)
        if not math.isfinite(self._validation["loss"]) and self.diverged is None:
            self.diverged = f"validation loss {self._validation['loss']} after step {step}"
        if self.diverged is None:
            row = {"epoch": round(metrics["epoch"], 4), "step": step}
            row |= {"lr": self._logged.get("learning_rate"), "train_loss": self._logged.get("loss")}
            row |= {f"validation_{name}": value for name, value in self._validation.items()}
            self.curve.append(row)

    def scores(self) -> dict[str, Any]:
        """Scores of the last epoch; nothing if the run diverged."""
        if self.diverged is not None:
            return {"validation": None, "test": None, "train": None}
        train = {"loss": self._logged["loss"]}
        return {"validation": self._validation, "test": None, "train": train}

    @staticmethod
    def named(metrics: Mapping[str, float]) -> dict[str, float]:
        """The scores among what the Trainer reports, under the names that the task gave them."""
        timing = ("runtime", "samples_per_second", "steps_per_second")
        cut = {key.partition("_")[2]: value for key, value in metrics.items() if "_" in key}
        return {key: float(value) for key, value in cut.items() if key not in timing}


def _callback(watch: _Watch) -> Any:
    from transformers import TrainerCallback

    class Watching(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.begin(kwargs["model"], kwargs["optimizer"], state.max_steps)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if watch.diverged is not None:
                control.should_training_stop = True
            elif watch.trace is not None:
                watch.trace.look(state.global_step + 1, state.epoch or 0.0)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if watch.progress is not None and state.global_step % 10 == 0:
                watch.progress(state.global_step / state.max_steps)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            watch.logged(logs)

        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
        ) -> None:
            watch.evaluated(metrics, state.global_step)
            if watch.diverged is not None:
                control.should_training_stop = True

    return Watching()


def _as_used(optimizer: torch.optim.Optimizer, arm: Arm) -> dict[str, Any]:
    """Every option of the optimizer, and what its groups hold."""
    options = {key: _plain(value) for key, value in optimizer.defaults.items()}
    if "sage_lr_scale" in options:
        options["lr_scale"] = options.pop("sage_lr_scale")
    groups = []
    for group in optimizer.param_groups:
        entry = {"parameters": sum(param.numel() for param in group["params"])}
        entry |= {"weight_decay": group["weight_decay"]}
        groups.append(entry | ({"sage": group["sage"]} if "sage" in group else {}))
    options["groups"] = groups
    return options | ({"scope": arm.scope} if arm.role == "sage" else {})


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


class _PeakMemory:
    """The process's largest resident memory from here on, in MiB; on CUDA, the device's."""

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        # Linux forgets the peak when told to; elsewhere it is that of the process's whole life.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def mib(self) -> float:
        if self.cuda:
            return round(torch.cuda.max_memory_allocated() / 2**20, 1)
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return round(int(line.split()[1]) / 1024, 1)
        unit = 2**20 if os.uname().sysname == "Darwin" else 2**10
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The Trainer's log and warnings are about what this file decides."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
