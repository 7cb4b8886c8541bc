"""Image classification: sources, decoding, models, scores; it learns what can be learnt."""

import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import EvalPrediction

from sagelr.audit.subjects import find, load
from sagelr.errors import UsageError
from sagelr.tasks import family
from sagelr.tasks.images import ImageClassification, ImageModelOptions, ImageOptions
from sagelr.tasks.vision import decoded, sources, vit

SMALL = {"patch": 4, "hidden": 32, "layers": 2, "heads": 2, "feed_forward": 64}
SCRATCH = {"name": "from-scratch", "from_scratch": {**SMALL, "initial_scale": 0.1}}


def make(data: Any, model: Any = SCRATCH, **options: Any) -> ImageClassification:
    model = model if isinstance(model, dict) else {"name": str(model)}
    return ImageClassification(ImageOptions(data=str(data), **options), ImageModelOptions(**model))


def pack(folder: Path, path: Path, mode: str, prefix: str = "") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        tar.add(folder, arcname=prefix or folder.name)
    return path


def picture(path: Path, size: tuple[int, int] = (16, 16), mode: str = "RGB", fill: Any = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, fill).save(path)


def pixels(task: ImageClassification) -> torch.Tensor:
    return torch.stack([task.test[row]["pixel_values"] for row in range(len(task.test))])


def test_it_is_a_family() -> None:
    assert family("image-classification") is ImageClassification


def test_it_learns(digit_images: Path, learn: Callable[..., float]) -> None:
    assert learn(make(digit_images, augment="none"), steps=80, lr=1e-3) > 0.85


def test_a_folder(digit_images: Path) -> None:
    task = make(digit_images, title="Digits")
    described = task.describe()
    assert described["rows"] == {"train": 162, "validation": 18, "test": 60}
    assert described["classes"] == ["one", "two", "zero"]
    assert described["name"] == "Digits"
    assert described["loader"] == f"local folder: {digit_images}"
    assert described["metrics"] == ["accuracy"]
    told = "\n".join(task.notices())
    assert "16×16 pixels" in told
    assert "validation 18 images (held out of the training data, seed 0)" in told
    first = sorted((digit_images / "test").rglob("*.png"))[0]
    wanted = torch.from_numpy(np.asarray(Image.open(first).convert("RGB")).copy())
    assert torch.equal(task.test[0]["pixel_values"], wanted.permute(2, 0, 1))
    assert make(digit_images, title="Digits").describe() == described


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz")]
)
def test_a_tar_holds_the_same(name: str, mode: str, digit_images: Path, tmp_path: Path) -> None:
    task = make(pack(digit_images, tmp_path / name, mode))
    folder = make(digit_images)
    # A tar keeps the order in which it was packed.
    entries = [(entry.role, entry.label) for entry in task._source.entries]
    assert sorted(entries) == sorted((e.role, e.label) for e in folder._source.entries)
    packed, loose = (sorted(map(bytes, pixels(t).flatten(1).numpy())) for t in (task, folder))
    assert packed == loose
    assert task.describe()["loader"] == f"local tar: {tmp_path / name}"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_hard_links_in_a_tar_are_files(mode: str, digit_images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(digit_images / "train", tmp_path / "digits"))
    for path in sorted((folder / "zero").iterdir())[:5]:
        os.link(path, path.with_name(f"again-{path.name}"))
    tar = sources.Tar(pack(folder, tmp_path / "a.tar", mode))
    loose = sources.Folder(folder)
    found, wanted = (
        {entry.name.split(", ")[1].removeprefix("digits/"): file for entry, file in pairs}
        for pairs in (zip(each.entries, each.encoded(), strict=True) for each in (tar, loose))
    )
    assert found == wanted
    with tarfile.open(tmp_path / "a.tar") as packed:
        assert sum(member.islnk() for member in packed) == 5


def test_a_folder_that_is_named_by_a_dot(
    digit_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digit_images)
    assert make(".").describe()["name"] == "digits"


