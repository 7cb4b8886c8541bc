"""Classes of images, with a ViT that is fine-tuned or trained from scratch.

Data: a folder or a tar of images by class, or a data set of the hub. Images become RGB squares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sagelr.errors import UsageError
from sagelr.tasks import Metric, Task, hub, logits_of, right
from sagelr.tasks.splits import arrange
from sagelr.tasks.vision import sources, vit
from sagelr.tasks.vision.augment import resize
from sagelr.tasks.vision.decoded import common_side, decoded, first_alike
from sagelr.tasks.vision.layout import LAYOUT
from sagelr.tasks.vision.rows import Augmentation, Fresh, Images, Kept

if TYPE_CHECKING:
    from transformers import EvalPrediction, PretrainedConfig, PreTrainedModel

TOP = 5  # guesses, for top-5 accuracy


class ImageOptions(BaseModel):
    """`[task]`: which images, how they are split and augmented."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str = "image-classification"
    data: str | None = Field(None, description="a folder, a tar, or a data set of the hub")
    title: str | None = Field(None, description="what pages call the data; else data itself")
    name: str | None = Field(None, description="configuration of a data set of the hub")
    image: str | None = Field(None, description="the hub's column of images, if there are several")
    label: str | None = Field(None, description="the hub's column of classes, the same")
    validation: float | None = Field(
        None, gt=0, description="images held out to choose settings, a share if below 1"
    )
    test: float = Field(0.2, gt=0, description="the same for a test split, where there is none")
    split_seed: int = Field(0, ge=0, description="decides which images are held out")
    limit: int | None = Field(None, ge=2, description="training images, for a quick look")
    size: int | None = Field(
        None, ge=1, description="pixels along the sides for the model; its own if left out"
    )
    side: int | None = Field(
        None, ge=1, description="pixels along the sides that are kept; found if left out"
    )
    cache: bool = Field(True, description="keep decoded images; false decodes them every time")
    augment: Literal["shift", "resized-crop", "none"] = Field(
        "shift", description="of training images, other in every epoch"
    )
    padding: int | None = Field(
        None, ge=0, description="pixels of a shift, at most; an eighth of side if left out"
    )
    flip: bool = Field(True, description="mirror every other training image")


