"""Recipes: what is trained, with which arms, and how they are compared. TOML, checked here.

A recipe is a file of its own or one of those in `recipes/`. It may extend another and say only what
is different. What a study or a training has left holds its recipe too, and is read as one. Every
value may be replaced from the command line by its dotted name, as in `--set train.epochs=5`.
"""

from __future__ import annotations

import copy
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from sagelr.errors import UsageError
from sagelr.schema import (
    LR_RATIO,
    Arm,
    AuditOptions,
    Recipe,
    Setting,
    Study,
    Train,
    nearest,
    not_finite,
    settings_of,
)
from sagelr.tasks import family

__all__ = [
    "ALIASES",
    "Arm",
    "AuditOptions",
    "Recipe",
    "Setting",
    "Study",
    "Train",
    "as_now",
    "built_in",
    "check",
    "load",
    "of_results",
    "override",
    "parse_override",
    "read",
    "settings_of",
]

# What a key stands in place of: where it is given, over what was there before, the others go.
REPLACES = {
    "lr": (LR_RATIO,),
    LR_RATIO: ("lr",),
    "batch_size": ("tokens_per_batch",),
    "tokens_per_batch": ("batch_size",),
    "epochs": ("max_steps",),
}

# Short names for --set in every recipe; a recipe's [aliases] adds its own.
ALIASES = {"parallel": "train.parallel"}
DATA_FOLDER = "$SAGELR_DATA/"  # how a published recipe begins the path of data


# -- finding and reading ------------------------------------------------------------------------


def built_in() -> dict[str, str]:
    """Name → TOML text of every recipe that comes with the package."""
    folder = resources.files("sagelr") / "recipes"
    found = {
        entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    }
    return dict(sorted(found.items()))


def read(name: str) -> tuple[dict[str, Any], str]:
    """A recipe's data and text, by the name of a built-in one or the path of a file.

    A file is TOML, or what a study or a training has left: results.json, run.json.

    A recipe that says `extends = "OTHER"`, a built-in one or a path beside it, has the other's
    tables with its own put over them, key by key; a list takes the place of a list.

    Returns:
        data: as TOML gives it, with what it extends.
        text: the file's own; of results, that of the recipe alone.

    Raises:
        UsageError: there is no such recipe, it cannot be read as one, or it extends itself.
    """
    text = _text(name)
    data = _extended(name, text, ())
    return data, json.dumps(data, indent=2, ensure_ascii=False) + "\n" if _is_result(name) else text


def _text(name: str) -> str:
    path = Path(name)
    if path.suffix in (".toml", ".json") or path.is_file():
        try:
            return path.read_text(encoding="utf-8-sig")  # some editors begin with a mark
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UsageError(
                f"Recipe {path}: {reason}. Give the path of a recipe's TOML file, or the name of a "
                f"built-in recipe: {', '.join(built_in())}."
            ) from None
        except UnicodeDecodeError as error:
            raise UsageError(
                f"Recipe {path}: not UTF-8 text (byte {error.start}). Save it as UTF-8."
            ) from None
    known = built_in()
    if name not in known:
        raise UsageError(
            f"There is no recipe {name!r}; {nearest(name, known)}. "
            "A recipe of one's own is given by the path of its .toml file."
        )
    return known[name]


def _is_result(name: str) -> bool:
    return Path(name).suffix == ".json"


def of_results(document: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe in results.json or run.json, as what was trained had it.

    Raises:
        KeyError, TypeError: there is none.
    """
    metric = document["recipe"]["metric"]
    return document["recipe"] | {"metric": metric if isinstance(metric, str) else metric["name"]}


def _parsed(name: str, text: str) -> dict[str, Any]:
    """A file's data as they stand there."""
    if _is_result(name):
        try:
            return of_results(json.loads(text))
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"Recipe {name} is not what sagelr compare or sagelr train writes. Give their "
                "results.json or run.json, a recipe's TOML file, or the name of a built-in recipe."
            ) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"Recipe {name} is not valid TOML: {error}. Mend that line.") from None


