"""Compare trade-off curves (areas under and between them, mean curves), and choose a threshold from one."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..models.configuration_early_exit import check_whole_number

Cost = Literal["layers", "flops"]


class CurvePoint(NamedTuple):
    """Score and cost at one threshold.

    Attributes:
        threshold: Exit threshold, in the unit of the exit criterion; None is full depth.
        score: Value of the metric, in its own unit.
        mean_layers: Mean number of layers run per sample, in [1, L].
        saving: Share of layer executions saved, in [0, 1) (DeeBERT, Eq. 2).
        flops: Mean floating-point operations per sample; None if the trace has no FLOPs.
        higher_is_better: Whether a higher score is better, as the metric says. Default: True.
        settings: The settings of the model that made the trace: exit criterion, temperatures and tolerance. A model
            card refuses a curve of other settings than the model's. Default: None, unknown.
        majority: Score of always giving the most frequent answer, from `majority_score`. Default: None, unknown.
    """

    threshold: float | None
    score: float
    mean_layers: float
    saving: float
    flops: float | None = None
    higher_is_better: bool = True
    settings: Mapping[str, Any] | None = None
    majority: float | None = None

    def __hash__(self) -> int:
        return hash((*self[:6], self.majority))  # without the dict

    @property
    def no_better_than_majority(self) -> bool:
        """Whether always giving the most frequent answer scores as well. False if that score is unknown."""
        return self.majority is not None and not_above(self.score, self.majority, self.higher_is_better)


def not_above(score: float, baseline: float, higher_is_better: bool) -> bool:
    """Return whether a score is no better than that of a baseline; a score that is NaN is not compared.

    Examples:
        >>> not_above(0.68, 0.68, True), not_above(0.7, 0.68, True), not_above(0.7, 0.68, False)
        (True, False, True)
    """
    return score <= baseline if higher_is_better else score >= baseline


class MeanPoint(NamedTuple):
    """Mean score of several training runs at one cost.

    It has no threshold, because each run reaches this cost at a different one.

    Attributes:
        score: Mean of the runs' scores, in the unit of the metric.
        mean_layers: Mean number of layers run per sample, in [1, L].
        saving: Share of layer executions saved, in [0, 1).
        higher_is_better: Whether a higher score is better, as the metric says. Default: True.
    """

    score: float
    mean_layers: float
    saving: float
    higher_is_better: bool = True


Point = CurvePoint | MeanPoint


class PairwiseAreas(NamedTuple):
    """The areas where each of two curves lies above the other.

    Where lower scores are better, the curve above is the worse one. The unit of an area is the unit of the metric
    times the unit of the cost.

    Attributes:
        first_above: Area between the curves where the first lies above the second, 0 or more.
        second_above: Area between the curves where the second lies above the first, 0 or more.
        start: Lowest cost that both curves reach.
        end: Highest cost that both curves reach.
    """

    first_above: float
    second_above: float
    start: float
    end: float


def area_under_curve(
    curve: Sequence[Point], between: tuple[float, float] | None = None, cost: Cost = "layers"
) -> float:
    """Compute the mean score of a curve over its range of costs.

    The score is integrated over the cost by the trapezoidal rule and divided by the width of the range, so the result
    is in the unit of the metric. Of several points with the same cost, the best score counts. The area is the measure
    of DACT-BERT, section 4.3.

    Args:
        curve: Curve from `tradeoff_curve` or `mean_curve`.
        between: Lowest and highest cost between which to integrate. Methods are comparable over the same range only.
            Default: the whole range of the curve.
        cost: `"layers"` (default) for the mean number of layers, or `"flops"` if the trace has counted them.

    Returns:
        The mean score, in the unit of the metric.

    Raises:
        ValueError: If the curve has fewer than two different costs or a score that is NaN, or if the range is not two
            ascending numbers within the curve.

    Examples:
        >>> curve = [CurvePoint(0.5, 0.6, 3.0, 0.75), CurvePoint(None, 0.8, 12.0, 0.0)]
        >>> area_under_curve(curve)
        0.7
        >>> area_under_curve(curve, between=(3, 7.5))
        0.65
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


