"""Recipes: what they may hold, how they are changed, and what is said of what is wrong."""

import importlib
import json
import re
from pathlib import Path

import pytest

from sagelr.errors import UsageError
from sagelr.recipe import built_in, check, load, override, parse_override, read

MINIMAL = """
name = "mine"
title = "T"
metric = "accuracy"
[task]
family = "digits"
[train]
epochs = 2
batch_size = 8
[study]
arms = ["a"]
margin = 0.01
[arms.a]
label = "A"
role = "base"
optimizer = "AdamW"
grid.lr = [1e-3]
"""


@pytest.fixture
def recipe(tmp_path):
    """Loads a recipe of these words, in place of others in the smallest one."""

    def make(*changes, extra="", **options):
        text = MINIMAL
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "mine.toml"
        path.write_text(text + extra)
        return load(str(path), **options)

    return make


def refused(make, *told):
    with pytest.raises(UsageError) as error:
        make()
    for part in told:
        assert part in str(error.value)
    return str(error.value)


# -- what is right -------------------------------------------------------------------------------


def test_data_of_a_published_recipe_lie_where_the_environment_says(monkeypatch, tmp_path):
    """What is published names a folder of data by its variable."""
    data = {"task.data": "$SAGELR_DATA/cifar10/cifar10-jpg.tar.xz"}
    monkeypatch.setenv("SAGELR_DATA", str(tmp_path))
    found = load("cifar10-vit", data)
    assert found.task["data"] == str(tmp_path / "cifar10" / "cifar10-jpg.tar.xz")
    monkeypatch.setenv("SAGELR_DATA", str(tmp_path / "none"))
    refused(lambda: load("cifar10-vit", data), "none', which is no folder", "--set task.data=")
    monkeypatch.delenv("SAGELR_DATA")
    refused(
        lambda: load("cifar10-vit", data),
        "SAGELR_DATA is not set. Set it to a folder that holds cifar10/cifar10-jpg.tar.xz",
    )


def test_defaults(recipe):
    found = recipe()
    train = found.train
    assert (train.schedule, train.warmup, train.accumulate, train.precision) == (
        "linear", 0.1, 1, "float32"
    )  # fmt: skip
    assert train.report_to == []
    assert not found.audit.enabled
    assert found.task["train"] == 1000  # the family's own defaults are filled in
    assert check(found.to_json(), "again") == found


@pytest.mark.parametrize("name", sorted(built_in()))
def test_built_in_recipes_are_right(name):
    assert load(name).name == name
    if read(name)[0].get("quick"):
        load(name, quick=True)


def test_tables_of_training_and_audit(recipe):
    found = recipe(
        ("batch_size = 8", 'batch_size = 8\nwarmup = 4000\nreport_to = ["wandb"]'),
        extra='[audit]\nenabled = true\nsparsities = [0, 0.9]\nscope = "layer"',
    )
    assert found.train.warmup == 4000
    assert found.audit.sparsities == [0, 0.9]
    assert found.audit.scope == "layer"


def test_batches_of_tokens_need_no_rows(recipe):
    assert recipe(("batch_size = 8", "tokens_per_batch = 4096")).train.batch_size is None


