"""sagelr audit, on a run, on a model, on two, and on what it cannot audit."""

import errno
import json
import shutil

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from sagelr import recipe as recipes
from sagelr.audit import audit as measure
from sagelr.audit.schema import Audit, Audited, Comparison, Curve, Distribution, Group, Units
from sagelr.audit.scoring import Scorer, TrainingBatches
from sagelr.audit.sketch import short
from sagelr.audit.subjects import Subject, find, labels, load
from sagelr.commands import app
from sagelr.commands.audit import _tell
from sagelr.errors import SagelrError, UsageError
from sagelr.view import MultiplierRow

from .conftest import SMALL

QUICK = ["--examples", "40", "--batch-size", "8", "--sparsities", "0.25,0.5"]


def invoke(*args):
    return CliRunner().invoke(app, ["audit", *map(str, args)], catch_exceptions=False)


def read(folder):
    return json.loads((folder / "audit.json").read_text())


def has(value, shape):
    assert value.keys() == shape.__annotations__.keys()


def test_the_audit_of_a_run(run, tmp_path, task, recipe):
    out = tmp_path / "audit"
    result = invoke(run, "--out", out, *QUICK)
    assert result.exit_code == 0
    assert "Measured on 40 training rows in 5 batches of 8" in result.output
    found = read(out)
    has(found, Audit)
    (model,) = found["models"]
    has(model, Audited)
    assert (model["arm"], model["seed"], model["label"]) == ("sage-adamw", 0, "SageAdamW")
    sensitivity = model["sensitivity"]
    has(sensitivity["all"], Distribution)
    for group in (*sensitivity["layers"], *sensitivity["kinds"]):
        assert group.keys() == Group.__annotations__.keys() | Distribution.__annotations__.keys()
    for groups in (sensitivity["layers"], sensitivity["kinds"]):
        assert sum(group["parameters"] for group in groups) == model["parameters"]
    for units, count in (("heads", 2), ("neurons", 24)):
        assert [each["count"] for each in sensitivity[units]] == [count, count]
        has(sensitivity[units][0], Units)
    subject = find(str(run), None, {})
    loaded, _ = load(subject, task)
    measured = measure(loaded, TrainingBatches(task, 8, 40).on(torch.device("cpu")))
    assert sensitivity["loss"] == measured.loss
    whole = torch.cat([each.flatten() for each in measured.sensitivity.values()])
    assert sensitivity["all"]["mean"] == pytest.approx(
        short(float(whole.double().mean())), rel=1e-5
    )
    curves = model["pruning"]["curves"]
    assert [(c["structure"], c["score"]) for c in curves] == [
        (structure, score)
        for structure in ("unstructured", "2:4", "heads", "neurons")
        for score in ("sensitivity", "magnitude")
    ]
    for curve in curves:
        has(curve, Curve)
        assert curve["points"][0]["scores"] == curves[0]["points"][0]["scores"]
    assert [point["pruned"] for point in curves[4]["points"]] == [0, 1, 2]  # of four heads
    rows = model["optimizer"]
    assert {row["step"] for row in rows} == {13}
    assert [row["kind"] for row in rows] == ["attention", "feed-forward"] * 2
    assert all(0 < row["multiplier"] < 3 for row in rows)
    assert model["trace"]["history"]
    again = invoke(run, "--out", tmp_path / "again", "--curves", *QUICK)
    assert again.exit_code == 0
    assert read(tmp_path / "again")["models"] == found["models"]


