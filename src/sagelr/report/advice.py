"""What to try next, by verdict."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sagelr.report.caveats import is_far_apart
from sagelr.report.study import Arm, Study
from sagelr.report.wording import count, duration, listed, seeds

MANY = 5  # times as many seeds as there were: more than one would want to run


@dataclass(frozen=True)
class Step:
    """Something to try next.

    Attributes:
        text: a sentence or two.
        code: what to type, or lines of Python.
    """

    text: str
    code: str | None = None


def after(study: Study, found: Mapping[str, Any]) -> list[Step]:
    """What to try after a comparison.

    Args:
        study: as it stands.
        found: entry of its comparisons.
    """
    if study.data["quick"]:
        return [Step("For a result, run it in full.", _without_quick(study.data["command"]))]
    if not study.finished:
        return [
            *failures(study),
            Step(
                "Wait for the rest. Stopping as soon as the numbers please is the surest way to "
                "find a difference that is not there. Reload this page for news."
            ),
        ]
    steps = {
        "better": _after_better,
        "worse": _after_worse,
        "equivalent": _after_equivalent,
        "inconclusive": _after_inconclusive,
    }[found["verdict"]]
    sage, base = study.by_name[found["sage"]], study.by_name[found["base"]]
    return [*failures(study), *steps(study, found, sage, base)]


def _after_better(study: Study, found: Any, sage: Arm, base: Arm) -> list[Step]:
    steps = [
        Step(
            f"Use it. Where a training builds its optimizer, put {sage.label} at the setting found "
            "here:",
            _code(study, sage),
        ),
        Step(
            "See whether it holds elsewhere: this is one model on one data set. A gain that shows "
            "on a second task is worth more than more seeds on the first."
        ),
    ]
    slower = _slower(study, sage, base)
    return [*steps, Step(slower)] if slower else steps


def _code(study: Study, sage: Arm) -> str:
    """An arm's optimizer at its chosen setting, in Python."""
    arm = study.data["recipe"]["arms"][sage.name]
    options = {**arm["options"], **(sage.chosen or {})}
    scope = {} if arm["scope"] == "attention+ffn" else {"sage": arm["scope"]}
    decay = _decay(study, sage, options.pop("weight_decay", None))
    groups = ", ".join(["model", *(f"{key}={value!r}" for key, value in (decay | scope).items())])
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    name = arm["optimizer"]
    imports = f"from sagelr import {name}, param_groups"
    if name.startswith("Control"):
        imports = f"from sagelr import param_groups\nfrom sagelr.optim.controls import {name}"
    if arm["role"] == "variant":
        imports = f"from sagelr import param_groups\nfrom torch.optim import {name}"
    scale = arm.get("scope_lr_scale", 1.0)
    if scale == 1:
        return f"{imports}\n\noptimizer = {name}(param_groups({groups}), {given})"
    return "\n".join(
        (
            f"{imports}\n",
            f"groups = param_groups({groups})",
            "for group in groups:",
            '    if group["sage"]:  # in scope',
            f'        group["lr"] = {scale!r} * {options["lr"]!r}',
            f"optimizer = {name}(groups, {given})",
        )
    )


def _decay(study: Study, arm: Arm, given: float | None) -> dict[str, float]:
    """The weight decay that an arm was trained with, to be said in its groups.

    The optimizers' own defaults and that of `param_groups` are not all alike.
    """
    if given is None:
        runs = [run["options"] for run in study.reported(arm)]
        groups = [group["weight_decay"] for used in runs[:1] for group in used.get("groups", ())]
        given = max(groups, default=None)
    return {} if given is None else {"weight_decay": given}


def _after_worse(study: Study, found: Any, sage: Arm, base: Arm) -> list[Step]:
    if is_far_apart(study, sage, base):
        return [_nearer(study, sage, base), Step(f"Until then, stay with {base.label}.")]
    return [Step(f"Stay with {base.label} on this task."), _wider(study, sage)]


