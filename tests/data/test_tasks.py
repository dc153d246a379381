import datasets
import numpy as np
import pytest

from adaexit_hf.data.tasks import TASKS, Labels, check_columns, labels_of, tokenize
from adaexit_hf.evaluation.metrics import METRICS, compute_score


def test_there_is_a_task_for_every_set_of_glue_and_sick():
    assert set(TASKS) == {"cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sick", "sst2", "stsb", "wnli"}


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
    assert compute_score(metric, [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]) == pytest.approx(expected)


def test_correlations_by_their_definitions():
    x, y = np.array([0.1, 0.4, 0.2, 0.9]), np.array([1.0, 3.0, 2.5, 2.0])
    assert compute_score("pearson", x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    ranks = np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1]
    assert compute_score("spearmanr", x, y) == pytest.approx(ranks)


@pytest.mark.parametrize("metric", ["pearson", "spearmanr", "matthews_correlation"])
def test_constant_predictions_correlate_with_nothing(metric):
    assert compute_score(metric, [1, 1, 1], [0, 1, 1]) == 0.0


@pytest.mark.parametrize("metric", ["pearson", "spearmanr"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_that_are_not_finite_have_no_correlation(metric, value):
    assert np.isnan(compute_score(metric, [value, 1.0, 2.0], [1.0, 2.0, 3.0]))
    assert np.isnan(compute_score(metric, [value] * 3, [1.0, 2.0, 3.0]))


@pytest.mark.parametrize(("predictions", "references"), [([0, 1, 2], [0, 1, 1]), ([0, 1, 0], [0, 1, 2])])
def test_f1_is_of_two_classes(predictions, references):
    with pytest.raises(ValueError, match="metric: f1 is of class 1 of two, and there are classes up to 2; pass accur"):
        compute_score("f1", predictions, references)


@pytest.mark.parametrize(
    ("metric", "references", "message"),
    [
        ("f1", [0, 0, 0], "references: the 3 labels have no class 1, where f1 is not defined; pass data with other"),
        (
            "matthews_correlation",
            [1, 1, 1],
            "references: the 3 labels are all the same, where matthews_correlation is",
        ),
        ("pearson", [0.5, 0.5], "references: the 2 labels are all the same, where pearson is not defined"),
        ("spearmanr", [2.0], "references: the 1 labels are all the same, where spearmanr is not defined"),
    ],
)
def test_a_metric_that_is_not_defined_is_not_zero(metric, references, message):
    with pytest.raises(ValueError, match=message):
        compute_score(metric, np.arange(len(references)) % 2, references)


def test_one_class_is_enough_where_the_metric_is_defined():
    assert compute_score("accuracy", [0, 1, 0], [0, 0, 0]) == pytest.approx(2 / 3)
    assert compute_score("f1", [0, 1, 1], [1, 1, 1]) == pytest.approx(0.8)


@pytest.mark.parametrize("metric", METRICS)
def test_no_samples_have_no_score(metric):
    with pytest.raises(ValueError, match="references: got none; pass at least one"):
        compute_score(metric, [], [])


def test_unknown_metric():
    with pytest.raises(ValueError, match="metric: got 'bleu'; choose accuracy"):
        compute_score("bleu", [1], [1])


def test_labels_come_from_the_data():
    assert labels_of(datasets.Dataset.from_dict({"label": ["no", "yes", "no"]}), "label") == Labels(["no", "yes"])
    assert labels_of(datasets.Dataset.from_dict({"label": [3, 1]}), "label") == Labels(["1", "3"])
    assert labels_of(datasets.Dataset.from_dict({"label": [0.5, 1.0]}), "label").num_labels == 1
    features = datasets.Features({"label": datasets.ClassLabel(names=["a", "b", "c"])})
    assert labels_of(datasets.Dataset.from_dict({"label": [0]}, features), "label").names == ["a", "b", "c"]


@pytest.mark.parametrize("value", [None, float("nan")])
def test_missing_labels_are_counted(value):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1.0, value]})
    with pytest.raises(ValueError, match="split 'train': column 'label' lacks 1 of 2 labels"):
        check_columns(rows, ["text"], "label", "train")


def test_missing_columns_are_named():
    rows = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    with pytest.raises(ValueError, match="split 'validation' has no column 'sentence'; it has text, label"):
        check_columns(rows, ["sentence"], "label", "validation")


def fake_tokenizer(*texts, truncation, max_length):
    return {"input_ids": [[len(part) for part in row][:max_length] for row in zip(*texts, strict=True)]}


def test_string_labels_become_indices_and_columns_go():
    rows = datasets.Dataset.from_dict({"a": ["x", "yy"], "b": ["zzz", ""], "label": ["no", "yes"]})
    encoded = tokenize(rows, fake_tokenizer, ["a", "b"], "label", Labels(["no", "yes"]), 128)
    assert encoded.to_dict() == {"input_ids": [[1, 3], [2, 0]], "labels": [0, 1]}


def test_labels_that_training_does_not_have():
    rows = datasets.Dataset.from_dict({"text": ["x"], "label": ["maybe"]})
    with pytest.raises(ValueError, match=r"labels \['maybe'\] do not occur in the training set"):
        tokenize(rows, fake_tokenizer, ["text"], "label", Labels(["no", "yes"]), 128)


def test_missing_texts_are_counted():
    rows = datasets.Dataset.from_dict({"text": ["a", None], "label": [1, 0]})
    with pytest.raises(ValueError, match="split 'train': column 'text' lacks 1 of 2 texts"):
        check_columns(rows, ["text"], "label", "train")
