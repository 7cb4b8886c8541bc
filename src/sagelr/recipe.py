"""Recipes: what is trained, with which arms, and how they are compared. TOML, checked here.

A recipe is a file of its own or one of those in `recipes/`. Every value may be replaced from the
command line by its dotted name, as in `--set train.epochs=5`.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from sagelr.errors import UsageError
from sagelr.tasks import Metric, Task, family

Setting = dict[str, float]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Train(_Strict):
    """`[train]`: one training, the same for every arm."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Finite = Field(0.1, ge=0, lt=1, description="share of the steps")
    max_grad_norm: Finite = Field(1.0, ge=0, description="0 turns clipping off")
    device: Literal["auto", "cpu"] = "auto"
    threads: int = Field(1, ge=1, description="CPU threads of one training")


class Study(_Strict):
    """`[study]`: how arms are tuned and compared."""

    arms: list[str] = Field(min_length=1)
    select_by: str = "loss"
    tune_seeds: int = Field(2, ge=1, le=1000)
    report_seeds: int = Field(10, ge=2, le=100_000)
    max_extensions: int = Field(3, ge=0, le=20)
    margin: Finite = Field(
        gt=0, description="in natural units: differences within it do not matter"
    )


class Arm(_Strict):
    """`[arms.NAME]`: one side of a comparison."""

    label: str
    role: Literal["base", "sage"]
    base: str | None = Field(None, description="the arm that a sage arm is compared with")
    optimizer: str
    options: dict[str, Any] = {}
    scope: str | list[str] = "attention+ffn"
    grid: dict[str, list[Finite]]

    @field_validator("grid")
    @classmethod
    def _grid(cls, grid: dict[str, list[float]]) -> dict[str, list[float]]:
        if "lr" not in grid:
            raise ValueError("a grid needs lr: each arm has its own tuned lr")
        for axis, values in grid.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{axis} needs one or more values, each once; got {values}")
        if min(grid["lr"]) <= 0:
            raise ValueError(f"lr must be above 0; got {min(grid['lr'])}")
        return {axis: sorted(values) for axis, values in grid.items()}

    @model_validator(mode="after")
    def _role(self) -> Self:
        if self.role == "sage" and self.base is None:
            raise ValueError("a sage arm names its base, the arm that it is compared with")
        if self.role == "base" and self.base is not None:
            raise ValueError("base = … is for sage arms; this one is a base itself")
        if both := sorted(self.options.keys() & self.grid.keys()):
            raise ValueError(f"{both[0]} stands both in options and in the grid")
        return self

    def settings(self) -> list[Setting]:
        """Every point of the grid."""
        return settings_of(self.grid)


class Recipe(_Strict):
    """A whole recipe. `task` and `model` are checked by the task's family."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str
    description: str = ""
    metric: str
    task: dict[str, Any]
    model: dict[str, Any] = {}
    train: Train
    study: Study
    arms: dict[str, Arm]
    quick: dict[str, Any] = {}

    @model_validator(mode="after")
    def _arms(self) -> Self:
        for name in self.study.arms:
            if name not in self.arms:
                raise ValueError(f"study.arms names {name!r}; {_nearest(name, self.arms)}")
        if len(set(self.study.arms)) < len(self.study.arms):
            raise ValueError("study.arms names an arm twice")
        for name, arm in self.arms.items():
            base = self.arms.get(arm.base or "")
            if arm.base is not None and (base is None or base.role != "base"):
                raise ValueError(
                    f"arms.{name}.base = {arm.base!r} is not an arm whose role is base"
                )
        sizes = {name: len(self.arms[name].settings()) for name in self.study.arms}
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(
                f"grids of different size ({shown} settings): the arm with more settings would be "
                "tuned better. Give every arm in study.arms as many"
            )
        return self

    @property
    def family(self) -> type[Task]:
        """The family of tasks that this recipe is of."""
        return family(self.task["family"])

    @property
    def score(self) -> Metric:
        """The metric that arms are compared by."""
        return self.family.metrics[self.metric]

    def chosen_arms(self) -> dict[str, Arm]:
        """The arms of the study, in its order."""
        return {name: self.arms[name] for name in self.study.arms}

    def make_task(self) -> Task:
        """Load the data."""
        cls = self.family
        data, model = cls.DataOptions(**self.task), cls.ModelOptions(**self.model)
        return cls(data, model)

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain data, which `check` takes back."""
        return self.model_dump(mode="json")


