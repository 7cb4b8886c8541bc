"""report.html: one file with everything in it, that asks nothing of the network."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from sagelr.errors import UsageError
from sagelr.report import sections
from sagelr.report.source import Found, Source, finite, read
from sagelr.report.words import WORDS

GENERATOR = '<meta name="generator" content="sagelr">'  # tells our pages from other files
SCRIPTS = ("theme.js", "tables.js", "charts.js")


def write_report(sources: Source | Iterable[Source], out: Path) -> Path:
    """Render a study, an audit, or both as one self-contained page.

    Args:
        sources: data as read from results.json or audit.json, the path of such a file, a folder
            that holds one or both; or several of these.
        out: file to write. A page of sagelr's that is there is replaced; another file is not.

    Returns:
        out.

    Raises:
        UsageError: a source does not exist, is no JSON, or is something else; out is a file of
            another kind.
        SagelrError: a source is not whole.
        OSError: out cannot be written.
    """
    out = Path(out)
    page = render(read(sources))
    if out.exists() and not (out.is_file() and _is_ours(out)):
        raise UsageError(
            f"{out} is there already and is not a page of sagelr's, so it is left as it is. Give "
            "--out another file."
        )
    _write(out, page)
    return out


def render(found: Found) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("sagelr.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = sections.page(found)
    scripts = [get_plotlyjs(), *(_static(name) for name in SCRIPTS)]
    hashes = " ".join(f"'sha256-{_digest(text)}'" for text in scripts)
    return environment.get_template("page.html.j2").render(
        page=page,
        words=WORDS,
        generator=Markup(GENERATOR),
        # Nothing but these very scripts runs, and nothing is fetched, whatever names the data hold.
        policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'",
        style=Markup(_static("page.css")),
        plotly=Markup(scripts[0]),
        theme=Markup(scripts[1]),
        scripts=[Markup(text) for text in scripts[2:]],
        figures=Markup(embedded({figure.id: figure.to_json() for figure in page.figures()})),
    )


def embedded(data: Mapping[str, Any]) -> str:
    r"""JSON that can stand inside a script element: no `<`, `>` or `&`, and no NaN.

    Examples:
        >>> print(embedded({"name": "</script>", "y": [float("nan")]}))
        {"name":"\u003c/script\u003e","y":[null]}
    """
    text = json.dumps(finite(data), separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _static(name: str) -> str:
    return (resources.files("sagelr.report") / "static" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    # The browser hashes what it parsed, with line ends made one kind.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(4096)


def _write(out: Path, text: str) -> None:
    """Write so that the page is whole at every moment."""
    out = out.resolve()  # a link stays one
    try:
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            umask = os.umask(0)
            os.umask(umask)
            Path(name).chmod(0o666 & ~umask)
            Path(name).replace(out)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        # The user knows the page, and nothing of the file it is first written to.
        raise OSError(error.errno, error.strerror, str(out)) from error
