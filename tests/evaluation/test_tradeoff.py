"""One trace gives the whole curve, and the curve is what early exit really does."""

import math
from typing import Any, cast

import pytest
import torch
from helpers.runs import METHODS, Row, clear_thresholds, collate, encoder_config, new_model, texts
from torch import Tensor

from adaexit_hf import (
    CurvePoint,
    ExitTrace,
    Metric,
    area_under_curve,
    choose_threshold,
    collect_trace,
    expected_saving,
    tradeoff_curve,
)
from adaexit_hf.evaluation.curves import mean_curve
from adaexit_hf.evaluation.summary import results_at_threshold
from adaexit_hf.evaluation.thresholds import best_point, spread_thresholds
from adaexit_hf.evaluation.trace import predictions
from adaexit_hf.evaluation.tradeoff import layer_scores, majority_score, oracle_bound, oracle_exits
from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.padded_batches import padded_batch

NAN = math.nan
VARIANTS = [*METHODS, "regression"]


ACCURACY = Metric(lambda labels, predicted: (predicted == labels).double().mean())


def negative_error(labels: Tensor, predicted: Tensor) -> float:
    return -(predicted - labels).abs().double().mean().item()


@pytest.fixture
def by_hand() -> ExitTrace:
    """Four samples, exits after layers 2, 3 and 6 of six; confidences, of which one is not a number."""
    answers = torch.tensor([[0, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 1]])
    scores = torch.tensor([[0.9, 0.6, 0.7], [0.4, 0.8, 0.9], [0.5, 0.5, 0.6], [NAN, 0.95, 0.99]])
    return ExitTrace(torch.eye(2)[answers], scores, torch.tensor([0, 1, 1, 0]), (2, 3, 6), "gt")


def test_a_curve_computed_by_hand(by_hand: ExitTrace) -> None:
    curve = tradeoff_curve(by_hand, ACCURACY, [0.7, 0.45])
    assert curve == [
        CurvePoint(0.45, 0.75, 2.5, pytest.approx(7 / 12)),  # after layers 2, 3, 2, 3; the third answer is wrong
        CurvePoint(0.7, 1.0, 3.5, pytest.approx(5 / 12)),  # after 2, 3, 6, 3
        CurvePoint(None, 0.5, 6.0, 0.0),
    ]
    assert area_under_curve(curve) == pytest.approx((0.875 * 1 + 0.75 * 2.5) / 3.5)


def test_a_curve_says_which_settings_made_its_trace() -> None:
    model = new_model("berxit", exit_criterion="entropy", exit_temperatures=[1.0, 2.0, 1.5, 1.0])
    trace = collect_trace(model, texts(3), progress=False)
    settings = {
        "exit_criterion": "entropy",
        "exit_temperatures": [1.0, 2.0, 1.5, 1.0],
        "patience_tolerance": model.config.patience_tolerance,
    }
    assert {"exit_threshold": 0.5, **settings}.items() <= results_at_threshold(trace, ("accuracy",), 0.5).items()
    assert all(point.settings == settings for point in tradeoff_curve(trace, "accuracy"))


def test_a_metric_may_be_given_by_name(by_hand: ExitTrace) -> None:
    by_function = tradeoff_curve(by_hand, ACCURACY, [0.7, 0.45])
    assert tradeoff_curve(by_hand, "accuracy", [0.7, 0.45]) == [point._replace(majority=0.5) for point in by_function]
    assert layer_scores(by_hand, "f1") == {2: 0.0, 3: 0.5, 6: pytest.approx(2 / 3)}
    assert oracle_bound(by_hand, "accuracy") == oracle_bound(by_hand, ACCURACY)
    with pytest.raises(ValueError, match="metric: got 'acc'; choose accuracy, f1, .* or f1_macro"):
        layer_scores(by_hand, "acc")


