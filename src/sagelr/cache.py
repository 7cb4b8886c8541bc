"""What takes long to make and depends on nothing but its input: made once, kept by content.

Compiled kernels, vocabularies, decoded images. Python's own library is enough for it.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("sagelr")


def cache_folder() -> Path:
    """Where builds are kept: $SAGELR_CACHE, else sagelr in the user's cache folder."""
    named = os.environ.get("SAGELR_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sagelr"


def for_this_process() -> Path:
    """A new folder that goes when the process ends, for what the cache folder cannot hold."""
    folder = Path(tempfile.mkdtemp(prefix="sagelr-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """A file or folder in the user's cache folder, made now if it is not there.

    It appears all at once, so a process that is killed leaves nothing half made, and of several
    that make the same the first one's stays.

    Args:
        name: says what it is, and holds a hash of everything that it depends on.
        make: writes it to the path that it is given.
    """
    try:
        folder = cache_folder()
        target = folder / name
        if target.exists():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        scratch = for_this_process()
        logger.warning("cannot keep %s (%s); using %s", name, error, scratch)
        target = scratch / "kept" / name
        target.parent.mkdir()
    try:
        make(scratch / name)
        try:
            (scratch / name).rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        if target.parent.parent != scratch:
            shutil.rmtree(scratch, ignore_errors=True)
    return target
