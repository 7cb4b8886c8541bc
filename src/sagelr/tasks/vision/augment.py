"""Augmentation in plain torch: pure functions of the images and of numbers drawn for them.

The numbers are a function of seed, epoch and index alone, so a training that is resumed sees the
images that it would have seen, whatever the order and the size of its batches.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

DRAWS = 8  # numbers for each image
SCALE = (0.08, 1.0)  # share of the area that a resized crop keeps, as for Inception
RATIO = (3 / 4, 4 / 3)  # width by height of a resized crop


def draws(seed: int, epoch: int, images: int) -> Tensor:
    """Uniform numbers from 0 to 1 for every image.

    Philox counts: row i is a function of seed, epoch and i, however many rows there are.

    Returns:
        float64 of shape (images, 8).

    Examples:
        >>> bool((draws(0, 3, 10) == draws(0, 3, 1000)[:10]).all())
        True
    """
    bits = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    return torch.from_numpy(np.random.Generator(bits).random((images, DRAWS)))


def crop_and_flip(images: Tensor, numbers: Tensor, padding: int, *, flip: bool) -> Tensor:
    """Shift by up to `padding` pixels, black coming in at the edges, and mirror every other one.

    The same as padding by zeros, a random crop to the old size, and a random horizontal flip.

    Args:
        images: (images, channels, height, width), of any type.
        numbers: (images, 8), as `draws` gives them; the first three are used.
        padding: pixels, 0 or more.
        flip: whether to mirror left and right with probability ½.
    """
    count, _, height, width = images.shape
    if padding:
        images = functional.pad(images, (padding,) * 4)
    down, right, mirror = numbers[:, :3].unbind(1)
    top = (down * (2 * padding + 1)).long()
    left = (right * (2 * padding + 1)).long()
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    if flip:
        columns = torch.where(mirror[:, None] < 0.5, columns.flip(1), columns)
    which = torch.arange(count)[:, None, None]
    # Indices before and after a slice put the channels last.
    return images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def resized_crop(image: Tensor, numbers: Tensor, side: int, *, flip: bool) -> Tensor:
    """A random part of an image at the wanted size, mirrored every other time.

    "Going Deeper with Convolutions", Szegedy et al., CVPR 2015: an area from 8% to all of the
    image and a ratio of width to height from 3/4 to 4/3, here cut to what fits into the image.

    Args:
        image: uint8 of shape (channels, height, width).
        numbers: (8,), as `draws` gives them; the first five are used.
        side: pixels along the sides of the result.
        flip: whether to mirror left and right with probability ½.
    """
    _, height, width = image.shape
    share, ratio, down, right, mirror = numbers[:5].tolist()
    area = height * width * (SCALE[0] + share * (SCALE[1] - SCALE[0]))
    ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** ratio  # uniform in the logarithm
    wide = max(1, min(width, round((area * ratio) ** 0.5)))
    high = max(1, min(height, round((area / ratio) ** 0.5)))
    top, left = int(down * (height - high + 1)), int(right * (width - wide + 1))
    part = image[:, top : top + high, left : left + wide]
    part = resize(part[None], side)[0]
    return part.flip(2) if flip and mirror < 0.5 else part


def resize(images: Tensor, side: int) -> Tensor:
    """Images (images, channels, height, width) at side × side pixels, of the same type."""
    if images.shape[-2:] == (side, side):
        return images
    return functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
