"""Augmentation: pure functions, held to the plainest way of doing the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sagelr.tasks.vision.augment import crop_and_flip, draws, resize, resized_crop
from sagelr.tasks.vision.rows import Augmentation, Images, Kept


def pictures(count: int, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@given(seed=st.integers(0, 2**32), epoch=st.integers(0, 2**32), few=st.integers(1, 20))
def test_draws_are_a_function_of_seed_epoch_and_index(seed: int, epoch: int, few: int) -> None:
    whole = draws(seed, epoch, 40)
    assert torch.equal(whole[:few], draws(seed, epoch, few))
    assert not torch.equal(whole, draws(seed, epoch + 1, 40))
    assert not torch.equal(whole, draws(seed + 1, epoch, 40))
    assert bool(((whole >= 0) & (whole < 1)).all())


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_shift_is_padding_and_cropping(padding: int, flip: bool) -> None:
    images, numbers = pictures(50), draws(0, 0, 50)
    found = crop_and_flip(images, numbers, padding, flip=flip)
    places = set()
    for image, (down, right, mirror), result in zip(
        images, numbers[:, :3].tolist(), found, strict=True
    ):
        top, left = int(down * (2 * padding + 1)), int(right * (2 * padding + 1))
        places.add((top, left))
        wanted = functional.pad(image, [padding] * 4)[:, top : top + 8, left : left + 8]
        wanted = wanted.flip(2) if flip and mirror < 0.5 else wanted
        assert torch.equal(result, wanted)
    assert found.dtype == torch.uint8
    assert len(places) == 1 if padding == 0 else len(places) > 5


@given(seed=st.integers(0, 1000), height=st.integers(1, 40), width=st.integers(1, 40))
def test_a_resized_crop_is_a_part_of_the_image(seed: int, height: int, width: int) -> None:
    """Of an image that says where it is: rows in one channel, columns in another."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width)[None].expand(height, width)
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    numbers = draws(seed, 0, 1)[0]
    found = resized_crop(image, numbers, 16, flip=True)
    assert found.shape == (3, 16, 16)
    plain = resized_crop(image, numbers, 16, flip=False)
    assert torch.equal(found, plain.flip(2) if numbers[4] < 0.5 else plain)
    down, across = plain[0].int(), plain[1].int()
    assert bool((down.diff(dim=0) >= 0).all())
    assert bool((across.diff(dim=1) >= 0).all())
    assert int(down.max()) < height
    assert int(across.max()) < width


def test_resizing_keeps_the_type_and_a_flat_image() -> None:
    flat = torch.full((2, 3, 7, 5), 200, dtype=torch.uint8)
    assert torch.equal(resize(flat, 11), torch.full((2, 3, 11, 11), 200, dtype=torch.uint8))
    assert resize(flat.float(), 3).dtype == torch.float32


def split(kind: str = "shift", seed: int = 0) -> Images:
    augmentation = Augmentation(kind, 2, True, 8)  # type: ignore[arg-type]
    return Images(Kept(pictures(30)), range(5, 25), [0, 1] * 10, augmentation, seed)


@pytest.mark.parametrize("kind", ["shift", "resized-crop"])
def test_a_row_is_the_same_in_any_batch(kind: str) -> None:
    rows = split(kind)
    rows.set_epoch(3)
    alone = [rows[index]["pixel_values"] for index in range(20)]
    rows.set_epoch(4)
    assert any(not torch.equal(rows[k]["pixel_values"], alone[k]) for k in range(20))
    again = split(kind)  # as after a resume, in the middle of epoch 3
    again.set_epoch(3)
    for index, row in zip((17, 2, 11), again.__getitems__([17, 2, 11]), strict=True):
        assert torch.equal(row["pixel_values"], alone[index])
        assert int(row["labels"]) == index % 2
    other = split(kind, seed=1)
    other.set_epoch(3)
    assert any(not torch.equal(other[k]["pixel_values"], alone[k]) for k in range(20))


def test_torchs_loader_asks_for_whole_batches() -> None:
    rows = split()
    loader = torch.utils.data.DataLoader(rows, batch_size=6, collate_fn=list)
    found = [row["pixel_values"] for batch in loader for row in batch]
    assert all(torch.equal(a, rows[k]["pixel_values"]) for k, a in enumerate(found))


def test_without_augmentation_images_stay_as_they_are() -> None:
    rows = Images(Kept(pictures(10)), [3, 1], [0, 1])
    rows.set_epoch(5)
    assert torch.equal(rows[0]["pixel_values"], pictures(10)[3])
    assert torch.equal(rows[1]["pixel_values"], pictures(10)[1])


def test_the_smallest_crop_is_eight_percent_of_the_area() -> None:
    side = 100
    rows = torch.arange(side, dtype=torch.uint8)[:, None].expand(side, side)
    image = torch.stack([rows, rows.T, rows])
    numbers = torch.zeros(8, dtype=torch.float64)
    numbers[1] = 0.5  # as wide as it is high
    numbers[4] = 0.9
    down, right, _ = resized_crop(image, numbers, side, flip=False).double()
    for each in (down, right):
        assert float(each.max() - each.min()) + 1 == pytest.approx((0.08 * side**2) ** 0.5, abs=1.5)