@pytest.mark.parametrize("packed", [False, True])
def test_a_class_that_cannot_be_written_down(packed: bool, tmp_path: Path) -> None:
    """A folder from a zip that was made where names are Latin-1."""
    folder = tmp_path / "data"
    picture(folder / "dog" / "1.png")
    try:
        (folder / "caf\udce9").mkdir()
    except OSError:
        pytest.skip("this file system takes no such name")
    picture(folder / "caf\udce9" / "1.png")
    data = pack(folder, tmp_path / "a.tar", "w") if packed else folder
    with pytest.raises(UsageError, match=r"has a folder 'caf\?' whose name is not UTF-8.*Rename"):
        make(data)


def test_classes_alone_are_split(digit_images: Path) -> None:
    task = make(digit_images / "train", validation=20, test=40)
    assert task.describe()["rows"] == {"train": 120, "validation": 20, "test": 40}


def test_names_that_lead_out_of_a_tar_lead_nowhere(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    path = tmp_path / "deep" / "evil.tar"
    path.parent.mkdir()
    names = ["../../escaped/1.png", "/absolute/2.png", "a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(file.getvalue())
            tar.addfile(member, io.BytesIO(file.getvalue()))
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(
        UsageError, match=r"evil\.tar holds '\.\./\.\./escaped/1\.png', which leads"
    ):
        make(path)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("names", "entries"),
    [
        (["train/a/1.jpg", "train/b/2.JPG", "val/a/3.png"], ["train a", "train b", "validation a"]),
        (
            ["x/train/a/1.jpg", "x/train/b/1.jpg", "x/test/b/1.jpg"],
            ["train a", "train b", "test b"],
        ),
        (["./a/1.jpg", "./b/sub/2.jpg", "b/.DS_Store"], ["train a", "train b"]),
        (["root/a/1.jpg", "root/b/2.jpg", "root/notes.txt"], ["train a", "train b"]),
        (["train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"], ["train a", "train b"]),
    ],
)
def test_layouts(names: list[str], entries: list[str]) -> None:
    places, found, left_out = sources.arrange(names, "here")
    assert [f"{entry.role} {entry.label}" for entry in found] == entries
    assert [names[place] for place in places] == [entry.name.split(", ")[1] for entry in found]
    unlabelled = [name for name in names if name == "test/1.jpg"]
    assert len(left_out) == len(unlabelled)


def test_hidden_images_are_left_out_and_told() -> None:
    seen = ["x/a/1.jpg", "x/b/2.jpg"]
    hidden = [
        "x/.thumbnails/1.jpg",
        "x/a/.ipynb_checkpoints/1.jpg",
        "x/a/._1.jpg",
        "__MACOSX/x/a/1.jpg",
    ]
    _, entries, left_out = sources.arrange([*seen, *hidden, "x/.DS_Store"], "here")
    assert [entry.label for entry in entries] == ["a", "b"]
    assert left_out == ["Hidden images of here, and macOS's of its own, not used: 4."]


def test_a_folder_that_lies_in_a_hidden_one(digit_images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(digit_images, tmp_path / ".data" / "digits"))
    (folder / "train" / "one" / "._000.png").write_bytes(b"macOS's")
    task = make(folder)
    assert task.describe()["classes"] == ["one", "two", "zero"]
    assert task.notices()[-1].endswith("not used: 1.")


def test_files_that_do_not_end_like_an_image_are_told() -> None:
    seen = ["x/a/1.jpg", "x/b/in/2.JFIF"]
    others = ["x/a/1.heic", "x/b/2.HEIC", "x/b/in/3.cr2", "x/a/note", "x/a/.DS_Store", "x/read.me"]
    _, entries, left_out = sources.arrange([*seen, *others, "x/raw/1.heic"], "here")
    assert [entry.label for entry in entries] == ["a", "b"]
    assert left_out[0].startswith("Folders of here without an image: x/raw. Endings")
    assert left_out[1:] == [
        "Files of here among its images that do not end like one, not used: 2 .heic, 1 .cr2, "
        "1 without one."
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.jpg", "2.jpg"], "here has no training images. Images are looked for as train/CLASS"),
        (["a/1.jpg", "a/2.jpg"], "here has one class alone, 'a'"),
        ([], "here has no training images"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg"], "test/c/1.jpg: no training image is"),
    ],
)
def test_layouts_that_are_none(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        sources.arrange(names, "here")


# -- decoding -----------------------------------------------------------------------------------


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    for name, mode, fill in (
        ("a/grey.png", "L", 128),
        ("a/alpha.png", "RGBA", (128, 128, 128, 0)),
        ("b/bits.png", "1", 1),
        ("b/palette.gif", "P", 0),
    ):
        picture(tmp_path / name, mode=mode, fill=fill)
    source = sources.Folder(tmp_path)
    array = decoded.decoded(source, 16)
    assert array.shape == (4, 3, 16, 16)
    first = {entry.name.split(", ")[1]: image for entry, image in
             zip(source.entries, array, strict=True)}  # fmt: skip
    assert bool((first["a/grey.png"] == 128).all())
    assert bool((first["a/alpha.png"] == 128).all())
    assert bool((first["b/bits.png"] == 255).all())


@pytest.mark.parametrize("cache", [True, False])
def test_repeated_images_stay_together(cache: bool, tmp_path: Path) -> None:
    for n in range(60):
        picture(tmp_path / "ab"[n % 2] / f"{n}.png", fill=(n % 20, 0, 0))
    task = make(tmp_path, cache=cache, side=16)
    kinds = [
        {int(images[row]["pixel_values"][0, 0, 0]) for row in range(len(images))}
        for images in (task.train, task.validation, task.test)
    ]
    assert (sum(map(len, kinds)) == len(set.union(*kinds))) == cache
    assert any("repeat another: 40;" in line for line in task.notices()) == cache


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    for n in range(8):
        wide = np.full((16, 16), 257 * (40 if n % 2 else 200), dtype=np.uint16)
        wide[0, n] = 257 * 100
        path = tmp_path / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(wide).save(path)
    levels = {int(level) for level in pixels(make(tmp_path)).unique()}
    assert levels == {40, 100, 200}
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16), 0.5, dtype=np.float32)).save(file, "tiff")
    entry = make(tmp_path)._source.entries[0]
    with pytest.raises(UsageError, match=r"cannot be read as an image \(mode F"):
        decoded.open_image(file.getvalue(), entry)


