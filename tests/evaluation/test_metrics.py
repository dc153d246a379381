"""Task metrics against their definitions, and what the table of metrics says about each."""

from functools import partial

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from adaexit_hf.data.glue import TASKS
from adaexit_hf.evaluation.metrics import METRICS, Metric, check_classes, compute_score


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("accuracy", 3 / 5),
        ("f1", 2 * 2 / (2 * 2 + 1 + 1)),
        # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN))
        ("matthews_correlation", (2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2)),
    ],
)
def test_classification_scores_by_their_definitions(metric, expected):
    assert compute_score(metric, predictions=[1, 1, 1, 0, 0], references=[1, 1, 0, 1, 0]) == pytest.approx(expected)


def test_correlations_by_their_definitions():
    x, y = np.array([0.1, 0.4, 0.2, 0.9]), np.array([1.0, 3.0, 2.5, 2.0])
    assert compute_score("pearson", predictions=x, references=y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    ranks = np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1]
    assert compute_score("spearmanr", predictions=x, references=y) == pytest.approx(ranks)


@pytest.mark.parametrize("metric", ["pearson", "spearmanr", "matthews_correlation"])
def test_constant_predictions_correlate_with_nothing(metric):
    assert compute_score(metric, predictions=[1, 1, 1], references=[0, 1, 1]) == 0.0


