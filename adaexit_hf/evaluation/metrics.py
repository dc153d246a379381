"""Task metrics: the name, the range and the direction of each, and the labels for which it is defined.

Accuracy needs only NumPy. The others are computed by scikit-learn and SciPy (extra `train`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..utils.imports import needed


class Metric(NamedTuple):
    """A task metric.

    Attributes:
        score: Function of labels (samples,) and predictions (samples,) that returns the score. It is called only where
            the metric is defined.
        lowest: Lower end of the range of the score, included.
        highest: Upper end of the range of the score, included.
        higher_is_better: Whether a higher score is better.
        uses_label_order: Whether the score changes when the classes are renumbered.
        regression: Whether the metric compares numbers instead of classes.
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
"""Every task metric by its name."""


def compute_score(metric: str, predictions: Any, references: Any) -> float:
    """Compute a task metric.

    Args:
        metric: Name of the metric, a key of `METRICS`: `"accuracy"`, `"f1"` (of class 1 of two classes),
            `"matthews_correlation"`, `"pearson"` or `"spearmanr"`.
        predictions: Predicted classes, or predicted numbers for `"pearson"` and `"spearmanr"`, `(samples,)`.
        references: True classes or numbers, `(samples,)`.

    Returns:
        The score. Accuracy and F1 are in [0, 1], correlations in [-1, 1]. The correlation of constant predictions
        is 0, and that of predictions with NaN or infinity is NaN.

    Raises:
        ValueError: If the metric is unknown, if predictions and references differ in shape, if predictions are no
            classes where the metric compares classes, if there are no references, if the metric is not defined for
            them (F1 without class 1; a correlation of references that are all equal), or if F1 gets more than two
            classes.
        ImportError: If the extra `train` is not installed and the metric is not accuracy.

    Examples:
        >>> compute_score("f1", [1, 1, 0, 0], [1, 0, 1, 0])
        0.5
        >>> round(compute_score("pearson", [0.1, 0.4, 0.2], [1, 3, 2]), 6)
        0.981981
    """
    if metric not in METRICS:
        *names, last = METRICS
        raise ValueError(f"metric: got {metric!r}; choose {', '.join(names)} or {last}")
    predicted, labels = np.asarray(predictions), np.asarray(references)
    if not labels.size:
        raise ValueError("references: got none; pass at least one")
    predicted, labels = (
        values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values for values in (predicted, labels)
    )
    if labels.ndim != 1 or predicted.shape != labels.shape:
        raise ValueError(
            f"predictions: got shape {predicted.shape} for references of shape {labels.shape}; pass one number for "
            "each sample in both, shape (samples,)"
        )
    if not METRICS[metric].regression and predicted.dtype.kind == "f" and not (predicted == predicted.round()).all():
        raise ValueError(
            f"predictions: got {predicted[predicted != predicted.round()][0]}, which is no class; pass class indices, "
            "e.g. logits.argmax(-1)"
        )
    undefined = not bool((labels == 1).any()) if metric == "f1" else bool((labels == labels[:1]).all())
    if undefined and metric != "accuracy":
        reason = "include no class 1" if metric == "f1" else "are all equal"
        raise ValueError(
            f"references: the {len(labels)} labels {reason}, so {metric} is not defined; pass data with other labels "
            "as well, or choose another metric"
        )
    if metric == "f1" and max(predicted.max(), labels.max()) > 1:
        raise ValueError(
            "metric: f1 is defined for two classes, 0 and 1, but there are classes up to "
            f"{max(predicted.max(), labels.max())}; pass accuracy or matthews_correlation"
        )
    return METRICS[metric].score(labels, predicted)


def check_classes(metric: str, classes: int) -> None:
    """Check that a metric is defined for this number of classes.

    Args:
        metric: Name of the metric.
        classes: Number of classes of the model.

    Raises:
        ValueError: If the metric is F1 and there are more than two classes.
    """
    if metric == "f1" and classes > 2:
        raise ValueError(
            f"metric: f1 is defined for two classes, 0 and 1, but there are {classes} classes; pass accuracy or "
            "matthews_correlation"
        )


def metric_function(metric: str) -> Callable[[Tensor, Tensor], float]:
    """Return `compute_score` of one metric as a function of predictions and labels, the form `tradeoff_curve` takes.

    Args:
        metric: Name of the metric.
    """

    def score(predictions: Tensor, references: Tensor) -> float:
        return compute_score(metric, predictions.numpy(), references.numpy())

    return score
