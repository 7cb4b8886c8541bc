"""The recipes of translation: each can be read, each arm built, and settings name their source."""

from typing import Any

import pytest

from sagelr import recipe
from sagelr.tasks.bitext.corpus import BENCHMARKS
from sagelr.tasks.bitext.model import transformer
from sagelr.tasks.bitext.options import NUMBER_WORDS
from sagelr.train import check_arm

NAMES = [name for name in recipe.built_in() if recipe.load(name).task["family"] == "translation"]


def test_they_are_there() -> None:
    wanted = {"translation", "iwslt14-de-en", "wmt16-en-de", "multi30k-de-en", "number-words"}
    assert set(NAMES) == wanted | {"multi30k-de-en-small"}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_arm_can_be_built_and_is_tuned_as_much(name: str, quick: bool) -> None:
    found = recipe.load(name, quick=quick)
    assert found.name == name
    assert found.task["data"] in {None, NUMBER_WORDS, *BENCHMARKS}
    assert {len(arm.settings()) for arm in found.arms.values()} == {4}
    for key, arm in found.arms.items():
        check_arm(key, arm)
    for key, arm in found.arms.items():
        if arm.base is not None:
            base = found.arms[arm.base]
            assert arm.options == base.options
            if not arm.follows_base:
                assert max(arm.grid["lr"]) * arm.scope_lr_scale == max(base.grid["lr"])
            recipe.load(name, arms=[arm.base, key])


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_training_says_where_it_comes_from(name: str) -> None:
    text = recipe.built_in()[name]
    for line in text.partition("[train]")[2].partition("[study]")[0].splitlines():
        if line and not line.startswith("threads"):
            assert "[" in line.partition("#")[2], line


def test_ones_own_text_has_short_names() -> None:
    given = {"source": "a.de", "target": "a.en", "test_source": "b.de", "test_target": "b.en"}
    found = recipe.load("translation", given)
    assert {key: found.task[key] for key in given} == given
    given = {"data": "DIR", "from": "de", "to": "en"}
    found = recipe.load("translation", given)
    assert found.task["source_language"] == "de"
    assert found.task["target_language"] == "en"


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("number-words", 0.2),
        ("multi30k-de-en-small", 2.3),
        ("multi30k-de-en", 10),
        ("iwslt14-de-en", 37),
        ("wmt16-en-de", 61),
    ],
)
def test_sizes_are_as_described(name: str, millions: float) -> None:
    import torch

    class Tokenizer:
        pad_token_id, eos_token_id = 0, 1

        def __len__(self) -> int:
            return found.task["vocabulary"]

    found = recipe.load(name)
    options = found.family.ModelOptions(**found.model)
    tokenizer: Any = Tokenizer()
    with torch.device("meta"):
        model = transformer(options, tokenizer, beam=1, length_penalty=1.0)  # type: ignore[arg-type]
    trained = sum(param.numel() for param in model.parameters() if param.requires_grad)
    assert trained / 1e6 == pytest.approx(millions, rel=0.05)
    if millions > 1:
        assert f"{millions:g}M parameters" in found.description
