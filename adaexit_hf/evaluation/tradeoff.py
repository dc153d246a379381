"""Evaluate a trace: trade-off curve, samples per exit, score of every exit, and the bound of an oracle."""

import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..models.configuration_early_exit import check_choice
from .curves import CurvePoint
from .metrics import Metric, MetricLike, as_metric, check_classes, compute_score
from .thresholds import check_max_drop, good_as, spread_thresholds
from .trace import ExitTrace, at_exits, predictions, same_answers, scored_predictions


class OracleBound(NamedTuple):
    """Score and cost of the best possible choice of exits.

    Attributes:
        score: Value of the metric, in its own unit.
        mean_layers: Mean number of layers run per sample, in [1, L].
        saving: Share of layer executions saved, in [0, 1).
    """

    score: float
    mean_layers: float
    saving: float


def expected_saving(exit_layer: Tensor, depth: int) -> float:
    """Compute the share of layer executions that early exit saves (DeeBERT, Eq. 2).

    With `N_i` of `n` samples leaving after layer `i` of `L`, it is `1 - sum_i i * N_i / (n * L)`.

    Args:
        exit_layer: Number of layers run for each sample, 1..L, `(samples,)`.
        depth: Number of layers of the model, L.

    Returns:
        The share saved, in [0, 1).

    Examples:
        >>> expected_saving(torch.tensor([3, 6, 12, 12]), depth=12)
        0.3125
    """
    return 1 - exit_layer.double().mean().item() / depth


def tradeoff_curve(
    trace: ExitTrace, metric: MetricLike, thresholds: Sequence[float] | None = None
) -> list[CurvePoint]:
    """Compute score and cost at every threshold from one trace.

    Args:
        trace: Trace with labels.
        metric: Name of a metric, as in `compute_score` (all but `"accuracy"` need the extra `train`), or a `Metric` of
            your own: `Metric(function, higher_is_better=...)` with a function of true labels and predictions, in the
            order of scikit-learn. A function alone counts as higher-is-better, and a warning says so.
        thresholds: Thresholds to evaluate. Default: at most one hundred, spread over the scores of the trace. Full
            depth is always added.

    Returns:
        One point per threshold, ordered by mean layers, the cheapest first and full depth last; of equal mean layers
        the more eager threshold first. If the metric is given by its name, each point also has the `majority_score`.

    Raises:
        ValueError: If the trace has no labels, a threshold is outside its bounds, or no metric has this name.
        TypeError: If `thresholds` is not a list, or `metric` is neither a name, a `Metric` nor a function.
        ImportError: If the metric needs the extra `train`, which is not installed.

    Examples:
        >>> scores, labels = torch.tensor([[0.9, 0.0], [0.4, 0.0]]), torch.tensor([1, 1])
        >>> logits = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> trace = ExitTrace(logits, scores, labels, (3, 12), "gt")
        >>> for point in tradeoff_curve(trace, "accuracy", [0.3, 0.6]):
        ...     print(point.threshold, point.score, point.mean_layers, point.saving)
        0.3 0.5 3.0 0.75
        0.6 1.0 7.5 0.375
        None 1.0 12.0 0.0
    """
    known = as_metric(metric)
    score_of = _scorer(trace, metric)
    if not isinstance(metric, str | Metric):
        warnings.warn(
            "metric: a higher score counts as better, since a function does not say; pass Metric(f, "
            "higher_is_better=True), or Metric(f, higher_is_better=False) if lower is better",
            stacklevel=2,
        )
    if thresholds is None:
        thresholds = spread_thresholds(trace)
    if isinstance(thresholds, Real | str | Tensor):
        raise TypeError(f"thresholds: got {thresholds!r}; pass a list of thresholds, e.g. thresholds=[0.5]")
    points, settings = [], dict(trace.settings) or None
    # A function of the user's own may not be defined for answers that are all equal.
    majority = majority_score(trace, metric) if isinstance(metric, str) else None
    for threshold in [*thresholds, None]:
        chosen = trace.exits_at(threshold)
        score = score_of(chosen)
        flops = None if trace.flops is None else trace.flops.gather(1, chosen[:, None]).double().mean().item()
        layers, higher_is_better = _layers(trace, chosen), known.higher_is_better
        points.append(CurvePoint(threshold, score, *layers, flops, higher_is_better, settings, majority))
    upwards = -1 if trace.ready in ("lt", "le") else 1  # the direction in which thresholds make fewer samples ready

    def order(point: CurvePoint) -> tuple[float, bool, float]:
        eager = upwards * point.threshold if isinstance(point.threshold, Real) else 0.0
        return point.mean_layers, point.threshold is None, eager

    return sorted(points, key=order)


