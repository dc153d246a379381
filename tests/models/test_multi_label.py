"""Several labels at once: scores, losses, labels and calibration beside a naive reference, and what is refused."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import (
    CLASSES,
    build,
    check_early_exit,
    check_loss_and_gradients,
    encoder_config,
    inputs_of,
    thresholds_between,
    trace_of,
)
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from adaexit_hf import BerxitConfig, DactBertConfig, DeeBertConfig, DepthAdaptiveConfig
from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.padded_batches import row_labels

Model = EarlyExitForSequenceClassification
SEVERAL = "multi_label_classification"
SETTINGS: dict[str, dict[str, Any]] = {"depth-adaptive": {"depth_source": "halting"}}
METHODS = [name for name, model in CLASSES.items() if model.config_class.supports_multi_label]
LABELS = torch.tensor([[0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 1], [1, 1, 1]])
WEIGHTS, SMOOTHING = [0.5, 2.0, 5.0], 0.2


def several(method: str, **kwargs: Any) -> Model:
    return build(method, problem_type=SEVERAL, **SETTINGS.get(method, {}) | kwargs)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def binary_entropy(p: float) -> float:
    return -sum(share * math.log(share) for share in (p, 1 - p) if share > 0)


def right(logits: list[float], labels: list[int]) -> float:
    return float([int(value > 0) for value in logits] == labels)


NAIVE = {
    "confidence": lambda row: min(max(p, 1 - p) for p in map(sigmoid, row)),
    "margin": lambda row: min(abs(2 * p - 1) for p in map(sigmoid, row)),
    "entropy": lambda row: max(binary_entropy(p) for p in map(sigmoid, row)),
    "normalized_entropy": lambda row: max(binary_entropy(p) for p in map(sigmoid, row)) / math.log(2),
}


def agreements(exits: list[list[float]]) -> list[int]:
    sets, counts = [[value > 0 for value in row] for row in exits], [0]
    for before, after in zip(sets, sets[1:], strict=False):
        counts.append(counts[-1] + 1 if after == before else 0)
    return counts


# Readiness -----------------------------------------------------------------------------------------------------------


def test_the_methods_that_allow_several_labels() -> None:
    assert sorted(METHODS) == ["berxit", "deebert", "depth-adaptive", "fastbert", "pabee", "right-tool"]


@pytest.mark.parametrize("criterion", [*NAIVE, "patience"])
@pytest.mark.parametrize("method", METHODS)
def test_readiness_is_that_of_the_least_sure_label(method: str, criterion: str) -> None:
    layers = encoder_config("bert", num_hidden_layers=4)
    model = several(method, encoder_config=layers, num_labels=2, exit_criterion=criterion)  # two: some sets agree
    inputs = inputs_of(model)
    trace = trace_of(model, inputs)
    exits = trace.exit_logits.tolist()
    naive = [agreements(row) if criterion == "patience" else list(map(NAIVE[criterion], row)) for row in exits]
    torch.testing.assert_close(trace.exit_scores, torch.tensor(naive).float(), atol=1e-5, rtol=1e-5)
    seen = check_early_exit(model, inputs, thresholds_between(trace))
    assert len(seen) > 1 or criterion == "patience"  # random exits may all agree


@pytest.mark.parametrize(
    ("criterion", "highest"),
    [("entropy", math.log(2)), ("normalized_entropy", 1), ("confidence", 1), ("margin", 1), ("patience", 3)],
)
def test_the_range_of_the_threshold_is_that_of_two_classes(criterion: str, highest: float) -> None:
    made = DeeBertConfig(exit_criterion=criterion, num_labels=5, problem_type=SEVERAL, exit_layers=[4, 8, 12])
    assert made.threshold_bounds[1] == pytest.approx(highest)


@torch.no_grad()
@pytest.mark.parametrize("criterion", [*NAIVE, "patience"])
def test_a_text_with_a_label_that_is_not_finite_does_not_leave(criterion: str) -> None:
    model = several("deebert", exit_criterion=criterion)
    model.exits[1].classifier.bias[2] = math.nan
    with pytest.warns(RuntimeWarning, match="exits gave NaN"):
        scores = trace_of(model, inputs_of(model)).exit_scores
    assert scores[:, 1].isnan().all() and not scores[:, 2].isnan().any()


# Losses --------------------------------------------------------------------------------------------------------------


def naive_loss(
    logits: Tensor, labels: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0), smoothing: float = 0.0
) -> Tensor:
    """Binary cross-entropy as in its definition, number by number."""
    total = torch.zeros(())
    for row, given in zip(logits, labels.tolist(), strict=True):
        for value, label, weight in zip(row, given, weights, strict=True):
            target = label * (1 - smoothing) + smoothing / 2
            p = value.sigmoid()
            total = total - weight * target * p.log() - (1 - target) * (1 - p).log()
    return total / labels.numel()


def expected_loss(model: Model, exits: list[Tensor]) -> Tensor:
    """The loss of the method's first objective, from the logits of all exits."""
    losses = [naive_loss(logits, LABELS) for logits in exits]
    if model.config.model_type == "pabee":
        return (losses[0] + 2 * losses[1] + 3 * losses[2]) / 6
    if model.config.model_type == "fastbert":
        teacher = exits[-1].detach().sigmoid()
        for logits in exits[:-1]:
            student = logits.sigmoid()
            given = teacher * (teacher / student).log()
            others = (1 - teacher) * ((1 - teacher) / (1 - student)).log()
            losses[-1] = losses[-1] + (given + others).sum() / len(LABELS)
        return losses[-1]
    return torch.stack(losses).sum()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "depth-adaptive"])
