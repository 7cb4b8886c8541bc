"""TRL: SFTTrainer on a tiny causal model."""

import pytest

pytest.importorskip("trl")
LIBRARY = "trl"


def test_the_example_learns(example):
    losses = example("trl_sft").main()
    assert losses[-1] < 0.6 * losses[0]