def scored_answers(trace: ExitTrace, stacklevel: int = 3) -> Tensor:
    """Return the predictions of every exit in the form that metrics take.

    A class that was predicted from logits that are not finite is replaced by one that differs from the label, so that
    it counts as wrong, and a warning says how many there are.

    Args:
        trace: Trace with labels.
        stacklevel: Stack level of the warning; 3 is the line that called the caller.

    Returns:
        Classes, or numbers for regression, `(samples, exits)`; with several labels at once label sets, `(samples,
        exits, labels)`.
    """
    not_finite, classes = ~trace.logits.isfinite().all(dim=-1), trace.logits.shape[-1]
    if not_finite.any():
        warnings.warn(
            f"trace: {int(not_finite.sum())} of {not_finite.numel()} predictions (samples times exits) are not finite"
            f"{' and count as wrong' if classes > 1 else ''}; collect it again in a wider dtype, e.g. float32",
            RuntimeWarning,
            stacklevel=stacklevel,
        )
    return scored_predictions(trace.logits, trace.known_labels())


def _scorer(trace: ExitTrace, metric: MetricLike) -> Callable[[Tensor], float]:
    """Return a function of the exit index of each sample, (samples,), that gives the score of those predictions."""
    if isinstance(metric, str):
        check_classes(metric, trace.logits.shape[-1], trace.multi_label)
    known = as_metric(metric)
    labels = trace.known_labels()
    answers = scored_answers(trace, stacklevel=4)

    def score(chosen: Tensor) -> float:
        return compute_score(known, predictions=at_exits(answers, chosen), references=labels)

    return score


def _layers(trace: ExitTrace, chosen: Tensor) -> tuple[float, float]:
    """Return mean layers and saving if each sample takes the exit with this index, (samples,)."""
    exit_layer = torch.tensor(trace.exit_layers, device=chosen.device)[chosen]
    return exit_layer.double().mean().item(), expected_saving(exit_layer, trace.depth)


def exit_histogram(trace: ExitTrace, threshold: float | list[float] | None) -> dict[int, int]:
    """Count the samples that leave after each exit layer.

    Args:
        trace: Trace with or without labels.
        threshold: Exit threshold, as for `ExitTrace.exits_at`; None is full depth.

    Returns:
        Number of samples by exit layer, for every exit layer.

    Raises:
        TypeError: As `ExitTrace.exits_at`.
        ValueError: As `ExitTrace.exits_at`.

    Examples:
        >>> scores = torch.tensor([[0.9, 0.0], [0.4, 0.0], [0.2, 0.0]])
        >>> trace = ExitTrace(torch.zeros(3, 2, 2), scores, None, (3, 12), "gt")
        >>> exit_histogram(trace, 0.6)
        {3: 1, 12: 2}
    """
    counts = torch.bincount(trace.exits_at(threshold), minlength=len(trace.exit_layers))
    return dict(zip(trace.exit_layers, counts.tolist(), strict=True))


def layer_scores(trace: ExitTrace, metric: MetricLike) -> dict[int, float]:
    """Compute the score of every exit layer if all samples left there.

    Args:
        trace: Trace with labels.
        metric: Name of a metric, a `Metric`, or a function of true labels and predictions, as for `tradeoff_curve`.

    Returns:
        The score by exit layer.

    Raises:
        ValueError: If the trace has no labels, or no metric has this name.
        TypeError: If `metric` is neither a name, a `Metric` nor a function.
        ImportError: If the metric needs the extra `train`, which is not installed.

    Examples:
        >>> logits = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> trace = ExitTrace(logits, torch.zeros(2, 2), torch.tensor([1, 1]), (3, 12), "gt")
        >>> layer_scores(trace, "accuracy")
        {3: 0.5, 12: 1.0}
    """
    score_of = _scorer(trace, metric)
    samples = len(trace.logits)
    return {
        layer: score_of(torch.full((samples,), index, device=trace.logits.device))
        for index, layer in enumerate(trace.exit_layers)
    }


