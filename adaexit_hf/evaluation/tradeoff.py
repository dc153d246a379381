"""What a trace says: the curve over all thresholds, who leaves where, what every exit is worth, an oracle's bound."""

import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from .collect import collect_trace
from .curves import CurvePoint, PairwiseAreas, area_under_curve, areas_between, choose_threshold
from .metrics import check_classes, metric_function
from .trace import ExitTrace, predictions

__all__ = [
    "CurvePoint",
    "ExitTrace",
    "OracleBound",
    "PairwiseAreas",
    "area_under_curve",
    "areas_between",
    "choose_threshold",
    "collect_trace",
    "exit_histogram",
    "expected_saving",
    "layer_scores",
    "oracle_bound",
    "oracle_exits",
    "predictions",
    "spread_thresholds",
    "tradeoff_curve",
]

Metric = str | Callable[[Tensor, Tensor], float]


class OracleBound(NamedTuple):
    """What the best possible choice of exits would reach, as in a `CurvePoint`."""

    score: float
    mean_layers: float
    saving: float


def expected_saving(exit_layer: Tensor, depth: int) -> float:
    """Fraction of layer executions saved, 1 - sum_i i N_i / (n N), in [0, 1): exit_layer (samples,). DeeBERT, Eq. 2.

    >>> expected_saving(torch.tensor([3, 6, 12, 12]), depth=12)
    0.3125
    """
    return 1 - exit_layer.double().mean().item() / depth


def tradeoff_curve(trace: ExitTrace, metric: Metric, thresholds: Sequence[float] | None = None) -> list[CurvePoint]:
    """Score and cost at every threshold, computed from one trace; by mean layers, cheapest first, full depth last.

    Args:
        trace: with labels.
        metric: (predictions (samples,), labels (samples,)) -> score; predictions are classes, with one label numbers.
            Or the name of a metric, as in `compute_score`; all but "accuracy" need the extra `train`.
        thresholds: which ones; default a hundred, spread over the scores that occur. Full depth is always added.

    >>> scores, labels = torch.tensor([[0.9, 0.0], [0.4, 0.0]]), torch.tensor([1, 1])
    >>> logits = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    >>> trace = ExitTrace(logits, scores, labels, (3, 12), "gt")
    >>> for point in tradeoff_curve(trace, "accuracy", [0.3, 0.6]):
    ...     print(point.threshold, point.score, point.mean_layers, point.saving)
    0.3 0.5 3.0 0.75
    0.6 1.0 7.5 0.375
    None 1.0 12.0 0.0

    Raises:
        ValueError: the trace has no labels, a threshold is outside of its bounds, or no metric has this name.
        TypeError: thresholds that are no list, or what is no metric; ImportError: the extra `train` is not installed.
    """
    score_of, found = _scorer(trace, metric), spread_thresholds(trace) if thresholds is None else thresholds
    if isinstance(found, Real | str | Tensor):
        raise TypeError(f"thresholds: got {found!r}; pass a list of thresholds, e.g. thresholds=[0.5]")
    points = []
    for threshold in [*found, None]:
        chosen = trace.exits_at(threshold)
        score = score_of(chosen)
        flops = None if trace.flops is None else trace.flops.gather(1, chosen[:, None]).double().mean().item()
        points.append(CurvePoint(threshold, score, *_layers(trace, chosen), flops))
    return sorted(points, key=lambda point: (point.mean_layers, point.threshold is None))


def scored_answers(trace: ExitTrace, stacklevel: int = 3) -> Tensor:
    """What every exit answers, as metrics take it, (samples, exits): a class, or the number with one label.

    An answer that is not finite is none: another class than the label stands for it, so that it counts as wrong, and a
    warning says how many there are.

    Args:
        trace: with labels.
        stacklevel: of the warning: 3 points at the line that called the caller.
    """
    labels, answers = trace.known_labels(), predictions(trace.logits)
    lost, classes = ~trace.logits.isfinite().all(dim=-1), trace.logits.shape[-1]
    if not lost.any():
        return answers
    warnings.warn(
        f"trace: {int(lost.sum())} of {lost.numel()} answers, samples times exits, are not finite"
        f"{' and count as wrong' if classes > 1 else ''}; collect it again in a wider dtype, e.g. float32",
        RuntimeWarning,
        stacklevel=stacklevel,
    )
    return answers if classes == 1 else torch.where(lost, (labels[:, None].long() + 1) % classes, answers)


def _scorer(trace: ExitTrace, metric: Metric) -> Callable[[Tensor], float]:
    """(index of the exit that each sample takes, (samples,)) -> score of what they answer."""
    if not isinstance(metric, str) and not callable(metric):
        raise TypeError(
            f"metric: got {metric!r}; pass a name, e.g. 'accuracy', or a function of predictions and labels"
        )
    labels, answers = trace.known_labels(), scored_answers(trace, stacklevel=4)
    score = metric
    if isinstance(score, str):
        check_classes(score, trace.logits.shape[-1])
        score = metric_function(score)
    return lambda chosen: float(score(answers.gather(1, chosen[:, None])[:, 0], labels))


def _layers(trace: ExitTrace, chosen: Tensor) -> tuple[float, float]:
    """Mean layers and saving of the exits with these indices, (samples,)."""
    exit_layer = torch.tensor(trace.exit_layers, device=chosen.device)[chosen]
    return exit_layer.double().mean().item(), expected_saving(exit_layer, trace.depth)


