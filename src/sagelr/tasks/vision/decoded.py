"""Images decoded once, to squares of one size, and kept as one array in the cache folder."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sagelr.cache import kept
from sagelr.errors import UsageError
from sagelr.tasks.vision.layout import Entry
from sagelr.tasks.vision.sources import Source

if TYPE_CHECKING:
    from PIL.Image import Image

# What Pillow may take an image for, whatever its ending says; it has Ghostscript run PostScript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
VERSION = 4  # of which images are decoded, and how: another one makes new arrays


def open_image(file: bytes, entry: Entry) -> Image:
    """A picture, upright and in RGB.

    Raises:
        UsageError: Pillow cannot read it.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(file), formats=FORMATS))
            if image.mode.startswith("I;16"):  # which Pillow would clip at 255
                wide = np.asarray(image).astype(np.float64)
                image = Image.fromarray(np.rint(wide / 257).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise ValueError(f"mode {image.mode}, numbers without a known white")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        raise UsageError(
            f"{entry.name} cannot be read as an image ({error}). Mend or remove it."
        ) from None


def square(image: Image, side: int) -> Image:
    """The largest square in the middle, at another size.

    Args:
        image: of any size.
        side: pixels along the sides of the result.
    """
    from PIL import Image

    if image.size == (side, side):
        return image
    shorter = min(image.size)
    left, top = (image.width - shorter) // 2, (image.height - shorter) // 2
    middle = image.crop((left, top, left + shorter, top + shorter))
    return middle.resize((side, side), Image.Resampling.BICUBIC)


def to_tensor(image: Image) -> Tensor:
    """uint8 of shape (3, height, width)."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous()


def common_side(source: Source) -> int | None:
    """The side of all images, if all are squares of one size. Reads no more than their heads."""

    def make(path: Path) -> None:
        path.write_text(json.dumps(sorted(_sides(source))), encoding="utf-8")

    path = kept(f"sides-{source.digest[:20]}-{VERSION}.json", make)
    sides = json.loads(path.read_text(encoding="utf-8"))
    return sides[0] if len(sides) == 1 else None


def _sides(source: Source) -> set[int]:
    """Widths and heights that occur."""
    from PIL import Image

    sides: set[int] = set()
    for entry, file in zip(source.entries, source.encoded(), strict=True):
        try:
            with Image.open(io.BytesIO(file), formats=FORMATS) as image:
                sides.update(image.size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            open_image(file, entry)  # says what is wrong
    return sides


def decoded(source: Source, side: int) -> Tensor:
    """Every image of a source, from the cache or decoded now.

    Args:
        source: of the images.
        side: pixels along their sides.

    Returns:
        uint8 of shape (images, 3, side, side), mapped from the file: only what is looked at is in
        memory.

    Raises:
        UsageError: an image cannot be read, or the disk is too small.
    """
    shape = (len(source.entries), 3, side, side)

    def make(path: Path) -> None:
        needed, free = int(np.prod(shape)), shutil.disk_usage(path.parent).free
        if needed > free:
            raise UsageError(
                f"The decoded images need {needed / 2**30:.1f} GiB in {path.parent.parent}, where "
                f"{free / 2**30:.1f} GiB are free. Set SAGELR_CACHE to a larger disk, task.side "
                "to fewer pixels, or task.cache to false, which decodes images as they are needed."
            )
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        for place, image in enumerate(_images(source)):
            array[place] = to_tensor(square(image, side)).numpy()
        array.flush()

    path = kept(f"images-{source.digest[:20]}-{side}-{VERSION}.npy", make)
    # Copy on write: torch wants memory that may be written to, and the file stays as it is.
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def first_alike(source: Source, side: int) -> list[int]:
    """For every image the place of the first with the same pixels, which may be its own.

    Args:
        source: of the images.
        side: pixels along their sides, as `decoded` keeps them.
    """

    def make(path: Path) -> None:
        first: dict[bytes, int] = {}
        found = [
            first.setdefault(hashlib.sha256(image).digest(), place)
            for place, image in enumerate(decoded(source, side).numpy())
        ]
        path.write_text(json.dumps(found), encoding="utf-8")

    path = kept(f"alike-{source.digest[:20]}-{side}-{VERSION}.json", make)
    return json.loads(path.read_text(encoding="utf-8"))


def _images(source: Source) -> Iterator[Image]:
    for entry, file in zip(source.entries, source.encoded(), strict=True):
        yield open_image(file, entry)
