"""Task metrics: the name, the range and the direction of each, and the labels for which it is defined.

Accuracy needs only PyTorch. The others are computed by scikit-learn and SciPy (extra `train`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.imports import needed
from ..utils.spelling import did_you_mean


@dataclass(frozen=True)
class Metric:
    """A task metric: a function and its direction.

    Wherever the name of a metric is taken (`compute_score`, `tradeoff_curve`, `layer_scores`, `oracle_bound`), a
    `Metric` of your own is, too.

    Attributes:
        score: Function of the true labels `(samples,)` and the predictions `(samples,)`, in this order, that returns a
            number: the order of scikit-learn. Both are tensors on the CPU, which the functions of scikit-learn take as
            well as those of PyTorch; for NumPy call `labels.numpy()`. Predictions are classes, or numbers for
            regression. With several labels at once both are label sets: 1 for each label that is given, 0 for the
            others, `(samples, labels)`, int64.
        higher_is_better: Whether a higher score is better. Default: True.
        lowest: Lower end of the range of the score, included. Default: minus infinity.
        highest: Upper end of the range of the score, included. Default: infinity.
        uses_label_order: Whether the score changes when the classes are renumbered. Default: True.
        regression: Whether the metric compares numbers instead of classes. Default: None, both.
        label_sets: Whether the metric compares label sets, of several labels at once, instead of one class or number
            per text. Default: None, both.

    Raises:
        TypeError: If `score` is not a function, or `higher_is_better` neither True nor False.

    Examples:
        >>> error = Metric(lambda labels, predictions: (labels != predictions).double().mean(), higher_is_better=False)
        >>> compute_score(error, predictions=[1, 0, 1, 1], references=[1, 1, 1, 1])
        0.25
    """

    score: Callable[[Any, Any], Any]
    higher_is_better: bool = True
    lowest: float = -math.inf
    highest: float = math.inf
    uses_label_order: bool = True
    regression: bool | None = None
    label_sets: bool | None = None

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise TypeError(
                f"score: got {self.score!r}; pass a function of true labels and predictions, e.g. "
                "Metric(sklearn.metrics.precision_score)"
            )
        if not isinstance(self.higher_is_better, bool):
            raise TypeError(f"higher_is_better: got {self.higher_is_better!r}; pass True or False")


# The name of a metric, a metric, or a function of true labels and predictions, for which higher is better.
MetricLike = str | Metric | Callable[[Any, Any], Any]


def _accuracy(labels: Tensor, predictions: Tensor) -> float:
    return (labels == predictions).reshape(len(labels), -1).all(dim=1).double().mean().item()


def _undefined(labels: Tensor, metric: str, reason: str) -> ValueError:
    return ValueError(
        f"references: the {len(labels)} labels {reason}, so {metric} is not defined; pass data with other labels "
        "as well, or choose another metric"
    )


def _f1_of_sets(metric: str) -> Callable[[Tensor, Tensor], float]:
    def score(labels: Tensor, predictions: Tensor) -> float:
        if not labels.any():
            raise _undefined(labels, metric, "give no label to any text")
        dims = None if metric == "f1_micro" else 0
        right = (labels * predictions).sum(dim=dims).double()
        total = (labels + predictions).sum(dim=dims)
        # As in scikit-learn, F1 is 0 of a label that is neither given nor predicted.
        return (2 * right / total.clamp_min(1)).mean().item()

    return score


def _f1(labels: Tensor, predictions: Tensor) -> float:
    if not (labels == 1).any():
        raise _undefined(labels, "f1", "include no class 1")
    highest = int(max(predictions.max(), labels.max()))
    if highest > 1:
        raise ValueError(
            f"metric: f1 is defined for two classes, 0 and 1, but there are classes up to {highest}; pass accuracy or "
            "matthews_correlation"
        )
    return float(needed("sklearn.metrics", "train").f1_score(labels.numpy(), predictions.numpy()))


def _matthews(labels: Tensor, predictions: Tensor) -> float:
    if (labels == labels[0]).all():
        raise _undefined(labels, "matthews_correlation", "are all equal")
    return float(needed("sklearn.metrics", "train").matthews_corrcoef(labels.numpy(), predictions.numpy()))


def _correlation(metric: str, name: str) -> Callable[[Tensor, Tensor], float]:
    def score(labels: Tensor, predictions: Tensor) -> float:
        if (labels == labels[0]).all():
            raise _undefined(labels, metric, "are all equal")
        if not predictions.isfinite().all():
            return math.nan
        if (predictions == predictions[0]).all():
            return 0.0
        return float(getattr(needed("scipy.stats", "train"), name)(predictions.numpy(), labels.numpy())[0])

    return score


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy, lowest=0.0, highest=1.0, uses_label_order=False, regression=False),
    "f1": Metric(_f1, lowest=0.0, highest=1.0, regression=False, label_sets=False),
    "matthews_correlation": Metric(
        _matthews, lowest=-1.0, highest=1.0, uses_label_order=False, regression=False, label_sets=False
    ),
    "pearson": Metric(
        _correlation("pearson", "pearsonr"), lowest=-1.0, highest=1.0, regression=True, label_sets=False
    ),
    "spearmanr": Metric(
        _correlation("spearmanr", "spearmanr"), lowest=-1.0, highest=1.0, regression=True, label_sets=False
    ),
    "f1_micro": Metric(
        _f1_of_sets("f1_micro"), lowest=0.0, highest=1.0, uses_label_order=False, regression=False, label_sets=True
    ),
    "f1_macro": Metric(
        _f1_of_sets("f1_macro"), lowest=0.0, highest=1.0, uses_label_order=False, regression=False, label_sets=True
    ),
}
"""Every task metric by its name."""


def task_metrics(num_labels: int, multi_label: bool = False) -> tuple[str, ...]:
    """Return the names of the metrics that are reported if none are chosen, the main one first.

    Args:
        num_labels: Number of labels; 1 for regression.
        multi_label: Whether a text may have several labels at once. Default: False.

    Examples:
        >>> task_metrics(3), task_metrics(1)
        (('accuracy',), ('spearmanr', 'pearson'))
    """
    if multi_label:
        return ("f1_micro", "f1_macro", "accuracy")
    return ("accuracy",) if num_labels > 1 else ("spearmanr", "pearson")


def as_metric(metric: MetricLike) -> Metric:
    """Return the metric of a name or of a function, for which higher is better; a `Metric` is returned as it is.

    Raises:
        ValueError: If no metric has this name.
        TypeError: If it is neither a name, a metric nor a function.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in METRICS:
            *names, last = METRICS
            raise ValueError(
                f"metric: got {metric!r}; choose {', '.join(names)} or {last}, or pass a Metric of your own"
                f"{did_you_mean(metric, METRICS)}"
            )
        return METRICS[metric]
    if callable(metric):
        return Metric(metric)
    raise TypeError(
        f"metric: got {metric!r}; pass a name, e.g. 'accuracy', or Metric(function, higher_is_better=...) with a "
        "function of true labels and predictions"
    )