def spread_thresholds(trace: ExitTrace, count: int = 100) -> list[float]:
    """At most `count` thresholds that differ in what they do, and one at which all scores are ready, if there is one.

    Midpoints between quantiles of the scores that occur, so that no score of the trace lies on a threshold, where
    rounding could decide; where all scores are whole numbers, as patience is, those numbers from the second on.

    >>> scores = torch.tensor([[0.5, 0.0], [0.75, 0.0]])
    >>> spread_thresholds(ExitTrace(torch.zeros(2, 2, 2), scores, None, (1, 2), "gt", bounds=(0.0, 1.0)))
    [0.25, 0.625]
    """
    scores = trace.scores[:, :-1].flatten().double()
    scores = scores[scores.isfinite()].unique()
    if not len(scores):
        return []
    low, high = trace.bounds or (-math.inf, math.inf)
    whole = trace.ready in ("ge", "lt") and bool((scores == scores.round()).all())
    found = _most_eager(trace.ready, scores, low, high, whole)
    if len(scores) > 1:
        ranks = torch.linspace(0, len(scores) - 2, min(count, len(scores) - 1)).round().long()
        # A score may lie a rounding error outside of its own bounds.
        between = scores[ranks + 1] if whole else ((scores[ranks] + scores[ranks + 1]) / 2).clamp(low, high)
        found += between.tolist()
    return sorted(set(found))


def _most_eager(ready: str, scores: Tensor, low: float, high: float, whole: bool) -> list[float]:
    """A threshold at which all scores, ascending, are ready, half-way to the bound; [] if there is none."""
    rising = ready in ("lt", "le")  # with the threshold, more are ready
    last = scores[-1 if rising else 0].item()
    room = high - last if rising else last - low
    if room < 0 or (room == 0 and ready in ("lt", "gt")):
        return []
    if ready == "ge" and whole:
        return [last]
    step = min(room / 2, 1 + abs(last))
    return [last + step if rising else last - step]


def exit_histogram(trace: ExitTrace, threshold: float | list[float] | None) -> dict[int, int]:
    """How many samples leave after each exit layer; errors as for `ExitTrace.exits_at`.

    Args:
        trace: with or without labels.
        threshold: as in a config; None is full depth.

    >>> scores = torch.tensor([[0.9, 0.0], [0.4, 0.0], [0.2, 0.0]])
    >>> trace = ExitTrace(torch.zeros(3, 2, 2), scores, None, (3, 12), "gt")
    >>> exit_histogram(trace, 0.6)
    {3: 1, 12: 2}
    """
    counts = torch.bincount(trace.exits_at(threshold), minlength=len(trace.exit_layers))
    return dict(zip(trace.exit_layers, counts.tolist(), strict=True))


def layer_scores(trace: ExitTrace, metric: Metric) -> dict[int, float]:
    """The metric's value at every exit layer if all samples left there; errors as for `ExitTrace.known_labels`.

    Args:
        trace: with labels.
        metric: (predictions (samples,), labels (samples,)) -> score, or a name, as for `tradeoff_curve`.

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


def oracle_exits(trace: ExitTrace, tolerance: float | None = None) -> Tensor:
    """Index of the best possible exit of each sample, (samples,): the earliest that is right.

    Where none is right: the earliest of all, since there is nothing to gain; in regression the nearest answer. An
    answer that is not finite is not right.

    Args:
        trace: with labels.
        tolerance: for regression, and only there: the largest absolute error that counts as right, >= 0, in the unit
            of the labels.

    Raises:
        ValueError: no labels; regression without a tolerance, classes with one, or a negative one.
    """
    labels = trace.known_labels()
    answers = predictions(trace.logits)  # (samples, exits)
    if trace.logits.shape[-1] > 1:
        if tolerance is not None:
            raise ValueError(f"tolerance: got {tolerance} for classes, which are right or wrong; leave it out")
        finite = trace.logits.isfinite().all(dim=-1)
        return (finite & (answers == labels[:, None])).long().argmax(dim=1)  # the first of equals
    if tolerance is None or not tolerance >= 0:
        raise ValueError(
            f"tolerance: got {tolerance}, but numbers are never quite right; pass the largest absolute error that "
            "counts as right, e.g. tolerance=0.5"
        )
    errors = (answers - labels[:, None]).abs().nan_to_num(math.inf)
    right = errors <= tolerance
    return torch.where(right.any(dim=1), right.long().argmax(dim=1), errors.argmin(dim=1))


def oracle_bound(trace: ExitTrace, metric: Metric, tolerance: float | None = None) -> OracleBound:
    """Score and cost if every sample left at its best possible exit: no threshold can be better.

    A bound of what counts right answers, as accuracy; of other metrics it is what they give for those exits.

    Args:
        trace: with labels.
        metric: (predictions (samples,), labels (samples,)) -> score, or a name, as for `tradeoff_curve`.
        tolerance: for regression; as for `oracle_exits`, and so are the errors.

    >>> logits = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    >>> trace = ExitTrace(logits, torch.zeros(2, 2), torch.tensor([1, 1]), (3, 12), "gt")
    >>> oracle_bound(trace, "accuracy")
    OracleBound(score=1.0, mean_layers=7.5, saving=0.375)
    """
    chosen = oracle_exits(trace, tolerance)
    return OracleBound(_scorer(trace, metric)(chosen), *_layers(trace, chosen))