def test_the_majority_is_the_most_frequent_answer_of_the_same_rows() -> None:
    for labels in ([1, 0, 2, 1, 1], [2, 2, 0, 0, 1], [0, 0, 0]):
        trace = ExitTrace(
            torch.zeros(len(labels), 1, 3), torch.zeros(len(labels), 1), torch.tensor(labels), (2,), "gt"
        )
        assert majority_score(trace, "accuracy") == pytest.approx(max(map(labels.count, labels)) / len(labels))
    sets = torch.tensor([[1, 0], [1, 1], [1, 0]])
    trace = ExitTrace(torch.zeros(3, 1, 2), torch.zeros(3, 1), sets, (2,), "gt", multi_label=True)
    assert majority_score(trace, "f1_micro") == pytest.approx(2 * 3 / (4 + 3))
    trace = ExitTrace(torch.zeros(3, 1, 1), torch.zeros(3, 1), torch.tensor([1.0, 2.0, 6.0]), (2,), "gt")
    errors = Metric(lambda labels, predicted: (predicted - labels).abs().mean(), higher_is_better=False)
    assert (majority_score(trace, "pearson"), majority_score(trace, errors)) == (0.0, 2.0)


def test_a_point_knows_whether_it_is_better_than_the_majority(by_hand: ExitTrace) -> None:
    curve = tradeoff_curve(by_hand, "accuracy", [0.0, 0.7])  # 0.0: whoever has a score leaves at once
    assert [(point.majority, point.score) for point in curve] == [(0.5, 0.5), (0.5, 1.0), (0.5, 0.5)]
    assert [point.no_better_than_majority for point in curve] == [True, False, True]
    assert not any(point.no_better_than_majority for point in tradeoff_curve(by_hand, ACCURACY))  # unknown
    results = results_at_threshold(by_hand, ("accuracy", "f1"), 0.7)
    assert results["majority"] == {"accuracy": 0.5, "f1": 0.0}  # class 0, the lower of two that are as frequent


def test_a_choice_that_saves_nothing_or_knows_nothing_is_told() -> None:
    with pytest.warns(UserWarning, match="curve: no threshold saves layers within max_drop=0.01, so that all texts"):
        choose_threshold([CURVE[0], CURVE[-1]])
    poor = [point._replace(majority=0.8) for point in CURVE]
    with pytest.warns(UserWarning, match="score of the choice, 0.8, is no better than that of always .*, 0.8; choose"):
        choose_threshold(poor)


def test_f1_of_three_classes_of_which_one_never_occurs(by_hand: ExitTrace) -> None:
    logits = torch.nn.functional.pad(by_hand.logits, (0, 1))
    trace = ExitTrace(logits, by_hand.scores, by_hand.labels, by_hand.exit_layers, "gt")
    calls: list[Any] = [
        layer_scores,
        tradeoff_curve,
        oracle_bound,
        lambda trace, name: results_at_threshold(trace, (name,), None),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match="metric: f1 is defined for two classes, 0 and 1, but there are 3 classes; pass"
        ):
            call(trace, "f1")


def test_the_warning_of_lost_answers_points_at_the_call(by_hand: ExitTrace) -> None:
    by_hand.logits[0, 0] = NAN
    calls: list[Any] = [
        layer_scores,
        tradeoff_curve,
        oracle_bound,
        lambda trace, name: results_at_threshold(trace, (name,), None),
    ]
    for call in calls:
        with pytest.warns(RuntimeWarning, match=r"1 of 12 predictions \(samples times exits\) are not finite") as told:
            call(by_hand, "accuracy")
        assert [each.filename for each in told] == [__file__]


def error(labels: Tensor, predicted: Tensor) -> float:
    return (labels != predicted).double().mean().item()


def test_a_curve_keeps_the_direction_of_its_metric(by_hand: ExitTrace) -> None:
    curve = tradeoff_curve(by_hand, Metric(error, higher_is_better=False), [0.7, 0.45])
    assert [(point.score, point.higher_is_better) for point in curve] == [(0.25, False), (0.0, False), (0.5, False)]
    assert all(point.higher_is_better for point in tradeoff_curve(by_hand, "accuracy"))


