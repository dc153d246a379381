"""The rows that `adaexit train` trains and evaluates on: loaded, checked, tokenized."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from transformers import AutoModelForMaskedLM, PreTrainedConfig

from ..data.reconstruction import estimate_depths_by_reconstruction
from ..data.tasks import Labels, check_columns, check_labels, class_names, labels_of, tokenize
from ..evaluation.fingerprints import UNKNOWN, read_seen_rows
from ..trainer.training_args import EarlyExitTrainingArguments
from .classifier import classifier_config, match_labels
from .data_arguments import evaluation_splits, first_rows, load_splits
from .errors import wrong_usage
from .options import is_classifier
from .train_options import Arguments

# A threshold that may lose fewer texts of the validation split than this is chosen by chance.
FEWEST_TEXTS = 3
# Whole numbers as labels of a regression are probably classes if there are no more of them than this.
MOST_CLASSES = 10
# In so few rows every one may have a class of its own.
FEW_ROWS = 20


class LabelledData(NamedTuple):
    """The labelled texts of a run.

    Attributes:
        splits: All rows that were loaded, by split; one is `"train"`.
        evaluated: Names of the splits to evaluate on; the threshold is chosen on the first.
        labels: What the labels are, in the order of the model's outputs.
        by_name: With `--add_exits`, whether they were matched with the classifier's by name, and not by order.
        metrics: Names of the metrics; the threshold is chosen by the first.
    """

    splits: dict[str, datasets.Dataset]
    evaluated: Sequence[str]
    labels: Labels
    by_name: bool
    metrics: tuple[str, ...]


def read_data(arguments: Arguments, training: EarlyExitTrainingArguments) -> LabelledData:
    """Load the labelled texts and check that they can be trained on.

    Raises:
        UsageError: The classifier of `--add_exits` cannot get exits, or a metric does not fit the labels.
        ValueError: A column or a value is missing, or the labels are not those of the classifier.
    """
    with wrong_usage():
        classifier = classifier_config(arguments.add_exits) if arguments.add_exits else None
    splits = load_splits(arguments, training=True)
    text_columns, column = arguments.columns(), arguments.label()
    has_minus_one = "train" in splits and column in splits["train"].column_names and -1 in splits["train"][column]
    evaluated = evaluation_splits(arguments, splits, ("train",), has_minus_one)
    for name in ("train", *evaluated):
        check_columns(splits[name], text_columns, column, name)
    if classifier is None:
        labels, by_name = labels_of(splits["train"], column), True
        check_several_classes(splits["train"], column, labels)
    else:
        labels, by_name = match_labels(arguments.model_name_or_path, classifier, splits["train"], column)
    for name in ("train", *evaluated):
        check_labels(splits[name], column, labels, name)
    with wrong_usage():
        metrics = arguments.metric_names(labels)
    if training.should_log and labels.names is None:
        tell_of_whole_numbers(splits["train"][column], column)
    return LabelledData(splits, evaluated, labels, by_name, metrics)


def check_several_classes(rows: datasets.Dataset, column: str, labels: Labels) -> None:
    """Check that there are classes to learn.

    Raises:
        ValueError: All rows have the same class, or nearly every row one of its own, as texts and numbers of rows are.
    """
    if labels.names is None or labels.multi_label:
        return
    found = class_names(rows, column)
    if len(found) == 1:
        raise ValueError(
            f"label_column: all rows of train have the label {found[0]!r} in column '{column}'; pass rows of "
            "two classes or more, or another column as --label_column"
        )
    once = sum(count == 1 for count in Counter(rows[column]).values())
    if len(rows) > FEW_ROWS and once > 0.9 * len(rows):
        raise ValueError(
            f"label_column: column '{column}' has {len(found)} labels in {len(rows)} rows of train, e.g. "
            f"{sorted(found)[0]!r:.60}; pass the column with classes as --label_column, and those with texts as "
            "--text_columns"
        )


def tell_of_whole_numbers(values: Sequence[float], column: str) -> None:
    """Say on stderr if the labels of a regression may be classes, which become floats where a file has gaps."""
    found = sorted(set(values))
    if len(found) <= MOST_CLASSES and all(float(value).is_integer() for value in found):
        print(
            f"adaexit train: column '{column}' has floating-point numbers, {', '.join(map(str, found))}, so that a "
            "regression is trained; if they are classes, write them as integers or as names",
            file=sys.stderr,
        )


def rows_seen_by(source: str, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Hashes of the rows that a model has seen before this run, by what they were used for.

    Args:
        source: Folder or Hub name of the model.
        config: Its config.
    """
    seen = read_seen_rows(source) or {}
    if not seen and is_classifier(config):
        return {UNKNOWN: torch.empty(0, dtype=torch.int64)}
    return seen


