"""timm. Cannot be imported beside a CPU build of torch without torchvision: skipped there."""

import pytest

LIBRARY = "timm"


def test_the_example_learns(example):
    pytest.importorskip("timm", reason="timm needs torchvision, which is not installed here")
    first, last = example("timm_image").main()
    assert last < 0.5 * first