def test_a_function_counts_as_higher_is_better_and_a_warning_says_so(by_hand: ExitTrace) -> None:
    with pytest.warns(UserWarning, match=r"metric: a higher score counts as better.*Metric\(f, higher_is_b") as told:
        curve = tradeoff_curve(by_hand, error)
    assert [each.filename for each in told] == [__file__]
    assert all(point.higher_is_better for point in curve)


def test_a_function_gets_the_true_labels_first(by_hand: ExitTrace) -> None:
    given = []
    layer_scores(by_hand, lambda labels, predicted: given.append((labels.tolist(), predicted.tolist())) or 0.0)
    assert given[0] == ([0, 1, 1, 0], [0, 0, 0, 1])


@pytest.mark.parametrize("thresholds", [0.5, "0.5", torch.tensor([0.5])], ids=["number", "text", "tensor"])
def test_thresholds_that_are_no_list_are_refused(by_hand: ExitTrace, thresholds: Any) -> None:
    with pytest.raises(TypeError, match=r"thresholds: got .*; pass a list of thresholds, e.g. thresholds=\[0.5\]"):
        tradeoff_curve(by_hand, ACCURACY, thresholds)


@pytest.mark.parametrize("metric", [None, 0.5, ["accuracy"]])
def test_a_metric_of_the_wrong_type_is_refused(by_hand: ExitTrace, metric: Any) -> None:
    for call in (layer_scores, tradeoff_curve, oracle_bound):
        with pytest.raises(TypeError, match=r"metric: got .*; pass a name, e.g. 'accuracy', or Metric\(function"):
            call(by_hand, metric)


def test_answers_and_layers_at_one_threshold(by_hand: ExitTrace) -> None:
    logits, exit_layer = by_hand.at(0.7)
    assert logits.argmax(dim=-1).tolist() == [0, 1, 1, 0]
    assert exit_layer.tolist() == [2, 3, 6, 3]


def test_a_score_that_is_not_a_number_never_exits(by_hand: ExitTrace) -> None:
    assert by_hand.exits_at(0.0).tolist() == [0, 0, 0, 1]
    hopeless = ExitTrace(torch.zeros(1, 3, 2), torch.full((1, 3), NAN), None, (1, 2, 3), "lt")
    assert hopeless.exits_at(9.0).tolist() == [2]


def test_every_exit_may_have_a_threshold_of_its_own(by_hand: ExitTrace) -> None:
    assert by_hand.exits_at([2.0, 0.7, 0.0]).tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize(("ready", "exits"), [("lt", 1), ("le", 0), ("gt", 1), ("ge", 0)])
def test_a_score_on_the_threshold(ready: str, exits: int) -> None:
    scores = torch.tensor([[0.5, 0.2 if ready[0] == "l" else 0.8, 0.5]])
    assert ExitTrace(torch.zeros(1, 3, 2), scores, None, (1, 2, 3), ready).exits_at(0.5).tolist() == [exits]


@pytest.mark.parametrize("ready", ["lt", "le", "gt", "ge"])
def test_mean_layers_are_monotone_in_the_threshold(ready: str) -> None:
    trace = ExitTrace(torch.randn(50, 4, 3), torch.rand(50, 4), torch.zeros(50), (1, 2, 5, 6), ready)
    curve = tradeoff_curve(trace, ACCURACY, torch.linspace(-0.1, 1.1, 60).tolist())
    layers = [point.mean_layers for point in sorted(curve[:-1], key=lambda point: point.threshold)]
    assert layers == sorted(layers, reverse=ready.startswith("l"))
    assert {min(layers), max(layers)} == {1.0, 6.0}


def variant(name: str) -> EarlyExitForSequenceClassification:
    return (new_model("berxit", num_labels=1) if name == "regression" else new_model(name)).eval()


def exited(
    model: EarlyExitForSequenceClassification, rows: list[Row], threshold: float, batch: int
) -> tuple[Tensor, Tensor]:
    """A real early-exit run: logits and exit layers."""
    outputs = []
    for first in range(0, len(rows), batch):
        inputs = padded_batch(rows[first : first + batch], model.config.encoder_config)
        with torch.no_grad():
            outputs.append(model(**inputs, exit_threshold=threshold))
    assert all(output.exit_logits is None for output in outputs)
    return torch.cat([output.logits for output in outputs]), torch.cat([output.exit_layer for output in outputs])


