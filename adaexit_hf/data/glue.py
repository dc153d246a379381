"""Columns and metrics of GLUE and SICK; without `datasets`."""

from typing import NamedTuple


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
