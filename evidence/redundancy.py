"""What is redundant in the models of a study's report runs: sensitivity, and pruning curves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from picture import DASHES, Curve, plot
from scipy.stats import spearmanr

from sagelr.report.wording import Scale, setting
from sagelr.study import statistics

NAMES = {"sensitivity": "least sensitive first", "magnitude": "smallest first"}

Audits = dict[str, dict[int, Mapping[str, Any]]]  # arm → seed → what was measured


def audits(data: Mapping[str, Any]) -> Audits:
    """What was measured on every report run."""
    found: Audits = {name: {} for name in data["arms"]}
    for run in data["runs"]:
        if run["stage"] == "report" and run.get("audit"):
            found[run["arm"]][run["seed"]] = run["audit"]
    return {arm: of_seeds for arm, of_seeds in found.items() if of_seeds}


def at_matched_loss(pairs: Sequence[Mapping[str, Any]], sage: str) -> Audits:
    """What was measured where an arm and its base stood at one loss."""
    found: Audits = {}
    for pair in pairs:
        if pair["sage"] == sage:
            for arm in (pair["base"], sage):
                found.setdefault(arm, {})[pair["seed"]] = pair["measured"][arm]
    return found


def table(data: Mapping[str, Any], found: Audits, base: str) -> Iterator[str]:
    """Every arm's figures, and how they differ from the base's, seed by seed.

    Args:
        data: results.json.
        found: what was measured.
        base: the arm that the others are held against.
    """
    labels = data["arms"]
    arms = [base, *(arm for arm in found if arm != base)]
    head = [f"{labels[base]['label']}, mean (sd)"]
    for arm in arms[1:]:
        head += [f"{labels[arm]['label']}, mean (sd)", "difference, 95% interval"]
    yield "| | " + " | ".join(head) + " |"
    yield "|---|" + "---|" * len(head)
    for name, figure in figures(data).items():
        values = {arm: {s: figure(a) for s, a in of.items()} for arm, of in found.items()}
        cells = [spread(list(values[base].values()))]
        for arm in arms[1:]:
            seeds = sorted(values[base].keys() & values[arm].keys())
            gap = statistics.difference(
                [values[base][s] for s in seeds], [values[arm][s] for s in seeds]
            )
            low, high = (short(value, signed=True) for value in gap.ci95)
            cells += [
                spread(list(values[arm].values())),
                f"{short(gap.mean, signed=True)} [{low}, {high}]",
            ]
        yield f"| {name} | " + " | ".join(cells) + " |"


def figures(data: Mapping[str, Any]) -> dict[str, Any]:
    """Name → what takes it from an audit."""
    metric = data["recipe"]["metric"]
    first = next(iter(next(iter(audits(data).values())).values()))
    found: dict[str, Any] = {
        "training loss": lambda audit: audit["loss"],
        "sensitivity, mean over parameters": lambda audit: _mean(audit, "sensitivity"),
        "the same over the loss": lambda audit: _mean(audit, "sensitivity_by_loss"),
        "Gini coefficient of sensitivity": lambda audit: audit["gini"],
        "effective parameters, share": lambda audit: audit["effective_share"],
    }
    for number, curve in enumerate(first["curves"]):
        name = f"pruned with 99% of {Scale.of(metric).label} kept, {NAMES[curve['score']]}"
        found[name] = lambda audit, k=number: audit["curves"][k]["keeps99"][metric["name"]]
    return found


def conclusion(
    data: Mapping[str, Any],
    pairs: Sequence[Mapping[str, Any]] | None,
    controls: Mapping[str, Any] | None,
    sage: str,
    base: str,
) -> str:
    """How far the models of both can be pruned, in a sentence.

    Args:
        data: results.json.
        pairs: matched.json, where there is one.
        controls: results.json of the row's controls, where there is one.
        sage: an arm.
        base: the arm that it is held against.
    """
    metric = data["recipe"]["metric"]
    which, shares = prunable(audits(data), metric, sage, base)
    told = (
        f"The models that SAGE trained {which} pruning than its base's: with the least "
        f"sensitive weights gone first and 99% of the {Scale.of(metric).label} kept, {shares}"
    )
    if controls and audits(controls):
        found, chosen = audits(controls), controls["tuning"][sage]["chosen"]
        which, shares = prunable(found, metric, sage, base)
        told += (
            f". In the study of its controls, where tuning chose {setting(chosen)} for SAGE, "
            f"they {which}: {shares}; {with_loss(controls, found)}"
        )
    if pairs:
        which, shares = prunable(at_matched_loss(pairs, sage), metric, sage, base)
        told += f". At one and the same training loss they {which}: {shares}"
    return f"{told}. Descriptive"


def prunable(found: Audits, metric: Mapping[str, Any], sage: str, base: str) -> tuple[str, str]:
    """Whether they bear more or less pruning, and the shares of weights that can go."""
    before, after, gap = pruned(found, metric, sage, base)
    low, high = gap.ci95
    which = (
        "bear more"
        if low > 0
        else "bear less"
        if high < 0
        else "are not shown to bear more or less"
    )
    return which, (
        f"{after:.1%} of them against {before:.1%} ({100 * gap.mean:+.1f} points, 95% interval "
        f"{100 * low:+.1f} to {100 * high:+.1f})"
    )


def pruned(
    found: Audits, metric: Mapping[str, Any], arm: str, base: str
) -> tuple[float, float, statistics.Difference]:
    """What can go from the base's models and from an arm's, means over the seeds, and their gap."""
    seeds = sorted(found[base].keys() & found[arm].keys())
    before, after = (kept([found[side][seed] for seed in seeds], metric) for side in (base, arm))
    return fmean(before), fmean(after), statistics.difference(before, after)


def kept(of_seeds: Iterable[Mapping[str, Any]], metric: Mapping[str, Any]) -> list[float]:
    """Shares of the weights that can go, the least sensitive first, with 99% of the score kept."""
    return [audit["curves"][0]["keeps99"][metric["name"]] for audit in of_seeds]


def training_loss(found: Audits, arm: str) -> float:
    """Mean over the seeds."""
    return fmean(audit["loss"] for audit in found[arm].values())


def row(data: Mapping[str, Any], found: Audits, arm: str, base: str) -> list[str]:
    """Training loss, what can be pruned, and how that differs from the base's."""
    metric = data["recipe"]["metric"]
    before, after, gap = pruned(found, metric, arm, base)
    loss = short(training_loss(found, arm))
    if arm == base:
        return [loss, f"{before:.1%}", ""]
    low, high = (100 * value for value in gap.ci95)
    return [loss, f"{after:.1%}", f"{100 * gap.mean:+.1f} [{low:+.1f}, {high:+.1f}]"]


