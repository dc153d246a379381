"""A pruned model says of every sample of the trace what the whole model said."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import Row, clear_thresholds, new_model, texts
from helpers.tiny import ENCODERS, VARIANTS, build
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from adaexit_hf import ExitTrace, collect_trace
from adaexit_hf.inference import predict
from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.pruning.unused_layers import prune_unused_layers

CUT = [name for name in VARIANTS if not name.startswith("depth-adaptive")]
GROUPED = ("albert-groups", "albert-inner")


def variant(name: str, **kwargs: Any) -> EarlyExitForSequenceClassification:
    model_class, options = VARIANTS[name]
    return new_model(model_class.config_class.model_type, **options | kwargs).eval()


def that_leave(model: EarlyExitForSequenceClassification) -> tuple[list[Row], ExitTrace, float]:
    """Rows that leave before the last exit at a threshold, from as many exits as possible; their trace."""
    rows = texts(40)
    trace = collect_trace(model, rows, progress=False)
    candidates = []
    for threshold in clear_thresholds(trace):
        chosen = trace.exits_at(threshold)
        kept = (chosen < len(trace.exit_layers) - 1).nonzero().flatten()
        candidates.append((len(chosen[kept].unique()), len(kept), threshold, kept))
    _, count, threshold, kept = max(candidates, key=lambda candidate: candidate[:3])
    assert count >= 4
    return [rows[place] for place in kept.tolist()], trace.take(kept), threshold


def check(model: EarlyExitForSequenceClassification, smaller: Any, rows: list[Row], trace: ExitTrace) -> None:
    """Same answers after the same layers, by the threshold in the new config, in batches and one by one."""
    logits, layers = trace.at(smaller.config.exit_threshold)
    found = predict(smaller, rows, progress=False)
    assert found.exit_layer.tolist() == layers.tolist()
    torch.testing.assert_close(found.logits, logits, rtol=0, atol=1e-5)
    again = collect_trace(smaller, rows, batch_size=1, progress=False)
    torch.testing.assert_close(again.at(smaller.config.exit_threshold)[0], logits, rtol=0, atol=1e-5)
    assert again.at(smaller.config.exit_threshold)[1].tolist() == layers.tolist()
    assert smaller.config.exit_layers[-1] == smaller.config.encoder_config.num_hidden_layers == int(layers.max())
    assert smaller.num_parameters() < model.num_parameters()
    assert type(smaller) is type(model)


@cache
def pruned(name: str) -> tuple[EarlyExitForSequenceClassification, list[Row], ExitTrace, float, Any]:
    model = variant(name)
    rows, trace, threshold = that_leave(model)
    return model, rows, trace, threshold, prune_unused_layers(model, trace, threshold)


@pytest.mark.parametrize("name", CUT)
def test_answers_stay_the_same(name: str) -> None:
    before = {key: value.clone() for key, value in variant(name).state_dict().items()}
    model, rows, trace, threshold, smaller = pruned(name)
    assert len(trace.exits_at(threshold).unique()) >= 2
    check(model, smaller, rows, trace)
    assert model.config.exit_layers == [1, 2, 3, 4]
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("name", CUT)
def test_a_pruned_model_saves_and_loads(name: str, tmp_path: Path) -> None:
    _, rows, _, threshold, smaller = pruned(name)
    smaller.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    first, second = (predict(each, rows, progress=False) for each in (smaller, loaded))
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.exit_layer, second.exit_layer)
    assert loaded.config.exit_threshold == threshold


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name not in GROUPED])
def test_every_family_can_be_cut(encoder: str) -> None:
    model = build("deebert", encoder)
    rows, trace, threshold = that_leave(model)
    check(model, prune_unused_layers(model, trace, threshold), rows, trace)


@pytest.mark.parametrize("name", ["right-tool", "dact-bert", "deebert"])
def test_not_every_layer_has_an_exit(name: str) -> None:
    model = variant(name, exit_layers=[1, 3, 4])
    rows, trace, threshold = that_leave(model)
    check(model, prune_unused_layers(model, trace, threshold), rows, trace)


def test_a_last_exit_of_another_kind_is_cut_off() -> None:
    model = variant("deebert", exit_head="attention-pool", last_exit_head="dense")
    rows, trace, threshold = that_leave(model)
    check(model, prune_unused_layers(model, trace, threshold), rows, trace)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_all_at_one_exit_with_thresholds_and_temperatures_of_their_own(layer: int) -> None:
    thresholds = [1.0 if each < layer else 0.0 for each in (1, 2, 3, 4)]
    model = variant("berxit", exit_threshold=thresholds, exit_temperatures=[1.5, 2.0, 2.5, 3.0])
    rows = texts(12)
    trace = collect_trace(model, rows, progress=False)
    smaller = prune_unused_layers(model, trace)
    check(model, smaller, rows, trace_for(smaller, trace))
    assert smaller.config.exit_threshold == thresholds[:layer]
    assert smaller.config.exit_temperatures == [1.5, 2.0, 2.5, 3.0][:layer]


def trace_for(smaller: Any, trace: ExitTrace) -> ExitTrace:
    """The whole model's trace up to the last exit that is left: its list of thresholds is as short."""
    exits = len(smaller.config.exit_layers)
    layers = trace.exit_layers[:exits]
    return ExitTrace(trace.logits[:, :exits], trace.scores[:, :exits], trace.labels, layers, trace.ready)


