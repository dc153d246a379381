"""BERxiT against its paper, written out example by example, and against recordings of the authors' code."""

import math
from typing import Any

import pytest
import recordings
import torch
from tiny import (
    build,
    check_loss_and_gradients,
    gradients,
    inputs_of,
    labels_of,
    one_by_one,
    thresholds_between,
    trace_of,
)
from torch import Tensor

from adaexit_hf import BerxitForSequenceClassification

Model = BerxitForSequenceClassification
OBJECTIVES = [("final", [2]), ("exits", [0, 1]), ("joint", [0, 1, 2])]
objectives = pytest.mark.parametrize(("objective", "used"), OBJECTIVES)


def states(model: Model, example: dict[str, Tensor]) -> list[Tensor]:
    """h_i of every layer: the state of [CLS], for one example without padding."""
    length = int(example["attention_mask"].sum())
    output = model.encoder(**{name: value[:, :length] for name, value in example.items()}, output_hidden_states=True)
    return [hidden[0, 0] for hidden in output.hidden_states[1:]]


def classify(model: Model, index: int, h: Tensor) -> Tensor:
    head = model.exits[index]
    pooled = torch.tanh(head.dense.weight @ h + head.dense.bias)
    return head.classifier.weight @ pooled + head.classifier.bias


def certainty(model: Model, h: Tensor) -> Tensor:
    return torch.sigmoid(model.lte.weight[0] @ h + model.lte.bias[0])  # Eq. 8


def losses(model: Model, example: dict[str, Tensor], label: Tensor) -> list[Tensor]:
    """L_i of one example, or L_i + J_i with learning to exit."""
    found = []
    for index, h in enumerate(states(model, example)):
        g = classify(model, index, h)
        regression = len(g) == 1
        loss = (g[0] - label) ** 2 if regression else torch.log(torch.exp(g).sum()) - g[label]
        if model.lte is not None:
            truth = (
                1 - math.tanh(abs(g.item() - label.item())) if regression else float(g.argmax() == label)
            )  # Eq. 10, 11
            loss = loss + (certainty(model, h) - truth) ** 2  # Eq. 9
        found.append(loss)
    return found


def leaves(variant: str, logits: Tensor, u: float | None, threshold: float) -> bool:
    probabilities = torch.softmax(logits, dim=0)
    if variant == "berxit":
        return probabilities.max().item() > threshold
    if variant == "berxit-entropy":
        return -(probabilities * probabilities.log()).sum().item() < threshold
    return u > threshold


@pytest.mark.parametrize("variant", ["berxit", "berxit-entropy", "berxit-learned", "berxit-regression"])
@torch.no_grad()
def test_inference_as_in_section_4(variant: str) -> None:
    model = build(variant)
    inputs = inputs_of(model)
    for threshold in thresholds_between(trace_of(model, inputs)):
        output = model(**inputs, exit_threshold=threshold)
        for row, example in enumerate(one_by_one(inputs)):
            layer, h = 0, states(model, example)
            while True:
                logits = classify(model, layer, h[layer])
                u = None if model.lte is None else certainty(model, h[layer]).item()
                if layer == 2 or leaves(variant, logits, u, threshold):
                    break
                layer += 1
            assert output.exit_layer[row] == layer + 1
            torch.testing.assert_close(output.logits[row], logits, atol=1e-5, rtol=1e-5)


@objectives
@pytest.mark.parametrize("variant", ["berxit", "berxit-learned", "berxit-regression"])
def test_objectives_and_their_gradients(variant: str, objective: str, used: list[int]) -> None:
    model = build(variant)
    inputs, labels = inputs_of(model), labels_of(model)
    examples = [losses(model, example, label) for example, label in zip(one_by_one(inputs), labels, strict=True)]
    expected = torch.stack([sum(values[index] for index in used) for values in examples]).mean()  # Eq. 3, 4, 5
    check_loss_and_gradients(model, expected, model(**inputs, labels=labels, objective=objective).loss)


@objectives
def test_exits_that_a_step_does_not_use_get_no_gradient(objective: str, used: list[int]) -> None:
    model = build("berxit-learned")
    model(**inputs_of(model), labels=labels_of(model), objective=objective).loss.backward()
    learning = {int(name.split(".")[0]) for name, value in gradients(model.exits).items() if value is not None}
    assert learning == set(used)


@pytest.mark.parametrize(
    ("fine_tuning", "expected"),
    [
        ("alternating", [("alternate", ("final", "joint"), ())]),
        ("joint", [("joint", ("joint",), ())]),
        (
            "two_stage",
            [("backbone", ("final",), ("exits.0", "exits.1")), ("exits", ("exits",), ("encoder", "exits.2"))],
        ),
    ],
)
def test_fine_tuning_as_in_section_3(fine_tuning: str, expected: list[Any]) -> None:
    assert [tuple(stage) for stage in build("berxit", fine_tuning=fine_tuning).stages] == expected


