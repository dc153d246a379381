import datasets
import pytest

from adaexit_hf.data.tasks import TASKS, Labels, check_columns, labels_of, tokenize


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


def fake_tokenizer(*texts, truncation, max_length):
    return {"input_ids": [[len(part) for part in row][:max_length] for row in zip(*texts, strict=True)]}


def test_string_labels_become_indices_and_columns_go():
    rows = datasets.Dataset.from_dict({"a": ["x", "yy"], "b": ["zzz", ""], "label": ["no", "yes"]})
    encoded = tokenize(rows, fake_tokenizer, ["a", "b"], "label", Labels(["no", "yes"]), 128)
    assert encoded.to_dict() == {"input_ids": [[1, 3], [2, 0]], "labels": [0, 1]}


def test_labels_that_training_does_not_have_are_refused():
    rows = datasets.Dataset.from_dict({"text": ["x"], "label": ["maybe"]})
    with pytest.raises(ValueError, match=r"labels \['maybe'\] do not occur in the training set"):
        tokenize(rows, fake_tokenizer, ["text"], "label", Labels(["no", "yes"]), 128)


def test_missing_texts_are_counted():
    rows = datasets.Dataset.from_dict({"text": ["a", None], "label": [1, 0]})
    with pytest.raises(ValueError, match="split 'train': column 'text' lacks 1 of 2 texts"):
        check_columns(rows, ["text"], "label", "train")