def test_dact_stops_where_the_whole_model_did_and_can_be_let_stop_earlier() -> None:
    model = variant("dact-bert", halting_bias=-4.0, exit_threshold=0.0)
    rows = texts(40)
    trace = collect_trace(model, rows, progress=False)
    kept = (trace.exits_at(0.0) < 3).nonzero().flatten()
    rows, trace = [rows[place] for place in kept.tolist()], trace.take(kept)
    smaller = prune_unused_layers(model, trace)
    assert smaller.config.bound_exits == 4
    check(model, smaller, rows, trace)
    layers = predict(smaller, rows, progress=False).exit_layer
    smaller.config.bound_exits = None
    earlier = predict(smaller, rows, progress=False)
    assert bool((earlier.exit_layer <= layers).all())
    assert torch.equal(earlier.logits.argmax(dim=1), trace.at(0.0)[0].argmax(dim=1))  # the rule is sound


@pytest.mark.parametrize("value", [3, 4.0, True, "4"])
def test_the_bound_cannot_count_fewer_exits_than_there_are(value: Any) -> None:
    with pytest.raises(ValueError, match="bound_exits: got .*; pass a whole number from 4, the number of exits, or"):
        new_model("dact-bert", bound_exits=value)


def test_device_dtype_and_mode_are_those_of_the_model() -> None:
    model = variant("deebert").to(torch.bfloat16).train()
    _, trace, threshold = that_leave(model)
    smaller = prune_unused_layers(model, trace, threshold)
    assert (smaller.dtype, smaller.training) == (torch.bfloat16, True)
    assert all(each.requires_grad for each in smaller.parameters())


def test_a_trace_that_needs_every_layer_is_refused() -> None:
    model = variant("deebert", exit_threshold=0.0)
    trace = collect_trace(model, texts(5), progress=False)
    message = "trace: 5 of 5 samples run to the last layer, 4, at exit_threshold=0.0, so no layer is unused; pass"
    with pytest.raises(ValueError, match=message):
        prune_unused_layers(model, trace)


@pytest.mark.parametrize("name", ["deebert", "pabee"])
def test_no_threshold(name: str) -> None:
    model = variant(name)
    trace = collect_trace(model, texts(3), progress=False)
    with pytest.raises(ValueError, match="exit_threshold: got None, full depth, which uses every layer; pass the"):
        prune_unused_layers(model, trace)


def test_tokens_that_skip_layers() -> None:
    model = variant("depth-adaptive")
    trace = collect_trace(model, texts(3), progress=False)
    with pytest.raises(
        ValueError, match="model: in 'depth-adaptive' each token has a depth that refers to the layers of this enc"
    ):
        prune_unused_layers(model, trace, 0.1)


@pytest.mark.parametrize("encoder", GROUPED)
def test_groups_of_layers_are_refused(encoder: str) -> None:
    model = build("deebert", encoder)
    _, trace, threshold = that_leave(model)
    with pytest.raises(ValueError, match="model: its ALBERT layers share the weights of . groups, and the number"):
        prune_unused_layers(model, trace, threshold)


OTHERS = [
    pytest.param(
        "deebert", {"exit_layers": [2, 4]}, r"trace: its exit_layers is \(2, 4\), that of the model is", id="exits"
    ),
    pytest.param(
        "deebert",
        {"num_labels": 2},
        "trace: its number of labels is 2, that of the model is 3; call collect_trace",
        id="labels",
    ),
    pytest.param("pabee", {}, "trace: its method is pabee, that of the model is deebert", id="method"),
    pytest.param(
        "deebert", {"exit_criterion": "margin"}, "trace: its criterion is margin, that of the model is", id="criterion"
    ),
]


@pytest.mark.parametrize(("method", "options", "message"), OTHERS)
def test_a_trace_of_another_model_is_refused(method: str, options: dict[str, Any], message: str) -> None:
    trace = collect_trace(new_model(method, **options), texts(3), progress=False)
    with pytest.raises(ValueError, match=message):
        prune_unused_layers(variant("deebert"), trace, 0.5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's
def test_an_adapter_is_to_be_merged_first() -> None:
    model = variant("deebert")
    rows, trace, threshold = that_leave(model)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["query"], r=2))
    with pytest.raises(TypeError, match="model: got a PeftModel; pass the model in it, e.g. model.merge_and_"):
        prune_unused_layers(wrapped, trace, threshold)
    with pytest.raises(ValueError, match="model: has no weights .*query.*; merge adapters first"):
        prune_unused_layers(wrapped.get_base_model(), trace, threshold)
    merged = wrapped.merge_and_unload()
    check(merged, prune_unused_layers(merged, trace, threshold), rows, trace)
