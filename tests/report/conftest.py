"""Documents for the page: studies and audits with made-up numbers, in the shape of real ones."""

import copy
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from sagelr.recipe import Recipe, load
from sagelr.study import plan, results

HOSTILE = "</script><script>alert(1)</script><b>&\"'%{x}"
LAYERS = ["vit.layers.0.attention", "vit.layers.0.mlp", "vit.layers.1.attention"]
ABOUT = {
    "id": "0123",
    "created": "2026-01-02T03:04:05+00:00",
    "command": "sagelr compare digits-vit --seeds 10",
    "overrides": {},
    "quick": False,
    "machine": {"platform": "Linux", "processor": "a CPU", "vectors": "AVX2", "cores": 2,
                "memory_gib": 8.0, "python": "3.11.7", "device": "cpu"},
    "versions": {"torch": "2.13.0"},
    "data": {"name": "Digits", "source": "made up", "loader": "Invented here.",
             "rows": {"train": 1000, "validation": 300, "test": 497}, "sha256": "ab" * 32},
    "looks": [10],
    "planned": 0,
}  # fmt: skip


class Maker:
    """Makes results.json from a few figures.

    Args:
        gap: what SAGE's score is above its base's.
        spread: standard deviation of the differences.
        seeds: of the report that are finished, for every arm.
        tuned: runs of tuning that are finished; None for all.
        status: of the study.
        spoil: called with every run, to change it.
    """

    def __init__(self, gap: float, spread: float, spoil: Callable[[dict[str, Any]], Any]) -> None:
        self.recipe: Recipe = load("digits-vit")
        self.gap, self.spread, self.spoil = gap, spread, spoil
        self.runs: dict[str, dict[str, Any]] = {}

    def tune(self, most: int | None) -> plan.Tuning:
        """Finish tuning, or so many runs of it."""
        while True:
            scores = {key: results.value_of(self.recipe, run) for key, run in self.runs.items()}
            tuning = plan.tuning(self.recipe, scores)
            left = [run for run in tuning.runs if run.key not in self.runs]
            if not left or (most is not None and len(self.runs) >= most):
                return tuning
            for run in left if most is None else left[: most - len(self.runs)]:
                self.add(run)

    def add(self, run: Any) -> None:
        """Invent the result of one run."""
        dice = random.Random(f"{run.seed}")
        luck = dice.gauss(0, 0.01)
        sage = run.arm.startswith("sage")
        off = abs(math.log2(run.setting["lr"] / (0.004 if sage else 0.002)))
        loss = 0.1 + 0.05 * off + abs(luck)
        accuracy = 0.95 + luck - 0.02 * off
        if sage:
            accuracy += self.gap + random.Random(f"sage {run.seed}").gauss(0, self.spread)
        final = {"loss": loss, "accuracy": min(1.0, accuracy)}
        entry = {
            "key": run.key,
            "stage": run.stage,
            "arm": run.arm,
            "setting": run.setting,
            "seed": run.seed,
            "status": "complete",
            "error": None,
            "scores": {
                "validation": final,
                "test": final if run.stage == "report" else None,
                "train": {"loss": 0.01},
            },
            "curve": [
                {"epoch": float(e), "step": 20 * e, "lr": 1e-3, "train_loss": 2.0 / e,
                 "validation_loss": loss * 15 / e, "validation_accuracy": accuracy * (1 - 0.5 / e)}
                for e in range(1, 16)
            ],
            "options": {"lr": run.setting["lr"], "relative": None},
            "seconds": 4.2,
            "peak_memory_mib": 512.0,
            "started": ABOUT["created"],
            "sagelr": "0.1.0",
            "sage": trace(run.setting["beta0"]) if sage and run.stage == "report" else None,
        }  # fmt: skip
        self.spoil(entry)
        self.runs[run.key] = entry

    def document(self, status: str, seeds: int, tuned: int | None, about: Mapping[str, Any]) -> Any:
        tuning = self.tune(tuned)
        chosen = None
        if status != "tuning":
            chosen = {name: arm.chosen for name, arm in tuning.arms.items() if arm.chosen}
            for run in plan.reporting(self.recipe, chosen, seeds):
                self.add(run)
        numbers = [plan.FIRST_REPORT_SEED + i for i in range(10)]
        return results.assemble(
            self.recipe,
            about=ABOUT | dict(about),
            status=status,
            total=len(tuning.runs) + tuning.later + 20,
            runs=self.runs,
            arms=tuning.arms,
            chosen=chosen,
            seeds=numbers,
        )


def trace(beta0: float) -> dict[str, Any]:
    """What a run's trace looks like."""
    return {
        "beta0": beta0,
        "steps": [2, 150, 299],
        "scatter": [[x / 10, beta0 * abs(x / 10 - 1) / (beta0 + (1 - beta0) * x / 10)]
                    for x in range(40)],
        "by_sensitivity": [
            {"quantile": [i / 20, (i + 1) / 20], "sensitivity": 1e-6 * 2**i, "multiplier": 0.5}
            for i in range(20)
        ],
        "layers": [
            {"name": name, "kind": "attention", "depth": 0, "parameters": 100,
             "sensitivity": 1e-5, "multiplier": 0.5 + 0.1 * i, "frozen": 0.01, "boosted": 0.1,
             "quantiles": {"5": 0.1, "25": 0.3, "50": 0.5, "75": 0.8, "95": 1.2}}
            for i, name in enumerate(LAYERS)
        ],
        "history": [
            {"step": step, "multiplier": dict.fromkeys(LAYERS, 0.5 + step / 999)}
            for step in (2, 150, 299)
        ],
    }  # fmt: skip


