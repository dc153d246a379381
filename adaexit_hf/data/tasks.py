"""Columns and metrics of GLUE and SICK; checking and tokenizing any labelled text data set (extra `train`)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..utils.imports import needs
from ..utils.spelling import did_you_mean

with needs("train"):
    import datasets


class Task(NamedTuple):
    """What to read and to measure in a data set.

    Attributes:
        text_columns: one column with texts, or two for pairs of texts.
        metrics: names of the metrics, as for `compute_score`, the most important one first.
        evaluation_splits: the splits to evaluate on.
    """

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


class Labels(NamedTuple):
    """The kind of labels that a data set has.

    Attributes:
        names: names of the classes, in the order of their indices; None for regression.

    >>> Labels(["negative", "positive"]).num_labels, Labels(None).num_labels
    (2, 1)
    """

    names: list[str] | None

    @property
    def num_labels(self) -> int:
        return 1 if self.names is None else len(self.names)


def check_columns(dataset: datasets.Dataset, text_columns: Sequence[str], label_column: str, split: str) -> None:
    """Check that a data set has these columns, without missing values.

    Args:
        dataset: one split.
        text_columns: the columns with texts.
        label_column: the column with labels.
        split: name of the split in error messages.

    Raises:
        ValueError: if a column or a value is missing; the message names the split and the column.
    """
    for column in (*text_columns, label_column):
        if column not in dataset.column_names:
            raise ValueError(
                f"split '{split}' has no column '{column}'; it has {', '.join(dataset.column_names)}. "
                f"Pass --text_columns and --label_column{did_you_mean(column, dataset.column_names)}"
            )
        missing = sum(value is None or value != value for value in dataset[column])
        if missing:
            what = "labels" if column == label_column else "texts"
            raise ValueError(
                f"split '{split}': column '{column}' lacks {missing} of {len(dataset)} {what}; remove these rows"
            )


def labels_of(dataset: datasets.Dataset, column: str) -> Labels:
    """The kind of labels in a column.

    Args:
        dataset: one split, usually the training set.
        column: the column with labels.

    Returns:
        The names of the column's `ClassLabel`; no names (regression) for floating-point numbers; otherwise the sorted
        distinct values.
    """
    feature = dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return Labels(list(feature.names))
    if feature.dtype.startswith("float"):
        return Labels(None)
    return Labels([str(value) for value in sorted(set(dataset[column]))])


def check_labels(dataset: datasets.Dataset, column: str, labels: Labels, split: str) -> None:
    """Check that every label of a data set can be used, before it is tokenized.

    Args:
        dataset: one split, whose column has no missing values, as `check_columns` checks.
        column: the column with labels.
        labels: the labels of the training set or of the model.
        split: name of the split in error messages.

    Raises:
        ValueError: if a label is none of the classes, or no finite number in regression.
    """
    values = dataset[column]
    if labels.names is None:
        wrong = [value for value in values if isinstance(value, bool | str) or not math.isfinite(value)]
        if wrong:
            raise ValueError(
                f"split '{split}': column '{column}' contains {wrong[0]!r}, but the labels are numbers; pass the "
                "column with the scores as --label_column"
            )
        return
    unknown = {name for name in class_names(dataset, column) if name not in labels.names}
    if unknown:
        raise ValueError(
            f"split '{split}': column '{column}': labels {sorted(unknown)[:5]} do not occur in the training set, "
            f"which has {labels.names[:5]}; remove these rows, or pass another --label_column"
        )


def class_names(dataset: datasets.Dataset, column: str) -> list[str]:
    """Names of the classes that occur in a column; of a `ClassLabel` those of its feature, else the values as text.

    An index that a `ClassLabel` has no name for, such as the -1 of a row without a label, is its own name.

    >>> class_names(datasets.Dataset.from_dict({"label": [3, 1, 3]}), "label")
    ['1', '3']
    """
    feature, values = dataset.features[column], sorted(set(dataset[column]))
    if isinstance(feature, datasets.ClassLabel):
        return [feature.names[value] if 0 <= value < len(feature.names) else str(value) for value in values]
    return [str(value) for value in values]


def tokenize(
    dataset: datasets.Dataset,
    tokenizer: Any,
    text_columns: Sequence[str],
    label_column: str,
    labels: Labels,
    max_length: int,
) -> datasets.Dataset:
    """Tokenize a data set, without padding.

    Args:
        dataset: one split.
        tokenizer: the tokenizer of the model.
        text_columns: one column with texts, or two for pairs of texts.
        label_column: the column with labels.
        labels: the labels of the training set, from `labels_of`. Classes are found by their names, so a `ClassLabel`
            may have them in another order.
        max_length: number of tokens after which a text is truncated.

    Returns:
        A data set with the columns of the tokenizer and `labels`; the other columns are removed.

    Raises:
        ValueError: if a label does not occur in the training set.
    """
    feature = dataset.features[label_column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    class_indices = None if labels.names is None else {name: index for index, name in enumerate(labels.names)}

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [[str(text) for text in rows[column]] for column in text_columns]
        encoded = dict(tokenizer(*texts, truncation=True, max_length=max_length))
        values = rows[label_column]
        if class_indices is not None:
            named = [str(value) if names is None or not 0 <= value < len(names) else names[value] for value in values]
            unknown = set(named) - set(class_indices)
            if unknown:
                raise ValueError(f"column '{label_column}': labels {sorted(unknown)} do not occur in the training set")
            values = [class_indices[name] for name in named]
        return encoded | {"labels": values}

    return dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="Tokenizing")
