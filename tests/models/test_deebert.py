"""DeeBERT against its paper, written out example by example, and against recordings of the authors' code."""

import math

import pytest
import torch
from helpers import recordings
from helpers.tiny import (
    build,
    check_loss_and_gradients,
    inputs_of,
    labels_of,
    one_by_one,
    thresholds_between,
    trace_of,
)
from torch import Tensor

from adaexit_hf import DeeBertConfig, DeeBertForSequenceClassification

Model = DeeBertForSequenceClassification


def off_ramps(model: Model, example: dict[str, Tensor]) -> list[Tensor]:
    """z_i of every layer for one example without padding: the pooler of BERT and a classifier on [CLS]."""
    length = int(example["attention_mask"].sum())
    states = model.encoder(**{name: value[:, :length] for name, value in example.items()}, output_hidden_states=True)
    logits = []
    for hidden, ramp in zip(states.hidden_states[1:], model.exits, strict=True):
        pooled = torch.tanh(ramp.dense.weight @ hidden[0, 0] + ramp.dense.bias)
        logits.append(ramp.classifier.weight @ pooled + ramp.classifier.bias)
    return logits


def entropy(logits: Tensor) -> float:
    exponentials = [math.exp(value) for value in logits.tolist()]
    probabilities = [value / sum(exponentials) for value in exponentials]
    return -sum(p * math.log(p) for p in probabilities)


def algorithm_1(logits: list[Tensor], threshold: float) -> tuple[Tensor, int]:
    for layer, z in enumerate(logits[:-1], start=1):
        if entropy(z) < threshold:
            return z, layer
    return logits[-1], len(logits)


def loss(logits: list[Tensor], label: int) -> list[Tensor]:
    """L_i of one example: cross-entropy."""
    return [torch.log(torch.exp(z).sum()) - z[label] for z in logits]


@torch.no_grad()
def test_scores_are_entropies() -> None:
    model = build("deebert")
    inputs = inputs_of(model)
    expected = [[entropy(z) for z in off_ramps(model, example)] for example in one_by_one(inputs)]
    torch.testing.assert_close(trace_of(model, inputs).exit_scores, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_inference_is_algorithm_1() -> None:
    model = build("deebert")
    inputs = inputs_of(model)
    for threshold in (0.0, *thresholds_between(trace_of(model, inputs)), math.log(3)):
        output = model(**inputs, exit_threshold=threshold)
        expected = [algorithm_1(off_ramps(model, example), threshold) for example in one_by_one(inputs)]
        assert output.exit_layer.tolist() == [layer for _, layer in expected]
        torch.testing.assert_close(output.logits, torch.stack([z for z, _ in expected]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("objective", "used"), [("final", slice(-1, None)), ("exits", slice(None, -1)), ("joint", slice(None))]
)
def test_objectives_and_their_gradients(objective: str, used: slice) -> None:
    model = build("deebert")
    inputs, labels = inputs_of(model), labels_of(model)
    examples = [
        loss(off_ramps(model, example), label) for example, label in zip(one_by_one(inputs), labels, strict=True)
    ]
    expected = torch.stack([torch.stack(losses[used]).sum() for losses in examples]).mean()
    check_loss_and_gradients(model, expected, model(**inputs, labels=labels, objective=objective).loss)


def test_two_stages_as_in_section_3() -> None:
    backbone, exits = build("deebert").stages
    assert (backbone.objectives, backbone.frozen) == (("final",), ("exits.0", "exits.1"))
    assert (exits.objectives, exits.frozen) == (("exits",), ("encoder", "exits.2"))


@torch.no_grad()
def test_the_ends_of_the_threshold() -> None:
    model = build("deebert")
    assert model(**inputs_of(model), exit_threshold=0).exit_layer.tolist() == [3] * 6
    assert model(**inputs_of(model), exit_threshold=math.log(3)).exit_layer.tolist() == [1] * 6


def test_the_comparison_is_strict() -> None:
    assert build("deebert").ready(torch.tensor([0.4, 0.5, math.nan]), 0.5).tolist() == [True, False, False]


def test_the_range_of_the_threshold_follows_the_labels() -> None:
    assert DeeBertConfig(num_labels=4).threshold_bounds == (0.0, math.log(4))


@pytest.mark.parametrize("name", recordings.names("deebert"))
@torch.no_grad()
def test_the_authors_logits(name: str) -> None:
    recording = recordings.read(name)
    trace = trace_of(recordings.model_of(recording), recording.inputs)
    ramps = recording.tensors["offramp_logits"]
    torch.testing.assert_close(trace.exit_logits[:, :-1], ramps[:, :-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(trace.logits, recording.tensors["final_logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", recordings.names("deebert"))
@torch.no_grad()
def test_the_authors_exits(name: str) -> None:
    recording = recordings.read(name)
    model = recordings.model_of(recording)
    depth = len(model.exits)
    for text in recording.thresholds:
        threshold = None if float(text) < 0 else min(float(text), model.config.threshold_bounds[1])
        output = model(**recording.inputs, exit_threshold=threshold)
        layers, logits = recording.tensors[f"exit_layer@{text}"], recording.tensors[f"logits@{text}"]
        assert output.exit_layer.tolist() == layers.tolist(), text
        # There, an answer of the last layer may be that of an off-ramp which is never trained.
        early = layers < depth
        torch.testing.assert_close(output.logits[early], logits[early], atol=1e-5, rtol=0)
        untrained = recording.tensors["offramp_logits"][:, -1]
        late = torch.where((output.logits - logits).abs().amax(dim=-1, keepdim=True) < 1e-5, output.logits, untrained)
        torch.testing.assert_close(late[~early], logits[~early], atol=1e-5, rtol=0)
