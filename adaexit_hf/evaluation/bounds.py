"""Upper bounds of a mean, and p-values of the hypothesis that it is above a limit, which hold for any number of rows.

No distribution is assumed but that the rows are independent draws from one. Shares are bounded by the exact binomial
test (Clopper and Pearson, 1934). Means of numbers in a known range are bounded by betting: Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting" (2024), arXiv 2010.09686.

SciPy comes with the extra `train`.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ..utils.imports import needed

Numbers = NDArray[np.float64]
# A bet may lose at most this share of the capital (c in the paper, which recommends 1/2 or 3/4).
LARGEST_STAKE = 0.75
_MOST_ROWS = 2**17  # of a search for the number of rows


def binomial_p_value(losses: float, rows: int, limit: float) -> float:
    """Compute the probability of so few losses or fewer if the share of losses is `limit`.

    If the true share is above the limit, this number is at most `delta` with a probability of at most `delta`. Of all
    tests for which that holds, it is the sharpest.

    Args:
        losses: Number of rows with a loss, from 0 to `rows`. Fractions are interpolated, for planning only.
        rows: Number of rows, 1 or more.
        limit: The share that is tested, between 0 and 1.

    Returns:
        The p-value, in [0, 1].

    Examples:
        >>> round(binomial_p_value(0, 298, 0.01), 4), round(binomial_p_value(0, 299, 0.01), 4)  # 0.99 ** 299
        (0.05, 0.0495)
        >>> round(binomial_p_value(4, 872, 0.01), 4)
        0.0642
    """
    if losses >= rows:
        return 1.0
    return float(needed("scipy.special", "train").betainc(rows - losses, losses + 1, 1 - limit))


def binomial_upper_bound(losses: float, rows: int, delta: float) -> float:
    """Compute the upper end of the one-sided confidence interval of a share (Clopper and Pearson).

    Args:
        losses: Number of rows with a loss, from 0 to `rows`.
        rows: Number of rows, 1 or more.
        delta: Probability with which the true share may be above the bound.

    Returns:
        The smallest limit whose p-value is at most `delta`.

    Examples:
        >>> round(binomial_upper_bound(0, 299, 0.05), 5), round(binomial_upper_bound(4, 872, 0.05), 5)
        (0.00997, 0.01047)
    """
    if losses >= rows:
        return 1.0
    return float(needed("scipy.special", "train").betaincinv(losses + 1, rows - losses, 1 - delta))


def betting_p_value(values: Numbers, limit: float, delta: float) -> float:
    """Compute the p-value of the hypothesis that the mean of bounded values is at or above a limit.

    A gambler who starts with 1 bets on each value, one after the other, that it is below the limit `m` (Eq. 23):

        K_t = product over i <= t of 1 + b_i (m - x_i)

    The bet `b_i` depends on the values before `x_i` only. If the mean is `m` or more, K is a nonnegative
    supermartingale, so that it ever reaches `1 / delta` with a probability of at most `delta` (Ville, 1939), and 1
    divided by the largest K is a p-value. The bets are those that the paper proposes for a fixed number n of values
    (predictable plug-in, Eq. 26, one-sided): `sqrt(2 ln(1 / delta) / (n v))`, where `v` is the variance of the values
    before, started at 1/4, and a bet loses at most three quarters of the capital.

    The order of the values must be independent of them: a file may be sorted by class, so they are put into an order
    that depends on their number alone.

    Args:
        values: Values in [0, 1], `(rows,)`.
        limit: The mean that is tested, between 0 and 1.
        delta: The level for which the bets are made. The p-value is valid at any level.

    Returns:
        The p-value, in [0, 1].

    Examples:
        >>> values = np.array([0.5] * 1000)
        >>> round(betting_p_value(values, 0.5, 0.05), 4), round(betting_p_value(values, 0.51, 0.05), 8)
        (1.0, 4.1e-07)
    """
    ordered = _in_order(values)
    return min(1.0, math.exp(-_log_capital(ordered, limit, _bets(ordered, delta))))


def betting_upper_bound(values: Numbers, delta: float) -> float:
    """Compute an upper confidence bound of the mean of bounded values.

    Args:
        values: Values in [0, 1], `(rows,)`.
        delta: Probability with which the true mean may be above the bound.

    Returns:
        The smallest limit whose `betting_p_value` is at most `delta`. The capital does not fall as the limit rises, so
        the limits that are rejected are all those from the bound on. 1 if no limit is rejected.

    Examples:
        >>> values = np.array([0.0, 1.0, 0.0, 0.0] * 250)
        >>> round(betting_upper_bound(values, 0.05), 4)
        0.2798
    """
    ordered, enough = _in_order(values), -math.log(delta)
    bets = _bets(ordered, delta)
    low, high = 0.0, 1.0
    for _ in range(30):  # to nine digits
        middle = (low + high) / 2
        low, high = (low, middle) if _log_capital(ordered, middle, bets) >= enough else (middle, high)
    return high


def _in_order(values: Numbers) -> Numbers:
    """Put values into an order that depends on their number alone."""
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0)).numpy()]


def _bets(ordered: Numbers, delta: float) -> Numbers:
    """Return the bet on each value before it is cut to what a limit allows."""
    rows = len(ordered)
    seen = np.arange(2, rows + 2)  # one made-up value, of mean 1/2 and variance 1/4, is seen before
    means = (0.5 + ordered.cumsum()) / seen
    variances = np.append(0.25, (0.25 + ((ordered - means) ** 2).cumsum()) / seen)[:-1]  # without the value itself
    return np.sqrt(-2 * math.log(delta) / (rows * variances))


def _log_capital(ordered: Numbers, limit: float, bets: Numbers) -> float:
    """Return the logarithm of the largest capital, which is 1 before the first bet."""
    stakes = np.minimum(bets, LARGEST_STAKE / (1 - limit)) if limit < 1 else bets
    return max(0.0, float(np.log1p(stakes * (limit - ordered)).cumsum().max()))


def smallest_number(passes: Callable[[int], bool], precision: float = 0.0) -> int | None:
    """Search for the smallest number of rows with which a test succeeds, if it also does with more.

    Args:
        passes: Whether the test succeeds with so many rows.
        precision: Share by which the number may be too large. Default: 0, exact.

    Returns:
        The number; None if it is above 131,072.

    Examples:
        >>> smallest_number(lambda rows: binomial_p_value(0, rows, 0.01) <= 0.05)
        299
    """
    high = 1
    while not passes(high):
        high *= 2
        if high > _MOST_ROWS:
            return None
    low = high // 2  # fails, or is 0
    while high - low > max(1, precision * high):
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high
