"""Honest scores: thresholds are chosen on one half of the rows, and the other half is scored with them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .curves import CurvePoint
from .metrics import check_classes, compute_score
from .thresholds import best_point, choose_within, spread_thresholds
from .trace import ExitTrace, at_exits
from .tradeoff import expected_saving, scored_answers, tradeoff_curve


class NoHalvesError(ValueError):
    """The rows have no two halves on which a threshold can be chosen."""


class CrossFitted(NamedTuple):
    """Scores of early exit at thresholds that were chosen on other rows.

    Attributes:
        scores: Metric -> value over all rows, in its own unit.
        mean_layers: Mean number of layers run per sample, in [1, L].
        saving: Share of layer executions saved, in [0, 1).
        thresholds: The threshold chosen on the first half, which answers the second, and that chosen on the second;
            None is full depth.
        exits: Index of the exit of each sample, `(samples,)`.
        half_layers: In a regression whose halves leave at different layers, all texts of a half at the same: the layer
            that was chosen on the first half, and that chosen on the second. Otherwise None.
    """

    scores: dict[str, float]
    mean_layers: float
    saving: float
    thresholds: tuple[float | None, float | None]
    exits: Tensor
    half_layers: tuple[int, int] | None


def cross_fitted(
    trace: ExitTrace,
    metrics: Sequence[str],
    max_drop: float | None = None,
    seed: int = 0,
    *,
    max_layers: float | None = None,
    also: Sequence[float] = (),
) -> CrossFitted:
    """Score early exit on the rows on which its threshold is chosen, but no row with a threshold chosen on that row.

    The rows are split into two halves. A threshold is chosen on each half, and each half is answered with the
    threshold of the other one. The metrics are computed over the answers to all rows. The score is that of choosing on
    half of the rows; a threshold for use is chosen on all of them.

    In a regression, all texts of one half may leave at one exit, and those of the other half at another. No model
    answers like that, and a correlation over both halves would compare the scales of two exits. A score is then the
    mean of the scores of the halves.

    Args:
        trace: Trace with labels, of at least two rows.
        metrics: Names of the metrics; the threshold is chosen by the first.
        max_drop: As for `choose_threshold`. Default: 0.01, unless `max_layers` is given.
        seed: Seed of the split. The halves depend on it and on the labels alone, so that all methods and training runs
            have the same ones. Default: 0.
        max_layers: If given, choose by `choose_within` instead: the most layers up to this mean number.
            Default: None.
        also: Thresholds to try besides those that are spread over the scores of each half. Default: none.

    Returns:
        Scores and cost over all rows, and the two thresholds.

    Raises:
        NoHalvesError: If there is only one row, or if a metric is not defined on a half. It is a `ValueError`.
        ValueError: As `choose_threshold` or `choose_within`, for each half; if the trace has no labels; or if a metric
            is unknown.

    Examples:
        >>> labels = torch.tensor([0, 1] * 4)
        >>> logits = torch.stack([torch.eye(2)[0].expand(8, 2), torch.eye(2)[labels]], dim=1)  # exit 1 answers 0
        >>> trace = ExitTrace(logits, torch.stack([1.0 - labels, torch.zeros(8)], dim=1), labels, (3, 12), "gt")
        >>> honest = cross_fitted(trace, ["accuracy"])
        >>> honest.scores, honest.mean_layers, honest.thresholds
        ({'accuracy': 1.0}, 7.5, (0.5, 0.5))
    """
    if not metrics or isinstance(metrics, str):
        raise ValueError(f"metrics: got {metrics!r}; pass a list of one name or more, e.g. ['accuracy']")
    if max_drop is not None and max_layers is not None:
        raise ValueError(f"max_drop, max_layers: got {max_drop}, {max_layers}; pass one of them")
    for name in metrics:
        check_classes(name, trace.logits.shape[-1], trace.multi_label)

    def choose(curve: Sequence[CurvePoint]) -> CurvePoint:
        if max_layers is not None:
            return choose_within(curve, max_layers)
        return best_point(curve, 0.01 if max_drop is None else max_drop)

    return with_thresholds_of_other_half(trace, half_curves(trace, metrics[0], seed, also), metrics, choose)


class HalfCurve(NamedTuple):
    """The trade-off curve of one half of the rows.

    Attributes:
        curve: The curve.
        other: Indices of the rows of the other half, which are answered with a threshold of this curve.
    """

    curve: list[CurvePoint]
    other: Tensor


def half_curves(trace: ExitTrace, metric: str, seed: int = 0, also: Sequence[float] = ()) -> list[HalfCurve]:
    """Compute the curves of both halves, from which thresholds may be chosen in several ways.

    Args:
        trace: Trace with labels, of at least two rows.
        metric: Name of the metric.
        seed: As for `cross_fitted`.
        also: As for `cross_fitted`.

    Raises:
        NoHalvesError: If there is only one row, or if the metric is not defined on a half. It is a `ValueError`.
        ValueError: If the trace has no labels.
    """
    classes = trace.logits.shape[-1] > 1 and not trace.multi_label
    labels = trace.known_labels()
    try:
        first, second = split_in_halves(labels, seed, classes)
        parts = [(trace.take(half), other) for half, other in ((first, second), (second, first))]
        return [
            HalfCurve(tradeoff_curve(part, metric, [*spread_thresholds(part), *also]), other) for part, other in parts
        ]
    except ValueError as error:
        raise NoHalvesError(str(error)) from error


def with_thresholds_of_other_half(
    trace: ExitTrace,
    halves: Sequence[HalfCurve],
    metrics: Sequence[str],
    choose: Callable[[Sequence[CurvePoint]], CurvePoint],
) -> CrossFitted:
    """Answer each half of the rows with the threshold that is chosen from the curve of the other one.

    Args:
        trace: The trace.
        halves: Its `half_curves`.
        metrics: Names of the metrics to compute over all rows.
        choose: Chooses a point of a curve.
    """
    exits, chosen = torch.empty(len(trace.logits), dtype=torch.long), []
    for curve, other in halves:
        threshold = choose(curve).threshold
        exits[other] = trace.take(other).exits_at(threshold)
        chosen.append(threshold)
    answered, labels = at_exits(scored_answers(trace), exits), trace.known_labels()
    layers = torch.tensor(trace.exit_layers)[exits]
    parts, half_layers = [other for _, other in halves], None
    if trace.logits.shape[-1] == 1 and _at_different_exits(exits, parts):
        half_layers = (int(layers[parts[0][0]]), int(layers[parts[1][0]]))
    else:
        parts = [torch.arange(len(exits))]

    def score(metric: str) -> float:
        scores = [compute_score(metric, predictions=answered[rows], references=labels[rows]) for rows in parts]
        return sum(value * (len(rows) / len(exits)) for rows, value in zip(parts, scores, strict=True))

    return CrossFitted(
        {name: score(name) for name in metrics},
        layers.double().mean().item(),
        expected_saving(layers, trace.depth),
        (chosen[0], chosen[1]),
        exits,
        half_layers,
    )


def _at_different_exits(exits: Tensor, halves: Sequence[Tensor]) -> bool:
    """Return whether all texts of each half leave at one exit, but not those of all halves at the same.

    Args:
        exits: Index of the exit of each sample, `(samples,)`.
        halves: Indices of the samples of each half.

    Examples:
        >>> halves = [torch.tensor([0, 1]), torch.tensor([2, 3])]
        >>> [_at_different_exits(torch.tensor(exits), halves) for exits in ([0, 0, 2, 2], [0, 0, 0, 0], [0, 1, 2, 2])]
        [True, False, False]
    """
    return len(exits.unique()) > 1 and all(len(exits[half].unique()) == 1 for half in halves)


def split_in_halves(labels: Tensor, seed: int = 0, classes: bool = True) -> tuple[Tensor, Tensor]:
    """Split rows at random into two halves, in which every class has the same number of rows, or one more in one half.

    Args:
        labels: Class of each row, `(rows,)`; or anything with one entry per row if there are no classes.
        seed: Seed of the split.
        classes: Whether labels are classes.

    Returns:
        Indices of the rows of both halves, ascending. If the number of rows is odd, the first half has one more.

    Raises:
        ValueError: If there are fewer than two rows.

    Examples:
        >>> first, second = split_in_halves(torch.tensor([0] * 6 + [1] * 2))
        >>> len(first), len(second), int((first > 5).sum()), int((second > 5).sum())
        (4, 4, 1, 1)
    """
    if len(labels) < 2:
        raise ValueError(f"trace: got {len(labels)} row, which cannot be split into halves; collect at least two rows")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if classes:
        order = order[labels[order].argsort(stable=True)]
    return order[::2].sort().values, order[1::2].sort().values
