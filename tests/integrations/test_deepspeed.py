"""DeepSpeed: ZeRO stages 1 and 2, on CPUs."""

import re

import pytest

from .conftest import EXAMPLES, LEAVE

LIBRARY = "deepspeed"


@pytest.mark.processes
@pytest.mark.parametrize("stage", [1, 2])
def test_the_example_learns_on_two_processes(stage, launch):
    pytest.importorskip("deepspeed")
    shown = launch(
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        LEAVE,
        str(EXAMPLES / "deepspeed_zero.py"),
        ZERO_STAGE=str(stage),
    )
    first, last = map(float, re.search(r"loss (\S+) → (\S+)", shown).groups())
    assert last < 0.6 * first
