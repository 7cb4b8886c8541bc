"""torchvision."""

import pytest

LIBRARY = "torchvision"


def test_the_example_learns(example):
    pytest.importorskip("torchvision", reason="torchvision has no build for this torch here")
    first, last = example("torchvision_image").main()
    assert last < 0.5 * first
