"""The live probe: it shows what the step then does, in any loop, and costs little."""

import json
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sagelr import Sage, SageAdamW, SageSGD, param_groups, rule
from sagelr.live import EVERY, SageProbe
from sagelr.view import View, Viewer

QUANTITIES = ("sensitivity", "variation", "multiplier", "frozen", "boosted")


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Small(nn.Module):
    """Two blocks and a head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)
        self.width = width

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))

    def loss(self, rows: int = 4):
        x = torch.randn(rows, 3, self.width, dtype=self.head.weight.dtype)
        return nn.functional.cross_entropy(self(x), torch.randint(0, 2, (rows,)))


def make(model, kind="SageAdamW", **options):
    groups = param_groups(model)
    if kind == "Sage":
        return Sage(torch.optim.AdamW(groups, lr=1e-3), **options)
    return {"SageAdamW": SageAdamW, "SageSGD": SageSGD}[kind](groups, lr=1e-3, **options)


def steps(model, optimizer, count, clip=None):
    for _ in range(count):
        optimizer.zero_grad()
        model.loss().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("kind", ["SageAdamW", "SageSGD", "Sage"])
def test_rows_are_what_the_rule_makes_of_the_coming_step(kind, corrected):
    model = Small().double()
    optimizer = make(model, kind, beta0=0.8, sage_bias_correction=corrected)
    found = []
    probe = SageProbe(model, optimizer, every=3, attach=False)
    smoothed = {p: torch.zeros_like(p) for p in model.parameters()}
    for t in range(1, 7):
        optimizer.zero_grad()
        model.loss().backward()
        expected = {}
        for group in optimizer.param_groups:
            for param in group["params"] if group["sage"] else ():
                current = rule.sensitivity(param.detach(), param.grad)
                smoothed[param] = rule.smooth(smoothed[param], current, 0.8)
                average = smoothed[param]
                average = rule.bias_correct(average, 0.8, t) if corrected else average
                spread = rule.variation(current, average)
                r = rule.multiplier(spread, average, group["sage_eps"])
                name = next(n for n, p in model.named_parameters() if p is param)
                layer = "self_attn" if "self_attn" in name else "feed-forward"
                key = f"encoder.layers.{name.split('.')[2]}.{layer}"
                for at, values in enumerate((average, spread, r)):
                    expected.setdefault(key, ([], [], []))[at].append(values.flatten())
        rows = probe.before_step()
        assert (rows is not None) == (t % 3 == 0)
        for row in rows or []:
            average, spread, r = (torch.cat(each) for each in expected.pop(row["layer"]))
            assert row["sampled"] == row["parameters"] == len(r)
            assert row["sensitivity"] == pytest.approx(float(average.mean()), rel=1e-6)
            assert row["variation"] == pytest.approx(float(spread.mean()), rel=1e-6)
            assert row["multiplier"] == pytest.approx(float(r.mean()), rel=1e-6)
            assert row["frozen"] == float((r < 0.01).double().mean())
            assert row["boosted"] == float((r > 1).double().mean())
            for level, value in row["quantiles"].items():
                assert value == pytest.approx(float(r.quantile(int(level) / 100)), rel=1e-5)
        if rows:
            assert not expected
            found.append(rows)
        optimizer.step()
    assert len(found) == 2


def test_it_hooks_in_and_sees_gradients_after_clipping():
    model = Small()
    optimizer = make(model)
    seen = []
    with SageProbe(model, optimizer, every=2, log=seen.append) as probe:
        steps(model, optimizer, 3, clip=1e-3)
        optimizer.zero_grad()
        model.loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        expected = mean_multiplier(model, optimizer)
        optimizer.step()
        steps(model, optimizer, 1)
        assert probe.step == 5
    assert len(seen) == 2
    rows = seen[1]
    assert set(rows) == {
        f"sage/encoder.layers.{i}.{layer}/{name}"
        for i in (0, 1)
        for layer in ("self_attn", "feed-forward")
        for name in (*QUANTITIES, "q5", "q25", "q50", "q75", "q95")
    }
    assert all(math.isfinite(value) for value in rows.values())
    assert rows["sage/encoder.layers.0.feed-forward/multiplier"] == pytest.approx(expected)
    steps(model, optimizer, 4)
    assert len(seen) == 2  # closed


def test_a_sample_is_taken_with_a_stride_that_no_width_is_a_multiple_of():
    model = Small(32)
    optimizer = make(model, beta0=0.8)
    steps(model, optimizer, 2)
    model.loss().backward()
    whole, sample = (Viewer(model, optimizer, elements=n).look() for n in (10**9, 1000))
    stride = Viewer(model, optimizer, elements=1000).stride
    assert stride == 17  # 16640 parameters
    for index, layer in enumerate(whole.layers):
        params = [p for g in optimizer.param_groups if g["sage"] for p in g["params"]]
        inside = [p for p in params if _layer_of(model, p) == layer.name]
        expected = torch.cat([optimizer.multiplier(p).flatten()[::stride] for p in inside])
        got = sample.multiplier[sample.layer == index]
        torch.testing.assert_close(got.sort().values, expected.sort().values)
    assert 900 < len(sample.multiplier) < 1100


def _layer_of(model, param):
    name = next(n for n, p in model.named_parameters() if p is param)
    return (
        f"encoder.layers.{name.split('.')[2]}.{'self_attn' if 'attn' in name else 'feed-forward'}"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"relative": 0.5},
        {"relative": 0.5, "relative_over": "group", "relative_confidence": True},
        {"state_format": "bfloat16"},
        {"state_format": "8bit"},
    ],
    ids=str,
)
def test_every_kind_of_sage_is_shown_as_it_is(options):
    model = Small(64)
    optimizer = make(model, **options)
    steps(model, optimizer, 3)
    model.loss().backward()
    view = Viewer(model, optimizer, elements=10**9).look()
    params = [p for g in optimizer.param_groups if g["sage"] for p in g["params"]]
    expected = torch.cat([optimizer.multiplier(p).flatten() for p in params])
    torch.testing.assert_close(view.multiplier.sort().values, expected.sort().values)


def test_a_parameter_without_a_gradient_is_left_out():
    model = Small()
    optimizer = make(model)
    probe = SageProbe(model, optimizer, attach=False)
    assert probe.look() is None
    model.loss().backward()
    for param in model.encoder.layers[0].self_attn.parameters():
        param.grad = None
    assert {row["layer"] for row in probe.look()} == {
        "encoder.layers.0.feed-forward",
        "encoder.layers.1.self_attn",
        "encoder.layers.1.feed-forward",
    }


def test_a_group_that_is_turned_off_is_left_out():
    model = Small()
    optimizer = make(model)
    probe = SageProbe(model, optimizer, attach=False)
    model.loss().backward()
    before = {row["layer"] for row in probe.look()}
    under_sage = [group for group in optimizer.param_groups if group["sage"]]
    for group in under_sage:
        group["sage"] = False
    assert probe.look() is None
    for group in under_sage:
        group["sage"] = True
    assert {row["layer"] for row in probe.look()} == before


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_a_process_without_a_part_of_what_is_sharded_sees_nothing(shape):
    model = nn.ParameterDict({"weight": torch.ones(shape)})
    probe = SageProbe(model, SageAdamW(model.parameters()), attach=False)
    model["weight"].grad = torch.ones(shape)
    assert probe.look() == []


def test_tensors_are_made_where_they_are_needed_whatever_the_default_device():
    model = Small()
    probe = SageProbe(model, make(model), attach=False)
    model.loss().backward()
    expected = probe.look()
    with torch.device("meta"):
        assert probe.look() == expected


def test_several_looks_together():
    model = Small()
    optimizer = make(model)
    viewer, views = Viewer(model, optimizer), []
    for _ in range(2):
        optimizer.zero_grad()
        model.loss().backward()
        views.append(viewer.look())
    (first, *_), (one, *_), (other, *_) = (view.rows(1) for view in (View.together(views), *views))
    assert first["sampled"] == one["sampled"] + other["sampled"]
    mean = (one["sensitivity"] + other["sensitivity"]) / 2
    assert first["sensitivity"] == pytest.approx(mean)


# -- where it writes ----------------------------------------------------------------------------


def test_a_file_of_lines_is_whole_after_every_look(tmp_path):
    model = Small()
    optimizer = make(model)
    path = tmp_path / "logs" / "probe.jsonl"
    probe = SageProbe(model, optimizer, every=2, file=path)
    steps(model, optimizer, 3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["step"] for line in lines} == {2}
    steps(model, optimizer, 1)
    probe.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2] * 4 + [4] * 4
    with pytest.raises(FileExistsError, match="is there and not empty"):
        SageProbe(model, optimizer, file=path)
    resumed = SageProbe(model, optimizer, every=2, file=path, append=True, step=4)
    steps(model, optimizer, 2)
    resumed.close()
    assert json.loads(path.read_text().splitlines()[-1])["step"] == 6


def test_steps_that_are_taken_once_more_are_written_once(tmp_path):
    """A training that was killed between two checkpoints resumes from the earlier one."""
    model = Small()
    optimizer = make(model)
    path = tmp_path / "probe.jsonl"
    with SageProbe(model, optimizer, every=2, file=path):
        steps(model, optimizer, 7)
    whole = path.read_text()
    path.write_text(whole + '{"step": 8, "lay')
    with SageProbe(model, optimizer, every=2, file=path, append=True, step=3):
        steps(model, optimizer, 2)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2] * 4 + [4] * 4
    assert path.read_text().startswith("".join(whole.splitlines(keepends=True)[:4]))
    assert [each.name for each in tmp_path.iterdir()] == ["probe.jsonl"]
    with SageProbe(model, optimizer, every=2, file=path, append=True):  # its steps are not known
        pass
    assert len(path.read_text().splitlines()) == 8


@pytest.mark.parametrize("cut", [1, 60])  # of its end alone, or in the middle of a row
def test_a_line_that_was_cut_short_spoils_none_after_it(tmp_path, cut):
    """A training that was killed before its first checkpoint begins again at step 0."""
    model = Small()
    optimizer = make(model)
    path = tmp_path / "probe.jsonl"
    with SageProbe(model, optimizer, every=2, file=path):
        steps(model, optimizer, 4)
    path.write_text(path.read_text()[:-cut])
    with SageProbe(model, optimizer, every=2, file=path, append=True):
        steps(model, optimizer, 2)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2] * 4 + [4] * (4 if cut == 1 else 3) + [2] * 4


def test_a_parquet_file_has_the_same_rows(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    model = Small()
    optimizer = make(model)
    with (
        SageProbe(model, optimizer, every=2, file=tmp_path / "p.parquet"),
        SageProbe(model, optimizer, every=2, file=tmp_path / "p.jsonl"),
    ):
        steps(model, optimizer, 4)
    rows = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    for line in lines:
        line.update({f"q{level}": value for level, value in line.pop("quantiles").items()})
    assert rows == lines


class Notebook:
    def __init__(self):
        self.scalars, self.histograms = {}, {}

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def add_histogram(self, tag, values, step):
        self.histograms[tag, step] = values


def test_a_writer_gets_scalars_and_histograms():
    model = Small()
    optimizer = make(model)
    writer = Notebook()
    with SageProbe(model, optimizer, every=2, writer=writer):
        steps(model, optimizer, 2)
    layer = "sage/encoder.layers.1.self_attn"
    r = writer.histograms[f"{layer}/r", 2]
    assert writer.scalars[f"{layer}/multiplier", 2] == pytest.approx(float(r.mean()), rel=1e-5)
    assert len(r) == 8 * 24 + 24 + 8 * 8 + 8
    assert writer.histograms[f"{layer}/log10 sensitivity", 2].max() < 0


def test_what_cannot_be_watched_is_refused(tmp_path):
    model = Small()
    optimizer = make(model)
    with pytest.raises(ValueError, match="AdamW has no parameter under SAGE"):
        SageProbe(model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(ValueError, match="that Small has not"):
        SageProbe(Small(), optimizer)
    shell = torch.optim.SGD(model.parameters())
    shell.param_groups = optimizer.param_groups  # as ZeroRedundancyOptimizer has them
    with pytest.raises(
        ValueError, match=r"SGD has SAGE's parameter groups but not its state.*optim"
    ):
        SageProbe(model, shell)
    with pytest.raises(ValueError, match="every=0"):
        SageProbe(model, optimizer, every=0)
    with pytest.raises(ValueError, match=r"the suffix \.jsonl or \.parquet"):
        SageProbe(model, optimizer, file=tmp_path / "probe.csv")
    with SageProbe(model, optimizer), pytest.raises(RuntimeError, match="step with a closure"):
        optimizer.step(lambda: model.loss())


# -- what it costs ------------------------------------------------------------------------------


class Counted(TorchDispatchMode):
    """Operations that compute something, and elements written by them."""

    def __init__(self):
        super().__init__()
        self.operations = self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        leaves = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        new = [t for t in leaves if _storage(t) not in known or "_" in func.__name__[-9:]]
        if new:
            self.operations += 1
            self.elements += sum(t.numel() for t in new)
        return result


def _storage(tensor):
    return tensor.untyped_storage().data_ptr()


def test_at_the_default_interval_looking_is_under_a_hundredth_of_the_work():
    """Counted, not timed: one look against the forward and backward of EVERY steps."""
    model = Small(64)
    optimizer = make(model)
    steps(model, optimizer, 2)
    with Counted() as training:
        model.loss(rows=16).backward()
    probe = SageProbe(model, optimizer, attach=False)
    with Counted() as looking:
        probe.look()
    assert looking.elements < 0.01 * EVERY * training.elements
    assert looking.operations < 0.01 * EVERY * training.operations


# -- frameworks ---------------------------------------------------------------------------------


def mean_multiplier(model, optimizer):
    """Of the first feed-forward layer, in the coming step."""
    halves = (model.encoder.layers[0].linear1, model.encoder.layers[0].linear2)
    params = [param for half in halves for param in half.parameters()]
    return float(torch.cat([optimizer.multiplier(param).flatten() for param in params]).mean())


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"x": torch.randn(3, 8, generator=generator), "labels": torch.tensor(index % 2)}


class WithLoss(Small):
    def forward(self, x, labels):
        logits = super().forward(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_the_callback_of_the_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    from sagelr.integrations.hf import SageProbeCallback

    model = WithLoss()
    optimizer = make(model)
    applied = []
    optimizer.register_step_pre_hook(lambda *_: applied.append(mean_multiplier(model, optimizer)))
    args = transformers.TrainingArguments(
        tmp_path, num_train_epochs=2, per_device_train_batch_size=8, report_to="none",
        use_cpu=True, disable_tqdm=True, max_grad_norm=1e-2, save_strategy="no",
        logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(model, args, train_dataset=Rows(), optimizers=(optimizer, None))
    trainer.add_callback(SageProbeCallback(every=3, file=tmp_path / "probe.jsonl", log=trainer.log))
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "probe.jsonl").read_text().splitlines()]
    layer = "encoder.layers.0.feed-forward"
    found = {line["step"]: line["multiplier"] for line in lines if line["layer"] == layer}
    assert found == {3: pytest.approx(applied[2]), 6: pytest.approx(applied[5])}
    assert len(applied) == 8
    key = f"sage/{layer}/multiplier"
    logged = [entry[key] for entry in trainer.state.log_history if key in entry]
    assert logged == list(found.values())


def test_the_callback_of_lightning_looks_after_clipping(tmp_path):
    lightning = pytest.importorskip("lightning")
    from sagelr.integrations.lightning import probe_callback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder = Small().encoder
            self.head = nn.Linear(8, 2)

        def training_step(self, batch, index):
            logits = self.head(self.encoder(batch["x"]).mean(1))
            return nn.functional.cross_entropy(logits, batch["labels"])

        def configure_optimizers(self):
            self.made = make(self)
            self.made.register_step_post_hook(self.after)
            return self.made

        def after(self, optimizer, args, kwargs):
            self.norms.append(float(torch.stack([p.grad.norm() for p in self.parameters()]).norm()))

        norms: list = []  # noqa: RUF012

    path = tmp_path / "probe.jsonl"
    seen = []
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1e-2,
        callbacks=[probe_callback(every=3, file=path)],
    )  # fmt: skip
    original = SageProbe.look

    def look(probe):
        grads = [p.grad for p in module.parameters()]
        seen.append(float(torch.stack([g.norm() for g in grads]).norm()))
        return original(probe)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SageProbe, "look", look)
        trainer.fit(module, torch.utils.data.DataLoader(Rows(), batch_size=8))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted({line["step"] for line in lines}) == [3, 6]
    assert seen == pytest.approx([module.norms[2], module.norms[5]])
    assert max(seen) < 1.01e-2
    assert "configure_gradient_clipping" not in vars(module)


@pytest.mark.parametrize("automatic", [True, False])
def test_callbacks_of_lightning_stand_beside_each_other(automatic, tmp_path):
    lightning = pytest.importorskip("lightning")
    from sagelr.integrations.lightning import probe_callback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = Small().encoder, nn.Linear(8, 2)
            self.automatic_optimization = automatic

        def training_step(self, batch, index):
            logits = self.head(self.encoder(batch["x"]).mean(1))
            loss = nn.functional.cross_entropy(logits, batch["labels"])
            if not automatic:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self):
            return make(self)

    paths, module = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"], Module()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[probe_callback(every=3, file=path) for path in paths],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(Rows(), batch_size=8))
    one, two = (path.read_text() for path in paths)
    assert one == two
    assert {json.loads(line)["step"] for line in one.splitlines()} == {3, 6}
    assert "configure_gradient_clipping" not in vars(module)


class Biased(nn.Module):
    """Attention with a table of its own, which is an embedding of the same module."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Module()])
        self.layers[0].attn = nn.Module()
        self.layers[0].attn.qkv = nn.Linear(4, 12)
        self.layers[0].attn.bias_embedding = nn.Parameter(torch.ones(3, 4))


def test_layers_of_two_kinds_in_one_module_have_two_names(tmp_path):
    model = Biased()
    optimizer = SageAdamW(param_groups(model, sage="all"))
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    view = Viewer(model, optimizer).look()
    names = [layer.name for layer in view.layers]
    assert len(set(names)) == len(names) == len({layer.kind for layer in view.layers}) == 2


def test_what_is_not_finite_is_null_in_the_file(tmp_path):
    model = Small()
    optimizer = make(model)
    with SageProbe(model, optimizer, file=tmp_path / "probe.jsonl", every=1):
        model.loss().backward()
        for param in model.parameters():
            param.grad.fill_(math.nan)
        optimizer.step()

    def refuse(name):
        raise AssertionError(name)

    for line in (tmp_path / "probe.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=refuse)
        assert row["quantiles"]["50"] is None