class ImageModelOptions(BaseModel):
    """`[model]`: what is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description='a model of the hub, a local folder, or "from-scratch"')
    from_scratch: vit.ScratchOptions = Field(
        default_factory=lambda: vit.ScratchOptions.model_validate({}),
        description="its sizes, for that",
    )


class ImageClassification(Task):
    """The task of the `vit-…`, `cifar10-vit` and `image-classification` recipes."""

    DataOptions: ClassVar[type[BaseModel]] = ImageOptions
    ModelOptions: ClassVar[type[BaseModel]] = ImageModelOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric("accuracy", scale=100, unit="%"),
        "top5": Metric("top5", scale=100, unit="%", label="top-5 accuracy"),
    }

    def __init__(self, data: ImageOptions, model: ImageModelOptions) -> None:
        if data.data is None:
            raise UsageError(
                "No data: say which images to learn from, with --set task.data=DIR, a folder (or a "
                f"tar) with {LAYOUT}, or the name of a data set of the hub."
            )
        self._data, self._model = data, model
        self._pretrained = None
        if model.name != vit.FROM_SCRATCH:
            self._pretrained, self.pretrained = vit.look_up(model.name), model.name
        self._source = source = sources.open_source(data.data, data.name, data.image, data.label)
        self.given = ["accuracy", "top5"] if len(source.classes) > 10 else ["accuracy"]
        self.side, self.size = self._sizes()
        places: dict[str, list[int]] = {}
        for place, entry in enumerate(source.entries):
            places.setdefault(entry.role, []).append(place)
        number = {name: k for k, name in enumerate(source.classes)}
        labels = {
            role: [number[source.entries[place].label] for place in found]
            for role, found in places.items()
        }
        pictures = Kept(decoded(source, self.side)) if data.cache else Fresh(source, self.side)
        # Copies in two splits would be learnt by heart; without the cache, finding them takes long.
        alike = first_alike(source, self.side) if data.cache else range(len(source.entries))
        groups = [alike[place] for place in places["train"]]
        self._repeated = len(groups) - len(set(groups))
        self._parts = arrange(
            labels,
            validation=data.validation,
            test=data.test,
            seed=data.split_seed,
            limit=data.limit,
            groups=groups,
        )
        augmentation = None
        if data.augment != "none":
            padding = self.side // 8 if data.padding is None else data.padding
            augmentation = Augmentation(data.augment, padding, data.flip, self.size)
        splits = {
            role: Images(
                pictures,
                [places[part.source][row] for row in part.rows],
                [labels[part.source][row] for row in part.rows],
                augmentation if role == "train" else None,
            )
            for role, part in self._parts.items()
        }
        self.train, self.validation, self.test = splits.values()
        self._labels = {split: split.labels for split in splits.values()}

    def _sizes(self) -> tuple[int, int]:
        """Pixels along the sides: as kept, and as the model sees them."""
        data = self._data
        size = data.size or (self._pretrained.size if self._pretrained else None)
        side = data.side
        if side is None and not data.cache:
            side = size
        elif side is None:
            common = common_side(self._source)
            side = size if common is None or (size is not None and size < common) else common
        if side is None:
            raise UsageError(
                f"{self._source.name}: the images have different sizes, and a model from scratch "
                "has none of its own. Say to how many pixels they go: --set task.side=64"
            )
        return side, size or side

    # -- model --------------------------------------------------------------------------------

    def model(self, seed: int) -> PreTrainedModel:
        """The pretrained ViT with a head drawn from the seed; from scratch, all of it is."""
        return self._loaded(seed)[0]

    def _loaded(self, seed: int) -> tuple[PreTrainedModel, str]:
        """The model, and a notice that is empty if there is nothing to say."""
        classes = self._source.classes
        if self._pretrained is None:
            return vit.from_scratch(self._model.from_scratch, classes, self.size, seed), ""
        return vit.fine_tuned(self._pretrained, classes, self.size, seed)

    def adopt(self, source: str, config: PretrainedConfig) -> str:
        """Take a trained model's order of classes."""
        places, notice = hub.check_classes(source, config, self._source.classes)
        for split, labels in self._labels.items():
            split.labels = torch.tensor(places)[labels]
        return notice

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack, scale from bytes to the model's numbers, and resize to the model's pixels."""
        pixels = torch.stack([row["pixel_values"] for row in rows]).float() / 255
        mean, deviation = self._normal()
        pixels = (resize(pixels, self.size) - mean) / deviation
        return {"pixel_values": pixels, "labels": torch.stack([row["labels"] for row in rows])}

    def _normal(self) -> tuple[Tensor, Tensor]:
        found = self._pretrained or vit.PLAIN
        mean, deviation = (
            torch.tensor(values).view(3, 1, 1) for values in (found.mean, found.deviation)
        )
        return mean, deviation

    def save(self, folder: Path) -> None:
        """Save what an image processor of transformers does before the model."""
        found = self._pretrained or vit.PLAIN
        processor = {
            "image_processor_type": "CLIPImageProcessor",  # it takes the middle square, in RGB
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.size},
            "resample": 3,  # bicubic
            "do_center_crop": True,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(found.mean),
            "image_std": list(found.deviation),
        }
        text = json.dumps(processor, indent=2) + "\n"
        (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")

    # -- scores and words -----------------------------------------------------------------------

    def scores(self, prediction: EvalPrediction) -> dict[str, float]:
        """Share of images named rightly; with more than 10 classes, also by one of 5 guesses."""
        each = {name: self.example_scores(prediction, name) for name in self.given}
        return {name: sum(found) / len(found) for name, found in each.items()}

    def example_scores(self, prediction: EvalPrediction, metric: str) -> list[int]:
        """Which images were named rightly, at the first guess or by one of 5."""
        if metric == "accuracy":
            return right(prediction)
        labels: Any = prediction.label_ids
        guesses = np.argpartition(logits_of(prediction), -TOP, axis=-1)[:, -TOP:]
        return (guesses == labels[:, None]).any(-1).astype(int).tolist()

    def describe(self) -> dict[str, Any]:
        """What the data are. Without the cache, sha256 is of names and labels alone."""
        digest = hashlib.sha256(repr((self._parts, self.side)).encode())
        digest.update(
            self._source.digest.encode() if self._data.cache else repr(self._source.known).encode()
        )
        return {
            "name": self._data.title or self._source.name,
            "source": str(self._data.data),
            "loader": self._source.loader,
            "rows": {role: len(part.rows) for role, part in self._parts.items()},
            "splits": {role: part.origin for role, part in self._parts.items()},
            "classes": self._source.classes,
            "metrics": self.given,
            "sha256": digest.hexdigest(),
        }

    def notices(self) -> list[str]:
        """The loader, the sizes, the splits, what was left out, and what is new in the model.

        Raises:
            UsageError: a pretrained model does not load.
        """
        rows = "; ".join(
            f"{role} {len(part.rows):,} images ({part.origin})"
            for role, part in self._parts.items()
        )
        kept = "kept decoded" if self._data.cache else "decoded every time"
        lines = [
            f"Data by {self._source.loader}: {len(self._source.classes)} classes.",
            f"Images {kept} at {self.side}×{self.side} pixels; the model sees "
            f"{self.size}×{self.size}.",
            f"Splits: {rows}.",
            *self._source.left_out,
        ]
        if self._repeated:
            lines.append(
                f"Training images that repeat another: {self._repeated:,}; they stay in one split."
            )
        if self._pretrained is not None and not self._pretrained.processor:
            lines.append(
                f"{self._model.name} comes without preprocessor_config.json: colours go from -1 to "
                "1."
            )
        if self._pretrained is not None and (new := self._loaded(0)[1]):
            lines.append(new)
        return lines