def compute_score(metric: MetricLike, *, predictions: Any, references: Any) -> float:
    """Compute a task metric.

    Args:
        metric: Name of the metric, a key of `METRICS`: `"accuracy"`, `"f1"` (of class 1 of two classes),
            `"matthews_correlation"`, `"pearson"` or `"spearmanr"`; for several labels at once `"accuracy"` (of whole
            label sets), `"f1_micro"` or `"f1_macro"`; or a `Metric` or function of your own.
        predictions: Predicted classes, or predicted numbers for `"pearson"` and `"spearmanr"`, `(samples,)`; for
            several labels at once 1 for each label that is predicted and 0 for the others, `(samples, labels)`.
        references: True classes or numbers, `(samples,)`, or 0 and 1, `(samples, labels)`.

    Returns:
        The score. Accuracy and F1 are in [0, 1], correlations in [-1, 1]. The correlation of constant predictions
        is 0, and that of predictions with NaN or infinity is NaN.

    Raises:
        ValueError: If the metric is unknown, if predictions and references differ in shape, if predictions are no
            classes where the metric compares classes, if there are no references, if the metric is not defined for
            them (F1 without class 1, or without any label; a correlation of references that are all equal), or if F1
            gets more than two classes.
        TypeError: If `metric` is neither a name, a `Metric` nor a function.
        ImportError: If the extra `train` is not installed and the metric is not accuracy.

    Examples:
        >>> compute_score("f1", predictions=[1, 1, 0, 0], references=[1, 0, 1, 0])
        0.5
        >>> round(compute_score("pearson", predictions=[0.1, 0.4, 0.2], references=[1, 3, 2]), 6)
        0.981981
        >>> given, predicted = [[1, 0, 1], [0, 0, 1]], [[1, 0, 0], [0, 0, 1]]  # three labels at once
        >>> [compute_score(name, predictions=predicted, references=given) for name in ("accuracy", "f1_micro")]
        [0.5, 0.8]
    """
    known = as_metric(metric)
    predicted, labels = _tensor(predictions), _tensor(references)
    if not labels.numel():
        raise ValueError("references: got none; pass at least one")
    predicted, labels = (
        values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values for values in (predicted, labels)
    )
    sets = labels.ndim == 2
    if labels.ndim not in (1, 2) or predicted.shape != labels.shape or known.label_sets not in (None, sets):
        wanted = ["one number for each sample in both, shape (samples,)"] * (known.label_sets is not True)
        wanted += ["1 for each label and 0 for the others in both, shape (samples, labels)"] * (
            known.label_sets is not False
        )
        raise ValueError(
            f"predictions: got shape {tuple(predicted.shape)} for references of shape {tuple(labels.shape)}; pass "
            f"{', or with several labels at once '.join(wanted)}"
        )
    for name, values in {"predictions": predicted, "references": labels}.items() if sets else ():
        if ((values != 0) & (values != 1)).any():
            wrong = values[(values != 0) & (values != 1)][0].item()
            raise ValueError(f"{name}: got {wrong:.6g} for a label; pass 0 or 1, e.g. (logits > 0).long()")
    if sets:
        predicted, labels = predicted.long(), labels.long()
    if known.regression is False and predicted.is_floating_point() and not (predicted == predicted.round()).all():
        raise ValueError(
            f"predictions: got {predicted[predicted != predicted.round()][0]:.6g}, which is no class; pass class "
            "indices, e.g. logits.argmax(-1)"
        )
    return float(known.score(labels, predicted))


