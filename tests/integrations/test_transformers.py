"""The Hugging Face Trainer: options from its arguments, groups, resume, the probe."""

import copy

import pytest
import torch
from transformers import Trainer, TrainingArguments

from sagelr import SageAdamax, SageAdamW, SageSGD
from sagelr.integrations.hf import SageProbeCallback, sage_optimizer

LIBRARY = "transformers"


def arguments(folder, **options):
    return TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True, **options)


def test_the_example_learns_and_is_watched(example, capsys):
    losses = example("hf_trainer").main()
    assert losses[-1] < 0.5 < losses[0]
    assert "last look" in capsys.readouterr().out


@pytest.mark.parametrize("cls", [SageAdamW, SageAdamax, SageSGD])
def test_options_come_from_the_arguments(cls, tmp_path):
    args = arguments(
        tmp_path, learning_rate=1e-3, adam_beta1=0.8, adam_epsilon=1e-7, weight_decay=0.1
    )
    made, kwargs = sage_optimizer(args, cls=cls, beta0=0.9)
    optimizer = made([torch.nn.Parameter(torch.ones(2))], **kwargs)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["beta0"]) == (1e-3, 0.1, 0.9)
    if cls is not SageSGD:
        assert (group["betas"], group["eps"]) == ((0.8, 0.999), 1e-7)


def test_groups_are_named_and_scoped(example, tmp_path):
    trainer = example("hf_trainer").make_trainer(str(tmp_path))
    groups = trainer.create_optimizer().param_groups
    named = {n: (g["sage"], g["weight_decay"]) for g in groups for n in g["param_names"]}
    assert set(named) == {name for name, _ in trainer.model.named_parameters()}
    assert named["bert.encoder.layer.0.attention.self.query.weight"] == (True, 0.01)
    assert named["bert.encoder.layer.0.output.dense.bias"] == (True, 0.0)
    assert named["classifier.weight"] == (False, 0.01)


def test_without_a_model_the_trainer_makes_the_groups(example, tmp_path):
    trainer = example("hf_trainer").make_trainer(str(tmp_path))
    trainer.optimizer_cls_and_kwargs = sage_optimizer(trainer.args, state_format="compact")
    groups = trainer.create_optimizer().param_groups
    assert [g["weight_decay"] for g in groups] == [0.01, 0.0]
    assert all(g["sage"] for g in groups)


def test_resuming_from_its_checkpoint_is_bit_identical(example, tmp_path):
    make = example("hf_trainer").make_trainer
    whole = make(str(tmp_path / "whole"), epochs=2)
    whole.train()
    again = make(str(tmp_path / "again"), epochs=2)
    checkpoint = next(path for path in sorted((tmp_path / "whole").glob("checkpoint-*")))
    again.train(resume_from_checkpoint=str(checkpoint))
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    states = (trainer.optimizer.optimizer.state for trainer in (again, whole))
    for ours, theirs in zip(*(state.values() for state in states), strict=True):
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name


def test_a_checkpoint_of_the_trainers_adamw_goes_on_with_sage(example, tmp_path):
    make = example("hf_trainer").make_trainer
    adamw = make(str(tmp_path / "adamw"), epochs=1)
    adamw.optimizer_cls_and_kwargs = None  # its own default, with its own groups
    adamw.remove_callback(SageProbeCallback)
    adamw.train()
    [checkpoint] = (tmp_path / "adamw").glob("checkpoint-*")
    sage = make(str(tmp_path / "sage"), epochs=2)
    sage.optimizer_cls_and_kwargs = sage_optimizer(sage.args)  # the Trainer's groups again
    sage.train(resume_from_checkpoint=str(checkpoint))
    state = next(iter(sage.optimizer.optimizer.state.values()))
    assert state["step"] == 64
    assert state["sensitivity_step"] == 32


def held(optimizer, model):
    """Whether an optimizer holds every trainable parameter of a model, and nothing else."""
    found = {param for group in optimizer.param_groups for param in group["params"]}
    return found == {param for param in model.parameters() if param.requires_grad}


