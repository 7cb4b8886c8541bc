"""Handwritten digits, 8×8 pixels each, and a small vision transformer from scratch.

Data: the 1,797 test digits of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, 1998, UCI Machine Learning Repository, CC BY 4.0), which come with scikit-learn. Nothing
is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from sagelr.tasks import Metric, Task, right

if TYPE_CHECKING:
    from transformers import EvalPrediction, ViTForImageClassification

IMAGES = 1797
SIDE = 8
DARKEST = 16  # pixels are counts from 0 to 16


class DigitsOptions(BaseModel):
    """`[task]`: how the 1,797 images are split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str = "digits"
    train: int = Field(1000, ge=10, description="training images")
    validation: int = Field(300, ge=10, description="validation images; the rest is the test split")
    split_seed: int = Field(0, ge=0, description="decides which image is in which split")

    @model_validator(mode="after")
    def _some_are_left(self) -> DigitsOptions:
        left = IMAGES - self.train - self.validation
        if left < 10:
            raise ValueError(
                f"train = {self.train} and validation = {self.validation} leave {left} of the "
                f"{IMAGES} images for the test split; leave 10 or more"
            )
        return self


class VitOptions(BaseModel):
    """`[model]`: the size of the vision transformer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patch: int = Field(2, description="pixels along the side of a patch: 1, 2 or 4")
    hidden: int = Field(48, ge=4, description="width")
    layers: int = Field(2, ge=1, description="of the encoder")
    heads: int = Field(4, ge=1, description="of attention; they divide hidden")
    feed_forward: int = Field(96, ge=4, description="width within feed-forward")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the activations")
    initial_scale: float = Field(0.1, gt=0, description="standard deviation of the first weights")

    @model_validator(mode="after")
    def _divides(self) -> VitOptions:
        if self.patch not in (1, 2, 4):
            raise ValueError(
                f"patch = {self.patch} does not divide an {SIDE}×{SIDE} image; 1, 2, 4"
            )
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} is not a multiple of heads = {self.heads}")
        return self


class _Images(NamedTuple):
    pixels: Tensor  # (images, 1, 8, 8), from -1 to 1
    labels: Tensor  # (images,)


class _Split(Dataset[dict[str, Tensor]]):
    """A split, held in memory."""

    def __init__(self, images: _Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images.pixels[index], "labels": self.images.labels[index]}


class Digits(Task):
    """The task of `digits-vit`."""

    DataOptions: ClassVar[type[BaseModel]] = DigitsOptions
    ModelOptions: ClassVar[type[BaseModel]] = VitOptions
    metrics: ClassVar = {"accuracy": Metric("accuracy", scale=100, unit="%")}

    def __init__(self, data: DigitsOptions, model: VitOptions) -> None:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = torch.from_numpy(pixels).float().view(-1, 1, SIDE, SIDE) / (DARKEST / 2) - 1
        # A generator of its own: the split depends on nothing but its seed.
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(data.split_seed))
        whole = _Images(images[order].contiguous(), torch.from_numpy(labels)[order].long())
        first, second = data.train, data.train + data.validation
        self.train = _Split(_Images(*(tensor[:first] for tensor in whole)))
        self.validation = _Split(_Images(*(tensor[first:second] for tensor in whole)))
        self.test = _Split(_Images(*(tensor[second:] for tensor in whole)))
        self._sha256 = _sha256(whole)
        self._model = model

    def model(self, seed: int) -> ViTForImageClassification:
        """A ViT as transformers builds it, with its first weights drawn from the seed alone."""
        from transformers import ViTConfig, ViTForImageClassification

        options = self._model
        config = ViTConfig(
            image_size=SIDE,
            patch_size=options.patch,
            num_channels=1,
            num_labels=10,  # pyright: ignore[reportCallIssue]
            hidden_size=options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            intermediate_size=options.feed_forward,
            hidden_dropout_prob=options.dropout,
            attention_probs_dropout_prob=options.dropout,
            initializer_range=options.initial_scale,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return ViTForImageClassification(config)

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack rows to a batch."""
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def scores(self, prediction: EvalPrediction) -> dict[str, float]:
        """The share of images named rightly."""
        found = right(prediction)
        return {"accuracy": sum(found) / len(found)}

    def example_scores(self, prediction: EvalPrediction, metric: str) -> list[int] | None:
        """Which images were named rightly."""
        return right(prediction)

    def describe(self) -> dict[str, Any]:
        """What the data are."""
        return {
            "name": "Optical Recognition of Handwritten Digits, 8×8",
            "source": "scikit-learn's load_digits (UCI, Alpaydin and Kaynak 1998, CC BY 4.0)",
            "rows": {
                "train": len(self.train),
                "validation": len(self.validation),
                "test": len(self.test),
            },
            "sha256": self._sha256,
        }


def _sha256(images: _Images) -> str:
    """Of every image and label in the order of the splits."""
    digest = hashlib.sha256()
    for tensor in images:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