def with_loss(data: Mapping[str, Any], found: Audits) -> str:
    """How what can be pruned goes with the training loss, over the arms."""
    metric = data["recipe"]["metric"]
    losses = [training_loss(found, arm) for arm in found]
    shares = [fmean(kept(of.values(), metric)) for of in found.values()]
    rho = spearmanr(losses, shares).statistic
    return f"Spearman's ρ of it with the training loss is {rho:+.2f} over the {len(found)} arms"


def _mean(audit: Mapping[str, Any], key: str) -> float:
    layers = audit["layers"]
    total = sum(layer["parameters"] for layer in layers)
    return sum(layer["parameters"] * layer[key] for layer in layers) / total


def spread(values: Sequence[float]) -> str:
    found = statistics.summary(values)
    return f"{short(found['mean'])} ({short(found['sd'])})"


def short(value: float, *, signed: bool = False) -> str:
    return f"{value:+.3g}" if signed else f"{value:.3g}"


# -- the picture ------------------------------------------------------------------------------


def curves(data: Mapping[str, Any]) -> str:
    """Mean score by share of weights pruned."""
    metric, found = data["recipe"]["metric"], audits(data)
    label, lines = Scale.of(metric).label, []
    for place, (arm, audited) in enumerate(found.items()):
        for number in range(len(next(iter(audited.values()))["curves"])):
            score, points = _line([a["curves"][number] for a in audited.values()], metric)
            words = f"{data['arms'][arm]['label']}, {NAMES[score]}"
            lines.append(Curve(words, points, place, DASHES[list(NAMES).index(score)]))
    return plot(
        lines,
        {step / 5: f"{step / 5:.0%}" for step in range(6)},
        title=f"Test {label} by share of weights pruned",
        above=f"test {label}, mean over the seeds",
        below="share of prunable weights set to 0",
    )


def _line(
    of_seeds: Sequence[Mapping[str, Any]], metric: Mapping[str, Any]
) -> tuple[str, list[tuple[float, float]]]:
    """By what is pruned, and (sparsity, mean score)."""
    points = []
    for group in zip(*(curve["points"] for curve in of_seeds), strict=True):
        scores = [point["scores"][metric["name"]] for point in group]
        points.append((group[0]["sparsity"], metric["scale"] * sum(scores) / len(scores)))
    return of_seeds[0]["score"], points
