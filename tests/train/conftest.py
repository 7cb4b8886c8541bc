"""Trainings of a second."""

import gc

import pytest

collect_ignore = ["follow.py"]  # what torchrun starts


@pytest.fixture(scope="session", autouse=True)
def _imported_once() -> None:
    """Accelerate collects garbage at the start of every training; what is imported is none."""
    import transformers.trainer  # noqa: F401

    gc.collect()
    gc.freeze()
