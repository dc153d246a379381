"""Bounds and p-values against plain loops, and their validity by simulation."""

import math

import numpy as np
import pytest
import torch

from adaexit_hf.evaluation.bounds import (
    betting_p_value,
    betting_upper_bound,
    binomial_p_value,
    binomial_upper_bound,
    smallest_number,
)


def binomial_by_hand(losses: int, rows: int, share: float) -> float:
    return sum(math.comb(rows, k) * share**k * (1 - share) ** (rows - k) for k in range(losses + 1))


def betting_by_hand(values: list[float], limit: float, delta: float, order: list[int] | None = None) -> float:
    """The p-value by a loop over the rows, by default in the order of the test."""
    order = order or torch.randperm(len(values), generator=torch.Generator().manual_seed(0)).tolist()
    capital = largest = 1.0
    seen, squares = [0.5], [0.25]
    for place in order:
        x = values[place]
        variance = sum(squares) / len(squares)
        bet = min(math.sqrt(2 * math.log(1 / delta) / (len(values) * variance)), 0.75 / (1 - limit))
        capital *= 1 + bet * (limit - x)
        largest = max(largest, capital)
        seen.append(x)
        squares.append((x - sum(seen) / len(seen)) ** 2)
    return 1 / largest


@pytest.mark.parametrize(("losses", "rows", "share"), [(0, 20, 0.1), (3, 50, 0.1), (7, 60, 0.3), (50, 50, 0.9)])
def test_the_binomial_p_value_is_the_sum_of_probabilities(losses, rows, share):
    assert binomial_p_value(losses, rows, share) == pytest.approx(binomial_by_hand(losses, rows, share))


@pytest.mark.parametrize(("losses", "rows"), [(0, 20), (3, 50), (50, 60)])
def test_at_the_binomial_bound_the_p_value_is_delta(losses, rows):
    bound = binomial_upper_bound(losses, rows, 0.05)
    assert binomial_by_hand(losses, rows, bound) == pytest.approx(0.05)


def test_all_losses_bound_nothing():
    assert (binomial_upper_bound(5, 5, 0.05), binomial_p_value(5, 5, 0.5)) == (1.0, 1.0)
    assert betting_upper_bound(np.ones(50), 0.05) == 1.0


@pytest.mark.parametrize("limit", [0.2, 0.35, 0.6])
@pytest.mark.parametrize("delta", [0.05, 0.2])
def test_the_betting_p_value_is_that_of_a_loop(limit, delta):
    values = np.random.default_rng(1).beta(0.5, 1.5, size=200)
    assert betting_p_value(values, limit, delta) == pytest.approx(betting_by_hand(values.tolist(), limit, delta))


def test_at_the_betting_bound_the_p_value_is_delta():
    values = np.random.default_rng(1).beta(0.5, 1.5, size=200)
    assert betting_by_hand(values.tolist(), betting_upper_bound(values, 0.1), 0.1) == pytest.approx(0.1, rel=1e-5)


def test_the_capital_does_not_fall_as_the_limit_rises():
    values = np.random.default_rng(2).choice([0.0, 0.5, 1.0], p=[0.1, 0.7, 0.2], size=300)
    found = [betting_p_value(values, limit, 0.05) for limit in np.linspace(0.01, 0.99, 99)]
    assert found == sorted(found, reverse=True)


def test_a_sorted_file_certifies_nothing_by_its_order():
    values = np.repeat([0.0, 1.0], 200)
    assert betting_by_hand(values.tolist(), 0.45, 0.05, list(range(400))) < 0.001
    assert betting_p_value(values, 0.45, 0.05) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("chances", [(0.05, 0.94, 0.01), (0.0, 0.9, 0.1), (0.5, 0.0, 0.5)])
def test_a_mean_at_the_limit_is_seldom_below_the_bound(chances):
    generator, values = np.random.default_rng(0), np.array([0.0, 0.5, 1.0])
    mean, draws = float(values @ np.array(chances)), 1000
    wrong = sum(betting_p_value(generator.choice(values, p=chances, size=200), mean, 0.1) <= 0.1 for _ in range(draws))
    assert wrong / draws <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / draws)


def test_the_smallest_number_of_rows_of_the_issue():
    assert smallest_number(lambda rows: 0.99**rows <= 0.05) == 299
    assert smallest_number(lambda rows: False) is None
    assert smallest_number(lambda rows: True) == 1