def _after_equivalent(study: Study, found: Any, sage: Arm, base: Arm) -> list[Step]:
    less = "one setting less to tune and keeps less state"
    if sage.role == "variant":
        less = "one learning rate less to choose"
    enough = f"Here {base.label} is enough: it has {less}."
    if not found["significant"]:
        enough += " Nothing is known to be lost by either choice."
    steps = [Step(enough)]
    if sage.role == "sage":
        steps.append(
            Step(
                "Try where there may be more to gain. SAGE's authors report gains from fine-tuning "
                "BERT and RoBERTa, on translation, and with large vision transformers: models with "
                "many parameters that would otherwise stay idle. What can be compared:",
                "sagelr recipes",
            )
        )
    if any(run.get("audit") for run in study.data["runs"]):
        steps.append(
            Step(
                "Equal scores need not mean equal models: see under Redundancy how much of each "
                "can be pruned."
            )
        )
    return steps


def _after_inconclusive(study: Study, found: Any, sage: Arm, base: Arm) -> list[Step]:
    if any(found["failed"].values()):
        return []
    needed = found["seeds_needed"]
    steps = []
    if needed is not None and needed <= MANY * max(found["n"], 10):
        steps.append(
            Step(
                f"{found['settles']} Finished runs are kept:",
                with_seeds(study.data["command"], needed),
            )
        )
    elif found["settles"]:
        steps.append(
            Step(
                f"{found['settles']} That is more than is likely to be worth it. A larger test "
                "split makes every seed count for more, and a wider margin, set before the "
                "next study, asks for less."
            )
        )
    steps.append(Step(f"Until then, choose by what is simpler: {base.label}."))
    far = is_far_apart(study, sage, base)
    steps.append(_nearer(study, sage, base) if far else _wider(study, sage))
    return steps


