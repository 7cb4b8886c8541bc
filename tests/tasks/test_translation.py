"""Translation: subwords, batches, the model, beam search and scores, and that it learns."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, EvalPrediction
from transformers.models.marian.modeling_marian import shift_tokens_right

from sagelr import recipe
from sagelr.errors import UsageError
from sagelr.groups import param_groups
from sagelr.tasks import family
from sagelr.tasks.bitext import decoding, scoring, subwords
from sagelr.tasks.bitext.corpus import Pairs
from sagelr.tasks.bitext.options import TransformerOptions, TranslationOptions
from sagelr.tasks.translation import IGNORED, Translation
from sagelr.train import Run, train

COLOURS = {"rote": "red", "blaue": "blue", "grüne": "green", "Weiße": "White"}
THINGS = {"Haus": "house", "Boot": "boat", "Tür": "door", "Straße": "street"}
ROWS = [
    (f"Das {a} {b} sah {n} Leute, und {c}!", f"{n} people saw the {a_} {b_}, and {c_}!")
    for n, (a, a_) in enumerate(COLOURS.items(), 2)
    for b, b_ in THINGS.items()
    for c, c_ in (("ich", "I"), ("wir auch, ja wirklich", "we too, yes indeed"))
]
PAIRS = Pairs([source for source, _ in ROWS], [target for _, target in ROWS], ("a.de", "a.en"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {"source": tmp_path / "a.de", "target": tmp_path / "a.en"}
    for path, side in zip(paths.values(), zip(*ROWS, strict=True), strict=True):
        path.write_text("\n".join(side), encoding="utf-8")
    return paths


def make(files: dict[str, Path], **data: Any) -> Translation:
    data = {"vocabulary": 320, "validation": 6, "test": 6, "beam": 3, **files, **data}
    model: dict[str, Any] = {"hidden": 16, "layers": 2, "heads": 2, "feed_forward": 24}
    return Translation(TranslationOptions(**data), TransformerOptions(**model))


def rows_of(split: Any) -> list[Any]:
    return [split[index] for index in range(len(split))]


def test_it_is_a_family() -> None:
    assert family("translation") is Translation


# -- subwords -------------------------------------------------------------------------------------

TOKENIZERS: dict[bool, Any] = {}


@pytest.mark.parametrize("words", [False, True])
@given(
    text=st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: text == text.strip())
)
def test_every_text_is_read_back(words: bool, text: str) -> None:
    if words not in TOKENIZERS:
        TOKENIZERS[words] = subwords.trained(PAIRS, 320, lowercase=False, words=words)
    tokenizer = TOKENIZERS[words]
    for each in (text, f"a {text} </s> b", f"{text}<pad>"):
        ids = tokenizer(each)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id not in ids[:-1]
        assert tokenizer.pad_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == each.strip()


def test_subwords_are_of_both_languages_and_no_more_than_asked() -> None:
    few = subwords.trained(PAIRS, 300, lowercase=False, words=False)
    many = subwords.trained(PAIRS, 5000, lowercase=False, words=False)
    assert len(few) == 300
    assert 300 < len(many) < 5000  # there is nothing more to merge
    for sentence in ("Straße, Leute", "street, people"):
        assert len(many.tokenize(sentence)) == 3 < len(few.tokenize(sentence))


def test_subwords_stay_within_words_as_they_are_given() -> None:
    """Moses writes "don&apos;t" as one word's two parts; what a space parts is a word here."""
    pairs = Pairs(["sie &apos;s-a"] * 9, ["b &apos;s-a"] * 9, ("a", "b"))
    assert subwords.trained(pairs, 300, lowercase=False, words=True).tokenize("&apos;s-a") == [
        "Ġ&apos;s-a"
    ]
    assert len(subwords.trained(pairs, 300, lowercase=False, words=False).tokenize("&apos;s-a")) > 1


def test_lower_case_is_the_tokenizers() -> None:
    tokenizer = subwords.trained(PAIRS, 320, lowercase=True, words=False)
    assert tokenizer("Das WEISSE")["input_ids"] == tokenizer("das weisse")["input_ids"]


