"""What a model card is made of: data, measurements and training; and what it refuses to report."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, TypedDict

from transformers import TrainingArguments

from ..evaluation.curves import CurvePoint

TRAINING = """
    learning_rate per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps optim weight_decay
    lr_scheduler_type warmup_steps max_grad_norm bf16 fp16 seed
"""


class CardDataset(NamedTuple):
    """The data behind a card's numbers.

    Args:
        name: for people, e.g. "GLUE MRPC".
        hub_id: e.g. "nyu-mll/glue"; None for data that is not on the Hub.
        config: its configuration there, e.g. "mrpc".
        revision: its commit or branch there.
        pairs: is a row two texts?
    """

    name: str
    hub_id: str | None = None
    config: str | None = None
    revision: str | None = None
    pairs: bool = False


class MeasuredSpeed(NamedTuple):
    """What early exit gained on the clock.

    Args:
        machine: what it ran on, e.g. "2 cores of an AMD EPYC 9B45".
        how: batches, dtype, baseline, number of runs.
        speed_up: threshold -> seconds at full depth divided by seconds at that threshold, above 0.
    """

    machine: str
    how: str
    speed_up: Mapping[float, float]


class _Measured(TypedDict):
    at_threshold: Mapping[str, float]


class SplitMetrics(_Measured, total=False):
    """What was measured on one split, as in `metrics.json`; only `at_threshold` must be there.

    Args:
        at_threshold: metric -> value, with the exits of `exit_threshold`.
        full_depth: metric -> value, with every layer.
        exit_threshold: where it was measured; must be the model's.
        samples: number of texts.
        mean_exit_layer: layers run per text, in [1, L].
        saving: share of layer executions saved, in [0, 1).
        exit_histogram: layer -> number of texts that left there.
    """

    full_depth: Mapping[str, float]
    exit_threshold: float | list[float] | None
    samples: int
    mean_exit_layer: float
    saving: float
    exit_histogram: Mapping[str, int]


def training_facts(args: TrainingArguments, rows: int | None = None) -> dict[str, Any]:
    """What a card says of the training: the arguments that decide its outcome, nothing of the machine's paths.

    Args:
        rows: of the training set, if they can be counted.
    """
    known = {field.name for field in fields(args)}
    facts = {name: getattr(args, name) for name in [*TRAINING.split(), "stage_overrides"] if name in known}
    facts = {name: getattr(value, "value", value) for name, value in facts.items()}  # of an enum, its text
    return {"training rows": rows, "processes": args.world_size, **facts} if rows else facts


def check_facts(
    threshold: float | list[float] | None,
    curve: Sequence[CurvePoint],
    metrics: Mapping[str, SplitMetrics],
    speed: MeasuredSpeed | None,
) -> None:
    """Refuse what a card must not report.

    Args:
        threshold: the model's.

    Raises:
        ValueError: a number that is NaN or infinite; metrics measured at another threshold than the model's; a
            speed-up that is not positive, or at a threshold that the curve does not have.
    """
    for what, value in _numbers(curve, metrics):
        if value is None or not math.isfinite(value):  # None in a file, since JSON has no NaN
            raise ValueError(
                f"{what} is {value}; a card reports finite numbers only, leave it out or use a metric that is defined"
            )
    for split, measured in metrics.items():
        at = measured.get("exit_threshold", threshold)
        if at != threshold:
            raise ValueError(
                f"metrics: '{split}' was measured at exit_threshold {at}, but the model's is {threshold}; measure it "
                "again, or set model.config.exit_threshold"
            )
    for at, speed_up in (speed.speed_up if speed else {}).items():
        if not (math.isfinite(speed_up) and speed_up > 0):
            raise ValueError(f"speed: the speed-up at threshold {at} is {speed_up}; pass a ratio of times, above 0")
        if at not in [point.threshold for point in curve]:
            raise ValueError(
                f"speed: threshold {at} is none of the curve's; pass tradeoff_curve(trace, metric, thresholds) with it"
            )


def _numbers(curve: Sequence[CurvePoint], metrics: Mapping[str, SplitMetrics]) -> Iterator[tuple[str, float | None]]:
    """Every number that a card shows, with the name of where it comes from."""
    for point in curve:
        for name in ("score", "mean_layers", "saving"):
            yield f"curve: {name} at threshold {point.threshold}", getattr(point, name)
    for split, measured in metrics.items():
        for kind in ("at_threshold", "full_depth"):
            values: Any = measured.get(kind, {})
            for metric, value in values.items():
                yield f"metrics: '{metric}' of '{split}' ({kind})", value
        for name in ("mean_exit_layer", "saving"):
            yield f"metrics: {name} of '{split}'", float(measured.get(name, 0.0))  # type: ignore[arg-type]