def test_the_middle_of_an_image_that_is_no_square(tmp_path: Path) -> None:
    wide = Image.new("RGB", (40, 20), (255, 0, 0))
    wide.paste((0, 0, 255), (10, 0, 30, 20))
    assert decoded.square(wide, 10).getcolors() == [(100, (0, 0, 255))]
    turned = Image.new("RGB", (20, 40), (255, 0, 0))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    turned.save(tmp_path / "turned.jpg", exif=exif)
    entry = sources.Entry("train", "a", "turned.jpg")
    assert decoded.open_image((tmp_path / "turned.jpg").read_bytes(), entry).size == (40, 20)


def test_decoding_is_done_once(
    digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGELR_CACHE", str(tmp_path))
    first = make(digit_images)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(decoded, "open_image", lambda *_: pytest.fail("decoded again"))
    again = make(digit_images)
    assert torch.equal(pixels(first), pixels(again))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept
    # Nothing that is done to a row reaches the file.
    again.test[0]["pixel_values"].fill_(7)
    assert torch.equal(pixels(first), pixels(make(digit_images)))


def test_other_images_are_other_arrays(digit_images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(digit_images, tmp_path / "copy"))
    before = make(folder).describe()["sha256"]
    picture(sorted((folder / "train").rglob("*.png"))[0], fill=(1, 2, 3))
    assert make(folder).describe()["sha256"] != before


@pytest.mark.parametrize("options", [{}, {"cache": False, "size": 16}])
def test_the_same_images_are_the_same_wherever_they_lie(
    options: dict[str, Any], digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make(digit_images, **options).describe()["sha256"]
    monkeypatch.chdir(digit_images.parent)
    assert make("digits", **options).describe()["sha256"] == before
    folder = Path(shutil.copytree(digit_images, tmp_path / "copy"))
    assert make(folder, **options).describe()["sha256"] == before
    first = sorted((folder / "train").rglob("*.png"))[0]
    first.rename(first.with_name("another.png"))
    assert make(folder, **options).describe()["sha256"] != before


def test_a_disk_that_is_too_small(
    digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGELR_CACHE", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UsageError, match=r"need 0\.0 GiB .*SAGELR_CACHE .*task\.cache to false"):
        make(digit_images)
    assert not list(tmp_path.glob("*.npy"))
    assert not list(tmp_path.glob(".making*"))


def test_without_the_cache_the_images_are_the_same(
    digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = make(digit_images, augment="none")
    monkeypatch.setenv("SAGELR_CACHE", str(tmp_path))
    fresh = make(digit_images, augment="none", cache=False, size=16)
    assert torch.equal(pixels(kept), pixels(fresh))
    assert not list(tmp_path.iterdir())
    crops = make(digit_images, augment="resized-crop", cache=False, size=12)
    assert crops.train[0]["pixel_values"].shape == (3, 12, 12)
    with pytest.raises(UsageError, match=r"task\.cache = false reads images one by one"):
        _ = make(pack(digit_images, tmp_path / "a.tar", "w"), cache=False, size=16).test[0]


# -- sizes and models ---------------------------------------------------------------------------


def test_sizes(digit_images: Path, tiny_vit: Path, tmp_path: Path) -> None:
    for sizes, options in (
        ((16, 16), {}),
        ((16, 32), {"size": 32}),
        ((8, 8), {"size": 8}),
        ((12, 12), {"side": 12}),
        ((12, 24), {"side": 12, "size": 24}),
    ):
        task = make(digit_images, **options)
        assert (task.side, task.size) == sizes
        assert task.collate([task.test[0]])["pixel_values"].shape == (1, 3, sizes[1], sizes[1])
    for n, size in enumerate([(20, 30), (16, 16), (40, 40), (8, 8)] * 5):
        picture(tmp_path / "ab"[n % 2] / f"{n}.png", size, fill=(n, 0, 0))
    assert make(tmp_path, tiny_vit).side == 16
    with pytest.raises(UsageError, match=r"different sizes.*--set task\.side=64"):
        make(tmp_path)
    with pytest.raises(UsageError, match=r"patch = 4 does not divide images of 10×10"):
        make(digit_images, size=10).model(0)


@pytest.mark.parametrize("kind", ["scratch", "pretrained", "resized"])
def test_a_model_is_a_function_of_its_seed(kind: str, digit_images: Path, tiny_vit: Path) -> None:
    model = SCRATCH if kind == "scratch" else tiny_vit
    task = make(digit_images, model, size=32 if kind == "resized" else None)

    def weights(seed: int) -> torch.Tensor:
        return torch.cat([param.flatten() for param in task.model(seed).parameters()])

    first = weights(3)
    torch.rand(7)
    assert torch.equal(first, weights(3))
    if kind == "scratch":  # the pretrained one has a head for three classes already
        assert not torch.equal(first, weights(4))


def test_a_pretrained_model_gets_a_head_for_other_classes(tiny_vit: Path, tmp_path: Path) -> None:
    for n in range(40):
        picture(tmp_path / "abcd"[n % 4] / f"{n}.png", fill=(n, n, n))
    task = make(tmp_path, tiny_vit)
    first, again, other = (task.model(seed) for seed in (0, 0, 1))
    heads = [model.get_parameter("classifier.weight") for model in (first, again, other)]
    assert heads[0].shape == (4, 32)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert first.config.id2label == dict(enumerate("abcd"))
    assert any("comes without preprocessor_config.json" in line for line in task.notices())


def test_a_checkpoint_that_would_leave_the_body_untrained(
    digit_images: Path, tiny_vit: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_vit, tmp_path / "vit"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    task = make(digit_images, folder)
    for each in (lambda: task.model(0), task.notices):
        with pytest.raises(UsageError, match=r"does not fit ViTFor.*has in another shape vit\."):
            each()


def test_another_size_is_what_transformers_interpolates(digit_images: Path, tiny_vit: Path) -> None:
    task = make(digit_images, tiny_vit, size=32)
    batch = task.collate([task.test[0], task.test[1]])
    with torch.no_grad():
        found = task.model(0).eval()(**batch).logits
        plain: Any = make(digit_images, tiny_vit).model(0).eval()
        wanted = plain(**batch, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(found, wanted)
    positions = torch.randn(1, 2 + 9, 5)
    assert vit.interpolated(positions, 3, 5).shape == (1, 2 + 25, 5)
    assert torch.equal(vit.interpolated(positions, 3, 3), positions)


def test_what_is_saved_loads(digit_images: Path, tmp_path: Path) -> None:
    task = make(digit_images, size=32)
    model = task.model(0).eval()
    model.save_pretrained(tmp_path / "saved")
    task.save(tmp_path / "saved")
    again = make(digit_images, tmp_path / "saved")
    assert again.size == 32
    assert not any("comes without" in line for line in again.notices())
    batch = task.collate([task.test[0]])
    assert torch.equal(batch["pixel_values"], again.collate([again.test[0]])["pixel_values"])
    with torch.no_grad():
        torch.testing.assert_close(again.model(0).eval()(**batch).logits, model(**batch).logits)


def test_the_saved_processor_does_what_collate_does(digit_images: Path, tmp_path: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    task = make(digit_images)
    task.save(tmp_path)
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path)
    first = sorted((digit_images / "test").rglob("*.png"))[0]
    found = processor(Image.open(first).convert("RGB"), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, task.collate([task.test[0]])["pixel_values"])
    kept = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert kept["size"] == {"shortest_edge": 16}


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_the_saved_processor_takes_the_middle_of_any_image(mode: str, tmp_path: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    smooth = np.linspace(0, 255, 48)[:, None] * np.ones((1, 96))
    smooth[:, :24] = smooth[:, 72:] = 255  # beside the middle
    for split in ("train", "test"):
        for number in range(12):
            path = tmp_path / "data" / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((smooth * (number + 1) / 12).astype("uint8")).convert(mode).save(path)
    task = make(tmp_path / "data", size=16, side=16)
    task.save(tmp_path)
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path)
    first = sorted((tmp_path / "data" / "test").rglob("*.png"))[0]
    found = processor(Image.open(first), return_tensors="pt")["pixel_values"]
    wanted = task.collate([task.test[0]])["pixel_values"]
    torch.testing.assert_close(found[..., 2:-2], wanted[..., 2:-2], atol=0.03, rtol=0)


def test_a_checkpoints_own_colours(digit_images: Path, tiny_vit: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_vit, tmp_path / "vit"))
    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 1.0, 2.0]}
    (folder / "preprocessor_config.json").write_text(json.dumps(colours))
    task = make(digit_images, folder)
    row = task.test[0]
    found = task.collate([row])["pixel_values"][0]
    for channel, (mean, deviation) in enumerate(zip(*colours.values(), strict=True)):
        wanted = (row["pixel_values"][channel] / 255 - mean) / deviation
        torch.testing.assert_close(found[channel], wanted)


@pytest.mark.parametrize(
    ("colours", "mean", "deviation"),
    [
        ({"image_mean": 0.5, "image_std": [0.25]}, 0.5, 0.25),
        ({"image_mean": [0, 0, 0], "image_std": 1}, 0.0, 1.0),
        ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": None}, 0.0, 1.0),
    ],
)
def test_colours_that_are_alike(
    colours: dict[str, Any], mean: float, deviation: float, tiny_vit: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_vit, tmp_path / "vit"))
    (folder / "preprocessor_config.json").write_text(json.dumps(colours))
    found = vit.look_up(str(folder))
    assert (found.mean, found.deviation) == ((mean,) * 3, (deviation,) * 3)
    assert found.processor


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image_mean": [0.5, 0.', "cannot be read. It looks like .* not a valid JSON file"),
        ("[]", "cannot be read. It holds no names"),
        ('{"image_mean": null, "image_std": 1}', "image_mean in .* is null. Write"),
        ('{"image_std": 1}', "image_mean in .* is missing. Write"),
        ('{"image_mean": [0.5, 0.5], "image_std": 1}', r"is \[0\.5, 0\.5\]. Write"),
        ('{"image_mean": 0.5, "image_std": 0}', "image_std in .* is 0. Write .* numbers above 0"),
        ('{"image_mean": "grey", "image_std": 1}', 'is "grey"'),
    ],
)
def test_colours_that_are_none(text: str, message: str, tiny_vit: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_vit, tmp_path / "vit"))
    (folder / "preprocessor_config.json").write_text(text)
    with pytest.raises(UsageError, match=message) as told:
        vit.look_up(str(folder))
    assert "preprocessor_config.json" in str(told.value)


