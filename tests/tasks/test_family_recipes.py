"""The recipes of texts and images: each can be read, each arm built, each side tuned as much."""

import pytest

from sagelr import recipe
from sagelr.train import check_arm

FAMILIES = ("text-classification", "image-classification")
NAMES = [name for name in recipe.built_in() if recipe.load(name).task["family"] in FAMILIES]


def test_they_are_there() -> None:
    wanted = {"glue-bert-base", "glue-roberta-large", "text-classification", "sst2-scratch"}
    wanted |= {f"minilm-{task}" for task in ("mrpc", "rte", "cola", "sst2")}
    wanted |= {"image-classification", "vit-cifar100", "vit-imagenet", "cifar10-vit"}
    assert set(NAMES) >= wanted


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_arm_can_be_built_and_is_tuned_as_much(name: str, quick: bool) -> None:
    found = recipe.load(name, quick=quick)
    assert found.name == name
    assert len({len(arm.settings()) for arm in found.arms.values()}) == 1
    for key, arm in found.arms.items():
        check_arm(key, arm)
    bases = {key for key, arm in found.arms.items() if arm.role == "base"}
    assert {arm.base for arm in found.arms.values() if arm.role == "sage"} == bases
    for base in bases:  # every pair can be compared
        recipe.load(name, arms=[base, f"sage-{base}"])


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_says_where_it_comes_from(name: str) -> None:
    """What a recipe decides about training stands beside the source of it."""
    text = recipe.built_in()[name]
    for line in text.partition("[train]")[2].partition("[study]")[0].splitlines():
        key = line.partition("=")[0].strip()
        if key and key not in ("accumulate", "threads", "epochs"):
            assert "[" in line.partition("#")[2], line


@pytest.mark.parametrize("name", ["text-classification", "image-classification"])
def test_ones_own_data_and_model_have_short_names(name: str) -> None:
    found = recipe.load(name, {"data": "x.csv", "model": "DIR"})
    assert (found.task["data"], found.model["name"]) == ("x.csv", "DIR")
