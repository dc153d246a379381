"""The Right Tool for the Job against its paper, written out example by example; its way from training to reloading."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import Row, collate, new_model, new_trainer
from helpers.tiny import (
    FAMILIES,
    build,
    check_loss_and_gradients,
    inputs_of,
    labels_of,
    one_by_one,
    thresholds_between,
    trace_of,
)
from helpers.tiny import encoder_config as tiny_config
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from adaexit_hf import RightToolConfig, RightToolForSequenceClassification
from adaexit_hf.models.modeling_right_tool import layer_sum

Model = RightToolForSequenceClassification
# Every layer, and some: classifiers read the layers without an exit, too.
every_choice = pytest.mark.parametrize("exit_layers", [[1, 2, 3, 4], [2, 4], [1, 4], [4]], ids=str)


def mixed(encoder: str = "roberta", **kwargs: Any) -> Model:
    """Layer weights as after training: of both signs and any length."""
    model = build("right-tool", encoder, **kwargs)
    torch.manual_seed(5)
    for exit in model.exits:
        exit.layer_weights.data = 3 * torch.randn_like(exit.layer_weights)
    return model


def pooled_vectors(model: Model, example: dict[str, Tensor]) -> list[Tensor]:
    """p(h_i) of every layer for one example without padding: the pooler of RoBERTa on the first token."""
    length = int(example["attention_mask"].sum())
    states = model.encoder(**{name: value[:, :length] for name, value in example.items()}, output_hidden_states=True)
    dense = model.pooler.dense
    return [torch.tanh(dense.weight @ hidden[0, 0] + dense.bias) for hidden in states.hidden_states[1:]]


def classifiers(model: Model, example: dict[str, Tensor]) -> list[Tensor]:
    """z_k of every classifier for one example."""
    vectors = pooled_vectors(model, example)
    logits = []
    for layer, exit in zip(model.config.exit_layers, model.exits, strict=True):
        weights = exit.layer_weights.unbind()
        assert len(weights) == layer
        length = torch.sqrt(sum(weight**2 for weight in weights))
        mixture = torch.zeros_like(vectors[0])
        for weight, vector in zip(weights, vectors, strict=False):
            mixture = mixture + weight / length * vector
        logits.append(exit.classifier.weight @ mixture + exit.classifier.bias)
    return logits


def confidence(logits: Tensor, temperature: float = 1.0) -> float:
    exponentials = [math.exp(value / temperature) for value in logits.tolist()]
    return max(exponentials) / sum(exponentials)


@every_choice
@torch.no_grad()
def test_logits_and_scores(exit_layers: list[int]) -> None:
    model = mixed(exit_layers=exit_layers)
    inputs = inputs_of(model)
    trace = trace_of(model, inputs)
    examples = [classifiers(model, example) for example in one_by_one(inputs)]
    expected = torch.stack([torch.stack(logits) for logits in examples])
    torch.testing.assert_close(trace.exit_logits, expected, atol=1e-5, rtol=1e-5)
    scores = torch.tensor([[confidence(z) for z in logits] for logits in examples])
    torch.testing.assert_close(trace.exit_scores, scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperatures", [None, [0.5, 3.0, 1.5]])
@torch.no_grad()
def test_a_sample_leaves_where_its_calibrated_confidence_reaches_the_threshold(temperatures: Any) -> None:
    model = mixed(exit_layers=[1, 3, 4], exit_temperatures=temperatures)
    inputs = inputs_of(model)
    for threshold in (0.0, *thresholds_between(trace_of(model, inputs)), 1.0):
        layers, logits = [], []
        for example in one_by_one(inputs):
            answers = zip(
                model.config.exit_layers, classifiers(model, example), temperatures or [1.0] * 3, strict=True
            )
            for layer, z, temperature in answers:
                if confidence(z, temperature) >= threshold or layer == 4:
                    layers.append(layer)
                    logits.append(z / temperature)
                    break
        output = model(**inputs, exit_threshold=threshold)
        assert output.exit_layer.tolist() == layers
        torch.testing.assert_close(output.logits, torch.stack(logits), atol=1e-5, rtol=1e-5)


def test_a_score_at_the_threshold_is_ready() -> None:
    assert build("right-tool").ready(torch.tensor([0.4, 0.5, math.nan]), 0.5).tolist() == [False, True, False]


@every_choice
def test_the_loss_is_the_sum_over_all_exits(exit_layers: list[int]) -> None:
    model = mixed(exit_layers=exit_layers)
    inputs, labels = inputs_of(model), labels_of(model)
    losses = [
        torch.log(torch.exp(z).sum()) - z[label]
        for example, label in zip(one_by_one(inputs), labels, strict=True)
        for z in classifiers(model, example)
    ]
    expected = torch.stack(losses).sum() / len(labels)
    check_loss_and_gradients(model, expected, model(**inputs, labels=labels, objective="joint").loss)


def test_layer_weights_get_gradients() -> None:
    model = mixed()
    model(**inputs_of(model), labels=labels_of(model), objective="joint").loss.backward()
    first, *others = (exit.layer_weights.grad for exit in model.exits)
    assert first.abs().max() < 1e-6  # a single weight has no ratio to any other
    assert all((gradient.abs() > 1e-6).all() for gradient in others)


def test_one_stage_trains_everything() -> None:
    (stage,) = build("right-tool").stages
    assert (stage.objectives, stage.frozen) == (("joint",), ())


@torch.no_grad()
def test_answers_are_those_computed_by_hand() -> None:
    """Two layers whose pooled vectors are (0, 1) and (1, 0.5), weights (3, 4): unit weights (0.6, 0.8)."""
    encoder = tiny_config("bert", hidden_size=2, num_attention_heads=1, num_hidden_layers=2)
    model = build("right-tool", encoder_config=encoder, num_labels=2)
    exit = model.exits[1]
    exit.layer_weights.copy_(torch.tensor([3.0, 4.0]))
    exit.classifier.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    exit.classifier.bias.copy_(torch.tensor([0.2, 0.0]))
    logits = exit(torch.tensor([[[0.0, 1.0], [1.0, 0.5]]]))
    # The sum is (0.6 * 0 + 0.8 * 1, 0.6 * 1 + 0.8 * 0.5) = (0.8, 1.0).
    torch.testing.assert_close(logits, torch.tensor([[1.0, 2.0]]))


@torch.no_grad()
def test_only_the_ratios_of_the_layer_weights_count() -> None:
    model = mixed()
    before = trace_of(model, inputs_of(model)).exit_logits
    for exit in model.exits:
        exit.layer_weights *= 7.0
    torch.testing.assert_close(trace_of(model, inputs_of(model)).exit_logits, before)


def test_weights_that_are_all_zero_give_a_finite_sum() -> None:
    assert layer_sum(torch.ones(1, 2, 3), torch.zeros(2)).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("encoder", FAMILIES)
def test_layer_weights_start_equal(encoder: str) -> None:
    model = build("right-tool", encoder)
    size = model.config.encoder_config.initializer_range
    assert [exit.layer_weights.tolist() for exit in model.exits] == [
        pytest.approx([size] * layer) for layer in model.config.exit_layers
    ]


@pytest.mark.parametrize("encoder", ["modernbert", "modernbert-mean", "deberta-v2"])
@pytest.mark.parametrize("exit_pooling", [None, "mean"])
@torch.no_grad()
def test_layers_without_an_exit_are_read_as_those_with_one(encoder: str, exit_pooling: str | None) -> None:
    few = mixed(encoder, exit_layers=[3], exit_pooling=exit_pooling)
    every = mixed(encoder, exit_pooling=exit_pooling)
    weights = {name.replace("exits.0", "exits.2"): value for name, value in few.state_dict().items()}
    every.load_state_dict(every.state_dict() | weights)
    inputs = inputs_of(few)
    torch.testing.assert_close(trace_of(few, inputs).logits, trace_of(every, inputs).logits)


@pytest.mark.parametrize(("exit_layers", "threshold", "runs"), [(None, None, 4), ([2, 4], None, 4), ([2, 4], 0.0, 2)])
@torch.no_grad()
def test_every_layer_that_runs_is_pooled_once(exit_layers: Any, threshold: float | None, runs: int) -> None:
    model, calls = mixed(exit_layers=exit_layers), []
    model.pooler.dense.register_forward_hook(lambda *_: calls.append(1))
    model(**inputs_of(model), exit_threshold=threshold)
    assert len(calls) == runs


def test_the_range_of_the_threshold() -> None:
    assert RightToolConfig().threshold_bounds == (0.0, 1.0)
    assert RightToolConfig(exit_criterion="entropy", num_labels=2).threshold_bounds == (0.0, math.log(2))


def stock(name: str, folder: Path) -> PreTrainedModel:
    """A fine-tuned classifier, saved."""
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(tiny_config(name, num_labels=3)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_full_depth_starts_as_the_fine_tuned_classifier(name: str, tmp_path: Path) -> None:
    expected = stock(name, tmp_path)
    model = RightToolForSequenceClassification.from_encoder_pretrained(tmp_path).eval()
    inputs = inputs_of(model)
    torch.testing.assert_close(trace_of(model, inputs).logits, expected(**inputs).logits, atol=1e-6, rtol=0)
    *others, last = (exit.layer_weights for exit in model.exits)
    assert last.nonzero().tolist() == [[len(last) - 1]]
    assert all(torch.equal(weights, weights[:1].expand_as(weights)) for weights in others)


def test_the_other_layers_can_enter_the_last_exit(tmp_path: Path) -> None:
    stock("roberta", tmp_path)
    model = RightToolForSequenceClassification.from_encoder_pretrained(tmp_path).eval()
    model(**inputs_of(model), labels=labels_of(model), objective="joint").loss.backward()
    assert (model.exits[-1].layer_weights.grad[:-1].abs() > 1e-6).all()


def test_a_classifier_that_does_not_fit_leaves_equal_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("adaexit_hf"), "propagate", True)
    head = stock("roberta", tmp_path).classifier
    model = RightToolForSequenceClassification.from_encoder_pretrained(tmp_path, num_labels=2)
    assert "its classifier is not used, since its labels or its pooling are not those of the new model" in caplog.text
    assert torch.equal(model.pooler.dense.weight, head.dense.weight)
    assert model.exits[-1].layer_weights.tolist() == pytest.approx([0.2] * 4)


def noisy_texts(count: int) -> list[Row]:
    """Four words of one class; every fifth label or so is wrong, so that a model that learns them is too sure."""
    generator = torch.Generator().manual_seed(7)
    classes = torch.randint(3, (count,), generator=generator)
    words = 6 + 3 * torch.randint(15, (count, 4), generator=generator) + classes[:, None]
    labels = (classes + (torch.rand(count, generator=generator) < 0.2)) % 3
    return [
        {"input_ids": [1, *text, 2], "label": label}
        for text, label in zip(words.tolist(), labels.tolist(), strict=True)
    ]


@pytest.mark.slow
def test_from_training_to_a_calibrated_checkpoint(tmp_path: Path) -> None:
    rows = noisy_texts(256)
    model = new_model("right-tool", exit_layers=[1, 3, 4], exit_threshold=0.9)
    start = model.exits[-1].layer_weights.detach().clone()
    settings = {"max_steps": 100, "learning_rate": 3e-3, "per_device_train_batch_size": 8}
    new_trainer(model, tmp_path / "run", rows=rows[:96], **settings).train()
    assert (model.exits[-1].layer_weights / start).std() > 0.01  # learned, so no longer equal

    model.eval()
    inputs = collate(rows[96:])
    labels = inputs.pop("labels")
    before, early = trace_of(model, inputs), model(**inputs)
    temperatures = model.calibrate_temperatures(rows[96:])
    assert model.config.exit_temperatures == temperatures and temperatures[-1] > 1
    model.config.exit_threshold = 0.9  # of the calibrated confidence now
    after, later = trace_of(model, inputs), model(**inputs)
    torch.testing.assert_close(after.exit_logits, before.exit_logits / torch.tensor(temperatures)[:, None])
    for exit in range(3):
        assert cross_entropy(after.exit_logits[:, exit], labels) < cross_entropy(before.exit_logits[:, exit], labels)
    assert 1 < early.exit_layer.double().mean() < later.exit_layer.double().mean() < 4

    model.save_pretrained(tmp_path / "out")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert again.config.exit_temperatures == temperatures
    output = again(**inputs)
    assert torch.equal(output.logits, later.logits)
    assert torch.equal(output.exit_layer, later.exit_layer)