# That a method answers one text as it does many: test_common.py.
@pytest.mark.parametrize(("name", "batch"), [*((name, 7) for name in VARIANTS), ("deebert", 1)])
def test_the_curve_is_what_early_exit_does(name: str, batch: int) -> None:
    model, rows = variant(name), texts(30)
    trace = collect_trace(model, rows, batch_size=4, progress=False)
    metric = Metric(negative_error) if name == "regression" else ACCURACY
    depths = set()
    for threshold in clear_thresholds(trace):
        logits, exit_layer = exited(model, rows, threshold, batch)
        foretold, layers = trace.at(threshold)
        assert torch.equal(exit_layer, layers)
        torch.testing.assert_close(logits, foretold, rtol=0, atol=1e-5)
        point = next(point for point in tradeoff_curve(trace, metric, [threshold]) if point.threshold is not None)
        assert point.score == pytest.approx(float(metric.score(trace.labels, predictions(logits))), abs=1e-5)
        assert point.mean_layers == exit_layer.double().mean().item()
        depths |= set(exit_layer.tolist())
    assert len(depths) >= 3  # else little was tested


@pytest.mark.parametrize("name", VARIANTS)
def test_a_trace_has_the_order_of_the_data_set(name: str) -> None:
    model, rows = variant(name), texts(9)
    trace = collect_trace(model, iter(rows), batch_size=2, progress=False)
    single = [collect_trace(model, [row], progress=False) for row in rows]
    torch.testing.assert_close(trace.logits, torch.cat([each.logits for each in single]))
    torch.testing.assert_close(trace.scores, torch.cat([each.scores for each in single]), rtol=0, atol=1e-5)
    assert trace.labels is not None and trace.labels.tolist() == [row["label"] for row in rows]


@pytest.mark.parametrize("name", METHODS)
def test_padded_rows_give_the_trace_of_unpadded_ones(name: str) -> None:
    model, rows = variant(name), texts(9)
    batch = padded_batch([*rows, {"input_ids": [5] * 14}], encoder_config())
    padded = [{key: value[index].tolist() for key, value in batch.items()} for index in range(len(rows))]
    trace, same = (collect_trace(model, each, progress=False) for each in (rows, padded))
    torch.testing.assert_close(trace.logits, same.logits)
    torch.testing.assert_close(trace.scores, same.scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_a_trace_is_taken_in_eval_mode_which_is_then_left(training: bool) -> None:
    model, rows = new_model("deebert", dropout=0.5).train(training), texts(4)
    first, second = (collect_trace(model, rows, progress=False) for _ in range(2))
    assert torch.equal(first.logits, second.logits)
    assert model.training is training


def test_the_mode_is_restored_after_an_error() -> None:
    model = new_model("deebert").train()
    with pytest.raises(ValueError, match="dataset: item 0 has the token id 1000000, but the encoder's vocabulary has"):
        collect_trace(model, [{"input_ids": [10**6]}], progress=False)
    assert model.training


def test_a_trace_is_kept_in_full_precision_without_a_graph() -> None:
    trace = collect_trace(new_model("deebert").to(torch.bfloat16), texts(3), progress=False)
    assert trace.logits.dtype == trace.scores.dtype == torch.float32
    assert not trace.logits.requires_grad


def test_a_trace_knows_its_exits() -> None:
    trace = collect_trace(new_model("berxit", exit_layers=[2, 4]), texts(3), progress=False)
    assert (trace.exit_layers, trace.ready, trace.scores.shape) == ((2, 4), "gt", (3, 2))


@pytest.mark.parametrize("label", [{}, {"label": None}, {"label": -1}], ids=["no column", "none", "as in GLUE"])
def test_a_set_without_labels(label: dict[str, Any]) -> None:
    rows = [row | label for row in texts(3, labels=False)]
    trace = collect_trace(new_model("deebert"), rows, progress=False)
    assert trace.labels is None
    with pytest.raises(
        ValueError, match="trace: has no labels; call collect_trace on a data set with a 'label' column"
    ):
        tradeoff_curve(trace, ACCURACY)


def test_labels_may_be_negative_numbers_in_regression() -> None:
    rows = [row | {"labels": -1.5} for row in texts(3, labels=False)]
    trace = collect_trace(variant("regression"), rows, progress=False)
    assert trace.labels is not None and trace.labels.tolist() == [-1.5] * 3


def test_a_data_set_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="dataset: got no rows; pass at least one"):
        collect_trace(new_model("deebert"), [])


