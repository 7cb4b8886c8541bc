"""What tests share: the recorded data, and how Hypothesis runs."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile(
    "sagelr", deadline=None, max_examples=50, derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("sagelr")

# Workers of pytest-xdist share the cores. With as many threads as cores in each of them, OpenMP's
# waiting threads take the time of the working ones, and the tests take four times as long.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded data; a test that asks for it is skipped where there is none."""
    named = os.environ.get("SAGELR_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(named) if named else beside
    if not folder.is_dir():
        pytest.skip(f"no recorded data: {folder} does not exist; SAGELR_DATA names the folder")
    return folder
