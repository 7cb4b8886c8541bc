"""Watching SAGE while it trains: multipliers and sensitivities by layer, every so many steps.

::

    probe = SageProbe(model, optimizer, file="probe.jsonl")
    ...  # train as before
    probe.close()
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from sagelr.view import ELEMENTS, MultiplierRow, View, Viewer

__all__ = ["EVERY", "MultiplierRow", "SageProbe", "Writer", "scalars"]

EVERY = 100


class Writer(Protocol):
    """What is used of TensorBoard's SummaryWriter, and of those that are like it."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...

    def add_histogram(self, tag: str, values: Tensor, global_step: int) -> Any: ...


class SageProbe:
    """Looks at SAGE every `every` steps of a training, and writes down what it sees by layer.

    It hooks into the optimizer and looks right before its step, after unscaling and clipping: at
    the gradients that the step uses. Steps that are skipped, as by a GradScaler, are not counted.
    Shown are, of each layer under SAGE, the means of Ī, U and r, quantiles of r, and the shares of
    parameters that are frozen (r < 0.01) and boosted (r > 1); see `MultiplierRow`.

    A look costs less than a step: at most `elements` parameters are sampled, with a fixed stride.
    At the default `every` that is under 1% of the training. With sharded parameters (FSDP2) each
    process sees its own part.

    Args:
        model: in training, wrapped or not.
        optimizer: a SageAdamW, SageAdamax or SageSGD, or a `Sage`, over its parameters.
        every: steps from one look to the next, ≥ 1.
        file: to write rows to, `.jsonl` or `.parquet` (which needs pyarrow).
        append: go on with a .jsonl file that is there, as for a training that is resumed. A last
            line that was cut short goes, and rows of steps after `step`, for these are taken once
            more; from step 0 all rows stay.
        writer: a SummaryWriter or alike, for scalars and histograms.
        log: called with scalars by name, such as `wandb.log` or `Trainer.log`.
        elements: parameters looked at, about.
        step: steps taken before, where a training is resumed.
        attach: False leaves the optimizer alone: call `before_step()` between backward and step.
            Needed where `step` is given a closure.

    Raises:
        ValueError: the optimizer has nothing under SAGE or parameters that the model has not;
            every < 1; a file of another kind.
        FileExistsError: the file is there and not empty, and append was not asked for.
        ImportError: a .parquet file without pyarrow.

    Examples:
        >>> import torch
        >>> from sagelr import SageAdamW
        >>> model = nn.Linear(4, 2, bias=False)
        >>> seen = []
        >>> optimizer = SageAdamW(model.parameters(), lr=1e-3)
        >>> probe = SageProbe(model, optimizer, every=2, log=seen.append)
        >>> for _ in range(4):
        ...     model(torch.ones(1, 4)).sum().backward()
        ...     optimizer.step()
        >>> len(seen), sorted(seen[0])[:3]
        (2, ['sage/weight/boosted', 'sage/weight/frozen', 'sage/weight/multiplier'])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        every: int = EVERY,
        file: str | Path | None = None,
        append: bool = False,
        writer: Writer | None = None,
        log: Callable[[dict[str, float]], Any] | None = None,
        elements: int = ELEMENTS,
        step: int = 0,
        attach: bool = True,
    ) -> None:
        if every < 1:
            raise ValueError(f"SageProbe: every={every}. Give a number of steps of at least 1.")
        self.viewer = Viewer(model, optimizer, elements=elements)
        self.every, self.step = every, step
        self.writer, self.log = writer, log
        self._file = None if file is None else _open(Path(file), append, step)
        self._hook = None
        if attach:
            self._hook = self.viewer.optimizer.register_step_pre_hook(self._before)

    def before_step(self) -> list[MultiplierRow] | None:
        """Count a step that is about to be taken, and look if it is time.

        Returns:
            A row for each layer where it looked.
        """
        self.step += 1
        return self.look() if self.step % self.every == 0 else None

    def look(self) -> list[MultiplierRow] | None:
        """Look now, between backward and step, and write down what is seen.

        Returns:
            A row for each layer; None while there are no gradients.
        """
        view = self.viewer.look()
        if view is None:
            return None
        rows = view.rows(self.step)
        if self._file is not None:
            self._file.write(rows)
        if self.log is not None:
            self.log({name: value for row in rows for name, value in scalars(row).items()})
        if self.writer is not None:
            self._write(self.writer, view, rows)
        return rows

    def close(self) -> None:
        """Stop looking and close the file; a .parquet file is whole only then."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> SageProbe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(callable(each) and each is not optimizer for each in (*args, *kwargs.values())):
            raise RuntimeError(
                "SageProbe looks before the step, and a step with a closure has no gradients yet. "
                "Make it with attach=False, and call before_step() at the end of the closure."
            )
        self.before_step()

    def _write(self, writer: Writer, view: View, rows: list[MultiplierRow]) -> None:
        names = [layer.name for layer in view.layers]
        for row in rows:
            for name, value in scalars(row).items():
                writer.add_scalar(name, value, self.step)
            here = view.layer == names.index(row["layer"])
            writer.add_histogram(f"sage/{row['layer']}/r", view.multiplier[here], self.step)
            smoothed = view.smoothed[here]
            if (smoothed := smoothed[smoothed > 0]).numel():
                name = f"sage/{row['layer']}/log10 sensitivity"
                writer.add_histogram(name, smoothed.log10(), self.step)


