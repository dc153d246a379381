"""How sure a number is: bootstrap intervals over the samples of a data set, and over the seeds of a training run."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.configuration_early_exit import check_whole_number
from .trace import ExitTrace, check_same_data


class UndefinedResamplesError(ValueError):
    """A statistic that is defined on all samples, but not on each resample."""


class Interval(NamedTuple):
    """A number, and between which it lies.

    Args:
        value: as computed from all samples or seeds.
        low: end of the interval, a percentile of the resampled values.
        high: its other end.
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
    """Percentile interval of a number that comes from traces: what other samples of the same kind would have given.

    All traces are resampled together, so that a difference of two methods is judged sample by sample. A resample in
    which all labels are the same is drawn anew, if the data have several: most metrics are undefined there.

    Args:
        traces: one or more, of the same data.
        statistic: (trace, ...) -> number, called with all of them: a score at a threshold, an area, a difference.
        resamples: how many times to draw as many samples as there are, with replacement.
        level: share of the resampled values inside of the interval, in (0, 1).
        seed: of the draws.

    >>> trace = ExitTrace(torch.zeros(100, 1, 2), torch.zeros(100, 1), torch.arange(100) % 4 // 3, (6,), "gt")
    >>> interval = bootstrap_samples([trace], lambda trace: trace.labels.double().mean().item())
    >>> interval.value, round(interval.low, 2), round(interval.high, 2)  # 0.25 -+ 1.96 sqrt(0.25 0.75 / 100)
    (0.25, 0.17, 0.34)

    Raises:
        ValueError: no traces, or of different data; `resamples` or `level` out of range; a NaN statistic, on all
            samples or on a resample (UndefinedResamplesError).
    """
    check_same_data(traces)
    count, labels = len(traces[0].logits), traces[0].labels
    several = labels is not None and bool((labels != labels[0]).any())

    def draw(generator: torch.Generator) -> float:
        while True:
            places = torch.randint(count, (count,), generator=generator)
            if not several or labels is None or bool((labels[places] != labels[places[0]]).any()):
                return float(statistic(*(trace.take(places) for trace in traces)))

    return _interval(float(statistic(*traces)), draw, resamples, level, seed)


def bootstrap_seeds(values: Sequence[float], resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of the mean over training runs: what other seeds would have given.

    With few seeds it is too narrow, as all bootstrap intervals are: three have ten different resamples.

    Args:
        values: one number per run, e.g. an area under its curve.
        resamples: how many times to draw as many runs as there are, with replacement.
        level: share of the resampled means inside of the interval, in (0, 1).
        seed: of the draws.

    >>> bootstrap_seeds([0.5, 0.75, 1.0])
    Interval(value=0.75, low=0.5, high=1.0)

    Raises:
        ValueError: fewer than two values, or a NaN; `resamples` or `level` out of range.
    """
    if len(values) < 2:
        raise ValueError(f"values: got {len(values)}; an interval over seeds needs at least two runs, better five")
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
        raise ValueError("statistic: is nan on all samples; use one that is defined there")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.tensor([draw(generator) for _ in range(resamples)], dtype=torch.float64)
    if bool(drawn.isnan().any()):
        raise UndefinedResamplesError(
            f"statistic: is nan on {int(drawn.isnan().sum())} of {resamples} resamples; use one that is defined on "
            "all of them"
        )
    ends: Tensor = drawn.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    low, high = ends.tolist()
    return Interval(value, low, high)