def test_subwords_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGELR_CACHE", str(tmp_path / "cache"))
    options: dict[str, Any] = {"lowercase": False, "words": False}
    first = subwords.trained(PAIRS, 320, **options)
    kept = list((tmp_path / "cache").iterdir())
    assert [path.suffix for path in kept] == [".json"]
    before = kept[0].read_bytes()
    monkeypatch.setattr(tokenizers.trainers, "BpeTrainer", None)
    again = subwords.trained(PAIRS, 320, **options)
    assert again.get_vocab() == first.get_vocab()
    monkeypatch.undo()
    # Anew, and elsewhere, they are the same.
    monkeypatch.setenv("SAGELR_CACHE", str(tmp_path / "other"))
    subwords.trained(PAIRS, 320, **options)
    assert (tmp_path / "other" / kept[0].name).read_bytes() == before
    # Another text, size or treatment has its own.
    subwords.trained(PAIRS.pick(range(20)), 320, **options)
    subwords.trained(PAIRS, 310, **options)
    subwords.trained(PAIRS, 320, lowercase=True, words=False)
    subwords.trained(PAIRS, 320, lowercase=False, words=True)
    assert len(list((tmp_path / "other").iterdir())) == 5


# -- rows and batches -----------------------------------------------------------------------------


def test_rows_are_the_tokens_of_both_sides(files: dict[str, Path]) -> None:
    task = make(files)
    text = dict(zip(PAIRS.target, PAIRS.source, strict=True))
    for split in (task.train, task.validation, task.test):
        for row in rows_of(split):
            assert row["labels"].tolist() == task.tokenizer(row["text"])["input_ids"]
            assert row["input_ids"].tolist() == task.tokenizer(text[row["text"]])["input_ids"]
    sides = [(len(row["input_ids"]), len(row["labels"])) for row in rows_of(task.train)]
    assert task.train_lengths() == [max(both) for both in sides]


def test_long_pairs_are_left_out_of_training_and_cut_elsewhere(files: dict[str, Path]) -> None:
    whole = make(files)
    lengths = whole.train_lengths()
    longest = sorted(lengths)[len(lengths) // 2]
    task = make(files, max_length=longest)
    fits = [length for length in lengths if length <= longest]
    assert task.train_lengths() == fits
    assert 0 < task.describe()["rows"]["train"] == len(fits) < len(lengths)
    assert f"{len(lengths) - len(fits)} training pairs are longer than task.max_length" in (
        "\n".join(task.notices())
    )
    for uncut, row in zip(rows_of(whole.test), rows_of(task.test), strict=True):
        end = uncut["input_ids"][-1:]
        kept = uncut["input_ids"][: longest - 1]
        assert torch.equal(
            row["input_ids"],
            uncut["input_ids"] if len(uncut["input_ids"]) <= longest else torch.cat([kept, end]),
        )
        assert row["text"] == uncut["text"]
    with pytest.raises(UsageError, match=r"No training pair fits into task\.max_length = 4"):
        make(files, max_length=4)


def test_a_batch(files: dict[str, Path]) -> None:
    task = make(files)
    rows = sorted(rows_of(task.train), key=lambda row: len(row["labels"]))[:: len(task.train) - 1]
    batch = task.collate(rows)
    pad, end = task.tokenizer.pad_token_id, task.tokenizer.eos_token_id
    assert {name: tensor.dtype for name, tensor in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "decoder_input_ids", "labels"), torch.int64
    )
    for place, row in enumerate(rows):
        source, target = row["input_ids"].tolist(), row["labels"].tolist()
        room = batch["labels"].shape[1] - len(target)
        assert batch["attention_mask"][place].sum() == len(source)
        assert batch["input_ids"][place, : len(source)].tolist() == source
        assert batch["labels"][place].tolist() == target + [IGNORED] * room
        decoder = batch["decoder_input_ids"][place, : len(target)].tolist()
        assert decoder == [end, *target[:-1]]
    assert IGNORED not in batch["labels"][-1]
    assert (batch["labels"][0] == IGNORED).sum() > 0
    assert pad in batch["input_ids"][0]
    shifted = shift_tokens_right(batch["labels"], pad, end)  # type: ignore[arg-type]
    assert torch.equal(batch["decoder_input_ids"], shifted)


# -- the model ------------------------------------------------------------------------------------


def test_first_weights_are_the_seeds(files: dict[str, Path]) -> None:
    task = make(files)
    first = task.model(1).state_dict()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again, other = task.model(1).state_dict(), task.model(2).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "model.encoder.layers.0.fc1.weight"
    assert not torch.equal(first[name], other[name])
    assert first[name].std() == pytest.approx(16**-0.5, rel=0.15)


def test_embeddings_are_one_matrix_outside_the_scope_of_sage(files: dict[str, Path]) -> None:
    model: Any = make(files).model(0)
    shared = model.model.shared.weight
    for part in (model.model.encoder.embed_tokens, model.model.decoder.embed_tokens, model.lm_head):
        assert part.weight is shared
    groups = param_groups(model)
    sage = {name for group in groups if group["sage"] for name, _ in group["params"]}
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    assert trained - sage == {"model.shared.weight"} | {n for n in trained if "layer_norm" in n}


