"""Trade-off curves, wherever they come from: areas under and between them, and the choice of a threshold."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..models.configuration_early_exit import check_whole_number

Cost = Literal["layers", "flops"]


class CurvePoint(NamedTuple):
    """Quality and cost at one threshold.

    Args:
        threshold: in the method's own unit; None is full depth.
        score: the metric's value, in its own unit.
        mean_layers: layers run per sample, in [1, L].
        saving: fraction of layer executions saved, in [0, 1) (DeeBERT, Eq. 2).
        flops: floating-point operations per sample; None where the trace does not know them.
    """

    threshold: float | None
    score: float
    mean_layers: float
    saving: float
    flops: float | None = None


class PairwiseAreas(NamedTuple):
    """By how much either of two curves lies above the other, in the metric's unit times that of the cost.

    Args:
        first_above: area of the first curve above the second, >= 0.
        second_above: the other way round.
        start: the costs that both curves have, from here ...
        end: ... to here.
    """

    first_above: float
    second_above: float
    start: float
    end: float


def area_under_curve(
    curve: Sequence[CurvePoint], between: tuple[float, float] | None = None, cost: Cost = "layers"
) -> float:
    """Mean score of the curve: integrated over the layers run, by trapezoids, and divided by the width.

    The unit is the metric's. Where points have the same cost, the best counts. DACT-BERT, section 4.3.

    Args:
        curve: from `tradeoff_curve`.
        between: lowest and highest mean layers (or FLOPs), between which to integrate; methods can be compared over
            the same range only. Default: all that the curve has.
        cost: "layers", or "flops" where the trace has counted them.

    >>> area_under_curve([CurvePoint(0.5, 0.6, 3.0, 0.75), CurvePoint(None, 0.8, 12.0, 0.0)])
    0.7
    >>> area_under_curve([CurvePoint(0.5, 0.6, 3.0, 0.75), CurvePoint(None, 0.8, 12.0, 0.0)], between=(3, 7.5))
    0.65

    Raises:
        ValueError: fewer than two different costs, a score that is NaN, or a range that is not two numbers or
            goes beyond the curve.
    """
    costs, scores = _line(curve, cost)
    if between is not None:
        try:
            low, high = map(float, between)
        except (TypeError, ValueError):
            low = high = math.nan
        if not costs[0] <= low < high <= costs[-1]:
            raise ValueError(
                f"between: got {between}; the curve goes from {costs[0]:.6g} to {costs[-1]:.6g} {cost}, pass two "
                "ascending numbers in that range"
            )
        grid = torch.cat([costs[(costs > low) & (costs < high)], costs.new_tensor([low, high])]).sort().values
        costs, scores = grid, _interpolated(costs, scores, grid)
    return round((torch.trapezoid(scores, costs) / (costs[-1] - costs[0])).item(), 12)


def areas_between(first: Sequence[CurvePoint], second: Sequence[CurvePoint], cost: Cost = "layers") -> PairwiseAreas:
    """Area of either curve above the other over the costs that both have, split exactly where they cross.

    The unit is the metric's times layers; BERxiT, section 5.3, gives it for scores in percent. Differs from the code
    of its authors, which needs equal ranges and nets a crossing in the first interval.

    Args:
        first: from `tradeoff_curve`.
        second: the same, of another method.
        cost: "layers" or "flops".

    >>> falling = [CurvePoint(0.1, 0.9, 2.0, 0.5), CurvePoint(None, 0.7, 4.0, 0.0)]
    >>> rising = [CurvePoint(0.1, 0.7, 2.0, 0.5), CurvePoint(None, 0.8, 4.0, 0.0)]
    >>> first_above, second_above, start, end = areas_between(falling, rising)
    >>> round(first_above, 6), round(second_above, 6), start, end  # they cross at 2 + 4/3
    (0.133333, 0.033333, 2.0, 4.0)

    Raises:
        ValueError: a curve with fewer than two different costs or a score that is NaN; no costs in common.
    """
    lines = [_line(curve, cost) for curve in (first, second)]
    start, end = _common(lines, cost)
    grid = torch.cat([costs for costs, _ in lines]).unique()
    grid = grid[(grid >= start) & (grid <= end)]
    above = _interpolated(*lines[0], grid) - _interpolated(*lines[1], grid)
    left, right, width = above[:-1], above[1:], grid.diff()

    def area(left: Tensor, right: Tensor) -> float:
        # A difference that changes its sign is two triangles; their heights divide the width.
        triangle = torch.maximum(left, right).square() / (left.abs() + right.abs())
        whole = left.clamp_min(0) + right.clamp_min(0)
        return (width * torch.where(left * right < 0, triangle, whole)).sum().item() / 2

    return PairwiseAreas(area(left, right), area(-left, -right), start, end)


def score_at(curve: Sequence[CurvePoint], mean_layers: float) -> float:
    """The score at a depth, on the straight line between the points beside it; of points at one depth the best counts.

    Args:
        curve: from `tradeoff_curve`.
        mean_layers: layers run per sample, within what the curve has.

    >>> curve = [CurvePoint(0.5, 0.6, 3.0, 0.75), CurvePoint(None, 0.8, 12.0, 0.0)]
    >>> round(score_at(curve, 7.5), 6)
    0.7

    Raises:
        ValueError: a curve with fewer than two different depths or a score that is NaN; a depth beyond it.
    """
    costs, scores = _line(curve, "layers")
    if not costs[0] <= mean_layers <= costs[-1]:
        raise ValueError(
            f"mean_layers: got {mean_layers}; the curve goes from {costs[0]:.6g} to {costs[-1]:.6g}, pass one of these"
        )
    return _interpolated(costs, scores, costs.new_tensor([mean_layers])).item()


def mean_curve(curves: Sequence[Sequence[CurvePoint]], count: int = 100) -> list[CurvePoint]:
    """The mean score of several runs of one method, at `count` depths between those that all of them reach.

    Its points have no thresholds, since runs reach a depth at thresholds of their own.

    Args:
        curves: from `tradeoff_curve`, one per run.
        count: of points, 2 or more.

    >>> runs = [[CurvePoint(None, score, layers, 0.0) for layers in (1.0, 3.0)] for score in (0.5, 0.7)]
    >>> [(point.mean_layers, round(point.score, 6)) for point in mean_curve(runs, count=3)]
    [(1.0, 0.6), (2.0, 0.6), (3.0, 0.6)]

    Raises:
        ValueError: no curves; a curve with fewer than two different depths or a NaN score; no depths in common; a
            count below 2.
    """
    check_whole_number("count", count, low=2, advice="e.g. count=100")
    if not curves:
        raise ValueError("curves: got none; pass at least one")
    lines = [_line(curve, "layers") for curve in curves]
    start, end = _common(lines, "layers")
    grid = torch.linspace(start, end, count, dtype=torch.float64)
    scores = torch.stack([_interpolated(*line, grid) for line in lines]).mean(dim=0)
    return [
        CurvePoint(None, score, layers, 1 - layers / end)
        for layers, score in zip(grid.tolist(), scores.tolist(), strict=True)
    ]


def _line(curve: Sequence[CurvePoint], cost: Cost) -> tuple[Tensor, Tensor]:
    """Different costs, ascending, and the best score at each, (points,) twice, in float64."""
    if cost not in ("layers", "flops"):
        raise ValueError(f"cost: got {cost!r}; choose 'layers' or 'flops'")
    best: dict[float, float] = {}
    for point in curve:
        if math.isnan(point.score):
            raise ValueError(
                f"curve: the score at threshold {point.threshold} is nan; use a metric that is defined there"
            )
        value = point.mean_layers if cost == "layers" else point.flops
        if value is None:
            raise ValueError("curve: knows no FLOPs; collect its trace with count_flops=True")
        best[value] = max(point.score, best.get(value, point.score))
    if len(best) < 2:
        what = "depth" if cost == "layers" else "cost"
        raise ValueError(f"curve: got points at {len(best)} {what}; an area needs at least two, pass more thresholds")
    costs, scores = zip(*sorted(best.items()), strict=True)
    return torch.tensor(costs, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64)


def _common(lines: Sequence[tuple[Tensor, Tensor]], cost: Cost) -> tuple[float, float]:
    """From where to where all lines, as `_line` gives them, have costs.

    Raises:
        ValueError: nowhere.
    """
    start, end = max(costs[0].item() for costs, _ in lines), min(costs[-1].item() for costs, _ in lines)
    if not start < end:
        ranges = " and ".join(f"{costs[0]:.6g} to {costs[-1]:.6g}" for costs, _ in lines)
        raise ValueError(f"curves: go from {ranges} {cost}, which have nothing in common; pass more thresholds")
    return start, end


def _interpolated(costs: Tensor, scores: Tensor, wanted: Tensor) -> Tensor:
    """Scores on the straight lines between points, at costs within their range: (points,) twice, (wanted,)."""
    right = torch.searchsorted(costs, wanted).clamp(1, len(costs) - 1)
    share = (wanted - costs[right - 1]) / (costs[right] - costs[right - 1])
    return torch.lerp(scores[right - 1], scores[right], share)


def choose_threshold(curve: Sequence[CurvePoint], max_drop: float = 0.01) -> CurvePoint:
    """The point with the largest saving whose score is at most `max_drop` below full depth, relative to it.

    >>> full, half = CurvePoint(None, 0.80, 12.0, 0.0), CurvePoint(0.3, 0.795, 6.0, 0.5)
    >>> choose_threshold([half, full]).threshold, choose_threshold([half, full], max_drop=0.001).threshold
    (0.3, None)

    Raises:
        ValueError: `max_drop` is negative, or the curve lacks the point of full depth or a score there.
    """
    if not max_drop >= 0:
        raise ValueError(f"max_drop: got {max_drop}; pass a fraction >= 0, e.g. 0.01 for one percent")
    full = next((point for point in curve if point.threshold is None), None)
    if full is None:
        raise ValueError("curve: has no point of full depth (threshold None); use tradeoff_curve")
    if math.isnan(full.score):
        raise ValueError(
            "curve: the score at full depth is nan; use a metric that is defined there, or a better model"
        )
    floor = full.score - max_drop * abs(full.score)
    return max((point for point in curve if point.score >= floor), key=lambda point: (point.saving, point.score))
