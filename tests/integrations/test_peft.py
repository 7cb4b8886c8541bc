"""PEFT: LoRA, DoRA and AdaLoRA, whose B matrices begin at exactly zero."""

import pytest
import torch

from sagelr import SageAdamax, SageAdamW, SageSGD, param_groups

peft = pytest.importorskip("peft")
LIBRARY = "peft"


def tiny(kind: str):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16, num_labels=2, initializer_range=0.1,
    )  # fmt: skip
    common = {"task_type": "SEQ_CLS", "target_modules": ["query", "value", "dense"]}
    if kind == "AdaLoRA":
        adapters = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=20, **common)
    else:
        adapters = peft.LoraConfig(r=4, use_dora=kind == "DoRA", **common)
    return peft.get_peft_model(BertForSequenceClassification(config), adapters)


def step(model, optimizer):
    tokens = torch.randint(5, 50, (16, 6))
    loss = model(input_ids=tokens, labels=(tokens[:, 0] < 25).long()).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("cls", [SageAdamW, SageAdamax, SageSGD])
@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "AdaLoRA"])
def test_zero_matrices_train(kind, cls):
    model = tiny(kind)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    # AdaLoRA's E, a column of singular values, begins at zero where B does elsewhere.
    zero = [n for n, p in before.items() if "lora_" in n and not p.any()]
    assert zero
    optimizer = cls(param_groups(model, weight_decay=0.0), lr=1.0 if cls is SageSGD else 0.01)
    step(model, optimizer)
    after = dict(model.named_parameters())
    assert all(after[name].detach().all() for name in zero)
    for _ in range(3):
        step(model, optimizer)
    assert all(not torch.equal(p, before[n]) for n, p in after.items() if n in before)


@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "AdaLoRA"])
def test_adapters_are_in_the_scope_of_what_they_adapt(kind):
    model = tiny(kind)
    groups = param_groups(model)
    sage = {name for group in groups if group["sage"] for name, _ in group["params"]}
    adapters = [
        n for n, p in model.named_parameters()
        if "encoder" in n and "lora_" in n and p.requires_grad
    ]  # fmt: skip
    assert adapters
    assert set(adapters) <= sage
    assert not any("pooler" in name or "classifier" in name for name in sage)


def test_multipliers_of_adapters_can_be_seen():
    model = tiny("LoRA")
    optimizer = SageAdamW(param_groups(model), lr=0.01)
    step(model, optimizer)
    tokens = torch.randint(5, 50, (16, 6))
    model(input_ids=tokens, labels=(tokens[:, 0] < 25).long()).loss.backward()
    for name, param in model.named_parameters():
        if "encoder" in name and "lora_" in name:
            r = optimizer.multiplier(param)
            assert r.shape == param.shape
            assert ((r >= 0) & (r <= 3)).all()


def test_the_example_learns(example):
    found = example("peft_lora").main()
    assert found["last"] < 0.3
    assert found["least_B"] > 0
