"""The command `adaexit evaluate`, and what `calibrate` and `report` share with it (needs the extra `train`)."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch

from ..data.tasks import Labels, check_columns, check_labels, labels_of, tokenize
from ..evaluation.bootstrap import UndefinedResamplesError, bootstrap_samples
from ..evaluation.cross_fit import CrossFitted, NoHalvesError, cross_fitted
from ..evaluation.curves import CurvePoint, not_above
from ..evaluation.metrics import as_metric, compute_score
from ..evaluation.summary import SCORE_SETTINGS, changed_setting, earlier_measurements, results_at_threshold
from ..evaluation.thresholds import spread_thresholds
from ..evaluation.trace import ExitTrace, at_exits, made_up, predictions, scored_predictions
from ..evaluation.tradeoff import layer_scores, majority_score, tradeoff_curve
from ..utils.spelling import did_you_mean
from .data_arguments import HELD_OUT, DataArguments, evaluation_splits, first_rows, load_splits
from .options import Fraction, ModelOptions, OutputOptions
from .printing import print_results
from .runtime import ExportedModel, RuntimeOptions, load_runtime, ran_by, trace_of
from .streams import print_json

CLEARLY = 0.02  # a difference of scores that more rows would hardly undo


@dataclass(kw_only=True)
class EvaluationOptions(DataArguments, ModelOptions, RuntimeOptions, OutputOptions):
    """Flags of `adaexit evaluate`."""

    batch_size: int = field(default=32, metadata={"help": "Texts per batch."})


Texts = list[str] | list[list[str]]


def labelled_splits(
    model: Any, tokenizer: Any, options: DataArguments, keep: str | None = None
) -> tuple[dict[str, datasets.Dataset], dict[str, Texts], tuple[str, ...]]:
    """Load and tokenize every split to evaluate on.

    Args:
        model: The early-exit model; its config says which label has which index.
        tokenizer: Its tokenizer.
        options: Which data set, columns and metrics.
        keep: Another column that the tokenized rows keep. Default: none.

    Returns:
        Tokenized rows with the model's label indices, by split; their texts, by split; and the names of the metrics.

    Raises:
        ValueError: A column or a value is missing, also one of the model's labels among `label_columns`; or the data
            has labels that the model does not have.
    """
    config = model.config
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    labels = Labels(None if config.num_labels == 1 else names, config.multi_label)
    without = [name for name in names if name not in (options.label_columns or names)]
    if without and config.multi_label and not made_up(names):
        raise ValueError(
            f"label_columns: got {options.label_columns}, but the model also predicts {without}; pass a column for "
            "each of its labels"
        )
    hold_out_as_in_training(options, model.config.name_or_path)
    all_splits = load_splits(options, config.pairs, several_labels=names if config.multi_label else None)
    metrics, columns, column = options.metric_names(labels), options.columns(), options.label()
    if config.pairs is not None and config.pairs != (len(columns) == 2):
        got, trained = ("pairs", "single texts") if len(columns) == 2 else ("single texts", "pairs")
        raise ValueError(
            f"text_columns: got {list(columns)}, {got}, but the model was trained on {trained}; pass "
            f"{'two columns' if config.pairs else 'one column'}"
        )
    evaluated = evaluation_splits(options, all_splits, has_minus_one="-1" in names)
    splits = {split: first_rows(all_splits[split], options.max_eval_samples) for split in evaluated}
    for split, rows in splits.items():
        check_columns(rows, columns, column, split)
        if keep is not None and keep not in rows.column_names:
            raise ValueError(
                f"group_column: got '{keep}'; split '{split}' has {', '.join(rows.column_names)}: pass one of them"
                f"{did_you_mean(keep, rows.column_names)}"
            )
    if labels.names is not None:
        found, by_name = names_in_data(list(splits.values()), column, names)
        labels = Labels(found, config.multi_label)
        if made_up(names) and not made_up(found):
            config.id2label, config.label2id = (
                dict(enumerate(found)),
                {name: index for index, name in enumerate(found)},
            )
            message = f"the checkpoint has no names of classes; taking those of the data, in the order {found}"
            print(f"adaexit: {message}", file=sys.stderr)
        elif not by_name:
            mapping = ", ".join(f"{theirs} -> {mine}" for theirs, mine in zip(found, names, strict=True))
            print(f"adaexit: labels of the data -> of the checkpoint: {mapping} (by order)", file=sys.stderr)
    for split, rows in splits.items():
        check_labels(rows, column, labels, split)
    tokenized, texts = dict[str, datasets.Dataset](), dict[str, Texts]()
    for split, rows in splits.items():
        text_lists = [list(map(str, rows[column])) for column in columns]
        pairs = len(columns) == 2
        texts[split] = [list(pair) for pair in zip(*text_lists, strict=True)] if pairs else text_lists[0]
        tokenized[split] = tokenize(rows, tokenizer, columns, column, labels, keep)
    return tokenized, texts, metrics


def hold_out_as_in_training(options: DataArguments, checkpoint: str) -> None:
    """Let `--train_file` stand for the rows that the training of a checkpoint held out of a file of this name.

    Args:
        options: The flags; validation_fraction is set.
        checkpoint: Folder or Hub name; what training wrote into the folder's metrics.json says what it held out.

    Raises:
        ValueError: Training held out nothing, or another fraction.
    """
    run = earlier_measurements(Path(checkpoint)).get("training") or {} if options.train_file else {}
    trained = run.get("settings", {})
    if not options.train_file or Path(options.train_file).name != trained.get("train_file"):
        return
    if trained.get("validation_file"):
        raise ValueError(
            f"train_file: got '{options.train_file}'; '{checkpoint}' was trained on all rows of a file of this name; "
            f"pass '{trained['validation_file']}', on which its threshold was chosen, or other rows, as "
            "--validation_file"
        )
    fraction = trained.get("validation_fraction") or HELD_OUT
    if options.validation_fraction not in (None, fraction):
        raise ValueError(
            f"validation_fraction: got {options.validation_fraction:g}, but the training of '{checkpoint}' held out "
            f"{fraction:g} of '{options.train_file}', and trained on the rest; leave it out, or pass rows that were "
            "not trained on as --validation_file"
        )
    options.validation_fraction = Fraction(fraction)


def names_in_data(splits: Sequence[datasets.Dataset], column: str, names: list[str]) -> tuple[list[str], bool]:
    """The names of the checkpoint's classes in labelled data, in the order of the checkpoint's indices.

    Capital letters make no difference, unless they are all that tells two classes apart.

    Names that are made of indices (LABEL_0, 0) say nothing, on either side: then classes are equal if their indices
    are. But where a name of the one side may also be an index of the other (data 0, 1, 2 and a checkpoint with 1, 2,
    3), nothing says which is meant, so this is an error.

    Args:
        splits: The data, without missing labels.
        column: The column with labels.
        names: The checkpoint's names.

    Returns:
        The names as the data has them, and whether they were matched by name and not by order.

    Raises:
        ValueError: The data has other classes than the checkpoint.
    """
    data = datasets.concatenate_datasets([rows.select_columns(column) for rows in splits])
    found = labels_of(data, column).names or []
    if set(found) <= set(names):
        return names, True
    spelled = {label.casefold(): label for label in found}
    folded = [name.casefold() for name in names]
    if len(spelled) == len(found) and len(set(folded)) == len(names) and set(spelled) <= set(folded):
        return [spelled.get(name.casefold(), name) for name in names], True
    for prefix in ("LABEL_", ""):
        indices = [f"{prefix}{index}" for index in range(len(names))]
        if set(found) <= set(indices) and not set(indices) & set(names):
            return indices, False
    if made_up(names) and len(found) == len(names) and not set(found) & set(names):
        return found, False
    unknown = [name for name in found if name not in names]
    raise ValueError(
        f"label_column: '{column}' has the classes {found[:20]}, but the checkpoint has {names[:20]}: labels "
        f"{unknown[:20]} do not occur in the training set; pass data with the checkpoint's classes"
    )


def trace_splits(
    model: Any, datasets_by_split: dict[str, datasets.Dataset], batch_size: int, flops: bool = False
) -> dict[str, ExitTrace]:
    """The trace of every split."""
    return {split: trace_of(model, rows, batch_size, flops) for split, rows in datasets_by_split.items()}


def results_with_intervals(
    model: Any, traces: dict[str, ExitTrace], metrics: tuple[str, ...], data_name: str
) -> dict[str, dict[str, Any]]:
    """The scores of every split, with a 95 % bootstrap interval over samples of the first metric at the threshold.

    Args:
        model: The model, or an `ExportedModel`.
        traces: Trace by split.
        metrics: Names of the metrics.
        data_name: Name of the data set.

    An interval is None where `score_interval` says so.
    """
    results, threshold = {}, model.config.exit_threshold
    for split, trace in traces.items():
        data = {"name": data_name, "split": split}
        results[split] = results_at_threshold(trace, metrics, threshold, data) | ran_by(model)
        results[split]["intervals"] = {metrics[0]: score_interval(trace, metrics[0], threshold, split)}
    return results


def score_interval(
    trace: ExitTrace, metric: str, threshold: float | list[float] | None, name: str
) -> list[float] | None:
    """The 95 % bootstrap interval over samples of the score at a threshold.

    Args:
        trace: The trace.
        metric: Name of the metric.
        threshold: The model's exit threshold.
        name: What is scored, for the message.

    Returns:
        The ends; None, with a message on stderr, if a prediction is not finite or if the metric is undefined on a
        resample.
    """
    # Only the predictions at the threshold: resampling all exits would take many times as long.
    logits = trace.at(threshold)[0][:, None]
    if not logits.isfinite().all():
        print(f"adaexit: {name}: no interval of {metric}: some predictions are not finite", file=sys.stderr)
        return None
    scores, several = torch.zeros(logits.shape[:2]), trace.multi_label
    at_threshold = ExitTrace(logits, scores, trace.labels, (trace.depth,), trace.ready, multi_label=several)
    try:
        interval = bootstrap_samples(
            [at_threshold],
            lambda sample: compute_score(
                metric,
                predictions=predictions(sample.logits[:, 0], sample.multi_label),
                references=sample.known_labels(),
            ),
        )
    except UndefinedResamplesError as error:
        print(f"adaexit: {name}: no interval of {metric}: {error}", file=sys.stderr)
        return None
    return [interval.low, interval.high]


def evaluate(options: EvaluationOptions, positionals: Any) -> None:
    """Score a checkpoint on labelled texts: at full depth, at its threshold, and at every exit.

    Prints a table, or with --json an object with one entry per split. `majority` is the score of always giving the
    most frequent label. `intervals` is the 95 % bootstrap interval over samples of the first metric at the threshold,
    or null if it is undefined. If the threshold was chosen on the same texts, the interval does not account for that
    choice.
    """
    model, tokenizer = load_runtime(positionals.checkpoint, options, options.exit_threshold)
    datasets_by_split, _, metrics = labelled_splits(model, tokenizer, options)
    traces = trace_splits(model, datasets_by_split, options.batch_size)
    results = results_with_intervals(model, traces, metrics, options.for_card().name)
    tell_of_rows_that_chose("evaluate", positionals.checkpoint, model, results, metrics[0])
    if options.json:
        print_json(results)
    else:
        print_results(results, metrics[0])


def tell_of_rows_that_chose(
    command: str, checkpoint: str, model: Any, results: dict[str, dict[str, Any]], metric: str
) -> None:
    """Say on stderr if the threshold was chosen on the rows that were scored, and which score is known for others.

    Args:
        command: Name of the command, for the message.
        checkpoint: The checkpoint's folder or Hub name.
        model: The model, or an `ExportedModel`, which has its own results.
        results: From `results_with_intervals`.
        metric: Name of the metric.
    """
    try:
        measured = list(earlier_measurements(Path(checkpoint)).get("results", {}).values())
    except ValueError:  # not ours, and nothing needs it
        measured = []
    if isinstance(model, ExportedModel):
        own = model.classifier.facts["precisions"][model.classifier.precision]
        measured += [own["results"]] if "cross_fitted_thresholds" in own.get("results", {}) else []
    chose = {each["data"]["fingerprint"]: each for each in measured if "cross_fitted_thresholds" in each}
    for split, result in results.items():
        honest = chose.get(result["data"]["fingerprint"])
        settings = {name: result[name] for name in ("exit_threshold", *SCORE_SETTINGS)}
        if honest is not None and metric in honest["at_threshold"] and not changed_setting(honest, settings):
            print(
                f"adaexit {command}: the threshold was chosen on these rows of {split}, so that {metric} "
                f"{result['at_threshold'][metric]:.4f} with exits may be too good; quote "
                f"{honest['at_threshold'][metric]:.4f}, cross-fitted",
                file=sys.stderr,
            )


def honest_scores(
    command: str,
    trace: ExitTrace,
    curve: Sequence[CurvePoint],
    metrics: tuple[str, ...],
    max_drop: float,
    also: Sequence[float] = (),
) -> CrossFitted | None:
    """The scores on the rows on which the threshold is chosen, of thresholds that were chosen on the other half.

    Args:
        command: Name of the command, for the message.
        trace: Trace of the rows on which the threshold is chosen.
        curve: Its trade-off curve.
        metrics: Names of the metrics.
        max_drop: As for `choose_threshold`.
        also: As for `cross_fitted`.

    Returns:
        The scores; None, with a message on stderr, if a metric is not defined on a half of the rows.
    """
    try:
        honest = cross_fitted(trace, metrics, max_drop, also=also)
    except NoHalvesError as error:
        print(
            f"adaexit {command}: scores with exits are those on the rows on which the threshold was chosen, which are "
            f"better than on other rows, since these rows have no halves to choose and to score on: {error}",
            file=sys.stderr,
        )
        return None
    if honest.half_layers is not None:
        print(
            f"adaexit {command}: on one half of the rows layer {honest.half_layers[0]} is chosen for all texts, on "
            f"the other layer {honest.half_layers[1]}: more rows would make the choice less of a chance",
            file=sys.stderr,
        )
    full = next(point for point in curve if point.threshold is None)
    loss = (full.score - honest.scores[metrics[0]]) * (1 if full.higher_is_better else -1)
    if loss > 2 * max_drop * abs(full.score):  # far more than was allowed; NaN is no loss
        print(
            f"adaexit {command}: at thresholds chosen on the other half {metrics[0]} is "
            f"{honest.scores[metrics[0]]:.4f}, at full depth {full.score:.4f}: a larger loss than was allowed "
            f"({max_drop:.2%}), as on new rows; more rows to choose on make it smaller",
            file=sys.stderr,
        )
    return honest


def tell_of_choice(
    command: str,
    trace: ExitTrace,
    threshold: float | list[float] | None,
    metric: str,
    exits_learning_rate: float | None = None,
) -> None:
    """Say on stderr if a threshold saves nothing, or answers texts at exits that tell no texts apart.

    Args:
        command: Name of the command, for the message.
        trace: Trace of the split on which the threshold was chosen.
        threshold: The chosen threshold.
        metric: Name of the metric by which it was chosen.
        exits_learning_rate: That of the training. Default: None, not set or not known.
    """
    exits, chosen = len(trace.exit_layers), trace.exits_at(threshold)
    if exits == 1:
        return
    longer = "train for more epochs (--num_train_epochs)"
    if exits_learning_rate is None:
        longer += ", or the exits faster (--exits_learning_rate 1e-3)"
    answers = predictions(trace.logits, trace.multi_label)
    collapsed = (answers == answers[:1]).reshape(len(answers), exits, -1).all(dim=2).all(dim=0) & (len(answers) > 1)
    problems = []
    if bool(collapsed.all()) and bool((answers[0] == answers[0, 0]).all()):
        problems.append(
            f"every exit gives the same answer to all texts; {longer}, or choose by another metric (--metrics)"
        )
    elif bool((chosen == exits - 1).all()):
        problems.append(
            "the threshold saves nothing, all texts run through all layers; allow a larger --max_drop, choose by "
            f"another metric (--metrics), or {longer}"
        )
    else:
        if bool((chosen == 0).all()):
            problems.append(
                "all texts leave at the first exit; if later exits should matter, choose by another metric "
                "(--metrics) or with a smaller --max_drop; otherwise a model of so few layers does the same"
            )
        for index in (collapsed & torch.bincount(chosen, minlength=exits).bool()).nonzero().flatten().tolist():
            share = (chosen == index).double().mean().item()
            problems.append(
                f"the exit after layer {trace.exit_layers[index]}, where {share:.0%} of the texts leave, gives the "
                f"same answer to all texts; choose by another metric (--metrics), or {longer}"
            )
    scored, labels = scored_predictions(trace.logits, trace.known_labels()), trace.known_labels()
    score = compute_score(metric, predictions=at_exits(scored, chosen), references=labels)
    majority = majority_score(trace, metric)
    if bool((labels == labels[0]).all()):
        problems.append(
            f"all {len(labels)} rows have the same label, so that {metric} says nothing; pass rows of several classes"
        )
    elif not_above(score, majority, as_metric(metric).higher_is_better):
        constant = "the most frequent answer" if trace.logits.shape[-1] > 1 else "the same number"
        problems.append(
            f"{metric} at the threshold is {score:.4f}, no better than {majority:.4f} of always giving {constant}; "
            "choose by another metric (--metrics) or with a smaller --max_drop, or train for longer"
        )
    problems += better_layers(trace, metric, exits=chosen)
    for problem in problems:
        print(f"adaexit {command}: {problem}", file=sys.stderr)


def better_layers(trace: ExitTrace, metric: str, exits: torch.Tensor) -> list[str]:
    """Say if all texts leave at one exit, and another one before full depth is clearly better than both.

    Args:
        trace: Trace of the split on which the threshold was chosen.
        metric: Name of the metric.
        exits: Index of the exit of each sample, `(samples,)`.
    """
    if trace.criterion != "layer" or not as_metric(metric).higher_is_better:
        return []
    scores = layer_scores(trace, metric)
    chosen, full = (scores[trace.exit_layers[exit]] for exit in (int(exits[0]), -1))
    layer = max(scores, key=lambda layer: scores[layer] if math.isfinite(scores[layer]) else -math.inf)
    if not all(scores[layer] - other > CLEARLY for other in (chosen, full)):
        return []
    return [
        f"{metric} after layer {layer} is {scores[layer]:.4f}, better than {full:.4f} after all layers: train for "
        f"longer, or take --exit_threshold {layer}"
    ]


def curve_with_threshold(trace: ExitTrace, metric: str, threshold: float | list[float] | None) -> list[CurvePoint]:
    """The trade-off curve, including the point of the model's own threshold, but not one of a threshold per exit."""
    if isinstance(threshold, list):
        print(
            "adaexit: the curve has no point for exit_threshold, which is a list with one number per exit",
            file=sys.stderr,
        )
    own_threshold = [threshold] if isinstance(threshold, float | int) else []
    return tradeoff_curve(trace, metric, list(dict.fromkeys([*spread_thresholds(trace), *own_threshold])))
