"""A cache folder of the tests' own, no way to the hub, and tiny models and data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sagelr.tasks import hub

GOOD, BAD = ("good", "fine", "lovely", "superb"), ("bad", "poor", "dreadful", "awful")
THINGS = ("film", "meal", "book", "song", "room", "walk")


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _at_home(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGELR_CACHE", str(cache_home))
    monkeypatch.setattr(hub, "reachable", lambda: False)


def reviews(rows: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences whose label follows from one word."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(rows):
        label, word, thing, number = (
            int(torch.randint(most, (), generator=generator)) for most in (2, 4, 6, 10_000)
        )
        text = f"the {THINGS[thing]} number {number} was {(BAD, GOOD)[label][word]} today"
        found.append((text, ("negative", "positive")[label]))
    return found


@pytest.fixture
def reviews_csv(tmp_path: Path) -> Path:
    lines = [f"{text},{label}" for text, label in reviews(300)]
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join(["review,sentiment", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a head, as save_pretrained leaves it, its weights 16 bits wide."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny-bert")
    words = sorted({word for text, _ in reviews(50) for word in text.split()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *"0123456789"]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=64)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT for 3 classes of images of 16×16 pixels, without preprocessor_config.json."""
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("tiny-vit")
    config = ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.1,
        num_labels=3,  # pyright: ignore[reportCallIssue]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def digit_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits 0, 1 and 2 as files of 16×16 pixels: train and test by class."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits") / "digits"
    pixels, labels = load_digits(n_class=3, return_X_y=True)
    for number, (image, label) in enumerate(zip(pixels[:240], labels[:240], strict=True)):
        split = "test" if number % 4 == 3 else "train"
        place = folder / split / ("zero", "one", "two")[label]
        place.mkdir(parents=True, exist_ok=True)
        grey = np.kron(image.reshape(8, 8) * 15.9, np.ones((2, 2))).astype("uint8")
        Image.fromarray(grey).save(place / f"{number:03}.png")
    return folder


@pytest.fixture(scope="session")
def learn() -> Callable[..., float]:
    """Train a task for some steps in the plainest way, and give the accuracy on its test split."""
    from transformers import EvalPrediction

    def logits(model: Any, task: Any, rows: Sequence[int]) -> torch.Tensor:
        batch = task.collate([task.test[row] for row in rows])
        with torch.no_grad():
            return model.eval()(**batch).logits

    def run(task: Any, steps: int, lr: float, rows: int = 32) -> float:
        model = task.model(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr)
        generator = torch.Generator().manual_seed(0)
        for step in range(steps):
            if hasattr(task.train, "set_epoch"):
                task.train.set_epoch(step)
            chosen = torch.randint(len(task.train), (rows,), generator=generator).tolist()
            loss = model.train()(**task.collate([task.train[row] for row in chosen])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        whole = range(len(task.test))
        wanted = torch.stack([task.test[row]["labels"] for row in whole])
        found = EvalPrediction(logits(model, task, whole).numpy(), wanted.numpy())  # type: ignore[arg-type]
        return task.scores(found)["accuracy"]

    return run
