"""Choose a threshold from a trade-off curve, and the thresholds at which a curve is computed."""

import math
import warnings
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from ..models.exit_criteria import counted
from .curves import CurvePoint, MeanPoint, check_direction
from .trace import ExitTrace


def choose_threshold(curve: Sequence[CurvePoint], max_drop: float = 0.01) -> CurvePoint:
    """Choose the point with the largest saving up to which every score is close enough to that of full depth.

    The points are tried from full depth on, one after the other with fewer layers, and the last one before the first
    that loses too much is chosen. A point beyond it may have a score that is good enough again, but mostly by chance:
    of a hundred points the luckiest one would be chosen, which loses about twice as much on other rows.

    Args:
        curve: Curve from `tradeoff_curve` on a validation set.
        max_drop: Largest loss allowed, relative to the absolute score at full depth, from 0 to below 1; 0.01 (default)
            allows to lose one percent of that score, 0 nothing. Where a lower score is better, a loss is an increase.

    Returns:
        The point with the largest saving of those before the first that loses more than allowed; of equal savings the
        one with the better score. It is full depth (`threshold` None) if no other point qualifies. A warning says if
        the choice saves nothing though other points do, or is no better than always giving the most frequent answer.

    Raises:
        ValueError: If `max_drop` is negative or not below 1, if the curve has not exactly one point at full depth or
            its score there is NaN, or if the curve is a mean over runs, which has no thresholds.

    Examples:
        >>> full, half = CurvePoint(None, 0.80, 12.0, 0.0), CurvePoint(0.3, 0.795, 6.0, 0.5)
        >>> choose_threshold([half, full]).threshold  # loses 0.6 %
        0.3
        >>> worse, lucky = CurvePoint(0.2, 0.78, 4.0, 0.67), CurvePoint(0.1, 0.80, 3.0, 0.75)
        >>> choose_threshold([lucky, worse, half, full]).threshold
        0.3
    """
    chosen = best_point(curve, max_drop)
    if not chosen.saving and any(point.saving for point in curve):
        warnings.warn(
            f"curve: no threshold saves layers within max_drop={max_drop}, so that all texts run all layers; allow a "
            "larger max_drop, or train the exits for longer or faster",
            stacklevel=2,
        )
    if chosen.no_better_than_majority:
        warnings.warn(
            f"curve: the score of the choice, {chosen.score:.4g}, is no better than that of always giving the most "
            f"frequent answer, {chosen.majority:.4g}; choose by another metric or with a smaller max_drop, or train "
            "for longer",
            stacklevel=2,
        )
    return chosen


def best_point(curve: Sequence[CurvePoint], max_drop: float) -> CurvePoint:
    """Choose as `choose_threshold` does, without its warnings.

    Examples:
        >>> full, half = CurvePoint(None, 0.80, 12.0, 0.0), CurvePoint(0.3, 0.795, 6.0, 0.5)
        >>> print(best_point([half, full], max_drop=0.001).threshold)  # the half loses 0.6 %
        None
    """
    check_max_drop(max_drop)
    _check_one_run(curve)
    at_full_depth = [point for point in curve if point.threshold is None]
    if len(at_full_depth) != 1:
        raise ValueError(
            f"curve: has {len(at_full_depth) or 'no'} points at full depth (threshold None); pass a curve from "
            "tradeoff_curve, which has one"
        )
    (full,) = at_full_depth
    if math.isnan(full.score):
        raise ValueError(
            "curve: the score at full depth is nan; choose a metric that is defined there, or another model"
        )
    higher_is_better = check_direction(curve)
    sign = 1 if higher_is_better else -1
    by_saving: dict[float, CurvePoint] = {}
    # A score that is NaN is the worst.
    for point in sorted(curve, key=lambda point: -math.inf if math.isnan(point.score) else sign * point.score):
        by_saving[point.saving] = point
    chosen = full
    for _, point in sorted(by_saving.items()):
        if not good_as(point.score, full.score, max_drop, higher_is_better):
            break
        chosen = point
    return chosen


def choose_within(curve: Sequence[CurvePoint], max_layers: float) -> CurvePoint:
    """Choose the point that runs the most layers within a budget.

    It is not the point with the best score, which among a hundred points is mostly luck: on other rows the budget that
    is spent gives the better scores.

    Args:
        curve: Curve from `tradeoff_curve` on a validation set.
        max_layers: Largest mean number of layers per sample.

    Returns:
        The point with the most layers; of equal numbers of layers the one with the better score.

    Raises:
        ValueError: If no point of the curve runs so few layers, if a score is NaN, or if the curve is a mean over
            runs, which has no thresholds.

    Examples:
        >>> full, half = CurvePoint(None, 0.80, 12.0, 0.0), CurvePoint(0.3, 0.795, 6.0, 0.5)
        >>> choose_within([half, full], max_layers=8).threshold
        0.3
    """
    _check_one_run(curve)
    few_enough = [point for point in curve if point.mean_layers <= max_layers]
    if not few_enough:
        fewest = min((point.mean_layers for point in curve), default=math.nan)
        raise ValueError(
            f"max_layers: got {max_layers}, but every point of the curve runs at least {fewest:.4g} layers; pass "
            "more, or give tradeoff_curve thresholds at which more samples leave early"
        )
    if any(math.isnan(point.score) for point in few_enough):
        raise ValueError("curve: has a score that is nan; choose a metric that is defined there, or another model")
    sign = 1 if check_direction(curve) else -1
    return max(few_enough, key=lambda point: (point.mean_layers, sign * point.score))


