"""Compiled layers, device maps and offloaded weights change where and how a model runs, not what it says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import infer_auto_device_map
from accelerate.utils import get_balanced_memory
from helpers.predictions import silent
from helpers.tiny import CLASSES, FAMILIES, build, inputs_of, thresholds_between, trace_of
from transformers import AutoModelForSequenceClassification, BertConfig

from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.encoder_layers import family_of

Model = EarlyExitForSequenceClassification
every_method = pytest.mark.parametrize("method", CLASSES)


@torch.no_grad()
def check(found: Any, model: Model, atol: float = 1e-5) -> None:
    """Full depth, early exit in a batch and `predict` say what the plain model says."""
    inputs = inputs_of(model)
    trace = trace_of(model, inputs)
    threshold = thresholds_between(trace)[0]
    expected = model(**inputs, exit_threshold=threshold)
    torch.testing.assert_close(trace_of(found, inputs).exit_logits, trace.exit_logits, atol=atol, rtol=1e-4)
    early = found(**inputs, exit_threshold=threshold)
    torch.testing.assert_close(early.logits, expected.logits, atol=atol, rtol=1e-4)
    assert early.exit_layer.tolist() == expected.exit_layer.tolist()
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    rows = [{name: value[row, :count].tolist() for name, value in inputs.items()} for row, count in enumerate(lengths)]
    predicted = silent(found, rows, exit_threshold=threshold)
    torch.testing.assert_close(predicted.logits, expected.logits, atol=atol, rtol=1e-4)
    assert predicted.exit_layer.tolist() == expected.exit_layer.tolist()


def saved(method: str, family: str, folder: Path) -> Model:
    model = build(method, family)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_compiled_layers(family: str) -> None:
    model = build("deebert", family)
    for layer in family_of(model.encoder.config).layers(model.encoder):
        layer.compile(dynamic=True, backend="eager")
    check(model, build("deebert", family))
    assert model.state_dict().keys() == build("deebert", family).state_dict().keys()


@every_method
def test_a_device_map(method: str, tmp_path: Path) -> None:
    model = saved(method, "bert", tmp_path)
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path, device_map="auto")
    check(found.eval(), model)


@every_method
def test_a_device_map_keeps_the_encoder_on_one_device(method: str) -> None:
    with torch.device("meta"):
        model = CLASSES[method](CLASSES[method].config_class(encoder_config=BertConfig(), num_labels=3))
    whole = {"no_split_module_classes": list(model._no_split_modules)}
    memory = get_balanced_memory(model, {0: 2**30, 1: 2**30, 2: 2**30}, **whole)
    assert infer_auto_device_map(model, memory, **whole) == {"": 0}


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"deberta-v2"}))  # Transformers' own cannot be offloaded
def test_offloaded_weights(family: str, tmp_path: Path) -> None:
    model = saved("berxit", family, tmp_path / "model")
    places = {name: "disk" if name == "encoder" else "cpu" for name, _ in model.named_children()}
    found = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded"
    )
    assert next(found.encoder.parameters()).is_meta
    check(found.eval(), model)


@every_method
@torch.no_grad()
def test_bfloat16_by_dtype_and_by_the_checkpoint(method: str, tmp_path: Path) -> None:
    saved(method, "bert", tmp_path / "wide")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "wide", dtype=torch.bfloat16).eval()
    model.save_pretrained(tmp_path / "half")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "half", dtype="auto").eval()
    assert again.dtype == torch.bfloat16
    inputs = inputs_of(model)
    assert torch.equal(trace_of(again, inputs).exit_logits, trace_of(model, inputs).exit_logits)