# -- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("epochs = 2", "epochs = 2\nepoch = 2", "unknown key 'train.epoch'; the nearest right one"),
        (
            "epochs = 2",
            "epochs = 0",
            "train.epochs = 0: Input should be greater than or equal to 1",
        ),
        ("epochs = 2", 'epochs = "two"', "train.epochs = 'two': Input should be a valid integer"),
        ("epochs = 2", "epochs = 2.5", "train.epochs = 2.5"),
        ("epochs = 2", "", "train.epochs is missing"),
        ("batch_size = 8", "", "train: batch_size is missing (or tokens_per_batch"),
        ("batch_size = 8", "batch_size = 8\nwarmup = -0.1", "train.warmup = -0.1"),
        ("batch_size = 8", "batch_size = 8\nwarmup = nan", "train.warmup = nan"),
        ("batch_size = 8", "batch_size = 8\nwarmup = 1.5", "neither a share of the steps"),
        (
            "batch_size = 8",
            "tokens_per_batch = 9\nlength_grouped = true",
            "tokens_per_batch puts rows of like length together",
        ),
        (
            "epochs = 2",
            "epochs = 2\nearly_stopping = 1\naverage_checkpoints = 2",
            "choose one of them",
        ),
        ("epochs = 2", "epochs = 2\naverage_checkpoints = 3", "more than the 2 epochs there are"),
        ("epochs = 2", 'epochs = 2\nprecision = "fp16"\ndevice = "cpu"', "needs a GPU"),
        ("epochs = 2", "epochs = 2\nlabel_smoothing = 1", "train.label_smoothing = 1"),
        ("epochs = 2", 'epochs = 2\nschedule = "step"', "'cosine', 'constant' or 'inverse_sqrt'"),
        ("epochs = 2", 'epochs = 2\nparallel = "tp"', "'ddp' or 'fsdp2'"),
        ("epochs = 2", 'epochs = 2\nreport_to = ["tb"]', "train.report_to.0 = 'tb'"),
        ("margin = 0.01", "margin = 0", "study.margin = 0"),
        ('arms = ["a"]', 'arms = ["b"]', "study.arms names 'b'; allowed: a"),
        ('arms = ["a"]', 'arms = ["a", "a"]', "names an arm twice"),
        ('arms = ["a"]', "arms = []", "study.arms"),
        ('metric = "accuracy"', 'metric = "acuracy"', "the nearest right one is 'accuracy'"),
        ('family = "digits"', 'family = "digit"', "Did you mean 'digits'?"),
        ('family = "digits"', "", "task.family is missing"),
        ('family = "digits"', 'family = "digits"\nrows = 3', "unknown key 'task.rows'"),
        ('name = "mine"', 'name = "My Recipe"', "name = 'My Recipe'"),
        ("grid.lr = [1e-3]", "grid.lr = []", "lr needs one or more values"),
        ("grid.lr = [1e-3]", "grid.lr = [1e-3, 1e-3]", "each once"),
        ("grid.lr = [1e-3]", "grid.lr = [1e-3, 1.0000001e-3]", "each once"),
        ("grid.lr = [1e-3]", "grid.lr = [1e-3]\noptions.eps = inf", "arms.a.options.eps = inf"),
        ("grid.lr = [1e-3]", "grid.lr = [-1e-3]", "lr must be above 0"),
        ("grid.lr = [1e-3]", "grid.beta0 = [0.5]", "a grid needs lr"),
        ("grid.lr = [1e-3]", "grid = {lr = [1.0], lr_ratio = [1.0]}", "lr or lr_ratio, not both"),
        ("grid.lr = [1e-3]", "grid.lr_ratio = [1.0]", "this one is a base"),
        ('role = "base"', 'role = "sage"', "a sage arm names its base"),
        ('role = "base"', 'role = "base"\nbase = "a"', "base = … is for other arms"),
        ('role = "base"', 'role = "bass"', "'base', 'sage' or 'variant'"),
        (
            'optimizer = "AdamW"',
            'optimizer = "AdamW"\noptions.lr = 1',
            "both in options and in the",
        ),
    ],
)
def test_one_message_that_says_what_and_where(recipe, old, new, told):
    message = refused(lambda: recipe((old, new)), told)
    assert "\n" not in message
    assert message.endswith(".")


def test_every_problem_is_told(recipe):
    message = refused(lambda: recipe(("epochs = 2", "epoch = 0"), ("margin = 0.01", "margin = -1")))
    assert [line.strip()[:20] for line in message.splitlines()[1:]] == [
        "train.epochs is miss", "unknown key 'train.e", "study.margin = -1: I"
    ]  # fmt: skip


def test_a_grid_that_is_none_is_told_beside_another_setting(recipe):
    with pytest.raises(UsageError, match=r"arms\.a\.grid"):
        recipe(("grid.lr = [1e-3]", "grid = 0.001"), overrides={"train.epochs": 3})


def test_an_arm_is_called_what_the_command_line_can_give(recipe):
    with pytest.raises(UsageError, match=r"arms\.'a\.b' is not a name for an arm"):
        recipe(("[arms.a]", '[arms."a.b"]'), ('arms = ["a"]', 'arms = ["a.b"]'))


def test_grids_of_different_size(recipe):
    other = '[arms.b]\nlabel="B"\nrole="base"\noptimizer="SGD"\ngrid.lr=[0.1, 0.2]'
    refused(
        lambda: recipe(('arms = ["a"]', 'arms = ["a", "b"]'), extra=other),
        "grids of different size (a 1, b 2 settings)",
        "Give every arm in study.arms as many",
    )
    recipe(extra=other)  # an arm that is not in the study may have any


