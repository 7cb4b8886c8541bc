"""The model hub: loading by name, and saying what to do where it cannot be reached."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pickle
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError

from sagelr.errors import SagelrError, UsageError, is_no_room
from sagelr.quiet import silence

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PretrainedConfig, PreTrainedModel

T = TypeVar("T")
PATIENCE = 5.0  # seconds for a connection
DAMAGE = (SafetensorError, EOFError, pickle.UnpicklingError)  # what a file that is cut short raises


@functools.cache
def reachable() -> bool:
    """Whether there is a way to the hub. Asked once, for its libraries try for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True  # the way is not ours to try
    place = urlsplit(constants.ENDPOINT)
    port = place.port or (80 if place.scheme == "http" else 443)
    try:
        socket.create_connection((str(place.hostname), port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and reports of loading; offline at once where there is no way."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = not reachable()
    try:
        with silence():
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def load_dataset(
    name: str, configuration: str | None, otherwise: str, *, revision: str | None = None
) -> DatasetDict:
    """A data set of the hub, or of the hub's cache on this machine.

    Args:
        name: of the hub.
        configuration: where the data set has several.
        otherwise: what to do where it cannot be had.
        revision: where it is not the newest.

    Raises:
        UsageError: it cannot be had.
    """
    import datasets

    try:
        with quiet():
            found = datasets.load_dataset(name, configuration, revision=revision)
    except Exception as error:  # of many classes, from several libraries
        shown = name if configuration is None else f"{name} ({configuration})"
        raise UsageError(
            f"The hub's data set {shown} does not load. {_reason(error)} {otherwise}"
        ) from None
    assert isinstance(found, datasets.DatasetDict)
    return found


def said(name: str, configuration: str | None, revision: str | None = None) -> str:
    """A sentence for what was loaded from the hub.

    Examples:
        >>> said("nyu-mll/glue", "rte")
        "the hub, datasets.load_dataset('nyu-mll/glue', 'rte')"
    """
    given = [repr(word) for word in (name, configuration) if word is not None]
    given += [f"{revision=}"] if revision else []
    return f"the hub, datasets.load_dataset({', '.join(given)})"


def folder_of(name: str) -> Path | None:
    """The folder that a model's name means; None for a model of the hub."""
    return Path(name) if Path(name).is_dir() else None


def load(what: str, name: str, loading: Callable[..., T], **options: Any) -> T:
    """Call a `from_pretrained`; code that a model brings along is never run.

    Args:
        what: it loads, for the message.
        name: of the hub, or a local folder.
        loading: the method.
        options: of the method.

    Raises:
        UsageError: there is nothing of that name or in that folder, or it does not load.
    """
    folder = folder_of(name)
    if folder is None and (Path(name).is_absolute() or name.startswith(".")):
        raise UsageError(f"model.name = {name!r}: there is no such folder.")
    if folder is not None and not (folder / "config.json").is_file():
        raise UsageError(
            f"model.name = {name!r}: the folder holds no config.json. Give a folder that "
            "save_pretrained wrote, or a model's name on the hub."
        )
    try:
        with quiet():
            return loading(name, trust_remote_code=False, **options)
    except (SagelrError, MemoryError):
        raise
    except Exception as error:  # of many classes, from several libraries
        if is_no_room(error):
            raise
        if "trust_remote_code=True" in str(error):
            raise UsageError(
                f"model.name = {name!r} brings code of its own, which sagelr does not run. Convert "
                "it to a model that is part of transformers and save that with save_pretrained, "
                "or use another model."
            ) from None
        if folder is not None:
            raise UsageError(
                f"model.name = {name!r}: no {what} loads from this folder. {_line(error)} Save "
                "the model, and its tokenizer or image processor, there with save_pretrained; if "
                "a newer transformers saved them, install that one here."
            ) from None
        raise UsageError(
            f"model.name = {name!r} is no folder here, and the hub gives no {what} of that name. "
            f"{_reason(error)} On a machine with a network: hf download {name} --local-dir DIR; "
            "then set model.name to that folder."
        ) from None


def load_model(
    what: str, name: str, loading: Callable[..., Any], **options: Any
) -> tuple[PreTrainedModel, str]:
    """Call a model's `from_pretrained`, in fp32, and see that its body is that of the checkpoint.

    A head for other classes is drawn anew, and so is a pooler that the checkpoint lacks, as those
    of masked language models do.

    Args:
        what: it loads, for the message.
        name: of the hub, or a local folder.
        loading: the method.
        options: of the method.

    Returns:
        The model, and a notice that is empty if there is nothing to say.

    Raises:
        UsageError: as `load`, or the checkpoint lacks weights of the body, or has them in another
            shape.
    """
    model, info = load(
        what,
        name,
        loading,
        # A checkpoint's own may be 16 bits wide, too narrow for weights that are trained.
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    body = f"{model.base_model_prefix}."
    pooler = f"{body}pooler."
    reason = misfit(info, lambda key: key.startswith(body) and not key.startswith(pooler))
    if reason:
        raise UsageError(
            f"model.name = {name!r}: the checkpoint does not fit {type(model).__name__}: {reason}. "
            "Save the model itself with save_pretrained, without what torch.compile or DDP put "
            "around it (their names begin with _orig_mod. or module.), and change nothing in its "
            "config.json."
        )
    if misfit(info, lambda key: key.startswith(pooler)):
        return model, f"{name} comes without a pooler: the model's is drawn anew, like its head."
    return model, ""


def named(config: PretrainedConfig) -> list[str]:
    """The classes that a model tells apart, in the order of its logits."""
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


def places_among(names: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """Where each class of the data stands among those of a model; None where that cannot be told.

    Names are compared without case. A model whose classes have no names (LABEL_0, LABEL_1, …) is
    taken to have them in the order of the data's; classes that are the numbers from 0 on are taken
    to be the model's.

    Examples:
        >>> places_among(["positive", "neutral", "negative"], ["Negative", "Neutral", "Positive"])
        [2, 1, 0]
        >>> places_among(["LABEL_0", "LABEL_1"], ["no", "yes"])
        [0, 1]
        >>> places_among(["no", "yes"], ["0", "1"])
        [0, 1]
        >>> places_among(["1", "0"], ["0", "1"])
        [1, 0]
        >>> places_among(["a", "b"], ["b", "c"]) is None
        True
    """
    if len(names) != len(classes):
        return None
    for form in (str, str.casefold):
        places = {form(name): place for place, name in enumerate(names)}
        wanted = [form(name) for name in classes]
        if len(places) == len(names) and places.keys() == {*wanted}:
            return [places[name] for name in wanted]
    numbers = [str(place) for place in range(len(classes))]
    return list(range(len(classes))) if is_unnamed(names) or list(classes) == numbers else None


def is_unnamed(names: Sequence[str]) -> bool:
    """Whether transformers named the classes, for want of names.

    Examples:
        >>> is_unnamed(["LABEL_0", "LABEL_1"])
        True
    """
    return list(names) == [f"LABEL_{place}" for place in range(len(names))]


def order_head(
    name: str, model: PreTrainedModel, known: PretrainedConfig, classes: Sequence[str]
) -> str:
    """Let a head that came with a checkpoint speak of the classes of the data, in their order.

    Its rows are put into that order; where its classes are others, it is drawn anew, as one for
    another number of classes is.

    Args:
        name: of the hub, or a local folder.
        model: as loaded, for these classes.
        known: the checkpoint's own configuration.
        classes: of the data.

    Returns:
        A notice that is empty if there is nothing to say.

    Raises:
        UsageError: its rows cannot be put into another order.
    """
    names = named(known)
    headed = type(model).__name__ in (known.architectures or ())
    if not headed or len(names) != len(classes):
        return ""
    places = places_among(names, classes)
    body = {id(module) for module in model.base_model.modules()}
    head = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
        and module.out_features == len(classes)
        and id(module) not in body
    ][-1:]
    if places is None:
        for module in head:
            for param in module.parameters():
                param._is_hf_initialized = False  # pyright: ignore[reportAttributeAccessIssue]
            model._init_weights(module)
        return (
            f"{name} tells {_several(names)} apart, not {_several(classes)}: its head is drawn "
            "anew."
        )
    if places == list(range(len(places))):
        if is_unnamed(names):
            return f"{name} does not name its classes: taken to be, in order, {_several(classes)}."
        return ""
    if not head:
        raise UsageError(
            f"{name} has the classes of the data in another order, and its head is none that can "
            f"be put into this one: {type(model).__name__}. Save it with its classes sorted."
        )
    for param in head[0].parameters():
        param.data = param.data[places]
    return ""


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{', '.join(names[:10])}{more}"


def check_classes(
    name: str, config: PretrainedConfig, classes: Sequence[str]
) -> tuple[list[int], str]:
    """Where the classes of the data stand among those of a model that is to be scored as it is.

    Args:
        name: of the hub, or a local folder.
        config: the model's.
        classes: of the data.

    Returns:
        Places, and a notice that is empty if there is nothing to say.

    Raises:
        UsageError: they are other classes, or which is which cannot be told.
    """
    names = named(config)
    places = places_among(names, classes)
    theirs, ours = _several(names), _several(classes)
    if places is None and len(names) != len(classes):
        raise UsageError(
            f"{name} tells {len(names)} classes apart ({theirs}), and the data have {len(classes)} "
            f"({ours}). Give the data it is for, or the model that these data are for."
        )
    if places is None:
        raise UsageError(
            f"{name} tells {theirs} apart, and the data {ours}: which is which cannot be told. "
            "Write the labels as the model names them or by their numbers there, from 0 on, or "
            "put the data's names into id2label of its config.json."
        )
    if is_unnamed(names) and not is_unnamed(classes):
        return places, f"{name} does not name its classes: taken to be, in order, {ours}."
    return places, ""


FILES = (  # of a model in a folder: what its start depends on
    "config.json",
    "*.safetensors",
    "pytorch_model*.bin",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "preprocessor_config.json",
)


def fingerprint(name: str) -> str | None:
    """What a pretrained model is told from others by, wherever it lies.

    Returns:
        sha256 over the names and contents of a folder's files; the commit of a model of the hub,
        None where its cache does not say.
    """
    folder = folder_of(name)
    if folder is None:
        from transformers import AutoConfig

        config = load("configuration", name, AutoConfig.from_pretrained)
        return getattr(config, "_commit_hash", None)
    whole = hashlib.sha256()
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            whole.update(f"{path.name} {digest}\n".encode())
    return whole.hexdigest()


def misfit(info: Mapping[str, Any], counts: Callable[[str], bool] = lambda key: True) -> str:
    """What a checkpoint lacks of a model, or has in another shape; empty if nothing.

    Args:
        info: what `from_pretrained` gives with `output_loading_info`.
        counts: whether a name is of interest.

    Examples:
        >>> misfit({"missing_keys": {"a", "b", "c"}, "mismatched_keys": {("d", (2,), (3,))}})
        'it lacks a, b and 1 more'
    """
    for key, what in (("missing_keys", "lacks"), ("mismatched_keys", "has in another shape")):
        names = (each[0] if isinstance(each, tuple) else each for each in info.get(key, ()))
        if found := sorted(filter(counts, names)):
            more = f" and {len(found) - 2} more" if len(found) > 2 else ""
            return f"it {what} {', '.join(found[:2])}{more}"
    return ""


def _reason(error: BaseException) -> str:
    # Others are of what was found, and could not be read.
    if not reachable() and isinstance(error, OSError | ValueError):
        return "The hub cannot be reached from here, and its cache on this machine has no copy."
    return _line(error)


def _line(error: BaseException) -> str:
    """The first line of an error, and what it announces, as a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = lines or [type(error).__name__]
    first = " ".join(" ".join(lines[: 2 if lines[0].endswith(":") else 1]).split())
    return first.rstrip(".:") + "."
