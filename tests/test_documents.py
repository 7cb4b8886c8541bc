"""The samples of docs/loop.md, one after another, as a reader would type them."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "loop.md"


@pytest.mark.filterwarnings("ignore::UserWarning")  # of schedulers after a step that was left out
def test_the_samples_run_and_the_model_learns(tmp_path, capsys):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    model = BertForSequenceClassification(config)
    words = torch.randint(40, (64, 8))
    batch = {"input_ids": words, "labels": (words[:, 0] < 20).long()}
    before = float(model(**batch).loss)
    names = {"model": model, "loader": [batch] * 20, "batch": batch, "path": tmp_path / "saved.pt"}
    samples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(samples) == 6
    for sample in samples:
        exec(compile(sample, str(PAGE), "exec"), names)
    assert float(model(**batch).loss) < before - 0.05
    multiplier, sensitivity = map(float, re.findall(r"tensor\((\d\S*)\)", capsys.readouterr().out))
    assert 0 < multiplier < 3
    assert 0 < sensitivity < 1
