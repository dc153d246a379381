"""Task metrics: what each is called, its range, and what it is defined for.

Accuracy needs nothing but NumPy. The others are those of scikit-learn and SciPy (extra `train`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..utils.imports import needed


class Metric(NamedTuple):
    """A task metric.

    Args:
        score: labels (samples,), predictions (samples,) -> score; called only where the metric is defined.
        lowest, highest: the range of the score, both ends included.
        higher_is_better: whether a higher score is better.
        uses_label_order: whether renumbering the classes changes the score.
        regression: whether it compares numbers, not classes.
    """

    score: Callable[[Any, Any], float]
    lowest: float
    highest: float
    higher_is_better: bool = True
    uses_label_order: bool = False
    regression: bool = False


def _accuracy(labels: Any, predictions: Any) -> float:
    return float((labels == predictions).mean())


def _f1(labels: Any, predictions: Any) -> float:
    return float(needed("sklearn.metrics", "train").f1_score(labels, predictions))


def _matthews(labels: Any, predictions: Any) -> float:
    return float(needed("sklearn.metrics", "train").matthews_corrcoef(labels, predictions))


def _correlation(name: str) -> Callable[[Any, Any], float]:
    def score(labels: Any, predictions: Any) -> float:
        if not np.isfinite(predictions).all():
            return float("nan")
        if (predictions == predictions[:1]).all():
            return 0.0
        return float(getattr(needed("scipy.stats", "train"), name)(predictions, labels)[0])

    return score


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy, 0.0, 1.0),
    "f1": Metric(_f1, 0.0, 1.0, uses_label_order=True),
    "matthews_correlation": Metric(_matthews, -1.0, 1.0),
    "pearson": Metric(_correlation("pearsonr"), -1.0, 1.0, uses_label_order=True, regression=True),
    "spearmanr": Metric(_correlation("spearmanr"), -1.0, 1.0, uses_label_order=True, regression=True),
}


def compute_score(metric: str, predictions: Any, references: Any) -> float:
    """Compute a task metric.

    Args:
        metric: one of `METRICS`: "accuracy", "f1" (of class 1), "matthews_correlation", "pearson" or "spearmanr".
        predictions: predicted classes, or numbers for the correlations, (samples,).
        references: true classes or numbers, (samples,).

    Returns:
        The score: accuracy and F1 in [0, 1], correlations in [-1, 1]. The correlation of constant predictions is 0,
        that of predictions with NaN or infinity is NaN.

    Raises:
        ValueError: an unknown metric; no references; references for which the metric is not defined: all equal, or
            without class 1 for F1; more than two classes for F1.
        ImportError: the extra `train` is missing, for all metrics but accuracy.

    >>> compute_score("f1", [1, 1, 0, 0], [1, 0, 1, 0]), round(compute_score("pearson", [0.1, 0.4, 0.2], [1, 3, 2]), 6)
    (0.5, 0.981981)
    """
    if metric not in METRICS:
        *names, last = METRICS
        raise ValueError(f"metric: got {metric!r}; choose {', '.join(names)} or {last}")
    predicted, labels = np.asarray(predictions), np.asarray(references)
    if not labels.size:
        raise ValueError("references: got none; pass at least one")
    undefined = not bool((labels == 1).any()) if metric == "f1" else bool((labels == labels[:1]).all())
    if undefined and metric != "accuracy":
        what = "have no class 1" if metric == "f1" else "are all the same"
        raise ValueError(
            f"references: the {len(labels)} labels {what}, where {metric} is not defined; pass data with other "
            "labels, too, or another metric"
        )
    if metric == "f1" and max(predicted.max(), labels.max()) > 1:
        raise ValueError(
            f"metric: f1 is of class 1 of two, and there are classes up to {max(predicted.max(), labels.max())}; pass "
            "accuracy or matthews_correlation"
        )
    return METRICS[metric].score(labels, predicted)


def check_classes(metric: str, classes: int) -> None:
    """Check that a metric is defined for a number of classes.

    Args:
        metric: name of the metric.
        classes: number of classes of the model.

    Raises:
        ValueError: F1 of more than two classes.
    """
    if metric == "f1" and classes > 2:
        raise ValueError(
            f"metric: f1 is of class 1 of two, and there are {classes} classes; pass accuracy or matthews_correlation"
        )


def metric_function(metric: str) -> Callable[[Tensor, Tensor], float]:
    """`compute_score` of one metric as a function of predictions and labels, as `tradeoff_curve` takes it.

    Args:
        metric: name of the metric.
    """

    def score(predictions: Tensor, references: Tensor) -> float:
        return compute_score(metric, predictions.numpy(), references.numpy())

    return score
