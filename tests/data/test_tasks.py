import datasets
import pytest

from adaexit_hf.data.glue import TASKS
from adaexit_hf.data.tasks import Labels, check_columns, check_labels, labels_of, tokenize


def test_there_is_a_task_for_every_set_of_glue_and_sick():
    assert set(TASKS) == {"cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sick", "sst2", "stsb", "wnli"}


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


def fake_tokenizer(*texts, truncation):
    return {"input_ids": [[len(part) for part in row] for row in zip(*texts, strict=True)]}


def test_a_column_that_is_passed_twice_is_refused():
    rows = datasets.Dataset.from_dict({"text": ["a"], "label": ["x"]})
    for columns in (["text", "text"], ["label"]):
        with pytest.raises(ValueError, match="pass different columns for the texts and the label"):
            check_columns(rows, columns, "label", "train")


def test_string_labels_become_indices_and_columns_go():
    rows = datasets.Dataset.from_dict({"a": ["x", "yy"], "b": ["zzz", ""], "label": ["no", "yes"]})
    encoded = tokenize(rows, fake_tokenizer, ["a", "b"], "label", Labels(["no", "yes"]))
    assert encoded.to_dict() == {"input_ids": [[1, 3], [2, 0]], "labels": [0, 1]}


def test_labels_that_training_does_not_have_are_refused():
    rows = datasets.Dataset.from_dict({"text": ["x"], "label": ["maybe"]})
    with pytest.raises(ValueError, match=r"labels \['maybe'\] do not occur in the training set"):
        tokenize(rows, fake_tokenizer, ["text"], "label", Labels(["no", "yes"]))


def test_missing_texts_are_counted():
    rows = datasets.Dataset.from_dict({"text": ["a", None], "label": [1, 0]})
    with pytest.raises(ValueError, match="split 'train': column 'text' lacks 1 of 2 texts"):
        check_columns(rows, ["text"], "label", "train")


# Several labels at once ---------------------------------------------------------------------------------------------

LISTS = {"text": ["a", "b", "c"], "label": [["rude", "short"], [], ["rude"]]}


def test_lists_of_labels_are_several_labels_at_once():
    assert labels_of(datasets.Dataset.from_dict(LISTS), "label") == Labels(["rude", "short"], multi_label=True)
    features = datasets.Features({"label": datasets.Sequence(datasets.ClassLabel(names=["a", "b", "c"]))})
    rows = datasets.Dataset.from_dict({"label": [[2], [0, 2]]}, features)
    assert labels_of(rows, "label") == Labels(["a", "b", "c"], multi_label=True)
    with pytest.raises(ValueError, match=r"label_column: 'label' has lists of numbers, \[0.0, 1.0\] in the first row"):
        labels_of(datasets.Dataset.from_dict({"label": [[0.0, 1.0]]}), "label")


def test_lists_of_labels_become_zeros_and_ones():
    encoded = tokenize(
        datasets.Dataset.from_dict(LISTS), fake_tokenizer, ["text"], "label", Labels(["rude", "short"], True)
    )
    assert encoded["labels"][:] == [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.Sequence(datasets.ClassLabel(names=["b", "a"]))}
    )
    rows = datasets.Dataset.from_dict({"text": ["x"], "label": [[1]]}, features)
    assert tokenize(rows, fake_tokenizer, ["text"], "label", Labels(["a", "b"], True))["labels"][:] == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ([["rude"], ["odd"]], Labels(["rude", "short"], True), r"labels \['odd'\] do not occur in the training set"),
        (
            [["rude"]],
            Labels(["rude", "short"]),
            "column 'label' has lists of labels, but the training set .* one label",
        ),
        (
            ["rude"],
            Labels(["rude", "short"], True),
            "column 'label' has one label per text, but the .* lists of labels",
        ),
        (
            [[0, 1], [1, 0]],
            Labels(["0", "1"], True),
            "two numbers for every text, each 0 or 1; pass lists of the labels",
        ),
        ([[0, 1, 1]], Labels(["0", "1"], True), r"contains \[0, 1, 1\], with a label twice; pass lists of the labels"),
    ],
)
def test_lists_that_do_not_fit_are_refused(values, labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(datasets.Dataset.from_dict({"label": values}), "label", labels, "validation")


def test_a_split_without_rows_has_no_wrong_lists():
    rows = datasets.Dataset.from_dict({"label": [["rude"]]}).select([])
    check_labels(rows, "label", Labels(["rude", "short"], True), "test")


@pytest.mark.parametrize("value", [None, ["rude", None]])
def test_a_list_with_a_missing_label_is_missing(value):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [["rude"], value]})
    with pytest.raises(ValueError, match="split 'train': column 'label' lacks 1 of 2 labels"):
        check_columns(rows, ["text"], "label", "train")
