"""Vision transformers: pretrained ones at any size of image, and small ones from scratch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional

from sagelr.errors import UsageError
from sagelr.tasks import hub

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FROM_SCRATCH = "from-scratch"
Colours = tuple[float, float, float]


class ScratchOptions(BaseModel):
    """`[model.from_scratch]`: the sizes of a vision transformer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patch: int = Field(4, ge=1, description="pixels along the side of a patch")
    hidden: int = Field(192, ge=4, description="width")
    layers: int = Field(6, ge=1, description="of the encoder")
    heads: int = Field(6, ge=1, description="of attention; they divide hidden")
    feed_forward: int = Field(384, ge=4, description="width within feed-forward")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the activations")
    initial_scale: float = Field(0.02, gt=0, description="standard deviation of the first weights")

    @model_validator(mode="after")
    def _divides(self) -> ScratchOptions:
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} is not a multiple of heads = {self.heads}")
        return self


@dataclass(frozen=True)
class Pretrained:
    """What has to be known of a checkpoint before its weights are loaded.

    Attributes:
        name: of the hub, or a local folder.
        size: pixels along the sides of its images.
        mean: of the colours from 0 to 1, which is taken off.
        deviation: what they are then divided by.
        processor: whether mean and deviation came with it.
        config: its configuration.
    """

    name: str
    size: int
    mean: Colours
    deviation: Colours
    processor: bool
    config: PretrainedConfig | None = None


PLAIN = Pretrained("", 0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False)


def look_up(name: str) -> Pretrained:
    """Size and colours of a checkpoint, from its configuration files.

    Raises:
        UsageError: it does not load.
    """
    from transformers import AutoConfig

    config = hub.load("configuration", name, AutoConfig.from_pretrained)
    size = getattr(config, "image_size", None)
    if not isinstance(size, int):
        raise UsageError(
            f"model.name = {name!r}: a {config.model_type} model says no size of square images "
            "(image_size). Use a vision transformer."
        )
    found = _processor(name)
    if found is None:
        return Pretrained(name, size, PLAIN.mean, PLAIN.deviation, False, config)
    if found.get("do_normalize") is False:
        return Pretrained(name, size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), True, config)
    mean, deviation = (_colours(name, found, key) for key in ("image_mean", "image_std"))
    return Pretrained(name, size, mean, deviation, True, config)


def _processor(name: str) -> dict[str, Any] | None:
    """What a checkpoint says of its image processor; None if it says nothing.

    Raises:
        UsageError: what it says cannot be read.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        with hub.quiet():
            found, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except Exception as error:  # one of reading has a number, or comes from JSON
        missing = isinstance(error, OSError) and error.errno is None
        if missing and not isinstance(error.__context__, json.JSONDecodeError):
            return None
        raise UsageError(_unread(name, " ".join(str(error).split()).rstrip("."))) from None
    if not isinstance(found, dict):
        raise UsageError(_unread(name, "It holds no names with values"))
    return found


def _unread(name: str, reason: str) -> str:
    return (
        f"model.name = {name!r}: preprocessor_config.json, which says how colours are scaled, "
        f"cannot be read. {reason}. Bring it back, or save the image processor there with "
        "save_pretrained."
    )


def _colours(name: str, processor: dict[str, Any], key: str) -> Colours:
    """One number for each of the three colours; one alone is for all."""
    given: Any = processor.get(key)
    found: list[Any] = given if isinstance(given, list) else [given]
    if len(found) in (1, 3) and all(_is_number(value) for value in found):
        red, green, blue = (found * 3)[:3]
        if key != "image_std" or min(found) > 0:
            return float(red), float(green), float(blue)
    said = json.dumps(given) if key in processor else "missing"
    wanted = "numbers above 0" if key == "image_std" else "numbers"
    raise UsageError(
        f"model.name = {name!r}: {key} in preprocessor_config.json is {said}. Write there the "
        f"three {wanted} that the model was trained with, one for each colour."
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def from_scratch(
    options: ScratchOptions, classes: Sequence[str], size: int, seed: int
) -> PreTrainedModel:
    """A ViT as transformers builds it, with its first weights drawn from the seed alone.

    Raises:
        UsageError: patches do not fill the image.
    """
    from transformers import ViTConfig, ViTForImageClassification

    if size % options.patch:
        raise UsageError(
            f"model.from_scratch.patch = {options.patch} does not divide images of {size}×{size} "
            "pixels. Choose another, or another task.size."
        )
    config = ViTConfig(
        image_size=size,
        patch_size=options.patch,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.feed_forward,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        initializer_range=options.initial_scale,
        **_named(classes),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ViTForImageClassification(config)


def fine_tuned(
    pretrained: Pretrained, classes: Sequence[str], size: int, seed: int
) -> tuple[PreTrainedModel, str]:
    """A pretrained model for other classes, its head drawn from the seed alone.

    Where the images have another size, its position embeddings are interpolated, as in "An Image
    is Worth 16x16 Words", Dosovitskiy et al., ICLR 2021.

    Returns:
        The model, and a notice that is empty if there is nothing to say.

    Raises:
        UsageError: it does not load, or is no ViT and cannot change its size.
    """
    from transformers import AutoModelForImageClassification

    assert pretrained.config is not None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any
        model, notice = hub.load_model(
            "model for image classification",
            pretrained.name,
            AutoModelForImageClassification.from_pretrained,
            **_named(classes),
        )
        head = hub.order_head(pretrained.name, model, pretrained.config, classes)
        notice = " ".join(filter(None, (notice, head)))
        if size == pretrained.size:
            return model, notice
        state = model.state_dict()
        keys = [key for key in state if key.endswith("embeddings.position_embeddings")]
        patch = getattr(model.config, "patch_size", None)
        if len(keys) != 1 or not isinstance(patch, int) or size % patch:
            raise UsageError(
                f"model.name = {pretrained.name!r} cannot see images of {size} pixels. Set "
                f"task.size to {pretrained.size}, or for a ViT to a multiple of its patches."
            )
        state[keys[0]] = interpolated(state[keys[0]], pretrained.size // patch, size // patch)
        model.config.image_size = size
        resized = type(model)(model.config)
        resized.load_state_dict(state)
        return resized, notice


def interpolated(positions: Tensor, before: int, after: int) -> Tensor:
    """Position embeddings of another number of patches.

    Args:
        positions: (1, tokens, width): those of other tokens, then of before × before patches.
        before: patches along a side.
        after: the same for the result.

    Returns:
        (1, tokens − before² + after², width).
    """
    others = positions.shape[1] - before**2
    grid = positions[:, others:].transpose(1, 2).unflatten(2, (before, before))
    grid = functional.interpolate(grid, (after, after), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :others], grid.flatten(2).transpose(1, 2)], dim=1)


def _named(classes: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(classes)),
        "label2id": {name: place for place, name in enumerate(classes)},
    }
