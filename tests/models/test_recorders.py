"""Recorders that run a model once and replay it on other texts: what depends on the texts must not be recorded."""

import io
import warnings
from typing import Any

import pytest
import torch
from helpers.tiny import CLASSES, build, inputs_of, labels_of, pairs_of, thresholds_between, trace_of
from torch import Tensor

from adaexit_hf.models.configuration_early_exit import HEADS

ANSWER = ("logits", "exit_layer")
# The tracer warns of every number that it records, and it reads attributes of modules that Transformers deprecated.
IGNORED = ("torch.jit.TracerWarning", "DeprecationWarning", "FutureWarning")
pytestmark = [pytest.mark.filterwarnings(f"ignore::{warning}") for warning in IGNORED]


class Answer(torch.nn.Module):
    """What recorders take: tensors in, tensors out."""

    def __init__(self, model: torch.nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(input_ids, attention_mask, **self.options)
        return output.logits, output.exit_layer


def two_batches(model: Any) -> tuple[float, list[tuple[Tensor, Tensor]]]:
    """A threshold at which some rows leave early, and two batches of which other rows do so."""
    inputs = inputs_of(model, rows=12)
    for threshold in thresholds_between(trace_of(model, inputs), count=30):
        layers = model(**inputs, exit_threshold=threshold).exit_layer
        order = layers.argsort()
        if not torch.equal(layers[order[:6]], layers[order[6:]]):
            break
    batches = [(inputs["input_ids"][rows], inputs["attention_mask"][rows]) for rows in (order[:6], order[6:])]
    return threshold, batches


def check(model: Any, recorded: Any, threshold: float, batches: list[tuple[Tensor, Tensor]]) -> None:
    layers = []
    for input_ids, mask in batches:
        expected = model(input_ids, mask, exit_threshold=threshold)
        with torch.jit.optimized_execution(False):  # which would take seconds
            logits, layer = recorded(input_ids, mask)
        assert layer.tolist() == expected.exit_layer.tolist()
        torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)
        layers.append(layer.tolist())
    assert layers[0] != layers[1]


@pytest.mark.parametrize("variant", [*CLASSES, "berxit-learned", "dact-bert-entropy"])
@torch.no_grad()
def test_a_trace_of_some_texts_answers_others_as_the_model_does(variant: str) -> None:
    model = build(variant)
    threshold, batches = two_batches(model)
    traced = torch.jit.trace(Answer(model, exit_threshold=threshold), batches[0], check_trace=False)
    check(model, traced, threshold, batches)


@pytest.mark.parametrize("encoder", ["roberta", "albert", "modernbert", "mpnet", "distilbert"])
@torch.no_grad()
def test_a_trace_on_every_kind_of_encoder(encoder: str) -> None:
    model = build("deebert", encoder)
    threshold, batches = two_batches(model)
    traced = torch.jit.trace(Answer(model, exit_threshold=threshold), batches[0], check_trace=False)
    check(model, traced, threshold, batches)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_trace_with_every_head(head: str) -> None:
    model = build("deebert", "roberta", exit_head=head)
    inputs = pairs_of(model, types=False)
    traced = torch.jit.trace(Answer(model), tuple(value[:2] for value in inputs.values()), check_trace=False)
    others = [value[2:4] for value in inputs.values()]
    torch.testing.assert_close(traced(*others)[0], model(*others).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_trace_of_texts_without_padding_answers_padded_ones() -> None:
    model = build("fastbert")
    _, ((input_ids, mask), other) = two_batches(model)
    traced = torch.jit.trace(Answer(model), (input_ids, torch.ones_like(mask)), check_trace=False)
    torch.testing.assert_close(traced(*other)[0], model(*other).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_trace_of_some_token_depths_answers_for_others() -> None:
    model = build("depth-adaptive", depth_source="reconstruction", exit_threshold=1.0)
    inputs = inputs_of(model, "none")
    depths = torch.randint(1, 4, (2, *inputs["input_ids"].shape), generator=torch.Generator().manual_seed(0))

    class Given(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, token_depths: Tensor) -> Tensor:
            return self.model(**inputs, token_depths=token_depths).logits

    traced = torch.jit.trace(Given(), depths[0].clamp(max=1), check_trace=False)
    torch.testing.assert_close(traced(depths[1]), Given()(depths[1]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_trace_of_some_labels_has_the_loss_of_others() -> None:
    model = build("deebert")
    inputs, labels = inputs_of(model), labels_of(model)

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, labels: Tensor) -> Tensor:
            return self.model(**inputs, labels=labels).loss

    traced = torch.jit.trace(Loss(), labels.int(), check_trace=False)
    torch.testing.assert_close(traced(labels.flip(0).int()), Loss()(labels.flip(0)))


@torch.no_grad()
def test_the_old_onnx_exporter_records_all_layers() -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = build("deebert")
    threshold, batches = two_batches(model)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["input_ids", "attention_mask"], "output_names": list(ANSWER)}
        answer = Answer(model, exit_threshold=threshold).eval()  # the exporter restores the mode of what it is given
        torch.onnx.export(answer, batches[0], file, dynamo=False, **names)
    session = runtime.InferenceSession(file.getvalue())

    def run(input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        feed = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return [torch.tensor(value) for value in session.run(list(ANSWER), feed)]

    check(model, run, threshold, batches)


@pytest.mark.parametrize("method", CLASSES)
@torch.no_grad()
def test_what_lets_rows_leave_cannot_be_recorded(method: str) -> None:
    model = build(method)
    threshold, batches = two_batches(model)

    class Answers(Answer):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            return self.model.answers(inputs, **self.options)[:2]

    with pytest.raises(ValueError, match=r"early exit cannot be recorded as a graph .*; record model\(...\)"):
        torch.jit.trace(Answers(model, exit_threshold=threshold), batches[0], check_trace=False)
