"""What a training has cost so far: time, and the most memory it has held."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


class Spent:
    """Counts from here on, and adds what a checkpoint says was spent before."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._clock = time.perf_counter()
        self._before: dict[str, Any] = {"seconds": 0.0, "peak_memory_mib": 0.0}
        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        # Linux forgets the peak when told to; elsewhere it is that of the process's whole life.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def state(self) -> dict[str, Any]:
        """When it started, its seconds, and its peak memory in MiB (on CUDA, the device's)."""
        seconds = self._before["seconds"] + time.perf_counter() - self._clock
        return {
            "started": self.started,
            "seconds": round(seconds, 3),
            "peak_memory_mib": max(self._before["peak_memory_mib"], self._mib()),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.started, self._before = state["started"], state

    def _mib(self) -> float:
        if self._cuda:
            return round(torch.cuda.max_memory_allocated() / 2**20, 1)
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return round(int(line.split()[1]) / 1024, 1)
        unit = 2**20 if os.uname().sysname == "Darwin" else 2**10
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
