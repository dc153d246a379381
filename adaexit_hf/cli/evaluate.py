"""`adaexit evaluate` and `adaexit calibrate` (extra `train`)."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch

from ..data.tasks import Labels, check_columns, tokenize
from ..evaluation.bootstrap import UndefinedResamplesError, bootstrap_samples
from ..evaluation.collect import collect_trace
from ..evaluation.curves import CurvePoint, choose_threshold
from ..evaluation.metrics import metric_function
from ..evaluation.summary import report as numbers
from ..evaluation.trace import ExitTrace, predictions
from ..evaluation.tradeoff import spread_thresholds, tradeoff_curve
from ..utils.files import replace_text, without_nan
from .data_arguments import DataArguments, evaluation_splits, first_rows, load_splits
from .options import ModelOptions, load
from .printing import print_json


@dataclass(kw_only=True)
class EvaluationOptions(DataArguments, ModelOptions):
    """On what."""

    batch_size: int = field(default=32, metadata={"help": "Texts per batch."})


@dataclass(kw_only=True)
class CalibrationOptions(EvaluationOptions):
    """How much a saving may cost."""

    max_drop: float = field(
        default=0.01, metadata={"help": "How much of the full-depth score exits may cost, relative."}
    )
    temperatures: bool = field(
        default=False,
        metadata={"help": "First fit the exits' temperatures, on one half of the texts; the other half chooses."},
    )


Texts = list[str] | list[list[str]]


def labelled(
    model: Any, tokenizer: Any, options: DataArguments
) -> tuple[dict[str, datasets.Dataset], dict[str, Texts], tuple[str, ...]]:
    """Tokenized rows of every split to evaluate on, with the model's own label numbers; their texts; and the metrics.

    Raises:
        ValueError: missing columns or values, or labels that the model does not have.
    """
    config = model.config
    names = [config.id2label[number] for number in range(config.num_labels)]
    labels = Labels(None if config.num_labels == 1 else names)
    metrics, columns = options.metric_names(labels), options.columns()
    length = min(options.max_seq_length, tokenizer.model_max_length)
    splits = load_splits(options)
    found, texts = dict[str, datasets.Dataset](), dict[str, Texts]()
    for name in evaluation_splits(options, splits):
        rows = first_rows(splits[name], options.max_eval_samples)
        check_columns(rows, columns, options.label_column, name)
        feature = rows.features[options.label_column]
        if isinstance(feature, datasets.ClassLabel) and feature.names != labels.names:
            raise ValueError(
                f"label_column: '{options.label_column}' of split '{name}' has the classes {feature.names}, the "
                f"checkpoint {labels.names}; pass the data it was trained for"
            )
        sides = [list(map(str, rows[column])) for column in columns]
        texts[name] = sides[0] if len(sides) == 1 else [list(pair) for pair in zip(*sides, strict=True)]
        found[name] = tokenize(rows, tokenizer, columns, options.label_column, labels, length)
    return found, texts, metrics


def trace_all(
    model: Any, sets: dict[str, datasets.Dataset], batch_size: int, flops: bool = False
) -> dict[str, ExitTrace]:
    return {name: collect_trace(model, rows, batch_size, sys.stderr.isatty(), flops) for name, rows in sets.items()}


def results_with_intervals(
    traces: dict[str, ExitTrace], metrics: tuple[str, ...], threshold: float | list[float] | None
) -> dict[str, dict[str, Any]]:
    """Of every split all numbers, and between which the first metric at the threshold lies.

    95 %, bootstrap over samples; None, and a word on stderr, where an answer is not finite or the metric is not
    defined on each resample.
    """
    headline, results = metric_function(metrics[0]), {}
    for split, trace in traces.items():
        results[split] = numbers(trace, metrics, threshold)
        results[split]["intervals"] = {metrics[0]: None}
        # Only what is answered at the threshold: to resample all exits takes many times as long.
        answers = trace.at(threshold)[0][:, None]
        if not answers.isfinite().all():
            print(f"adaexit: {split}: no interval of {metrics[0]}: some answers are not finite", file=sys.stderr)
            continue
        answered = ExitTrace(answers, torch.zeros(answers.shape[:2]), trace.labels, (trace.depth,), trace.ready)
        try:
            found = bootstrap_samples(
                [answered], lambda drawn: headline(predictions(drawn.logits[:, 0]), drawn.known_labels())
            )
            results[split]["intervals"] = {metrics[0]: [found.low, found.high]}
        except UndefinedResamplesError as error:
            print(f"adaexit: {split}: no interval of {metrics[0]}: {error}", file=sys.stderr)
    return results


def evaluate(options: EvaluationOptions, given: Any) -> None:
    """Score a checkpoint on labelled texts: at full depth, at its threshold, at every exit. Prints a JSON object.

    `intervals` has the 95 % bootstrap interval over samples of the first metric at the threshold, or null. It does not
    cover that the threshold was chosen, if on the same texts.
    """
    model, tokenizer = load(given.checkpoint, options)
    sets, _, metrics = labelled(model, tokenizer, options)
    traces, threshold = trace_all(model, sets, options.batch_size), model.config.exit_threshold
    print_json(without_nan(results_with_intervals(traces, metrics, threshold)))


def calibrate(options: CalibrationOptions, given: Any) -> None:
    """Choose the threshold with the largest saving whose score is within --max_drop of full depth, and save it.

    Only exit_threshold, and with --temperatures exit_temperatures, change in the folder's config.json. Prints what was
    chosen as a JSON object.
    """
    if options.exit_threshold is not None:
        raise ValueError(f"exit_threshold: got {options.exit_threshold}, but calibrate chooses it; leave it out")
    path = Path(given.checkpoint) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"checkpoint: '{given.checkpoint}' is no local folder with a config.json; get one first, e.g. "
            f"hf download {given.checkpoint} --local-dir FOLDER"
        )
    model, tokenizer = load(given.checkpoint, options)
    sets, _, metrics = labelled(model, tokenizer, options)
    split, rows = next(iter(sets.items()))
    if options.temperatures:
        halves = rows.train_test_split(test_size=0.5, seed=0)
        model.calibrate_temperatures(halves["test"], options.batch_size)
        rows = halves["train"]
    trace = collect_trace(model, rows, options.batch_size, sys.stderr.isatty())
    curve = curve_of(trace, metrics[0], model.config.exit_threshold)
    chosen = choose_threshold(curve, options.max_drop)
    changed = {"exit_threshold": chosen.threshold}
    if options.temperatures:
        changed["exit_temperatures"] = model.config.exit_temperatures
    replace_text(path, json.dumps(json.loads(path.read_text()) | changed, indent=2, sort_keys=True) + "\n")
    full = next(point for point in curve if point.threshold is None)
    print_json({"split": split, "metric": metrics[0], "full_depth": full.score} | chosen._asdict() | changed)
    if (path.parent / "README.md").exists():
        what = "README.md and metrics.json tell of the old threshold; adaexit report and adaexit card renew them"
        print(f"adaexit calibrate: {what}", file=sys.stderr)


def curve_of(trace: ExitTrace, metric: str, threshold: float | list[float] | None) -> list[CurvePoint]:
    """The curve, with the point of the model's own threshold."""
    own = [threshold] if isinstance(threshold, float | int) else []
    return tradeoff_curve(trace, metric, [*spread_thresholds(trace), *own])
