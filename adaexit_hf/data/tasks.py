"""Checking and tokenizing any labelled text data set (extra `train`)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..utils.empty_texts import is_empty
from ..utils.imports import needs
from ..utils.spelling import did_you_mean

with needs("train"):
    import datasets


class Labels(NamedTuple):
    """The kind of labels that a data set has.

    Attributes:
        names: names of the classes, in the order of their indices; None for regression.
        multi_label: whether a text may have several of them at once.

    >>> Labels(["negative", "positive"]).num_labels, Labels(None).num_labels
    (2, 1)
    """

    names: list[str] | None
    multi_label: bool = False

    @property
    def num_labels(self) -> int:
        return 1 if self.names is None else len(self.names)


def is_missing(value: Any) -> bool:
    """Return whether a value is missing: as `is_empty`, or a list with None.

    >>> [is_missing(value) for value in (None, math.nan, " ", ["a", None], 0, "a", [])]
    [True, True, True, True, False, False, False]
    """
    return is_empty(value) or (isinstance(value, list) and None in value)


def without_empty(dataset: datasets.Dataset, text_columns: Sequence[str]) -> datasets.Dataset:
    """The rows that have a text in each of the columns with texts.

    >>> rows = datasets.Dataset.from_dict({"text": ["a", " ", None, "b"]})
    >>> without_empty(rows, ["text"])["text"][:]
    ['a', 'b']
    """
    texts = zip(*(dataset[column] for column in text_columns), strict=True)
    kept = [row for row, several in enumerate(texts) if not any(map(is_missing, several))]
    return dataset if len(kept) == len(dataset) else dataset.select(kept)


def check_columns(dataset: datasets.Dataset, text_columns: Sequence[str], label_column: str, split: str) -> None:
    """Check that a data set has these columns, without missing values and empty texts.

    Args:
        dataset: one split.
        text_columns: the columns with texts.
        label_column: the column with labels.
        split: name of the split in error messages.

    Raises:
        ValueError: if a column or a value is missing, where the message names split and column; or if a column is
            passed twice.
    """
    columns = (*text_columns, label_column)
    if len(set(columns)) < len(columns):
        raise ValueError(
            f"text_columns, label_column: got {', '.join(columns)}; pass different columns for the texts and the label"
        )
    for column in columns:
        if column not in dataset.column_names:
            raise ValueError(
                f"split '{split}' has no column '{column}'; it has {', '.join(dataset.column_names)}. "
                f"Pass --text_columns and --label_column{did_you_mean(column, dataset.column_names)}"
            )
        missing = [str(row) for row, value in enumerate(dataset[column]) if is_missing(value)]
        if missing:
            what, drop = ("labels", "") if column == label_column else ("texts", ", or pass --drop_empty")
            where = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
            raise ValueError(
                f"split '{split}': column '{column}' lacks {len(missing)} of {len(dataset)} {what}, in row {where} "
                f"(the first is row 0); remove these rows{drop}"
            )


def labels_of(dataset: datasets.Dataset, column: str) -> Labels:
    """The kind of labels in a column.

    Args:
        dataset: one split, usually the training set.
        column: the column with labels.

    Returns:
        The names of the column's `ClassLabel`; no names (regression) for floating-point numbers; otherwise the sorted
        distinct values. If the values are lists, they are those of several labels at once.

    Raises:
        ValueError: if the values are lists of floating-point numbers.
    """
    feature, multi_label = dataset.features[column], has_lists(dataset, column)
    inner = feature.feature if multi_label else feature
    if isinstance(inner, datasets.ClassLabel):
        return Labels(list(inner.names), multi_label)
    if inner.dtype.startswith("float"):
        if multi_label:
            raise ValueError(
                f"label_column: '{column}' has lists of numbers, {dataset[column][0]!r:.40} in the first row; pass a "
                "column with lists of the labels that each text has, their names or class indices, or columns of 0 "
                "and 1 as --label_columns"
            )
        return Labels(None)
    return Labels([str(value) for value in sorted(set(values_of(dataset, column)))], multi_label)


def has_lists(dataset: datasets.Dataset, column: str) -> bool:
    """Whether the values of a column are lists of labels, those that each text has at once."""
    return hasattr(dataset.features[column], "feature")


def values_of(dataset: datasets.Dataset, column: str) -> list[Any]:
    """All labels in a column, one after the other if its values are lists.

    >>> values_of(datasets.Dataset.from_dict({"label": [["rude", "short"], [], ["rude"]]}), "label")
    ['rude', 'short', 'rude']
    """
    values = dataset[column]
    return [label for labels in values for label in labels] if has_lists(dataset, column) else list(values)


def check_labels(dataset: datasets.Dataset, column: str, labels: Labels, split: str) -> None:
    """Check that every label of a data set can be used, before it is tokenized.

    Args:
        dataset: one split, whose column has no missing values, as `check_columns` checks.
        column: the column with labels.
        labels: the labels of the training set or of the model.
        split: name of the split in error messages.

    Raises:
        ValueError: if a label is none of the classes, or no finite number in regression; if there are lists of labels
            where there should be single ones, or the other way round; or if a list has a label twice.
    """
    values = dataset[column]
    if has_lists(dataset, column) != labels.multi_label:
        kinds = ("one label per text", "lists of labels")
        raise ValueError(
            f"split '{split}': column '{column}' has {kinds[not labels.multi_label]}, but the training set or the "
            f"model has {kinds[labels.multi_label]}; pass another --label_column"
            + (", or columns of 0 and 1 as --label_columns" if labels.multi_label else "")
        )
    if labels.multi_label:
        if len(values) and all(len(value) == 2 and set(value) <= {0, 1} for value in values):
            raise ValueError(
                f"split '{split}': column '{column}' has two numbers for every text, each 0 or 1; "
                "pass lists of the labels that each text has, as names, or columns of 0 and 1 as --label_columns"
            )
        twice = next((value for value in values if len(set(value)) < len(value)), None)
        if twice is not None:
            raise ValueError(
                f"split '{split}': column '{column}' contains {twice!r:.80}, with a label twice; pass lists of the "
                "labels that each text has, not of 0 and 1, or columns of 0 and 1 as --label_columns"
            )
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
    feature, values = dataset.features[column], sorted(set(values_of(dataset, column)))
    feature = feature.feature if has_lists(dataset, column) else feature
    if isinstance(feature, datasets.ClassLabel):
        return [feature.names[value] if 0 <= value < len(feature.names) else str(value) for value in values]
    return [str(value) for value in values]


def tokenize(
    dataset: datasets.Dataset,
    tokenizer: Any,
    text_columns: Sequence[str],
    label_column: str,
    labels: Labels,
    keep: str | None = None,
) -> datasets.Dataset:
    """Tokenize a data set, without padding. Texts are truncated to the tokenizer's `model_max_length`.

    Args:
        dataset: one split.
        tokenizer: the tokenizer of the model.
        text_columns: one column with texts, or two for pairs of texts.
        label_column: the column with labels.
        labels: the labels of the training set, from `labels_of`. Classes are found by their names, so a `ClassLabel`
            may have them in another order.
        keep: another column to keep. Default: none.

    Returns:
        A data set with the columns of the tokenizer, `labels` and `keep`; the other columns are removed. With several
        labels at once `labels` is a list with 1.0 for each label that the text has and 0.0 for the others.

    Raises:
        ValueError: if a label does not occur in the training set.
    """
    feature = dataset.features[label_column]
    feature = feature.feature if labels.multi_label else feature
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    class_indices = None if labels.names is None else {name: index for index, name in enumerate(labels.names)}

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [[str(text) for text in rows[column]] for column in text_columns]
        encoded = dict(tokenizer(*texts, truncation=True))
        values = rows[label_column]
        if class_indices is not None:
            named = [
                [str(value) if names is None or not 0 <= value < len(names) else names[value] for value in several]
                for several in (values if labels.multi_label else [[value] for value in values])
            ]
            unknown = {name for several in named for name in several} - set(class_indices)
            if unknown:
                raise ValueError(f"column '{label_column}': labels {sorted(unknown)} do not occur in the training set")
            if labels.multi_label:
                values = [[float(name in several) for name in class_indices] for several in named]
            else:
                values = [class_indices[name] for (name,) in named]
        return encoded | {"labels": values}

    removed = [name for name in dataset.column_names if name != keep]
    return dataset.map(encode, batched=True, remove_columns=removed, desc="Tokenizing")