def test_a_pruned_model_is_saved_and_scores_the_same_when_loaded(run, tmp_path, task):
    pruned = tmp_path / "pruned"
    result = invoke(
        run,
        "--out",
        tmp_path / "audit",
        "--no-curves",
        "--export",
        pruned,
        "--sparsity",
        0.3,
        *QUICK,
    )
    assert result.exit_code == 0
    saved = read(tmp_path / "audit")["models"][0]["export"]
    assert saved["scores"] == saved["scores_reloaded"]
    model = type(task.model(0)).from_pretrained(pruned)
    zeros = sum(int((param == 0).sum()) for param in model.parameters())
    unpruned = type(model).from_pretrained(run)
    before = sum(int((param == 0).sum()) for param in unpruned.parameters())
    assert saved["pruned"] == round(0.3 * 2 * (4 * 16 * 16 + 2 * 16 * 24))
    assert zeros - before == saved["pruned"]
    # The pruned model is a model like any other, here with a recipe for it.
    given = [f"--set={key}={value}" for key, value in SMALL.items()]
    again = invoke(
        pruned, "--recipe", "digits-vit", *given, "--out", tmp_path / "b", "--no-curves", *QUICK
    )
    assert again.exit_code == 0
    assert read(tmp_path / "b")["models"][0]["sensitivity"]["all"]["zero"] >= saved["pruned"]


def test_training_after_pruning_holds_the_zeros_and_is_told_apart(run, tmp_path):
    out = tmp_path / "audit"
    options = ["--structure", "neurons", "--score", "upper-confidence", "--finetune", 1]
    result = invoke(run, "--out", out, *options, *QUICK)
    assert result.exit_code == 0
    plain, tuned = read(out)["models"][0]["pruning"]["curves"]
    assert (plain["finetuned"], tuned["finetuned"]) == (0, 1)
    assert [p["pruned"] for p in plain["points"]] == [p["pruned"] for p in tuned["points"]]
    assert plain["points"][0] == tuned["points"][0]
    assert plain["points"][2]["scores"]["loss"] != tuned["points"][2]["scores"]["loss"]


def test_nothing_is_exported_where_nothing_is_pruned(run, tmp_path):
    options = ["--structure", "heads", "--export", tmp_path / "e", "--sparsity"]
    with pytest.raises(UsageError, match=r"--sparsity 0\.05 prunes nothing: of 4 heads it takes"):
        invoke(run, "--out", tmp_path / "a", *options, 0.05, *QUICK)
    assert not any((tmp_path / "e").iterdir())
    result = invoke(run, "--out", tmp_path / "b", *options, 0.5, "--overwrite", *QUICK)
    assert "2 heads at zero" in " ".join(result.output.split())


@pytest.mark.parametrize("option", ["--out", "--export"])
def test_where_it_is_written_is_seen_before_anything_is_measured(
    run, tmp_path, monkeypatch, option
):
    measured = []
    monkeypatch.setattr("sagelr.audit.whole.measured", lambda *given: measured.append(given))
    folders = {"--out": tmp_path / "a", "--export": tmp_path / "e"}
    (tmp_path / "file").write_text("")
    wrong = folders | {option: tmp_path / "file" / "in it"}
    words = [word for each in wrong.items() for word in each]
    with pytest.raises(UsageError, match=f"file is a file. Give {option} a folder"):
        invoke(run, *words, "--sparsity", 0.5, *QUICK)

    def refused(folder, **options):
        if folder == folders[option]:
            raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("pathlib.Path.mkdir", refused)
    words = [word for each in folders.items() for word in each]
    with pytest.raises(PermissionError):
        invoke(run, *words, "--sparsity", 0.5, *QUICK)
    assert measured == []


