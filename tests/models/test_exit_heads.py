"""Exit heads as an option of every method, against references written out for one text and one exit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import (
    CLASSES,
    FAMILIES,
    PAIRS,
    build,
    check_early_exit,
    encoder_config,
    labels_of,
    one_by_one,
    pairs_of,
    thresholds_between,
    trace_of,
)
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertModel

from adaexit_hf import DeeBertConfig, DeeBertForSequenceClassification, flops_per_exit
from adaexit_hf.hub.card_text import exit_heads
from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.configuration_early_exit import HEADS
from adaexit_hf.models.exit_heads import AttentionPool, SegmentPair, second_segment

NEW = ("attention-pool", "pair", "attention-block")


def states_of(model: EarlyExitForSequenceClassification, inputs: dict[str, Tensor]) -> list[Tensor]:
    """States (tokens, hidden) of one text after every layer."""
    length = int(inputs["attention_mask"].sum())
    text = {name: value[:, :length] for name, value in inputs.items()}
    return [state[0] for state in model.encoder(**text, output_hidden_states=True).hidden_states[1:]]


def by_hand(head: Any, states: Tensor, second: list[bool]) -> Tensor:
    """Logits of one text and exit, token by token; `second` says which tokens are of the second text."""
    if isinstance(head, SegmentPair):
        u = sum(state for state, later in zip(states, second, strict=True) if not later) / second.count(False)
        v = sum(state for state, later in zip(states, second, strict=True) if later) / second.count(True)
        read = torch.cat([u, v, (u - v).abs(), u * v])
    else:
        mean, part, queried = states.mean(dim=0), states.shape[1] // 8, []
        for number in range(8):
            weights = [(head.query.weight[number] @ state + head.query.bias[number]).exp() for state in states]
            own = states[:, number * part : (number + 1) * part]
            queried.append(sum(weight * value for weight, value in zip(weights, own, strict=True)) / sum(weights))
        read = torch.cat([mean, *queried])
    features = torch.tanh(head.dense.weight @ read + head.dense.bias)
    return head.classifier.weight @ features + head.classifier.bias


# Answers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["attention-pool", "pair"])
@torch.no_grad()
def test_every_exit_by_hand(head: str) -> None:
    model = build("deebert", exit_head=head, exit_pooling="mean")
    inputs = pairs_of(model)
    found = trace_of(model, inputs).exit_logits
    for row, (text, (first, second)) in enumerate(zip(one_by_one(inputs), PAIRS, strict=True)):
        later = [False] * (len(first) + 2) + [True] * (len(second) + 1)
        for index, states in enumerate(states_of(model, text)):
            torch.testing.assert_close(found[row, index], by_hand(model.exits[index], states, later))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", CLASSES)
def test_rows_leave_a_batch_as_they_do_alone(method: str, head: str) -> None:
    model = build(method, exit_head=head)
    inputs = pairs_of(model)
    assert len(check_early_exit(model, inputs, thresholds_between(trace_of(model, inputs)))) > 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", NEW)
def test_rows_leave_on_every_family(family: str, head: str) -> None:
    model = build("deebert", family, exit_head=head)
    inputs = pairs_of(model)
    check_early_exit(model, inputs, thresholds_between(trace_of(model, inputs)))


@pytest.mark.parametrize("head", NEW)
def test_padding_on_either_side_changes_nothing(head: str) -> None:
    model = build("deebert", "roberta", exit_head=head)
    right, left = (trace_of(model, pairs_of(model, side)).exit_logits for side in ("right", "left"))
    torch.testing.assert_close(right, left)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", CLASSES)
def test_every_exit_and_the_encoder_get_a_gradient(method: str, head: str) -> None:
    model = build(method, exit_head=head).train()
    for stage in model.stages:
        for objective in stage.objectives:
            model(**pairs_of(model), labels=labels_of(model, len(PAIRS)), objective=objective).loss.backward()
    unused = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not [name for name in unused if "pooler" not in name]


@pytest.mark.parametrize("head", HEADS)
def test_a_regression_starts_from_the_mean_label(head: str) -> None:
    model = build("berxit", num_labels=1, exit_head=head)
    model.prepare([{"input_ids": [3, 5, 2], "label": 1.0}, {"input_ids": [3, 6, 2], "label": 4.0}])
    assert [classifier.bias.item() for classifier in model.classifiers] == [2.5] * 3


# The texts of a pair -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "distilbert"])
def test_the_separator_divides_a_pair_as_token_types_do(family: str) -> None:
    model = build("deebert", family, exit_head="pair")
    given = pairs_of(model, types=True)
    assert torch.equal(
        second_segment(given["input_ids"], None, given["attention_mask"]),
        second_segment(None, given["token_type_ids"], given["attention_mask"]),
    )


def test_token_types_of_zeros_say_nothing() -> None:
    ids = torch.tensor([[3, 5, 2, 6, 2]])
    assert second_segment(ids, torch.zeros_like(ids), None).tolist() == [[0, 0, 0, 1, 1]]


def test_an_empty_second_text_is_its_separator() -> None:
    assert second_segment(torch.tensor([[3, 5, 2, 2, 0]]), None, torch.tensor([[1, 1, 1, 1, 0]])).tolist() == [
        [0, 0, 0, 1, 0]
    ]


def test_a_single_text_is_refused() -> None:
    model = build("deebert", "roberta", exit_head="pair")
    with pytest.raises(ValueError, match="input_ids: row 1 is a single text, but exit_head='pair' compares two"):
        model(torch.tensor([[3, 5, 2, 6, 2], [3, 5, 6, 7, 2]]))


def test_embeddings_without_token_types_are_refused() -> None:
    model = build("deebert", "roberta", exit_head="pair")
    with pytest.raises(ValueError, match="token_type_ids: missing; exit_head='pair' needs to know which tokens"):
        model(inputs_embeds=torch.zeros(1, 3, 32))


# Loading, saving, building -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", NEW)
@pytest.mark.parametrize("method", CLASSES)
def test_a_saved_head_is_loaded(method: str, head: str, tmp_path: Path) -> None:
    model = build(method, exit_head=head)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.exit_head == head
    inputs = pairs_of(model)
    assert torch.equal(trace_of(model, inputs).exit_logits, trace_of(loaded, inputs).exit_logits)


def test_a_checkpoint_without_the_setting_has_the_papers_head(tmp_path: Path) -> None:
    values = build("deebert").config.to_dict()
    del values["exit_head"]
    assert DeeBertConfig.from_dict(values).exit_head == "paper"


def test_another_head_is_not_loaded(tmp_path: Path) -> None:
    build("deebert", exit_head="pair").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="exit_head: got 'dense', but the checkpoint was trained with 'pair'"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, exit_head="dense")


@pytest.mark.parametrize(("method", "head"), [("deebert", "dense"), ("fastbert", "attention-block")])
def test_the_papers_head_by_its_name_is_the_same(method: str, head: str, tmp_path: Path) -> None:
    model = build(method)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, exit_head=head)
    inputs = pairs_of(model)
    assert torch.equal(trace_of(model, inputs).exit_logits, trace_of(loaded, inputs).exit_logits)
    assert not exit_heads(loaded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exit_head": "pool"}, "exit_head: got 'pool'; choose one of 'paper', 'dense', 'attention-pool', 'pair'"),
        ({"exit_head": "pair", "exit_pooling": "first"}, "exit_pooling: got 'first', but exit_head='pair' reads"),
    ],
)
def test_a_wrong_setting_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeeBertConfig(encoder_config(), **options)


def test_the_size_of_a_block_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="classifier_size, classifier_heads: got 64, 2, which exit_head='dense'"):
        build("fastbert", exit_head="dense", classifier_size=64)


@pytest.mark.parametrize("head", NEW)
def test_an_encoder_becomes_a_model_with_the_head(head: str, tmp_path: Path) -> None:
    encoder = BertModel(encoder_config())
    encoder.save_pretrained(tmp_path)
    model = DeeBertForSequenceClassification.from_encoder_pretrained(tmp_path, num_labels=3, exit_head=head)
    assert trace_of(model.eval(), pairs_of(model)).exit_logits.isfinite().all()


@pytest.mark.parametrize("head", HEADS)
def test_states_of_a_frozen_encoder_give_the_same_exits(head: str) -> None:
    model = build("deebert", exit_head=head)
    inputs = pairs_of(model, side="left")
    states = model.states_for_exits({"position_ids": None, "inputs_embeds": None, **inputs})
    output = model(**inputs, exit_states=states, early_exit=False)
    torch.testing.assert_close(output.exit_logits, trace_of(model, inputs).exit_logits)


# A last exit of another kind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", ["deebert", "berxit", "fastbert"])
@torch.no_grad()
def test_the_last_exit_may_read_something_else(method: str, head: str) -> None:
    model = build(method, exit_head=head, exit_pooling="mean", last_exit_head="dense")
    inputs = pairs_of(model)
    found = trace_of(model, inputs)
    for row, text in enumerate(one_by_one(inputs)):
        expected = model.exits[-1](states_of(model, text)[-1][:1])  # BERT's classifier reads the first token
        torch.testing.assert_close(found.logits[row], expected[0])
    assert len(check_early_exit(model, inputs, thresholds_between(found))) > 1
    states = model.states_for_exits({"position_ids": None, "inputs_embeds": None, **inputs})
    output = model(**inputs, exit_states=states, early_exit=False)
    torch.testing.assert_close(output.exit_logits, found.exit_logits)


def test_a_last_exit_of_another_kind_is_saved_and_cannot_be_changed(tmp_path: Path) -> None:
    model = build("berxit", exit_head="pair", last_exit_head="dense")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    inputs = pairs_of(model)
    assert torch.equal(trace_of(model, inputs).exit_logits, trace_of(loaded, inputs).exit_logits)
    assert "Every exit but the last is a head that compares the two texts" in exit_heads(loaded)
    assert "The last exit is the encoder family's own classification head" in exit_heads(loaded)
    with pytest.raises(ValueError, match="last_exit_head: got None, but the checkpoint was trained with 'dense'"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, last_exit_head=None)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("deebert", {"last_exit_head": "pair"}, "last_exit_head: got 'pair'; choose one of 'dense'"),
        ("pabee", {"last_exit_head": "dense"}, "last_exit_head: got 'dense', but the exits of pabee share layers"),
        (
            "berxit",
            {"last_exit_head": "dense", "exit_head": "attention-block", "exit_criterion": "learned"},
            "last_exit_head: got 'dense' with learning_to_exit and exit_head='attention-block'",
        ),
    ],
)
def test_a_last_exit_that_cannot_be_is_refused(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(method, **options)


@pytest.mark.parametrize("tokens", [1, 7])
def test_flops_of_a_pair_are_counted(tokens: int) -> None:
    pair, dense = (
        flops_per_exit(build("deebert", exit_head=head, exit_pooling="mean"), tokens)[0] for head in ("pair", "dense")
    )
    assert pair - dense == 2 * 3 * 32 * 32


def test_flops_of_the_heads_are_counted() -> None:
    """Matrix products of one exit after layer 1: 2 * inputs * outputs for each vector that a matrix multiplies."""
    size, tokens, labels = 32, 7, 3
    counts = {
        head: flops_per_exit(build("deebert", exit_head=head, exit_pooling="mean"), tokens) for head in HEADS[:2]
    }
    dense = 2 * size * size + 2 * size * labels
    pool = 2 * tokens * size * 8 + 2 * tokens * size + 2 * 2 * size * size + 2 * size * labels
    assert counts["attention-pool"][0] - counts["dense"][0] == pool - dense
    assert isinstance(build("deebert", exit_head="attention-pool").exits[0], AttentionPool)
