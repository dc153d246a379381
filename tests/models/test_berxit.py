"""BERxiT against its paper, written out example by example, and against recordings of the authors' code."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import recordings
from helpers.tiny import (
    FAMILIES,
    build,
    check_loss_and_gradients,
    config,
    gradients,
    inputs_of,
    labels_of,
    one_by_one,
    thresholds_between,
    trace_of,
)
from torch import Tensor
from torch.nn import functional

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


def distilled(model: Model, example: dict[str, Tensor]) -> list[Tensor]:
    """D_i of one example, Appendix A."""
    *students, teacher = (classify(model, index, h) for index, h in enumerate(states(model, example)))
    wanted = teacher.detach().exp() / teacher.detach().exp().sum()
    return [-sum(wanted * torch.log(g.exp() / g.exp().sum())) for g in students]


COMPARED = [
    ("weighted", {}, lambda L, D: (1 * L[0] + 2 * L[1] + 3 * L[2]) / 6),
    ("self_distillation", {}, lambda L, D: L[0] + L[1] + L[2] + D[0] + D[1]),
    ("self_distillation", {"distillation_weight": 2.5}, lambda L, D: L[0] + L[1] + L[2] + 2.5 * (D[0] + D[1])),
    ("self_distillation", {"distillation_weight": 0}, lambda L, D: L[0] + L[1] + L[2]),
    ("limit", {"limit_layer": 1}, lambda L, D: L[0]),
    ("limit", {"limit_layer": 2}, lambda L, D: L[1]),
    ("limit", {"limit_layer": 3}, lambda L, D: L[2]),
]


@pytest.mark.parametrize(("fine_tuning", "options", "loss"), COMPARED)
@pytest.mark.parametrize("variant", ["berxit", "berxit-learned"])
def test_objectives_that_the_paper_compares_with(
    variant: str, fine_tuning: str, options: dict[str, Any], loss: Callable[[list[Tensor], list[Tensor]], Tensor]
) -> None:
    model = build(variant, fine_tuning=fine_tuning, **options)
    inputs, labels = inputs_of(model), labels_of(model)
    examples = [
        loss(losses(model, example, label), distilled(model, example))
        for example, label in zip(one_by_one(inputs), labels, strict=True)
    ]
    output = model(**inputs, labels=labels, objective=fine_tuning)
    check_loss_and_gradients(model, torch.stack(examples).mean(), output.loss)


@pytest.mark.parametrize(
    ("options", "weights"),
    [({"fine_tuning": "weighted"}, [1 / 6, 2 / 6, 3 / 6]), ({"fine_tuning": "limit", "limit_layer": 2}, [0, 1, 0])],
)
def test_objectives_and_their_gradients_in_regression(options: dict[str, Any], weights: list[float]) -> None:
    model = build("berxit-regression", **options)
    inputs, labels = inputs_of(model), labels_of(model)
    examples = [
        torch.stack(losses(model, example, label)) for example, label in zip(one_by_one(inputs), labels, strict=True)
    ]
    expected = torch.stack(examples).mean(dim=0) @ torch.tensor(weights, dtype=torch.float)
    found = model(**inputs, labels=labels, objective=options["fine_tuning"]).loss
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_weights_count_exits() -> None:
    model = build("berxit", fine_tuning="weighted", exit_layers=[1, 3])
    inputs, labels = inputs_of(model), labels_of(model)
    first, second = (functional.cross_entropy(each, labels) for each in model(**inputs).exit_logits.unbind(dim=1))
    found = model(**inputs, labels=labels, objective="weighted").loss
    torch.testing.assert_close(found, (first + 2 * second) / 3)


@pytest.mark.parametrize("encoder", FAMILIES)
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_limit_trains_nothing_beyond_it(encoder: str, limit: int) -> None:
    model = build("berxit", encoder, fine_tuning="limit", limit_layer=limit)
    (stage,) = model.stages
    model(**inputs_of(model), labels=labels_of(model), objective="limit").loss.backward()
    learning = {name for name, value in gradients(model).items() if value is not None}
    frozen = {
        name
        for name, _ in model.named_parameters()
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in stage.frozen)
    }
    assert learning == {name for name, _ in model.named_parameters()} - frozen
    depth = model.config.encoder_config.num_hidden_layers
    above = 0 if encoder == "albert" else depth - limit  # ALBERT's layers are one and the same
    assert len(stage.frozen) == above + depth - 1


@torch.no_grad()
def test_all_leave_at_the_limit() -> None:
    model = build("berxit", fine_tuning="limit", limit_layer=2, exit_threshold=[1.0, 0.0, 0.0])
    assert model(**inputs_of(model)).exit_layer.tolist() == [2] * 6


def test_an_objective_of_another_fine_tuning_is_refused() -> None:
    model = build("berxit")
    with pytest.raises(
        ValueError, match="objective: got 'limit', .*'alternating' does not use; pass fine_tuning='limit'"
    ):
        model(**inputs_of(model), labels=labels_of(model), objective="limit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fine_tuning": "limit"}, "limit_layer: got None; .* needs one of exit_layers, 1, 2, 3, e.g. limit_layer=1"),
        ({"fine_tuning": "limit", "limit_layer": 2, "exit_layers": [1, 3]}, "limit_layer: got 2; .* 1, 3, e.g."),
        ({"fine_tuning": "limit", "limit_layer": True}, "limit_layer: got True; "),
        ({"fine_tuning": "limit", "limit_layer": 2.0}, "limit_layer: got 2.0; "),
        ({"limit_layer": 2}, "limit_layer: got 2, which fine_tuning='alternating' does not use; leave it out"),
        ({"distillation_weight": 2.0}, "distillation_weight: got 2.0, which fine_tuning='alternating' does not"),
        ({"fine_tuning": "self_distillation", "distillation_weight": -1}, "distillation_weight: got -1; .* >= 0"),
        (
            {"fine_tuning": "self_distillation", "num_labels": 1},
            "fine_tuning: got 'self_distillation', which needs class probabilities, and .*; pass",
        ),
        (
            {"fine_tuning": "weighted", "exit_criterion": "learned", "lte_variant": "authors"},
            "lte_variant: got 'authors', which the authors' code does not define for fine_tuning='weighted'; pass",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config("berxit", **arguments)


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
        ("weighted", [("weighted", ("weighted",), ())]),
        ("self_distillation", [("self_distillation", ("self_distillation",), ())]),
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


# Their routine, at even steps or at odd ones -> our objective, and the options that it needs; they count from 0.
ROUTINES: dict[str, tuple[str, dict[str, Any]]] = {
    "raw": ("final", {}),
    "all": ("joint", {}),
    "only_highway": ("exits", {}),
    "alternate": ("final", {}),
    "alternate/1": ("joint", {}),
    "alternate-lte": ("final", {}),
    "alternate-lte/1": ("joint", {}),
    "weight-linear": ("weighted", {"fine_tuning": "weighted"}),
    "self_distil": ("self_distillation", {"fine_tuning": "self_distillation"}),
} | {f"limit{layer - 1}": ("limit", {"fine_tuning": "limit", "limit_layer": layer}) for layer in range(1, 13)}


@pytest.mark.parametrize("name", [name for name in recordings.names("berxit") if recordings.read(name).learned])
@torch.no_grad()
def test_the_authors_losses(name: str) -> None:
    recording = recordings.read(name)
    labels = recording.tensors["labels"]
    routines = [name.removeprefix("loss/") for name in recording.tensors if name.startswith("loss/")]
    assert routines
    for routine in routines:
        objective, options = ROUTINES[routine.removesuffix("/0")]
        if routine.startswith("alternate-lte"):
            options = options | criterion(recording)
        elif recording.config["num_labels"] == 1:
            continue  # without learning to exit, regression has no exits here
        if objective == "self_distillation":
            options = options | {"distillation_weight": len(labels)}  # theirs is a sum over the batch
        model = recordings.model_of(recording, **options)
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
