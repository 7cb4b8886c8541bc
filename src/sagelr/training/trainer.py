"""The Hugging Face Trainer, as one run of a study needs it.

What it does otherwise than the Trainer:

- Batches are those of a plan (see `batches`), so that a step is the same on any number of devices.
- A step made of several batches, or spread over several processes, weights each part by its share
  of the labels. The Trainer leaves that to the model, and many models take the mean regardless:
  their gradients would be too large by the number of parts.
- A checkpoint holds whole tensors, the record of the run, and a seal.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.integrations import get_reporting_integration_callbacks

from sagelr.errors import SagelrError, UsageError
from sagelr.schema import Recipe
from sagelr.tasks import Split, Task, evaluation_order
from sagelr.training import checkpoint, sharded
from sagelr.training.batches import Batches, Plan, loader
from sagelr.training.evaluation import SharedEvaluation, labels_of
from sagelr.training.optimizers import make_optimizer
from sagelr.training.run import Run
from sagelr.training.watch import Watch

# Reading a loss waits for an accelerator, and for the other processes: not at every step.
CHECK_EVERY = 20


class RunTrainer(SharedEvaluation):
    """Trains one arm at one setting.

    Args:
        recipe: what is trained.
        run: which run of it.
        task: its data.
        plan: which rows make which batch.
        watch: looks on.
        identity: whose the checkpoints are; None writes none.
        kwargs: for the Trainer.
    """

    made: torch.optim.Optimizer

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        task: Task,
        plan: Plan,
        watch: Watch,
        identity: dict[str, Any] | None,
        **kwargs: Any,
    ) -> None:
        self.recipe, self.run, self.task, self.plan = recipe, run, task, plan
        self.watch, self.identity = watch, identity
        self.keep_weights = False  # of every checkpoint, for sagelr audit
        self.keep_examples = False  # what each of them scored, when a split is evaluated
        self._examples: list[int] | None = None
        watch.trainer = self
        super().__init__(
            train_dataset=task.train,  # type: ignore[arg-type]
            eval_dataset=task.validation,  # type: ignore[arg-type]
            data_collator=task.collate,  # type: ignore[arg-type]
            compute_metrics=self._scores,
            preprocess_logits_for_metrics=task.keep_logits,
            callbacks=[watch],
            **kwargs,
        )
        self.in_parts = self.args.world_size > 1 or recipe.train.accumulate > 1
        if self.in_parts:
            self.loss_is_scaled_for_ga = True

    def _scores(self, prediction: Any) -> dict[str, float]:
        if self.keep_examples:
            self._examples = self.task.example_scores(prediction, self.recipe.metric)
        return self.task.scores(prediction)

    def examples_of(self, rows: Split) -> list[int] | None:
        """What each example of a split scored, row by row; it is the last that was evaluated.

        None where the metric is no mean over examples, and where `keep_examples` was off.
        """
        if self._examples is None or len(self._examples) != len(rows):
            return None
        found = dict(zip(evaluation_order(rows), self._examples, strict=True))
        return [found[row] for row in range(len(rows))]

    @property
    def saves(self) -> bool:
        """Whether checkpoints are written."""
        return self.identity is not None

    @property
    def bare(self) -> nn.Module:
        """The model without what is put around it, its weights as they are trained."""
        model = self._unwrapped
        sharded.reshard(model)
        return model

    @property
    def _unwrapped(self) -> nn.Module:
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model

    # -- the step -------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The arm's optimizer over the model."""
        arm = self.recipe.arms[self.run.arm]
        model = self.model if model is None else model
        self.made = self.optimizer = make_optimizer(model, arm, self.run.setting)
        return self.made

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The plan's batches, as far as they are this process's."""
        args = self.args
        batches = Batches(self.plan, args.process_index, args.world_size)
        pinned = args.dataloader_pin_memory
        return loader(
            self.task.train, batches, self.task.collate, self.accelerator.device, pinned=pinned
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The batches of a step, and the labels in all of them, in every process."""
        if not self.in_parts:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = list(islice(epoch_iterator, num_batches))
        total = torch.stack([labels_of(batch) for batch in batches]).sum().to(device)
        return batches, self.accelerator.reduce(total, "sum")  # type: ignore[return-value]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch; in training, of its share of the step."""
        if self.label_smoother is not None and "decoder_input_ids" not in inputs:
            # The loss is made here, from labels that the model does not see.
            shift = getattr(self._unwrapped, "prepare_decoder_input_ids_from_labels", None)
            if shift is not None:
                inputs = {**inputs, "decoder_input_ids": shift(inputs["labels"])}
        if not self.in_parts:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = labels_of(inputs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training and num_items_in_batch is not None:
            # Gradients are averaged over the processes, and this should be their sum.
            loss = loss * labels * self.args.world_size / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    @contextlib.contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Add up the gradients of several batches before they are sent around."""
        model: Any = self.model
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One batch, forward and backward."""
        loss = super().training_step(*args, **kwargs)
        self.watch.see_loss(loss, self.state.global_step + 1)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """None: they are counted at every step, and of no use here."""
        return 0

    def is_checked(self, step: int) -> bool:
        """Whether the loss of a step is read, to see that it is a number."""
        cheap = self.args.device.type == "cpu" and self.args.world_size == 1
        return cheap or step % CHECK_EVERY == 0

    def everywhere(self, flag: Tensor) -> bool:
        """Whether something is so in every process, which all of them learn."""
        if self.args.world_size > 1:
            flag = flag.int()
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        return bool(flag)

    def check_scores(self, scores: dict[str, float]) -> None:
        """See, after the first evaluation, that the scores are those that the recipe wants.

        Raises:
            SagelrError: the task does not give them.
        """
        wanted = {"metric": self.recipe.metric, "study.select_by": self.recipe.study.select_by}
        for key, name in wanted.items():
            if name not in scores and not self.task.decodes:
                raise SagelrError(missing_score(key, name, scores))
        if self.recipe.train.early_stopping and (by := wanted["study.select_by"]) not in scores:
            raise SagelrError(late_score(by, scores))

    # -- checkpoints ----------------------------------------------------------------------------

    def go_on(self) -> str:
        """Take up the last checkpoint.

        Returns:
            Its folder, for `train` to load the rest from.

        Raises:
            UsageError: there is none, or it is of another training.
            SagelrError: a file of it is damaged.
        """
        folder = Path(self.args.output_dir or "")
        found = checkpoint.last(folder)
        if found is None:
            raise UsageError(
                f"{folder} holds no whole checkpoint to resume from. Begin the training without "
                "--resume."
            )
        checkpoint.check_whole(found)
        content = checkpoint.read(found)
        checkpoint.check(found, content["identity"], self.identity or {})
        self.watch.go_on(content)
        return str(found)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        content = {
            "identity": self.identity,
            "losses": self._loss_sums(),
            **self.watch.state(),
        }
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir or "") / f"checkpoint-{self.state.global_step}"
            checkpoint.seal(folder, content)
        if self.keep_weights:
            self._write_model(
                Path(self.args.output_dir or "") / f"{checkpoint.WEIGHTS}-{self.state.global_step}"
            )

    def _loss_sums(self) -> list[tuple[float, float, int]]:
        """What each process has added up of the loss since it was last logged."""
        own = (self._tr_loss.item(), self._total_loss_scalar, self._globalstep_last_logged)
        if self.args.world_size == 1:
            return [own]
        every: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(every, own)
        return every

    def load_losses(self, losses: list[tuple[float, float, int]]) -> None:
        """Go on adding up; the Trainer would begin at nothing in the middle of an epoch."""
        if len(losses) == self.args.world_size:
            mine, total, step = losses[self.args.process_index]
        else:  # saved by more processes or by fewer: their mean is what is logged
            mine = sum(loss for loss, _, _ in losses) / len(losses)
            _, total, step = losses[0]
        self._tr_loss.fill_(mine)
        self._total_loss_scalar, self._globalstep_last_logged = total, step

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint's weights, under the names they have in the model.

        `save_pretrained` may rename them, and the Trainer's own loading passes over names that it
        does not find.
        """
        weights = sharded.weights(self.bare)
        if self.args.should_save:
            folder = Path(output_dir or "")
            folder.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(weights, folder / "model.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = safetensors.torch.load_file(Path(resume_from_checkpoint) / "model.safetensors")
        sharded.load_weights(self.bare, weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state, schedule = sharded.optimizer_state(self.made), self._schedule.state_dict()
        if self.args.should_save:
            torch.save(state, Path(output_dir) / "optimizer.pt")
            torch.save(schedule, Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            folder = Path(checkpoint)
            state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            sharded.load_optimizer_state(self.made, state)
            schedule = torch.load(folder / "scheduler.pt", weights_only=True)
            self._schedule.load_state_dict(schedule)

    @property
    def _schedule(self) -> torch.optim.lr_scheduler.LRScheduler:
        schedule: Any = self.lr_scheduler
        return schedule

    # -- afterwards -----------------------------------------------------------------------------

    def stop_reports(self) -> None:
        """Take the reporters off: a score after their end would begin a report of its own."""
        for reporter in get_reporting_integration_callbacks(self.recipe.train.report_to):
            self.remove_callback(reporter)

    def predict_into(self, folder: Path) -> dict[str, Any]:
        """Have the task write its predictions."""
        model: Any = self.bare
        model.eval()
        # Sharded weights are of use to all processes or to none.
        where = folder if self.args.should_save else Path(tempfile.mkdtemp(prefix="sagelr-"))
        where.mkdir(exist_ok=True)
        try:
            files = self.task.predictions(model, where)
        except SagelrError as error:
            return {"files": [], "problem": str(error)}
        finally:
            if where != folder:
                shutil.rmtree(where)
        return {"files": [file.name for file in files], "problem": None}

    def save(self, folder: Path, optimizer: bool) -> None:
        """Write the trained model, and the optimizer's state if asked for."""
        self._write_model(folder)
        state = sharded.optimizer_state(self.made) if optimizer else None
        if self.args.should_save:
            self.task.save(folder)
            if state is not None:
                torch.save(state, folder / "optimizer.pt")

    def _write_model(self, folder: Path) -> None:
        model: Any = self.bare
        weights = sharded.state_dict(model)
        if self.args.should_save:
            model.save_pretrained(folder, state_dict=weights)


def late_score(by: str, scores: Iterable[str]) -> str:
    """What to say of a score that comes too late for early stopping."""
    return (
        f"train.early_stopping watches study.select_by = {by!r} after every epoch, and it "
        f"is computed only after training. Select by one of: {', '.join(scores)}."
    )


def missing_score(key: str, name: str, scores: Iterable[str]) -> str:
    """What to say of a score that a task does not give."""
    return (
        f"The recipe's {key} is {name!r}, which this task does not give on these data. It gives: "
        f"{', '.join(scores)}. Choose one of them with --set {key}=…"
    )