def test_losses_are_binary_cross_entropies(method: str) -> None:
    model = several(method)
    call: dict[str, Any] = inputs_of(model)
    exits = list(model(**call, early_exit=False).exit_logits.unbind(dim=1))
    loss = model(**call, labels=LABELS, objective=model.objectives[0]).loss
    check_loss_and_gradients(model, expected_loss(model, exits), loss)


def test_weights_and_smoothing() -> None:
    model = several("deebert", class_weights=WEIGHTS, label_smoothing=SMOOTHING)
    output = model(**inputs_of(model), labels=LABELS)
    torch.testing.assert_close(output.loss, naive_loss(output.logits, LABELS, WEIGHTS, SMOOTHING))


def test_learning_to_exit_learns_whether_the_whole_label_set_is_right() -> None:
    model = several("berxit", exit_criterion="learned")
    call: dict[str, Any] = inputs_of(model)
    output = model(**call, early_exit=False)
    losses = []
    for logits, certainty in zip(output.exit_logits.unbind(dim=1), output.exit_scores.unbind(dim=1), strict=True):
        target = torch.tensor([right(*pair) for pair in zip(logits.tolist(), LABELS.tolist(), strict=True)])
        losses.append(naive_loss(logits, LABELS) + (certainty - target).square().mean())
    loss = model(**call, labels=LABELS, objective="joint").loss
    torch.testing.assert_close(loss, torch.stack(losses).sum())


def test_self_distillation_is_a_binary_cross_entropy_with_the_teachers_probabilities() -> None:
    model = several("berxit", fine_tuning="self_distillation", distillation_weight=2.0)
    call: dict[str, Any] = inputs_of(model)
    exits = list(model(**call, early_exit=False).exit_logits.unbind(dim=1))
    teacher = exits[-1].detach().sigmoid()
    distilled = [-(teacher * p.log() + (1 - teacher) * (1 - p).log()).mean() for p in map(torch.sigmoid, exits[:-1])]
    expected = torch.stack([naive_loss(logits, LABELS) for logits in exits]).sum() + 2 * sum(distilled)
    check_loss_and_gradients(model, expected, model(**call, labels=LABELS, objective="self_distillation").loss)


def test_the_halting_unit_learns_the_first_exit_with_the_right_label_set() -> None:
    model = several("depth-adaptive", halting_penalty=0.1)
    call: dict[str, Any] = inputs_of(model, padding="none")
    run = model.train()(**call, labels=LABELS, objective="anytime", output_hidden_states=True)
    exits, halting = run.exit_logits.detach(), model.halting(run.hidden_states[1])  # (batch, tokens, exits)
    losses, unit = [naive_loss(logits, LABELS) for logits in run.exit_logits.unbind(dim=1)], torch.zeros(())
    for row, labels in enumerate(LABELS.tolist()):
        reward = [right(exits[row, index].tolist(), labels) - 0.1 * (index + 1) for index in range(3)]
        target = reward.index(max(reward))
        unit = unit - halting[row].log_softmax(dim=-1)[:, target].sum()
    expected = torch.stack(losses).mean() + unit / halting[..., 0].numel()
    torch.testing.assert_close(run.loss, expected)


# Labels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.long, torch.float, torch.bool, torch.half])
def test_labels_of_any_type_give_the_same_loss(dtype: torch.dtype) -> None:
    model = several("deebert")
    call = inputs_of(model)
    assert model(**call, labels=LABELS.to(dtype)).loss == model(**call, labels=LABELS).loss


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2, 0, 1, 2]), r"labels: got shape \(6,\) with .*; pass 3 numbers per text"),
        (LABELS[:, :2], r"labels: got shape \(6, 2\) with .* shape \(6, 3\)"),
        (LABELS * 2, "labels: got 2 with problem_type='multi_label_classification'; pass 1 for each label"),
        (LABELS / 2, "labels: got 0.5 with"),
        (LABELS.float().masked_fill(LABELS == 1, math.nan), "labels: got nan with"),
    ],
)
def test_other_labels_are_refused(labels: Tensor, message: str) -> None:
    model = several("deebert")
    with pytest.raises(ValueError, match=message):
        model(**inputs_of(model), labels=labels)