@pytest.mark.parametrize("metric", ["pearson", "spearmanr"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_that_are_not_finite_have_no_correlation(metric, value):
    assert np.isnan(compute_score(metric, predictions=[value, 1.0, 2.0], references=[1.0, 2.0, 3.0]))
    assert np.isnan(compute_score(metric, predictions=[value] * 3, references=[1.0, 2.0, 3.0]))


@pytest.mark.parametrize(("predictions", "references"), [([0, 1, 2], [0, 1, 1]), ([0, 1, 0], [0, 1, 2])])
def test_f1_is_of_two_classes(predictions, references):
    with pytest.raises(
        ValueError, match="metric: f1 is defined for two classes, 0 and 1, but there are classes up to 2; pass accur"
    ):
        compute_score("f1", predictions=predictions, references=references)


@pytest.mark.parametrize(
    ("metric", "references", "message"),
    [
        ("f1", [0, 0, 0], "references: the 3 labels include no class 1, so f1 is not defined; pass data with other"),
        (
            "matthews_correlation",
            [1, 1, 1],
            "references: the 3 labels are all equal, so matthews_correlation is",
        ),
        ("pearson", [0.5, 0.5], "references: the 2 labels are all equal, so pearson is not defined"),
        ("spearmanr", [2.0], "references: the 1 labels are all equal, so spearmanr is not defined"),
    ],
)
def test_a_metric_that_is_not_defined_is_not_zero(metric, references, message):
    with pytest.raises(ValueError, match=message):
        compute_score(metric, predictions=np.arange(len(references)) % 2, references=references)


def test_one_class_is_enough_where_the_metric_is_defined():
    assert compute_score("accuracy", predictions=[0, 1, 0], references=[0, 0, 0]) == pytest.approx(2 / 3)
    assert compute_score("f1", predictions=[0, 1, 1], references=[1, 1, 1]) == pytest.approx(0.8)


@pytest.mark.parametrize("metric", METRICS)
def test_no_samples_have_no_score(metric):
    with pytest.raises(ValueError, match="references: got none; pass at least one"):
        compute_score(metric, predictions=[], references=[])


def test_unknown_metric():
    with pytest.raises(ValueError, match="metric: got 'bleu'; choose accuracy"):
        compute_score("bleu", predictions=[1], references=[1])


def test_every_metric_of_a_task_is_known():
    assert {metric for task in TASKS.values() for metric in task.metrics} <= set(METRICS)


SETS = [[1, 0, 1], [0, 1, 0]]
BEST_AND_WORST = [
    ("accuracy", [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]),
    ("f1", [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]),
    ("matthews_correlation", [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]),
    ("pearson", [0.0, 1.0, 3.0], [1.0, 2.0, 4.0], [3.0, 2.0, 0.0]),
    ("spearmanr", [0.0, 1.0, 3.0], [0.1, 0.2, 9.0], [2.0, 0.3, 0.2]),
    ("f1_micro", SETS, SETS, SETS[::-1]),
    ("f1_macro", SETS, SETS, SETS[::-1]),
]
# Those of one class or number per text.
OF_ONE = [name for name, known in METRICS.items() if not known.label_sets]


def test_every_metric_has_a_best_and_a_worst_case():
    assert [case[0] for case in BEST_AND_WORST] == list(METRICS)


@pytest.mark.parametrize(("metric", "references", "best", "worst"), BEST_AND_WORST)
def test_the_range_of_a_metric_ends_at_its_best_and_worst_scores(metric, references, best, worst):
    known = METRICS[metric]
    scores = [compute_score(metric, predictions=predictions, references=references) for predictions in (worst, best)]
    assert scores == pytest.approx([known.lowest, known.highest])
    assert known.higher_is_better is (scores[1] > scores[0])


@pytest.mark.parametrize("metric", OF_ONE)
def test_random_scores_lie_in_the_range(metric):
    generator = np.random.default_rng(0)
    for _ in range(20):
        if METRICS[metric].regression:
            predictions, references = generator.normal(size=(2, 10))
        else:
            predictions, references = generator.permuted([[0, 1] * 5] * 2, axis=1)
        assert (
            METRICS[metric].lowest
            <= compute_score(metric, predictions=predictions, references=references)
            <= METRICS[metric].highest
        )


@pytest.mark.parametrize("metric", [name for name in OF_ONE if not METRICS[name].regression])
def test_swapping_the_classes_changes_only_metrics_that_use_their_order(metric):
    predictions, references = np.array([0, 1, 1, 1, 1]), np.array([0, 1, 0, 1, 1])
    same = compute_score(metric, predictions=1 - predictions, references=1 - references) == pytest.approx(
        compute_score(metric, predictions=predictions, references=references)
    )
    assert same is not METRICS[metric].uses_label_order


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_of_numbers_are_the_correlations(metric):
    assert METRICS[metric].regression is (metric in ("pearson", "spearmanr"))


@pytest.mark.parametrize("metric", OF_ONE)
@pytest.mark.parametrize(("predictions", "references"), [([1], [1, 0]), ([[1, 0]], [1, 0]), ([[[1]]], [[[1]]])])
def test_other_shapes_are_refused(metric: str, predictions: list, references: list) -> None:
    with pytest.raises(
        ValueError, match=r"predictions: got shape \(.*\) for references of shape \(.*\); pass one number"
    ):
        compute_score(metric, predictions=predictions, references=references)


@pytest.mark.parametrize("metric", OF_ONE)
def test_a_column_counts_as_a_row_of_numbers(metric: str) -> None:
    assert compute_score(metric, predictions=[[1], [0], [0]], references=[1, 0, 1]) == compute_score(
        metric, predictions=[1, 0, 0], references=[1, 0, 1]
    )


@pytest.mark.parametrize("metric", [name for name in OF_ONE if not METRICS[name].regression])
def test_probabilities_are_no_classes(metric: str) -> None:
    with pytest.raises(ValueError, match="predictions: got 0.6, which is no class; pass class indices"):
        compute_score(metric, predictions=[0.6, 1.0], references=[1, 0])


LABELS, PREDICTIONS = [1, 1, 1, 0], [1, 0, 0, 0]  # precision 1, recall 1/3


def test_a_function_of_scikit_learn_gets_the_true_labels_first() -> None:
    precision_score = pytest.importorskip("sklearn.metrics").precision_score
    for metric in (precision_score, Metric(precision_score)):
        assert compute_score(metric, predictions=PREDICTIONS, references=LABELS) == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_numbers_of_every_dtype_are_scored(dtype: torch.dtype) -> None:
    numbers = torch.tensor([0.5, 1.0, 2.0], dtype=dtype)
    mean_error = Metric(lambda labels, predictions: (labels - predictions).abs().mean(), higher_is_better=False)
    assert compute_score(mean_error, predictions=numbers, references=numbers + 1) == 1.0
    assert compute_score("pearson", predictions=numbers, references=numbers) == pytest.approx(1.0)


def test_a_metric_gets_its_numbers_on_the_cpu() -> None:
    devices = []
    record = Metric(lambda labels, predictions: devices.append((labels.device.type, predictions.device.type)) or 0.0)
    with FakeTensorMode():
        numbers = torch.zeros(4, device="cuda")
        compute_score(record, predictions=numbers, references=numbers)
    assert devices == [("cpu", "cpu")]


def test_predictions_and_references_are_named() -> None:
    with pytest.raises(TypeError, match="positional"):
        compute_score("accuracy", [1], [1])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score": "accuracy"}, "score: got 'accuracy'; pass a function of true labels and predictions"),
        ({"score": max, "higher_is_better": "no"}, "higher_is_better: got 'no'; pass True or False"),
    ],
)
def test_a_metric_is_a_function_with_a_direction(fields: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Metric(**fields)


# Several labels at once ---------------------------------------------------------------------------------------------

GIVEN = [[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0]]
PREDICTED = [[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def naive_f1(given: list[int], predicted: list[int]) -> float:
    right = sum(a and b for a, b in zip(given, predicted, strict=True))
    return 2 * right / (sum(given) + sum(predicted)) if sum(given) + sum(predicted) else 0.0


def test_the_metrics_of_label_sets_are_those_of_their_definitions() -> None:
    columns = [naive_f1(*pair) for pair in zip(zip(*GIVEN, strict=True), zip(*PREDICTED, strict=True), strict=True)]
    expected = {
        "f1_micro": naive_f1(sum(GIVEN, []), sum(PREDICTED, [])),
        "f1_macro": sum(columns) / 4,  # the last label is neither given nor predicted
        "accuracy": sum(given == predicted for given, predicted in zip(GIVEN, PREDICTED, strict=True)) / 5,
    }
    for name, score in expected.items():
        assert compute_score(name, predictions=PREDICTED, references=GIVEN) == pytest.approx(score), name


def test_the_metrics_of_label_sets_are_those_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    for average in ("micro", "macro"):
        theirs = Metric(partial(sklearn.f1_score, average=average, zero_division=0))
        scores = [compute_score(each, predictions=PREDICTED, references=GIVEN) for each in (f"f1_{average}", theirs)]
        assert scores[0] == pytest.approx(scores[1])
    assert compute_score(sklearn.accuracy_score, predictions=PREDICTED, references=GIVEN) == 0.4


@pytest.mark.parametrize(
    ("metric", "predictions", "references", "message"),
    [
        ("f1_micro", [1, 0], [1, 0], r"predictions: got shape \(2,\) .*; pass 1 for each label and 0 for the others"),
        ("f1", [[1, 0]], [[1, 0]], r"predictions: got shape \(1, 2\) .*; pass one number for each sample in both, sh"),
        (
            "accuracy",
            [[1, 0]],
            [1, 0],
            "pass one number for each sample .*, or with several labels at once 1 for each",
        ),
        ("accuracy", [[0.6, 0.2]], [[1, 0]], r"predictions: got 0.6 for a label; pass 0 or 1, e.g. \(logits > 0\)"),
        ("f1_macro", [[1, 0]], [[0, 0]], "references: the 1 labels give no label to any text, so f1_macro is not def"),
    ],
)
def test_what_is_no_label_set_is_refused(metric: str, predictions: list, references: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_score(metric, predictions=predictions, references=references)


@pytest.mark.parametrize(
    ("metric", "classes", "multi_label", "message"),
    [
        ("f1", 2, True, "f1 compares classes per text, .* several labels; pass accuracy or f1_micro or f1_macro$"),
        (
            "f1_micro",
            3,
            False,
            "f1_micro compares several labels .* one class; pass accuracy or matthews_correlation$",
        ),
        ("f1_micro", 2, False, "predicts one class; pass accuracy or f1 or matthews_correlation$"),
        ("accuracy", 1, False, "accuracy compares classes .* predicts one number; pass pearson or spearmanr$"),
        (
            "spearmanr",
            2,
            False,
            "spearmanr compares numbers .* one class; pass accuracy or f1 or matthews_correlation$",
        ),
    ],
)
def test_a_metric_must_fit_the_kind_of_labels(metric: str, classes: int, multi_label: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_classes(metric, classes, multi_label)


@pytest.mark.parametrize(("metric", "classes", "multi_label"), [("f1_macro", 3, True), ("pearson", 1, False)])
def test_metrics_that_fit_are_accepted(metric: str, classes: int, multi_label: bool) -> None:
    check_classes(metric, classes, multi_label)
