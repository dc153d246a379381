"""A model survives saving, loading, another dtype, another vocabulary, another attention implementation."""

from pathlib import Path

import pytest
import torch
from helpers.tiny import (
    CLASSES,
    CORE,
    EAGER_ONLY,
    FAMILIES,
    VARIANTS,
    build,
    config,
    encoder_config,
    inputs_of,
    trace_of,
)
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from adaexit_hf.models import METHODS, EarlyExitForSequenceClassification, EarlyExitModel

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_method = pytest.mark.parametrize("method", CLASSES)
every_family = pytest.mark.parametrize("encoder", FAMILIES)


def saved(model: EarlyExitForSequenceClassification, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@every_variant
def test_a_reloaded_model_says_the_same(variant: str, tmp_path: Path) -> None:
    model = build(variant, exit_layers=[1, 3])
    again = type(model).from_pretrained(saved(model, tmp_path))
    inputs = inputs_of(model)
    ours, theirs = trace_of(model, inputs), trace_of(again, inputs)
    assert torch.equal(ours.exit_logits, theirs.exit_logits)
    assert torch.equal(ours.exit_scores, theirs.exit_scores)


@every_family
def test_every_family_reloads(encoder: str, tmp_path: Path) -> None:
    model = build("berxit-learned", encoder)
    again = type(model).from_pretrained(saved(model, tmp_path))
    assert torch.equal(trace_of(model, inputs_of(model)).exit_logits, trace_of(again, inputs_of(model)).exit_logits)


@every_variant
def test_a_reloaded_config_is_equal(variant: str, tmp_path: Path) -> None:
    bounds = list(config(variant, exit_layers=[2, 3]).threshold_bounds)
    before = config(variant, exit_layers=[2, 3], exit_threshold=bounds)
    before.save_pretrained(tmp_path)
    after = AutoConfig.from_pretrained(tmp_path)
    assert type(after) is type(before)
    assert after.to_diff_dict() == before.to_diff_dict()


@every_method
def test_auto_classes_find_the_method(method: str, tmp_path: Path) -> None:
    saved(build(method), tmp_path)
    assert type(AutoModelForSequenceClassification.from_pretrained(tmp_path)) is METHODS[method]
    encoder = type(AutoModel.from_pretrained(tmp_path))
    assert issubclass(encoder, EarlyExitModel) and encoder.config_class is METHODS[method].config_class


@every_method
@torch.no_grad()
def test_auto_model_is_the_encoder_with_the_same_weights(method: str, tmp_path: Path) -> None:
    model = build(method)
    if getattr(model, "depth_table", None) is not None:
        model.depth_table.weight.fill_(3)  # words of lesser depth have other states than the encoder's
    bare, report = AutoModel.from_pretrained(saved(model, tmp_path), output_loading_info=True)
    inputs = inputs_of(model)
    states = model(**inputs, output_hidden_states=True).hidden_states
    real = inputs["attention_mask"].bool()
    assert torch.equal(bare(**inputs).last_hidden_state[real], states[-1][real])
    assert not report["missing_keys"] | report["unexpected_keys"]


@every_variant
@torch.no_grad()
def test_bfloat16(variant: str, tmp_path: Path) -> None:
    saved(build(variant), tmp_path)
    model = type(build(variant)).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    trace = trace_of(model, inputs_of(model))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert trace.exit_scores.dtype == torch.float32
    assert trace.exit_scores.isfinite().all()
    early = model(**inputs_of(model), exit_threshold=model.config.threshold_bounds[1])
    assert early.logits.dtype == trace.logits.dtype


@every_method
def test_a_bfloat16_checkpoint_stays_bfloat16(method: str, tmp_path: Path) -> None:
    model = build(method).to(torch.bfloat16)
    assert type(model).from_pretrained(saved(model, tmp_path)).dtype == torch.bfloat16


@every_method
def test_bfloat16_trains(method: str) -> None:
    model = build(method).to(torch.bfloat16).train()
    model(**inputs_of(model), labels=torch.arange(6) % 3).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)


# The table of words that may be resized is the encoder's, save in the depth-adaptive method, which has one beside it.
@pytest.mark.parametrize(
    ("method", "encoder"),
    [*((method, "bert") for method in CLASSES), *(("depth-adaptive", encoder) for encoder in CORE[1:])],
)
def test_a_resized_vocabulary_reloads(method: str, encoder: str, tmp_path: Path) -> None:
    model = build(method, encoder)
    model.resize_token_embeddings(80)
    again = type(model).from_pretrained(saved(model, tmp_path))
    inputs = {"input_ids": torch.full((2, 4), 79)}
    assert again.config.encoder_config.vocab_size == 80
    assert torch.equal(trace_of(model, inputs).exit_logits, trace_of(again, inputs).exit_logits)


@every_family
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_implementation_reaches_the_encoder(encoder: str, attention: str, tmp_path: Path) -> None:
    if attention == "sdpa" and encoder in EAGER_ONLY:
        pytest.skip("the family has only eager attention")
    saved(build("deebert", encoder), tmp_path)
    model = CLASSES["deebert"].from_pretrained(tmp_path, attn_implementation=attention)
    assert model.encoder.config._attn_implementation == attention
    assert config("deebert", encoder, attn_implementation=attention)._attn_implementation == attention


@pytest.mark.parametrize("encoder", EAGER_ONLY)
def test_sdpa_is_refused_where_the_family_has_none(encoder: str, tmp_path: Path) -> None:
    saved(build("deebert", encoder), tmp_path)
    with pytest.raises(ValueError, match="does not support an attention implementation"):
        CLASSES["deebert"].from_pretrained(tmp_path, attn_implementation="sdpa")


@every_family
def test_a_loaded_model_keeps_the_padding_mask(encoder: str, tmp_path: Path) -> None:
    model = CLASSES["deebert"].from_pretrained(saved(build("deebert", encoder), tmp_path))
    inputs = inputs_of(model)
    masked = trace_of(model, inputs).logits
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 7)
    positions = torch.arange(9).repeat(6, 1)  # RoBERTa and MPNet number tokens by their ids
    changed = trace_of(model, inputs | {"position_ids": positions}).logits
    unchanged = trace_of(model, inputs_of(model) | {"position_ids": positions}).logits
    assert masked.isfinite().all()
    torch.testing.assert_close(changed, unchanged, atol=1e-5, rtol=1e-5)


@every_method
def test_a_published_config_has_no_path(method: str) -> None:
    source = encoder_config()
    source._name_or_path = "/home/me/bert"
    made = CLASSES[method].config_class(encoder_config=source)
    assert "/home/me" not in made.to_json_string()


@every_method
def test_halting_and_exits_are_initialized_when_weights_are_missing(method: str, tmp_path: Path) -> None:
    model = build(method)
    kept = {name: value for name, value in model.state_dict().items() if name.startswith("encoder.")}
    model.save_pretrained(tmp_path, state_dict=kept)
    again = type(model).from_pretrained(tmp_path)
    for name, parameter in again.named_parameters():
        assert parameter.isfinite().all() and parameter.abs().max() <= 3, name
    found, new = (torch.cat([each.weight.flatten() for each in made.classifiers]).std() for made in (again, model))
    assert 0.75 < found / new < 1.25