def _tensor(values: Any) -> Tensor:
    """Return values as a tensor on the CPU, of a dtype that NumPy has."""
    tensor = (values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))).detach().cpu()
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def check_classes(metric: str, classes: int, multi_label: bool = False) -> None:
    """Check that a metric exists and is defined for this kind of labels.

    Args:
        metric: Name of the metric.
        classes: Number of classes of the model; 1 for regression.
        multi_label: Whether a text may have several labels at once.

    Raises:
        ValueError: If no metric has this name, if it is for another kind of labels (classes, numbers, several labels
            at once), or if the metric is F1 and there are more than two classes.
    """
    known, regression = as_metric(metric), classes == 1 and not multi_label

    def suits(each: Metric) -> bool:
        return each.label_sets in (None, multi_label) and each.regression in (None, regression)

    if not suits(known):
        compares = "several labels" if known.label_sets else "numbers" if known.regression else "classes"
        predicts = "several labels" if multi_label else "one number" if regression else "one class"
        suitable = [name for name, each in METRICS.items() if suits(each) and (name != "f1" or classes == 2)]
        raise ValueError(
            f"metric: {metric} compares {compares} per text, but the model predicts {predicts}; pass "
            f"{' or '.join(suitable)}"
        )
    if metric == "f1" and classes > 2:
        raise ValueError(
            f"metric: f1 is defined for two classes, 0 and 1, but there are {classes} classes; pass accuracy or "
            "matthews_correlation"
        )
