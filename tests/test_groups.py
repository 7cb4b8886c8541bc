"""Parameter groups: each model's scope against a list written by hand, and the errors."""

import copy
import functools
import itertools
import logging
import re
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from sagelr import groups as groups_module
from sagelr.groups import locate, param_groups

COUNTS = {"num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {**COUNTS, "hidden_size": 8, "intermediate_size": 16, "vocab_size": 20}
VIT = {**COUNTS, "hidden_size": 8, "intermediate_size": 16, "image_size": 8, "patch_size": 4}
SIDES = {
    f"{side}_{key}": n
    for side in ("encoder", "decoder")
    for key, n in [("layers", 2), ("attention_heads", 2), ("ffn_dim", 16)]
}
TOKENS = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1}
SEQ2SEQ = {**SIDES, **TOKENS, "vocab_size": 20, "d_model": 8, "forced_eos_token_id": 1}
RELATIVE = {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
GPT2 = {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}
T5 = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
DISTIL = {"vocab_size": 20, "dim": 8, "n_heads": 2, "n_layers": 2, "hidden_dim": 16}
EXPERTS = {"num_experts": 2, "moe_intermediate_size": 4, "shared_expert_intermediate_size": 4}


def weights(stem: str, modules: str) -> list[str]:
    """Names of the weights of some modules, given as words; {} stands for the layer's number."""
    return [f"{stem}.{module}.weight" for module in modules.split()]


def both(stem: str, modules: str) -> list[str]:
    """Names of the weights and biases."""
    return [n for w in weights(stem, modules) for n in (w, w.removesuffix("weight") + "bias")]


def bert(stem: str) -> list[str]:
    return [
        *both(f"{stem}.attention", "self.query self.key self.value output.dense"),
        *both(stem, "intermediate.dense output.dense"),
    ]


def llama(stem: str) -> list[str]:
    attention = weights(f"{stem}.self_attn", "q_proj k_proj v_proj o_proj")
    return [*attention, *weights(f"{stem}.mlp", "gate_proj up_proj down_proj")]


PROJECTIONS = "q_proj k_proj v_proj out_proj"
MARIAN = [
    *both("model.encoder.layers.{}.self_attn", PROJECTIONS),
    *both("model.encoder.layers.{}", "fc1 fc2"),
    *both("model.decoder.layers.{}.self_attn", PROJECTIONS),
    *both("model.decoder.layers.{}.encoder_attn", PROJECTIONS),
    *both("model.decoder.layers.{}", "fc1 fc2"),
]
DEBERTA = "deberta.encoder.layer.{}"
CROSS = "crossattention.self.query crossattention.self.key crossattention.self.value"
ALBERT = "albert.encoder.albert_layer_groups.{}.albert_layers.0"

# Model class: its config, and the names in the authors' scope in layer {}.
MODELS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "BertForMaskedLM": (SIZES, bert("bert.encoder.layer.{}")),
    "BertForSequenceClassification": (SIZES, bert("bert.encoder.layer.{}")),
    "BertLMHeadModel": (
        {**SIZES, "is_decoder": True, "add_cross_attention": True},
        [
            *bert("bert.encoder.layer.{}"),
            *both("bert.encoder.layer.{}", f"{CROSS} crossattention.output.dense"),
        ],
    ),
    "RobertaForSequenceClassification": (SIZES, bert("roberta.encoder.layer.{}")),
    "RobertaForMaskedLM": (SIZES, bert("roberta.encoder.layer.{}")),
    "ElectraForPreTraining": ({**SIZES, "embedding_size": 4}, bert("electra.encoder.layer.{}")),
    "DebertaForSequenceClassification": (
        {**RELATIVE, "pos_att_type": "c2p|p2c"},
        [
            *weights(f"{DEBERTA}.attention.self", "in_proj pos_proj"),
            *both(f"{DEBERTA}.attention", "self.pos_q_proj output.dense"),
            *both(DEBERTA, "intermediate.dense output.dense"),
            f"{DEBERTA}.attention.self.q_bias",
            f"{DEBERTA}.attention.self.v_bias",
        ],
    ),
    "DebertaV2ForSequenceClassification": (
        {**RELATIVE, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3},
        [
            *both(f"{DEBERTA}.attention.self", "query_proj key_proj value_proj"),
            *both(f"{DEBERTA}.attention.self", "pos_query_proj pos_key_proj"),
            *both(DEBERTA, "attention.output.dense intermediate.dense output.dense"),
        ],
    ),
    "DistilBertForSequenceClassification": (
        DISTIL,
        [
            *both("distilbert.transformer.layer.{}.attention", "q_lin k_lin v_lin out_lin"),
            *both("distilbert.transformer.layer.{}.ffn", "lin1 lin2"),
        ],
    ),
    "AlbertForSequenceClassification": (
        {**SIZES, "embedding_size": 4, "num_hidden_groups": 2},
        [*both(f"{ALBERT}.attention", "query key value dense"), *both(ALBERT, "ffn ffn_output")],
    ),
    "MarianMTModel": (SEQ2SEQ, MARIAN),
    "BartForSequenceClassification": (SEQ2SEQ, MARIAN),
    "T5ForConditionalGeneration": (
        {**T5, "feed_forward_proj": "gated-gelu"},
        [
            *weights("encoder.block.{}.layer.0.SelfAttention", "q k v o"),
            *weights("encoder.block.{}.layer.1.DenseReluDense", "wi_0 wi_1 wo"),
            *weights("decoder.block.{}.layer.0.SelfAttention", "q k v o"),
            *weights("decoder.block.{}.layer.1.EncDecAttention", "q k v o"),
            *weights("decoder.block.{}.layer.2.DenseReluDense", "wi_0 wi_1 wo"),
        ],
    ),
    "ViTForImageClassification": (
        VIT,
        [
            *both("vit.layers.{}.attention", "q_proj k_proj v_proj o_proj"),
            *both("vit.layers.{}.mlp", "fc1 fc2"),
        ],
    ),
    "SiglipVisionModel": (  # whose head is attention and a feed-forward network of its own
        VIT,
        [
            *both("encoder.layers.{}.self_attn", PROJECTIONS),
            *both("encoder.layers.{}.mlp", "fc1 fc2"),
        ],
    ),
    "LlamaForCausalLM": (SIZES, llama("model.layers.{}")),
    "MistralForCausalLM": ({**SIZES, "num_key_value_heads": 1}, llama("model.layers.{}")),
    "Qwen3ForCausalLM": (  # its q_norm and k_norm lie inside the attention
        {**SIZES, "num_key_value_heads": 1, "head_dim": 4},
        llama("model.layers.{}"),
    ),
    "Qwen2MoeForCausalLM": (  # neither of its routers: mlp.gate, mlp.shared_expert_gate
        {**SIZES, **EXPERTS, "num_key_value_heads": 1, "num_experts_per_tok": 1},
        [
            *both("model.layers.{}.self_attn", "q_proj k_proj v_proj"),
            *weights("model.layers.{}", "self_attn.o_proj"),
            *weights("model.layers.{}.mlp.shared_expert", "gate_proj up_proj down_proj"),
            "model.layers.{}.mlp.experts.gate_up_proj",
            "model.layers.{}.mlp.experts.down_proj",
        ],
    ),
    "GPT2LMHeadModel": (
        GPT2,
        both("transformer.h.{}", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"),
    ),
    "GPTNeoXForCausalLM": (
        SIZES,
        [
            *both("gpt_neox.layers.{}.attention", "query_key_value dense"),
            *both("gpt_neox.layers.{}.mlp", "dense_h_to_4h dense_4h_to_h"),
        ],
    ),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def known(request: pytest.FixtureRequest) -> tuple[nn.Module, set[str]]:
    model_class = getattr(pytest.importorskip("transformers"), request.param)
    config, layer = MODELS[request.param]
    model = model_class(model_class.config_class(**config))
    return model, {name.format(i) for i in range(2) for name in layer}


def names(groups: list[dict[str, Any]], **options: Any) -> set[str]:
    found = [g for g in groups if all(g[key] == value for key, value in options.items())]
    return {name for group in found for name, _ in group["params"]}


class Block(nn.Module):
    """One layer as vision libraries name it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(4)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(4, 12), "proj": nn.Linear(4, 4)})
        self.norm2 = nn.LayerNorm(4)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(4, 8), "fc2": nn.Linear(8, 4)})


class Net(nn.Module):
    """Two layers and a head, with room for the parts that a test adds."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 2)
        for name, part in parts.items():
            setattr(self, name, part)


BLOCK = both("blocks.{}", "attn.qkv attn.proj mlp.fc1 mlp.fc2")
NET = {name.format(i) for i in range(2) for name in BLOCK}


# --- the authors' scope ---------------------------------------------------------------------------


def test_scope_of_a_known_model_is_the_one_written_by_hand(known):
    model, expected = known
    assert names(param_groups(model), sage=True) == expected


def test_every_trainable_parameter_is_in_exactly_one_group(known):
    model, _ = known
    placed = [p for g in param_groups(model) for _, p in g["params"]]
    assert len(placed) == len(set(placed))
    assert set(placed) == {p for p in model.parameters() if p.requires_grad}


def test_decay_of_a_known_model(known):
    model, _ = known
    groups = param_groups(model, weight_decay=0.1)
    tables = {"relative_attention_bias"}  # T5's bias is a table, and a bias
    kept = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.ndim > 1 and not tables & set(name.split("."))
    }
    assert names(groups, weight_decay=0.1) == kept
    assert not any(re.search(r"bias$|norm|ln_", n, re.IGNORECASE) for n in kept)
    assert {g["weight_decay"] for g in groups} == {0.0, 0.1}


def test_torch_takes_the_groups_of_a_known_model(known):
    model, _ = known
    optimizer = torch.optim.AdamW(param_groups(model), lr=1e-3)
    kept = {name for g in optimizer.param_groups for name in g["param_names"]}
    assert kept == names(param_groups(model))
    assert all(len(g["param_names"]) == len(g["params"]) for g in optimizer.param_groups)


def test_torch_transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, num_layers=2)
    expected = {
        f"layers.{i}.{name}"
        for i in range(2)
        for name in [
            "self_attn.in_proj_weight",
            "self_attn.in_proj_bias",
            "self_attn.out_proj.weight",
            "self_attn.out_proj.bias",
            "linear1.weight",
            "linear1.bias",
            "linear2.weight",
            "linear2.bias",
        ]
    }
    assert names(param_groups(encoder), sage=True) == expected
    own = {name.removeprefix("layers.0.") for name in expected if name.startswith("layers.0")}
    assert names(param_groups(layer), sage=True) == own
    both_sides = names(param_groups(nn.Transformer(8, 2, 1, 1, 16, batch_first=True)), sage=True)
    assert "decoder.layers.0.multihead_attn.in_proj_weight" in both_sides
    assert not any("norm" in name for name in both_sides)


