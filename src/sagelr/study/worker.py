"""A worker process: trains what it is sent, one run after another, and writes nothing.

Messages to it: a `Run`; it ends when its pipe is closed. Messages from it: ("ready", (data,
notices)), ("progress", share), ("done", result), ("error", line), and when it cannot start at all
("broken", line), or ("usage", line) if that is the user's to mend.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any

from sagelr.errors import SagelrError, UsageError
from sagelr.quiet import quiet
from sagelr.recipe import Recipe
from sagelr.tasks import Task
from sagelr.train import Run, check_scope, train

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Worker:
    """The parent's end of a worker process.

    Args:
        recipe: what it trains, as plain data.
        threads: CPU threads of one training.
        gpu: the one it is to see, of several; None leaves that to CUDA.
    """

    def __init__(self, recipe: dict[str, Any], threads: int, gpu: str | None = None) -> None:
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_main, args=(other, recipe), daemon=True)
        environment: dict[str, str] = dict.fromkeys(THREADS, str(threads))
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        with _environment(environment), _ctrl_c_ignored():
            self.process.start()
        other.close()
        self.gpu = gpu
        self.ready = False
        self.run: Run | None = None
        self.share = 0.0

    def send(self, run: Run) -> None:
        """Have it train; if it is dead already, that shows at the next look."""
        self.run, self.share = run, 0.0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(run)

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Whatever has arrived."""
        with contextlib.suppress(EOFError, OSError):  # it died, perhaps in the middle of one
            while self.pipe.poll():
                yield self.pipe.recv()

    def death(self) -> str | None:
        """How it died; None if it lives."""
        self.process.join(0)
        status = self.process.exitcode
        if status is None:
            return None
        if status < 0:
            name = signal.Signals(-status).name
            why = ", as the system does when memory runs out" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{why}"
        return f"its process ended with exit status {status}"

    def stop(self) -> None:
        """End it now, in the middle of a run if need be."""
        self.process.terminate()
        self.process.join(2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """What a child finds when it starts; torch reads it before any line of ours runs there."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal; the parent alone is to act on it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited through exec
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _main(pipe: Connection, recipe: dict[str, Any]) -> None:
    quiet()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import transformers.trainer  # noqa: F401  (seconds that would count as the first run's)

        from sagelr.tasks import hub
        from sagelr.training.precision import notices

        checked = Recipe.model_validate(recipe)
        task = checked.make_task()
        _check_scopes(checked, task)
        told = [*task.notices(), *notices(checked.train)]
        data = task.describe()
        if task.pretrained is not None:
            data["model"] = hub.fingerprint(task.pretrained)
        pipe.send(("ready", (data, told)))
    except Exception as error:  # whatever it is, the parent has to be told
        pipe.send(("usage" if isinstance(error, UsageError) else "broken", _line(error)))
        return
    audit = _audit(checked)
    while True:
        try:
            run = pipe.recv()
        except EOFError:
            return
        try:
            result = train(
                checked,
                run,
                task,
                progress=lambda share: pipe.send(("progress", share)),
                audit=audit,
            )
        except BrokenPipeError:
            return
        except Exception as error:
            pipe.send(("error", _line(error)))
        else:
            pipe.send(("done", result))


def _check_scopes(recipe: Recipe, task: Task) -> None:
    """Find a mistake in an arm's scope now, not when the arms before it are tuned.

    Raises:
        UsageError: a scope is none, or selects nothing in the model.
    """
    scoped = {name: arm for name, arm in recipe.chosen_arms().items() if arm.scoped}
    if scoped:
        model = task.model(0)
        for name, arm in scoped.items():
            check_scope(name, arm, model)


def _audit(recipe: Recipe) -> Callable[[Any, Task], dict[str, Any]] | None:
    """What every model that is reported is measured for, if the recipe asks for it."""
    if not recipe.audit.enabled:
        return None
    from sagelr.audit import summary

    return lambda model, task: dict(summary(model, task, recipe.audit))


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _line(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, SagelrError) else f"{type(error).__name__}: {text}"
