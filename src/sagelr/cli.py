"""The program's entry: runs a command, and turns what goes wrong into one message and a status.

Exit status: 0 done, 1 failed, 2 a request that cannot be right, 130, 143 and 129 stopped
by Ctrl-C, SIGTERM and a closed terminal.
"""

from __future__ import annotations

import errno
import os
import sys

from sagelr.errors import SagelrError, UsageError, is_no_room
from sagelr.quiet import quiet

# Module → the extra that brings it.
EXTRAS = {
    **dict.fromkeys(
        (
            "accelerate",
            "datasets",
            "filelock",
            "huggingface_hub",
            "numpy",
            "optuna",
            "PIL",
            "psutil",
            "pydantic",
            "rich",
            "sacrebleu",
            "safetensors",
            "scipy",
            "sklearn",
            "sqlalchemy",
            "tokenizers",
            "transformers",
            "typer",
        ),
        "train",
    ),
    **dict.fromkeys(("jinja2", "markupsafe", "plotly"), "report"),
}


ROOM = "Make room and run the same command again; of a study, finished runs are kept."


def main() -> None:
    """Run the command on the command line and exit."""
    quiet()
    for stream in (sys.stdout, sys.stderr):  # may be in an encoding without "–" or "β"
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        for word in sys.argv[1:]:
            _check_text(word)
        from sagelr.commands import app

        app()
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("SAGELR_TRACEBACK"):
            raise
        message, status = explain(error)
        if message:
            print(message, file=sys.stderr)
        sys.exit(status)


def _check_text(word: str) -> None:
    """Refuse what could not be written down, as a command is in results.

    Raises:
        UsageError: an argument is not UTF-8.
    """
    try:
        word.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(word).decode(errors="replace")
        raise UsageError(
            f"The argument {shown!r} is not UTF-8 text. If it names a file or folder, rename that."
        ) from None


def explain(error: BaseException) -> tuple[str, int]:
    """What to tell the user, and the exit status."""
    if isinstance(error, SagelrError):
        stopped = error.exit_status not in (SagelrError.exit_status, UsageError.exit_status)
        return (str(error) if stopped else f"Error: {error}"), error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return "Stopped.", 130
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        if module in EXTRAS:
            extra = EXTRAS[module]
            return f"Error: {module} is missing. Install it: pip install 'sagelr[{extra}]'", 1
    if isinstance(error, BrokenPipeError):
        # Whoever was reading has gone; nothing more can be said to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "", 1
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        if is_no_room(error):
            remedy = ROOM
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "Give a path that you may read and, for --out, write to."
        else:
            remedy = "Check that the path is right and can be read and written."
        return f"Error: {where}{reason}. {remedy}", 1
    if is_no_room(error):
        return f"Error: no space left on the device. {ROOM}", 1
    if isinstance(error, MemoryError):
        return "Error: out of memory. Use fewer --jobs, or a smaller model or batch.", 1
    text = " ".join(str(error).split())
    return (
        f"Error: {type(error).__name__}: {text}\nThis should not happen. Set SAGELR_TRACEBACK=1 "
        "to see where it did, and report it.",
        1,
    )