def test_a_folder_beside_the_checkpoints_is_none(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("weights-4", "weights-4.bak", "checkpoint-2", "checkpoint-2-old"):
        shutil.copytree(run, folder / name)
    names = [path.name for path in find(str(folder), None, {}).checkpoints()]
    assert names == ["checkpoint-2", "weights-4"]


def test_an_lr_of_nothing_is_none(run, tmp_path):
    with pytest.raises(UsageError, match="--finetune-lr has to be more than 0"):
        invoke(run, "--out", tmp_path / "audit", "--finetune", 1, "--finetune-lr", 0, *QUICK)
    assert not (tmp_path / "audit").exists()


def test_two_runs_side_by_side(run, tmp_path, task):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    result = invoke(run, "--against", other, "--out", tmp_path / "a", "--no-curves", *QUICK)
    assert result.exit_code == 0
    found = read(tmp_path / "a")
    has(found["comparison"], Comparison)
    first, second = found["comparison"]["own"]
    assert {**first, "model": 1} == second
    assert first["layers_by_loss"].keys() == first["layers"].keys()
    assert found["comparison"]["matched"] is None
    assert "No checkpoints of" in found["comparison"]["note"]
    # The first is made the better trained one: it is matched at a checkpoint of its own.
    better = task.model(0)
    trained = type(better).from_pretrained(run)
    for folder in (run, other):
        for step, model in ((2, better), (9, trained)):
            model.save_pretrained(tmp_path / folder.name / f"checkpoint-{step}")
    shutil.copytree(run, tmp_path / "with", ignore=shutil.ignore_patterns("checkpoint-*"))
    shutil.copytree(tmp_path / run.name / "checkpoint-2", tmp_path / "with" / "checkpoint-2")
    worse = tmp_path / "worse"
    shutil.copytree(tmp_path / "with", worse)
    better.save_pretrained(worse)  # never trained: its loss is the level
    result = invoke(
        tmp_path / "with", "--against", worse, "--out", tmp_path / "b", "--no-curves", *QUICK
    )
    assert result.exit_code == 0
    comparison = read(tmp_path / "b")["comparison"]
    first, second = comparison["matched"]
    assert first["loss"] == second["loss"] == comparison["level"]
    assert first["checkpoint"] == "checkpoint-2"
    assert first["layers"] == second["layers"]
    assert comparison["own"][0]["loss"] < comparison["level"]


def test_runs_of_one_arm_are_told_apart_by_their_folders(run, tmp_path):
    runs = [shutil.copytree(run, tmp_path / name) for name in ("a", "b", "c/a")]
    found = [find(str(each), None, {}) for each in runs]
    assert labels(found[:1]) == ["SageAdamW"]
    assert labels(found[:2]) == ["SageAdamW (a)", "SageAdamW (b)"]
    assert labels([found[0], found[2]]) == [f"SageAdamW ({runs[0]})", f"SageAdamW ({runs[2]})"]


def test_a_run_is_held_against_a_plain_model_by_its_recipe(run, tmp_path, task):
    task.model(3).save_pretrained(tmp_path / "plain")
    for words in ((run, "--against", tmp_path / "plain"), (tmp_path / "plain", "--against", run)):
        out = tmp_path / f"out-{words[0].name}"
        result = invoke(*words, "--out", out, "--structure", "neurons", *QUICK)
        assert result.exit_code == 0
        found = read(out)["models"]
        assert [each["label"] for each in found] in (
            ["SageAdamW", "plain"], ["plain", "SageAdamW"]
        )  # fmt: skip
    with pytest.raises(UsageError, match="is a run and brings its recipe"):
        invoke(*words, "--recipe", "digits-vit", *QUICK)


def test_curves_are_told_beside_those_of_their_kind(capsys, monkeypatch, run, tmp_path):
    """Where one model has no heads to prune, what follows them stays where it belongs."""
    assert invoke(run, "--against", run, "--out", tmp_path, *QUICK).exit_code == 0
    document = read(tmp_path)
    for number, model in enumerate(document["models"]):
        for curve in model["pruning"]["curves"]:
            curve["keeps99"] = {"accuracy": (number + 1) / 4}
    curves = document["models"][0]["pruning"]["curves"]
    curves[:] = [curve for curve in curves if curve["structure"] != "unstructured"]
    monkeypatch.setattr("sagelr.commands.audit.console", Console(width=200))
    capsys.readouterr()
    _tell(document, find(str(run), None, {}).recipe)
    rows = [
        line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "up to" in line
    ]
    cells = {row[0].split("up to: ")[1].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert cells.pop("unstructured by sensitivity") == ["–", "50%"]
    assert cells.pop("unstructured by magnitude") == ["–", "50%"]
    assert set(map(tuple, cells.values())) == {("25%", "50%")}
    assert len(cells) == 6


def test_the_file_of_a_live_probe_comes_along(run, tmp_path):
    with_probe = tmp_path / "run"
    shutil.copytree(run, with_probe)
    rows = [dict.fromkeys(MultiplierRow.__annotations__, 0) | {"step": step} for step in (2, 4)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for text in (lines, lines.rstrip(), lines + '{"step": 6, "lay'):  # killed as it was written
        (with_probe / "probe.jsonl").write_text(text)
        assert find(str(with_probe), None, {}).live() == rows


@pytest.mark.parametrize("text", ["step,layer\n", '{"step": 2}\n', "[" * 100_000 + "\n"])
def test_what_no_probe_wrote_is_refused_before_anything_is_measured(
    run, tmp_path, monkeypatch, text
):
    with_probe = shutil.copytree(run, tmp_path / "run")
    (with_probe / "probe.jsonl").write_text(text)
    monkeypatch.setattr("sagelr.audit.whole.measured", None)
    with pytest.raises(SagelrError, match=r"is not what SageProbe writes: line 1: .*Move it"):
        invoke(with_probe, "--out", tmp_path / "audit", *QUICK)
    assert not (tmp_path / "audit").exists()


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(
        UsageError, match=r"is not empty. Give --out another folder, or --overwrite"
    ):
        invoke(run, "--out", tmp_path, "--no-curves")
    with pytest.raises(UsageError, match="Give --export another folder"):
        invoke(run, "--out", tmp_path / "a", "--export", tmp_path, "--sparsity", 0.5)
    assert invoke(run, "--out", tmp_path, "--overwrite", "--no-curves", *QUICK).exit_code == 0
    assert (tmp_path / "kept.txt").read_text() == "kept"


def test_a_pruned_model_takes_no_audited_ones_place(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    for export in (run, other):
        before = (export / "model.safetensors").read_bytes()
        words = ("--against", other, "--out", tmp_path / "a", "--export", export, "--sparsity", 0.5)
        with pytest.raises(UsageError, match="Give --export another folder"):
            invoke(run, *words, "--overwrite", "--no-curves", *QUICK)
        assert (export / "model.safetensors").read_bytes() == before


def bare_model(folder, cls="BertModel"):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": [cls]}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_what_cannot_be_audited_is_told_so(run, tmp_path):
    for source, message in (
        (tmp_path / "nowhere", "there is no such folder"),
        (tmp_path, "holds neither run.json nor a model"),
        ("runs/mine", "runs/mine: there is no such folder, and a model of that name on the hub"),
        (bare_model(tmp_path / "bert"), "says nothing of the data to audit it on. Give --recipe"),
    ):
        with pytest.raises(UsageError, match=message):
            find(str(source), None, {})
    with pytest.raises(UsageError, match="is a run and brings its recipe"):
        find(str(run), "digits-vit", {})
    study = tmp_path / "study"
    study.mkdir()
    (study / "results.json").write_text("{}")
    with pytest.raises(UsageError, match="is a study, which keeps scores and no models"):
        find(str(study), None, {})
    for name, wrong, message in (
        ("cut", "{", "is not what sagelr train writes"),
        ("diverged", json.dumps(_with_status(run, "diverged")), "the run is diverged"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.json").write_text(wrong)
        with pytest.raises(UsageError, match=message):
            find(str(folder), None, {})
    for options, message in (
        (["--sparsities", "much"], "is not a list of numbers"),
        (["--sparsities", "0.5,1"], "1 is not a share"),
        (["--sparsity", "0.5"], "--export DIR and --sparsity belong together"),
        (["--structure", "2:4", "--export", tmp_path / "x", "--sparsity", "0.3"], "prunes a half"),
    ):
        with pytest.raises(UsageError, match=message):
            invoke(run, "--out", tmp_path / "out", *options)
    assert invoke(run, "--structure", "columns").exit_code == 2


def test_a_metric_that_the_data_do_not_give_is_told_before_it_begins(tmp_path):
    """GLUE's score is of that family, and these data have none of its parts."""
    rows = "".join(f"word {n},{('a', 'b')[n % 2]}\n" for n in range(60))
    (tmp_path / "data.csv").write_text("text,label\n" + rows)
    settings = {
        "task.data": str(tmp_path / "data.csv"),
        "model.name": "from-scratch",
        "metric": "matthews",
    }
    task = recipes.load("text-classification", settings).make_task()
    task.model(0).save_pretrained(tmp_path / "model")
    task.save(tmp_path / "model")
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with pytest.raises(UsageError, match="matthews"):
        invoke(
            *(tmp_path / "model", "--recipe", "text-classification", "--out", tmp_path / "out"),
            *words,
        )
    assert not (tmp_path / "out").exists()


def _with_status(run, status):
    return {**json.loads((run / "run.json").read_text()), "status": status}


def test_models_that_do_not_fit_are_told_so(run, tmp_path, task):
    bert = find(str(bare_model(tmp_path / "bert")), "digits-vit", {})
    with pytest.raises(UsageError, match="holds BertModel; the recipe digits-vit is for ViTFor"):
        load(bert, task)
    with pytest.raises(UsageError, match="takes none of the hub"):
        load(find("someone/bert-tiny", "digits-vit", {}), task)
    from safetensors.torch import load_file, save_file

    for name, change, message in (
        ("lacks", lambda weights: weights.pop("classifier.bias"), "lacks classifier.bias"),
        (
            "shape",
            lambda weights: weights.update({"classifier.bias": torch.zeros(3)}),
            "has in another shape classifier.bias",
        ),
    ):
        folder = tmp_path / name
        shutil.copytree(run, folder)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(SagelrError, match=f"do not fit ViTForImageClassification: .*{message}"):
            load(find(str(folder), None, {}), task)
    config = json.loads((run / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    with pytest.raises(SagelrError, match=r"do not fit ViTForImageClassification: .*hidden_size"):
        load(find(str(folder), None, {}), task)
    other = tmp_path / "optimizer"
    shutil.copytree(run, other)
    torch.save({"state": {}, "param_groups": []}, other / "optimizer.pt")
    words = (other, "--out", tmp_path / "o", "--no-curves", *QUICK)
    with pytest.raises(SagelrError, match="does not fit the run's optimizer"):
        invoke(*words)
    (other / "optimizer.pt").write_bytes(b"")
    with pytest.raises(SagelrError, match=r"optimizer\.pt is damaged .*Move it away"):
        invoke(*words)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SagelrError, match=r"The weights in .* are damaged: .*Bring the file back"):
        invoke(*words)


def test_a_run_is_audited_on_its_own_data(run, tmp_path, task):
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    record = json.loads((run / "run.json").read_text())
    record["data"]["sha256"] = "0" * 64
    (changed / "run.json").write_text(json.dumps(record))
    with pytest.raises(SagelrError, match="The data have changed since"):
        find(str(changed), None, {}).check_data(task.describe())
    find(str(changed), None, {"task.split_seed": 1}).check_data(task.describe())
    other = tmp_path / "other"
    shutil.copytree(run, other)
    record["recipe"]["task"]["split_seed"] = 1
    (other / "run.json").write_text(json.dumps({**record, "data": None}))
    with pytest.raises(UsageError, match="are of different data"):
        invoke(run, "--against", other, "--out", tmp_path / "o", "--no-curves", *QUICK)


def test_what_a_class_freezes_stays_frozen_when_loaded(tmp_path):
    """from_pretrained thaws it: training after pruning would change what is not even saved."""
    pytest.importorskip("num2words")
    recipe = {"model.hidden": 16, "model.feed_forward": 16, "model.layers": 1, "task.limit": 20}
    subject = find(str(bare_model(tmp_path / "m", "MarianMTModel")), "number-words", recipe)
    task = subject.recipe.make_task()
    fresh = task.model(0)
    fresh.save_pretrained(tmp_path / "m")
    frozen = [name for name, param in fresh.named_parameters() if not param.requires_grad]
    model, _ = load(subject, task)
    assert frozen
    assert frozen == [name for name, param in model.named_parameters() if not param.requires_grad]


def test_constants_are_in_no_figure_of_a_comparison(tmp_path, monkeypatch):
    """Marian's tables of sines, which were measured at matched loss and nowhere else."""
    pytest.importorskip("num2words")
    recipe = {"model.hidden": 16, "model.feed_forward": 16, "model.layers": 1, "task.limit": 20}
    given = [f"--set={key}={value}" for key, value in recipe.items()]
    task = recipes.load("number-words", recipe).make_task()
    for name, seed in (("a", 0), ("b", 1)):
        task.model(seed).save_pretrained(tmp_path / name)
    monkeypatch.setattr(Subject, "checkpoints", lambda subject: [tmp_path / "a"])
    given += ["--recipe", "number-words", "--out", tmp_path / "audit", "--no-curves", *QUICK]
    assert invoke(tmp_path / "a", "--against", tmp_path / "b", *given).exit_code == 0
    comparison = read(tmp_path / "audit")["comparison"]
    sides = [*comparison["own"], *comparison["matched"]]
    assert any(side["checkpoint"] for side in sides)
    assert len({tuple(side["layers"]) for side in sides}) == 1
    assert not any("embed_positions" in layer for layer in sides[0]["layers"])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            r"No space left for .*e\. Make room.*--ov",
        ),
        (SagelrError("It scores otherwise."), "It scores otherwise."),
    ],
)
def test_an_export_that_fails_loses_nothing_of_the_audit(run, tmp_path, monkeypatch, error, told):
    def fails(*args):
        raise error

    monkeypatch.setattr("sagelr.audit.whole.export", fails)
    options = ["--export", tmp_path / "e", "--sparsity", 0.5, *QUICK]
    with pytest.raises(SagelrError, match=told):
        invoke(run, "--out", tmp_path / "a", "--structure", "heads", *options)
    [model] = read(tmp_path / "a")["models"]
    assert model["export"] is None
    assert model["pruning"]["curves"]
    assert (tmp_path / "a" / "report.html").exists()


def test_a_full_disk_says_what_to_do_of_an_audit(run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("sagelr.report.write_report", full)
    with pytest.raises(
        SagelrError, match=r"No space left for .*report.html.*: sagelr report .*/a$"
    ):
        invoke(run, "--out", tmp_path / "a", "--no-curves", *QUICK)
    monkeypatch.setattr("sagelr.jsonfile.write", full)
    with pytest.raises(SagelrError, match=r"No space left for .*/b\. Make room.*--overwrite"):
        invoke(run, "--out", tmp_path / "b", "--no-curves", *QUICK)


def test_nothing_is_trained_that_is_not_pruned(run, tmp_path):
    """At sparsity 0 the exported model is that of the curve, which is not trained after pruning."""
    options = ["--structure", "unstructured", "--score", "magnitude", "--finetune", 1]
    result = invoke(
        run, "--out", tmp_path / "a", *options, "--export", tmp_path / "e", "--sparsity", 0, *QUICK
    )
    assert result.exit_code == 0
    [model] = read(tmp_path / "a")["models"]
    assert model["export"]["scores"] == model["pruning"]["curves"][1]["points"][0]["scores"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_curves_are_scored_on_the_split_that_is_told(run, tmp_path, task, split):
    """A sparsity may be chosen by them: on the test split only where that is asked for."""

    words = ["--structure", "neurons", "--score", "magnitude", *QUICK]
    invoke(run, "--out", tmp_path, *words, *(["--split", "test"] if split == "test" else []))
    pruning = read(tmp_path)["models"][0]["pruning"]
    model = type(task.model(0)).from_pretrained(run)
    whole = Scorer(task, split)(model)
    assert pruning["split"] == split
    assert pruning["curves"][0]["points"][0]["scores"] == whole | {
        "loss": pytest.approx(whole["loss"], rel=1e-4)
    }


def test_training_after_pruning_is_that_of_the_run(run, tmp_path, monkeypatch):
    """Its optimizer, lr and batches; another lr where one is given."""
    made = []

    def noted(pruner, task, make, **how):
        made.append((make(pruner.model), how))

    monkeypatch.setattr("sagelr.audit.whole.finetune", noted)
    words = ["--structure", "neurons", "--score", "magnitude", "--finetune", 2, *QUICK]
    for number, (more, lr) in enumerate((([], 4e-3), (["--finetune-lr", 1e-3], 1e-3))):
        made.clear()
        invoke(run, "--out", tmp_path / str(number), *words, *more)
        optimizer, how = made[0]
        assert type(optimizer).__name__ == "SageAdamW"
        assert {group["lr"] for group in optimizer.param_groups} == {lr}
        assert how == {"epochs": 2, "batch_size": 16, "accumulate": 1}


def test_training_a_plain_model_after_pruning_takes_the_recipes_batches(
    task, tmp_path, monkeypatch
):
    made = []

    def noted(pruner, task, make, **how):
        made.append((make(pruner.model), how))

    monkeypatch.setattr("sagelr.audit.whole.finetune", noted)
    task.model(0).save_pretrained(tmp_path / "plain")
    given = {**SMALL, "train.batch_size": 4, "train.accumulate": 3}
    sets = [f"--set={key}={value}" for key, value in given.items()]
    words = ["--structure", "neurons", "--score", "magnitude", "--finetune", 1]
    words += ["--finetune-lr", 1e-3, "--recipe", "digits-vit", *sets, *QUICK]
    invoke(tmp_path / "plain", "--out", tmp_path / "out", *words)
    optimizer, how = made[0]
    assert type(optimizer).__name__ == "AdamW"
    assert how == {"epochs": 1, "batch_size": 4, "accumulate": 3}


def test_a_model_is_exported_as_it_was_trained_after_pruning(run, tmp_path, task):
    words = ["--no-curves", "--export", tmp_path / "e", "--sparsity", 0.3, "--finetune", 1, *QUICK]
    invoke(run, "--out", tmp_path / "a", *words)
    cls = type(task.model(0))
    before, after = (cls.from_pretrained(folder).state_dict() for folder in (run, tmp_path / "e"))
    bias = "classifier.bias"  # nothing prunes it
    assert not torch.equal(before[bias], after[bias])


def test_what_is_told_of_all_parameters_is_a_mean_over_them(run, tmp_path, task):
    words = ["--no-curves", *QUICK]
    invoke(run, "--out", tmp_path / "a", *words)
    found = read(tmp_path / "a")["models"][0]["sensitivity"]
    model, _ = load(find(str(run), None, {}), task)
    measured = measure(model, TrainingBatches(task, 8, 40).on(torch.device("cpu")))
    whole = torch.cat([each.flatten() for each in measured.variation.values()])
    assert found["all"]["variation"] == pytest.approx(float(whole.double().mean()), rel=1e-4)


def test_the_exported_model_is_pruned_by_the_first_score(run, tmp_path):
    words = ["--no-curves", "--export", tmp_path / "e", "--sparsity", 0.3, *QUICK]
    invoke(run, "--out", tmp_path / "a", *words, "--score", "magnitude", "--score", "sensitivity")
    assert read(tmp_path / "a")["models"][0]["export"]["score"] == "magnitude"


def test_what_a_class_freezes_is_not_measured(tmp_path):
    """Positions that are not even saved are no parameters that could be redundant."""
    pytest.importorskip("num2words")
    given = {"model.hidden": 16, "model.feed_forward": 16, "model.layers": 1, "task.limit": 40}
    task = recipes.load("number-words", given).make_task()
    task.model(0).save_pretrained(tmp_path / "m")
    task.save(tmp_path / "m")
    sets = [f"--set={key}={value}" for key, value in given.items()]
    words = ["--recipe", "number-words", *sets, "--out", tmp_path / "o", "--no-curves", *QUICK]
    invoke(tmp_path / "m", *words)
    (model,) = read(tmp_path / "o")["models"]
    layers = model["sensitivity"]["layers"]
    assert sum(layer["parameters"] for layer in layers) == model["parameters"]
