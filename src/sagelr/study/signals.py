"""Ctrl-C and its like: the first asks the study to stop, the second does not wait."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from sagelr.errors import SagelrError


class InterruptedStudyError(SagelrError):
    """Stopped by a signal; what is finished is kept."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signum


class Signals:
    """The signal that asked to stop, if one did."""

    def __init__(self) -> None:
        self.caught: int | None = None

    def catch(self, signum: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise KeyboardInterrupt
        self.caught = signum


@contextlib.contextmanager
def caught() -> Iterator[Signals]:
    """Catch the signals that ask a program to stop, but for those it was told to ignore.

    (nohup has a program ignore that its terminal is gone.)
    """
    signals = Signals()
    with handled(signals.catch):
        yield signals


@contextlib.contextmanager
def handled(catch: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """The same, with a handler of one's own."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may catch signals
        return
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {
        signum: signal.signal(signum, catch)
        for signum in wanted
        if signal.getsignal(signum) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
