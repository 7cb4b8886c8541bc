"""A recipe's `[train]` as the Trainer's arguments."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainingArguments

from sagelr.errors import UsageError
from sagelr.schema import Recipe, Train
from sagelr.tasks import Task
from sagelr.training.batches import Plan, by_length, by_tokens, shuffled
from sagelr.training.run import Run, on_cpu, processes

EVAL_ROWS = 512  # of a batch that is only evaluated, at least
EVAL_ROWS_OF_TOKENS = 64  # where training batches are counted in tokens
REPORTS = 200  # how often a training reports, where it reports at all
# The Trainer's own "constant" has no warm-up; the others have.
SCHEDULES = {"constant": "constant_with_warmup"}
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX")}


def eval_batch_size(options: Train) -> int:
    """Rows of a batch that is only evaluated, on one device."""
    if options.eval_batch_size is not None:
        return options.eval_batch_size
    if options.batch_size is None or options.tokens_per_batch is not None:
        return EVAL_ROWS_OF_TOKENS
    return max(EVAL_ROWS, options.batch_size)


def batch_plan(options: Train, task: Task, seed: int) -> Plan:
    """Which rows make which batch.

    Raises:
        UsageError: the recipe wants batches by length, and the task knows no lengths.
    """
    if options.length_grouped or options.tokens_per_batch is not None:
        lengths = task.train_lengths()
        if lengths is None:
            key = "length_grouped" if options.length_grouped else "tokens_per_batch"
            raise UsageError(
                f"train.{key}: the rows of this task have no lengths to go by. Leave it out and "
                "set train.batch_size."
            )
        if options.tokens_per_batch is not None:
            return by_tokens(lengths, options.tokens_per_batch, seed)
        assert options.batch_size is not None
        return by_length(lengths, options.batch_size, seed)
    assert options.batch_size is not None
    return shuffled(len(task.train), options.batch_size, seed)


def training_arguments(
    recipe: Recipe, run: Run, model: PreTrainedModel, folder: Path, steps: int
) -> TrainingArguments:
    """The Trainer's arguments.

    Args:
        recipe: what is trained.
        run: which run of it.
        model: what it trains.
        folder: where it writes.
        steps: of the whole training.

    Raises:
        UsageError: what the recipe asks for cannot be had here.
    """
    options = recipe.train
    cpu = on_cpu(options.device)
    _check(options, model, cpu)
    how: dict[str, Any] = {"logging_strategy": "epoch", "report_to": "none"}
    if options.report_to:
        how["report_to"] = list(options.report_to)
        how["logging_strategy"] = "steps"
        how["logging_steps"] = max(1, steps // REPORTS)
    args = TrainingArguments(
        output_dir=str(folder),
        run_name=run.key,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=max(1, (options.batch_size or 1) // processes()),
        per_device_eval_batch_size=eval_batch_size(options),
        gradient_accumulation_steps=options.accumulate,
        learning_rate=run.setting["lr"],
        lr_scheduler_type=SCHEDULES.get(options.schedule, options.schedule),
        warmup_steps=options.warmup,
        max_grad_norm=options.max_grad_norm,
        label_smoothing_factor=options.label_smoothing,
        bf16=options.precision == "bf16",
        fp16=options.precision == "fp16",
        gradient_checkpointing=options.gradient_checkpointing,
        torch_compile=options.compile,
        seed=run.seed,
        data_seed=run.seed,
        eval_strategy="epoch",
        logging_nan_inf_filter=False,
        save_strategy="no",  # the watch decides
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not cpu,
        use_cpu=cpu,
        **how,
    )
    # The Trainer would spread a batch over every GPU it sees, copying the model at each step.
    # Several GPUs are used as torchrun starts them, one process each.
    if args.n_gpu > 1:
        args._n_gpu = 1
    return args


def _check(options: Train, model: PreTrainedModel, cpu: bool) -> None:
    if options.precision == "fp16" and cpu:
        raise UsageError(
            'train.precision = "fp16" needs a GPU, and there is none here. A CPU trains in "bf16".'
        )
    if options.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise UsageError(
            f"train.gradient_checkpointing: {type(model).__name__} does not support it. Leave it "
            "out."
        )
    count = processes()
    if options.tokens_per_batch is None and (options.batch_size or count) < count:
        raise UsageError(
            f"train.batch_size = {options.batch_size} is over all devices, and there are {count}: "
            "each has to have a row. Raise it, or use fewer devices."
        )
    for name in options.report_to:
        packages = PACKAGES.get(name, (name,))
        if not any(importlib.util.find_spec(package) for package in packages):
            raise UsageError(
                f"train.report_to: {name} is not installed. Install it: pip install {packages[0]}"
            )