def areas_between(first: Sequence[Point], second: Sequence[Point], cost: Cost = "layers") -> PairwiseAreas:
    """Compute the areas where each of two curves lies above the other, over the costs that both reach.

    The areas are split exactly where the curves cross. BERxiT, section 5.3, reports such areas for scores in percent.
    The code of its authors differs: it needs equal ranges, and where curves cross in the first interval it subtracts
    one area from the other.

    Args:
        first: Curve from `tradeoff_curve` or `mean_curve`.
        second: Curve of another method on the same data.
        cost: `"layers"` (default) for the mean number of layers, or `"flops"` if the traces have counted them.

    Returns:
        Both areas, in the unit of the metric times that of the cost, and the range of costs.

    Raises:
        ValueError: If a curve has fewer than two different costs or a score that is NaN, if the ranges of costs do
            not overlap, or if higher scores are better in one curve and lower ones in the other.

    Examples:
        >>> falling = [CurvePoint(0.1, 0.9, 2.0, 0.5), CurvePoint(None, 0.7, 4.0, 0.0)]
        >>> rising = [CurvePoint(0.1, 0.7, 2.0, 0.5), CurvePoint(None, 0.8, 4.0, 0.0)]
        >>> first_above, second_above, start, end = areas_between(falling, rising)
        >>> round(first_above, 6), round(second_above, 6), start, end  # they cross at 2 + 4/3
        (0.133333, 0.033333, 2.0, 4.0)
    """
    check_direction([*first, *second])
    lines = [_line(curve, cost) for curve in (first, second)]
    start, end = _common_range(lines, cost)
    grid = torch.cat([costs for costs, _ in lines]).unique()
    grid = grid[(grid >= start) & (grid <= end)]
    difference = _interpolated(*lines[0], grid) - _interpolated(*lines[1], grid)
    left, right, width = difference[:-1], difference[1:], grid.diff()

    def area(left: Tensor, right: Tensor) -> float:
        # Where the difference changes its sign, one of two triangles is positive; the heights divide the width.
        triangle = torch.maximum(left, right).square() / (left.abs() + right.abs())
        trapezoid = left.clamp_min(0) + right.clamp_min(0)
        return (width * torch.where(left * right < 0, triangle, trapezoid)).sum().item() / 2

    return PairwiseAreas(area(left, right), area(-left, -right), start, end)


def score_at(curve: Sequence[Point], mean_layers: float) -> float:
    """Interpolate the score of a curve at a mean number of layers.

    The score lies on the straight line between the two neighbouring points. Of several points with the same depth, the
    best score counts.

    Args:
        curve: Curve from `tradeoff_curve` or `mean_curve`.
        mean_layers: Mean number of layers run per sample, within the range of the curve.

    Returns:
        The score, in the unit of the metric.

    Raises:
        ValueError: If the curve has fewer than two different depths or a score that is NaN, or if `mean_layers` is
            outside of its range.

    Examples:
        >>> curve = [CurvePoint(0.5, 0.6, 3.0, 0.75), CurvePoint(None, 0.8, 12.0, 0.0)]
        >>> round(score_at(curve, 7.5), 6)
        0.7
    """
    costs, scores = _line(curve, "layers")
    if not costs[0] <= mean_layers <= costs[-1]:
        raise ValueError(
            f"mean_layers: got {mean_layers}; the curve goes from {costs[0]:.6g} to {costs[-1]:.6g}, pass a number in "
            "that range"
        )
    return _interpolated(costs, scores, costs.new_tensor([mean_layers])).item()


