"""The monitor against a plain loop, its alarms, and its state."""

import json
import math

import numpy as np
import pytest

from adaexit_hf import CertificateMonitor, Guarantee
from adaexit_hf.evaluation.monitor import PARTS, STAKES, grown

CHANGED = Guarantee("changed_answers", 0.1)


def by_hand(losses: list[float], limit: float) -> float:
    """The capital after all losses, stake by stake."""
    purses = [float(part) for part in PARTS]
    for before, loss in enumerate(losses):
        total, anew = sum(purses), 1 / (before + 2)
        purses = [(1 - anew) * purse + anew * total * part for purse, part in zip(purses, PARTS, strict=True)]
        purses = [purse * (1 + stake * (loss - limit) / limit) for purse, stake in zip(purses, STAKES, strict=True)]
    return sum(purses)


def test_the_capital_is_that_of_a_loop():
    answers = np.random.default_rng(0).random(200) < 0.15
    monitor = CertificateMonitor(CHANGED)
    monitor.update_many([int(each) for each in answers], [0] * 200)
    assert monitor.e_value == pytest.approx(by_hand(answers.astype(float).tolist(), 0.1))
    assert (monitor.n, monitor.risk) == (200, answers.mean())


def test_an_alarm_stays():
    monitor = CertificateMonitor(CHANGED, delta=0.1)
    assert not monitor.update("a", "a")
    assert monitor.update_many(["a"] * 5, ["b"] * 5)
    assert monitor.update_many(["a"] * 1000, ["a"] * 1000) and monitor.e_value < 10


@pytest.mark.parametrize(
    ("guarantee", "answers", "risk"),
    [
        (Guarantee("harm", 0.1), [("a", "b", "b"), ("a", "b", "a"), ("a", "a", "b")], 1 / 3),
        (Guarantee("accuracy_drop", 0.1), [("a", "b", "b"), ("a", "b", "a"), ("a", "b", "a")], -1 / 3),
        (Guarantee("changed_answers", 0.1, tolerance=0.5), [(1.0, 1.5), (1.0, 1.6), (math.nan, 1.0)], 2 / 3),
        (Guarantee("mean_difference", 0.1, value_range=(0, 5)), [(6.0, 4.0), (-1, 0), (math.nan, 1.0)], 2.0),
        (CHANGED, [(["x", "y"], ["y", "x"]), ([], ["x"])], 1 / 2),
    ],
)
def test_losses_of_every_kind(guarantee, answers, risk):
    monitor = CertificateMonitor(guarantee)
    for each in answers:
        monitor.update(*each)
    assert monitor.risk == pytest.approx(risk)


def test_the_state_survives_a_restart():
    answers = (np.random.default_rng(1).random(300) < 0.2).astype(int).tolist()
    guarantee = Guarantee("mean_difference", 0.1, value_range=(0, 1))
    whole, first = CertificateMonitor(guarantee), CertificateMonitor(guarantee)
    whole.update_many(answers, [0] * 300)
    first.update_many(answers[:100], [0] * 100)
    again = CertificateMonitor.from_dict(json.loads(json.dumps(first.to_dict())))
    again.update_many(answers[100:], [0] * 200)
    assert (again.e_value, again.alarm, again.n) == (whole.e_value, whole.alarm, whole.n)


@pytest.mark.slow
def test_a_loss_at_the_limit_seldom_raises_an_alarm():
    runs, generator = 1000, np.random.default_rng(0)
    parts, capital, alarm = np.tile(PARTS, (runs, 1)), np.zeros(runs), np.zeros(runs, dtype=bool)
    for before in range(3000):
        parts, growth = grown(parts, generator.random(runs) < 0.05, 0.05, before)
        capital += growth
        alarm |= capital >= math.log(10)
    assert alarm.mean() <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / runs)


def test_a_higher_loss_after_a_long_good_time_is_found():
    generator, monitor = np.random.default_rng(0), CertificateMonitor(CHANGED)
    good = (generator.random(2000) < 0.03).astype(int).tolist()
    assert not monitor.update_many(good, [0] * 2000)
    assert monitor.update_many((generator.random(300) < 0.3).astype(int).tolist(), [0] * 300)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CertificateMonitor("harm"), TypeError, "guarantee: got str; pass one of certificate.guarantees"),
        (lambda: CertificateMonitor(Guarantee("mean_layers", 3)), ValueError, "guarantee: got mean_layers <= 3; the"),
        (lambda: CertificateMonitor(CHANGED, delta=5), ValueError, "delta: got 5; pass a number between 0 and 1"),
        (lambda: CertificateMonitor(CHANGED).update(1, 1, 1), ValueError, "label: got 1; changed_answers needs none"),
        (
            lambda: CertificateMonitor(Guarantee("harm", 0.1)).update(1, 1), ValueError,
            "label: got None; harm needs one",
        ),
        (lambda: CertificateMonitor(CHANGED).update([1, 0, 1], [1, 0, 1]), ValueError, "answer: got .* each once"),
        (
            lambda: CertificateMonitor(CHANGED).update_many([1], [1, 2]), ValueError,
            "full_depth, labels: got 2 and 1 for 1 answers; pass one per answer",
        ),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
