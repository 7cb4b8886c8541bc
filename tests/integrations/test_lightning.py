"""Lightning: a module, its command line, its checkpoints."""

import pytest
import torch

import sagelr

lightning = pytest.importorskip("lightning")
LIBRARY = "lightning"


def test_the_example_learns(example):
    losses = example("lightning_module").main()
    assert losses[-1] < 0.6 < losses[0]


def test_the_command_line_makes_the_optimizer(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringModel

    monkeypatch.chdir(tmp_path)
    (tmp_path / "sage.yaml").write_text(
        "optimizer:\n  class_path: sagelr.SageAdamW\n"
        "  init_args: {lr: 0.003, beta0: 0.9, state_format: compact}\n"
        "trainer: {max_steps: 2, accelerator: cpu, logger: false, enable_checkpointing: false,\n"
        "  enable_progress_bar: false, enable_model_summary: false}\n"
    )

    class Model(BoringModel):
        configure_optimizers = lightning.LightningModule.configure_optimizers

    cli = LightningCLI(Model, args=["fit", "--config", "sage.yaml"], save_config_callback=None)
    [optimizer] = cli.trainer.optimizers
    assert type(optimizer) is sagelr.SageAdamW
    group = optimizer.param_groups[0]
    assert (group["lr"], group["beta0"], group["state_format"]) == (0.003, 0.9, "compact")
    assert all(optimizer.state[p]["sensitivity_step"] == 2 for p in group["params"])


def test_a_checkpoint_goes_on_bit_for_bit(example, tmp_path):
    module = example("lightning_module")
    inputs = torch.randn(64, 4, 32, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(inputs, (inputs.mean((1, 2)) > 0).long())

    def train(epochs, checkpoint=None):
        torch.manual_seed(0)
        model = module.Classifier()
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        # The schedule's length is that of the whole training.
        model.configure_optimizers = lambda: sagelr.SageAdamW(model.parameters(), lr=1e-2)
        loader = torch.utils.data.DataLoader(data, batch_size=16)
        trainer.fit(model, loader, ckpt_path=checkpoint)
        return model, trainer

    whole, _ = train(4)
    _, half = train(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = train(4, tmp_path / "half.ckpt")
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
