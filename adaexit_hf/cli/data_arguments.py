"""Flags that select labelled texts: GLUE, SICK, data sets of the Hub, folders and files (needs the extra `train`)."""

import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError

from ..data.glue import TASKS
from ..data.tasks import Labels, check_columns, without_empty
from ..evaluation.metrics import check_classes, task_metrics
from ..hub.card_facts import CardDataset
from ..inference.text_files import ROW_KINDS, read_rows
from ..utils.spelling import did_you_mean
from .columns import LABEL, SAMPLE, guess_label_column, guess_text_columns
from .options import Fraction

GLUE = "nyu-mll/glue"
# The fraction of train that becomes the validation split where there is none.
HELD_OUT = 0.1


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
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "File to train on, instead of a data set: .csv, .tsv, .jsonl, .json or .parquet. Without "
            "--validation_file a tenth of it is held out; pass it to other commands to evaluate on these rows."
        },
    )
    validation_file: str | None = field(
        default=None,
        metadata={"help": "File to evaluate on, instead of a data set: .csv, .tsv, .jsonl, .json or .parquet."},
    )
    validation_fraction: Fraction | None = field(
        default=None,
        metadata={
            "help": "If there is no validation split: take this fraction of train, its share of every class, the same "
            "rows for every seed. Default: 0.1 with adaexit train or --train_file."
        },
    )
    delimiter: str | None = field(
        default=None,
        metadata={"help": "What separates the fields of .csv files. Default: found out, of , ; tab and |."},
    )
    text_columns: list[str] | None = field(
        default=None,
        metadata={
            "aliases": ["--text_column"],
            "help": "One or two columns with texts. Default: those of the task, or guessed if only one choice makes "
            "sense.",
        },
    )
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with classes (of any type), with floats for regression, or with lists of classes for "
            "several labels at once. Default: label, or guessed if only one choice makes sense."
        },
    )
    label_columns: list[str] | None = field(
        default=None,
        metadata={"help": "Several columns of 0 and 1, one per label, for several labels at once."},
    )
    drop_empty: bool = field(
        default=False, metadata={"help": "Leave out rows without a text, which are otherwise an error."}
    )
    metrics: list[str] | None = field(
        default=None, metadata={"help": "Main metric first. Default: those of the task, or accuracy."}
    )
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
                f"{did_you_mean(self.task_name, TASKS)}"
            )
        if not columns or len(columns) > 2:
            raise ValueError(f"text_columns: got {columns}; pass one or two column names, or a --task_name of GLUE")
        return tuple(columns)

    def label(self) -> str:
        """The column with the labels."""
        return self.label_column or LABEL

    def guess_columns(self, rows: datasets.Dataset, pairs: bool | None) -> None:
        """Set the columns that were not passed, and say on stderr which they are.

        Args:
            rows: The rows of a split.
            pairs: Whether there are pairs of texts; None if that is not known.

        Raises:
            ValueError: None or several choices make sense.
        """
        labels = self.label_columns or ([self.label_column] if self.label_column else [])
        texts = self.text_columns or []
        if self.task_name or (texts and (labels or LABEL in rows.column_names)):
            return  # nothing to guess; the names of a task are those of GLUE
        # Spread over the split, since the first rows of a file may all have the same label.
        sample = rows.select(range(0, len(rows), -(-len(rows) // SAMPLE) or 1)).to_list()
        guessed = []
        if not texts:
            self.text_columns = guess_text_columns(sample, pairs, labels)
            guessed.append(f"text_columns {' '.join(self.text_columns)}")
        if not labels:
            self.label_column = guess_label_column(sample, self.text_columns or [])
            guessed.append(f"label_column {self.label_column}")
        print(
            f"adaexit: {', '.join(guessed)} (guessed; pass --text_columns, --label_column for others)", file=sys.stderr
        )

    def metric_names(self, labels: Labels) -> tuple[str, ...]:
        """The metrics to report, the main metric first.

        Raises:
            ValueError: A metric does not fit the labels.
        """
        task = TASKS.get(self.task_name or "")
        default = task.metrics if task else task_metrics(labels.num_labels, labels.multi_label)
        metrics = tuple(self.metrics or default)
        if labels.names and {"pearson", "spearmanr"} & set(metrics):
            raise ValueError(
                f"label_column: '{self.label()}' contains the classes {labels.names[:5]}, but {metrics} need "
                "numbers; pass the column with the scores as --label_column, or --metrics accuracy"
            )
        for metric in metrics:
            check_classes(metric, labels.num_labels, labels.multi_label)
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
        if self.validation_file or self.train_file:
            return CardDataset(Path(cast(str, self.validation_file or self.train_file)).name, pairs=pairs)
        name, config = self.dataset_name or GLUE, self.dataset_config or (task if task in TASKS else None)
        title = f"GLUE {task.upper()}" if task in TASKS and task != "sick" else " ".join(filter(None, [name, config]))
        hub_id = None if Path(name).exists() else name
        return CardDataset(title, hub_id, config if hub_id else None, self.dataset_revision, pairs)

    def evaluation_names(self) -> tuple[str, ...]:
        """The names that the split for choosing the threshold may have, in order of preference."""
        task = TASKS.get(self.task_name or "")
        return task.evaluation_splits if task else ("validation",)


def load_splits(
    arguments: DataArguments,
    pairs: bool | None = None,
    training: bool = False,
    several_labels: list[str] | None = None,
) -> datasets.DatasetDict:
    """Load the splits of a data set, or of files. Columns that are not given are guessed, and set in the arguments.

    Args:
        arguments: Which data set or files.
        pairs: Whether there are pairs of texts; None if that is not known.
        training: Whether the splits are for training; otherwise `train_file` stands for the rows that training held
            out of it.
        several_labels: The labels of a model that predicts several at once; columns of these names are its
            label_columns if none are given. Default: none.

    Returns:
        All splits, by name, with a validation split taken from train if there is none. The `label_columns`, if there
        are any, are one column with lists of labels. With `drop_empty` every row has a text.

    Raises:
        ValueError: Neither a data set nor a file is given, a file does not exist, has an unknown format, cannot be
            read or has no rows; columns cannot be guessed; or as in `with_label_sets` and `reserve_validation`.
    """
    if not training and arguments.train_file and arguments.validation_file:
        raise ValueError(
            f"train_file: got '{arguments.train_file}' and validation_file '{arguments.validation_file}'; pass the "
            "one to evaluate on: a train_file stands for the rows that training held out of it"
        )
    splits = _loaded(arguments)
    rows = splits.get("train", next(iter(splits.values())))
    found = arguments.label_columns or arguments.label() in rows.column_names
    if several_labels and not found and set(several_labels) <= set(rows.column_names):
        arguments.label_columns = several_labels
    arguments.guess_columns(rows, pairs)
    names, column = arguments.label_columns, arguments.label()
    if names is None:
        splits = datasets.DatasetDict({split: _with_numbers(rows, arguments, split) for split, rows in splits.items()})
    else:
        splits = datasets.DatasetDict(
            {split: with_label_sets(rows, names, column, split) for split, rows in splits.items()}
        )
    if arguments.drop_empty:
        splits = datasets.DatasetDict({split: _not_empty(rows, arguments, split) for split, rows in splits.items()})
    fraction = arguments.validation_fraction
    if fraction is None and (training or arguments.train_file):
        fraction = Fraction(HELD_OUT)
    wanted = arguments.evaluation_names()
    if fraction is not None and "train" in splits and not set(wanted) & set(splits):
        check_columns(splits["train"], arguments.columns(), column, "train")  # while the rows have their numbers
    return reserve_validation(splits, wanted, fraction, column)


def _with_numbers(rows: datasets.Dataset, arguments: DataArguments, split: str) -> datasets.Dataset:
    """Return a split with labels that are numbers as numbers, if it was read from a file that has texts only."""
    file, column = (
        {"train": arguments.train_file, "validation": arguments.validation_file}.get(split),
        arguments.label(),
    )
    if not file or Path(file).suffix.lower() not in (".csv", ".tsv") or column not in rows.column_names:
        return rows
    try:
        labels = _numbers_if_all_are(rows[column][:], column)
        return datasets.Dataset.from_dict(rows.to_dict() | {column: labels})
    except (ValueError, OverflowError) as error:
        raise ValueError(f"got {split}_file '{file}', which could not be read: {error}") from error


def _not_empty(rows: datasets.Dataset, arguments: DataArguments, split: str) -> datasets.Dataset:
    """Return the rows of a split that have texts; the number of the others is told on stderr."""
    if not set(arguments.columns()) <= set(rows.column_names):
        return rows  # `check_columns` says which is missing
    kept = without_empty(rows, arguments.columns())
    if len(kept) < len(rows):
        message = f"split '{split}': {len(rows) - len(kept)} of {len(rows)} rows without a text are left out"
        print(f"adaexit: {message}", file=sys.stderr)
    return kept


def with_label_sets(rows: datasets.Dataset, names: list[str], column: str, split: str) -> datasets.Dataset:
    """Replace columns of 0 and 1 by one column with the list of the labels that each row has.

    Args:
        rows: One split.
        names: The columns, named as the labels.
        column: Name of the new column.
        split: Name of the split in error messages.

    Returns:
        The split. Its lists are None where every column is missing or -1, as in a test split without labels. A test
        split without any of the columns is returned as it is.

    Raises:
        ValueError: There are fewer than two columns, one is missing, or has another value than 0 and 1; or there is
            a column with the name of the new one.
    """
    unknown = [name for name in names if name not in rows.column_names]
    if split == "test" and len(unknown) == len(names):
        return rows  # `evaluation_splits` leaves it out
    if len(set(names)) < 2 or unknown:
        raise ValueError(
            f"label_columns: got {names}; split '{split}' has {', '.join(rows.column_names)}. Pass two or more of its "
            f"columns{did_you_mean(unknown, rows.column_names)}"
        )
    if column in rows.column_names:
        raise ValueError(
            f"label_column: got '{column}', the name of the column that is made of the label_columns, but split "
            f"'{split}' has such a column; pass another name, e.g. --label_column labels"
        )
    numbers = [[_zero_or_one(value, name, row) for row, value in enumerate(rows[name])] for name in names]
    lists: list[list[int] | None] = []
    for row, flags in enumerate(zip(*numbers, strict=True)):
        missing = [name for name, flag in zip(names, flags, strict=True) if flag is None]
        if missing and len(missing) < len(names):
            raise ValueError(f"label_columns: '{missing[0]}' has no 0 or 1 in row {row} of split '{split}'; add it")
        lists.append(None if missing else [index for index, flag in enumerate(flags) if flag])
    feature = datasets.Features({column: datasets.Sequence(datasets.ClassLabel(names=names))})
    made = datasets.Dataset.from_dict({column: lists}, features=feature)
    return datasets.concatenate_datasets([rows.remove_columns(names), made], axis=1)


def _zero_or_one(value: Any, name: str, row: int) -> bool | None:
    """Return whether a row has a label; None if that is missing, or -1.

    >>> [_zero_or_one(value, "rude", 0) for value in (1, "0", True, "1.0", None, -1)]
    [True, False, True, True, None, None]
    """
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if number is not None and number not in (-1, 0, 1):
        raise ValueError(
            f"label_columns: '{name}' contains {value!r} in row {row}; pass columns of 0 and 1, or a single column "
            "with classes or lists of classes as --label_column"
        )
    return None if number in (None, -1) else bool(number)


def _loaded(arguments: DataArguments) -> datasets.DatasetDict:
    files = {"train": arguments.train_file, "validation": arguments.validation_file}
    kinds = [Path(file).suffix.lower() for file in files.values() if file]
    if arguments.delimiter is not None and ".csv" not in kinds:
        raise ValueError(f"delimiter: got {arguments.delimiter!r} without a .csv file; leave it out")
    if kinds:
        return datasets.DatasetDict(
            {name: file_split(f"{name}_file", Path(file), arguments.delimiter) for name, file in files.items() if file}
        )
    name = arguments.dataset_name or GLUE
    glue = arguments.task_name in TASKS and arguments.task_name != "sick"
    if arguments.dataset_name is None and not glue:
        raise ValueError(
            f"task_name: got {arguments.task_name!r}; only tasks of GLUE have a default data set "
            f"({', '.join(name for name in TASKS if name != 'sick')}): for other data pass --dataset_name (for SICK a "
            "data set with columns sentence1, sentence2 and label, the relatedness), --train_file or --validation_file"
            f"{did_you_mean(arguments.task_name or '', TASKS)}"
        )
    config = arguments.dataset_config or (arguments.task_name if glue else None)
    return datasets.load_dataset(name, config, revision=arguments.dataset_revision)


def file_split(argument: str, path: Path, delimiter: str | None = None) -> datasets.Dataset:
    """One split from a file, read as `adaexit predict` reads it. Only empty fields and null are missing values.

    In .csv and .tsv all columns are texts.

    Args:
        argument: The flag that named the file, for error messages.
        path: The file.
        delimiter: As in `read_rows`.

    Raises:
        ValueError: The file does not exist, has an unknown format, cannot be read or has no rows.
    """
    if path.suffix.lower() not in ROW_KINDS:
        raise ValueError(f"{argument}: got '{path}'; pass a file of one of the formats {', '.join(ROW_KINDS)}")
    if not path.is_file():
        raise ValueError(f"{argument}: there is no '{path}'; pass an existing file")
    if path.suffix.lower() == ".parquet":
        try:
            # `datasets` keeps what the file says about types, e.g. names of classes.
            return datasets.load_dataset("parquet", data_files={"rows": str(path)})["rows"]
        except (ValueError, DatasetGenerationError) as error:
            raise ValueError(
                f"got {argument} '{path}', which could not be read: {error.__cause__ or error}"
            ) from error
    columns: dict[str, list[Any]] = {}
    try:
        for count, row in enumerate(read_rows(path, delimiter), start=1):
            for column, value in row.items():
                columns.setdefault(column, [None] * (count - 1)).append(None if value == "" else value)
            for values in columns.values():
                values += [None] * (count - len(values))  # JSON may leave a column out
        rows = datasets.Dataset.from_dict(columns)
    except (ValueError, TypeError, OverflowError) as error:  # the last two: a column of numbers and texts
        raise ValueError(f"got {argument} '{path}', which could not be read: {error}") from error
    if not columns:
        raise ValueError(f"got {argument} '{path}', which has no rows; pass a file with rows")
    return rows


def _numbers_if_all_are(values: list[str | None], column: str) -> list[Any]:
    """Return labels of a text file as whole numbers, as numbers, or unchanged; None stays None.

    >>> _numbers_if_all_are(["1", "-1"], "label"), _numbers_if_all_are(["1", "2.5"], "label")
    ([1, -1], [1.0, 2.5])
    >>> _numbers_if_all_are(["01", "None", None], "label")
    ['01', 'None', None]
    """
    known = [value for value in values if value is not None]
    whole = r"-?(0|[1-9]\d*)"  # 01 is no number but a code
    for kind, pattern in ((int, whole), (float, rf"({whole}(\.\d*)?|-?\.\d+)([eE][+-]?\d+)?")):
        if all(re.fullmatch(pattern, value) for value in known):
            return [None if value is None else kind(value) for value in values]
    decimal = next((value for value in known if re.fullmatch(r"[+-]?\d*\.\d+", value)), None)
    word = next((value for value in known if re.search(r"[^\W\d_]{2}", value)), None)
    if decimal is not None and word is not None:
        raise ValueError(
            f"label_column: '{column}' contains the number {decimal} and the word {word!r}; pass a column with either "
            "scores or classes, and leave a score that is missing empty"
        )
    return list(values)


def reserve_validation(
    splits: datasets.DatasetDict, validation_names: tuple[str, ...], fraction: float | None, label_column: str
) -> datasets.DatasetDict:
    """Split off a fraction of train as the validation split, if there is none.

    Every class gives about this fraction of its rows, and keeps at least one row in train.

    Args:
        splits: The splits of a data set.
        validation_names: The names that a validation split may have; a new one gets the first.
        fraction: Fraction of train in (0, 1), or None to leave the splits as they are.
        label_column: Column with the labels.

    Raises:
        ValueError: The fraction is not between 0 and 1, or takes no row.
    """
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f"validation_fraction: got {fraction}; pass a fraction of train between 0 and 1, e.g. 0.1")
    if fraction is None or "train" not in splits or any(name in splits for name in validation_names):
        return splits
    train = splits["train"]
    labels = train[label_column][:] if label_column in train.column_names else [None] * len(train)
    order, kept = np.random.default_rng(0).permutation(len(train)).tolist(), set[int]()
    if not any(isinstance(label, float) for label in labels):
        order.sort(key=lambda row: str(labels[row]))  # stable: shuffled within a class
        several = [label if isinstance(label, list) else [label] for label in labels]
        kept = set({label: row for row in order for label in several[row]}.values())  # one row of each class
    rest = [row for row in order if row not in kept]
    count = min(int(len(train) * fraction), len(rest))
    if not count:
        raise ValueError(
            f"validation_fraction: {fraction} of {len(train)} rows takes no row, if every class keeps a row to train "
            "on; pass another fraction, or more rows"
        )
    # Evenly spread over the rows by class, so that each class gives its share.
    taken = {row for place, row in enumerate(rest) if (place + 1) * count // len(rest) > place * count // len(rest)}
    validation = train.select([row for row in order if row in taken])
    train = train.select([row for row in range(len(train)) if row not in taken])
    message = (
        f"there is no validation split; {count} of the {len(train) + count} rows of train become one, of every class "
        f"its share, the same rows every time (--validation_fraction {fraction:g})"
    )
    print(f"adaexit: {message}", file=sys.stderr)
    return datasets.DatasetDict({**splits, "train": train, validation_names[0]: validation})


def evaluation_splits(
    arguments: DataArguments,
    splits: datasets.DatasetDict,
    required: tuple[str, ...] = (),
    has_minus_one: bool = False,
) -> list[str]:
    """The names of the splits to evaluate on; the threshold is chosen on the first.

    A test split is left out if it has no rows or if all of its labels are missing, as in GLUE; stderr says so.

    Args:
        arguments: Which data set.
        splits: Its splits.
        required: Other splits that must be present.
        has_minus_one: Whether -1 is a class or a score of the model or of the training set. Otherwise a split whose
            labels are all -1 has no labels.

    Raises:
        ValueError: There is no split to evaluate on, or a required split is missing.
    """
    candidates = arguments.evaluation_names()
    names = [name for name in candidates if name in splits]
    if not names or not set(required) <= set(splits):
        raise ValueError(
            f"dataset: has splits {', '.join(splits)}; needs {' and '.join([*required, ' or '.join(candidates)])}"
            + ("; --validation_fraction 0.1 takes the latter from train" if "train" in splits else "")
        )
    # A labelled test split measures the chosen threshold on new data.
    if "test" in splits:
        column = arguments.label()
        known = column in splits["test"].column_names
        labels = splits["test"][column] if known else []
        if all(label is None or label != label or (label == -1 and not has_minus_one) for label in labels):
            reason = "all its labels are missing (-1 or empty)" if known else f"it has no column '{column}'"
            reason = reason if len(splits["test"]) else "it has no rows"
            print(f"adaexit: split 'test' is left out: {reason}", file=sys.stderr)
        else:
            names += ["test"]
    return names


def first_rows(dataset: datasets.Dataset, count: int | None, seed: int = 0) -> datasets.Dataset:
    """The first `count` rows after a shuffle; all rows, in order, if there are no more or `count` is None."""
    return dataset if count is None or count >= len(dataset) else dataset.shuffle(seed=seed).select(range(count))