def _extended(name: str, text: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """A recipe's data over that of the one it extends. `seen`: those that led here."""
    data = _parsed(name, text)
    if "extends" not in data:
        return data
    other = data.pop("extends")
    if not isinstance(other, str):
        raise UsageError(
            f"Recipe {name}: extends = {other!r} is not the name or the path of a recipe."
        )
    if other.endswith((".toml", ".json")):
        other = os.path.normpath(Path(name).parent / other)
    seen = (*seen, name)
    if other in seen:
        circle = " → ".join((*seen, other))
        raise UsageError(f"Recipe {name} extends itself: {circle}. Leave one of these out.")
    try:
        below = _text(other)
    except UsageError as error:
        raise UsageError(f"Recipe {name}, extends = {other!r}: {error}") from None
    return _over(_extended(other, below, seen), data)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two tables as one, the second's values where both have one."""
    merged = dict(below)
    _make_room(merged, above)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            value = _over(under, value)
        merged[key] = value
    return merged


def _make_room(table: dict[str, Any], keys: Iterable[str]) -> None:
    """Take out of a table what the keys that are about to be given stand in place of."""
    given = set(keys)
    for key in given:
        for other in REPLACES.get(key, ()):
            if other not in given:
                table.pop(other, None)


def load(
    name: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    arms: Sequence[str] | None = None,
    quick: bool = False,
) -> Recipe:
    """A recipe, with settings replaced and everything checked.

    Args:
        name: of a built-in recipe, or the path of a TOML file.
        overrides: dotted name → value; they go over what `quick` sets.
        arms: the arms to run, in place of study.arms.
        quick: put the settings of the recipe's [quick] in place.

    Raises:
        UsageError: anything about it is wrong.
    """
    data, _ = read(name)
    if quick:
        small = data.get("quick", {})
        if not isinstance(small, dict) or not small:
            raise UsageError(
                f"Recipe {name} has no [quick] table, so --quick cannot know what to make smaller. "
                'Add one, for example [quick] with "train.epochs" = 1, or use --set.'
            )
        data = override(data, dict(_dotted(small)), f"[quick] of recipe {name}")
    if arms is not None:
        data = override(data, {"study.arms": list(arms)}, "--arms")
    data = override(data, overrides or {}, "--set")
    return check(_in_data_folder(data), f"Recipe {name}")


def _in_data_folder(data: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe whose task names files under $SAGELR_DATA, with that folder in its place.

    Raises:
        UsageError: there is no such folder.
    """
    task, folder = data.get("task"), os.environ.get("SAGELR_DATA", "")
    if not isinstance(task, dict):
        return dict(data)
    found = dict(task)
    for key, value in task.items():
        if isinstance(value, str) and value.startswith(DATA_FOLDER):
            if not folder or not Path(folder).is_dir():
                raise UsageError(
                    f"task.{key} = {value!r}, and SAGELR_DATA "
                    + (f"is {folder!r}, which is no folder" if folder else "is not set")
                    + f". Set it to a folder that holds {value.removeprefix(DATA_FOLDER)}, or say "
                    f"where that is: --set task.{key}=…"
                )
            found[key] = str(Path(folder) / value.removeprefix(DATA_FOLDER))
    return {**data, "task": found}


def check(data: Mapping[str, Any], where: str) -> Recipe:
    """Check a recipe's data.

    Args:
        data: as TOML gives it.
        where: what the message calls it.

    Raises:
        UsageError: naming the key, the value and what is allowed, or the nearest right key.
    """
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise UsageError(_message(where, error, Recipe, ())) from None
    if found := not_finite(data):
        raise UsageError(f"{where}: {found} is not a finite number.")
    if "family" not in recipe.task:
        raise UsageError(f"{where}: task.family is missing. Name the family of tasks.")
    cls = family(recipe.task["family"])
    parts: dict[str, Any] = {}
    for key, options in (("task", cls.DataOptions), ("model", cls.ModelOptions)):
        try:
            parts[key] = options.model_validate(getattr(recipe, key)).model_dump(mode="json")
        except ValidationError as error:
            raise UsageError(_message(where, error, options, (key,))) from None
    if recipe.metric not in cls.metrics:
        raise UsageError(
            f"{where}: metric = {recipe.metric!r}; {nearest(recipe.metric, cls.metrics)}."
        )
    selectors = ("loss", *cls.metrics)
    if recipe.study.select_by not in selectors:
        near = nearest(recipe.study.select_by, selectors)
        raise UsageError(f"{where}: study.select_by = {recipe.study.select_by!r}; {near}.")
    keys = list(_known_keys(data))
    for name, key in recipe.aliases.items():
        if not any(re.fullmatch(pattern, key) for pattern, _ in keys):
            near = nearest(key, [known for _, known in keys], listed=False)
            raise UsageError(f"{where}: aliases.{name} = {key!r} is not a key of a recipe; {near}.")
    return recipe.model_copy(update=parts)


def as_now(data: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of an earlier version, with the defaults of what was added since.

    What is no recipe any more stays as it is.
    """
    try:
        return check(data, "Recipe").to_json()
    except UsageError:
        return dict(data)


# -- replacing values ---------------------------------------------------------------------------


def parse_override(text: str) -> tuple[str, Any]:
    """A `key=value` of the command line. The value is TOML; a bare word is a string.

    Raises:
        UsageError: it has no `=`, or no key.

    Examples:
        >>> parse_override("arms.adamw.grid.lr=[1e-3, 2e-3]")
        ('arms.adamw.grid.lr', [0.001, 0.002])
        >>> parse_override("train.device=cpu")
        ('train.device', 'cpu')
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text!r} is not key=value. For example: --set train.epochs=5")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}\n")
    except tomllib.TOMLDecodeError:
        parsed = {}
    # More than one key would mean that the text broke out of its line.
    return key.strip(), parsed["value"] if parsed.keys() == {"value"} else value.strip()


def override(data: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy of a recipe's data with values replaced by dotted name.

    Raises:
        UsageError: no recipe has such a key; the nearest right one is named.
    """
    result = copy.deepcopy(dict(data))
    if not values:
        return result
    patterns = list(_known_keys(result))
    aliases = _aliases(result)
    keys = {aliases.get(name, name): value for name, value in values.items()}
    beside: dict[str, list[str]] = {}  # table → what is replaced in it
    for key in keys:
        inner, _, last = key.rpartition(".")
        beside.setdefault(inner, []).append(last)
    for key, value in keys.items():
        if not any(re.fullmatch(pattern, key) for pattern, _ in patterns):
            names = [*aliases, *(name for _, name in patterns)]
            raise UsageError(f"{where}: unknown key {key!r}; {nearest(key, names, listed=False)}.")
        *path, last = key.split(".")
        table = result
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UsageError(f"{where}: {key!r} reaches into {part!r}, which is not a table.")
        _make_room(table, beside[key.rpartition(".")[0]])
        table[last] = value
    return result


def _aliases(data: Mapping[str, Any]) -> dict[str, str]:
    """Short name → dotted name, as far as a recipe that is not checked yet has them."""
    given = data.get("aliases")
    found = given.items() if isinstance(given, dict) else ()
    return ALIASES | {name: key for name, key in found if isinstance(key, str)}


def _known_keys(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A pattern and a name for every key a recipe like this one may have."""
    cls = family(data["task"]["family"]) if _has_family(data) else None
    for key in Recipe.model_fields:
        yield key, key
    tables: dict[str, type[BaseModel]] = {"train": Train, "study": Study, "audit": AuditOptions}
    if cls is not None:
        tables |= {"task": cls.DataOptions, "model": cls.ModelOptions}
    found = data.get("arms")
    arms: dict[str, Any] = found if isinstance(found, dict) else {}
    names = list(arms)
    tables |= {f"arms.{name}": Arm for name in names}
    for table, model in tables.items():
        for key, field in model.model_fields.items():
            yield re.escape(f"{table}.{key}"), f"{table}.{key}"
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                for part in inner.model_fields:
                    yield re.escape(f"{table}.{key}.{part}"), f"{table}.{key}.{part}"
    for name in names:
        grid = arms[name].get("grid") if isinstance(arms[name], dict) else None
        for axis in grid if isinstance(grid, dict) else ():
            yield re.escape(f"arms.{name}.grid.{axis}"), f"arms.{name}.grid.{axis}"
        # Axes and options are those of the optimizer, which is checked where it is built.
        for free in ("grid", "options"):
            yield re.escape(f"arms.{name}.{free}.") + r"[^.]+", f"arms.{name}.{free}"


TABLES = re.compile(r"task|model|train|study|audit|arms(\.[^.]+)?")


def _dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`train.epochs = 1`, which TOML reads as a table in a table, as `"train.epochs" = 1`.

    A table in place of another has its name quoted: `"model.from_scratch" = { … }`.
    """
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, dict) and "." not in key and (prefix or TABLES.fullmatch(name)):
            yield from _dotted(value, f"{name}.")
        else:
            yield name, value


def _has_family(data: Mapping[str, Any]) -> bool:
    task = data.get("task")
    return isinstance(task, dict) and "family" in task


# -- messages -----------------------------------------------------------------------------------


def _message(
    where: str,
    error: ValidationError,
    model: type[BaseModel],
    prefix: tuple[str, ...],
) -> str:
    """Every problem pydantic found, one a line."""
    lines = []
    for problem in error.errors():
        location = tuple(str(part) for part in problem["loc"])
        key = ".".join(prefix + location)
        if problem["type"] == "extra_forbidden":
            keys = _keys_beside(model, location)
            lines.append(f"unknown key {key!r}; {nearest(location[-1], keys)}")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing")
        else:
            reason = problem["msg"].removeprefix("Value error, ").rstrip(".")
            simple = not isinstance(problem["input"], dict | BaseModel) and key
            value = f" = {problem['input']!r}" if simple else ""
            if problem["type"] == "string_type" and isinstance(
                problem["input"], int | float | date
            ):
                reason += f", put in quotes: '{key}=\"{problem['input']}\"'"
            lines.append(f"{key}{value}: {reason}" if key else reason)
    lines = list(dict.fromkeys(lines))
    return f"{where}: " + (lines[0] if len(lines) == 1 else "\n  " + "\n  ".join(lines)) + "."


def _keys_beside(model: type[BaseModel], location: tuple[str, ...]) -> list[str]:
    """The keys that may stand where an unknown one was found."""
    for part in location[:-1]:
        field = model.model_fields.get(part)
        if field is None:  # the name of an arm
            continue
        inner = [field.annotation, *get_args(field.annotation)]
        models = [each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)]
        if models:
            model = models[0]
    return list(model.model_fields)
