"""The command `adaexit evaluate`, and what `calibrate` and `report` share with it (needs the extra `train`)."""

import sys
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch

from ..data.tasks import Labels, check_columns, tokenize
from ..evaluation.bootstrap import UndefinedResamplesError, bootstrap_samples
from ..evaluation.collect import collect_trace
from ..evaluation.curves import CurvePoint
from ..evaluation.metrics import compute_score
from ..evaluation.summary import report as summarize
from ..evaluation.thresholds import spread_thresholds
from ..evaluation.trace import ExitTrace, predictions
from ..evaluation.tradeoff import tradeoff_curve
from ..utils.files import without_nan
from .data_arguments import DataArguments, evaluation_splits, first_rows, load_splits
from .options import ModelOptions, load
from .printing import print_json


@dataclass(kw_only=True)
class EvaluationOptions(DataArguments, ModelOptions):
    """Flags of `adaexit evaluate`."""

    batch_size: int = field(default=32, metadata={"help": "Texts per batch."})


Texts = list[str] | list[list[str]]


def labelled_splits(
    model: Any, tokenizer: Any, options: DataArguments
) -> tuple[dict[str, datasets.Dataset], dict[str, Texts], tuple[str, ...]]:
    """Load and tokenize every split to evaluate on.

    Args:
        model: The early-exit model; its config says which label has which index.
        tokenizer: Its tokenizer.
        options: Which data set, columns and metrics.

    Returns:
        Tokenized rows with the model's label indices, by split; their texts, by split; and the names of the metrics.

    Raises:
        ValueError: A column or a value is missing, or the data has labels that the model does not have.
    """
    config = model.config
    names = [config.id2label[index] for index in range(config.num_labels)]
    labels = Labels(None if config.num_labels == 1 else names)
    metrics, columns = options.metric_names(labels), options.columns()
    length = min(options.max_seq_length, tokenizer.model_max_length)
    splits = load_splits(options)
    tokenized, texts = dict[str, datasets.Dataset](), dict[str, Texts]()
    for split in evaluation_splits(options, splits):
        rows = first_rows(splits[split], options.max_eval_samples)
        check_columns(rows, columns, options.label_column, split)
        feature = rows.features[options.label_column]
        if isinstance(feature, datasets.ClassLabel) and feature.names != labels.names:
            raise ValueError(
                f"label_column: '{options.label_column}' of split '{split}' has the classes {feature.names}, "
                f"but the checkpoint has {labels.names}; pass a data set with the checkpoint's classes"
            )
        text_lists = [list(map(str, rows[column])) for column in columns]
        pairs = len(columns) == 2
        texts[split] = [list(pair) for pair in zip(*text_lists, strict=True)] if pairs else text_lists[0]
        tokenized[split] = tokenize(rows, tokenizer, columns, options.label_column, labels, length)
    return tokenized, texts, metrics


def trace_splits(
    model: Any, datasets_by_split: dict[str, datasets.Dataset], batch_size: int, flops: bool = False
) -> dict[str, ExitTrace]:
    """The trace of every split."""
    progress = sys.stderr.isatty()
    return {
        split: collect_trace(model, rows, batch_size, progress, flops) for split, rows in datasets_by_split.items()
    }


def results_with_intervals(
    traces: dict[str, ExitTrace], metrics: tuple[str, ...], threshold: float | list[float] | None
) -> dict[str, dict[str, Any]]:
    """The scores of every split, with a 95 % bootstrap interval over samples of the first metric at the threshold.

    The interval is None, with a message on stderr, if a prediction is not finite or if the metric is undefined on a
    resample.
    """
    results = {}
    for split, trace in traces.items():
        results[split] = summarize(trace, metrics, threshold)
        results[split]["intervals"] = {metrics[0]: None}
        # Only the predictions at the threshold: resampling all exits would take many times as long.
        logits = trace.at(threshold)[0][:, None]
        if not logits.isfinite().all():
            print(f"adaexit: {split}: no interval of {metrics[0]}: some predictions are not finite", file=sys.stderr)
            continue
        at_threshold = ExitTrace(logits, torch.zeros(logits.shape[:2]), trace.labels, (trace.depth,), trace.ready)
        try:
            interval = bootstrap_samples(
                [at_threshold],
                lambda sample: compute_score(
                    metrics[0], predictions=predictions(sample.logits[:, 0]), references=sample.known_labels()
                ),
            )
            results[split]["intervals"] = {metrics[0]: [interval.low, interval.high]}
        except UndefinedResamplesError as error:
            print(f"adaexit: {split}: no interval of {metrics[0]}: {error}", file=sys.stderr)
    return results


def evaluate(options: EvaluationOptions, positionals: Any) -> None:
    """Score a checkpoint on labelled texts: at full depth, at its threshold, and at every exit.

    Prints a JSON object with one entry per split. `intervals` is the 95 % bootstrap interval over samples of the first
    metric at the threshold, or null if it is undefined. If the threshold was chosen on the same texts, the interval
    does not account for that choice.
    """
    model, tokenizer = load(positionals.checkpoint, options)
    datasets_by_split, _, metrics = labelled_splits(model, tokenizer, options)
    traces = trace_splits(model, datasets_by_split, options.batch_size)
    print_json(without_nan(results_with_intervals(traces, metrics, model.config.exit_threshold)))


def curve_with_threshold(trace: ExitTrace, metric: str, threshold: float | list[float] | None) -> list[CurvePoint]:
    """The trade-off curve, including the point of the model's own threshold."""
    own_threshold = [threshold] if isinstance(threshold, float | int) else []
    return tradeoff_curve(trace, metric, [*spread_thresholds(trace), *own_threshold])