def test_padding_changes_nothing(files: dict[str, Path]) -> None:
    task = make(files)
    model = task.model(0).eval()
    rows = sorted(rows_of(task.train), key=lambda row: len(row["labels"]))
    rows = [rows[0], rows[-1]]
    with torch.no_grad():
        both = model(**task.collate(rows)).logits
        for place, row in enumerate(rows):
            alone = model(**task.collate([row])).logits[0]
            torch.testing.assert_close(both[place, : len(alone)], alone, rtol=1e-4, atol=1e-5)


# -- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam", [1, 3])
def test_beam_search_is_the_same_without_a_cache_and_at_any_batch_size(
    beam: int, files: dict[str, Path]
) -> None:
    task = make(files, beam=beam)
    model: Any = task.model(0)
    sources = [row["input_ids"] for row in rows_of(task.train)]
    (length, often), *_ = Counter(len(ids) for ids in sources).most_common()
    assert often > 3
    sources = [ids for ids in sources if len(ids) == length]  # no padding, and one cap
    found = [decoding.translate(model, task.tokenizer, sources, batch_size=n) for n in (1, 3, 9)]
    model.generation_config.use_cache = False
    found.append(decoding.translate(model, task.tokenizer, sources, batch_size=9))
    assert found[0] == found[1] == found[2] == found[3]
    assert model.training


def test_sentences_that_differ_in_case_alone_stay_together(tmp_path: Path) -> None:
    """Where a model sees none: else it would be scored on what it was trained on."""
    source = [f"Satz {n} {word}" for n in range(30) for word in ("Haus", "haus")]
    for end, lines in (("de", source), ("en", [line.upper() for line in source])):
        (tmp_path / f"c.{end}").write_text("\n".join(lines) + "\n")
    files = {"source": tmp_path / "c.de", "target": tmp_path / "c.en"}
    task = make(files, lowercase=True, validation=10, test=10)
    known = {text.lower() for text in task._pairs["train"].source}
    assert known
    for role in ("validation", "test"):
        assert not known & {text.lower() for text in task._pairs[role].source}


def test_a_translation_has_an_end_that_the_model_has_positions_for(files: dict[str, Path]) -> None:
    task = make(files)
    model: Any = task.model(0)
    asked = []
    model.generate = lambda **given: asked.append(given["max_new_tokens"]) or given["input_ids"]
    for length in (5, 900):
        decoding.translate(model, task.tokenizer, [torch.full((length,), 9)], batch_size=1)
    assert asked == [20, model.config.max_position_embeddings - 1]


def test_a_saved_model_translates_alike(files: dict[str, Path], tmp_path: Path) -> None:
    task = make(files, lowercase=True, length_penalty=0.6)
    model: Any = task.model(0).eval()
    model.save_pretrained(tmp_path)
    task.save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert tokenizer("Ein </s> Wort")["input_ids"] == task.tokenizer("ein </s> wort")["input_ids"]
    options = loaded.generation_config
    assert (options.num_beams, options.length_penalty, options.use_cache) == (3, 0.6, True)
    texts = list(PAIRS.source[:3])
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    found = loaded.generate(**batch, max_new_tokens=12)
    assert torch.equal(found, model.generate(**batch, max_new_tokens=12))
    assert tokenizer.pad_token_id not in found[:, 1:6]


# -- scores ---------------------------------------------------------------------------------------


class Oracle:
    """A model that knows some of the translations, and says nothing of the others."""

    device, training = torch.device("cpu"), False

    def __init__(self, task: Translation, rows: list[Any]) -> None:
        self.config = task.model(0).config
        self.task, self.sizes = task, []
        self.known = {tuple(row["input_ids"].tolist()): row["labels"] for row in rows}

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def generate(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
        self.sizes.append(len(input_ids))
        pad: Any = self.task.tokenizer.pad_token_id
        start = torch.tensor([self.task.tokenizer.eos_token_id])
        found = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            target = self.known.get(tuple(ids[mask.bool()].tolist()), torch.tensor([]))
            found.append(torch.cat([start, target.long()]))
        return torch.nn.utils.rnn.pad_sequence(found, True, pad)


def test_generation_scores_of_a_model_that_knows(files: dict[str, Path]) -> None:
    task = make(files)
    oracle: Any = Oracle(task, rows_of(task.test))
    scores = task.generation_scores(oracle, task.test, batch_size=4)
    assert scores == {"bleu": pytest.approx(100), "chrf": 100, "exact_match": 1}
    assert oracle.sizes == [4, 2]
    assert scores.keys() | {"token_accuracy"} == task.metrics.keys()
    half: Any = Oracle(task, rows_of(task.test)[:3])
    scores = task.generation_scores(half, task.test, batch_size=4)
    assert scores["exact_match"] == 0.5
    wanted = [row["text"] for row in rows_of(task.test)]
    found = [*wanted[:3], "", "", ""]
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(found, [wanted]).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(found, [wanted]).score)