def scalars(row: MultiplierRow) -> dict[str, float]:
    """A row as names and numbers, for loggers: sage/LAYER/multiplier, …/q5, …/frozen and so on."""
    prefix = f"sage/{row['layer']}/"
    found = {
        prefix + name: row[name]
        for name in ("sensitivity", "variation", "multiplier", "frozen", "boosted")
    }
    return found | {f"{prefix}q{level}": value for level, value in row["quantiles"].items()}


# -- files --------------------------------------------------------------------------------------


def _finite(value: object) -> object:
    """The value, or None in the place of what is no number, for which JSON has no word."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Lines:
    """A file with a row a line, whole after every look."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, rows: list[MultiplierRow]) -> None:
        for row in rows:
            quantiles = {level: _finite(value) for level, value in row["quantiles"].items()}
            finite = {key: _finite(value) for key, value in row.items()} | {"quantiles": quantiles}
            self._file.write(json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Table:
    """A Parquet file, with a row group a look."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(
                f"SageProbe: {path} needs pyarrow. Install it (pip install pyarrow), or give a "
                ".jsonl file."
            ) from error
        self._path, self._arrow, self._parquet = path, pyarrow, pyarrow.parquet
        self._file: Any = None

    def write(self, rows: list[MultiplierRow]) -> None:
        flat = [
            {key: value for key, value in row.items() if key != "quantiles"}
            | {f"q{level}": value for level, value in row["quantiles"].items()}
            for row in rows
        ]
        arrow = self._arrow
        kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
        schema = arrow.schema(
            [
                (name, arrow.int64() if name == "depth" else kinds[type(value)])
                for name, value in flat[0].items()
            ]
        )
        if self._file is None:
            self._file = self._parquet.ParquetWriter(self._path, schema)
        known = [{key: _finite(value) for key, value in row.items()} for row in flat]
        self._file.write_table(arrow.Table.from_pylist(known, schema=schema))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _open(path: Path, append: bool, step: int) -> _Lines | _Table:
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"SageProbe: file={str(path)!r}. Give it the suffix .jsonl or .parquet.")
    append = append and path.suffix == ".jsonl"
    if not append and path.exists() and path.stat().st_size:
        raise FileExistsError(
            f"SageProbe: {path} is there and not empty. Give another file"
            + (", or append=True to go on with it." if path.suffix == ".jsonl" else ".")
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if append and path.exists():
        _forget_after(path, step)
    return _Lines(path) if path.suffix == ".jsonl" else _Table(path)


def _forget_after(path: Path, step: int) -> None:
    """Leave out what a training wrote that had come further than the checkpoint it resumes from.

    What is left ends with a whole line. From step 0 that is all: rows may be of another training.
    """
    with path.open("rb") as file:
        lines = file.readlines()
    kept = [line for line in lines if not _is_after(line, step)]
    if kept and not kept[-1].endswith(b"\n"):
        kept[-1] += b"\n"
    if kept != lines:
        beside = path.with_name(path.name + ".part")
        beside.write_bytes(b"".join(kept))
        beside.replace(path)


def _is_after(line: bytes, step: int) -> bool:
    try:
        found = json.loads(line)["step"]
        return 0 < step < found
    except (ValueError, KeyError, TypeError):
        return not line.endswith(b"\n")  # cut short when the training was killed