def test_a_base_that_is_none(recipe):
    arm = '[arms.s]\nlabel="S"\nrole="sage"\nbase="x"\noptimizer="SageSGD"\ngrid.lr=[0.1]'
    refused(lambda: recipe(extra=arm), "arms.s.base = 'x' is not an arm whose role is base")


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("[audit]\nsparsities = [1.0]", "audit.sparsities.0 = 1.0: Input should be less than 1"),
        ("[audit]\nsparsities = []", "audit.sparsities"),
        (
            "[audit]\nenable = true",
            "unknown key 'audit.enable'; the nearest right one is 'enabled'",
        ),
        ('[audit]\nscope = "model"', "'global' or 'layer'"),
        ("[audit]\nexamples = 0", "audit.examples = 0"),
        ('[aliases]\ndata = "task.dta"', "aliases.data = 'task.dta' is not a key of a recipe"),
        ("[aliases]\ndata = 3", "aliases.data = 3"),
        ("[trian]", "unknown key 'trian'; the nearest right one is 'train'"),
    ],
)
def test_tables_that_are_wrong(recipe, table, told):
    refused(lambda: recipe(extra=table), told)


@pytest.mark.parametrize("given", ["grid.lr", "grid"])
def test_either_way_to_give_an_lr_takes_the_place_of_the_other(tmp_path, given):
    own = {"lr": [0.1, 0.2], "beta0": [0.6, 0.8]}
    replaced = {f"arms.sage-adamw.{given}": own["lr"] if given == "grid.lr" else own}
    assert load("digits-vit", replaced).arms["sage-adamw"].grid == own
    table = "grid.lr = [0.1, 0.2]"
    if given == "grid":
        table = "grid = { beta0 = [0.6, 0.8], lr = [0.1, 0.2] }"
    (tmp_path / "mine.toml").write_text(f'extends = "digits-vit"\n[arms.sage-adamw]\n{table}')
    mine = load(str(tmp_path / "mine.toml"))
    assert mine.arms["sage-adamw"].grid == own
    assert list(mine.arms["sage-adamw"].grid) == list(own)  # runs are named in this order
    back = load(str(tmp_path / "mine.toml"), {"arms.sage-adamw.grid.lr_ratio": [1, 2]})
    assert back.arms["sage-adamw"].grid == load("digits-vit").arms["sage-adamw"].grid


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("multi30k-de-en-small", {"train.batch_size": 4}, (4, None)),
        ("number-words", {"train.tokens_per_batch": 99}, (None, 99)),
    ],
)
def test_the_size_of_a_batch_is_given_in_rows_or_in_tokens(tmp_path, name, given, expected):
    found = load(name, given).train
    assert (found.batch_size, found.tokens_per_batch) == expected
    key, value = next(iter(given.items()))
    text = f'extends = "{name}"\n[train]\n{key.removeprefix("train.")} = {value}\n'
    (tmp_path / "mine.toml").write_text(text)
    assert load(str(tmp_path / "mine.toml")).train == found
    both = {"train.batch_size": 4, "train.tokens_per_batch": 99}
    refused(lambda: load(name, both), "batch_size counts the rows of a batch")


def test_epochs_that_are_asked_for_end_a_training_by_steps():
    assert load("vit-cifar100").train.max_steps == 10_000
    found = load("vit-cifar100", {"train.epochs": 3}).train
    assert (found.epochs, found.max_steps) == (3, None)
    for both in (
        {"train.epochs": 3, "train.max_steps": 7},
        {"train.max_steps": 7, "train.epochs": 3},
    ):
        found = load("vit-cifar100", both).train
        assert (found.epochs, found.max_steps) == (3, 7)


def test_an_lr_beside_multiples_of_the_bases_is_refused():
    options = {"arms.sage-adamw.options.lr": 0.5, "arms.sage-adamw.grid.lr_ratio": [1, 2]}
    refused(lambda: load("digits-vit", options), "lr stands both in options and in the grid")


# -- finding and reading -------------------------------------------------------------------------


def test_toml_errors_name_the_line(recipe):
    refused(lambda: recipe(extra="x =\ny = 1"), "is not valid TOML", "line 18", "Mend that line")


def test_recipes_that_are_not_there(tmp_path):
    refused(lambda: load("digit-vit"), "no recipe 'digit-vit'", "nearest right one is 'digits-vit'")
    refused(lambda: load(str(tmp_path / "none.toml")), "No such file", "built-in recipe")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    refused(lambda: load(str(tmp_path / "latin.toml")), "not UTF-8 text (byte 8)")