def _study(
    *,
    gap: float = 0.0,
    spread: float = 0.002,
    seeds: int = 10,
    tuned: int | None = None,
    status: str = "complete",
    spoil: Callable[[dict[str, Any]], Any] = lambda run: None,
    **about: Any,
) -> dict[str, Any]:
    """results.json; see Maker."""
    return copy.deepcopy(Maker(gap, spread, spoil).document(status, seeds, tuned, about))


@pytest.fixture(scope="session")
def study() -> Callable[..., dict[str, Any]]:
    return _study


def _curve(structure: str, score: str, seed: int = 0) -> dict[str, Any]:
    sparsities = [0.0, 0.5] if structure == "2:4" else [0.0, 0.2, 0.4, 0.6, 0.8]
    return {
        "structure": structure,
        "score": score,
        "scope": "global",
        "finetuned": 0.0,
        "total": 100,
        "points": [
            {"sparsity": s, "pruned": int(100 * s),
             "scores": {"loss": 0.1 + s, "accuracy": 0.95 - 0.5 * s**3 - 0.001 * seed}}
            for s in sparsities
        ],
        "keeps99": {"accuracy": 0.2, "loss": 0.0},
    }  # fmt: skip


def _histogram() -> dict[str, Any]:
    return {"per_decade": 10, "first": -80, "counts": [i * (40 - i) for i in range(1, 40)]}


SPREAD = {
    "gini": 0.7,
    "effective_share": 0.12,
    "share_below": {"0.001": 0.01, "0.01": 0.05, "0.1": 0.2},
}
MEASUREMENT = {"split": "train", "batch_size": 32, "batches": 31, "examples": 992,
               "order": "In the order of the file."}  # fmt: skip


def summary(seed: int = 0) -> dict[str, Any]:
    """What a report run carries as `audit`."""
    return SPREAD | {
        "measurement": MEASUREMENT,
        "loss": 0.1 + 0.01 * (seed % 3),
        "layers": [
            {"name": name, "kind": "attention", "depth": 0, "parameters": 100,
             "sensitivity": 1e-5 * (1 + i + 0.1 * (seed % 5)), "sensitivity_by_loss": 1e-4}
            for i, name in enumerate(LAYERS)
        ],
        "histogram": _histogram(),
        "split": "test",
        "prunable": 100,
        "curves": [_curve("unstructured", by, seed % 7) for by in ("sensitivity", "magnitude")],
    }  # fmt: skip


@pytest.fixture(scope="session")
def run_audit() -> Callable[[int], dict[str, Any]]:
    return summary


def _group(name: str, scale: float = 1.0) -> dict[str, Any]:
    return SPREAD | {
        "name": name,
        "kind": name,
        "depth": None,
        "parameters": 100,
        "mean": 1e-5 * scale,
        "mean_by_loss": 1e-4 * scale,
        "zero": 0,
        "quantiles": {"1": 1e-8, "5": 1e-7, "25": 1e-6, "50": 1e-5, "75": 1e-4, "95": 1e-3,
                      "99": 1e-2},
        "histogram": _histogram(),
        "effective": 12.0,
        "variation": 1e-6,
    }  # fmt: skip


def _model(label: str, arm: str | None) -> dict[str, Any]:
    structures = ("unstructured", "heads", "neurons", "2:4")
    units = {"layer": LAYERS[0], "depth": 0, "count": 4, "parameters_each": 10,
             "means": [1e-6, 2e-6, 3e-6, 0.0], "histogram": _histogram(), "zero": 1}  # fmt: skip
    return {
        "name": label,
        "label": label,
        "path": f"runs/{label}",
        "model_class": "ViTForImageClassification",
        "arm": arm,
        "setting": {"lr": 0.002},
        "seed": 0,
        "parameters": 300,
        "sensitivity": {
            "loss": 0.1,
            "all": _group("all"),
            "layers": [_group(name) for name in LAYERS],
            "kinds": [_group(kind) for kind in ("attention query", "feed-forward", "head")],
            "heads": [units],
            "neurons": [units],
        },
        "optimizer": None,
        "pruning": {
            "split": "validation",
            "prunable": 200,
            "curves": [_curve(structure, "sensitivity") for structure in structures],
            "skipped": ["Nothing of the embedding is pruned."],
        },
        "export": None,
    }


@pytest.fixture
def audit() -> dict[str, Any]:
    """audit.json of two models."""
    models = [_model("AdamW", "adamw"), _model("SageAdamW", "sage-adamw")]
    side = SPREAD | {
        "checkpoint": None,
        "loss": 0.1,
        "layers": dict.fromkeys(LAYERS, 1e-5),
        "layers_by_loss": dict.fromkeys(LAYERS, 1e-4),
    }
    recipe = load("digits-vit")
    document = {
        "kind": "audit",
        "schema": 1,
        "sagelr": "0.1.0",
        "created": ABOUT["created"],
        "command": "sagelr audit runs/a --recipe digits-vit",
        "machine": ABOUT["machine"],
        "versions": ABOUT["versions"],
        "recipe": recipe.to_json() | {"metric": recipe.score.to_json()},
        "data": ABOUT["data"],
        "measurement": MEASUREMENT,
        "models": models,
        "comparison": {
            "own": [side | {"model": 0}, side | {"model": 1}],
            "matched": [side | {"model": 0, "checkpoint": "checkpoint-80"}, side | {"model": 1}],
            "level": 0.1,
            "note": "At the level of loss 0.1.",
        },
        "notices": [],
        "definitions": {},
        "seconds": 1.0,
    }
    return copy.deepcopy(document)


@pytest.fixture
def hostile() -> str:
    """A name that would break out of whatever it is put in."""
    return HOSTILE