@pytest.mark.processes
def test_neither_torchvision_nor_timm_is_needed(digit_images: Path, tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules["torchvision"] = sys.modules["timm"] = sys.modules["kornia"] = None
from sagelr.tasks.images import ImageClassification, ImageModelOptions, ImageOptions
model = {{"name": "from-scratch", "from_scratch": {SMALL!r}}}
task = ImageClassification(ImageOptions(data={str(digit_images)!r}), ImageModelOptions(**model))
print(float(task.model(0)(**task.collate(task.train.__getitems__([0, 1, 2]))).loss))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "SAGELR_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


# -- scores -------------------------------------------------------------------------------------


def test_top_five_is_for_many_classes(digit_images: Path, tmp_path: Path) -> None:
    for n in range(48):
        picture(tmp_path / f"class{n % 12:02}" / f"{n}.png", fill=(n, n, n))
    task = make(tmp_path, validation=12, test=12)
    assert task.describe()["metrics"] == ["accuracy", "top5"]
    logits = np.tile(np.arange(12.0), (4, 1))  # the last class first
    found = task.scores(EvalPrediction(logits, np.array([11, 7, 6, 0])))  # type: ignore[arg-type]
    assert found == {"accuracy": 0.25, "top5": 0.5}
    few = make(digit_images)
    logits = np.eye(3)
    assert few.scores(EvalPrediction(logits, np.arange(3))) == {"accuracy": 1.0}  # type: ignore[arg-type]


# -- the hub ------------------------------------------------------------------------------------


@pytest.fixture
def hub_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder laid out as a hub's repository is, with two columns of classes."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine": datasets.ClassLabel(names=["x", "y", "z"]),
            "coarse": datasets.ClassLabel(names=["p", "q"]),
        }
    )
    folder = tmp_path / "someone" / "pictures"
    folder.mkdir(parents=True)
    for split, rows in (("train", 30), ("validation", 6), ("test", 6)):
        images = [Image.new("RGB", (8, 8), (n, n, n)) for n in range(rows)]
        fine = [n % 3 if split != "test" else -1 for n in range(rows)]
        columns = {"img": images, "fine": fine, "coarse": [n % 2 for n in range(rows)]}
        made = datasets.Dataset.from_dict(columns, features=features)
        made.to_parquet(folder / f"{split}.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return "someone/pictures"


def test_the_hub(hub_images: str) -> None:
    """By datasets.load_dataset itself."""
    source = sources.Hub(hub_images, None, None, "fine")
    assert source.classes == ["x", "y", "z"]
    assert source.left_out == ["Split test of someone/pictures has no labels and is not used."]
    roles = [entry.role for entry in source.entries]
    assert (roles.count("train"), roles.count("validation"), len(roles)) == (30, 6, 36)
    array = decoded.decoded(source, 8)
    assert [int(image[0, 0, 0]) for image in array] == [*range(30), *range(6)]
    assert [entry.label for entry in source.entries[:3]] == ["x", "y", "z"]
    for given, message in (
        (("photo", "fine"), "no column 'photo', which task.image names"),
        ((None, "img"), "column 'img' does not hold classes"),
        ((None, None), "does not have one column of labels, but 2"),
    ):
        with pytest.raises(UsageError, match=message):
            sources.Hub(hub_images, None, *given)


# -- what cannot be -----------------------------------------------------------------------------


def test_what_is_no_image(tmp_path: Path) -> None:
    for n in range(8):
        picture(tmp_path / "ab"[n % 2] / f"{n}.png")
    (tmp_path / "a" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(UsageError, match=r"a/broken\.jpg cannot be read as an image"):
        make(tmp_path)


def test_postscript_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would have Ghostscript run it."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("it is run"))
    for n in range(8):
        picture(tmp_path / "ab"[n % 2] / f"{n}.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "a" / "script.jpg", "EPS")
    with pytest.raises(UsageError, match=r"a/script\.jpg cannot be read as an image"):
        make(tmp_path)


def test_what_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.zip").write_text("no tar")
    (tmp_path / "b.tar.gz").write_text("no tar")
    for data, message in (
        ("a.zip", r"a\.zip is neither a folder of images nor a tar"),
        ("b.tar.gz", r"b\.tar\.gz cannot be read as a tar"),
        ("c.tar", r"c\.tar: no such file"),
        ("./photos", "photos: no such file or folder"),
        ("no/such", "data set no/such does not load.*cannot be reached.*there is none"),
    ):
        with pytest.raises(UsageError, match=message):
            make(data)
    with pytest.raises(UsageError, match=r"No data: .*--set task\.data=DIR"):
        ImageClassification(ImageOptions.model_validate({}), ImageModelOptions(**SCRATCH))


@pytest.mark.parametrize("damage", ["header", "boundary", "end"])
@pytest.mark.parametrize(("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz")])
def test_a_tar_that_ends_before_its_end(
    damage: str, ending: str, mode: str, digit_images: Path, tmp_path: Path
) -> None:
    """tarfile itself takes a header that it cannot read, and the end of the file, for the end."""
    whole = bytearray(pack(digit_images, tmp_path / "whole.tar", "w").read_bytes())
    with tarfile.open(tmp_path / "whole.tar") as tar:
        members = [member for member in tar if member.isfile()]
    header, last = members[len(members) // 2].offset, members[-1]
    if damage == "header":
        whole[header + 150] ^= 1
    elif damage == "boundary":
        del whole[header:]
    else:
        del whole[last.offset_data + 512 * -(-last.size // 512) :]
    path = tmp_path / f"a.{ending}"
    opened: Any = {"w": open, "w:gz": gzip.open, "w:xz": lzma.open}[mode]
    with opened(path, "wb") as file:
        file.write(whole)
    for _ in range(2):  # a list that is short is not kept either
        with pytest.raises(UsageError, match=r"is damaged or cut short: at byte \d+ is neither"):
            make(path)


@pytest.mark.parametrize("ending", ["tar.gz", "tar.xz", "tar.bz2"])
@pytest.mark.parametrize("damage", ["cut at once", "cut", "changed"])
def test_a_packed_tar_that_does_not_unpack(
    damage: str, ending: str, digit_images: Path, tmp_path: Path
) -> None:
    path = pack(digit_images, tmp_path / f"a.{ending}", f"w:{ending[4:]}")
    packed = bytearray(path.read_bytes())
    if damage == "changed":
        middle = len(packed) // 2
        packed[middle : middle + 64] = bytes(64)
    else:
        del packed[60 if damage == "cut at once" else len(packed) // 2 :]
    path.write_bytes(packed)
    with pytest.raises(UsageError, match=r"(is damaged or cut short|cannot be read as a tar): "):
        make(path)


@pytest.mark.shared_data
@pytest.mark.processes
def test_the_real_tar(shared_data: Path) -> None:
    source = sources.Tar(shared_data / "cifar10" / "cifar10-jpg.tar.xz")
    rows = Counter((entry.role, entry.label) for entry in source.entries)
    assert len(source.classes) == 10
    for name in source.classes:
        assert (rows["train", name], rows["test", name]) == (5_000, 1_000)
    assert len(rows) == 20
    first = decoded.open_image(next(source.encoded()), source.entries[0])
    assert first.size == (32, 32)


def own_vit(folder: Path, tiny_vit: Path, names: list[str]) -> Path:
    from transformers import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(tiny_vit)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: place for place, name in enumerate(names)}
    model.save_pretrained(folder)
    return folder


def test_a_head_of_the_same_classes_keeps_them_apart(
    digit_images: Path, tiny_vit: Path, tmp_path: Path
) -> None:
    from transformers import ViTForImageClassification

    folder = own_vit(tmp_path / "own", tiny_vit, ["zero", "one", "two"])
    task = make(digit_images, folder)
    own, model = ViTForImageClassification.from_pretrained(folder).eval(), task.model(0).eval()
    assert list(model.config.id2label.values()) == ["one", "two", "zero"]
    pixels = task.collate([task.test[row] for row in range(8)])["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, own(pixels).logits[:, [1, 2, 0]])


def test_an_audited_model_keeps_its_order_of_classes(
    digit_images: Path, tiny_vit: Path, tmp_path: Path
) -> None:
    folder = own_vit(tmp_path / "own", tiny_vit, ["zero", "one", "two"])
    task = make(digit_images, folder)
    before = task.test.labels.clone()
    subject = find(str(folder), "image-classification", {"task.data": str(digit_images)})
    for _ in range(2):
        model, notice = load(subject, task)
        assert notice == ""
        assert list(model.config.id2label.values()) == ["zero", "one", "two"]
        names = [model.config.id2label[int(label)] for label in task.test.labels]
        assert names == [["one", "two", "zero"][int(label)] for label in before]
    other = own_vit(tmp_path / "other", tiny_vit, ["un", "deux", "trois"])
    with pytest.raises(UsageError, match="un, deux, trois apart, and the data one, two, zero"):
        load(find(str(other), "image-classification", {"task.data": str(digit_images)}), task)


def test_folders_that_are_links_and_such_without_images(digit_images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "linked"
    for name in ("zero", "one"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(digit_images / "train" / name, target_is_directory=True)
    (folder / "round").symlink_to(folder, target_is_directory=True)
    (folder / "two").mkdir()
    for path in (digit_images / "train" / "two").iterdir():
        Image.open(path).save(folder / "two" / f"{path.stem}.tif")
    (folder / "raw").mkdir()
    (folder / "raw" / "1.heic").write_bytes(b"")
    source = sources.Folder(folder)
    assert source.classes == ["one", "two", "zero"]
    assert len(source.entries) == len(list((digit_images / "train").rglob("*.png")))
    assert any("without an image: raw. Endings" in line for line in source.left_out)


def test_training_images_may_be_limited(digit_images: Path) -> None:
    """Class by class, and nothing else."""
    whole, few = (make(digit_images, validation=20, limit=limit) for limit in (None, 30))
    assert few.describe()["rows"] == {**whole.describe()["rows"], "train": 30}
    counts = Counter(few.train.labels.tolist())
    assert max(counts.values()) - min(counts.values()) <= 2
