"""Labels of a data set: of any type, in the column that has them, and refused where they are none."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.runs import new_model, texts
from helpers.traces import NAN, by_hand
from torch import Tensor

from adaexit_hf import collect_trace
from adaexit_hf.evaluation.tradeoff import layer_scores
from adaexit_hf.models.padded_batches import wrong_labels


@pytest.mark.parametrize("value", [None, "good", 3, -1, -100, NAN, 0.5])
def test_a_bad_label_is_named_with_its_row(value: Any) -> None:
    rows = texts(100)
    rows[70] = rows[70] | {"label": value}
    with pytest.raises(ValueError, match=f"label: got {value!r} in row 70; pass class indices"):
        collect_trace(new_model("deebert"), rows, batch_size=2, progress=False)  # in the second window


def test_a_label_that_is_not_finite_is_refused_in_regression() -> None:
    rows = [row | {"label": NAN if place == 2 else -1.0} for place, row in enumerate(texts(4))]
    with pytest.raises(ValueError, match="label: got nan in row 2; pass finite numbers, and drop rows"):
        collect_trace(new_model("berxit", num_labels=1), rows, progress=False)


@pytest.mark.parametrize("missing", [None, -1])
def test_a_data_set_without_labels_or_with_some(missing: Any) -> None:
    unlabelled = [row | {"label": missing} for row in texts(6)]
    for model in (new_model("deebert"), new_model("berxit", num_labels=1)):
        if missing is None or model.config.num_labels > 1:
            assert collect_trace(model, unlabelled, progress=False).labels is None
            with pytest.raises(ValueError, match=f"label: got {missing!r} in row 0; .* and drop rows without"):
                collect_trace(model, [*unlabelled[:2], *texts(4)], progress=False)


def test_the_column_that_has_labels_is_read() -> None:
    rows = [{"labels": None} | row for row in texts(4)]
    labels = collect_trace(new_model("deebert"), rows, progress=False).labels
    assert labels is not None and labels.tolist() == [row["label"] for row in texts(4)]


def test_labels_may_be_lists_of_one() -> None:
    rows = [row | {"label": [row["label"]]} for row in texts(4)]
    assert collect_trace(new_model("deebert"), rows, progress=False).known_labels().tolist() == [
        row["label"] for row in texts(4)
    ]


@pytest.mark.parametrize("value", [[0, 0, 1], [], [[1]], np.array([0, 1, 0]), torch.tensor([1, 0])])
def test_a_label_is_one_number(value: Any) -> None:
    for rows in ([*texts(2), texts(1)[0] | {"label": value}], [row | {"label": value} for row in texts(3)]):
        place = 2 if "label" in rows[0] and not np.ndim(rows[0]["label"]) else 0
        with pytest.raises(ValueError, match=rf"label: got .* in row {place}; pass one number per row"):
            collect_trace(new_model("deebert"), rows, progress=False)


def test_labels_that_start_after_rows_without() -> None:
    rows = [row | {"label": -1} for row in texts(70)] + texts(2)
    with pytest.raises(ValueError, match="label: got . in row 70, but the rows before it have no label; pass class"):
        collect_trace(new_model("deebert"), rows, batch_size=1, progress=False)


LABEL_TYPES = [
    pytest.param(torch.tensor([False, True]), id="bool"),
    pytest.param(torch.tensor([0.0, 1.0], dtype=torch.bfloat16), id="bfloat16"),
    pytest.param(torch.tensor([0, 1], dtype=torch.uint8), id="uint8"),
]


@pytest.mark.parametrize("labels", LABEL_TYPES)
def test_labels_of_any_type(labels: Tensor) -> None:
    assert not wrong_labels(labels, 2).any()
    assert layer_scores(by_hand(labels=labels), "accuracy") == layer_scores(by_hand(), "accuracy")
    numbers = torch.rand(2, 3, 1)
    found, wanted = (by_hand(logits=numbers, labels=each) for each in (labels, torch.tensor([0.0, 1.0])))
    assert layer_scores(found, "pearson") == layer_scores(wanted, "pearson")


@pytest.mark.parametrize("kind", [bool, np.bool_])
def test_a_bool_column_is_of_classes(kind: Any) -> None:
    rows = [row | {"label": kind(place % 2)} for place, row in enumerate(texts(4))]
    trace = collect_trace(new_model("deebert", num_labels=2), rows, progress=False)
    assert trace.known_labels().tolist() == [0, 1, 0, 1]