@pytest.mark.parametrize("kind", ["XLM", "Flaubert"])
def test_layers_kept_in_a_list_of_each_kind(kind):
    """XLM has `attentions.0` and `ffns.0` where others have `layers.0.attention`."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(vocab_size=20, emb_dim=8, n_layers=2, n_heads=2)
    model = getattr(transformers, f"{kind}Model")(config)
    layers = {
        (at.layer, at.depth, at.kind) for at in locate(model).values() if at.depth is not None
    }
    found = {(f"attentions.{i}", i, "attention") for i in range(2)}
    found |= {(f"ffns.{i}", i, "feed-forward") for i in range(2)}
    assert {at for at in layers if at[2] != "norm"} == found


def test_attention_in_a_list_beside_numbered_layers():
    """BLT's cross attention, and none of Perceiver's layers, which hold more than attention."""
    attention = nn.ModuleList([nn.MultiheadAttention(4, 2) for _ in range(2)])
    places = locate(Net(cross_attn=attention, self_attends=nn.ModuleList([Block()])))
    assert places["cross_attn.1.in_proj_weight"] == ("cross_attn.1", 1, "attention")
    assert places["self_attends.0.attn.qkv.weight"] == ("self_attends.0.attn", 0, "attention")
    assert places["self_attends.0.mlp.fc1.weight"] == ("self_attends.0.mlp", 0, "feed-forward")


def tree(*names: str) -> nn.Module:
    """A model of these parameters, in modules that say nothing by their class."""
    model = nn.Module()
    for name in names:
        *owners, own = name.split(".")
        at = model
        for part in owners:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at._modules[part]
        at.register_parameter(own, nn.Parameter(torch.empty(2, 2)))
    return model


NAMED = {
    "bert.encoder.layer.11.intermediate.dense.bias": ("feed-forward", "feed-forward", 11),
    "bert.encoder.layer.11.output.dense.bias": ("feed-forward", "feed-forward", 11),
    "bert.encoder.layer.11.attention.output.LayerNorm.weight": ("norm", "LayerNorm", 11),
    "decoder.block.3.layer.1.EncDecAttention.q.weight": ("attention", "EncDecAttention", 3),
    "decoder.block.3.layer.2.DenseReluDense.wo.weight": ("feed-forward", "DenseReluDense", 3),
    "vit.encoder.layer.2.attention.attention.query.weight": ("attention", "attention", 2),
    "vit.encoder.layer.2.attention.output.dense.weight": ("attention", "attention", 2),
    "encoder.layers.encoder_layer_5.self_attention.weight": ("attention", "self_attention", 5),
    "encoder.layers.encoder_layer_5.mlp.0.weight": ("feed-forward", "mlp", 5),
    "layers.1.blocks.4.attn.qkv.weight": ("attention", "attn", 4),
    "layers.7.self_attn.q_proj.weight": ("attention", "self_attn", 7),
    "layers.7.block_sparse_moe.experts.3.w1.weight": ("feed-forward", "block_sparse_moe", 7),
    "layers.7.block_sparse_moe.gate.weight": ("other", "gate", 7),
    "0.auto_model.encoder.layer.3.attention.self.key.weight": ("attention", "attention", 3),
    "0.auto_model.embeddings.word_embeddings.weight": ("embedding", "word_embeddings", None),
    "0.auto_model.pooler.dense.weight": ("head", "dense", None),
    "layers.0.self_attn.relative_attention_bias.weight": ("embedding", None, None),
    "model.shared.weight": ("embedding", "shared", None),
    "blocks.0.cls_token": ("embedding", None, None),
    "cls.predictions.transform.dense.weight": ("head", "dense", None),
    "vision.pre_layrnorm.weight": ("norm", "pre_layrnorm", None),
    "h.4.ln_1.weight": ("norm", "ln_1", 4),
    "self_attn.q_proj.weight": ("other", "q_proj", None),
    "fc1.weight": ("other", "fc1", None),
    "logit_scale": ("other", "logit_scale", None),
}


@pytest.mark.parametrize("name", NAMED)
def test_kind_and_layer_of_a_name(name):
    kind, layer, depth = NAMED[name]
    found = locate(tree(*NAMED))[name]
    assert (found.kind, found.depth) == (kind, depth)
    assert layer is None or found.layer.rpartition(".")[2] == layer


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["0", "12", "LayerNorm", "attention", "block", "embeddings", "encoder", "experts"]
        )
        | st.sampled_from(["fc1", "gate", "head", "layers", "mlp", "module", "output", "shared"])
        | st.from_regex(r"[^.]{1,4}", fullmatch=True),
        min_size=1,
        max_size=7,
    ).map(".".join)
)
def test_any_name_has_a_place(name):
    assume(not any(hasattr(nn.Module, part) for part in name.split(".")))
    [place] = locate(tree(name)).values()
    assert place.kind in {"attention", "feed-forward", "embedding", "norm", "head", "other"}
    assert place.depth is None or place.depth >= 0


def test_multihead_attention_alone_is_attention():
    module = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    groups = param_groups(module)
    assert names(groups, sage=True) == {n for n, _ in module.named_parameters()}
    assert names(groups, weight_decay=0.01) == {"in_proj_weight", "out_proj.weight"}


def test_vision_naming():
    assert names(param_groups(Net()), sage=True) == NET


@pytest.mark.parametrize(
    "part",
    [
        {"attention": nn.Linear(4, 1)},
        {"attn_pool": nn.MultiheadAttention(4, 2)},
        {"mlp": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))},
        {"fc1": nn.Linear(4, 4)},
        {"output": nn.ModuleDict({"dense": nn.Linear(4, 4)})},
        {"classifier": nn.ModuleDict({"dense": nn.Linear(4, 4), "attention": nn.Linear(4, 4)})},
        {"heads": nn.ModuleList([Block(), Block()])},
        {"regressors": nn.ModuleList([nn.ModuleDict({"mlp": nn.Linear(4, 1)})])},
    ],
    ids=lambda part: next(iter(part)),
)
def test_a_part_named_like_a_layer_outside_the_layers_stays_out(part):
    assert names(param_groups(Net(**part)), sage=True) == NET


def test_classes_tell_where_names_do_not():
    class CausalSelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.to_qkv = nn.Linear(4, 12)

    class FeedForward(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))

    layer = nn.ModuleList([CausalSelfAttention(), FeedForward()])
    model = nn.ModuleDict({"layers": nn.ModuleList([layer]), "to_logits": nn.Linear(4, 2)})
    expected = {*both("layers.0.0", "to_qkv"), *both("layers.0.1.net", "1")}
    assert names(param_groups(model), sage=True) == expected
    assert names(param_groups(model), weight_decay=0.0) >= set(both("layers.0.1.net", "0"))
    assert locate(model)["layers.0.1.net.1.weight"].layer == "layers.0.1"


def test_gate_of_a_gated_unit_is_feed_forward_and_a_router_is_not():
    model = Net()
    for block in model.blocks:
        block.mlp["gate"] = nn.Linear(4, 8)  # type: ignore[index]
    assert locate(model)["blocks.0.mlp.gate.weight"].kind == "feed-forward"
    model.blocks[0].mlp["experts"] = nn.ModuleList([nn.Linear(4, 4)])  # type: ignore[index]
    assert locate(model)["blocks.0.mlp.gate.weight"].kind == "other"
    assert locate(model)["blocks.0.mlp.experts.0.weight"].kind == "feed-forward"


def test_adapters_count_as_what_they_adapt():
    model = Net()
    model.requires_grad_(False)
    for block in model.blocks:
        for rank, shape in (("lora_A", (4, 2)), ("lora_B", (2, 4))):
            holder = nn.ModuleDict({"default": nn.Linear(*shape, bias=False)})
            block.attn["qkv"].add_module(rank, holder)  # type: ignore[index]
    groups = param_groups(model)
    expected = {f"blocks.{i}.attn.qkv.lora_{ab}.default.weight" for i in range(2) for ab in "AB"}
    assert names(groups) == names(groups, sage=True, weight_decay=0.01) == expected


def test_wrapped_model_has_the_same_scope_and_layers():
    wrapped = nn.Module()
    wrapped.module = nn.Module()
    wrapped.module._orig_mod = Net()
    stem = "module._orig_mod."
    assert {n.removeprefix(stem) for n in names(param_groups(wrapped), sage=True)} == NET
    assert locate(wrapped)[f"{stem}blocks.1.mlp.fc1.weight"] == ("blocks.1.mlp", 1, "feed-forward")


# --- names ----------------------------------------------------------------------------------------


# --- selection by hand ----------------------------------------------------------------------------


def test_everything_nothing_and_halves():
    model = Net()
    every = {n for n, _ in model.named_parameters()}
    assert names(param_groups(model, sage="all"), sage=True) == every
    assert names(param_groups(model, sage="none"), sage=False) == every
    attention_alone = names(param_groups(model, sage="attention"), sage=True)
    feed_forward = names(param_groups(model, sage="ffn"), sage=True)
    assert attention_alone == {n for n in NET if ".attn." in n}
    assert attention_alone | feed_forward == NET
    assert not attention_alone & feed_forward


def test_patterns_and_callable():
    model = Net()
    qkv = {n for n in NET if "qkv" in n}
    assert names(param_groups(model, sage=r"attn\.qkv"), sage=True) == qkv
    two = names(param_groups(model, sage=[r"attn\.qkv", r"^head\."]), sage=True)
    assert two == qkv | {"head.weight", "head.bias"}
    matrices = names(param_groups(model, sage=lambda name, p: p.ndim > 1), sage=True)
    assert matrices == {n for n, p in model.named_parameters() if p.ndim > 1}


def test_no_decay_adds_to_biases_and_norms():
    groups = param_groups(Net(), no_decay="qkv")
    plain = names(param_groups(Net()), weight_decay=0.01)
    assert names(groups, weight_decay=0.01) == {n for n in plain if "qkv" not in n}


def test_groups_are_ordered_and_empty_ones_left_out():
    groups = param_groups(Net(), weight_decay=0.1)
    options = [(g["sage"], g["weight_decay"]) for g in groups]
    assert options == [(True, 0.1), (True, 0.0), (False, 0.1), (False, 0.0)]
    order = [n for n, _ in Net().named_parameters()]
    for group in groups:
        positions = [order.index(name) for name, _ in group["params"]]
        assert positions == sorted(positions)
    without = [(g["sage"], g["weight_decay"]) for g in param_groups(Net(), weight_decay=0)]
    assert without == [(True, 0.0), (False, 0.0)]


def test_few_dimensions_never_decay_whatever_the_name():
    model = Net()
    model.logit_scale = nn.Parameter(torch.ones(()))
    model.layer_scale = nn.Parameter(torch.ones(4))
    model.pos_embed = nn.Parameter(torch.ones(1, 2, 4))
    model.position_bias = nn.Parameter(torch.ones(2, 4))
    groups = param_groups(model)
    none = {"logit_scale", "layer_scale", "position_bias"}
    assert none <= names(groups, weight_decay=0.0)
    assert "pos_embed" in names(groups, weight_decay=0.01)


def test_norm_of_two_dimensions_and_unusual_name_does_not_decay():
    model = Net(scale=nn.LayerNorm((2, 4)))
    assert "scale.weight" in names(param_groups(model), weight_decay=0.0)


def test_tied_weight_appears_once_and_any_of_its_names_selects_it():
    model = Net(embed=nn.Embedding(2, 4))
    model.head.weight = model.embed.weight  # type: ignore[union-attr]
    groups = param_groups(model, sage=r"^head\.weight$")
    assert names(groups, sage=True) == {"head.weight"}  # its first name here
    assert sum(p is model.head.weight for g in groups for _, p in g["params"]) == 1
    assert names(param_groups(model, sage=r"^embed\."), sage=True) == {"head.weight"}


def test_tied_embedding_of_a_language_model_appears_once():
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    assert model.lm_head.weight is model.transformer.wte.weight
    placed = names(param_groups(model))
    assert "transformer.wte.weight" in placed
    assert "lm_head.weight" not in placed


def test_shared_layers_appear_once():
    model = Net()
    model.blocks[1] = model.blocks[0]
    assert names(param_groups(model), sage=True) == {n for n in NET if n.startswith("blocks.0")}


def test_frozen_parameters_are_left_out():
    model = Net()
    model.blocks[0].requires_grad_(False)
    assert not any(name.startswith("blocks.0") for name in names(param_groups(model)))


@settings(max_examples=50, deadline=None)
@given(
    decay=st.floats(0, 1),
    frozen=st.sets(st.sampled_from([n for n, _ in Net().named_parameters()]), max_size=25),
    tie=st.booleans(),
    scope=st.sampled_from(["all", "none", r"weight|bias", lambda name, p: True]),
)
def test_groups_partition_the_trainable_parameters(decay, frozen, tie, scope):
    model = Net()
    for name, p in model.named_parameters():
        p.requires_grad_(name not in frozen)
    if tie:
        model.blocks[1].mlp["fc1"] = model.blocks[0].mlp["fc1"]  # type: ignore[index]
    trainable = {p for p in model.parameters() if p.requires_grad}
    if not trainable:
        return
    groups = param_groups(model, decay, scope)
    placed = [p for g in groups for _, p in g["params"]]
    assert set(placed) == trainable
    assert len(placed) == len(trainable)
    assert 1 <= len(groups) <= 4
    assert all(g["params"] and g["weight_decay"] in (0.0, decay) for g in groups)
    assert all(p.ndim > 1 for g in groups if g["weight_decay"] for _, p in g["params"])
    assert str(groups) == str(param_groups(model, decay, scope))


# --- errors ---------------------------------------------------------------------------------------


def error(expected: type[Exception], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(expected) as caught:
        param_groups(*args, **kwargs)
    return str(caught.value)


def test_no_layer_found_names_what_was_sought_and_the_remedy():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(6)])
    message = error(ValueError, model)
    for part in ("attention+ffn", "attention or feed-forward", "Sequential", 'sage="all"'):
        assert part in message
    assert "0.weight, 0.bias" in message
    assert "3.bias, … (12 in all)" in message
    assert "4.weight" not in message


def test_frozen_layers_are_mentioned_when_none_is_trainable():
    model = Net()
    model.blocks.requires_grad_(False)
    assert "(16 such are frozen)" in error(ValueError, model)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("atn.qkv", "attn.qkv"),
        (r"blocks\.\d+\.attention\.qkv", "blocks.0.attn.qkv"),
        ("MLP", "mlp"),
        (r"blocks\.99\.attn\.qkv", "blocks.0.attn.qkv"),
        ("^haed", "head"),
        (["mlp", "norms"], "norm1"),
    ],
)
def test_pattern_without_a_match_lists_near_misses(pattern, near):
    message = error(ValueError, Net(), sage=pattern)
    misses = re.search(r"Near misses: (.*?)\. Allowed", message)
    assert misses, message
    assert near in misses[1].split(", ")
    assert len(misses[1].split(", ")) <= 8
    assert repr(pattern if isinstance(pattern, str) else pattern[-1]) in message


def test_pattern_near_nothing_lists_parameters():
    message = error(ValueError, Net(), sage="xyzzy")
    assert "Near misses" not in message
    assert "blocks.0.norm1.weight" in message


def test_pattern_that_matches_only_frozen_parameters_is_an_error():
    model = Net()
    model.head.requires_grad_(False)
    assert "trainable" in error(ValueError, model, sage=r"^head\.")


def test_invalid_pattern_says_where():
    message = error(ValueError, Net(), sage="attn(")
    assert "'attn('" in message
    assert "position 4" in message
    assert "no_decay='*'" in error(ValueError, Net(), no_decay="*")


def test_callable_and_no_decay_that_select_nothing():
    assert "selected none of 26" in error(ValueError, Net(), sage=lambda name, p: False)
    assert "no_decay='nomr'" in error(ValueError, Net(), no_decay="nomr")
    assert "holds no pattern" in error(ValueError, Net(), sage=[])


@pytest.mark.parametrize("value", [True, None, 3, ["mlp", 1], b"mlp"])
def test_sage_of_a_wrong_type(value):
    message = error(TypeError, Net(), sage=value)
    assert repr(value) in message
    assert "regular expression" in message


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_weight_decay_out_of_range(value):
    message = error(ValueError, Net(), value)
    assert f"weight_decay={value}" in message
    assert "≥ 0" in message


@pytest.mark.parametrize("value", ["0.1", None, True])
def test_weight_decay_of_a_wrong_type(value):
    assert "finite number" in error(TypeError, Net(), value)


def test_model_without_trainable_parameters_and_no_model():
    frozen = copy.deepcopy(Net()).requires_grad_(False)
    assert "26 parameters, none with requires_grad=True" in error(ValueError, frozen)
    assert "no trainable parameter" in error(ValueError, nn.ReLU())
    assert "of type list" in error(TypeError, list(Net().parameters()))


# -- less usual layers ----------------------------------------------------------------------------


class Gated(nn.Module):
    """A block with factors of what its layers give, position tables and a second pair of halves."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(4, 12)
        self.attn.attention_biases = nn.Parameter(torch.zeros(2, 9))
        self.attn.cpb_mlp = nn.Linear(2, 8)
        self.intermediate, self.output = nn.Linear(4, 8), nn.Linear(8, 4)
        self.intermediate_query, self.output_query = nn.Linear(4, 8), nn.Linear(8, 4)
        self.gate_attn = nn.Parameter(torch.zeros(1))
        self.cross_attn_mlp_gate = nn.Parameter(torch.zeros(1))
        self.mlp_layer_scale = nn.Module()
        self.mlp_layer_scale.scale = nn.Parameter(torch.ones(4, 1, 1))


