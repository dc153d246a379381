"""Traces of several labels at once: predictions, curves, oracle and later exits beside a naive reference."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from helpers.tiny import build, inputs_of

from adaexit_hf import ExitTrace, collect_trace, tradeoff_curve
from adaexit_hf.evaluation.later_answers import had_they_gone_on
from adaexit_hf.evaluation.metrics import compute_score
from adaexit_hf.evaluation.summary import results_at_threshold
from adaexit_hf.evaluation.trace import check_same_data
from adaexit_hf.evaluation.tradeoff import layer_scores, oracle_bound, oracle_exits

SEVERAL = "multi_label_classification"
LOGITS = torch.tensor(
    [
        [[2.0, -1.0], [2.0, 1.0], [2.0, 3.0]],  # {0}, {0, 1}, {0, 1}
        [[-1.0, -1.0], [-2.0, -1.0], [1.0, -1.0]],  # {}, {}, {0}
        [[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]],  # {0, 1}, {0}, {}
    ]
)
LABELS = torch.tensor([[1, 1], [0, 0], [0, 1]])


def by_hand(**kwargs: object) -> ExitTrace:
    scores = torch.tensor([[0.9, 0.9, 0.9], [0.8, 0.9, 0.9], [0.1, 0.2, 0.9]])
    return ExitTrace(LOGITS, scores, LABELS, (2, 4, 6), "gt", multi_label=True, **kwargs)  # type: ignore[arg-type]


def test_scores_of_curves_are_those_of_the_label_sets_at_the_exits_taken() -> None:
    point = tradeoff_curve(by_hand(), "accuracy", [0.7])[0]
    assert (point.score, point.mean_layers) == (1 / 3, 10 / 3)  # {0}, {} and {}: the second is right
    sets = [[1, 0], [0, 0], [0, 0]]
    expected = compute_score("f1_micro", predictions=sets, references=LABELS)
    assert tradeoff_curve(by_hand(), "f1_micro", [0.7])[0].score == expected == pytest.approx(2 / 4)
    assert layer_scores(by_hand(), "accuracy") == {2: 1 / 3, 4: 2 / 3, 6: 1 / 3}
    results = results_at_threshold(by_hand(), ("f1_macro", "accuracy"), 0.7)
    assert results["at_threshold"]["accuracy"] == 1 / 3 and results["by_exit"]["4"]["accuracy"] == 2 / 3


def test_the_oracle_takes_the_first_exit_whose_whole_label_set_is_right() -> None:
    assert oracle_exits(by_hand()).tolist() == [1, 0, 0]
    assert oracle_bound(by_hand(), "accuracy").score == 2 / 3
    with pytest.raises(ValueError, match="tolerance: got 0.5, but the trace is of a classifier"):
        oracle_exits(by_hand(), tolerance=0.5)


def test_later_exits_agree_if_the_whole_label_set_is_the_same() -> None:
    later = had_they_gone_on(by_hand(), 0.7)
    assert later.answer.tolist() == [[1, 0], [0, 0], [0, 0]]
    assert later.changed.tolist() == [True, True, False] and later.settled_layer.tolist() == [4, 6, 6]
    assert later.right is not None
    assert later.right.tolist() == [[False, True, True], [True, True, False], [False, False, False]]


def test_a_set_from_logits_that_are_not_finite_is_wrong_in_every_label() -> None:
    logits = LOGITS.clone()
    logits[1, 0, 0] = math.nan
    trace = dataclasses.replace(by_hand(), logits=logits)
    with pytest.warns(RuntimeWarning, match="1 of 9 predictions .* are not finite and count as wrong"):
        assert layer_scores(trace, "accuracy")[2] == 0.0
    assert had_they_gone_on(trace, 0.7).answers[1, 0].tolist() == [-1, -1]


def test_a_trace_is_saved_with_its_label_sets(tmp_path: Path) -> None:
    by_hand().save(tmp_path / "trace")
    again = ExitTrace.load(tmp_path / "trace")
    assert again.multi_label and torch.equal(again.known_labels(), LABELS)
    assert again.take(torch.tensor([2, 0])).known_labels().tolist() == [[0, 1], [1, 1]]


def test_labels_that_are_no_sets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels: got shape \(3,\); 3 samples with 3 exits need \(3, 2\)"):
        dataclasses.replace(by_hand(), labels=torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match=r"labels: got \[2, 2\] for sample 0; pass 0 or 1 for each label"):
        dataclasses.replace(by_hand(), labels=2 * LABELS)
    with pytest.raises(ValueError, match="metric: f1 compares classes per text, but the model predicts several"):
        tradeoff_curve(by_hand(), "f1")
    one = ExitTrace(LOGITS, by_hand().scores, torch.tensor([0, 1, 0]), (2, 4, 6), "gt")
    with pytest.raises(ValueError, match="trace 1 has one label per sample, trace 0 has several labels at once"):
        check_same_data([by_hand(), one])


def test_a_collected_trace_has_the_label_sets_of_the_rows() -> None:
    model = build("pabee", problem_type=SEVERAL)
    ids = inputs_of(model, padding="none")["input_ids"].tolist()
    rows = [{"input_ids": row, "labels": [float(k % 2), 1.0, 0.0]} for k, row in enumerate(ids)]
    trace = collect_trace(model, rows, progress=False)
    assert trace.multi_label and trace.bounds == (1, 3) and trace.label_names == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert trace.known_labels().tolist() == [[k % 2, 1, 0] for k in range(6)]
    assert collect_trace(model, [{"input_ids": row} for row in ids], progress=False).labels is None
