"""GLUE and SICK: which columns, which metric; and any other labelled text, tokenized (extra `train`)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..utils.imports import needs

with needs("train"):
    import datasets


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
