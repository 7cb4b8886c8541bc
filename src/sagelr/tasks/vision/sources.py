"""Where images are: a folder, a tar, or a data set of the hub. Nothing is ever unpacked to disk."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sagelr.cache import kept
from sagelr.errors import UsageError
from sagelr.tasks import hub
from sagelr.tasks.splits import ROLES
from sagelr.tasks.vision.layout import Entry, arrange, check, shown

if TYPE_CHECKING:
    from datasets import Dataset

TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
DAMAGE = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError)
VERSION = 3  # of how a tar is listed: another one makes new lists


class Source(ABC):
    """Encoded images with labels.

    Attributes:
        name: for people.
        loader: a sentence: which loader, and where from.
        entries: every labelled image, in a fixed order.
        left_out: what was found and is not used, for the user to know.
        classes: their names, in order.
        root: what the names of entries begin with that is no matter of the data.
    """

    name: str
    root: str = ""
    loader: str
    entries: list[Entry]
    left_out: list[str]
    classes: list[str]

    @abstractmethod
    def encoded(self) -> Iterator[bytes]:
        """The file of every image, in the order of the entries."""

    @abstractmethod
    def read(self, place: int) -> bytes:
        """The file of one image.

        Raises:
            UsageError: this kind of source can only be read from end to end.
        """

    @property
    def known(self) -> list[Entry]:
        """The entries by names that are the same wherever the source lies."""
        return [entry._replace(name=entry.name.removeprefix(self.root)) for entry in self.entries]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names, labels and files of all images."""
        whole = hashlib.sha256()
        for entry, file in zip(self.known, self.encoded(), strict=True):
            whole.update(repr((entry, len(file))).encode() + file)
        return whole.hexdigest()


