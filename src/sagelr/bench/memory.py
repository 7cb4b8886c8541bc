"""Bytes of state, and of memory in passing, by counting what is allocated."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


class Allocated(NamedTuple):
    """What a piece of work allocated on a device.

    Attributes:
        kept: bytes that are still there after it.
        peak: the most that were there at once, over what was there before.
    """

    kept: int
    peak: int


def allocated(work: Callable[[], object], device: str) -> Allocated:
    """Do some work and count the bytes of tensors it allocates.

    On a CPU the profiler hears of every tensor that is made and freed, which slows the work down.

    Args:
        work: what to do; what it returns is dropped.
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return Allocated(
            torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
        )
    collecting = gc.isenabled()
    gc.disable()  # what others left behind would be counted as freed
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it prints two lines
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            work()
    finally:
        if collecting:
            gc.enable()
    profiler: Any = seen.profiler
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return Allocated(total, peak)


def free(device: str) -> int:
    """Bytes that can still be had."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available
