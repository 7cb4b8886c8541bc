"""Which files are images of which class, by the folders that they lie in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from pathlib import PurePosixPath
from typing import NamedTuple

from sagelr.errors import UsageError
from sagelr.tasks.splits import ROLES

IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
LAYOUT = "train/CLASS/IMAGE (and test/CLASS/IMAGE, val/CLASS/IMAGE), or CLASS/IMAGE"


class Entry(NamedTuple):
    """One labelled image: its split by role, its class, and how messages name it."""

    role: str
    label: str
    name: str


def arrange(names: Sequence[str], where: str) -> tuple[list[int], list[Entry], list[str]]:
    """Which of the files are labelled images, by their paths.

    Args:
        names: paths below the source's root, with `/`.
        where: the source, for messages.

    Returns:
        Places in `names`; an entry for each; what was left out.

    Raises:
        UsageError: the paths are not in a layout that is known.

    Examples:
        >>> arrange(["c/train/cat/1.png", "c/train/dog/2.png", "c/read.me"], "c.tar")[1][1]
        Entry(role='train', label='dog', name='c.tar, c/train/dog/2.png')
    """
    parts = {
        k: PurePosixPath(name).parts
        for k, name in enumerate(names)
        if name.lower().endswith(IMAGES)
    }
    found = len(parts)
    parts = {k: part for k, part in parts.items() if not any(map(_is_hidden, part))}
    hidden = found - len(parts)
    # One folder around all the rest is not a class.
    while len({part[0] for part in parts.values()}) == 1 and all(
        len(part) > 2 and part[0].lower() not in ROLES for part in parts.values()
    ):
        parts = {k: part[1:] for k, part in parts.items()}
    split = any(ROLES.get(part[0].lower()) == "train" for part in parts.values())
    places: list[int] = []
    entries: list[Entry] = []
    classes: set[PurePosixPath] = set()
    unknown = 0
    for k, part in parts.items():
        role = ROLES.get(part[0].lower()) if split else "train"
        label = part[1:] if split else part
        if role is None or len(label) < 2:
            unknown += 1
            continue
        places.append(k)
        entries.append(Entry(role, label[0], f"{where}, {names[k]}"))
        classes.add(PurePosixPath(names[k]).parents[len(label) - 2])
    check(entries, where)
    left_out = _left_out(names, parts, classes, where)
    if hidden:
        left_out.append(f"Hidden images of {where}, and macOS's of its own, not used: {hidden:,}.")
    if unknown:
        left_out.append(f"Images of {where} in no folder of a class, not used: {unknown:,}.")
    return places, entries, left_out


def _left_out(
    names: Sequence[str], images: Iterable[int], classes: Set[PurePosixPath], where: str
) -> list[str]:
    """What to say of files that do not end like an image.

    Args:
        names: of all files.
        images: places in `names`.
        classes: the folders of the classes.
        where: the source.
    """
    left_out = []
    without = sorted(
        {PurePosixPath(name).parent for name in names}
        - {parent for k in images for parent in PurePosixPath(names[k]).parents}
    )
    empty = [str(folder) for folder in without if not any(map(_is_hidden, folder.parts))]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        left_out.append(
            f"Folders of {where} without an image: {', '.join(empty[:5])}{more}. Endings that are "
            f"looked for: {', '.join(IMAGES)}."
        )
    others = _others(names, classes, set(without))
    if others:
        endings = ", ".join(f"{count:,} {ending}" for ending, count in others.most_common(5))
        more = f" and {len(others) - 5} more endings" if len(others) > 5 else ""
        left_out.append(
            f"Files of {where} among its images that do not end like one, not used: "
            f"{endings}{more}."
        )
    return left_out


def _others(
    names: Sequence[str], classes: Set[PurePosixPath], told: Set[PurePosixPath]
) -> Counter[str]:
    """How many files that do not end like an image are below the folders of classes, by ending.

    Args:
        names: of all files.
        classes: the folders.
        told: folders without an image, which are spoken of elsewhere.
    """
    found: Counter[str] = Counter()
    for name in names:
        path = PurePosixPath(name)
        if name.lower().endswith(IMAGES) or any(map(_is_hidden, path.parts)):
            continue
        if path.parent not in told and not classes.isdisjoint(path.parents):
            found[path.suffix.lower() or "without one"] += 1
    return found


def shown(name: str) -> str:
    """A name that can be written down: "?" for what is not UTF-8."""
    return name.encode(errors="replace").decode()


def _is_hidden(part: str) -> bool:
    """Whether a file or folder is some program's own: thumbnails, checkpoints, macOS's notes."""
    return part.startswith(".") or part == "__MACOSX"


def check(entries: Sequence[Entry], where: str) -> None:
    """Two classes or more to learn, no others later, and names that can be written down.

    Raises:
        UsageError: it is otherwise.
    """
    classes = {entry.label for entry in entries if entry.role == "train"}
    for label in sorted({entry.label for entry in entries}):
        if label != shown(label):
            raise UsageError(
                f"{where} has a folder {shown(label)!r} whose name is not UTF-8 text, so that no "
                "class can be called by it. Rename it; a tar has to be packed anew."
            )
    if len(classes) < 2:
        found = f"one class alone, {next(iter(classes))!r}" if classes else "no training images"
        raise UsageError(
            f"{where} has {found}. Images are looked for as {LAYOUT}, with endings "
            f"{', '.join(IMAGES)}."
        )
    for entry in entries:
        if entry.label not in classes:
            raise UsageError(
                f"{entry.name}: no training image is of the class {entry.label!r}. The classes: "
                f"{', '.join(sorted(classes)[:10])}."
            )
