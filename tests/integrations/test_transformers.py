"""The Hugging Face Trainer: options from its arguments, groups, resume, the probe."""

import pytest
import torch
from transformers import TrainingArguments

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


def test_a_scope_without_a_model_is_all_or_none_or_an_error(tmp_path):
    args = TrainingArguments(str(tmp_path), report_to="none")
    for scope, sage in (("all", True), ("none", False)):
        cls, kwargs = sage_optimizer(args, sage=scope)
        optimizer = cls([torch.nn.Parameter(torch.ones(2))], **kwargs)
        assert optimizer.param_groups[0]["sage"] is sage
    with pytest.raises(ValueError, match="none was given"):
        sage_optimizer(args, sage="ffn")