def test_labels_of_rows() -> None:
    rows = [{"labels": row} for row in ([0, 1, 1], (1.0, 0.0, 0.0), torch.tensor([0, 0, 0]), [True, False, True])]
    found = row_labels(rows, 3, multi_label=True)
    assert found is not None and found.dtype == torch.long
    assert found.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 0, 1]]
    for missing in (None, [-1, -1, -1]):
        assert row_labels([{"labels": missing}] * 2, 3, multi_label=True) is None
        with pytest.raises(ValueError, match="labels: got .* in row 4; pass 3 numbers per row, 0 or 1, and drop rows"):
            row_labels([*rows, {"labels": missing}], 3, multi_label=True)


@pytest.mark.parametrize("label", [1, [0, 1], ["toxic"], "toxic", [[0, 1, 1]], [0, None, 1]])
def test_a_row_without_one_number_per_label_is_refused(label: Any) -> None:
    with pytest.raises(ValueError, match="label: got .* in row 1; pass one number per label, a list of 3: 1 for each"):
        row_labels([{"label": [0, 1, 1]}, {"label": label}], 3, multi_label=True)


# Calibration ---------------------------------------------------------------------------------------------------------


def test_calibration_minimizes_the_binary_cross_entropy_of_every_exit() -> None:
    model = several("right-tool")
    for exit in model.exits:
        exit.classifier.bias.data = torch.tensor([5.0, -5.0, 5.0])
    inputs = {"input_ids": inputs_of(model, padding="none")["input_ids"]}
    logits = trace_of(model, inputs).exit_logits.double()
    labels = torch.tensor([[1, 0, 1]] * 5 + [[1, 1, 1]])  # the exits are mostly right, but not always
    pairs = zip(inputs["input_ids"].tolist(), labels.tolist(), strict=True)
    temperatures = model.calibrate_temperatures([{"input_ids": ids, "labels": row} for ids, row in pairs])
    for temperature, exit_logits in zip(temperatures, logits.unbind(dim=1), strict=True):
        best = naive_loss(exit_logits / temperature, labels)
        assert all(naive_loss(exit_logits / (temperature * factor), labels) > best for factor in (0.9, 1.1))
    assert model.config.exit_temperatures is not None


# The config and checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DactBertConfig(problem_type=SEVERAL),
            "problem_type: got .* dact-bert .* accumulates",
        ),
        (
            lambda: DepthAdaptiveConfig(problem_type=SEVERAL),
            "depth_source: got 'mutual_inform.* one label per",
        ),
        (lambda: BerxitConfig(problem_type=SEVERAL, num_labels=1), "num_labels: got 1 with .* pass num_labels=2"),
        (
            lambda: BerxitConfig(problem_type=SEVERAL, num_labels=3, class_weights=[1.0]),
            r"class_weights: got \[1.0\] for 3 labels",
        ),
    ],
)
def test_what_is_not_defined_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_method_that_does_not_say_so_does_not_allow_several_labels() -> None:
    class OtherConfig(DeeBertConfig):
        model_type = "other"
        supports_multi_label = False

    with pytest.raises(ValueError, match="problem_type: got .* which other does not define; use .* deebert, fastbert"):
        OtherConfig(problem_type=SEVERAL)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_keeps_its_kind_of_labels(method: str, tmp_path: Path) -> None:
    several(method).save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.multi_label
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, problem_type=None)  # as if not passed
    assert again.config.multi_label
    with pytest.raises(ValueError, match=r"got problem_type=.* \(classification\), but the"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, problem_type="single_label_classification")


def test_a_fine_tuned_classifier_keeps_its_labels_and_head(tmp_path: Path) -> None:
    names = {0: "toxic", 1: "obscene", 2: "threat"}
    source = BertForSequenceClassification(encoder_config("bert", id2label=names, problem_type=SEVERAL)).eval()
    source.save_pretrained(tmp_path)
    model = CLASSES["deebert"].from_encoder_pretrained(str(tmp_path)).eval()
    inputs = inputs_of(model)
    assert model.config.multi_label and model.config.id2label == names
    torch.testing.assert_close(model(**inputs).logits, source(**inputs).logits)
    other = CLASSES["deebert"].from_encoder_pretrained(
        str(tmp_path), id2label=names, problem_type="single_label_classification"
    )
    assert not torch.equal(other.exits[-1].classifier.weight, source.classifier.weight)
