"""FSDP2 and torch.distributed.checkpoint, by the example. The details are in tests/core."""

import pytest

from .conftest import EXAMPLES, LEAVE

LIBRARY = "torch"


@pytest.mark.processes
@pytest.mark.parametrize("processes", [2, 3])
def test_a_sharded_checkpoint_goes_on_bit_for_bit(processes, launch):
    shown = launch(
        "torch.distributed.run",
        "--nproc_per_node",
        str(processes),
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        LEAVE,
        str(EXAMPLES / "fsdp2_checkpoint.py"),
    )
    assert "after loading" in shown