def test_regression_learns_to_exit_by_default() -> None:
    assert build("berxit-regression").config.exit_criterion == "learned"


@torch.no_grad()
def test_the_ends_of_the_threshold() -> None:
    for variant in ("berxit", "berxit-learned"):
        model = build(variant)
        assert model(**inputs_of(model), exit_threshold=1).exit_layer.tolist() == [3] * 6
        assert model(**inputs_of(model), exit_threshold=0).exit_layer.tolist() == [1] * 6


@pytest.mark.parametrize("variant", ["berxit", "berxit-learned"])
def test_the_comparison_is_strict(variant: str) -> None:
    assert build(variant).ready(torch.tensor([0.6, 0.5, math.nan]), 0.5).tolist() == [True, False, False]


def criterion(recording: recordings.Recording) -> dict[str, str]:
    if not recording.learned:
        return {"exit_criterion": "entropy"}
    # On DistilBERT their layer reads the plain state of the first token, as in the paper.
    variant = "paper" if recording.family == "distilbert" else "authors"
    return {"exit_criterion": "learned", "lte_variant": variant}


def ours(recording: recordings.Recording, text: str, model: Model) -> float | list[float] | None:
    """Their threshold in our unit: None for -1; they write a list as "0.7,2;0.3,2", and exit below an uncertainty."""
    if text.startswith("-"):
        return None
    if not recording.learned:
        return min(float(text), model.config.threshold_bounds[1])
    if "," not in text:
        return 1 - float(text)
    return [
        1 - float(value) for value, count in (part.split(",") for part in text.split(";")) for _ in range(int(count))
    ]


@pytest.mark.parametrize("name", recordings.names("berxit"))
def test_the_authors_logits(name: str) -> None:
    recording = recordings.read(name)
    trace = trace_of(recordings.model_of(recording, **criterion(recording)), recording.inputs)
    if "final_logits" in recording.tensors:
        ramps = recording.tensors["offramp_logits"]
        torch.testing.assert_close(trace.exit_logits[:, :-1], ramps[:, :-1], atol=1e-5, rtol=0)
        torch.testing.assert_close(trace.logits, recording.tensors["final_logits"], atol=1e-5, rtol=0)
    if recording.learned:
        torch.testing.assert_close(trace.exit_scores.T, 1 - recording.tensors["lte_uncertainty"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", recordings.names("berxit"))
@torch.no_grad()
def test_the_authors_exits(name: str) -> None:
    recording = recordings.read(name)
    model = recordings.model_of(recording, **criterion(recording))
    for text in recording.thresholds:
        output = model(**recording.inputs, exit_threshold=ours(recording, text, model))
        assert output.exit_layer.tolist() == recording.tensors[f"exit_layer@{text}"].tolist(), text
        torch.testing.assert_close(output.logits, recording.tensors[f"logits@{text}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in recordings.names("berxit") if recordings.read(name).learned])
@torch.no_grad()
def test_the_authors_losses(name: str) -> None:
    recording = recordings.read(name)
    labels = recording.tensors["labels"]
    plain = {
        "raw/0": "final",
        "all/0": "joint",
        "only_highway/0": "exits",
        "alternate/0": "final",
        "alternate/1": "joint",
    }
    learned = {"alternate-lte/0": "final", "alternate-lte/1": "joint"}
    for routines, options in ((plain, {"exit_criterion": "confidence"}), (learned, criterion(recording))):
        if recording.config["num_labels"] == 1 and options["exit_criterion"] == "confidence":
            continue  # without learning to exit, regression has no exits here
        model = recordings.model_of(recording, **options)
        for routine, objective in routines.items():
            if f"loss/{routine}" not in recording.tensors:
                continue
            loss = model(**recording.inputs, labels=labels, objective=objective).loss
            torch.testing.assert_close(loss, recording.tensors[f"loss/{routine}"], atol=1e-5, rtol=1e-5, msg=routine)


def test_regression_exits_start_from_the_mean_and_keep_a_trained_bias():
    model = build("berxit-regression")
    with torch.no_grad():
        model.exits[-1].classifier.bias.fill_(0.5)
    model.start_from_mean(2.5)
    assert [exit.classifier.bias.item() for exit in model.exits] == [2.5] * (len(model.exits) - 1) + [0.5]


def test_only_regression_has_a_mean_to_start_from():
    with pytest.raises(ValueError, match="start_from_mean is for regression, num_labels=1; got num_labels=3"):
        build("berxit").start_from_mean(2.5)