def settings_of(grid: Mapping[str, Sequence[float]]) -> list[Setting]:
    """Every point of a grid.

    Example:
        >>> settings_of({"lr": [0.1, 0.2], "beta0": [0.75]})
        [{'lr': 0.1, 'beta0': 0.75}, {'lr': 0.2, 'beta0': 0.75}]
    """
    return [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]


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

    Raises:
        UsageError: there is no such recipe, or it is not TOML.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
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
    else:
        known = built_in()
        if name not in known:
            raise UsageError(
                f"There is no recipe {name!r}; {_nearest(name, known)}. "
                "A recipe of one's own is given by the path of its .toml file."
            )
        text = known[name]
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"Recipe {name} is not valid TOML: {error}. Mend that line.") from None


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
        data = override(data, small, f"[quick] of recipe {name}")
    if arms is not None:
        data = override(data, {"study.arms": list(arms)}, "--arms")
    data = override(data, overrides or {}, "--set")
    return check(data, f"Recipe {name}")


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
        raise UsageError(_message(where, error, Recipe, (), data)) from None
    if "family" not in recipe.task:
        raise UsageError(f"{where}: task.family is missing. Name the family of tasks.")
    cls = family(recipe.task["family"])
    parts: dict[str, Any] = {}
    for key, options in (("task", cls.DataOptions), ("model", cls.ModelOptions)):
        try:
            parts[key] = options.model_validate(getattr(recipe, key)).model_dump(mode="json")
        except ValidationError as error:
            raise UsageError(_message(where, error, options, (key,), data)) from None
    if recipe.metric not in cls.metrics:
        raise UsageError(
            f"{where}: metric = {recipe.metric!r}; {_nearest(recipe.metric, cls.metrics)}."
        )
    selectors = ("loss", *cls.metrics)
    if recipe.study.select_by not in selectors:
        near = _nearest(recipe.study.select_by, selectors)
        raise UsageError(f"{where}: study.select_by = {recipe.study.select_by!r}; {near}.")
    return recipe.model_copy(update=parts)


# -- replacing values ---------------------------------------------------------------------------


def parse_override(text: str) -> tuple[str, Any]:
    """A `key=value` of the command line. The value is TOML; a bare word is a string.

    Raises:
        UsageError: it has no `=`, or no key.

    Example:
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
    for key, value in values.items():
        if not any(re.fullmatch(pattern, key) for pattern, _ in patterns):
            names = [name for _, name in patterns]
            raise UsageError(f"{where}: unknown key {key!r}; {_nearest(key, names, listed=False)}.")
        *path, last = key.split(".")
        table = result
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UsageError(f"{where}: {key!r} reaches into {part!r}, which is not a table.")
        table[last] = value
    return result


def _known_keys(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A pattern and a name for every key a recipe like this one may have."""
    cls = family(data["task"]["family"]) if _has_family(data) else None
    for key in Recipe.model_fields:
        yield key, key
    tables: dict[str, type[BaseModel]] = {"train": Train, "study": Study}
    if cls is not None:
        tables |= {"task": cls.DataOptions, "model": cls.ModelOptions}
    found = data.get("arms")
    arms: dict[str, Any] = found if isinstance(found, dict) else {}
    names = list(arms)
    tables |= {f"arms.{name}": Arm for name in names}
    for table, model in tables.items():
        for key in model.model_fields:
            yield re.escape(f"{table}.{key}"), f"{table}.{key}"
    for name in names:
        for axis in arms[name].get("grid", {}) if isinstance(arms[name], dict) else ():
            yield re.escape(f"arms.{name}.grid.{axis}"), f"arms.{name}.grid.{axis}"
        # Axes and options are those of the optimizer, which is checked where it is built.
        for free in ("grid", "options"):
            yield re.escape(f"arms.{name}.{free}.") + r"[^.]+", f"arms.{name}.{free}"


def _has_family(data: Mapping[str, Any]) -> bool:
    task = data.get("task")
    return isinstance(task, dict) and "family" in task


# -- messages -----------------------------------------------------------------------------------


def _nearest(name: str, allowed: Mapping[str, Any] | Sequence[str], *, listed: bool = True) -> str:
    """What to say after an unknown name: the nearest right one, and which are allowed."""
    known = list(allowed)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    tail = f"allowed: {', '.join(known)}" if listed or not near else ""
    nearest = f"the nearest right one is {near[0]!r}" if near else ""
    return "; ".join(part for part in (nearest, tail) if part)


def _message(
    where: str,
    error: ValidationError,
    model: type[BaseModel],
    prefix: tuple[str, ...],
    data: Mapping[str, Any],
) -> str:
    """Every problem pydantic found, one a line."""
    lines = []
    for problem in error.errors():
        location = tuple(str(part) for part in problem["loc"])
        key = ".".join(prefix + location)
        if problem["type"] == "extra_forbidden":
            keys = _keys_beside(model, location)
            lines.append(f"unknown key {key!r}; {_nearest(location[-1], keys)}")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing")
        else:
            reason = problem["msg"].removeprefix("Value error, ").rstrip(".")
            simple = not isinstance(problem["input"], dict | BaseModel) and key
            value = f" = {problem['input']!r}" if simple else ""
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