def mean_curve(curves: Sequence[Sequence[Point]], count: int = 100) -> list[MeanPoint]:
    """Average the curves of several training runs of one method.

    The points are spread evenly over the depths that all runs reach. They have no thresholds, because each run reaches
    a depth at a different threshold; `choose_threshold` needs the curve of one run.

    Args:
        curves: Curves from `tradeoff_curve`, one per run.
        count: Number of points, 2 or more. Default: 100.

    Returns:
        The mean curve, from the cheapest to the deepest point.

    Raises:
        ValueError: If there are no curves, if a curve has fewer than two different depths or a score that is NaN, if
            the ranges of depths do not overlap, if higher scores are better in one curve and lower ones in another,
            or if `count` is less than 2.

    Examples:
        >>> runs = [
        ...     [CurvePoint(0.5, score, 1.0, 0.75), CurvePoint(None, score, 3.0, 0.0)] for score in (0.5, 0.7)
        ... ]
        >>> [(point.mean_layers, round(point.score, 6)) for point in mean_curve(runs, count=3)]
        [(1.0, 0.6), (2.0, 0.6), (3.0, 0.6)]
    """
    check_whole_number("count", count, low=2, advice="e.g. count=100")
    if not curves:
        raise ValueError("curves: got none; pass at least one")
    higher_is_better = check_direction([point for curve in curves for point in curve])
    lines = [_line(curve, "layers") for curve in curves]
    start, end = _common_range(lines, "layers")
    grid = torch.linspace(start, end, count, dtype=torch.float64)
    scores = torch.stack([_interpolated(*line, grid) for line in lines]).mean(dim=0)
    return [
        MeanPoint(score, layers, 1 - layers / end, higher_is_better)
        for layers, score in zip(grid.tolist(), scores.tolist(), strict=True)
    ]


def check_direction(points: Sequence[Point]) -> bool:
    """Return whether a higher score is better at all of these points.

    Raises:
        ValueError: If higher scores are better at some points and lower ones at others.
    """
    directions = {point.higher_is_better for point in points}
    if len(directions) > 1:
        raise ValueError(
            "curve: higher scores are better at some points and lower ones at others; pass curves of one metric"
        )
    return directions != {False}


def _line(curve: Sequence[Point], cost: Cost) -> tuple[Tensor, Tensor]:
    """Return the different costs, ascending, and the best score at each, both (points,), float64."""
    if cost not in ("layers", "flops"):
        raise ValueError(f"cost: got {cost!r}; choose 'layers' or 'flops'")
    best: dict[float, float] = {}
    better = max if check_direction(curve) else min
    for point in curve:
        if math.isnan(point.score):
            raise ValueError(
                f"curve: the score at {point.mean_layers:.6g} mean layers is nan; choose a metric that is defined "
                "there"
            )
        if cost == "layers":
            point_cost: float | None = point.mean_layers
        elif isinstance(point, MeanPoint):
            raise ValueError("cost: got 'flops', but a mean curve has layers only; pass the curves of single runs")
        else:
            point_cost = point.flops
        if point_cost is None:
            raise ValueError("curve: has no FLOPs; call collect_trace with count_flops=True")
        best[point_cost] = better(point.score, best.get(point_cost, point.score))
    if len(best) < 2:
        raise ValueError(
            f"curve: got points at {len(best)} distinct costs ({cost}); at least two are needed, pass more thresholds"
        )
    costs, scores = zip(*sorted(best.items()), strict=True)
    return torch.tensor(costs, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64)


def _common_range(lines: Sequence[tuple[Tensor, Tensor]], cost: Cost) -> tuple[float, float]:
    """Return the lowest and the highest cost that all lines, as returned by `_line`, reach.

    Raises:
        ValueError: If the ranges do not overlap.
    """
    start, end = max(costs[0].item() for costs, _ in lines), min(costs[-1].item() for costs, _ in lines)
    if not start < end:
        ranges = " and ".join(f"{costs[0]:.6g} to {costs[-1]:.6g}" for costs, _ in lines)
        raise ValueError(f"curves: their ranges, {ranges} {cost}, do not overlap; pass more thresholds")
    return start, end


def _interpolated(costs: Tensor, scores: Tensor, at: Tensor) -> Tensor:
    """Interpolate scores (points,) linearly at the costs `at`, within the range of `costs` (points,)."""
    right = torch.searchsorted(costs, at).clamp(1, len(costs) - 1)
    share = (at - costs[right - 1]) / (costs[right] - costs[right - 1])
    return torch.lerp(scores[right - 1], scores[right], share)
