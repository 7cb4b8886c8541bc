"""Splits of images: uint8 rows, augmented where they are trained on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sagelr.tasks.vision.augment import crop_and_flip, draws, resized_crop
from sagelr.tasks.vision.decoded import open_image, square, to_tensor
from sagelr.tasks.vision.sources import Source

if TYPE_CHECKING:
    from PIL.Image import Image


class Pictures(ABC):
    """Images by their place in a source."""

    @abstractmethod
    def squares(self, places: Sequence[int]) -> Tensor:
        """The middle squares, at one size: uint8 of shape (images, 3, side, side)."""

    @abstractmethod
    def wholes(self, places: Sequence[int]) -> list[Tensor]:
        """As large as there are, each uint8 of shape (3, height, width)."""


class Kept(Pictures):
    """Decoded before, in one array."""

    def __init__(self, array: Tensor) -> None:
        self.array = array

    def squares(self, places: Sequence[int]) -> Tensor:
        """A copy of the images."""
        return self.array[torch.tensor(places)]

    def wholes(self, places: Sequence[int]) -> list[Tensor]:
        """The same: nothing larger was kept."""
        return list(self.squares(places))


class Fresh(Pictures):
    """Decoded whenever they are asked for."""

    def __init__(self, source: Source, side: int) -> None:
        self.source, self.side = source, side

    def squares(self, places: Sequence[int]) -> Tensor:
        """Decoded, cut and resized."""
        return torch.stack([to_tensor(square(self._open(place), self.side)) for place in places])

    def wholes(self, places: Sequence[int]) -> list[Tensor]:
        """Decoded."""
        return [to_tensor(self._open(place)) for place in places]

    def _open(self, place: int) -> Image:
        return open_image(self.source.read(place), self.source.entries[place])


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images.

    Attributes:
        kind: "shift" as in `crop_and_flip`, "resized-crop" as in `resized_crop`.
        padding: pixels of a shift, at most.
        flip: whether to mirror every other image.
        size: pixels along the sides after a resized crop.
    """

    kind: Literal["shift", "resized-crop"]
    padding: int
    flip: bool
    size: int


class Images(Dataset[dict[str, Tensor]]):
    """A split.

    Attributes:
        seed: of the augmentation, which is a function of seed, epoch and index.
    """

    def __init__(
        self,
        pictures: Pictures,
        places: Sequence[int],
        labels: Sequence[int],
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        """Nothing is read yet.

        Args:
            pictures: of the whole source.
            places: of this split's images in it.
            labels: class of each of them.
            augmentation: None leaves images as they are.
            seed: of the augmentation.
        """
        self.pictures, self.places = pictures, list(places)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.augmentation, self.seed = augmentation, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the augmentation of an epoch."""
        if self.augmentation is not None:
            self._draws = draws(self.seed, epoch, len(self))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Rows of a batch together, which is how torch's loader asks for them."""
        places = [self.places[index] for index in indices]
        how = self.augmentation
        if how is None:
            images = self.pictures.squares(places)
        elif how.kind == "shift":
            numbers = self._draws[list(indices)]
            images = crop_and_flip(
                self.pictures.squares(places), numbers, how.padding, flip=how.flip
            )
        else:
            images = [
                resized_crop(image, self._draws[index], how.size, flip=how.flip)
                for image, index in zip(self.pictures.wholes(places), indices, strict=True)
            ]
        labels = self.labels[list(indices)]
        return [
            {"pixel_values": image, "labels": label}
            for image, label in zip(images, labels, strict=True)
        ]
