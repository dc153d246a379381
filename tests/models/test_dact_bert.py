"""DACT-BERT against its paper in plain Python, and its promise: an early exit never changes the class."""

import math
from typing import Any

import pytest
import torch
from helpers.tiny import (
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

from adaexit_hf import DactBertConfig, DactBertForSequenceClassification
from adaexit_hf.models.modeling_dact_bert import dact_combine, dact_margin

Model = DactBertForSequenceClassification
BOUNDS = ("tight", "paper")
halting = pytest.mark.parametrize(
    ("halting_input", "tied"), [("state", False), ("state", True), ("entropy", False), ("entropy", True)]
)


def modules(model: Model, example: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """y_n and h_n of every layer for one example without padding."""
    length = int(example["attention_mask"].sum())
    states = model.encoder(**{name: value[:, :length] for name, value in example.items()}, output_hidden_states=True)
    outputs, halting = [], []
    units = list(model.halting) * (len(model.exits) if model.config.tied_halting else 1)
    for hidden, head, unit in zip(states.hidden_states[1:], model.exits, units, strict=True):
        pooled = torch.tanh(head.dense.weight @ hidden[0, 0] + head.dense.bias)
        y = torch.softmax(head.classifier.weight @ pooled + head.classifier.bias, dim=0)
        if model.config.halting_input == "entropy":
            h = torch.exp(unit.log_weight[0]) * (-(y * y.log()).sum() - unit.threshold[0])
        else:
            h = unit.weight[0] @ hidden[0, 0] + unit.bias[0]
        outputs.append(y)
        halting.append(torch.sigmoid(h))
    return outputs, halting


def accumulate(outputs: list[list[float]], halting: list[float]) -> list[tuple[list[float], float]]:
    """(a_n, p_n) for n = 1..N, Algorithm 1, lines 8 and 10."""
    a, p, found = [0.0] * len(outputs[0]), 1.0, []
    for y, h in zip(outputs, halting, strict=True):
        a = [y_c * p + a_c * (1 - p) for y_c, a_c in zip(y, a, strict=True)]
        p = p * h
        found.append((a, p))
    return found


def margin(a: list[float], p: float, d: int, bound: str) -> float:
    runner_up, top = sorted(a)[-2:]
    kept = (1 - p) ** d
    return kept * (1 + top - runner_up) - 1 if bound == "tight" else top * kept - runner_up - p * d  # Eq. 2


def scalars(model: Model, example: dict[str, Tensor]) -> list[tuple[list[float], float]]:
    outputs, halting = modules(model, example)
    return accumulate([y.tolist() for y in outputs], [h.item() for h in halting])


@torch.no_grad()
def test_logits_are_the_logarithms_of_the_accumulated_answer() -> None:
    model = build("dact-bert")
    inputs = inputs_of(model)
    expected = [[a for a, _ in scalars(model, example)] for example in one_by_one(inputs)]
    probabilities = trace_of(model, inputs).exit_logits.exp()
    torch.testing.assert_close(probabilities, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(6, 3))


@pytest.mark.parametrize("bound", BOUNDS)
@halting
@torch.no_grad()
def test_scores_are_margins(halting_input: str, tied: bool, bound: str) -> None:
    model = build("dact-bert", halting_bound=bound, halting_input=halting_input, tied_halting=tied)
    inputs = inputs_of(model)
    expected = [
        [margin(a, p, 3 - n, bound) for n, (a, p) in enumerate(scalars(model, example), start=1)]
        for example in one_by_one(inputs)
    ]
    torch.testing.assert_close(trace_of(model, inputs).exit_scores, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bound", BOUNDS)
@halting
@torch.no_grad()
def test_inference_is_algorithm_1(halting_input: str, tied: bool, bound: str) -> None:
    options = {"halting_input": halting_input, "tied_halting": tied}
    model = build("dact-bert", "roberta", halting_bound=bound, halting_bias=-1.0, **options)
    inputs = inputs_of(model)
    for threshold in (0.0, *thresholds_between(trace_of(model, inputs))):
        output = model(**inputs, exit_threshold=threshold)
        for row, example in enumerate(one_by_one(inputs)):
            steps = scalars(model, example)
            ready = [n for n, (a, p) in enumerate(steps, start=1) if margin(a, p, 4 - n, bound) >= threshold]
            assert output.exit_layer[row] == min([*ready, 4])
            answer = torch.tensor(steps[min([*ready, 4]) - 1][0])
            torch.testing.assert_close(output.logits[row].exp(), answer, atol=1e-5, rtol=1e-5)


@halting
def test_objectives_and_their_gradients(halting_input: str, tied: bool) -> None:
    model = build("dact-bert", ponder_cost=0.1, halting_input=halting_input, tied_halting=tied)
    inputs, labels = inputs_of(model), labels_of(model)
    final, adaptive, others, distilled = [], [], [], []
    for example, label in zip(one_by_one(inputs), labels, strict=True):
        outputs, halting = modules(model, example)
        final.append(-torch.log(outputs[-1][label]))
        others.append(-sum(torch.log(y[label]) for y in outputs[:-1]))
        teacher = outputs[-1].detach()
        distilled.append(sum((teacher * torch.log(teacher / y)).sum() for y in outputs[:-1]))
        a, p = torch.zeros(3), torch.ones(())
        for y, h in zip(outputs, halting, strict=True):
            a, p = y * p + a * (1 - p), p * h
        adaptive.append(-torch.log(a[label]) + 0.1 * sum(halting))  # Eq. 1
    references = {"final": final, "adaptive": adaptive, "exits": others, "distillation": distilled}
    for objective, losses in references.items():
        output = model(**inputs, labels=labels, objective=objective)
        check_loss_and_gradients(model, torch.stack(losses).mean(), output.loss)


def test_fine_tuning_leaves_the_adaptive_modules_alone() -> None:
    model = build("dact-bert")
    model(**inputs_of(model), labels=labels_of(model), objective="final").loss.backward()
    learning = [name for name, value in gradients(model).items() if value is not None]
    assert not [name for name in learning if name.startswith(("exits.0.", "exits.1.", "halting."))]


def test_two_steps_of_training() -> None:
    backbone, adaptive = build("dact-bert").stages
    assert (backbone.objectives, backbone.frozen) == (("final",), ("exits.0", "exits.1", "halting"))
    assert (adaptive.objectives, adaptive.frozen) == (("adaptive",), ())


@pytest.mark.parametrize(
    ("fine_tuning", "second"), [("three_stage", "exits"), ("three_stage_distilled", "distillation")]
)
def test_three_steps_of_training(fine_tuning: str, second: str) -> None:
    assert [tuple(stage) for stage in build("dact-bert", fine_tuning=fine_tuning).stages] == [
        ("backbone", ("final",), ("exits.0", "exits.1", "halting")),
        ("exits", (second,), ("encoder", "exits.2", "halting")),
        ("halting", ("adaptive",), ("encoder", "exits")),
    ]


def test_a_single_exit_has_no_others_to_train() -> None:
    model = build("dact-bert", fine_tuning="three_stage", exit_layers=[3])
    assert [stage.name for stage in model.stages] == ["backbone", "halting"]
    with pytest.raises(ValueError, match="objective: got 'exits', which trains nothing in a model with a single exit"):
        model(**inputs_of(model), labels=labels_of(model), objective="exits")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"halting_input": "logits"}, ValueError, "halting_input: got 'logits'; choose one of 'state', 'entropy'"),
        (
            {"fine_tuning": "two_stage"},
            ValueError,
            "fine_tuning: got 'two_stage'; choose one of 'joint', 'three_stage'",
        ),
        ({"tied_halting": 1}, TypeError, "tied_halting: got 1 of type int; pass True or False"),
    ],
)
def test_unknown_settings_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DactBertConfig(**arguments)