def test_factors_and_position_tables_are_no_layers():
    model = nn.ModuleDict({"layers": nn.ModuleList([Gated(), Gated()])})
    places = {
        name.removeprefix("layers.1."): (place.layer.removeprefix("layers.1."), place.kind)
        for name, place in locate(model).items()
        if name.startswith("layers.1.")
    }
    assert places["attn.qkv.weight"] == ("attn", "attention")
    for half in ("intermediate", "output"):
        assert places[f"{half}.weight"] == ("feed-forward", "feed-forward")
        assert places[f"{half}_query.weight"] == ("feed-forward_query", "feed-forward")
    others = {name for name, (_, kind) in places.items() if kind in ("other", "embedding")}
    assert others == {
        "attn.attention_biases",
        "attn.cpb_mlp.weight",
        "attn.cpb_mlp.bias",
        "gate_attn",
        "cross_attn_mlp_gate",
        "mlp_layer_scale.scale",
    }
    decayed = {n for g in param_groups(model) if g["weight_decay"] for n, _ in g["params"]}
    assert not {n for n in decayed if "scale" in n or "biases" in n}


class CausalSelfAttention(nn.Module):
    """Known as attention by its class alone."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(4, 12)


class FeedForward(nn.Module):
    """The same for a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 4)


@pytest.mark.parametrize("wrap", [torch.compile, checkpoint_wrapper])
def test_what_its_class_tells_is_told_when_it_is_wrapped(wrap):
    def make(first):
        pairs = [[CausalSelfAttention(), FeedForward()] for _ in range(2)]
        pairs[0] = [first(module) for module in pairs[0]]
        return nn.ModuleDict({"layers": nn.ModuleList(map(nn.ModuleList, pairs))})

    plain, wrapped = (locate(make(first)) for first in (lambda module: module, wrap))
    assert list(plain.values()) == list(wrapped.values())
    assert {place.kind for place in plain.values()} == {"attention", "feed-forward"}


