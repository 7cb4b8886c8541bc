"""Roles, heads and neurons, in the architectures people train."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from sagelr.audit import Measured
from sagelr.audit.places import Part, dissect
from sagelr.audit.pruning import Pruner

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"intermediate_size": 24, "vocab_size": 40}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IDS = {"input_ids": torch.tensor([[3, 4, 5, 6]])}
BOTH = {**IDS, "labels": torch.tensor([[7, 8, 9]])}
MARIAN: dict[str, Any] = {
    **{"d_model": 16, "vocab_size": 40, "decoder_start_token_id": 0, "max_position_embeddings": 32},
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
}


class Blocks(nn.Module):
    """torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        return (self.encoder(inputs),)


class HeadByHead(nn.Module):
    """Attention as the UvA's course has it: one head's query, key and value, then the next's."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.qkv_proj, self.o_proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, inputs: Tensor) -> Tensor:
        heads = self.qkv_proj(inputs).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        query, key, value = heads.chunk(3, dim=-1)
        found = (query @ key.mT / 2).softmax(-1) @ value
        return self.o_proj(found.transpose(1, 2).flatten(2))


class Written(nn.Module):
    """Layers that somebody wrote."""

    def __init__(self) -> None:
        super().__init__()
        mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.layers = nn.ModuleList([nn.ModuleDict({"self_attn": HeadByHead(), "mlp": mlp})])

    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        (layer,) = self.layers
        inputs = inputs + layer["self_attn"](inputs)
        return (inputs + layer["mlp"](inputs),)


# Model, an input, the output projection of its first attention layer, roles that are told apart.
ALL = {"query", "key", "value", "output"}
MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], str, set[str]]] = {
    "bert": (
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**SIZE)),
        IDS,
        "bert.encoder.layer.0.attention.output.dense",
        ALL,
    ),
    "vit": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**SIZE, image_size=8, patch_size=4)),
        {"pixel_values": torch.ones(1, 3, 8, 8)},
        "vit.layers.0.attention.o_proj",
        ALL,
    ),
    "distilbert": (
        lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(dim=16, n_layers=2, n_heads=4, hidden_dim=24, vocab_size=40)
        ),
        IDS,
        "distilbert.transformer.layer.0.attention.out_lin",
        ALL,
    ),
    "gpt2": (
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(n_embd=16, n_layer=2, n_head=4, n_inner=24, vocab_size=40, **TOKENS)
        ),
        IDS,
        "transformer.h.0.attn.c_proj",
        ALL,
    ),
    "llama": (  # two query heads share a key and a value
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, num_key_value_heads=2, **TOKENS)),
        IDS,
        "model.layers.0.self_attn.o_proj",
        ALL,
    ),
    "gpt-neox": (  # query, key and value of a head side by side
        lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZE, **TOKENS)),
        IDS,
        "gpt_neox.layers.0.attention.dense",
        {"output"},
    ),
    "codegen": (  # query, value and key, for each of four devices
        lambda: hf.CodeGenForCausalLM(
            hf.CodeGenConfig(
                n_embd=16, n_layer=1, n_head=4, n_inner=24, rotary_dim=4, vocab_size=40, **TOKENS
            )
        ),
        IDS,
        "transformer.h.0.attn.out_proj",
        {"output"},
    ),
    "phi3": (  # query, key and value in one; so are gate and value
        lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**SIZE, num_key_value_heads=2, **TOKENS)),
        IDS,
        "model.layers.0.self_attn.o_proj",
        ALL,
    ),
    "deberta": (  # query, key and value of a head side by side, under the name of the other way
        lambda: hf.DebertaForSequenceClassification(hf.DebertaConfig(**SIZE)),
        IDS,
        "deberta.encoder.layer.0.attention.output.dense",
        {"output", "query", "value"},  # biases of two of them stand apart
    ),
    "t5": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(
                d_model=16,
                num_layers=1,
                num_heads=4,
                d_ff=24,
                d_kv=4,
                vocab_size=40,
                decoder_start_token_id=0,
            )
        ),
        BOTH,
        "encoder.block.0.layer.0.SelfAttention.o",
        ALL,
    ),
    "marian": (
        lambda: hf.MarianMTModel(hf.MarianConfig(**MARIAN, pad_token_id=0, eos_token_id=0)),
        BOTH,
        "model.encoder.layers.0.self_attn.out_proj",
        ALL,
    ),
    "torch": (
        Blocks,
        {"inputs": torch.linspace(-1, 1, 64).view(1, 4, 16)},
        "encoder.layers.0.self_attn.out_proj",
        ALL,
    ),
    "written": (  # of whose query, key and value the order is not known
        Written,
        {"inputs": torch.linspace(-1, 1, 64).view(1, 4, 16)},
        "layers.0.self_attn.o_proj",
        {"output"},
    ),
}


@pytest.fixture(params=list(MODELS))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, Tensor], str, set[str]]:
    make, *rest = MODELS[request.param]
    model = make()
    for param in model.parameters():  # biases and norms too, so that nothing is zero by chance
        nn.init.uniform_(param, 0.1, 0.9)
        param.data *= torch.where(torch.rand_like(param) < 0.5, -1, 1)
    return model.eval(), *rest


def test_the_kinds_of_a_model_hold_each_parameter_once(case):
    model, _, _, roles = case
    anatomy = dissect(model)
    seen = {name: torch.zeros_like(param) for name, param in model.named_parameters()}
    for parts in anatomy.kinds.values():
        for part in parts:
            part.of(seen).add_(1)
    assert all(bool((count == 1).all()) for count in seen.values())
    assert anatomy.notes == []
    told = {kind.removeprefix("attention ") for kind in anatomy.kinds if "attention " in kind}
    assert told == roles
    for units in anatomy.units:
        assert units.count == {"heads": 4, "neurons": 24}[units.kind]


def test_pruning_a_head_takes_what_it_says_from_the_model_and_no_more(case):
    """Head 2 of the first layer: as if what it hands to the output projection were zero."""
    model, inputs, output, _ = case
    name = next(u.layer for u in dissect(model).units if output.startswith(u.layer))
    scores = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    units = next(u for u in dissect(model).units if u.layer == name)
    for view in units.split(scores):
        view[2] = 0
    with torch.no_grad(), Pruner(model, Measured(1.0, 1, scores, scores)) as pruner:
        heads = pruner.total("heads")
        assert pruner.prune("heads", "sensitivity", "global", 1 / heads) == 1
        pruned = model(**inputs)
        zeroed = sum(int(mask.sum()) for mask in pruner.masks.values())
        assert zeroed == units.parameters_each(scores)
        projection = model.get_submodule(output)
        weight = (
            projection.weight if type(projection).__name__ != "Conv1D" else projection.weight.t()
        )
        assert not weight[:, 8:12].any()
        assert weight[:, :8].all()
        assert weight[:, 12:].all()
        pruner.restore()
        for index in (8, 9, 10, 11):
            (weight)[:, index] = 0  # nothing of the head is read
        expected = model(**inputs)
        pruner.restore()
        whole = model(**inputs)
    for got, want in zip(_tensors(pruned), _tensors(expected), strict=True):
        torch.testing.assert_close(got, want)
    assert any(
        not torch.allclose(got, want)
        for got, want in zip(_tensors(pruned), _tensors(whole), strict=True)
    )


def _tensors(output: Any) -> list[Tensor]:
    values = output.values() if hasattr(output, "values") else output
    return [value for value in values if isinstance(value, Tensor)]


def big_code() -> nn.Module:
    options = {"n_embd": 16, "n_layer": 1, "n_head": 4, "vocab_size": 40, "multi_query": False}
    return hf.GPTBigCodeModel(hf.GPTBigCodeConfig(**options, **TOKENS))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
@pytest.mark.parametrize(
    "make", [Blocks, big_code, lambda: hf.DebertaModel(hf.DebertaConfig(**SIZE))]
)
def test_a_wrapped_model_is_taken_apart_as_it_is_without(make, wrap):
    model = make()
    plain, wrapped = dissect(model), dissect(wrap(model))
    assert any(units.kind == "heads" for units in plain.units)
    assert wrapped.notes == plain.notes

    def own(parts: Iterable[Part]) -> list[Part]:
        """As the parameters are called without the wrapper."""
        stem = re.compile(r"^(_orig_mod|module)\.")
        return [replace(part, parameter=stem.sub("", part.parameter)) for part in parts]

    assert {kind: own(parts) for kind, parts in wrapped.kinds.items()} == plain.kinds
    found = [replace(units, parts=tuple(own(units.parts))) for units in wrapped.units]
    assert found == plain.units


def test_head_size_of_the_config_is_found_in_a_wrapper():
    """As of a model whose attention says nothing of its heads itself."""
    model = Written()
    del model.layers[0]["self_attn"].num_heads
    model.config = SimpleNamespace(num_attention_heads=4)
    for given in (model, nn.DataParallel(model)):
        assert [units.count for units in dissect(given).units] == [4, 24]


def test_a_bottleneck_is_no_gate():
    config = hf.MobileBertConfig(
        **{**SIZE, "hidden_size": 24}, intra_bottleneck_size=16, embedding_size=16
    )
    model = hf.MobileBertForSequenceClassification(config)
    neurons = [units for units in dissect(model).units if units.kind == "neurons"]
    assert neurons
    assert not any("bottleneck" in part.parameter for units in neurons for part in units.parts)


def test_adapters_of_a_fused_matrix_are_no_thirds_of_it():
    peft = pytest.importorskip("peft")
    config = hf.GPT2Config(n_embd=16, n_layer=1, n_head=4, vocab_size=40, **TOKENS)
    options = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(hf.GPT2LMHeadModel(config), options)
    seen = {name: torch.zeros_like(param) for name, param in model.named_parameters()}
    anatomy = dissect(model)
    for parts in anatomy.kinds.values():
        for part in parts:
            part.of(seen).add_(1)
    assert all(bool((count == 1).all()) for count in seen.values())
    assert {"attention query", "attention key", "attention value"} <= anatomy.kinds.keys()


def test_what_is_unlike_a_transformer_is_counted_and_said():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"attn": nn.Linear(8, 8)})])
            self.mlp = nn.Linear(3, 3)

    anatomy = dissect(Odd())
    assert anatomy.units == []
    assert anatomy.notes == ["The heads of layers.0.attn cannot be told from its names and shapes."]
    assert sum(len(parts) for parts in anatomy.kinds.values()) == 4


def test_units_that_are_not_measured_are_left_out():
    """As those of a model under LoRA's adapters, whose base is frozen."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, num_layers=2)
    known = {name for name, _ in model.named_parameters() if "layers.0.linear1" not in name}
    anatomy = dissect(model, known)
    assert [(units.kind, units.depth) for units in anatomy.units] == [
        ("heads", 0), ("heads", 1), ("neurons", 1)
    ]  # fmt: skip
    assert "The neurons of layers.0.feed-forward are frozen, or in part." in anatomy.notes
