"""Quantized to int8, every method answers nearly as before: PyTorch's dynamic quantization, and torchao's."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from helpers.tiny import CLASSES, VARIANTS, build, inputs_of, predicted, thresholds_between, trace_of
from torch import nn

from adaexit_hf.models import EarlyExitForSequenceClassification

Model = EarlyExitForSequenceClassification
CASES = [(variant, "bert") for variant in VARIANTS] + [
    (variant, encoder) for encoder in ("roberta", "modernbert") for variant in (*CLASSES, "berxit-learned")
]
SAME_CLASS, SAME_LAYER = 0.95, 0.85  # measured on 48 texts: at least 0.965 of all exits' answers, 0.895 of the layers
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def dynamic(model: Model) -> Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)


def torchao(kind: str) -> Callable[[Model], Model]:
    def quantize(model: Model) -> Model:
        library = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
        quantized = copy.deepcopy(model)
        library.quantize_(quantized, getattr(library, kind)())
        return quantized

    return quantize


@pytest.mark.parametrize(
    "quantize",
    [dynamic, torchao("Int8WeightOnlyConfig"), torchao("Int8DynamicActivationInt8WeightConfig")],
    ids=["dynamic", "torchao-weights", "torchao-dynamic"],
)
@pytest.mark.parametrize(("variant", "encoder"), CASES)
@torch.no_grad()
def test_a_quantized_model_agrees_with_the_trace_of_the_whole_one(
    variant: str, encoder: str, quantize: Callable[[Model], Model]
) -> None:
    model = build(variant, encoder)
    quantized = quantize(model)
    inputs = inputs_of(model, rows=48)
    trace, other = trace_of(model, inputs), trace_of(quantized, inputs)
    threshold = thresholds_between(trace)[0]
    layers = quantized(**inputs, exit_threshold=threshold).exit_layer
    assert (layers == predicted(model, trace, threshold)[1]).float().mean() >= SAME_LAYER
    if model.config.num_labels == 1:
        error = (other.exit_logits - trace.exit_logits).abs().mean()
        assert error < 0.1 * trace.exit_logits.std()
    else:
        same = other.exit_logits.argmax(dim=-1) == trace.exit_logits.argmax(dim=-1)
        assert same.float().mean() >= SAME_CLASS


@pytest.mark.parametrize("variant", ["pabee-regression", "berxit-learned", "dact-bert"])
def test_layers_with_one_output_are_initialized_and_saved_like_linear_ones(variant: str) -> None:
    model = build(variant)
    names = [name for name, value in model.state_dict().items() if value.shape[0] == 1 and value.dim() == 2]
    assert names
    for name in names:
        assert name.endswith(".weight")
        assert name.replace(".weight", ".bias") in model.state_dict()
        assert 0.1 < model.state_dict()[name].std() < 0.3  # 0.2 is the encoder's initializer_range