@pytest.mark.parametrize("bias", [-2.0, 3.0])
def test_the_halting_bias_is_where_halting_starts(bias: float) -> None:
    model = build("dact-bert", halting_bias=bias)
    assert [unit.bias.item() for unit in model.halting] == [bias] * 3


def test_the_sound_rule_is_the_default() -> None:
    assert DactBertConfig().exit_threshold == 0.0
    assert DactBertConfig().halting_bound == "tight"


def test_halting_starts_in_the_middle() -> None:
    assert [unit.bias.item() for unit in build("dact-bert").halting] == [0.0] * 3


def test_the_comparison_includes_the_threshold() -> None:
    assert build("dact-bert").ready(torch.tensor([0.1, 0.0, -0.1, math.nan]), 0.0).tolist() == [
        True,
        True,
        False,
        False,
    ]


def trajectories(
    labels: int, steps: int = 8, count: int = 25_000
) -> tuple[list[Tensor], list[Tensor], dict[str, list[Tensor]]]:
    """a_n, p_n and margins of random examples; half of them halt in a hurry, and many answers nearly tie."""
    generator = torch.Generator().manual_seed(labels)
    outputs = (
        4 * torch.randn(steps, count, labels, generator=generator) * torch.rand(count, 1, generator=generator)
    ).softmax(-1)
    halting = torch.rand(steps, count, generator=generator) ** (1 + 3 * (torch.arange(count) % 2))
    answer, remaining, answers, rests = torch.zeros(count, labels), torch.ones(count), [], []
    for y, h in zip(outputs, halting, strict=True):
        answer, remaining = dact_combine(answer, remaining, y, h)
        answers.append(answer)
        rests.append(remaining)
    left = range(steps - 1, -1, -1)
    margins = {
        bound: [dact_margin(a, p, d, bound) for a, p, d in zip(answers, rests, left, strict=True)] for bound in BOUNDS
    }
    return answers, rests, margins


