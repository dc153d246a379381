"""Bootstrap confidence intervals, over the samples of a data set or over the seeds of training runs."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.configuration_early_exit import check_whole_number
from .trace import ExitTrace, at_exits, check_same_data, scored_predictions


class UndefinedResamplesError(ValueError):
    """The statistic is defined on the whole data set, but NaN on some resamples."""


class Interval(NamedTuple):
    """A number and its confidence interval.

    Attributes:
        value: The number, computed from all samples or seeds.
        low: Lower end of the interval, a percentile of the resampled values.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float


def bootstrap_samples(
    traces: Sequence[ExitTrace],
    statistic: Callable[..., float],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Compute a percentile bootstrap interval over the samples of a data set.

    The interval estimates how much the statistic would vary on other data sets of the same size. All traces are
    resampled with the same indices, so that a difference of two methods is compared sample by sample. If the data set
    has several labels, a resample in which all labels are equal is drawn again: most metrics are undefined for it.

    Args:
        traces: One or more traces of the same data set.
        statistic: Function of all traces, in their order, that returns a number: a score at a threshold, an area, a
            difference.
        resamples: Number of resamples, each of as many samples as the data set has, drawn with replacement. Default:
            1000.
        level: Share of the resampled values inside the interval, between 0 and 1, ends excluded. Default: 0.95.
        seed: Seed of the random draws. Default: 0.

    Returns:
        The statistic on the whole data set with its interval.

    Raises:
        ValueError: If there are no traces, if they are of different data, if `resamples` or `level` is out of range,
            or if the statistic is NaN on the whole data set, or on a resample (`UndefinedResamplesError`).

    Examples:
        >>> trace = ExitTrace(torch.zeros(100, 1, 2), torch.zeros(100, 1), torch.arange(100) % 4 // 3, (6,), "gt")
        >>> interval = bootstrap_samples([trace], lambda trace: trace.labels.double().mean().item())
        >>> interval.value, round(interval.low, 2), round(interval.high, 2)  # 0.25 -+ 1.96 sqrt(0.25 0.75 / 100)
        (0.25, 0.17, 0.34)
    """
    check_same_data(traces)

    def draw(generator: torch.Generator) -> float:
        indices = _resample(traces[0], generator)
        return float(statistic(*(trace.take(indices) for trace in traces)))

    return _interval(float(statistic(*traces)), draw, resamples, level, seed)


def _resample(trace: ExitTrace, generator: torch.Generator) -> Tensor:
    """Return indices of as many samples as there are, drawn with replacement, not all of one label."""
    count, labels = len(trace.logits), trace.labels
    has_several_labels = labels is not None and bool((labels != labels[0]).any())
    while True:
        indices = torch.randint(count, (count,), generator=generator)
        if not has_several_labels or labels is None or bool((labels[indices] != labels[indices[0]]).any()):
            return indices


def score_bands(
    trace: ExitTrace, metric: str, thresholds: Sequence[Any], resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> list[tuple[float, float] | None]:
    """Compute the bootstrap interval of the score at every threshold, from the resamples of `bootstrap_samples`.

    The score of a resample depends on sums over its samples alone, so all resamples are scored at once.

    Args:
        trace: Trace with labels.
        metric: Name of the metric.
        thresholds: Thresholds, as for `ExitTrace.exits_at`.
        resamples: As for `bootstrap_samples`.
        level: As for `bootstrap_samples`.
        seed: As for `bootstrap_samples`.

    Returns:
        Ends of the interval at each threshold; None where the score is not defined on every resample, and for
        `"spearmanr"`, whose ranks are no sums.

    Examples:
        >>> logits = torch.eye(2)[torch.tensor([0, 1] * 50)][:, None]
        >>> trace = ExitTrace(logits, torch.zeros(100, 1), torch.arange(100) % 4 // 3, (6,), "gt")
        >>> [[round(end, 2) for end in ends] for ends in score_bands(trace, "accuracy", [None])]  # of 0.75
        [[0.66, 0.83]]
    """
    if metric not in _OF_SUMS:
        return [None] * len(thresholds)
    parts, score = _OF_SUMS[metric]
    labels, answers = trace.known_labels(), scored_predictions(trace.logits, trace.known_labels())
    classes = trace.logits.shape[-1]
    columns = [parts(at_exits(answers, trace.exits_at(threshold)), labels, classes) for threshold in thresholds]
    generator, count = torch.Generator().manual_seed(seed), len(labels)
    scores = torch.empty(len(thresholds), resamples, dtype=torch.float64)
    size = max(1, 10**7 // count)  # resamples whose counts fit into 80 MB
    for start in range(0, resamples, size):
        drawn = torch.stack([_resample(trace, generator) for _ in range(min(size, resamples - start))])
        counts = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(drawn.shape, dtype=torch.float64)
        )
        for row, column in zip(scores, columns, strict=True):
            row[start : start + size] = score(counts @ column, count)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    bands = [None if row.isnan().any() else row.quantile(ends).tolist() for row in scores]
    return [band and (band[0], band[1]) for band in bands]


def _right(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    return (answers == labels).reshape(len(labels), -1).all(dim=1)[:, None].double()


def _of_class_1(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    return torch.stack([(answers == 1) & (labels == 1), answers == 1, labels == 1], dim=1).double()


def _f1(sums: Tensor, count: int) -> Tensor:
    right, predicted, given = sums.unbind(dim=1)
    return torch.where(given > 0, 2 * right / (predicted + given), math.nan)


def _of_every_class(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    one_hot = [torch.nn.functional.one_hot(values.long(), classes) for values in (answers, labels)]
    return torch.cat([_right(answers, labels, classes), *one_hot], dim=1).double()


def _matthews(sums: Tensor, count: int) -> Tensor:
    right, (predicted, given) = sums[:, 0], sums[:, 1:].chunk(2, dim=1)
    spread = (count**2 - (predicted**2).sum(dim=1)) * (count**2 - (given**2).sum(dim=1))
    correlation = (right * count - (predicted * given).sum(dim=1)) / spread.sqrt()
    only_one_label = (given == count).any(dim=1)
    return torch.where(only_one_label, math.nan, torch.where(spread > 0, correlation, 0.0))


def _moments(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    x, y = (values.double() - values.double().mean() for values in (answers, labels))
    return torch.stack([x, y, x * x, y * y, x * y], dim=1)


def _pearson(sums: Tensor, count: int) -> Tensor:
    x, y, xx, yy, xy = (sums / count).unbind(dim=1)
    spread = (xx - x * x) * (yy - y * y)
    tiny = 1e-24 * xx * yy  # rounding
    return torch.where(spread <= tiny, 0.0, (xy - x * y) / spread.clamp_min(0).sqrt())


def _of_every_label(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    return torch.cat([answers * labels, answers + labels, labels], dim=1).double()


def _f1_micro(sums: Tensor, count: int) -> Tensor:
    right, total, given = (part.sum(dim=1) for part in sums.chunk(3, dim=1))
    return torch.where(given > 0, 2 * right / total.clamp_min(1), math.nan)


def _f1_macro(sums: Tensor, count: int) -> Tensor:
    right, total, given = sums.chunk(3, dim=1)
    return torch.where(given.sum(dim=1) > 0, (2 * right / total.clamp_min(1)).mean(dim=1), math.nan)


# Metrics that depend on sums over the samples alone: what is summed of each sample, (samples, columns), and the score
# of sums, (resamples, columns), over a number of samples.
_OF_SUMS: dict[str, tuple[Callable[[Tensor, Tensor, int], Tensor], Callable[[Tensor, int], Tensor]]] = {
    "accuracy": (_right, lambda sums, count: sums[:, 0] / count),
    "f1": (_of_class_1, _f1),
    "matthews_correlation": (_of_every_class, _matthews),
    "pearson": (_moments, _pearson),
    "f1_micro": (_of_every_label, _f1_micro),
    "f1_macro": (_of_every_label, _f1_macro),
}


def bootstrap_seeds(values: Sequence[float], resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Compute a percentile bootstrap interval of the mean over training runs.

    The interval estimates how much the mean would vary with other seeds. With few runs it is too narrow, as all
    bootstrap intervals are: three runs have only ten different resamples.

    Args:
        values: One number per run, e.g. the area under its trade-off curve.
        resamples: Number of resamples, each of as many runs as there are, drawn with replacement. Default: 1000.
        level: Share of the resampled means inside the interval, between 0 and 1, ends excluded. Default: 0.95.
        seed: Seed of the random draws. Default: 0.

    Returns:
        The mean of all runs with its interval.

    Raises:
        ValueError: If there are fewer than two values, if one is NaN, or if `resamples` or `level` is out of range.

    Examples:
        >>> bootstrap_seeds([0.5, 0.75, 1.0])
        Interval(value=0.75, low=0.5, high=1.0)
    """
    if len(values) < 2:
        raise ValueError(f"values: got {len(values)}; pass the values of at least two runs, better five")
    numbers = torch.tensor(values, dtype=torch.float64)

    def draw(generator: torch.Generator) -> float:
        return numbers[torch.randint(len(numbers), (len(numbers),), generator=generator)].mean().item()

    return _interval(numbers.mean().item(), draw, resamples, level, seed)


def _interval(
    value: float, draw: Callable[[torch.Generator], float], resamples: int, level: float, seed: int
) -> Interval:
    check_whole_number("resamples", resamples, low=1, advice="e.g. resamples=1000")
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}; pass a share between 0 and 1, e.g. 0.95")
    if math.isnan(value):
        raise ValueError("statistic: is nan on the whole data set; pass one that is defined there")
    generator = torch.Generator().manual_seed(seed)
    statistics = torch.tensor([draw(generator) for _ in range(resamples)], dtype=torch.float64)
    if bool(statistics.isnan().any()):
        raise UndefinedResamplesError(
            f"statistic: is nan on {int(statistics.isnan().sum())} of {resamples} resamples; pass one that is defined "
            "on all of them"
        )
    ends: Tensor = statistics.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    low, high = ends.tolist()
    return Interval(value, low, high)