def test_rows_that_are_not_tokenized_are_refused() -> None:
    with pytest.raises(ValueError, match="dataset: rows have text, label, but no input_ids; call"):
        collect_trace(new_model("deebert"), [{"text": "good", "label": 1}])


def test_thresholds_differ_in_what_they_do() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.0], [0.3, 0.3, 0.0], [NAN, 0.5, 0.0], [math.inf, 0.1, 0.0]])
    trace = ExitTrace(torch.zeros(4, 3, 2), scores, None, (1, 2, 3), "lt", bounds=(0.0, 0.7))
    assert spread_thresholds(trace) == pytest.approx([0.2, 0.4, 0.6])


def test_at_most_as_many_thresholds_as_asked_for() -> None:
    trace = ExitTrace(torch.zeros(500, 2, 2), torch.rand(500, 2), torch.zeros(500), (1, 2), "lt")
    thresholds = spread_thresholds(trace, count=20)
    assert thresholds == sorted(set(thresholds)) and len(thresholds) == 21  # and one at which all leave
    assert len(tradeoff_curve(trace, ACCURACY)) == 102  # and full depth


@pytest.mark.parametrize(
    ("ready", "bounds", "scores", "thresholds"),
    [
        ("gt", (0.0, 1.0), [1.0, 1.0, 1.0], [0.5]),  # saturated
        ("gt", (0.0, 1.0), [0.0, 0.5, 1.0], [0.25, 0.75]),  # nothing is below 0
        ("lt", (0.0, 1.0), [0.0, 0.0, 0.0], [0.5]),
        ("lt", (0.0, 1.0), [0.2, 0.4, 1.0], [0.3, 0.7]),
        ("le", (0.0, 1.0), [0.2, 0.4, 1.0], [0.3, 0.7, 1.0]),
        ("ge", (1.0, 4.0), [0.0, 0.0, 0.0], []),  # patience 0 is full depth
        ("ge", (1.0, 4.0), [0.0, 1.0, 2.0], [1.0, 2.0]),
        ("ge", (0.0, 1.0), [0.0, 1.0, 1.0], [0.0, 1.0]),
        ("gt", None, [3.0, 3.0, 3.0], [-1.0]),
        ("gt", (0.0, 1.0), [NAN, NAN, NAN], []),
    ],
)
def test_spread_thresholds_include_the_most_eager_one(
    ready: str, bounds: Any, scores: list[float], thresholds: list[float]
) -> None:
    early = torch.tensor(scores)[:, None]
    trace = ExitTrace(torch.zeros(3, 2, 2), torch.cat([early, early], dim=1), None, (1, 2), ready, bounds=bounds)
    assert spread_thresholds(trace) == pytest.approx(thresholds)


def test_a_curve_starts_where_all_leave_at_the_first_exit() -> None:
    for name in ("deebert", "berxit", "fastbert", "dact-bert", "right-tool"):
        trace = collect_trace(new_model(name), texts(20), progress=False)
        assert tradeoff_curve(trace, ACCURACY)[0].mean_layers == 1.0


def test_the_expected_saving_is_that_computed_by_hand() -> None:
    assert expected_saving(torch.tensor([3, 6, 12, 12]), depth=12) == 0.3125
    assert expected_saving(torch.tensor([12]), depth=12) == 0.0