def test_groups_are_of_the_model_that_is_trained(example, tmp_path):
    """With model_init that is another at every start, and so is the lr of a search."""
    made = example("hf_trainer").make_trainer(str(tmp_path))
    given = copy.deepcopy(made.model)
    trainer = Trainer(
        model_init=lambda: copy.deepcopy(given),
        args=made.args,
        train_dataset=made.train_dataset,
        data_collator=made.data_collator,
        optimizer_cls_and_kwargs=sage_optimizer(made.args, given, beta0=0.9),
    )
    for lr in (1e-3, 5e-3):
        trainer.args.learning_rate = lr
        trainer.train()
        groups = trainer.optimizer.optimizer.param_groups
        assert held(trainer.optimizer.optimizer, trainer.model)
        assert not held(trainer.optimizer.optimizer, given)
        assert [group["sage"] for group in groups] == [True, True, False, False]
        assert {group["initial_lr"] for group in groups} == {lr}
        assert {group["beta0"] for group in groups} == {0.9}


def test_adapters_that_the_trainer_adds_are_trained(example, tmp_path):
    peft = pytest.importorskip("peft")
    trainer = example("hf_trainer").make_trainer(str(tmp_path))
    options = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    trainer.model = peft.get_peft_model(trainer.model, options)  # as TRL does with peft_config
    optimizer = trainer.create_optimizer()
    assert held(optimizer, trainer.model)
    named = {n: g["sage"] for g in optimizer.param_groups for n in g["param_names"]}
    assert any("lora_A" in name and sage for name, sage in named.items())


def test_before_transformers_had_factories(example, tmp_path):
    """Up to 5.1 the Trainer calls what it is given as a class, with groups of its model."""
    trainer = example("hf_trainer").make_trainer(str(tmp_path))
    make, options = sage_optimizer(trainer.args, trainer.model, beta0=0.9)
    groups = [{"params": list(trainer.model.parameters()), "weight_decay": 0.0}]
    optimizer = make(groups, **options)
    assert held(optimizer, trainer.model)
    assert {group["sage"] for group in optimizer.param_groups} == {True, False}
    other = copy.deepcopy(trainer.model)
    with pytest.raises(ValueError, match="trains another model"):
        make([{"params": list(other.parameters())}], **options)


def test_weight_decay_is_that_of_whoever_makes_the_groups(example, tmp_path):
    trainer = example("hf_trainer").make_trainer(str(tmp_path))
    own = sage_optimizer(trainer.args, trainer.model, weight_decay=0.25)
    trainer.optimizer_cls_and_kwargs = own
    assert {group["weight_decay"] for group in trainer.create_optimizer().param_groups} == {0.25, 0}
    with pytest.raises(ValueError, match="the weight_decay of its arguments"):
        sage_optimizer(trainer.args, weight_decay=0.25)
    with pytest.raises(ValueError, match="no-such-layer"):
        sage_optimizer(trainer.args, trainer.model, sage="no-such-layer")


def test_a_scope_without_a_model_is_all_or_none_or_an_error(tmp_path):
    args = TrainingArguments(str(tmp_path), report_to="none")
    for scope, sage in (("all", True), ("none", False)):
        cls, kwargs = sage_optimizer(args, sage=scope)
        optimizer = cls([torch.nn.Parameter(torch.ones(2))], **kwargs)
        assert optimizer.param_groups[0]["sage"] is sage
    with pytest.raises(ValueError, match="none was given"):
        sage_optimizer(args, sage="ffn")


def test_a_class_that_hands_its_options_on_gets_the_arguments_too(tmp_path):
    class Mine(SageAdamW):
        def __init__(self, params, **options):
            super().__init__(params, **options)

    args = TrainingArguments(str(tmp_path), learning_rate=5e-5, adam_beta2=0.98, report_to="none")
    _, own = sage_optimizer(args, cls=Mine)
    assert own == sage_optimizer(args)[1]
    assert (own["lr"], own["betas"]) == (5e-5, (0.9, 0.98))
