"""Vision transformers: pretrained ones at any size of image, and small ones from scratch."""

from __future__ import annotations

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
    from transformers.image_processing_base import ImageProcessingMixin

    config = hub.load("configuration", name, AutoConfig.from_pretrained)
    size = getattr(config, "image_size", None)
    if not isinstance(size, int):
        raise UsageError(
            f"model.name = {name!r}: a {config.model_type} model says no size of square images "
            "(image_size). Use a vision transformer."
        )
    try:
        with hub.quiet():
            found, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        return Pretrained(name, size, PLAIN.mean, PLAIN.deviation, False, config)
    mean, deviation = (tuple(found.get(key, PLAIN.mean)) for key in ("image_mean", "image_std"))
    return Pretrained(name, size, mean, deviation, True, config)


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
