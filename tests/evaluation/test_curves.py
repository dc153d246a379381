"""Areas against integrals worked out by hand, scores by layer and oracle by definition, intervals by known spread."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from adaexit_hf import CurvePoint, ExitTrace, area_under_curve, tradeoff_curve
from adaexit_hf.evaluation.bootstrap import bootstrap_samples, bootstrap_seeds, score_bands
from adaexit_hf.evaluation.curves import areas_between, mean_curve, score_at
from adaexit_hf.evaluation.metrics import Metric, compute_score
from adaexit_hf.evaluation.summary import results_at_threshold
from adaexit_hf.evaluation.trace import predictions
from adaexit_hf.evaluation.tradeoff import exit_histogram, layer_scores, oracle_bound, oracle_exits

NAN = math.nan


def accuracy(labels: Tensor, predicted: Tensor) -> float:
    return (predicted == labels).double().mean().item()


ACCURACY = Metric(accuracy)


def line(*points: tuple[float, float], depth: int = 12) -> list[CurvePoint]:
    """A curve through (mean layers, score); a FLOP count of a million per layer."""
    return [CurvePoint(None, score, layers, 1 - layers / depth, layers * 1e6) for layers, score in points]


FALLING, RISING = line((2, 0.9), (4, 0.7)), line((2, 0.7), (4, 0.8))


@pytest.mark.parametrize(
    ("first", "second", "areas"),
    [
        # From 0.2 above to 0.1 below: they cross after 4/3 layers.
        (FALLING, RISING, (0.2 * 4 / 3 / 2, 0.1 * 2 / 3 / 2)),
        (RISING, FALLING, (0.1 * 2 / 3 / 2, 0.2 * 4 / 3 / 2)),
        (FALLING, FALLING, (0.0, 0.0)),
        (line((1, 0.5), (3, 0.5)), line((2, 0.25), (5, 0.25)), (0.25, 0.0)),  # from 2 to 3
        # Corners at other places, and a touch at 3 that is no crossing.
        (line((1, 0.5), (3, 0.5), (5, 0.5)), line((1, 0.25), (3, 0.5), (4, 0.25), (5, 0.25)), (0.625, 0.0)),
        # A crossing in the first interval, which the code of BERxiT's authors nets.
        (line((1, 0.0), (3, 0.5), (5, 0.5)), line((1, 0.5), (3, 0.0), (5, 0.0)), (0.25 + 1.0, 0.25)),
    ],
)  # fmt: skip
def test_areas_between_two_curves(first: Any, second: Any, areas: tuple[float, float]) -> None:
    found = areas_between(first, second)
    assert (found.first_above, found.second_above) == pytest.approx(areas, abs=1e-12)


def test_areas_between_random_curves_against_fine_rectangles() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        curves = []
        for count in (3, 6):
            layers = torch.rand(count, generator=generator).sort().values * 10 + 1
            curves.append(line(*zip(layers.tolist(), torch.rand(count, generator=generator).tolist(), strict=True)))
        found = areas_between(*curves)
        grid = torch.linspace(found.start, found.end, 20001, dtype=torch.float64)[:-1]
        grid = grid + (found.end - found.start) / 40000
        above = torch.tensor([value_at(curves[0], x) - value_at(curves[1], x) for x in grid.tolist()[::20]])
        width = (found.end - found.start) / len(above)
        assert found.first_above == pytest.approx(above.clamp_min(0).sum().item() * width, abs=5e-3)
        assert found.second_above == pytest.approx((-above).clamp_min(0).sum().item() * width, abs=5e-3)


def value_at(curve: list[CurvePoint], where: float) -> float:
    points = sorted((point.mean_layers, point.score) for point in curve)
    for (left, low), (right, high) in zip(points, points[1:], strict=False):
        if left <= where <= right:
            return low + (high - low) * (where - left) / (right - left)
    raise AssertionError(where)


def test_the_difference_of_the_areas_is_that_of_the_means() -> None:
    found, width = areas_between(FALLING, RISING), 2
    means = [area_under_curve(curve) for curve in (FALLING, RISING)]
    assert found.first_above - found.second_above == pytest.approx((means[0] - means[1]) * width)


@pytest.mark.parametrize(
    ("between", "area"),
    [(None, 0.7), ((3, 12), 0.7), ((3, 7.5), 0.65), ((7.5, 12), 0.75), ((4, 5), 0.6 + 0.2 * 1.5 / 9)],
)
def test_the_area_in_a_range(between: Any, area: float) -> None:
    assert area_under_curve(line((3, 0.6), (12, 0.8)), between) == pytest.approx(area, abs=1e-9)


def test_flops_may_be_the_axis() -> None:
    curve = [CurvePoint(0.5, 0.5, 3.0, 0.75, 10.0), CurvePoint(0.2, 1.0, 6.0, 0.5, 40.0)]
    curve.append(CurvePoint(None, 1.0, 12.0, 0.0, 50.0))
    assert area_under_curve(curve, cost="flops") == pytest.approx((0.75 * 30 + 10) / 40)
    assert area_under_curve(curve) == pytest.approx((0.75 * 3 + 6) / 9)
    assert areas_between(curve, line((3e-6, 0.5), (5e-5, 0.5)), "flops").first_above == pytest.approx(
        0.25 * 27 + 0.5 * 10, 0.2
    )


FLAT = [CurvePoint(None, 1.0, 1.0, 0.0)]
BAD_CURVES: Any = [
    pytest.param(lambda: area_under_curve(line((3, NAN), (5, 1))), "curve: the score at .* is nan; choose", id="nan"),
    pytest.param(lambda: area_under_curve(FALLING, (1, 3)), r"between: got \(1, 3\); the curve goes", id="beyond"),
    pytest.param(lambda: area_under_curve(FALLING, (3, 3)), r"between: got \(3, 3\); the curve", id="no width"),
    pytest.param(lambda: area_under_curve(FALLING, cost="time"), "cost: got 'time'; choose 'layers'", id="cost"),
    pytest.param(
        lambda: areas_between(FALLING, line((5, 1), (6, 1))), "curves: their ranges, 2 to 4 and 5 to 6", id="apart"
    ),
    pytest.param(
        lambda: areas_between(FALLING, line((5, 1))),
        r"curve: got points at 1 distinct costs \(layers\); at least",
        id="point",
    ),
    pytest.param(
        lambda: mean_curve([line((1, 1), (2, 1)), line((3, 1), (4, 1))]),
        "curves: their ranges, 1 to 2 and 3 to 4 layers, do not overlap; pass more",
        id="means apart",
    ),
    pytest.param(lambda: mean_curve([]), "curves: got none; pass at least one", id="no curves"),
    pytest.param(
        lambda: area_under_curve(FLAT, cost="flops"), "curve: has no FLOPs; call collect_trace", id="no flops"
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD_CURVES)
def test_areas_that_do_not_exist_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def by_hand() -> ExitTrace:
    """Four samples, exits after layers 2, 3 and 6; the last sample is never right."""
    answers = torch.tensor([[0, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1]])
    scores = torch.tensor([[0.9, 0.6, 0.7], [0.4, 0.8, 0.9], [0.5, 0.5, 0.6], [NAN, 0.95, 0.99]])
    flops = torch.tensor([[10, 20, 40], [10, 20, 40], [20, 40, 80], [20, 40, 80]])
    return ExitTrace(torch.eye(2)[answers], scores, torch.tensor([0, 1, 1, 0]), (2, 3, 6), "gt", flops=flops)


def test_exits_are_counted_by_layer(by_hand: ExitTrace) -> None:
    assert exit_histogram(by_hand, 0.7) == {2: 1, 3: 2, 6: 1}
    assert exit_histogram(by_hand, None) == {2: 0, 3: 0, 6: 4}


def test_every_sample_forced_to_leave_at_each_layer(by_hand: ExitTrace) -> None:
    assert layer_scores(by_hand, ACCURACY) == {2: 0.25, 3: 0.25, 6: 0.5}


def test_the_curve_knows_the_flops(by_hand: ExitTrace) -> None:
    curve = tradeoff_curve(by_hand, ACCURACY, [0.7])
    assert [point.flops for point in curve] == [(10 + 20 + 80 + 40) / 4, (40 + 40 + 80 + 80) / 4]


def test_the_oracle_takes_the_first_exit_that_is_right(by_hand: ExitTrace) -> None:
    assert oracle_exits(by_hand).tolist() == [0, 1, 2, 0]
    bound = oracle_bound(by_hand, ACCURACY)
    assert bound == (0.75, (2 + 3 + 6 + 2) / 4, pytest.approx(1 - 13 / 24))
    assert all(point.score <= bound.score for point in tradeoff_curve(by_hand, ACCURACY))


def test_no_choice_of_exits_beats_the_oracle() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5, 3, 3, generator=generator), torch.arange(5) % 3
    trace = ExitTrace(logits, torch.zeros(5, 3), labels, (1, 2, 4), "gt")
    every = torch.cartesian_prod(*[torch.arange(3)] * 5)
    outcomes = []
    for chosen in every:
        score = accuracy(labels, trace.answers(chosen).argmax(dim=1))
        outcomes.append((score, -torch.tensor(trace.exit_layers)[chosen].double().mean().item()))
    bound = oracle_bound(trace, ACCURACY)
    assert max(outcomes) == (bound.score, -bound.mean_layers)


def test_an_answer_that_is_not_finite_is_wrong() -> None:
    logits = torch.tensor([[[NAN, NAN], [1.0, 0.0]], [[0.0, math.inf], [0.0, math.inf]], [[0.0, 1.0], [1.0, 0.0]]])
    trace = ExitTrace(logits, torch.ones(3, 2), torch.tensor([0, 1, 1]), (1, 2), "gt")
    assert oracle_exits(trace).tolist() == [1, 0, 0]
    message = r"trace: 3 of 6 predictions \(samples times exits\) are not finite and count as wrong; collect it again"
    with pytest.warns(RuntimeWarning, match=message):
        assert layer_scores(trace, ACCURACY) == {1: pytest.approx(1 / 3), 2: pytest.approx(1 / 3)}
    with pytest.warns(RuntimeWarning, match=message):
        assert oracle_bound(trace, "f1") == (pytest.approx(2 / 3), pytest.approx(4 / 3), pytest.approx(1 / 3))
    with pytest.warns(RuntimeWarning, match=message):
        assert [point.score for point in tradeoff_curve(trace, ACCURACY, [0.5])] == pytest.approx([1 / 3] * 2)
    with pytest.warns(RuntimeWarning, match=message):
        assert results_at_threshold(trace, ("accuracy",), 0.5)["at_threshold"] == {"accuracy": pytest.approx(1 / 3)}


def test_a_number_within_the_tolerance_is_right() -> None:
    answers = torch.tensor([[1.4, 1.0], [3.0, 2.9], [NAN, 0.5]])
    trace = ExitTrace(answers[..., None], torch.zeros(3, 2), torch.tensor([1.0, 1.0, 0.0]), (1, 2), "gt")
    assert oracle_exits(trace, tolerance=0.5).tolist() == [0, 1, 1]  # the second is never right, but nearer at exit 2
    with pytest.raises(ValueError, match="tolerance: got None, but the trace is of a regression; pass the largest"):
        oracle_exits(trace)
    with pytest.raises(ValueError, match="tolerance: got -1"):
        oracle_exits(trace, tolerance=-1.0)


def test_classes_need_no_tolerance(by_hand: ExitTrace) -> None:
    with pytest.raises(
        ValueError,
        match="tolerance: got 0.5, but the trace is of a classifier; only regression takes one, leave it out",
    ):
        oracle_exits(by_hand, tolerance=0.5)


def test_without_labels_nothing_is_right(by_hand: ExitTrace) -> None:
    unlabelled = ExitTrace(by_hand.logits, by_hand.scores, None, (2, 3, 6), "gt")
    for call in (oracle_exits, lambda trace: layer_scores(trace, ACCURACY)):
        with pytest.raises(
            ValueError, match="trace: has no labels; call collect_trace on a data set with a 'label' column"
        ):
            call(unlabelled)


def coin(samples: int, right: float, labels: int = 2) -> ExitTrace:
    """One exit that is right on this share of the samples."""
    truth = torch.arange(samples) % labels
    given = torch.where(torch.arange(samples) < samples * right, truth, (truth + 1) % labels)
    return ExitTrace(torch.eye(labels)[given][:, None], torch.zeros(samples, 1), truth, (6,), "gt")


def scored(trace: ExitTrace) -> float:
    assert trace.labels is not None
    return accuracy(trace.labels, trace.logits[:, 0].argmax(dim=1))


def test_an_interval_over_samples_is_as_wide_as_theory_says() -> None:
    interval = bootstrap_samples([coin(400, 0.8)], scored, resamples=2000)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert interval.value == pytest.approx(0.8)
    assert (interval.low, interval.high) == (
        pytest.approx(0.8 - half, abs=0.006),
        pytest.approx(0.8 + half, abs=0.006),
    )
    narrow = bootstrap_samples([coin(400, 0.8)], scored, level=0.5)
    assert interval.low < narrow.low < 0.8 < narrow.high < interval.high


@pytest.mark.parametrize(
    ("metric", "labels", "several"),
    [("accuracy", 3, False), ("f1", 2, False), ("matthews_correlation", 3, False), ("pearson", 1, False)]
    + [(metric, 3, True) for metric in ("accuracy", "f1_micro", "f1_macro")],
)
def test_bands_are_the_intervals_at_every_threshold(metric: str, labels: int, several: bool) -> None:
    truth = torch.rand(20) if labels == 1 else torch.randint(labels, (20,))
    truth = torch.randint(2, (20, labels)) if several else truth
    trace = ExitTrace(torch.randn(20, 2, labels), torch.rand(20, 2), truth, (1, 2), "gt", multi_label=several)
    for threshold, band in zip([0.5, None], score_bands(trace, metric, [0.5, None], resamples=30), strict=True):

        def score(drawn: ExitTrace, threshold: float | None = threshold) -> float:
            answers = predictions(drawn.at(threshold)[0], several)
            return compute_score(metric, predictions=answers, references=drawn.labels)

        assert band == pytest.approx(bootstrap_samples([trace], score, resamples=30)[1:], abs=1e-6)


def test_there_is_no_band_where_a_score_is_not_defined() -> None:
    without = ExitTrace(torch.zeros(20, 1, 2), torch.zeros(20, 1), torch.zeros(20), (1,), "gt")
    assert score_bands(without, "f1", [None]) == [None]
    number = ExitTrace(torch.zeros(20, 1, 1), torch.zeros(20, 1), torch.rand(20), (1,), "gt")
    assert score_bands(number, "spearmanr", [None]) == [None]
    assert score_bands(number, "pearson", [None]) == [(0.0, 0.0)]


def test_traces_are_resampled_together() -> None:
    interval = bootstrap_samples([coin(100, 0.8), coin(100, 0.8)], lambda one, other: scored(one) - scored(other))
    assert interval == (0.0, 0.0, 0.0)  # sample by sample they are equal; drawn apart, they would differ by 0.1


def test_the_same_seed_draws_the_same() -> None:
    one, same, other = (bootstrap_samples([coin(50, 0.6)], scored, 100, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


def test_resamples_of_one_class_are_drawn_anew() -> None:
    trace = coin(4, 0.5)  # every eighth resample would have one class, where MCC is not defined

    def correlation(part: ExitTrace) -> float:
        predicted = part.logits[:, 0].argmax(dim=1)
        return compute_score("matthews_correlation", predictions=predicted, references=part.labels)

    interval = bootstrap_samples([trace], correlation, 100)
    assert -1 <= interval.low < interval.high <= 1


def test_an_interval_over_seeds() -> None:
    assert bootstrap_seeds([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    values = torch.linspace(0, 1, 50).tolist()
    interval = bootstrap_seeds(values, resamples=2000)
    half = 1.96 * torch.tensor(values).std(correction=0).item() / math.sqrt(50)
    assert (interval.low, interval.high) == (pytest.approx(0.5 - half, abs=0.01), pytest.approx(0.5 + half, abs=0.01))


BAD_INTERVALS: Any = [
    pytest.param(lambda: bootstrap_samples([], scored), "traces: got none; pass at least one", id="no traces"),
    pytest.param(
        lambda: bootstrap_samples([coin(4, 1), coin(5, 1)], scored), "traces: trace 1 has 5 samples", id="data"
    ),
    pytest.param(lambda: bootstrap_samples([coin(4, 1)], scored, 0), "resamples: got 0; pass a whole", id="resamples"),
    pytest.param(lambda: bootstrap_samples([coin(4, 1)], scored, level=95), "level: got 95; pass a share", id="level"),
    pytest.param(
        lambda: bootstrap_samples([coin(4, 1)], lambda _: NAN), "statistic: is nan on the whole data set", id="nan"
    ),
    pytest.param(lambda: bootstrap_seeds([0.5]), "values: got 1; pass the values of at least two runs", id="one"),
    pytest.param(lambda: bootstrap_seeds([0.5, NAN]), "statistic: is nan on the whole data set", id="nan seed"),
]


@pytest.mark.parametrize(("call", "message"), BAD_INTERVALS)
def test_intervals_that_do_not_exist_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_statistic_that_is_sometimes_undefined() -> None:
    calls = iter([0.5, 0.5, NAN, 0.5])
    with pytest.raises(ValueError, match="statistic: is nan on 1 of 3 resamples; pass one that is defined on all"):
        bootstrap_samples([coin(4, 1)], lambda _: next(calls), resamples=3)


@pytest.mark.parametrize("between", [12, (3,), (3, 6, 12), "ab", (None, 12)])
def test_a_range_is_two_numbers(between: Any) -> None:
    curve = [CurvePoint(0.5, 0.6, 3.0, 0.75), CurvePoint(None, 0.8, 12.0, 0.0)]
    with pytest.raises(ValueError, match=r"between: got .*; the curve goes from 3 to 12 layers, pass two ascending"):
        area_under_curve(curve, between)


def test_a_mean_curve_has_a_direction_and_no_thresholds() -> None:
    runs = [[point._replace(higher_is_better=False) for point in line((1, low), (3, 0.2))] for low in (0.4, 0.6)]
    mean = mean_curve(runs, count=2)
    assert [(point.score, point.mean_layers, point.higher_is_better) for point in mean] == [
        (pytest.approx(0.5), 1.0, False),
        (pytest.approx(0.2), 3.0, False),
    ]
    assert not hasattr(mean[0], "threshold")
    assert area_under_curve(mean) == pytest.approx(0.35)
    assert score_at(mean, 2.0) == pytest.approx(0.35)
    assert areas_between(mean, mean) == (0.0, 0.0, 1.0, 3.0)
    with pytest.raises(ValueError, match="cost: got 'flops', but a mean curve has layers only"):
        area_under_curve(mean, cost="flops")


def test_curves_of_different_directions_are_not_compared() -> None:
    errors = [point._replace(higher_is_better=False) for point in FALLING]
    for call in (areas_between, lambda *curves: mean_curve(curves)):
        with pytest.raises(
            ValueError, match="curve: higher scores are better at some points and lower ones at others"
        ):
            call(FALLING, errors)


@pytest.mark.parametrize("count", [1, 0, -1, 2.5, True, None])
def test_a_mean_curve_has_two_points_or_more(count: Any) -> None:
    curve = [CurvePoint(0.5, 0.6, 3.0, 0.75), CurvePoint(None, 0.8, 12.0, 0.0)]
    with pytest.raises(ValueError, match=f"count: got {count!r}; pass a whole number from 2, e.g. count=100"):
        mean_curve([curve], count)


def test_a_score_beyond_the_curve_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"mean_layers: got 2; the curve goes from 3 to 12, pass a number in that range"
    ):
        score_at(line((3, 0.6), (12, 0.8)), 2)
