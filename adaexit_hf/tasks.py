"""GLUE and SICK: which columns, which metric; and any other labelled text, tokenized (extra `train`)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .curves import METRICS
from .utils.imports import needs

with needs("train"):
    import datasets
    import evaluate
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


class Task(NamedTuple):
    """Columns of a task, its metrics (headline first), and the splits to evaluate on."""

    text_columns: tuple[str, ...]
    metrics: tuple[str, ...]
    evaluation_splits: tuple[str, ...] = ("validation",)


TASKS: dict[str, Task] = {
    "cola": Task(("sentence",), ("matthews_correlation",)),
    "mnli": Task(("premise", "hypothesis"), ("accuracy",), ("validation_matched", "validation_mismatched")),
    "mrpc": Task(("sentence1", "sentence2"), ("f1", "accuracy")),
    "qnli": Task(("question", "sentence"), ("accuracy",)),
    "qqp": Task(("question1", "question2"), ("f1", "accuracy")),
    "rte": Task(("sentence1", "sentence2"), ("accuracy",)),
    "sick": Task(("sentence1", "sentence2"), ("spearmanr", "pearson")),
    "sst2": Task(("sentence",), ("accuracy",)),
    "stsb": Task(("sentence1", "sentence2"), ("spearmanr", "pearson")),
    "wnli": Task(("sentence1", "sentence2"), ("accuracy",)),
}


def compute_score(metric: str, predictions: Any, references: Any) -> float:
    """One metric of GLUE, by scikit-learn or scipy.

    Args:
        metric: "accuracy", "f1" (of class 1), "matthews_correlation", "pearson" or "spearmanr".
        predictions: classes, or numbers for the correlations, (samples,).
        references: the same for the truth.

    Returns:
        the score: accuracy and F1 in [0, 1], correlations in [-1, 1]. A correlation with constant predictions is 0,
        and with one that is not finite NaN.

    >>> compute_score("f1", [1, 1, 0, 0], [1, 0, 1, 0]), round(compute_score("pearson", [0.1, 0.4, 0.2], [1, 3, 2]), 6)
    (0.5, 0.981981)

    Raises:
        ValueError: an unknown metric; no references, or such that are all the same, or for F1 have no class 1, where
            the metric is not defined; more than two classes for F1.
    """
    given, wanted = np.asarray(predictions), np.asarray(references)
    if not wanted.size:
        raise ValueError("references: got none; pass at least one")
    one_class = not bool((wanted == 1).any()) if metric == "f1" else bool((wanted == wanted[:1]).all())
    if one_class and metric in METRICS and metric != "accuracy":
        what = "have no class 1" if metric == "f1" else "are all the same"
        raise ValueError(
            f"references: the {len(wanted)} labels {what}, where {metric} is not defined; pass data with other "
            "labels, too, or another metric"
        )
    if metric == "accuracy":
        return float(accuracy_score(references, predictions))
    if metric == "f1":
        highest = max(given.max(), wanted.max())
        if highest > 1:
            raise ValueError(
                f"metric: f1 is of class 1 of two, and there are classes up to {highest}; pass accuracy or "
                "matthews_correlation"
            )
        return float(f1_score(references, predictions))
    if metric == "matthews_correlation":
        return float(matthews_corrcoef(references, predictions))
    if metric in ("pearson", "spearmanr"):
        if not np.isfinite(given).all():
            return float("nan")
        if (given == given[:1]).all():
            return 0.0
        correlations: dict[str, Callable[..., Any]] = {"pearson": pearsonr, "spearmanr": spearmanr}
        return float(correlations[metric](predictions, references)[0])
    raise ValueError(f"metric: got {metric!r}; choose {', '.join(METRICS[:-1])} or {METRICS[-1]}")


def check_classes(metric: str, classes: int) -> None:
    """Refuse F1 of a model that knows more than two classes, whichever of them occur.

    Raises:
        ValueError: it is that.
    """
    if metric == "f1" and classes > 2:
        raise ValueError(
            f"metric: f1 is of class 1 of two, and there are {classes} classes; pass accuracy or matthews_correlation"
        )


class GlueMetric(evaluate.Metric):
    """The metrics of a task as an `evaluate.Metric`: needs no network, and combines with others.

    Args:
        metrics: names as in `compute_score`.

    >>> GlueMetric(("f1", "accuracy")).compute(predictions=[1, 1, 0, 0], references=[1, 0, 1, 0])
    {'f1': 0.5, 'accuracy': 0.5}
    """

    def __init__(self, metrics: Sequence[str], **kwargs: Any) -> None:
        self.metrics = tuple(metrics)
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        kind = "float32" if {"pearson", "spearmanr"} & set(self.metrics) else "int64"
        return evaluate.MetricInfo(
            description=f"GLUE: {', '.join(self.metrics)}",
            citation="",
            inputs_description="predictions and references, one number or class per sample",
            features=datasets.Features({name: datasets.Value(kind) for name in ("predictions", "references")}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {name: compute_score(name, predictions, references) for name in self.metrics}


class Labels(NamedTuple):
    """What the labels of a data set are: class names, or None for numbers (regression)."""

    names: list[str] | None

    @property
    def num_labels(self) -> int:
        return 1 if self.names is None else len(self.names)


def check_columns(dataset: datasets.Dataset, text_columns: Sequence[str], label_column: str, split: str) -> None:
    """Every column is there, and nothing in it is missing.

    Raises:
        ValueError: naming the split, the column, and what there is.
    """
    for column in (*text_columns, label_column):
        if column not in dataset.column_names:
            raise ValueError(
                f"split '{split}' has no column '{column}'; it has {', '.join(dataset.column_names)}. "
                "Pass --text_columns and --label_column"
            )
        missing = sum(value is None or value != value for value in dataset[column])
        if missing:
            what = "labels" if column == label_column else "texts"
            raise ValueError(
                f"split '{split}': column '{column}' lacks {missing} of {len(dataset)} {what}; drop these rows"
            )


def labels_of(dataset: datasets.Dataset, column: str) -> Labels:
    """Class names from the data set's own ClassLabel, else from the values that occur; floats mean regression."""
    feature = dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return Labels(list(feature.names))
    if feature.dtype.startswith("float"):
        return Labels(None)
    return Labels([str(value) for value in sorted(set(dataset[column]))])


def tokenize(
    dataset: datasets.Dataset,
    tokenizer: Any,
    text_columns: Sequence[str],
    label_column: str,
    labels: Labels,
    max_length: int,
) -> datasets.Dataset:
    """Rows with what the model takes and `labels`, not padded.

    Raises:
        ValueError: a label that the training set does not have.
    """
    feature = dataset.features[label_column]
    ids = None
    if labels.names is not None and not isinstance(feature, datasets.ClassLabel):
        ids = {name: index for index, name in enumerate(labels.names)}

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [[str(text) for text in rows[column]] for column in text_columns]
        encoded = dict(tokenizer(*texts, truncation=True, max_length=max_length))
        values = rows[label_column]
        if ids is not None:
            unknown = {str(value) for value in values} - set(ids)
            if unknown:
                raise ValueError(f"column '{label_column}': labels {sorted(unknown)} do not occur in the training set")
            values = [ids[str(value)] for value in values]
        return encoded | {"labels": values}

    return dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="Tokenizing")


def metric_function(metric: str) -> Any:
    """`compute_score` of one metric, as `tradeoff_curve` takes it."""

    def score(predictions: torch.Tensor, references: torch.Tensor) -> float:
        return compute_score(metric, predictions.numpy(), references.numpy())

    return score
