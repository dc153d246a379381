"""FLOPs of every exit against counts by hand."""

from typing import Any

import pytest
import torch
from helpers.runs import METHODS, new_model, texts
from helpers.tiny import ENCODERS, build

from adaexit_hf import collect_trace
from adaexit_hf.evaluation.flops import flops_per_exit
from adaexit_hf.models.padded_batches import padded_batch

SPARING = ("depth-adaptive",)


def layer_flops(queries: int, tokens: int, hidden: int = 32, inner: int = 37) -> int:
    """A layer whose output is read at so many places: two operations for every multiplication."""
    keys_and_values = 2 * tokens * hidden * hidden
    attention = 2 * queries * tokens * hidden  # scores, and mixed values
    at_queries = queries * (2 * hidden * hidden + 2 * hidden * inner)  # query and output; feed-forward
    return 2 * (keys_and_values + attention + at_queries)


@pytest.mark.parametrize("tokens", [1, 7, 16])
def test_flops_of_bert_are_those_counted_by_hand(tokens: int) -> None:
    layer, last, head = layer_flops(tokens, tokens), layer_flops(1, tokens), 2 * (32 * 32 + 32 * 3)
    expected = [layer + head, 2 * layer + 2 * head, 2 * layer + last + 3 * head]
    counted = flops_per_exit(build("deebert"), tokens)
    assert counted.dtype == torch.int64
    assert counted.tolist() == expected


def test_exits_on_the_way_count_and_only_those() -> None:
    layer, last, head = layer_flops(7, 7), layer_flops(1, 7), 2 * (32 * 32 + 32 * 3)
    model = new_model("deebert", exit_layers=[2, 4])
    assert flops_per_exit(model, 7).tolist() == [2 * layer + head, 3 * layer + last + 2 * head]
    all_tokens = new_model("deebert", exit_pooling="mean")
    assert flops_per_exit(all_tokens, 7).tolist() == [number * (layer + head) for number in (1, 2, 3, 4)]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_family_is_counted_the_same_whatever_computes_its_attention(encoder: str) -> None:
    counts = [flops_per_exit(build("deebert", encoder, attn_implementation=name), 7) for name in ("eager", "sdpa")] \
        if encoder not in ("mpnet", "deberta-v2", "deberta-v2-conv", "deberta-v2-absolute") \
        else [flops_per_exit(build("deebert", encoder), 7)] * 2  # fmt: skip
    assert torch.equal(counts[0], counts[1])
    assert bool((counts[0].diff() > 0).all())


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SPARING])
def test_longer_texts_cost_more_and_deeper_exits_too(name: str) -> None:
    model = new_model(name)
    counts = torch.stack([flops_per_exit(model, tokens) for tokens in (2, 3, 8, 16)])
    assert bool((counts.diff(dim=0) > 0).all()) and bool((counts.diff(dim=1) > 0).all())


@pytest.mark.parametrize("name", METHODS)
def test_a_trace_counts_what_each_row_costs_alone(name: str) -> None:
    model, rows = new_model(name), texts(6)  # of five lengths
    trace = collect_trace(model, rows, progress=False, count_flops=True)
    padded = padded_batch(rows, model.config.encoder_config)
    again = [{key: value[place].tolist() for key, value in padded.items()} for place in range(len(rows))]
    assert trace.flops is not None
    torch.testing.assert_close(trace.flops, collect_trace(model, again, progress=False, count_flops=True).flops)
    if name not in SPARING:
        expected = [flops_per_exit(model, len(row["input_ids"])).tolist() for row in rows]
        assert trace.flops.tolist() == expected


def test_tokens_that_skip_layers_cost_less() -> None:
    model, rows = new_model("depth-adaptive"), texts(5)
    spared = collect_trace(model, rows, progress=False, count_flops=True).flops
    model.depth_table.weight.fill_(4)
    whole = collect_trace(model, rows, progress=False, count_flops=True).flops
    assert spared is not None and whole is not None
    assert bool((spared <= whole).all())
    assert spared[:, -1].sum() < whole[:, -1].sum()


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_no_trace_in_the_model(training: bool) -> None:
    model = new_model("berxit").train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        flops_per_exit(model, 5)
    assert model.training is training
    assert all(
        parameter.grad is None and torch.equal(parameter, before[key]) for key, parameter in model.named_parameters()
    )


BAD: Any = [
    pytest.param("deebert", 0, "tokens: got 0; pass a whole number from 1, e.g. tokens=64", id="none"),
    pytest.param("deebert", 2.5, "tokens: got 2.5; pass a whole number from 1", id="half"),
    pytest.param("deebert", 17, "input_ids: got 17 tokens, but 'bert' has positions for 16", id="too long"),
    pytest.param(
        "depth-adaptive", 5, "model: in 'depth-adaptive' tokens skip layers, so the cost of a text", id="words"
    ),
]


@pytest.mark.parametrize(("method", "tokens", "message"), BAD)
def test_bad_lengths_are_refused(method: str, tokens: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flops_per_exit(new_model(method), tokens)


def test_attention_that_pytorch_does_not_count_is_refused() -> None:
    model = new_model("deebert")
    model.encoder.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        ValueError, match="model: PyTorch cannot count the FLOPs of attention implementation 'flash_attention"
    ):
        flops_per_exit(model, 5)
