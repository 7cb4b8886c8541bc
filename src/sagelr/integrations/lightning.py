"""The live probe as a callback of Lightning.

::

    trainer = lightning.Trainer(callbacks=[probe_callback(file="probe.jsonl")], ...)
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from sagelr.live import SageProbe

if TYPE_CHECKING:
    from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports]


def probe_callback(**options: Any) -> Callback:
    """A callback that looks at SAGE while Lightning trains; see `sagelr.live.SageProbe`.

    The first optimizer that SAGE is in is looked at, after clipping. Scalars go to the trainer's
    loggers, histograms too where one of them is TensorBoard's. Process 0 alone looks.

    Args:
        options: of SageProbe, but for `step`, `attach`, `log` and `writer`.

    Raises:
        ImportError: Lightning is not installed.
        ValueError: at the start of training, as SageProbe does.
    """
    try:
        from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "probe_callback needs Lightning. Install it: pip install lightning"
        ) from error

    class _Probe(Callback):
        probe: SageProbe | None = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.is_global_zero:
                return
            optimizer = next(
                (each for each in trainer.optimizers if _has_sage(each)), trainer.optimizers[0]
            )
            self.probe = SageProbe(
                pl_module,
                optimizer,
                step=trainer.global_step,
                attach=False,
                log=lambda values: _log(trainer, values),
                writer=_writer(trainer),
                **options,
            )
            # Lightning steps with a closure, and clips after its last callback of a step: what
            # comes after clipping is this method of the module alone.
            clip = pl_module.configure_gradient_clipping

            @wraps(clip)
            def clip_and_look(optimizer: Any, *args: Any, **kwargs: Any) -> None:
                clip(optimizer, *args, **kwargs)
                self._look(optimizer)

            pl_module.configure_gradient_clipping = clip_and_look

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            # With manual optimization Lightning clips nothing after it, and whoever wrote the loop
            # has clipped already.
            if not pl_module.automatic_optimization:
                self._look(optimizer)

        def _look(self, optimizer: Any) -> None:
            if self.probe is not None and _bare(optimizer) is self.probe.viewer.optimizer:
                self.probe.before_step()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if self.probe is not None:
                self.probe.close()
                self.probe = None
                vars(pl_module).pop("configure_gradient_clipping", None)

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self.on_train_end(trainer, pl_module)

    return _Probe()


def _bare(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)


def _has_sage(optimizer: Any) -> bool:
    return any(group.get("sage") for group in optimizer.param_groups)


def _log(trainer: Any, values: dict[str, float]) -> None:
    for logger in trainer.loggers:
        if not _writes(logger):  # the writer gets them itself
            logger.log_metrics(values, step=trainer.global_step)


def _writer(trainer: Any) -> Any:
    """TensorBoard's writer, if it is among the loggers."""
    return next((logger.experiment for logger in trainer.loggers if _writes(logger)), None)


def _writes(logger: Any) -> bool:
    return hasattr(logger.experiment, "add_histogram")
