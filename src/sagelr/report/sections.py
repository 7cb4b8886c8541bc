"""What goes on the page, in order: everything the templates show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sagelr.report import made, sides, tables, tables_audit
from sagelr.report.caveats import caveats
from sagelr.report.charts import live, pruning, sage, scores, sensitivity, training, tuning
from sagelr.report.charts.figure import Figure
from sagelr.report.finding import finding
from sagelr.report.made import Entry
from sagelr.report.sides import Side
from sagelr.report.source import Found
from sagelr.report.study import Arm, Study
from sagelr.report.tables import Table
from sagelr.report.verdict import Verdict, verdicts
from sagelr.report.wording import Scale

MANY = 3  # comparisons up to which each has its verdict in full


@dataclass(frozen=True)
class Redundancy:
    """An audit, of a study's arms or of models.

    Attributes:
        id: of the section.
        title: its heading.
        measured: how sensitivity was measured.
        several: whether there are two sides or more.
        spread: figures of sensitivity.
        curves: pruning curves, the first of them shown at once.
        figures: redundancy in figures.
        tables: the rest.
        note: how the sides were matched.
    """

    id: str
    title: str
    measured: str
    several: bool
    spread: list[Figure]
    curves: list[Figure]
    figures: Table
    tables: list[Table]
    note: str = ""


@dataclass
class Probed:
    """A live probe's file, and where it stands on the page."""

    id: str
    title: str
    figures: list[Figure]


@dataclass
class Page:
    """Everything on the page; sections without content are left out.

    Attributes:
        title: of the recipe, or the name of a probe's file.
        description: of the recipe.
        version: of sagelr that wrote the results.
    """

    title: str
    description: str = ""
    version: str = ""
    study: Study | None = None
    arms: list[Arm] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    progress: float | None = None
    differences: list[Figure] = field(default_factory=list)
    every_difference: Figure | None = None
    seeds: Figure | None = None
    training: list[Figure] = field(default_factory=list)
    tuning: list[Figure] = field(default_factory=list)
    sage: list[Figure] = field(default_factory=list)
    layers: list[Table] = field(default_factory=list)
    scores: Table | None = None
    by_seed: Table | None = None
    tried: Table | None = None
    runs: Table | None = None
    redundancy: list[Redundancy] = field(default_factory=list)
    live: list[Probed] = field(default_factory=list)
    made: list[tuple[str, list[Entry], Table]] = field(default_factory=list)

    def figures(self) -> list[Figure]:
        """All of them, in the order of the page."""
        one_by_one = (self.every_difference, self.seeds)
        shown = [*self.differences, *(figure for figure in one_by_one if figure)]
        shown += [*self.training, *self.tuning, *self.sage]
        for section in self.redundancy:
            shown += [*section.spread, *section.curves]
        return shown + [figure for each in self.live for figure in each.figures]


def page(found: Found) -> Page:
    """Sort out what was found."""
    document = found.results or (found.audits[0] if found.audits else None)
    shown = Page(found.live[0].name if found.live else "")
    if document is not None:
        shown = Page(
            document["recipe"]["title"],
            " ".join(document["recipe"].get("description", "").split()),
            document["sagelr"],
        )
    if found.results is not None:
        _study(shown, Study(found.results))
    for number, audit in enumerate(found.audits, 1):
        shown.redundancy.append(_audit(shown, audit, f"audit-{number}"))
        name = f"audit of {audit['recipe']['name']}"
        settings = made.settings(audit["recipe"], f"settings-audit-{number}")
        shown.made.append((name, made.of_audit(audit), settings))
    for number, each in enumerate(found.live, 1):
        id = f"live-{number}"
        shown.live.append(Probed(id, f"Live probe: {each.name}", live.figures(each, id)))
    return shown


def _study(shown: Page, study: Study) -> None:
    progress = study.data["progress"]
    shown.study, shown.arms = study, study.arms
    shown.verdicts, shown.caveats = verdicts(study), caveats(study)
    if not study.finished:
        shown.progress = progress["done"] / max(1, progress["total"])
    if len(study.comparisons) > MANY:
        first, *more = shown.verdicts
        shown.verdicts = [first, *(each for each in more if each.comparison is None)]
        shown.every_difference = scores.every_difference(study)
    shown.differences = [
        scores.difference(study, each.comparison, n)
        for n, each in enumerate(shown.verdicts, 1)
        if each.comparison
    ]
    shown.seeds = scores.seeds(study)
    shown.training = training.curves(study)
    shown.tuning = tuning.by_lr(study)
    shown.sage = sage.figures(study)
    shown.layers = [tables.layers(each, n) for n, each in enumerate(sage.traced(study), 1)]
    shown.scores, shown.by_seed = tables.scores(study), tables.by_seed(study)
    shown.tried, shown.runs = tables.tuning(study), tables.every_run(study)
    audited = sides.of_study(study)
    if audited:
        first = next(run["audit"] for run in study.data["runs"] if run.get("audit"))
        shown.redundancy.append(
            _redundancy(
                "redundancy",
                "Redundancy",
                audited,
                study.scale,
                first["split"],
                made.measurement(first["measurement"]),
            )
        )
    settings = made.settings(study.data["recipe"], "settings")
    shown.made.append(("study", made.of_study(study), settings))


def _audit(shown: Page, audit: Mapping[str, Any], id: str) -> Redundancy:
    models, scale = sides.of_audit(audit), Scale.of(audit["recipe"]["metric"])
    splits = [model["pruning"]["split"] for model in audit["models"] if model["pruning"]]
    split = splits[0] if splits else "validation"
    if not shown.verdicts:
        shown.verdicts = [finding(models, scale, split)]
    beside = tables_audit.comparison(audit)
    at_matched = sides.matched(audit, models)
    return _redundancy(
        id,
        f"Audit of {' and '.join(side.label for side in models)}",
        models,
        scale,
        split,
        made.measurement(audit["measurement"]),
        [beside] if beside else [],
        [sensitivity.matched(at_matched, id)] if at_matched else [],
        audit["comparison"]["note"] if audit["comparison"] else "",
    )


def _redundancy(
    id: str,
    title: str,
    found: Sequence[Side],
    scale: Scale,
    split: str,
    measured: str,
    more: Sequence[Table] = (),
    figures: Sequence[Figure] = (),
    note: str = "",
) -> Redundancy:
    further = [
        tables_audit.pruning(found, scale, id),
        *more,
        tables_audit.groups(found, "kinds", id),
        tables_audit.groups(found, "layers", id),
        tables_audit.units(found, id),
        tables_audit.optimizer(found, id),
    ]
    return Redundancy(
        id,
        title,
        measured,
        len(found) > 1,
        [*sensitivity.figures(found, id), *figures],
        pruning.figures(found, scale, split, id),
        tables_audit.redundancy(found, id),
        [table for table in further if table],
        note,
    )
