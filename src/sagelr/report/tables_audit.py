"""Tables of an audit: redundancy in figures, layer by layer, and what pruning keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sagelr.report.charts.pruning import STRUCTURES, by_key, keeps, score_of, scores_at
from sagelr.report.sides import Side
from sagelr.report.study import mean, spread
from sagelr.report.tables import Cell, Column, Table
from sagelr.report.wording import Scale, number, share


def redundancy(sides: Sequence[Side], prefix: str) -> Table:
    """How unevenly sensitivity is spread, one row a side."""
    levels = list(sides[0].spreads[0]["share_below"])
    rows = []
    for side in sides:
        row = [
            Cell(side.label, colour=side.colour),
            Cell(str(len(side.losses)), len(side.losses)),
            Cell(number(side.loss, 4), side.loss),
        ]
        row.append(_over_seeds([each["gini"] for each in side.spreads], number))
        row.append(_over_seeds([each["effective_share"] for each in side.spreads], share, 100))
        for level in levels:
            values = [each["share_below"][level] for each in side.spreads]
            row.append(_over_seeds(values, share, 100))
        rows.append(row)
    return Table(
        f"{prefix}-redundancy",
        "Redundancy in figures",
        [
            Column("model or arm", numeric=False),
            Column("seeds", "seed"),
            Column("loss"),
            Column("Gini coefficient", "gini"),
            Column("effective parameters", "effective"),
            *(Column(f"below {level} × median", "below") for level in levels),
        ],
        rows,
        "Means over the seeds, with their standard deviation." if _several(sides) else "",
    )


def _several(sides: Sequence[Side]) -> bool:
    return any(len(side.losses) > 1 for side in sides)


def _over_seeds(values: Sequence[float], show: Any, factor: float = 1) -> Cell:
    centre, around = mean(values), spread(values)
    text = show(centre)
    return Cell(text if around is None else f"{text} ± {number(factor * around, 1)}", centre)


def groups(sides: Sequence[Side], what: str, prefix: str) -> Table | None:
    """Every layer or kind of module of the models in audit.json."""
    rows = []
    for side in sides:
        if side.detail is None:
            continue
        for group in side.detail["sensitivity"][what]:
            rows.append(
                [
                    Cell(side.label, colour=side.colour),
                    Cell(group["name"]),
                    Cell(f"{group['parameters']:,}", group["parameters"]),
                    Cell(number(group["mean"]), group["mean"]),
                    Cell(number(group["mean_by_loss"]), group["mean_by_loss"]),
                    Cell(number(group["variation"]), group["variation"]),
                    Cell(number(group["gini"]), group["gini"]),
                    Cell(share(group["effective_share"]), group["effective_share"]),
                    Cell(f"{group['zero']:,}", group["zero"]),
                ]
            )
    if not rows:
        return None
    one = "layer" if what == "layers" else "kind of module"
    return Table(
        f"{prefix}-{what}",
        f"Sensitivity of every {one}",
        [
            Column("model", numeric=False),
            Column(one, numeric=False),
            Column("parameters", "parameter"),
            Column("mean sensitivity", "sensitivity"),
            Column("by loss", "by_loss"),
            Column("mean variation", "variation"),
            Column("Gini coefficient", "gini"),
            Column("effective", "effective"),
            Column("exactly 0"),
        ],
        rows,
    )


def units(sides: Sequence[Side], prefix: str) -> Table | None:
    """Heads and neurons: how many there are, and how many do nothing."""
    rows = []
    for side in sides:
        if side.detail is None:
            continue
        for kind in ("heads", "neurons"):
            for found in side.detail["sensitivity"][kind]:
                means = found["means"] or []
                rows.append(
                    [
                        Cell(side.label, colour=side.colour),
                        Cell(found["layer"]),
                        Cell(kind),
                        Cell(f"{found['count']:,}", found["count"]),
                        Cell(f"{found['zero']:,}", found["zero"]),
                        Cell(number(min(means)) if means else "–", min(means, default=None)),
                        Cell(number(max(means)) if means else "–", max(means, default=None)),
                    ]
                )
    if not rows:
        return None
    return Table(
        f"{prefix}-units",
        "Attention heads and feed-forward neurons",
        [
            Column("model", numeric=False),
            Column("layer", numeric=False),
            Column("kind", numeric=False),
            Column("count"),
            Column("with sensitivity 0"),
            Column("least mean sensitivity", "sensitivity"),
            Column("most"),
        ],
        rows,
    )


def optimizer(sides: Sequence[Side], prefix: str) -> Table | None:
    """What a kept optimizer was about to do to each layer."""
    rows = [
        [
            Cell(side.label, colour=side.colour),
            Cell(row["layer"]),
            Cell(f"{row['step']:,}", row["step"]),
            Cell(number(row["variation"]), row["variation"]),
            Cell(f"{row['multiplier']:.3f}", row["multiplier"]),
            Cell(share(row["frozen"]), row["frozen"]),
            Cell(share(row["boosted"]), row["boosted"]),
        ]
        for side in sides
        for row in (side.detail or {}).get("optimizer") or []
    ]
    if not rows:
        return None
    return Table(
        f"{prefix}-optimizer",
        "Multipliers in the optimizer state that was kept",
        [
            Column("model", numeric=False),
            Column("layer", numeric=False),
            Column("step"),
            Column("mean variation", "variation"),
            Column("mean multiplier", "multiplier"),
            Column("frozen", "frozen"),
            Column("boosted", "boosted"),
        ],
        rows,
    )


def pruning(sides: Sequence[Side], scale: Scale, prefix: str) -> Table | None:
    """Every curve in one row: the score at its ends, and the sparsity that keeps 99%."""
    rows = []
    for (structure, score, scope, finetuned), each in by_key(sides).items():
        for side, curves in each:
            shown = score_of(curves[0], scale)
            first, last = (curves[0]["points"][place]["sparsity"] for place in (0, -1))
            ends = [mean(scores_at(curves, sparsity, shown.name)) for sparsity in (first, last)]
            kept = keeps(curves, shown)
            rows.append(
                [
                    Cell(side.label, colour=side.colour),
                    Cell(STRUCTURES.get(structure, structure)),
                    Cell(score),
                    Cell(scope),
                    Cell(f"{finetuned:g}" if finetuned else "–", finetuned),
                    Cell(shown.show(ends[0]), ends[0]),
                    Cell(f"{shown.show(ends[1])} at {share(last)}", ends[1]),
                    Cell(share(kept), kept),
                ]
            )
    if not rows:
        return None
    return Table(
        f"{prefix}-pruning",
        "How much can go",
        [
            Column("model or arm", numeric=False),
            Column("what is pruned", numeric=False),
            Column("lowest", "scores", numeric=False),
            Column("over", numeric=False),
            Column("epochs of fine-tuning"),
            Column("whole"),
            Column("at the highest sparsity", "sparsity"),
            Column("keeps 99% up to", "keeps99"),
        ],
        rows,
    )


def comparison(audit: Mapping[str, Any]) -> Table | None:
    """Two models at their own loss and at matched loss."""
    found = audit["comparison"]
    if found is None:
        return None
    rows = []
    for where in ("own", "matched"):
        for side in found[where] or []:
            label = audit["models"][side["model"]]["label"]
            rows.append(
                [
                    Cell(label),
                    Cell(f"at {where} loss"),
                    Cell(number(side["loss"], 4), side["loss"]),
                    Cell(side.get("checkpoint") or "end of the run"),
                    Cell(number(side["gini"]), side["gini"]),
                    Cell(share(side["effective_share"]), side["effective_share"]),
                    *(Cell(share(value), value) for value in side["share_below"].values()),
                ]
            )
    levels = list(found["own"][0]["share_below"])
    return Table(
        "matched",
        "Side by side, at their own loss and at matched loss",
        [
            Column("model", numeric=False),
            Column("compared", "matched", numeric=False),
            Column("loss"),
            Column("from", numeric=False),
            Column("Gini coefficient", "gini"),
            Column("effective parameters", "effective"),
            *(Column(f"below {level} × median", "below") for level in levels),
        ],
        rows,
        found["note"],
    )
