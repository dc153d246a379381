"""The command `adaexit compare`, and what `adaexit report` shares with it (needs the extra `train`)."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ..evaluation.summary import results_at_threshold
from ..evaluation.trace import ExitTrace, check_same_data, made_up
from ..evaluation.tradeoff import majority_score
from ..models.configuration_early_exit import Threshold
from .evaluate import EvaluationOptions, Texts, hold_out_as_in_training, labelled_splits, score_interval, trace_splits
from .options import LoadOptions, Positionals, read_config
from .printing import print_comparison
from .runtime import load_runtime, ran_by
from .streams import print_json

CHECKPOINTS: Positionals = {
    "checkpoints": {"nargs": "+", "help": "Local folders or Hub names of early-exit models with the same classes."}
}


@dataclass(kw_only=True)
class CompareOptions(EvaluationOptions):
    """Flags of `adaexit compare`."""

    positionals: ClassVar[Positionals] = CHECKPOINTS


def compare(options: CompareOptions, positionals: Any) -> None:
    """Compare checkpoints on the same labelled texts: the score at full depth and at the saved threshold, and layers.

    Prints a table with one row per checkpoint, and the score of always giving the most frequent answer. The interval
    is a 95 % bootstrap interval over samples; where the threshold was chosen on the same texts, it does not account
    for that choice. Of several splits and metrics the first is compared.
    """
    measured = measure_all(positionals.checkpoints, options)
    comparison = comparison_of(measured)
    if options.json:
        print_json(comparison)
    else:
        print_comparison(comparison)


class Measured(NamedTuple):
    """What one full-depth pass of a checkpoint says.

    Attributes:
        name: Name to show.
        trace: The trace of the first split.
        threshold: The saved threshold.
        texts: The texts.
        split: Name of the split.
        metric: Name of the first metric.
        runtime: What ran it, from `ran_by`.
    """

    name: str
    trace: ExitTrace
    threshold: Threshold
    texts: Texts
    split: str
    metric: str
    runtime: dict[str, str]


def measure_all(checkpoints: Sequence[str], options: EvaluationOptions, flops: bool = False) -> list[Measured]:
    """Run every checkpoint once on the same texts.

    Args:
        checkpoints: Local folders or Hub names.
        options: Which texts, and how to run them.
        flops: Whether to count floating-point operations.

    Returns:
        The measurements, with the classes in the order of the first checkpoint.

    Raises:
        ValueError: The checkpoints have different classes, or one of them is given twice.
    """
    if options.exit_threshold is not None:
        raise ValueError(
            f"exit_threshold: got {options.exit_threshold} for {len(checkpoints)} checkpoints, which have "
            "thresholds of their own; leave it out"
        )
    names = names_of(checkpoints)
    check_same_classes(checkpoints, options)
    measured: list[Measured] = []
    if options.train_file and options.validation_fraction is None:
        for checkpoint in checkpoints:  # the rows that one of them held out may be those that another was trained on
            hold_out_as_in_training(options, checkpoint)
    for checkpoint, name in zip(checkpoints, names, strict=True):
        print(f"adaexit: measuring {name}", file=sys.stderr)
        model, tokenizer = load_runtime(checkpoint, options)
        rows, texts, metrics = labelled_splits(model, tokenizer, options)
        split = next(iter(rows))
        trace = trace_splits(model, {split: rows[split]}, options.batch_size, flops)[split]
        if measured:
            trace = in_order(trace, measured[0].trace.label_names)
        threshold = model.config.exit_threshold
        measured.append(Measured(name, trace, threshold, texts[split], split, metrics[0], ran_by(model)))
    check_same_data([each.trace for each in measured], names)
    return measured


def names_of(checkpoints: Sequence[str]) -> list[str]:
    """Names to show: those of the folders, or the whole paths where these are equal.

    Raises:
        ValueError: A checkpoint is given twice.

    >>> names_of(["runs/a", "runs/b/"]), names_of(["one/out", "two/out"])
    (['a', 'b'], ['one/out', 'two/out'])
    """
    twice = next((each for place, each in enumerate(checkpoints) if each in checkpoints[:place]), None)
    if twice is not None:
        raise ValueError(f"checkpoints: '{twice}' is given twice; pass each once")
    names = [
        Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else checkpoint for checkpoint in checkpoints
    ]
    names = [Path(name).name for name in names]
    return names if len(set(names)) == len(names) else list(checkpoints)


def check_same_classes(checkpoints: Sequence[str], options: LoadOptions) -> None:
    """Check from their configs, before anything is run, that checkpoints predict the same classes, in any order.

    Raises:
        ValueError: They do not, or one of them does not exist or has no exits.
    """
    first: Any = None
    for checkpoint in checkpoints:
        config = read_config(checkpoint, options)
        labels = [str(config.id2label[index]) for index in range(config.num_labels)]
        kind = getattr(config, "multi_label", False)
        first = first or (labels, kind)
        unknown = made_up(labels) or made_up(first[0])
        same = len(labels) == len(first[0]) if unknown else sorted(labels) == sorted(first[0])
        if not same or kind != first[1]:
            several = {True: " (several at once)", False: ""}
            raise ValueError(
                f"checkpoints: '{checkpoint}' has the classes {labels[:20]}{several[kind]}, but '{checkpoints[0]}' "
                f"has {first[0][:20]}{several[first[1]]}; compare checkpoints that were trained on the same task"
            )


def in_order(trace: ExitTrace, names: Sequence[str] | None) -> ExitTrace:
    """Return a trace with its classes in the order of these names; unchanged where they have no names.

    >>> import torch
    >>> logits, names = torch.eye(2)[None], ("a", "b")
    >>> trace = ExitTrace(logits, torch.zeros(1, 2), torch.tensor([0]), (1, 2), "gt", label_names=names)
    >>> turned = in_order(trace, ("b", "a"))
    >>> turned.logits.tolist(), turned.labels.tolist(), turned.label_names
    ([[[0.0, 1.0], [1.0, 0.0]]], [1], ('b', 'a'))
    """
    if names is None or trace.label_names is None or made_up(names) or made_up(trace.label_names):
        return trace
    order = [trace.label_names.index(name) for name in names]
    labels = trace.known_labels()
    if trace.multi_label:
        labels = labels[:, order]
    else:
        place = labels.new_tensor([order.index(index) for index in range(len(order))])
        labels = place[labels]
    return dataclasses.replace(trace, logits=trace.logits[..., order], labels=labels, label_names=tuple(names))


def comparison_of(measured: Sequence[Measured]) -> dict[str, Any]:
    """The comparison as a dict that JSON can represent, but for NaN."""
    first = measured[0]
    models = []
    for each in measured:
        result = results_at_threshold(each.trace, (each.metric,), each.threshold)
        interval = score_interval(each.trace, each.metric, each.threshold, each.name)
        models.append(
            {"name": each.name, "method": each.trace.method, "threshold": each.threshold}
            | {"full_depth": result["full_depth"][each.metric], "at_threshold": result["at_threshold"][each.metric]}
            | {"interval": interval, "mean_layers": result["mean_exit_layer"], "depth": each.trace.depth}
            | {"saving": result["saving"]}
            | each.runtime
        )
    majority = majority_score(first.trace, first.metric)
    facts = {"split": first.split, "samples": len(first.trace.logits), "metric": first.metric, "majority": majority}
    return facts | {"models": models}