class FeedFoward(nn.Module):
    """Misspelt as in code that is much copied."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))


def widths(*sizes: int) -> nn.Sequential:
    pairs = itertools.pairwise(sizes)
    return nn.Sequential(*[each for pair in pairs for each in (nn.Linear(*pair), nn.ReLU())])


def layered(**parts: nn.Module) -> nn.Module:
    """A model of two layers of these parts, and a head."""
    layers = [nn.ModuleDict(copy.deepcopy(parts)) for _ in range(2)]
    return nn.ModuleDict({"layers": nn.ModuleList(layers), "lm_head": nn.Linear(4, 9)})


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *[(name, widths(4, 8, 4)) for name in ("ffwd", "feedfoward", "feed_foward", "feedforward")],
        ("x", FeedFoward()),
        *[(name, widths(4, 8, 4)) for name in ("linear", "linear_net")],
        ("linear", torch.compile(widths(4, 8, 4))),
    ],
)
def test_feed_forward_as_tutorials_name_it(name, part):
    model = layered(sa=CausalSelfAttention(), **{name: part})
    places = locate(model)
    inside = {n for n in places if n.startswith(("layers.0.", "layers.1."))}
    assert names(param_groups(model), sage=True) == inside
    assert {places[n] for n in inside if f".{name}." in n} == {
        (f"layers.{i}.{name}", i, "feed-forward") for i in range(2)
    }


@pytest.mark.parametrize("part", [nn.Linear(4, 4), widths(4, 4), widths(4, 8, 2)])
def test_linear_beside_attention_that_is_no_feed_forward_network(part):
    """One map, or a sequence that ends in another width, as a head's does."""
    places = locate(layered(sa=CausalSelfAttention(), linear=part))
    assert {place.kind for n, place in places.items() if ".linear." in n} == {"other"}


