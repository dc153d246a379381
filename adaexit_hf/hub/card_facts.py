"""The facts on a model card: data set, measurements and training arguments; and the checks of these facts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any, NamedTuple, TypedDict

from transformers import TrainingArguments

from ..evaluation.curves import CurvePoint
from ..evaluation.summary import changed_setting

TRAINING = """
    learning_rate exits_learning_rate per_device_train_batch_size gradient_accumulation_steps num_train_epochs
    max_steps optim weight_decay lr_scheduler_type warmup_steps max_grad_norm bf16 fp16 seed
"""


class CardDataset(NamedTuple):
    """The data set that a model was trained and evaluated on.

    Attributes:
        name: name to show, e.g. "GLUE MRPC".
        hub_id: name on the Hub, e.g. "nyu-mll/glue". Default: None, for a data set that is not on the Hub.
        config: name of the configuration on the Hub, e.g. "mrpc". Default: none.
        revision: commit or branch on the Hub. Default: none.
        pairs: whether a row is a pair of texts. Default: False.

    Examples:
        >>> CardDataset("GLUE MRPC", "nyu-mll/glue", config="mrpc", pairs=True).hub_id
        'nyu-mll/glue'
    """

    name: str
    hub_id: str | None = None
    config: str | None = None
    revision: str | None = None
    pairs: bool = False


class MeasuredSpeed(NamedTuple):
    """The measured speed-up by early exit, in wall-clock time.

    Attributes:
        machine: the hardware, e.g. "2 cores of an AMD EPYC 9B45".
        how: batches, dtype, baseline and number of runs.
        speed_up: threshold -> time at full depth divided by time at that threshold, > 0; values above 1 are faster.
        settings: `exit_criterion`, `exit_temperatures` and `patience_tolerance` of the measured model; must be those
            of the model's config. Default: empty, unknown.

    Examples:
        >>> speed = MeasuredSpeed("2 cores of an AMD EPYC 9B45", "batches of 32, float32, median of 5", {0.9: 1.6})
        >>> speed.speed_up[0.9]
        1.6
    """

    machine: str
    how: str
    speed_up: Mapping[float, float]
    settings: Mapping[str, Any] = MappingProxyType({})


class _Measured(TypedDict):
    at_threshold: Mapping[str, float]


class SplitMetrics(_Measured, total=False):
    """Measurements on one split, as in `metrics.json`; only `at_threshold` is required.

    Attributes:
        at_threshold: metric -> value, with early exit at `exit_threshold`.
        full_depth: metric -> value, with all layers.
        exit_threshold: threshold of the measurement; must be the one in the model's config, and so must be
            exit_criterion: its exit criterion,
            exit_temperatures: its temperatures, and
            patience_tolerance: its tolerance.
        majority: metric -> value of always giving the most frequent label of the same texts.
        samples: number of texts.
        data: names of data set and split, and a fingerprint.
        version: version of this package that measured.
        mean_exit_layer: mean number of layers that a text runs, from 1 to the number of layers L.
        saving: share of layer executions that are saved, in [0, 1).
        exit_histogram: layer -> number of texts that exit after it.
        cross_fitted_thresholds: on the split on which the threshold was chosen: the thresholds of the two halves of
            `cross_fitted`, whose results these are.
    """

    full_depth: Mapping[str, float]
    exit_threshold: float | list[float] | None
    exit_criterion: str | None
    exit_temperatures: list[float] | None
    patience_tolerance: float | None
    majority: Mapping[str, float]
    samples: int
    data: Mapping[str, Any]
    version: str
    mean_exit_layer: float
    saving: float
    exit_histogram: Mapping[str, int]
    cross_fitted_thresholds: list[float | None]


def training_facts(args: TrainingArguments, rows: int | None = None) -> dict[str, Any]:
    """The training arguments that a card shows: those that influence the result, and no paths of the machine.

    Args:
        args: the training arguments; `stage_overrides` are included if there are any.
        rows: number of rows of the training set. Default: unknown.

    Returns:
        Argument -> value.
    """
    existing = {field.name for field in fields(args)}
    facts = {name: getattr(args, name) for name in [*TRAINING.split(), "stage_overrides"] if name in existing}
    # The text of an enum; None, as of `exits_learning_rate`, is an argument that was not used.
    facts = {name: getattr(value, "value", value) for name, value in facts.items() if value is not None}
    return {"training rows": rows, "processes": args.world_size, **facts} if rows else facts


def check_facts(
    settings: Mapping[str, Any],
    curve: Sequence[CurvePoint],
    metrics: Mapping[str, SplitMetrics],
    speed: MeasuredSpeed | None,
) -> None:
    """Check the measurements on a card.

    Args:
        settings: the settings in the model's config that decide where a text exits, from `exit_settings`.
        curve: the trade-off curve.
        metrics: split -> measurements.
        speed: the measured speed-up, if there is one.

    Raises:
        ValueError: if a number is NaN or infinite; if metrics, curve or speed were measured at another threshold,
            criterion or temperatures than the model's; or if a speed-up is not positive, or at a threshold that the
            curve does not have.
    """
    for description, value in _numbers(curve, metrics):
        if value is None or not math.isfinite(value):  # None is NaN in a JSON file
            raise ValueError(
                f"{description} is {value}; a card reports finite numbers only: leave it out, or use another metric"
            )
    for split, measured in metrics.items():
        changed = changed_setting(measured, settings)
        if changed:
            raise ValueError(f"metrics: '{split}' was {changed}; measure it again, or set model.config as it was")
    for point in curve:
        changed = changed_setting(point.settings or {}, settings)
        if changed:
            raise ValueError(f"curve: was {changed}; collect the trace again, or set model.config as it was")
    changed = changed_setting(speed.settings, settings) if speed else None
    if changed:
        raise ValueError(f"speed: was {changed}; measure it again, or set model.config as it was")
    for speed_threshold, speed_up in (speed.speed_up if speed else {}).items():
        if not (math.isfinite(speed_up) and speed_up > 0):
            raise ValueError(
                f"speed: the speed-up at threshold {speed_threshold} is {speed_up}; pass a ratio of times, above 0"
            )
        if speed_threshold not in [point.threshold for point in curve]:
            raise ValueError(
                f"speed: threshold {speed_threshold} is not in the curve; pass tradeoff_curve(trace, metric, "
                "thresholds) with this threshold"
            )


def _numbers(curve: Sequence[CurvePoint], metrics: Mapping[str, SplitMetrics]) -> Iterator[tuple[str, float | None]]:
    """Every number on a card, with a description for error messages."""
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
