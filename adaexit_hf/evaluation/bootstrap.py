"""Bootstrap confidence intervals, over the samples of a data set or over the seeds of training runs."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.configuration_early_exit import check_whole_number
from .trace import ExitTrace, check_same_data


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
    count, labels = len(traces[0].logits), traces[0].labels
    has_several_labels = labels is not None and bool((labels != labels[0]).any())

    def draw(generator: torch.Generator) -> float:
        while True:
            indices = torch.randint(count, (count,), generator=generator)
            if not has_several_labels or labels is None or bool((labels[indices] != labels[indices[0]]).any()):
                return float(statistic(*(trace.take(indices) for trace in traces)))

    return _interval(float(statistic(*traces)), draw, resamples, level, seed)


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