def test_the_area_is_the_mean_score_with_the_best_of_equal_depths() -> None:
    curve = [CurvePoint(0.1, 0.6, 3.0, 0.75), CurvePoint(0.2, 0.9, 6.0, 0.5), CurvePoint(0.3, 0.5, 6.0, 0.5)]
    curve.append(CurvePoint(None, 0.8, 12.0, 0.0))
    assert area_under_curve(curve) == pytest.approx((0.75 * 0.25 + 0.85 * 0.5) / 0.75)


def test_an_area_needs_two_depths() -> None:
    with pytest.raises(
        ValueError,
        match=r"curve: got points at 1 distinct costs \(layers\); at least two are needed, pass more thresholds",
    ):
        area_under_curve([CurvePoint(None, 0.8, 12.0, 0.0)])


CURVE = [
    CurvePoint(0.5, 0.60, 3.0, 0.75),
    CurvePoint(0.3, 0.79, 6.0, 0.5),
    CurvePoint(0.4, 0.80, 6.0, 0.5),
    CurvePoint(0.1, 0.81, 9.0, 0.25),
    CurvePoint(None, 0.80, 12.0, 0.0),
]


@pytest.mark.parametrize(("max_drop", "threshold"), [(0.0, 0.4), (0.02, 0.4), (0.26, 0.5), (0.99, 0.5)])
def test_the_chosen_threshold_saves_most_within_the_allowed_drop(max_drop: float, threshold: float) -> None:
    assert choose_threshold(CURVE, max_drop).threshold == threshold


def test_full_depth_is_chosen_when_every_threshold_costs_too_much() -> None:
    assert best_point([CURVE[0], CURVE[-1]], 0.01).threshold is None


def reference_choice(curve, max_drop):
    full = next(point for point in curve if point.threshold is None)
    allowed = full.score - max_drop * abs(full.score)
    worse = [point.saving for point in curve if not point.score >= allowed and point.saving > full.saving]
    before = [point for point in curve if point.score >= allowed and point.saving < min(worse, default=math.inf)]
    return max(before, key=lambda point: (point.saving, point.score))


@pytest.mark.parametrize("seed", range(10))
def test_no_point_beyond_the_first_that_loses_too_much_is_chosen(seed):
    generator = torch.Generator().manual_seed(seed)
    savings, scores = torch.rand(2, 20, generator=generator).tolist()
    points = [
        CurvePoint(float(index), 0.7 + 0.1 * score, 12 * (1 - saving), saving)
        for index, (saving, score) in enumerate(zip(savings, scores, strict=True))
    ]
    points[3] = points[3]._replace(score=math.nan)
    curve = [*points, CurvePoint(None, 0.75, 12.0, 0.0)]
    for max_drop in (0.0, 0.01, 0.05):
        assert best_point(curve, max_drop) == reference_choice(curve, max_drop)


def test_the_drop_of_a_negative_score_is_downwards() -> None:
    curve = [CurvePoint(0.5, -1.05, 3.0, 0.75), CurvePoint(None, -1.0, 12.0, 0.0)]
    assert [best_point(curve, drop).threshold for drop in (0.01, 0.1)] == [None, 0.5]


def test_where_lower_is_better_the_smallest_error_is_chosen() -> None:
    curve = [
        CurvePoint(0.5, 10.0, 3.0, 0.75, None, False),
        CurvePoint(0.3, 0.0, 6.0, 0.5, None, False),
        CurvePoint(None, 0.0, 12.0, 0.0, None, False),
    ]
    assert choose_threshold(curve).threshold == 0.3
    assert choose_threshold([point._replace(score=point.score + 1) for point in curve], 0.99).threshold == 0.3


def test_the_area_takes_the_smallest_error_of_equal_depths() -> None:
    points = [(0.1, 0.4, 3.0), (0.2, 0.1, 6.0), (0.3, 0.5, 6.0)]
    curve = [CurvePoint(*point, 1 - point[2] / 6, None, False) for point in points]
    assert area_under_curve(curve) == pytest.approx(0.25)