class Folder(Source):
    """Images in folders by class."""

    def __init__(self, folder: Path) -> None:
        self.name, self.loader = shown(folder.resolve().name), f"local folder: {folder}"
        self.root = f"{folder}, "
        paths = sorted(_files(folder))
        names = [path.relative_to(folder).as_posix() for path in paths]
        self._places, self.entries, self.left_out = arrange(names, str(folder))
        self.classes = sorted({entry.label for entry in self.entries})
        self._paths = [paths[place] for place in self._places]

    def encoded(self) -> Iterator[bytes]:
        """The file of every image."""
        return (self.read(place) for place in range(len(self.entries)))

    def read(self, place: int) -> bytes:
        """The file of one image."""
        try:
            return self._paths[place].read_bytes()
        except OSError as error:
            raise UsageError(
                f"{self._paths[place]}: {error.strerror or type(error).__name__}."
            ) from None


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links too; what links to a folder around it ends there."""
    for where, folders, files in os.walk(folder, followlinks=True):
        around = {parent.resolve() for parent in (Path(where), *Path(where).parents)}
        folders[:] = [name for name in folders if (Path(where) / name).resolve() not in around]
        yield from (path for name in files if (path := Path(where) / name).is_file())


class Tar(Source):
    """Images in a tar, packed or not, read from end to end.

    Members are read in memory, and their names are only ever compared. A name that leads out of
    the tar would lead nowhere; a tar with such a one is refused all the same. Files that hard
    links lead to are kept in memory until the end: going back in a packed one takes long.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.loader = path.name, f"local tar: {path}"
        self._path = path

        def make(index: Path) -> None:
            with self._open() as tar:
                members = list(self._members(tar))
            names = [member.name for member in members]
            for name in names:
                if name.startswith("/") or ".." in PurePosixPath(name).parts:
                    raise UsageError(
                        f"{path} holds {name!r}, which leads out of it. Pack it anew, with names "
                        "below one folder."
                    )
            linked = sorted({member.linkname for member in members if member.islnk()})
            found = json.dumps({"names": names, "linked": linked})
            index.write_text(found, encoding="utf-8")

        # A packed one takes seconds to list.
        index = kept(f"tar-{self.digest[:20]}-{VERSION}.json", make)
        found = json.loads(index.read_text(encoding="utf-8"))
        self._linked = set(found["linked"])
        self._places, self.entries, self.left_out = arrange(found["names"], str(path))
        self.classes = sorted({entry.label for entry in self.entries})

    def _open(self) -> tarfile.TarFile:
        try:
            return tarfile.open(self._path)
        except DAMAGE as error:
            raise UsageError(f"{self._path} cannot be read as a tar: {error}.") from None

    def _members(self, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        """Its files in their order; a hard link is one again, other links and devices are none."""
        names: set[str] = set()
        try:
            for member in tar:
                if member.isfile() or (member.islnk() and member.linkname in names):
                    names.add(member.name)
                    yield member
            # A header that is none ends the list like the block of zeros behind the last file.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"at byte {tar.offset} is neither a file nor the end")
        except DAMAGE as error:
            raise UsageError(
                f"{self._path} is damaged or cut short: {error}. Make or download it again."
            ) from None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tar."""
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def encoded(self) -> Iterator[bytes]:
        """The file of every image."""
        wanted = set(self._places)
        linked: dict[str, bytes] = {}
        with self._open() as tar:
            for place, member in enumerate(self._members(tar)):
                if place not in wanted and member.name not in self._linked:
                    continue
                if member.islnk():
                    content = linked[member.linkname]
                else:
                    file = tar.extractfile(member)
                    assert file is not None  # a file is one
                    content = file.read()
                if member.name in self._linked:
                    linked[member.name] = content
                if place in wanted:
                    yield content

    def read(self, place: int) -> bytes:
        """Impossible without unpacking all before it."""
        raise UsageError(
            f"{self._path}: task.cache = false reads images one by one, which a tar does not "
            "allow. Unpack it and give task.data the folder, or leave task.cache out."
        )


class Hub(Source):
    """A data set of the hub with a column of images and one of classes."""

    def __init__(
        self, name: str, configuration: str | None, image: str | None, label: str | None
    ) -> None:
        from datasets import Image, concatenate_datasets

        self.name = name if configuration is None else f"{name}, {configuration}"
        self.loader = hub.said(name, configuration)
        found = hub.load_dataset(
            name,
            configuration,
            f"If {name} is meant to be a folder or a tar on this machine, there is none.",
        )
        self.entries, self.left_out, self.classes = [], [], []
        splits: list[Dataset] = []
        for split, rows in found.items():
            role = ROLES.get(str(split).lower())
            if role is None:
                self.left_out.append(f"Split {split} of {name} is not used.")
                continue
            pixels, column, self.classes = _columns(name, rows, image, label)
            numbers = list(rows[column])
            if any(number is None or number < 0 for number in numbers):
                self.left_out.append(f"Split {split} of {name} has no labels and is not used.")
                continue
            self.entries += [
                Entry(role, self.classes[number], f"{name}, split {split}, row {row}")
                for row, number in enumerate(numbers)
            ]
            splits.append(rows.select_columns([pixels]).rename_column(pixels, "image"))
        check(self.entries, name)
        self._rows = concatenate_datasets(splits).cast_column("image", Image(decode=False))

    def encoded(self) -> Iterator[bytes]:
        """The file of every image."""
        return (self.read(place) for place in range(len(self.entries)))

    def read(self, place: int) -> bytes:
        """The file of one image."""
        found = self._rows[place]["image"]
        return found["bytes"] if found["bytes"] is not None else Path(found["path"]).read_bytes()


def _columns(
    name: str, rows: Dataset, image: str | None, label: str | None
) -> tuple[str, str, list[str]]:
    """The columns of images and classes, and the names of the classes."""
    from datasets import ClassLabel, Image

    features = rows.features
    for key, given in (("image", image), ("label", label)):
        if given is not None and given not in features:
            raise UsageError(
                f"{name} has no column {given!r}, which task.{key} names. "
                f"Its columns: {', '.join(features)}."
            )
    images = [image] if image else [k for k, kind in features.items() if isinstance(kind, Image)]
    labels = [k for k, kind in features.items() if isinstance(kind, ClassLabel)]
    labels = [label] if label else labels
    if len(images) != 1 or len(labels) != 1:
        what = "image" if len(images) != 1 else "label"
        raise UsageError(
            f"{name} does not have one column of {what}s, but "
            f"{len(images if what == 'image' else labels)}. Its columns: {', '.join(features)}. "
            f"Say which: --set task.{what}=NAME"
        )
    if not isinstance(features[labels[0]], ClassLabel):
        raise UsageError(f"{name}: column {labels[0]!r} does not hold classes.")
    return images[0], labels[0], features[labels[0]].names


def open_source(
    data: str, configuration: str | None, image: str | None, label: str | None
) -> Source:
    """The source that `task.data` names.

    Raises:
        UsageError: there is none, or it is not laid out in classes.
    """
    path = Path(data)
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        if not path.name.lower().endswith(TARS):
            raise UsageError(
                f"{path} is neither a folder of images nor a tar. Allowed: {', '.join(TARS)}."
            )
        return Tar(path)
    if path.is_absolute() or data.startswith(".") or data.lower().endswith(TARS):
        raise UsageError(f"{path}: no such file or folder.")
    return Hub(data, configuration, image, label)
