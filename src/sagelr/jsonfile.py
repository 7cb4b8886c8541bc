"""JSON files that are whole at every moment, and read well."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write JSON so that the file is whole at every moment.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the old file is left.
    """
    text, path = dumps(results), path.resolve()  # a link stays one
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def dumps(results: Mapping[str, Any]) -> str:
    """JSON to read and to compare by line: a line for each run, or whatever else is a list.

    Raises:
        ValueError: a number is not finite.
    """
    # Without indent the encoder is the one in C. A study of hundreds of runs has 16 MB to write.
    encode = functools.partial(json.dumps, ensure_ascii=False, allow_nan=False)
    parts = []
    for key, value in results.items():
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(map(encode, value)) + "\n ]"
        elif isinstance(value, dict) and value:
            entries = (f"{encode(str(name))}: {encode(entry)}" for name, entry in value.items())
            text = "{\n  " + ",\n  ".join(entries) + "\n }"
        else:
            text = encode(value)
        parts.append(f" {encode(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"