def _nearer(study: Study, sage: Arm, base: Arm) -> Step:
    """A study with an arm's grid at the best lr of its base, which costs that arm's runs alone."""
    grids = [study.data["recipe"]["arms"][arm.name].get("grid", {}) for arm in (sage, base)]
    own, size = grids[0], math.prod(map(len, grids[1].values())) if grids[1] else 4
    others = {axis: values for axis, values in own.items() if axis not in ("lr", "lr_ratio")}
    rates = max(1, size // math.prod(map(len, others.values())))
    assert base.chosen is not None  # or the two were not far apart
    # In lr, not in multiples: these would be placed again before the base's own grid is extended.
    steps = (2.0 ** (at - (rates - 1) // 2) for at in range(rates))
    axes = {"lr": [float(f"{step * base.chosen['lr']:.6g}") for step in steps], **others}
    grid = ", ".join(f"{axis} = {values}" for axis, values in axes.items())
    return Step(
        f"This does not settle it: {sage.label} was not tried near {base.label}'s best lr. A "
        "further study begins there and takes over what it can of this one. Say beside its result "
        "that it was planned after this one:",
        _again(
            study.data["command"],
            f"arms.{sage.name}.grid={{ {grid} }}",
            study.data["recipe"]["name"],
        ),
    )


def _wider(study: Study, sage: Arm) -> Step:
    grid = study.data["arms"][sage.name].get("grid", {})
    tried = f"lr {_ends(grid.get('lr', []))}"
    if "beta0" in grid:
        tried += f" and β0 {listed([f'{value:g}' for value in grid['beta0']])}"
    if sage.role == "variant":
        return Step(
            f"{sage.label} was tried at {tried}. A finer grid for both arms alike, in a study of "
            "its own, is the next thing to try."
        )
    return Step(
        f"{sage.label} was tried at {tried}. SAGE's authors found β0 from 0.6 to 0.9 right, by "
        "task, and an lr of 2 to 5 times the base's; a finer grid for both arms alike, in a study "
        "of its own, is the next thing to try."
    )


def _ends(values: list[float]) -> str:
    return f"{min(values):g} to {max(values):g}" if values else "–"


def _slower(study: Study, sage: Arm, base: Arm) -> str | None:
    if not study.on_one_machine([sage, base]):
        return None
    means = []
    for arm in (sage, base):
        times = [run["seconds"] for run in study.reported(arm) if run["seconds"]]
        if not times:
            return None
        means.append(sum(times) / len(times))
    if means[0] < 1.1 * means[1]:
        return None
    return (
        f"Weigh the gain against the time: a training with {sage.label} took "
        f"{duration(means[0])}, with {base.label} {duration(means[1])}."
    )


def failures(study: Study) -> list[Step]:
    """First of all: runs that ended without a score."""
    bad = [run for run in study.ended_badly() if run["stage"] == "report"]
    if not bad:
        return []
    names = listed(list(dict.fromkeys(study.by_name[run["arm"]].label for run in bad)))
    return [
        Step(
            f"Find out why {count(len(bad), 'run')} of {names} (seed "
            f"{seeds(sorted({run['seed'] for run in bad}))}) ended without a score: "
            f"{bad[0]['error'] or 'no reason known'}."
            + (" A lower lr is the usual remedy." if bad[0]["status"] == "diverged" else "")
        )
    ]


# -- commands -----------------------------------------------------------------------------------


def with_seeds(command: str, number: int) -> str:
    """The command that goes on with more seeds.

    Examples:
        >>> with_seeds("sagelr compare digits-vit --seeds 4 --jobs 2", 40)
        'sagelr compare digits-vit --jobs 2 --seeds 40'
        >>> with_seeds("sagelr compare mine --set study.report_seeds=5 --set a.b=1", 40)
        'sagelr compare mine --set a.b=1 --seeds 40'
    """
    kept, _ = _without(_words(command), "--seeds")
    kept = _without_setting(kept, "study.report_seeds")
    return shlex.join([*kept, "--seeds", str(number)])


def _again(command: str, change: str, name: str) -> str:
    """The command for a further study with a change, which takes over what it can of this one.

    Examples:
        >>> _again("sagelr compare mine --out runs/a", "train.epochs=9", "mine")
        'sagelr compare mine --set train.epochs=9 --out runs/a-2 --reuse runs/a'
        >>> _again("sagelr compare mine --out runs/a/", "train.epochs=9", "mine").split()[-3:]
        ['runs/a-2', '--reuse', 'runs/a']
        >>> _again("sagelr compare mine --storage URL", "train.epochs=9", "mine").split()[-2:]
        ['--study', 'mine-2']
    """
    kept, out = _without(_words(command), "--out")
    kept, _ = _without(kept, "--reuse")
    kept, study = _without(kept, "--study")
    out = (out or f"runs/{name}").rstrip("/")
    further = ["--set", change, "--out", f"{out}-2", "--reuse", out]
    if any(word.startswith("--storage") for word in kept):
        further += ["--study", f"{study or name}-2"]
    return shlex.join([*kept, *further])


def _without(words: list[str], option: str) -> tuple[list[str], str | None]:
    """The words of a command without an option and its value, and the value."""
    kept, value, rest = [], None, iter(words)
    for word in rest:
        if word == option:
            value = next(rest, None)
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
        else:
            kept.append(word)
    return kept, value


def _without_setting(words: list[str], key: str) -> list[str]:
    """The words of a command without a --set of this key."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        given = [word, next(rest, "")] if word == "--set" else [word]
        if given[-1].removeprefix("--set=").partition("=")[0].strip() != key:
            kept += given
    return kept


def _without_quick(command: str) -> str:
    """The command for the whole study, in a folder and under a name of its own.

    Examples:
        >>> _without_quick("sagelr compare mine --quick --out runs/a --jobs 2")
        'sagelr compare mine --jobs 2'
    """
    kept = [word for word in _words(command) if word != "--quick"]
    for option in ("--out", "--study", "--reuse"):
        kept, _ = _without(kept, option)
    return shlex.join(kept)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # not typed in a shell
        return command.split()
