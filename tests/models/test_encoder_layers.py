"""Driving an encoder layer by layer gives exactly what the stock model gives; the alarm for changes upstream."""

from typing import Any

import pytest
import torch
from helpers.tiny import EAGER_ONLY, ENCODERS, FAMILIES, batch, build, encoder, encoder_config, gradients, inputs_of
from torch import Tensor
from transformers import GPT2Config, PreTrainedModel, set_seed

from adaexit_hf import DeeBertConfig, DeeBertForSequenceClassification
from adaexit_hf.models.encoder_layers import embed_inputs, family_of, run_layer

IMPLEMENTATIONS = [
    (name, attention)
    for name in ENCODERS
    for attention in ("eager", "sdpa")
    if attention == "eager" or not name.startswith(EAGER_ONLY)
]


def layerwise(model: PreTrainedModel, **inputs: Any) -> list[Tensor]:
    """Input of layer 1 and output of every layer; the last one as exit heads read it."""
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
    hidden, context = embed_inputs(model, *(inputs.get(name) for name in names))
    states = [hidden]
    for index, layer in enumerate(family_of(model.config).layers(model)):
        hidden, _ = run_layer(model, index, layer, hidden, context)
        states.append(hidden)
    return [*states[:-1], family_of(model.config).finish(model, hidden)]


def stock(model: PreTrainedModel, **inputs: Any) -> list[Tensor]:
    states = model(**inputs, output_hidden_states=True).hidden_states
    return list(states[:: getattr(model.config, "inner_group_num", 1)])  # ALBERT records its inner layers


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for depth, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(mine, other), f"depth {depth}: difference {(mine - other).abs().max()}"


@pytest.mark.parametrize(("name", "attention"), IMPLEMENTATIONS)
@torch.no_grad()
def test_states_are_the_stock_models(name: str, attention: str, padding: str) -> None:
    model = encoder(name, attention)
    inputs = batch(model.config, padding)
    assert_equal(layerwise(model, **inputs), stock(model, **inputs))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("name", "attention"), IMPLEMENTATIONS)
def test_gradients_are_the_stock_models(name: str, attention: str, training: bool) -> None:
    model = encoder(name, attention).train(training)
    inputs, found = batch(model.config), []
    for run in (layerwise, stock):
        model.zero_grad()
        set_seed(1)
        torch.stack([state.square().sum() for state in run(model, **inputs)]).sum().backward()
        found.append(gradients(model))
    assert all(value is not None for value in found[1].values())
    unequal = [key for key, value in found[0].items() if not torch.equal(value, found[1][key])]
    assert not unequal


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_positions_are_passed_on(name: str) -> None:
    model = encoder(name)
    inputs = batch(model.config, "none")
    positions = torch.arange(2, 11)[None].repeat(len(inputs["input_ids"]), 1) + torch.arange(6)[:, None]
    assert_equal(layerwise(model, **inputs, position_ids=positions), stock(model, **inputs, position_ids=positions))


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_embeddings_are_passed_on(name: str) -> None:
    model = encoder(name)
    inputs = batch(model.config)
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids")) + 1
    assert_equal(layerwise(model, **inputs), stock(model, **inputs))


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_dropping_rows_changes_nothing_for_the_others(name: str) -> None:
    model, kept = encoder(name), torch.tensor([1, 4])
    inputs = batch(model.config)
    positions = torch.arange(2, 11)[None] + torch.arange(6)[:, None]
    hidden, context = embed_inputs(model, inputs["input_ids"], inputs["attention_mask"], None, positions, None)
    layers = family_of(model.config).layers(model)
    first, _ = run_layer(model, 0, layers[0], hidden, context)
    full, _ = run_layer(model, 1, layers[1], first, context)
    shrunk, _ = run_layer(model, 1, layers[1], first[kept], context.select(kept))
    torch.testing.assert_close(shrunk, full[kept], atol=1e-5, rtol=0)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot run 'gpt2' layer by layer; supported: albert, bert, .*encoder_"):
        family_of(GPT2Config())


@pytest.mark.parametrize(
    ("name", "limit"), [("bert", 32), ("roberta", 30), ("mpnet", 30), ("deberta-v2", None), ("modernbert", None)]
)
def test_longest_text(name: str, limit: int | None) -> None:
    config = encoder_config(name)
    assert family_of(config).max_tokens(config) == limit


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_a_model_returns_the_stock_states(name: str) -> None:
    model = build("deebert", name)
    inputs = inputs_of(model)
    assert_equal(list(model(**inputs, output_hidden_states=True).hidden_states), stock(model.encoder, **inputs))


@pytest.mark.parametrize("padding", ["right", "none"])  # on the left: see test_padded_batches.py
@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_a_model_returns_the_stock_attentions(name: str, padding: str) -> None:
    model = build("deebert", name, attn_implementation="eager")
    inputs = inputs_of(model, padding)
    theirs = model.encoder(
        **inputs, output_attentions=True
    ).attentions  # first: it must not make the model record twice
    assert_equal(list(model(**inputs, output_attentions=True).attentions), list(theirs))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_live_config_keeps_the_padding_mask(name: str) -> None:
    live = encoder(name)
    model = DeeBertForSequenceClassification(DeeBertConfig(encoder_config=live.config)).eval()
    model.encoder.load_state_dict(live.state_dict())
    inputs = inputs_of(model)
    ours = model(**inputs, output_hidden_states=True).hidden_states
    assert_equal([ours[-1]], [live(**inputs).last_hidden_state])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_live_config_is_not_modified(name: str) -> None:
    live = encoder(name).config
    before, attention = live.to_dict(), live._attn_implementation
    DeeBertForSequenceClassification(DeeBertConfig(encoder_config=live, num_labels=5, attn_implementation="eager"))
    assert (live.to_dict(), live._attn_implementation) == (before, attention)