def good_as(score: float, full_depth: float, max_drop: float, higher_is_better: bool) -> bool:
    """Return whether a score loses at most the fraction `max_drop` of that at full depth; NaN never does.

    Args:
        score: The score.
        full_depth: The score at full depth.
        max_drop: As for `choose_threshold`.
        higher_is_better: Whether a higher score is better.

    Examples:
        >>> good_as(0.795, 0.8, 0.01, True), good_as(0.79, 0.8, 0.01, True), good_as(2.1, 2.0, 0.01, False)
        (True, False, False)
    """
    sign = 1 if higher_is_better else -1
    return sign * score >= sign * full_depth - max_drop * abs(full_depth)


def _check_one_run(curve: Sequence[CurvePoint]) -> None:
    if any(isinstance(point, MeanPoint) for point in curve):
        raise ValueError(
            "curve: is a mean over runs, which has no thresholds; choose on the curve of each run, from tradeoff_curve"
        )


def check_max_drop(max_drop: float) -> None:
    """Check the argument `max_drop` of `choose_threshold`.

    Raises:
        ValueError: If it is negative, or 1 or more, which would allow any score and is most likely meant in percent.
        TypeError: If it is no number.

    Examples:
        >>> check_max_drop(2)
        Traceback (most recent call last):
            ...
        ValueError: max_drop: got 2; pass a fraction from 0 to below 1, e.g. 0.01. Did you mean 0.02 (2%)?
    """
    if not isinstance(max_drop, Real):
        raise TypeError(f"max_drop: got {max_drop!r}; pass a fraction from 0 to below 1, e.g. 0.01")
    if not 0 <= max_drop < 1:
        meant = f". Did you mean {max_drop / 100:g} ({max_drop:g}%)?" if 1 <= max_drop < 100 else ""
        raise ValueError(f"max_drop: got {max_drop:g}; pass a fraction from 0 to below 1, e.g. 0.01{meant}")


def spread_thresholds(trace: ExitTrace, count: int = 100) -> list[float]:
    """Choose thresholds that separate the scores of a trace.

    The thresholds are midpoints between quantiles of the scores, so that no score of the trace equals a threshold,
    where rounding could decide. If all scores are whole numbers, as with patience, the thresholds are those numbers,
    from the second on. One more threshold makes all samples leave at the first exit, if the bounds allow one.

    Args:
        trace: Trace with or without labels.
        count: Largest number of thresholds, the one for the first exit not included. Default: 100.

    Returns:
        Distinct thresholds, ascending.

    Examples:
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
    thresholds = _first_exit_threshold(trace.ready, scores, low, high, whole)
    if len(scores) > 1:
        ranks = torch.linspace(0, len(scores) - 2, min(count, len(scores) - 1)).round().long()
        # Rounding can put a score slightly outside the bounds of its criterion.
        between = scores[ranks + 1] if whole else ((scores[ranks] + scores[ranks + 1]) / 2).clamp(low, high)
        thresholds += between.tolist()
    return sorted(set(thresholds))


def fixed_thresholds(trace: ExitTrace) -> list[float]:
    """Choose thresholds by the exit criterion alone, so that they depend on no text.

    50 are spread evenly over the range of the criterion. 60 more approach its strict end, where the scores of a
    confident model crowd: their distances from it are powers of ten from 1 to 0.00001 of the range. For criteria that
    count (patience, layer) they are the whole numbers.

    Args:
        trace: Trace with or without labels, of which criterion and bounds are used.

    Returns:
        Distinct thresholds, the strictest first.

    Raises:
        ValueError: If the trace has no finite bounds.

    Examples:
        >>> trace = ExitTrace(torch.zeros(1, 2, 2), torch.zeros(1, 2), None, (1, 2), "gt", bounds=(0.0, 1.0))
        >>> [round(threshold, 6) for threshold in fixed_thresholds(trace)][:3]
        [0.99999, 0.999988, 0.999985]
        >>> [round(threshold, 6) for threshold in fixed_thresholds(trace)][-3:]
        [0.04, 0.02, 0.0]
    """
    low, high = trace.bounds or (-math.inf, math.inf)
    if not math.isfinite(high - low):
        raise ValueError(
            f"trace: its bounds are {trace.bounds}, so no thresholds can be spread over them; pass "
            "thresholds=[...] that were chosen on other data"
        )
    upwards = trace.ready in ("lt", "le")  # a higher threshold makes more scores ready
    if counted(trace.criterion):
        return sorted(map(float, range(math.ceil(low), math.floor(high) + 1)), reverse=not upwards)
    shares = {step / 50 for step in range(1, 51)} | {10 ** (-5 * step / 60) for step in range(61)}
    distances = [share * (high - low) for share in sorted(shares)]
    # Where a score may be equal to its threshold, as with a share of 1, the strict end is one.
    distances = [0.0] * (trace.ready in ("le", "ge")) + distances
    return [low + distance if upwards else high - distance for distance in distances]


def _first_exit_threshold(ready: str, scores: Tensor, low: float, high: float, whole: bool) -> list[float]:
    """Return a threshold at which all scores (ascending) are ready, half-way to the bound; [] if there is none."""
    upwards = ready in ("lt", "le")  # a higher threshold makes more scores ready
    extreme = scores[-1 if upwards else 0].item()
    room = high - extreme if upwards else extreme - low
    if room < 0 or (room == 0 and ready in ("lt", "gt")):
        return []
    if ready == "ge" and whole:
        return [extreme]
    step = min(room / 2, 1 + abs(extreme))
    return [extreme + step if upwards else extreme - step]
