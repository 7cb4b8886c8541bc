"""Tables: what stands in them, and the value each cell is sorted and exported by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sagelr.report.charts.sage import Traced, layer_rows
from sagelr.report.study import Arm, Run, Study, mean, spread, test, validation
from sagelr.report.wording import (
    duration,
    memory,
    number,
    p_value,
    setting,
    share,
)

MOST_RUNS = 1000  # of a study's runs that are listed; results.json has all


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: as shown.
        value: what it is sorted by and exported as; the text where it is None.
        colour: of the dot before it.
        export: what it is exported as, where that is not the value.
    """

    text: str
    value: float | str | None = None
    colour: str | None = None
    export: str | None = None


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: its heading.
        word: that explains it, in words.py.
        numeric: whether it is set to the right.
        unit: of its exported values, where the heading does not say.
    """

    name: str
    word: str | None = None
    numeric: bool = True
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """A table that sorts, and is exported as CSV under its id."""

    id: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    colours: Sequence[str] = field(default_factory=list)


def scores(study: Study) -> Table | None:
    """One row an arm: what it scored, and how it differs from its base."""
    scale = study.scale
    rows = []
    for arm in study.arms:
        runs = study.reported(arm)
        values = test(runs, scale.name)
        if not values:
            continue
        seconds = mean([run["seconds"] for run in runs if run["seconds"]])
        most = mean([run["peak_memory_mib"] for run in runs if run["peak_memory_mib"]])
        losses = test(runs, "loss")
        rows.append(
            [
                Cell(arm.label, colour=arm.colour),
                Cell(setting(arm.chosen)),
                _score(study, mean(values)),
                _size(study, spread(values)),
                Cell(str(len(values)), len(values)),
                Cell(number(mean(losses), 4), mean(losses)),
                *_against_base(study, arm),
                Cell(duration(seconds), seconds),
                Cell(memory(most), most),
            ]
        )
    if not rows:
        return None
    unit = f" ({scale.difference_unit.strip()})" if scale.difference_unit.strip() else ""
    return Table(
        "scores",
        f"Test {scale.label} of every arm at its chosen setting",
        [
            Column("arm", "arm", numeric=False),
            Column("chosen setting", numeric=False),
            Column(f"mean {scale.label}", unit=scale.unit),
            Column(f"sd{unit}", "sd"),
            Column("seeds", "seed"),
            Column("mean loss"),
            Column(f"difference{unit}", "paired"),
            Column("95% interval", "interval"),
            Column("p", "p"),
            Column(f"smallest detectable{unit}", "detectable"),
            Column("effect size", "effect"),
            Column("time per run", unit="s"),
            Column("peak memory", "memory", unit="MiB"),
        ],
        rows,
        "Differences are sage arm minus its base, seed by seed; times and memory are means.",
    )


def _against_base(study: Study, arm: Arm) -> list[Cell]:
    """Difference, interval, p, smallest detectable difference and effect size."""
    found = next((each for each in study.comparisons if each["sage"] == arm.name), None)
    if found is None:
        return [Cell("–")] * 5
    scale, gap = study.scale, found["difference"]
    low, high = gap["ci95"]
    exact = ", ".join(f"{value * scale.factor:.6g}" for value in gap["ci95"])
    shown = f"{scale.change(low, unit=False)} to {scale.change(high, unit=False)}"
    return [
        _gap(study, gap["mean"], unit=False),
        Cell(shown, low, export=f"[{exact}]"),
        Cell(p_value(gap["p_value"]), gap["p_value"]),
        _size(study, found["smallest_detectable"]),
        Cell(number(gap["effect_size"], 2), gap["effect_size"]),
    ]


def _score(study: Study, value: float | None) -> Cell:
    """A score of the metric, exported in the units it is shown in."""
    return Cell(study.scale.show(value), None if value is None else value * study.scale.factor)


def _gap(study: Study, value: float | None, unit: bool = True) -> Cell:
    """A difference of scores, with its sign."""
    shown = study.scale.change(value, unit)
    return Cell(shown, None if value is None else value * study.scale.factor)


def _size(study: Study, value: float | None) -> Cell:
    """The size of a difference, whose unit is in the heading."""
    shown = study.scale.amount(value).removesuffix(study.scale.difference_unit)
    return Cell(shown, None if value is None else value * study.scale.factor)


def by_seed(study: Study) -> Table | None:
    """One row a seed, with the score of each arm."""
    scale = study.scale
    found = {
        arm: {run["seed"]: run["scores"]["test"][scale.name] for run in study.reported(arm)}
        for arm in study.arms
    }
    numbers = sorted({number for values in found.values() for number in values})
    if not numbers:
        return None
    pairs = [(study.by_name[c["base"]], study.by_name[c["sage"]]) for c in study.comparisons]
    rows = []
    for seed in numbers:
        row = [Cell(str(seed), seed)]
        for values in found.values():
            row.append(_score(study, values.get(seed)))
        for base, sage in pairs:
            both = seed in found[base] and seed in found[sage]
            gap = found[sage][seed] - found[base][seed] if both else None
            row.append(_gap(study, gap))
        rows.append(row)
    columns = [Column("seed", "seed"), *(Column(arm.label) for arm in found)]
    columns += [Column(f"{sage.label} − {base.label}", "paired") for base, sage in pairs]
    return Table("by-seed", f"Test {scale.label}, seed by seed", columns, rows)


def tuning(study: Study) -> Table | None:
    """Every setting that was tried."""
    chosen_by, scale = study.scale_of(study.select_by), study.scale
    rows = []
    for arm in study.arms:
        for point, runs in study.tuned(arm):
            bad = sum(run["status"] != "complete" for run in runs)
            first = mean(validation(runs, study.select_by))
            second = mean(validation(runs, scale.name))
            rows.append(
                [
                    Cell(arm.label, colour=arm.colour),
                    Cell(f"{point['lr']:g}", point["lr"]),
                    Cell(setting({k: v for k, v in point.items() if k != "lr"})),
                    Cell(
                        chosen_by.show(first), None if first is None else first * chosen_by.factor
                    ),
                    _score(study, second),
                    Cell(str(len(runs)), len(runs)),
                    Cell(str(bad) if bad else "–", bad),
                    Cell("chosen" if point == arm.chosen else ""),
                ]
            )
    if not rows:
        return None
    columns = [
        Column("arm", "arm", numeric=False),
        Column("lr", "lr"),
        Column("beside lr", numeric=False),
        Column(f"mean {chosen_by.label}"),
        Column(f"mean {scale.label}"),
        Column("seeds", "seed"),
        Column("diverged or failed"),
        Column("choice", numeric=False),
    ]
    title = "Every setting that was tried, on the validation split"
    return Table("tuning", title, *_without_empty(columns, rows, columns[4]))


def layers(found: Traced, number_of: int) -> Table:
    """Multipliers layer by layer."""
    rows = []
    for row in layer_rows(found):
        quantiles = row["quantiles"]
        rows.append(
            [
                Cell(row["name"]),
                Cell(row["kind"]),
                Cell(f"{row['parameters']:,}", row["parameters"]),
                Cell(number(row["sensitivity"]), row["sensitivity"]),
                Cell(f"{row['multiplier']:.3f}", row["multiplier"]),
                *(Cell(f"{quantiles[q]:.3f}", quantiles[q]) for q in quantiles),
                Cell(share(row["frozen"]), row["frozen"]),
                Cell(share(row["boosted"]), row["boosted"]),
            ]
        )
    levels = list(found.traces[0]["layers"][0]["quantiles"]) if found.traces[0]["layers"] else []
    return Table(
        f"layers-{number_of}",
        f"{found.arm.label}, layer by layer near the end of training",
        [
            Column("layer", numeric=False),
            Column("kind", numeric=False),
            Column("parameters", "parameter"),
            Column("mean sensitivity", "smoothed"),
            Column("mean multiplier", "multiplier"),
            *(Column(f"{level}%") for level in levels),
            Column("frozen", "frozen"),
            Column("boosted", "boosted"),
        ],
        rows,
        "Columns in percent are quantiles of the multiplier; all are means over the seeds.",
    )


def every_run(study: Study) -> Table:
    """All runs of the study, with their status."""
    runs: Sequence[Run] = study.data["runs"]
    rows = [_run(study, run) for run in runs[:MOST_RUNS]]
    left = len(runs) - len(rows)
    columns = [
        Column("stage", numeric=False),
        Column("arm", "arm", numeric=False),
        Column("setting", numeric=False),
        Column("seed", "seed"),
        Column("status", numeric=False),
        Column("validation loss"),
        Column(f"validation {study.scale.label}"),
        Column(f"test {study.scale.label}"),
        Column("time", unit="s"),
        Column("peak memory", "memory", unit="MiB"),
    ]
    note = f"The other {left:,} runs are in results.json." if left else ""
    return Table("runs", "Every run", *_without_empty(columns, rows, columns[6]), note)


def _without_empty(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], column: Column
) -> tuple[Sequence[Column], Sequence[Sequence[Cell]]]:
    """Columns and rows, without one column if nothing stands in it.

    Where decoding takes long, tuning does without the metric.
    """
    at = columns.index(column)
    if any(row[at].value is not None for row in rows):
        return columns, rows
    keep = [place for place in range(len(columns)) if place != at]
    return [columns[place] for place in keep], [[row[place] for place in keep] for row in rows]


def _run(study: Study, run: Run) -> list[Cell]:
    arm = study.by_name[run["arm"]]
    tried = validation([run], "loss"), validation([run], study.scale.name)
    scored = test([run], study.scale.name)
    status = run["status"] + (f": {run['error']}" if run["error"] else "")
    loss, metric, final = (mean(values) for values in (*tried, scored))
    return [
        Cell(run["stage"]),
        Cell(arm.label, colour=arm.colour),
        Cell(setting(run["setting"])),
        Cell(str(run["seed"]), run["seed"]),
        Cell(status),
        Cell(number(loss, 4), loss),
        _score(study, metric),
        _score(study, final),
        Cell(duration(run["seconds"]), run["seconds"]),
        Cell(memory(run["peak_memory_mib"]), run["peak_memory_mib"]),
    ]