def majority_answer(trace: ExitTrace) -> Tensor:
    """Return the most frequent label of a trace: a class, or a label set; for regression the mean of the labels.

    Args:
        trace: Trace with labels.

    Returns:
        A class or a number, `()`, or with several labels at once a label set, `(labels,)`. Of equally frequent ones
        the lowest.

    Raises:
        ValueError: If the trace has no labels.

    Examples:
        >>> majority_answer(ExitTrace(torch.zeros(3, 1, 2), torch.zeros(3, 1), torch.tensor([1, 0, 1]), (6,), "gt"))
        tensor(1)
    """
    labels = trace.known_labels()
    if trace.logits.shape[-1] == 1:
        return labels.double().mean()
    values, counts = labels.unique(dim=0, return_counts=True)
    return values[counts.argmax()]


def majority_score(trace: ExitTrace, metric: MetricLike) -> float:
    """Compute the score of a model that reads no text: it always gives the most frequent label of the same rows.

    An exit that scores no better has learned nothing that the metric sees. For regression the answer is the mean of
    the labels, whose correlation with anything is 0; with several labels at once it is the most frequent label set.

    Args:
        trace: Trace with labels.
        metric: Name of a metric, a `Metric`, or a function of true labels and predictions, as for `tradeoff_curve`.

    Returns:
        The score.

    Raises:
        ValueError: If the trace has no labels, or no metric has this name.
        TypeError: If `metric` is neither a name, a `Metric` nor a function.
        ImportError: If the metric needs the extra `train`, which is not installed.

    Examples:
        >>> trace = ExitTrace(torch.zeros(4, 1, 2), torch.zeros(4, 1), torch.tensor([1, 0, 1, 1]), (6,), "gt")
        >>> majority_score(trace, "accuracy")
        0.75
    """
    if isinstance(metric, str):
        check_classes(metric, trace.logits.shape[-1], trace.multi_label)
    labels = trace.known_labels()
    return compute_score(metric, predictions=majority_answer(trace).expand_as(labels), references=labels)


def choose_layer(trace: ExitTrace, metric: MetricLike, max_drop: float = 0.01) -> int:
    """Choose one exit layer for all samples: the shallowest one down to which every score is close to full depth's.

    A model leaves there with `exit_criterion="layer"` and this number as `exit_threshold`. A readiness score is worth
    using where it is better than this, which for regression is seldom; see docs/thresholds.md.

    Args:
        trace: Trace with labels, of any exit criterion.
        metric: Name of a metric, a `Metric`, or a function of true labels and predictions, as for `tradeoff_curve`.
        max_drop: Largest loss allowed, relative to the absolute score at full depth, as for `choose_threshold`.

    Returns:
        Number of the layer, 1..L.

    Raises:
        ValueError: If `max_drop` is negative or not below 1, if the trace has no labels, if the score at full depth is
            NaN, or if no metric has this name.
        TypeError: If `metric` is neither a name, a `Metric` nor a function.
        ImportError: If the metric needs the extra `train`, which is not installed.

    Examples:
        >>> logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0]] * 3])
        >>> trace = ExitTrace(logits, torch.zeros(2, 3), torch.tensor([0, 1]), (4, 8, 12), "gt")
        >>> layer_scores(trace, "accuracy"), choose_layer(trace, "accuracy")
        ({4: 0.5, 8: 1.0, 12: 1.0}, 8)
    """
    check_max_drop(max_drop)
    scores = layer_scores(trace, metric)
    full_depth, higher_is_better = scores[trace.depth], as_metric(metric).higher_is_better
    if math.isnan(full_depth):
        raise ValueError(
            "trace: the score at full depth is nan; choose a metric that is defined there, or another model"
        )
    chosen = trace.depth
    for layer, score in reversed(scores.items()):  # as `choose_threshold`: from full depth to the first that is worse
        if not good_as(score, full_depth, max_drop, higher_is_better):
            break
        chosen = layer
    return chosen