def test_signatures_say_how_bleu_counts(files: dict[str, Path]) -> None:
    described = make(files).describe()["metrics"]
    assert described["bleu"] == (
        f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    )
    assert described["chrf"].startswith("nrefs:1|case:mixed|")
    other = make(files, lowercase=True, bleu_words="none")
    assert "|case:lc|eff:no|tok:none|" in other.describe()["metrics"]["bleu"]
    assert any("tok:none" in line for line in other.notices())


def test_tokenized_bleu_and_case() -> None:
    found, wanted = ["A red house , it &apos;s old ."], ["a red house, it &apos;s old."]
    assert scoring.Scorer("13a", lowercase=True)(found, wanted)["bleu"] == pytest.approx(100)
    assert scoring.Scorer("none", lowercase=True)(found, wanted)["bleu"] < 50
    assert scoring.Scorer("13a", lowercase=False)(found, wanted)["bleu"] < 100
    same = scoring.Scorer("none", lowercase=True)(["Ein Wort"], ["ein wort"])
    assert same["exact_match"] == 1
    assert scoring.Scorer("none", lowercase=False)(["Ein"], ["ein"])["exact_match"] == 0


def test_words_that_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "MeCab", None)
    with pytest.raises(UsageError, match=r"task\.bleu_words = 'ja-mecab'.*pip install"):
        scoring.Scorer("ja-mecab", lowercase=False)


def test_token_accuracy(files: dict[str, Path]) -> None:
    task = make(files)
    labels = np.array([[5, 6, 1, IGNORED], [7, 1, IGNORED, IGNORED]])
    guesses = np.array([[5, 6, 2, 9], [7, 1, 4, IGNORED]])
    given = EvalPrediction(predictions=guesses, label_ids=labels)  # type: ignore[arg-type]
    assert task.scores(given) == {"token_accuracy": 0.8}
    logits = torch.nn.functional.one_hot(torch.tensor([[2, 0]]), 4).float()
    for output in (logits, (logits, torch.zeros(1, 2, 16))):  # the encoder's output comes along
        assert task.keep_logits(output, None).tolist() == [[2, 0]]


# -- training -------------------------------------------------------------------------------------

SHORT = {
    "task.validation": 12,
    "task.test": 9,
    "task.limit": 40,
    "task.beam": 2,
    "model.hidden": 16,
    "model.feed_forward": 16,
    "model.layers": 1,
    "train.epochs": 2,
}


def test_a_short_training_gives_every_score(tmp_path: Path) -> None:
    """By tokens, with label smoothing and averaged weights, as the recipes want it."""
    more = {"train.tokens_per_batch": 256, "train.average_checkpoints": 2}
    found = recipe.load("number-words", SHORT | more)
    result = train(found, Run("report", "sage-adamw", {"lr": 0.01, "beta0": 0.8}, 0), save=tmp_path)
    assert result["status"] == "complete"
    for split in ("validation", "test"):
        assert result["scores"][split].keys() == {"loss", *Translation.metrics}
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "</s>"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arm", "setting"),
    [("adamw", {"lr": 6e-3}), ("sage-adamw", {"lr": 6e-3, "beta0": 0.8})],
)
def test_it_learns_to_translate_numbers(arm: str, setting: dict[str, float]) -> None:
    result = train(recipe.load("number-words"), Run("report", arm, setting, 0))
    assert result["scores"]["test"]["exact_match"] > 0.9


def test_another_translation_is_other_data(files: dict[str, Path]) -> None:
    before = make(files).describe()["sha256"]
    text = files["target"].read_text(encoding="utf-8")
    files["target"].write_text(text.replace("people saw", "people see"), encoding="utf-8")
    assert make(files).describe()["sha256"] != before


def test_text_that_is_in_words_already_has_them_as_they_are(files: dict[str, Path]) -> None:
    lengths = [
        len(make(files, vocabulary=5000, bleu_words=words).tokenizer.tokenize("Leute,"))
        for words in ("none", "13a")
    ]
    assert lengths == [1, 2]