@pytest.fixture
def warnings(monkeypatch, caplog) -> pytest.LogCaptureFixture:
    """What is said, as in a process that has said nothing yet."""
    again = functools.cache(groups_module._say_once.__wrapped__)
    monkeypatch.setattr(groups_module, "_say_once", again)
    caplog.set_level(logging.WARNING, "sagelr")
    return caplog


@pytest.mark.parametrize(
    ("parts", "missing", "first", "pattern"),
    [
        (
            {"sa": CausalSelfAttention(), "net": widths(4, 8, 4)},
            "feed-forward",
            "layers.0.net.0.weight, layers.0.net.2.weight, layers.1.net.0.weight, … (4 in all)",
            r"layers\.\d+\.(sa|net)\b",
        ),
        (
            {"qkv": nn.Linear(4, 12), "mlp": widths(4, 8, 4)},
            "attention",
            "layers.0.qkv.weight, layers.1.qkv.weight. ",
            r"layers\.\d+\.(mlp|qkv)\b",
        ),
        (
            {"0": CausalSelfAttention(), "1": nn.ModuleDict({"net": widths(4, 8, 4)})},
            "feed-forward",
            "layers.0.1.net.0.weight",
            r"layers\.\d+\.\d+\.(to_qkv|net)\b",
        ),
    ],
)
def test_one_kind_alone_beside_other_matrices_is_said_once(
    parts, missing, first, pattern, warnings
):
    model = layered(**parts)
    for _ in range(2):
        param_groups(model)
    [record] = warnings.records
    message = record.getMessage()
    for part in (f"class tells as {missing}", first, f'sage=[r"{pattern}"]'):
        assert part in message
    assert "lm_head" not in message
    matrices = {n for n, p in model.named_parameters() if n.startswith("layers") and p.ndim > 1}
    assert names(param_groups(model, sage=[pattern]), sage=True) >= matrices
    for scope in ("attention" if missing == "feed-forward" else "ffn", "all"):
        param_groups(model, sage=scope)
    assert len(warnings.records) == 1


@pytest.mark.parametrize(
    "parts",
    [
        {"attn": CausalSelfAttention(), "norm": nn.LayerNorm((2, 4))},
        {"mlp_tokens": widths(4, 8, 4), "mlp_channels": widths(4, 8, 4)},
        {"attn": CausalSelfAttention(), "mlp": widths(4, 8, 4), "adapter": nn.Linear(4, 4)},
        {"moe": nn.ModuleDict({"experts": widths(4, 8, 4), "router": nn.Linear(4, 2)})},
    ],
    ids=["attention alone", "mixer", "both kinds", "router"],
)
def test_nothing_is_said_where_no_half_is_left_out(parts, warnings):
    param_groups(layered(**parts))
    assert not warnings.records


def test_nothing_is_said_of_what_is_frozen_or_outside_the_layers(warnings):
    model = layered(attn=CausalSelfAttention(), net=widths(4, 8, 4))
    for name, param in model.named_parameters():
        param.requires_grad_(".net." not in name)
    model.add_module("neck", nn.Sequential(nn.Linear(4, 4)))
    param_groups(model)
    assert not warnings.records
