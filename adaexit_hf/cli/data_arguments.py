"""Flags that select labelled texts: GLUE, SICK, data sets of the Hub, folders and files (needs the extra `train`)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from ..data.tasks import TASKS, Labels
from ..evaluation.metrics import check_classes
from ..hub.card_facts import CardDataset

GLUE = "nyu-mll/glue"


@dataclass(kw_only=True)
class DataArguments:
    """Flags that select texts, labels and metrics."""

    task_name: str | None = field(
        default=None, metadata={"help": f"One of {', '.join(TASKS)}. For other data pass --text_columns."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set on the Hub, or a local folder. Default: nyu-mll/glue."}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the data set. Default: the task's name on GLUE."}
    )
    dataset_revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit, e.g. refs/convert/parquet for a data set with a script."},
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "CSV, JSON or parquet file to evaluate on, instead of a data set."}
    )
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "One or two columns with texts. Default: those of the task."}
    )
    label_column: str = field(
        default="label", metadata={"help": "Column with classes (of any type), or with floats for regression."}
    )
    metrics: list[str] | None = field(
        default=None, metadata={"help": "Main metric first. Default: those of the task, or accuracy."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are truncated to this many tokens."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on this many rows per split, the same rows for every seed."}
    )

    def columns(self) -> tuple[str, ...]:
        """The one or two columns with texts.

        Raises:
            ValueError: The task is unknown, or there are no or more than two columns.
        """
        task = TASKS.get(self.task_name or "")
        columns = self.text_columns or (task.text_columns if task else None)
        if self.task_name and task is None and not columns:
            raise ValueError(
                f"task_name: got '{self.task_name}'; choose one of {', '.join(TASKS)}, or pass --text_columns"
            )
        if not columns or len(columns) > 2:
            raise ValueError(f"text_columns: got {columns}; pass one or two column names, or a --task_name of GLUE")
        return tuple(columns)

    def metric_names(self, labels: Labels) -> tuple[str, ...]:
        """The metrics to report, the main metric first.

        Raises:
            ValueError: A metric does not fit the labels.
        """
        task = TASKS.get(self.task_name or "")
        default = task.metrics if task else ("accuracy",) if labels.names else ("spearmanr", "pearson")
        metrics = tuple(self.metrics or default)
        if labels.names and {"pearson", "spearmanr"} & set(metrics):
            raise ValueError(
                f"label_column: '{self.label_column}' contains the classes {labels.names[:5]}, but {metrics} need "
                "numbers; pass the column with the scores as --label_column, or --metrics accuracy"
            )
        for metric in metrics:
            check_classes(metric, labels.num_labels)
        return metrics

    def published(self) -> dict[str, Any]:
        """All arguments; of a local path only the last part, since the file they are written to may be pushed."""
        return {
            name: Path(value).name if isinstance(value, str) and Path(value).exists() else value
            for name, value in vars(self).items()
        }

    def for_card(self) -> CardDataset:
        """The data set, as a model card names it."""
        pairs, task = len(self.columns()) == 2, self.task_name
        if self.validation_file:
            return CardDataset(Path(self.validation_file).name, pairs=pairs)
        name, config = self.dataset_name or GLUE, self.dataset_config or (task if task in TASKS else None)
        title = f"GLUE {task.upper()}" if task in TASKS and task != "sick" else " ".join(filter(None, [name, config]))
        hub_id = None if Path(name).exists() else name
        return CardDataset(title, hub_id, config if hub_id else None, self.dataset_revision, pairs)

    def evaluation_names(self) -> tuple[str, ...]:
        """The names that the split for choosing the threshold may have, in order of preference."""
        task = TASKS.get(self.task_name or "")
        return task.evaluation_splits if task else ("validation",)


def load_splits(arguments: DataArguments, train_file: str | None = None) -> datasets.DatasetDict:
    """Load the splits of a data set, or of files.

    Args:
        arguments: Which data set or files.
        train_file: File with the training split.

    Returns:
        All splits, by name.

    Raises:
        ValueError: Neither a data set nor a file is given, or a file has an unknown format or no readable rows.
    """
    files = {"train": train_file, "validation": arguments.validation_file}
    if any(files.values()):
        formats = {Path(file).suffix.lstrip(".").replace("jsonl", "json") for file in files.values() if file}
        files_text = " and ".join(f"{name}_file '{file}'" for name, file in files.items() if file)
        if len(formats) > 1 or not formats <= {"csv", "json", "parquet"}:
            raise ValueError(f"got {files_text}; pass .csv, .json, .jsonl or .parquet files, all of one format")
        try:
            return datasets.load_dataset(
                formats.pop(), data_files={name: file for name, file in files.items() if file}
            )
        except (ValueError, StopIteration, DatasetGenerationError) as error:
            cause = error.__cause__ or error
            # A file without rows raises StopIteration if it is JSON Lines, else an error with one of these messages.
            empty = "No columns to parse", "corresponds to no data"
            if isinstance(cause, StopIteration) or any(words in str(cause) for words in empty):
                message = f"got {files_text}, which has no rows ({cause}); pass files with rows"
            else:
                message = f"got {files_text}, which could not be read: {cause}"
            raise ValueError(message) from error
    name = arguments.dataset_name or GLUE
    glue = arguments.task_name in TASKS and arguments.task_name != "sick"
    if arguments.dataset_name is None and not glue:
        raise ValueError(
            f"task_name: got {arguments.task_name!r}; only GLUE tasks have a default data set; pass --dataset_name "
            "(for SICK a data set with columns sentence1, sentence2 and label, the relatedness) or --validation_file"
        )
    config = arguments.dataset_config or (arguments.task_name if glue else None)
    return datasets.load_dataset(name, config, revision=arguments.dataset_revision)


def reserve_validation(
    splits: datasets.DatasetDict, validation_names: tuple[str, ...], fraction: float | None
) -> datasets.DatasetDict:
    """Split off a fraction of train as the validation split, if there is none.

    Args:
        splits: The splits of a data set.
        validation_names: The names that a validation split may have; a new one gets the first.
        fraction: Fraction of train in (0, 1), or None to leave the splits as they are.

    Raises:
        ValueError: The fraction is not between 0 and 1.
    """
    if fraction is None or "train" not in splits or any(name in splits for name in validation_names):
        return splits
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction: got {fraction}; pass a fraction of train between 0 and 1, e.g. 0.1")
    parts = splits["train"].train_test_split(test_size=fraction, seed=0)
    return datasets.DatasetDict({**splits, "train": parts["train"], validation_names[0]: parts["test"]})


def evaluation_splits(
    arguments: DataArguments, splits: datasets.DatasetDict, required: tuple[str, ...] = ()
) -> list[str]:
    """The names of the splits to evaluate on; the threshold is chosen on the first.

    Args:
        arguments: Which data set.
        splits: Its splits.
        required: Other splits that must be present.

    Raises:
        ValueError: There is no split to evaluate on, or a required split is missing.
    """
    candidates = arguments.evaluation_names()
    names = [name for name in candidates if name in splits]
    if not names or not set(required) <= set(splits):
        raise ValueError(
            f"dataset: has splits {', '.join(splits)}; needs {' and '.join([*required, ' or '.join(candidates)])}"
            + ("; --validation_fraction 0.1 takes the latter from train" if required else "")
        )
    # A labelled test split measures the chosen threshold on new data. GLUE's test splits have no labels (-1).
    if "test" in splits and arguments.label_column in splits["test"].column_names:
        test_labels = splits["test"][arguments.label_column]
        names += ["test"] if all(label is not None and label != -1 for label in test_labels) else []
    return names


def first_rows(dataset: datasets.Dataset, count: int | None, seed: int = 0) -> datasets.Dataset:
    """The first `count` rows after a shuffle; all rows, in order, if there are no more or `count` is None."""
    return dataset if count is None or count >= len(dataset) else dataset.shuffle(seed=seed).select(range(count))
