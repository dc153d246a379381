"""Choose a threshold from a trade-off curve, and the thresholds at which a curve is computed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .curves import CurvePoint, MeanPoint, check_direction
from .trace import ExitTrace


def choose_threshold(curve: Sequence[CurvePoint], max_drop: float = 0.01) -> CurvePoint:
    """Choose the point with the largest saving whose score is close enough to that of full depth.

    Args:
        curve: Curve from `tradeoff_curve` on a validation set.
        max_drop: Largest loss allowed, relative to the absolute score at full depth, from 0 to 1; 0.01 (default)
            allows to lose one percent of that score, 0 nothing. Where a lower score is better, a loss is an increase.

    Returns:
        The point with the largest saving among those that lose no more than allowed; of equal savings the one with
        the better score. It is full depth (`threshold` None) if no other point qualifies.

    Raises:
        ValueError: If `max_drop` is not between 0 and 1, if the curve has not exactly one point at full depth or its
            score there is NaN, or if the curve is a mean over runs, which has no thresholds.

    Examples:
        >>> full, half = CurvePoint(None, 0.80, 12.0, 0.0), CurvePoint(0.3, 0.795, 6.0, 0.5)
        >>> choose_threshold([half, full]).threshold  # loses 0.6 %
        0.3
        >>> print(choose_threshold([half, full], max_drop=0.001).threshold)
        None
    """
    check_max_drop(max_drop)
    if any(isinstance(point, MeanPoint) for point in curve):
        raise ValueError(
            "curve: is a mean over runs, which has no thresholds; choose on the curve of each run, from tradeoff_curve"
        )
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
    sign = 1 if check_direction(curve) else -1
    floor = sign * full.score - max_drop * abs(full.score)
    good_enough = [point for point in curve if sign * point.score >= floor]
    return max(good_enough, key=lambda point: (point.saving, sign * point.score))


def check_max_drop(max_drop: float) -> None:
    """Check the argument `max_drop` of `choose_threshold`.

    Raises:
        ValueError: If it is not between 0 and 1.
    """
    if not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop: got {max_drop}; pass a fraction from 0 to 1, e.g. 0.01 for one percent")


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