MEAN = mean_curve([CURVE, CURVE])
IMPOSSIBLE = [
    pytest.param(CURVE, -0.1, "max_drop: got -0.1; pass a fraction from 0 to below 1", id="negative"),
    pytest.param(CURVE, 1, r"max_drop: got 1; pass .* Did you mean 0.01 \(1%\)\?", id="all"),
    pytest.param(CURVE, 2.5, r"max_drop: got 2.5; pass .* Did you mean 0.025 \(2.5%\)\?", id="percent"),
    pytest.param(CURVE, 150, "max_drop: got 150; pass a fraction from 0 to below 1, e.g. 0.01$", id="more than all"),
    pytest.param(MEAN, 0.1, "curve: is a mean over runs, which has no thresholds; choose on the curve of", id="mean"),
    pytest.param([*CURVE, CURVE[-1]], 0.1, "curve: has 2 points at full depth", id="two full depths"),
    pytest.param(
        [CURVE[0]._replace(higher_is_better=False), CURVE[-1]],
        0.1,
        "curve: higher scores are better at some",
        id="mix",
    ),
    pytest.param(CURVE, NAN, "max_drop: got nan; pass a fraction from 0 to below 1", id="nan"),
    pytest.param(CURVE[:-1], 0.1, r"curve: has no points at full depth \(threshold None\)", id="no full depth"),
    pytest.param([CURVE[-1]._replace(score=NAN)], 0.1, "curve: the score at full depth is nan", id="nan score"),
]


@pytest.mark.parametrize(("curve", "max_drop", "message"), IMPOSSIBLE)
def test_a_choice_that_cannot_be_made_is_refused(curve: list[CurvePoint], max_drop: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_threshold(curve, max_drop)


def test_a_loss_in_words_is_refused() -> None:
    with pytest.raises(TypeError, match="max_drop: got '1%'; pass a fraction from 0 to below 1, e.g. 0.01"):
        choose_threshold(CURVE, cast(float, "1%"))


def test_batches_are_padded_on_the_right() -> None:
    batch = collate([{"input_ids": [1, 7, 8, 2], "label": 0}, {"input_ids": [1, 2], "label": 2}])
    assert batch["input_ids"].tolist() == [[1, 7, 8, 2], [1, 2, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("value", "advice"), [(None, "from 0 to 2, and drop rows without a label"), ("positive", ".*class_encode")]
)
def test_labels_that_are_no_numbers_are_refused(value: Any, advice: str) -> None:
    rows = [{**row, "label": value if place == 2 else row["label"]} for place, row in enumerate(texts(4))]
    with pytest.raises(ValueError, match=f"label: got {value!r} in row 2; pass class indices,? {advice}"):
        collect_trace(variant("deebert"), rows, progress=False)


def test_the_oracle_of_the_last_exit_needs_no_labels() -> None:
    answers = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 0]])
    trace = ExitTrace(torch.eye(2)[answers], torch.zeros(3, 3), None, (2, 4, 6), "lt")
    naive = [next(k for k in range(3) if row[k] == row[-1]) for row in answers.tolist()]
    assert oracle_exits(trace, target="last_exit").tolist() == naive == [1, 0, 0]


def test_the_oracle_of_the_last_exit_keeps_its_score() -> None:
    answers = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 0]])
    trace = ExitTrace(torch.eye(2)[answers], torch.zeros(3, 3), torch.tensor([1, 0, 0]), (2, 4, 6), "lt")
    bound = oracle_bound(trace, "accuracy", target="last_exit")
    assert (bound.score, bound.mean_layers) == (pytest.approx(2 / 3), pytest.approx(8 / 3))


def test_the_oracle_of_the_last_exit_in_regression_takes_what_is_near() -> None:
    logits = torch.tensor([[1.0, 1.4, 1.5], [0.0, 3.0, 1.0], [math.nan, 1.0, math.nan]])[..., None]
    trace = ExitTrace(logits, torch.zeros(3, 3), None, (1, 2, 3), "lt")
    assert oracle_exits(trace, tolerance=0.2, target="last_exit").tolist() == [1, 2, 2]
