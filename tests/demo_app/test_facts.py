"""What the page knows of a data set: which texts are shown as examples, and what the curve keeps."""

import json
from typing import Any

import pytest
import torch
from helpers.tiny import build

from adaexit_hf.demo_app.facts import EASY, HARD, SAVED, demo_facts, examples_of
from adaexit_hf.evaluation.curves import CurvePoint
from adaexit_hf.evaluation.trace import ExitTrace
from adaexit_hf.hub.card_facts import CardDataset


def made_trace(first_score: list[float], first_class: list[int], labels: list[int], **more: Any) -> ExitTrace:
    """Two classes, three exits; the later ones are right, the second one never ready."""
    logits = torch.stack([torch.eye(2)[first_class], torch.eye(2)[labels], torch.eye(2)[labels]], dim=1)
    scores = torch.stack([torch.tensor(first_score), torch.zeros(len(labels)), torch.ones(len(labels))], dim=1)
    settings = {"criterion": "confidence", "label_names": ("no", "yes")} | more
    return ExitTrace(logits, scores, torch.tensor(labels), (1, 2, 3), "gt", **settings)


def kinds(examples: list[dict[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for example in examples:
        found.setdefault(example["kind"], []).append(" / ".join(example["texts"]))
    return found


def test_easy_texts_are_the_readiest_right_ones_and_hard_ones_the_last() -> None:
    trace = made_trace([0.8, 0.9, 0.95, 0.2, 0.1, 0.4], [0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0])
    found = examples_of(trace, ["a", "b", "wrong", "d", "e", "f"], 0.5, count=2)
    assert kinds(found) == {EASY: ["b", "a"], HARD: ["e", "d"], SAVED: ["f"]}
    assert [example["layer"] for example in found] == [1, 1, 3, 3, 3]
    assert {example["label"] for example in found} == {"no"}


def test_repeated_long_and_empty_texts_are_no_examples() -> None:
    trace = made_trace([0.9, 0.8, 0.9, 0.9, 0.1], [0] * 5, [0] * 5)
    assert kinds(examples_of(trace, ["a", "a", "b" * 401, " ", "c"], 0.5)) == {EASY: ["a"], HARD: ["c"]}


def test_texts_with_logits_that_are_not_finite_are_no_examples() -> None:
    trace = made_trace([0.9, 0.8, 0.1], [0] * 3, [0] * 3)
    trace.logits[0, 0, 0] = torch.nan
    assert kinds(examples_of(trace, ["a", "b", "c"], 0.5)) == {EASY: ["b"], HARD: ["c"]}


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_there_are_none_where_all_texts_take_one_exit(threshold: float | None) -> None:
    assert examples_of(made_trace([0.9, 0.8], [0, 0], [0, 0]), ["a", "b"], threshold) == []


def test_examples_of_pairs_numbers_and_label_sets() -> None:
    trace = made_trace([0.9, 0.1], [0, 0], [0, 0])
    assert examples_of(trace, [["a", "b"], ["c", "d"]], 0.5)[0]["texts"] == ["a", "b"]
    numbers = ExitTrace(torch.tensor([[[1.0]] * 2, [[5.0]] * 2]), torch.tensor([[9.0, 0], [0, 0]]),
                        torch.tensor([1.0, 2.0]), (1, 2), "gt")  # fmt: skip
    assert [example["label"] for example in examples_of(numbers, ["a", "b"], 1.0)] == ["1", "2"]
    sets = ExitTrace(torch.ones(2, 2, 2), torch.tensor([[9.0, 0], [0, 0]]), torch.tensor([[1, 1], [0, 0]]), (1, 2),
                     "gt", label_names=("x", "y"), multi_label=True)  # fmt: skip
    assert [example["label"] for example in examples_of(sets, ["a", "b"], 1.0)] == ["x, y", "no label"]


def test_the_facts_are_json_and_leave_out_points_without_a_score() -> None:
    curve = [CurvePoint(0.5, 0.8, 1.0, 0.6), CurvePoint(0.7, float("nan"), 2.0, 0.3), CurvePoint(None, 0.9, 3.0, 0.0)]
    dataset = CardDataset("dev.csv", pairs=True)
    facts = demo_facts(build("deebert"), "out", curve=curve, metric="f1", dataset=dataset, max_tokens=32)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["curve"] == [[0.5, 0.8, 1.0], [None, 0.9, 3.0]]
    assert facts["pairs"] is True and facts["metric"] == "F1" and facts["title"] == "out"
    assert (
        "where the entropy of the class probabilities" in facts["rule"] and "is below the threshold" in facts["rule"]
    )