@dataclass(frozen=True)
class TokenizedRows:
    """The tokenized rows of a run: those to train on, and those to evaluate on by split."""

    train: datasets.Dataset
    evaluated: dict[str, datasets.Dataset]

    @property
    def held_out(self) -> datasets.Dataset:
        """The rows on which the threshold is chosen: the first split to evaluate on."""
        return next(iter(self.evaluated.values()))

    @cached_property
    def half_for_temperatures(self) -> datasets.Dataset:
        """The half of `held_out` on which temperatures are fitted, the same for all seeds."""
        return self.held_out.train_test_split(test_size=0.5, seed=0)["test"]


def tokenized(
    arguments: Arguments, training: EarlyExitTrainingArguments, data: LabelledData, tokenizer: Any
) -> TokenizedRows:
    """Tokenize the rows to train and to evaluate on."""

    def encode(rows: datasets.Dataset) -> datasets.Dataset:
        return tokenize(rows, tokenizer, arguments.columns(), arguments.label(), data.labels)

    with training.main_process_first(desc="tokenizing"):
        return TokenizedRows(
            encode(first_rows(data.splits["train"], arguments.max_train_samples, training.seed)),
            {name: encode(first_rows(data.splits[name], arguments.max_eval_samples)) for name in data.evaluated},
        )


def tell_of_rows(
    rows: TokenizedRows, splits: Mapping[str, datasets.Dataset], arguments: Arguments, chooses: bool
) -> None:
    """Say on stderr how many rows there are, and if too few of them choose the threshold.

    Args:
        rows: The rows to train and evaluate on.
        splits: All rows that were loaded, by split.
        arguments: The flags.
        chooses: Whether a threshold is chosen by answers that are right or wrong.
    """

    def counted(name: str, used: datasets.Dataset) -> str:
        return f"{len(used)} rows" if len(used) == len(splits[name]) else f"{len(used)} of {len(splits[name])} rows"

    others = ", ".join(f"{name}: {counted(name, used)}" for name, used in rows.evaluated.items())
    print(f"adaexit train: train: {counted('train', rows.train)}, {others}", file=sys.stderr)
    name, count = next(iter(rows.evaluated)), len(rows.held_out)
    if chooses and arguments.max_drop and count * arguments.max_drop < FEWEST_TEXTS:
        print(
            f"adaexit train: a loss of {arguments.max_drop:.2%} is {count * arguments.max_drop:.1f} of the {count} "
            f"texts in {name}, on which the threshold is chosen: less than chance changes. Hold out more rows "
            "(--validation_fraction, --validation_file), or allow more loss (--max_drop)",
            file=sys.stderr,
        )


def with_token_depths(
    arguments: Arguments, training: Any, model: Any, tokenizer: Any, rows: TokenizedRows
) -> TokenizedRows:
    """Add the column `token_depths` to all rows; the losses it is computed from are saved in the output folder.

    Raises:
        ValueError: The masked language model has another number of layers or another vocabulary than the encoder.
    """
    masked_lm = AutoModelForMaskedLM.from_pretrained(arguments.token_depths_model).to(training.device)
    lm_config, encoder = masked_lm.config, model.config.encoder_config
    if (lm_config.num_hidden_layers, lm_config.vocab_size) != (encoder.num_hidden_layers, encoder.vocab_size):
        raise ValueError(
            f"token_depths_model: '{arguments.token_depths_model}' has {lm_config.num_hidden_layers} layers and "
            f"{lm_config.vocab_size} tokens in its vocabulary, but the encoder has {encoder.num_hidden_layers} and "
            f"{encoder.vocab_size}; train the masked language model from the same encoder"
        )
    output = Path(training.output_dir)
    output.mkdir(parents=True, exist_ok=True)

    def with_depths(name: str, split: datasets.Dataset) -> datasets.Dataset:
        losses_file = output / f"losses-{name}.jsonl"
        return estimate_depths_by_reconstruction(
            split, masked_lm, tokenizer, masked_at_once=arguments.masked_at_once, losses_file=losses_file
        )

    train = with_depths("train", rows.train)
    return TokenizedRows(train, {name: with_depths(name, split) for name, split in rows.evaluated.items()})
