"""What the tests of the integrations share."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LEAVE = str(Path(__file__).with_name("leave.py"))  # stands before a script of several processes


@pytest.fixture
def example() -> Callable[[str], ModuleType]:
    """An example as a module, not run yet."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def launch() -> Callable[..., str]:
    """Run a command of the environment's on several processes; its output, if it succeeds."""

    def run(*command: str, timeout: float = 240, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return run
