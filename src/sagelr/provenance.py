"""When, on what machine and by which versions something was made."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sagelr.training.run import on_cpu

LIBRARIES = ("torch", "transformers", "accelerate", "optuna", "numpy", "scipy", "scikit-learn")


def now() -> str:
    """The time, as results.json has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine(device: str) -> dict[str, Any]:
    """What the study runs on.

    Args:
        device: of the recipe, "auto" or "cpu".
    """
    import psutil

    return {
        "platform": platform.platform(),
        "processor": _processor(),
        # Processors of one name may differ in it, and by a factor of two in speed.
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": psutil.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "device": _device(device),
    }


def _device(device: str) -> str:
    """The accelerator that is used, by name; "cpu" without one."""
    if on_cpu(device):
        return "cpu"
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return str(torch.accelerator.current_accelerator())


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions(packages: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Of those packages that are installed; by default the libraries that results depend on."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def other_versions(
    then: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Libraries that are of another version: name, then, now; sagelr among them.

    Args:
        then: what has "versions" and "sagelr", such as results.json.
        now: the same.
    """
    before, after = (of["versions"] | {"sagelr": of["sagelr"]} for of in (then, now))
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            yield name, before[name], after[name]