@pytest.mark.parametrize("labels", [2, 3, 5, 20])
def test_an_exit_never_changes_the_class_of_full_depth(labels: int) -> None:
    answers, _, margins = trajectories(labels)
    full = answers[-1].argmax(dim=-1)
    for bound in BOUNDS:
        early = 0
        for answer, score in zip(answers[:-1], margins[bound][:-1], strict=True):
            stopped = score >= 0
            assert torch.equal(answer.argmax(dim=-1)[stopped], full[stopped])
            early += int(stopped.sum())
        assert early > 1000


@pytest.mark.parametrize("labels", [2, 3, 5, 20])
def test_the_tight_rule_never_exits_later_than_the_papers(labels: int) -> None:
    _, _, margins = trajectories(labels)
    earlier = 0
    for tight, paper in zip(margins["tight"], margins["paper"], strict=True):
        assert not ((paper >= 0) & (tight < 0)).any()
        earlier += int(((tight >= 0) & (paper < 0)).sum())
    assert earlier > 0


def test_the_tight_rule_is_necessary() -> None:
    """Below margin 0 the future that votes for the runner-up and never halts overturns the class."""
    answers, rests, margins = trajectories(3)
    for left, answer, remaining, score in zip(range(7, 0, -1), answers, rests, margins["tight"], strict=False):
        going_on = score < -1e-4
        a, p = answer[going_on], remaining[going_on]
        runner_up = a.topk(2, dim=-1).indices[:, 1]
        for _ in range(left):
            a, p = dact_combine(a, p, torch.eye(3)[runner_up], torch.ones(len(a)))
        assert (a.argmax(dim=-1) == runner_up).all()
        assert len(a)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    ("answer", "remaining", "left", "tight", "paper"),
    [
        ([0.7, 0.3], 0.4, 0, 0.4, 0.4),  # nothing left: the lead itself
        ([0.7, 0.3], 1.0, 0, 0.4, 0.4),  # 0^0 = 1
        ([0.7, 0.3], 1.0, 2, -1.0, -2.3),  # all may still change
        ([0.7, 0.3], 0.0, 5, 0.4, 0.4),  # nothing may change any more
        ([0.5, 0.5], 0.0, 3, 0.0, 0.0),  # a tie that stays one
        ([0.5, 0.5], 0.1, 1, -0.1, -0.15),  # a tie that may be broken
        ([1.0, 0.0], 0.5, 1, 0.0, 0.0),  # just enough
        ([0.4, 0.4, 0.2], 0.0, 1, 0.0, 0.0),
    ],
)
def test_the_margin_is_exact_at_its_edges(
    answer: list[float], remaining: float, left: int, tight: float, paper: float, bound: str
) -> None:
    found = dact_margin(torch.tensor([answer]), torch.tensor([remaining]), left, bound).item()
    assert math.isclose(found, tight if bound == "tight" else paper, abs_tol=1e-6)


def test_a_tie_at_the_last_step_is_ready() -> None:
    assert dact_margin(torch.tensor([[0.5, 0.5]]), torch.tensor([0.3]), 0).item() >= 0


def test_a_tiny_lead_keeps_its_sign() -> None:
    answer = torch.tensor([[0.5 + 1e-7, 0.5]])
    assert dact_margin(answer, torch.tensor([1e-12]), 3).item() > 0
    assert dact_margin(answer, torch.tensor([1e-6]), 3).item() < 0