def test_a_mark_that_editors_begin_with_is_none_of_the_text(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "digits-vit"\ntitle = "Mine"', encoding="utf-8-sig")
    assert load(str(path)).title == "Mine"


def test_what_was_trained_holds_its_recipe(tmp_path):
    made = load("digits-vit", {"train.epochs": 3, "arms.sage-adamw.grid.lr": [0.1, 0.2]})
    metric = {"metric": made.score.to_json()}  # as results.json has it
    for name, recipe in {"results": made.to_json() | metric, "run": made.to_json()}.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"schema": 1, "recipe": recipe, "runs": [1] * 999}))
        assert load(str(path)) == made
        assert json.loads(read(str(path))[1]) == made.to_json()
        assert load(str(path), {"train.epochs": 4}).train.epochs == 4
    for broken in ("", "[]", "{}", '{"recipe": []}', '{"recipe": {"metric": {}}}'):
        path.write_text(broken)
        refused(lambda: load(str(path)), "is not what sagelr compare or sagelr train writes")


def test_the_page_of_all_keys_is_what_is_checked(monkeypatch):
    docs = Path(__file__).resolve().parents[1] / "docs"
    monkeypatch.syspath_prepend(str(docs))
    page = importlib.import_module("make_recipes").page()
    assert (docs / "recipes.md").read_text(encoding="utf-8") == page, "run docs/make_recipes.py"
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert not [row[0] for row in rows if row[-1].strip(" |") == ""]  # each says what it is


# -- extending another ---------------------------------------------------------------------------


def test_extending_says_only_what_is_different(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'extends = "digits-vit"\nname = "mine"\n[study]\narms = ["adamw", "new"]\n'
        "[arms.sage-adamw]\ngrid.beta0 = [0.5, 0.9]\n"
        '[arms.new]\nlabel = "N"\nrole = "base"\noptimizer = "SGD"\ngrid.lr = [1, 2, 3, 4]\n'
    )
    mine, theirs = load(str(tmp_path / "mine.toml")), load("digits-vit")
    assert mine.name == "mine"
    assert list(mine.arms) == ["adamw", "sage-adamw", "new"]
    assert mine.study.arms == ["adamw", "new"]
    assert mine.arms["sage-adamw"].grid == {"lr_ratio": [1, 2], "beta0": [0.5, 0.9]}
    for same in ("title", "task", "model", "train", "audit", "quick"):
        assert getattr(mine, same) == getattr(theirs, same)
    assert mine.study.margin == theirs.study.margin


def test_extending_goes_on_from_file_to_file(tmp_path):
    below = tmp_path / "below"
    below.mkdir()
    (below / "first.toml").write_text('extends = "digits-vit"\n[train]\nepochs = 3\nthreads = 2')
    (tmp_path / "second.toml").write_text('extends = "below/first.toml"\ntrain.epochs = 4')
    found = load(str(tmp_path / "second.toml"), {"train.warmup": 0.2})
    assert (found.train.epochs, found.train.threads, found.train.warmup) == (4, 2, 0.2)
    assert read(str(tmp_path / "second.toml"))[1].startswith("extends")  # as it was written


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('extends = "digit-vit"', "nearest right one is 'digits-vit'"),
        ('extends = "none.toml"', "No such file"),
        ("extends = 3", "extends = 3 is not the name or the path of a recipe"),
        ('extends = "broken.toml"', "broken.toml is not valid TOML"),
        ('extends = "mine.toml"', "mine.toml. Leave one of these out"),
        ('extends = "round.toml"', "extends itself"),
        ('extends = "digits-vit"\ntrain = 3', "train"),
        ('extends = "digits-vit"\ntrain.epoch = 3', "unknown key 'train.epoch'"),
    ],
)
def test_extending_what_cannot_be(tmp_path, text, told):
    (tmp_path / "mine.toml").write_text(text)
    (tmp_path / "round.toml").write_text(f'extends = "../{tmp_path.name}/mine.toml"')
    (tmp_path / "broken.toml").write_text("x =")
    message = refused(lambda: load(str(tmp_path / "mine.toml")), told, ".toml")
    assert "\n" not in message


# -- replacing values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.epochs=5", ("train.epochs", 5)),
        ("train.warmup = 0.5", ("train.warmup", 0.5)),
        ("data=reviews.csv", ("data", "reviews.csv")),
        ("data=a=b.csv", ("data", "a=b.csv")),
        ("x=true", ("x", True)),
        ('x="true"', ("x", "true")),
        ("x=[1, 2]", ("x", [1, 2])),
        ("x=", ("x", "")),
        ("x=1\ny=2", ("x", "1\ny=2")),
    ],
)
def test_values_of_the_command_line(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["train.epochs", "=5", " =5"])
def test_what_is_no_key_and_value(text):
    refused(lambda: parse_override(text), "is not key=value", "--set train.epochs=5")


