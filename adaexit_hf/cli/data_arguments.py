"""Labelled texts to train and evaluate on: GLUE, SICK, data sets of the Hub, folders and files (extra `train`)."""

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
    """Which texts and labels."""

    task_name: str | None = field(
        default=None, metadata={"help": f"One of {', '.join(TASKS)}; else give the columns."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Hub data set or folder. Default: nyu-mll/glue."})
    dataset_config: str | None = field(
        default=None, metadata={"help": "Its configuration. Default: the task's name on GLUE."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Its branch, e.g. refs/convert/parquet for a data set that is a script."}
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "CSV, JSON or parquet file, in place of a data set."}
    )
    text_columns: list[str] | None = field(default=None, metadata={"help": "One or two. Default: the task's."})
    label_column: str = field(default="label", metadata={"help": "Classes (any type), or floats for regression."})
    metrics: list[str] | None = field(
        default=None, metadata={"help": "Headline first. Default: the task's, or accuracy."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on so many of each split, the same rows for every seed."}
    )

    def columns(self) -> tuple[str, ...]:
        """The columns of the texts, one or two."""
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
        """The metrics to report, headline first."""
        task = TASKS.get(self.task_name or "")
        usual = task.metrics if task else ("accuracy",) if labels.names else ("spearmanr", "pearson")
        metrics = tuple(self.metrics or usual)
        if labels.names and {"pearson", "spearmanr"} & set(metrics):
            raise ValueError(
                f"label_column: '{self.label_column}' holds the classes {labels.names[:5]}, but {metrics} need "
                "numbers; pass the column of the scores as --label_column, or --metrics accuracy"
            )
        for metric in metrics:
            check_classes(metric, labels.num_labels)
        return metrics

    def published(self) -> dict[str, Any]:
        """All arguments, but without the folders of this machine: what they are written into may be pushed."""
        return {
            name: Path(value).name if isinstance(value, str) and Path(value).exists() else value
            for name, value in vars(self).items()
        }

    def for_card(self) -> CardDataset:
        """How a model card names the data."""
        pairs, task = len(self.columns()) == 2, self.task_name
        if self.validation_file:
            return CardDataset(Path(self.validation_file).name, pairs=pairs)
        name, config = self.dataset_name or GLUE, self.dataset_config or (task if task in TASKS else None)
        title = f"GLUE {task.upper()}" if task in TASKS and task != "sick" else " ".join(filter(None, [name, config]))
        hub_id = None if Path(name).exists() else name
        return CardDataset(title, hub_id, config if hub_id else None, self.dataset_revision, pairs)

    def evaluation_names(self) -> tuple[str, ...]:
        """The splits that are evaluated on by right."""
        task = TASKS.get(self.task_name or "")
        return task.evaluation_splits if task else ("validation",)


def load_splits(arguments: DataArguments, train_file: str | None = None) -> datasets.DatasetDict:
    """The splits of a data set, or of files.

    Raises:
        ValueError: neither is named, a file of an unknown kind, or one that is broken or without rows.
    """
    files = {"train": train_file, "validation": arguments.validation_file}
    if any(files.values()):
        kinds = {Path(file).suffix.lstrip(".").replace("jsonl", "json") for file in files.values() if file}
        named = " and ".join(f"{name}_file '{file}'" for name, file in files.items() if file)
        if len(kinds) > 1 or not kinds <= {"csv", "json", "parquet"}:
            raise ValueError(f"got {named}; pass .csv, .json, .jsonl or .parquet files, all of one kind")
        try:
            return datasets.load_dataset(kinds.pop(), data_files={name: file for name, file in files.items() if file})
        except (ValueError, StopIteration, DatasetGenerationError) as error:
            why = error.__cause__ or error
            # What a file without rows gives: JSON Lines, CSV, and a file that has columns alone.
            empty = "No columns to parse", "corresponds to no data"
            if isinstance(why, StopIteration) or any(words in str(why) for words in empty):
                told = f"got {named}, of which no rows could be read ({why}); pass files with rows"
            else:
                told = f"got {named}, which could not be read: {why}"
            raise ValueError(told) from error
    name = arguments.dataset_name or GLUE
    glue = arguments.task_name in TASKS and arguments.task_name != "sick"
    if arguments.dataset_name is None and not glue:
        raise ValueError(
            f"task_name: got {arguments.task_name!r}; only GLUE's tasks have a default data set, pass --dataset_name "
            "(for SICK one with sentence1, sentence2 and the relatedness in label) or --validation_file"
        )
    config = arguments.dataset_config or (arguments.task_name if glue else None)
    return datasets.load_dataset(name, config, revision=arguments.dataset_revision)


def reserve_validation(
    splits: datasets.DatasetDict, known: tuple[str, ...], fraction: float | None
) -> datasets.DatasetDict:
    """With a share of train as validation, if there is none and a share is given."""
    if fraction is None or "train" not in splits or any(name in splits for name in known):
        return splits
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction: got {fraction}; pass a share of train between 0 and 1, e.g. 0.1")
    parts = splits["train"].train_test_split(test_size=fraction, seed=0)
    return datasets.DatasetDict({**splits, "train": parts["train"], known[0]: parts["test"]})


def evaluation_splits(
    arguments: DataArguments, splits: datasets.DatasetDict, others: tuple[str, ...] = ()
) -> list[str]:
    """The splits to report on; the threshold is chosen on the first.

    Raises:
        ValueError: there is none, or one of the `others` that are needed is not there.
    """
    known = arguments.evaluation_names()
    found = [name for name in known if name in splits]
    if not found or not set(others) <= set(splits):
        raise ValueError(
            f"dataset: has splits {', '.join(splits)}; needs {' and '.join([*others, ' or '.join(known)])}"
            + ("; --validation_fraction 0.1 takes the latter from train" if others else "")
        )
    # GLUE's test sets carry -1 for a label; a labelled one tells what the chosen threshold is worth.
    if "test" in splits and arguments.label_column in splits["test"].column_names:
        held_out = splits["test"][arguments.label_column]
        found += ["test"] if all(value is not None and value != -1 for value in held_out) else []
    return found


def first_rows(dataset: datasets.Dataset, count: int | None, seed: int = 0) -> datasets.Dataset:
    """So many rows after a shuffle, or all where there are no more."""
    return dataset if count is None or count >= len(dataset) else dataset.shuffle(seed=seed).select(range(count))
