"""Errors that a user can mend. The program prints their message alone, without a traceback."""

from __future__ import annotations

import errno
import os

# What safetensors and torch say of a full disk, in errors of their own.
NO_ROOM = ("No space left on device", "PytorchStreamWriter failed", "unexpected pos")


class SagelrError(Exception):
    """Something went wrong that the user can act on. Exit status 1."""

    exit_status = 1


class UsageError(SagelrError):
    """The request itself cannot be right: unknown key, missing file, bad value. Exit status 2."""

    exit_status = 2


def is_no_room(error: BaseException) -> bool:
    """Whether an error is that the disk is full, whoever found it so."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(sign in str(error) for sign in (*NO_ROOM, os.strerror(errno.EDQUOT)))