def test_replacing_by_dotted_name():
    found = load("digits-vit", {"train.epochs": 3, "arms.adamw.options.eps": 1e-6})
    assert found.train.epochs == 3
    assert found.arms["adamw"].options == {"weight_decay": 0.01, "eps": 1e-6}


def test_replacing_leaves_the_original():
    data = {"train": {"epochs": 1}}
    override(data, {"train.epochs": 2}, "--set")
    assert data == {"train": {"epochs": 1}}


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("train.epoch", "train.epochs"),
        ("epochs", "train.epochs"),
        ("arms.adam.grid.lr", "arms.adamw.grid.lr"),
        ("paralel", "parallel"),
        ("audit.enable", "audit.enabled"),
    ],
)
def test_keys_that_no_recipe_has(key, near):
    told = f"--set: unknown key '{key}'; the nearest right one is '{near}'."
    refused(lambda: load("digits-vit", {key: 1}), told)


def test_reaching_into_what_is_no_table():
    message = refused(lambda: override({"train": 3}, {"train.epochs": 2}, "--set"))
    assert re.search(r"'train\.epochs' reaches into 'train', which is not a table", message)


def test_aliases(recipe):
    table = '[aliases]\nrows = "task.train"\nmodel = "model.layers"\nlr = "arms.a.grid.lr"'
    found = recipe(
        extra=table, overrides={"rows": 50, "model": 3, "lr": [0.5], "parallel": "fsdp2"}
    )
    assert found.task["train"] == 50
    assert found.model["layers"] == 3
    assert found.arms["a"].grid["lr"] == [0.5]
    assert found.train.parallel == "fsdp2"
    told = "unknown key 'row'; the nearest right one is 'rows'"
    refused(lambda: recipe(extra=table, overrides={"row": 1}), told)


@pytest.mark.parametrize(
    "quick", ['"train.epochs" = 1', "train.epochs = 1", "train = { epochs = 1 }", "size = 1"]
)
def test_quick_puts_its_settings_in_place(recipe, quick):
    extra = f'[aliases]\nsize = "train.epochs"\n[quick]\n{quick}'
    assert recipe(extra=extra).train.epochs == 2
    found = recipe(extra=extra, quick=True)
    assert (found.train.epochs, found.train.batch_size) == (1, 8)
    assert recipe(extra=extra, quick=True, overrides={"train.epochs": 7}).train.epochs == 7


def test_quick_may_replace_a_grid(recipe):
    found = recipe(extra="[quick]\narms.a.grid = { lr = [0.5] }", quick=True)
    assert found.arms["a"].grid == {"lr": [0.5]}


@pytest.mark.parametrize(
    ("quick", "options"),
    [
        ("arms.a.options.eps = 1e-5", {"eps": 1e-5, "amsgrad": True}),
        ('"arms.a.options" = { eps = 1e-5 }', {"eps": 1e-5}),
    ],
)
def test_quick_goes_key_by_key_unless_a_table_is_named(recipe, quick, options):
    """What was left out would run at the optimizer's defaults."""
    change = ("grid.lr = [1e-3]", "grid.lr = [1e-3]\noptions = { eps = 1e-6, amsgrad = true }")
    found = recipe(change, extra=f"[quick]\n{quick}", quick=True)
    assert found.arms["a"].options == options


def test_quick_that_is_not_there_or_wrong(recipe):
    refused(lambda: recipe(quick=True), "has no [quick] table", "or use --set")
    told = "[quick] of recipe"
    refused(lambda: recipe(extra='[quick]\n"train.epoch" = 1', quick=True), told, "'train.epochs'")


def test_arms_of_the_command_line():
    assert load("digits-vit", arms=["adamw"]).study.arms == ["adamw"]
    refused(lambda: load("digits-vit", arms=["adam"]), "study.arms names 'adam'", "'adamw'")


def test_a_grid_is_put_in_order_however_it_is_written():
    """Its ends are what tuning extends."""
    found = load("digits-vit", {"arms.adamw.grid.lr": [4e-3, 5e-4, 2e-3, 1e-3]})
    assert found.arms["adamw"].grid["lr"] == [5e-4, 1e-3, 2e-3, 4e-3]


def test_two_arms_of_one_label_are_refused():
    changes = {"arms.sage-adamw.label": "AdamW"}
    refused(lambda: load("digits-vit", changes), "two arms of the study have the label 'AdamW'")
