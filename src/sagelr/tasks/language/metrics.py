"""Metrics of classes and scores, by scikit-learn and scipy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sagelr.tasks import Metric

METRICS = {
    "score": Metric("score", scale=100),
    "accuracy": Metric("accuracy", scale=100, unit="%"),
    "f1": Metric("f1", scale=100, label="F1"),
    "macro_f1": Metric("macro_f1", scale=100, label="macro-averaged F1"),
    "matthews": Metric("matthews", scale=100, label="Matthews correlation"),
    "pearson": Metric("pearson", scale=100, label="Pearson correlation"),
    "spearman": Metric("spearman", scale=100, label="Spearman correlation"),
    "rmse": Metric("rmse", greater_is_better=False, label="RMSE"),
}


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of labels that were predicted."""
    return float((predicted == labels).mean())


def f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Harmonic mean of precision and recall of class 1; 0 where it is never predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, zero_division=0))  # pyright: ignore[reportArgumentType]


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes of each one's F1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=0))  # pyright: ignore[reportArgumentType]


def matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation of two classes; 0 where only one of them is predicted."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def pearson(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation; 0 where every prediction, or every label, is the same."""
    from scipy.stats import pearsonr

    return 0.0 if _flat(predicted, labels) else float(pearsonr(predicted, labels)[0])  # type: ignore[arg-type]


def spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where every prediction, or every label, is the same."""
    from scipy.stats import spearmanr

    return 0.0 if _flat(predicted, labels) else float(spearmanr(predicted, labels)[0])  # type: ignore[arg-type]


def _flat(predicted: np.ndarray, labels: np.ndarray) -> bool:
    return len(labels) < 2 or np.ptp(predicted) == 0 or np.ptp(labels) == 0


def rmse(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Root of the mean squared difference, in the label's unit."""
    return float(np.sqrt(np.mean((predicted - labels) ** 2)))


FUNCTIONS: dict[str, Callable[[Any, Any], float]] = {
    function.__name__: function
    for function in (accuracy, f1, macro_f1, matthews, pearson, spearman, rmse)
}


def score(names: tuple[str, ...], predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Some metrics, and the task's `score`: see `score_in_words`.

    Examples:
        >>> score(("accuracy", "f1"), np.array([1, 1, 0]), np.array([1, 0, 0]))["accuracy"]
        0.6666666666666666
    """
    found = {name: FUNCTIONS[name](predicted, labels) for name in names}
    parts = [found[name] for name in _parts(names)]
    return found | {"score": sum(parts) / len(parts)}


def score_in_words(names: tuple[str, ...]) -> str:
    """What `score` is.

    Examples:
        >>> score_in_words(("accuracy", "f1"))
        'the mean of accuracy and f1'
        >>> score_in_words(("accuracy", "macro_f1"))
        'accuracy'
    """
    parts = _parts(names)
    return parts[0] if len(parts) == 1 else f"the mean of {' and '.join(parts)}"


def _parts(names: tuple[str, ...]) -> tuple[str, ...]:
    """As on GLUE's leaderboard, the mean of a task's metrics; these two only stand beside."""
    return tuple(name for name in names if name not in ("macro_f1", "rmse"))
