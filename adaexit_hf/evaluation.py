"""One full-depth pass, every threshold: traces, trade-off curves, and the choice of a threshold."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .models.batches import checked_rows, full_depth, row_labels
from .models.exit_types import first_ready
from .models.modeling_early_exit import EarlyExitForSequenceClassification

Metric = Callable[[Tensor, Tensor], float]
_COMPARISONS = {"lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge}


@dataclass(frozen=True)
class ExitTrace:
    """What every exit said about every sample of a data set.

    Args:
        logits: (samples, exits, labels).
        scores: readiness, (samples, exits), in the method's own unit.
        labels: (samples,), or None for an unlabelled set.
        exit_layers: layers run at each exit, 1..L, ascending, one per exit.
        ready: how a score is compared with the threshold: "lt", "le", "gt" or "ge".
    """

    logits: Tensor
    scores: Tensor
    labels: Tensor | None
    exit_layers: tuple[int, ...]
    ready: str

    def exits_at(self, threshold: float | list[float] | None) -> Tensor:
        """Index of the exit that each sample takes, (samples,); thresholds as in a config, None for full depth."""
        if threshold is None:
            return torch.full((len(self.scores),), len(self.exit_layers) - 1)
        return first_ready(_COMPARISONS[self.ready](self.scores, self.scores.new_tensor(threshold)))

    def at(self, threshold: float | list[float] | None) -> tuple[Tensor, Tensor]:
        """Answers (samples, labels) and layers run (samples,) at one threshold."""
        chosen = self.exits_at(threshold)
        return self.logits[torch.arange(len(chosen)), chosen], torch.tensor(self.exit_layers)[chosen]


class CurvePoint(NamedTuple):
    """Quality and cost at one threshold.

    Args:
        threshold: in the method's own unit; None is full depth.
        score: the metric's value, in its own unit.
        mean_layers: layers run per sample, in [1, L].
        saving: fraction of layer executions saved, in [0, 1) (DeeBERT, Eq. 2).
    """

    threshold: float | None
    score: float
    mean_layers: float
    saving: float


def collect_trace(
    model: EarlyExitForSequenceClassification,
    dataset: Iterable[Mapping[str, Any]],
    batch_size: int = 32,
    progress: bool = True,
) -> ExitTrace:
    """Run a tokenized data set once at full depth and keep what every exit said.

    Args:
        model: on any device; its train or eval mode is restored afterwards.
        dataset: rows with `input_ids`, optionally `attention_mask`, `token_type_ids`, and `label` or `labels`; other
            columns are left out. Rows need not be padded; batches are made of rows of similar length.
        batch_size: rows per forward pass.
        progress: show a bar.

    Returns:
        the trace, in the order of the data set, on the CPU in float32.

    Raises:
        ValueError: the data set is empty, or has no `input_ids`; a method whose `ready` is no plain comparison.
    """
    rows = checked_rows(dataset)
    labels = row_labels(rows, model.config.num_labels)
    comparison = next((name for name, function in _COMPARISONS.items() if function is model.ready), None)
    if comparison is None:
        raise ValueError(
            f"model: its `ready` is {model.ready}; a trace knows torch.lt, torch.le, torch.gt and torch.ge"
        )
    logits, scores = full_depth(model, rows, batch_size, "Tracing exits" if progress else None)
    return ExitTrace(logits, scores, labels, tuple(model.config.exit_layers), comparison)


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
        thresholds: which ones; default a hundred, spread over the scores that occur. Full depth is always added.

    Raises:
        ValueError: the trace has no labels.
    """
    if trace.labels is None:
        raise ValueError("trace: has no labels; collect it on a data set with a 'label' column")
    if thresholds is None:
        thresholds = spread_thresholds(trace)
    points = []
    for threshold in [*thresholds, None]:
        logits, exit_layer = trace.at(threshold)
        layers = exit_layer.double().mean().item()
        saving = expected_saving(exit_layer, trace.exit_layers[-1])
        points.append(CurvePoint(threshold, float(metric(predictions(logits), trace.labels)), layers, saving))
    return sorted(points, key=lambda point: (point.mean_layers, point.threshold is None))


def spread_thresholds(trace: ExitTrace, count: int = 100) -> list[float]:
    """At most `count` thresholds that differ in what they do: midpoints between quantiles of the scores that occur.

    Midpoints, so that no score of the trace lies on a threshold, where rounding could decide; where all scores are
    whole numbers, as patience is, those numbers from the second on.
    """
    scores = trace.scores[:, :-1].flatten().double()
    scores = scores[scores.isfinite()].unique()
    if len(scores) < 2:
        return []
    ranks = torch.linspace(0, len(scores) - 2, min(count, len(scores) - 1)).round().long()
    if trace.ready in ("ge", "lt") and bool((scores == scores.round()).all()):
        return scores[ranks + 1].tolist()
    return ((scores[ranks] + scores[ranks + 1]) / 2).tolist()


def predictions(logits: Tensor) -> Tensor:
    """The class, or the number with one label: (samples, labels) -> (samples,)."""
    return logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(dim=-1)


def area_under_curve(curve: Sequence[CurvePoint], depth: int) -> float:
    """Mean score of the curve: integrated over the fraction of layers run, by trapezoids, and divided by the width.

    The unit is the metric's. Compare methods over the same range of layers only. DACT-BERT, section 4.3.

    >>> area_under_curve([CurvePoint(0.5, 0.6, 3.0, 0.75), CurvePoint(None, 0.8, 12.0, 0.0)], depth=12)
    0.7

    Raises:
        ValueError: fewer than two different depths.
    """
    best: dict[float, float] = {}
    for point in curve:
        cost = point.mean_layers / depth
        best[cost] = max(point.score, best.get(cost, point.score))
    if len(best) < 2:
        raise ValueError(f"curve: got points at {len(best)} depth; an area needs at least two, pass more thresholds")
    costs, scores = torch.tensor(sorted(best.items()), dtype=torch.float64).unbind(dim=1)
    return round((torch.trapezoid(scores, costs) / (costs[-1] - costs[0])).item(), 12)


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