Target = Literal["labels", "last_exit"]


def oracle_exits(trace: ExitTrace, tolerance: float | None = None, target: Target = "labels") -> Tensor:
    """Choose the best exit of each sample with knowledge of the target: the earliest exit that gives it.

    If no exit gives the label, it is the first exit, since deeper ones gain nothing; in regression it is the exit with
    the smallest error. A prediction that is not finite is never correct. With several labels at once a prediction is
    correct if the whole label set is.

    Args:
        trace: Trace; with labels, unless the target is the last exit.
        tolerance: Only for regression, and needed there: the largest absolute error that counts as correct, 0 or more,
            in the unit of the labels. Default: None, for classification.
        target: `"labels"` (default), or `"last_exit"`: the prediction of full depth. The latter is the limit of all
            readiness scores that keep the predictions of full depth.

    Returns:
        Index of the exit of each sample, `(samples,)`.

    Raises:
        ValueError: If the trace has no labels, if `tolerance` is missing or negative for regression, if it is given
            for classification, or if the target is another one.

    Examples:
        >>> logits = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> oracle_exits(ExitTrace(logits, torch.zeros(2, 2), torch.tensor([1, 1]), (3, 12), "gt")).tolist()
        [0, 1]
    """
    check_choice("target", target, ("labels", "last_exit"))
    answers = predictions(trace.logits, trace.multi_label)  # (samples, exits), or (samples, exits, labels)
    wanted = trace.known_labels() if target == "labels" else answers[:, -1]
    if trace.logits.shape[-1] > 1:
        if tolerance is not None:
            raise ValueError(
                f"tolerance: got {tolerance}, but the trace is of a classifier; only regression takes one, leave it "
                "out"
            )
        correct = trace.logits.isfinite().all(dim=-1) & same_answers(answers, wanted, trace.multi_label)
        correct[:, -1] |= target == "last_exit"  # also if it is not finite
        return correct.long().argmax(dim=1)  # argmax returns the first maximum
    if tolerance is None or not tolerance >= 0:
        raise ValueError(
            f"tolerance: got {tolerance}, but the trace is of a regression; pass the largest absolute error that "
            "counts as correct, e.g. tolerance=0.5"
        )
    errors = (answers - wanted[:, None]).abs().nan_to_num(math.inf)
    correct = errors <= tolerance
    correct[:, -1] |= target == "last_exit"
    return torch.where(correct.any(dim=1), correct.long().argmax(dim=1), errors.argmin(dim=1))


def oracle_bound(
    trace: ExitTrace, metric: MetricLike, tolerance: float | None = None, target: Target = "labels"
) -> OracleBound:
    """Compute score and cost if every sample took its best exit, as `oracle_exits` chooses it.

    No threshold can be better. This is a bound for metrics that count correct predictions, such as accuracy; for other
    metrics it is only their score at these exits. With `target="last_exit"` it is the limit of all readiness scores
    that keep the predictions of full depth: how few layers suffice if each sample leaves at the first exit that gives
    its prediction.

    Args:
        trace: Trace with labels.
        metric: Name of a metric, a `Metric`, or a function of true labels and predictions, as for `tradeoff_curve`.
        tolerance: Only for regression, as for `oracle_exits`.
        target: As for `oracle_exits`.

    Returns:
        Score, mean layers and saving.

    Raises:
        ValueError: As `oracle_exits`, or if no metric has this name.
        TypeError: If `metric` is neither a name, a `Metric` nor a function.
        ImportError: If the metric needs the extra `train`, which is not installed.

    Examples:
        >>> logits = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> trace = ExitTrace(logits, torch.zeros(2, 2), torch.tensor([1, 1]), (3, 12), "gt")
        >>> oracle_bound(trace, "accuracy")
        OracleBound(score=1.0, mean_layers=7.5, saving=0.375)
    """
    chosen = oracle_exits(trace, tolerance, target)
    return OracleBound(_scorer(trace, metric)(chosen), *_layers(trace, chosen))
