"""What every method owes: early exit in batches is what one full-depth trace predicts, and calls do as documented."""

import pytest
import torch
from helpers.tiny import (
    CLASSES,
    CORE,
    ENCODERS,
    FAMILY_METHODS,
    PADDED_CASES,
    VARIANTS,
    build,
    check_early_exit,
    inputs_of,
    labels_of,
    thresholds_between,
    trace_of,
)

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_method = pytest.mark.parametrize("method", CLASSES)
core_encoders = pytest.mark.parametrize("encoder", CORE)


@pytest.mark.parametrize(("variant", "encoder", "padding"), PADDED_CASES)
def test_early_exit_is_what_the_trace_predicts(variant: str, encoder: str, padding: str) -> None:
    labels = {} if build(variant).config.num_labels == 1 else {"num_labels": 2}  # two: some exits shall agree
    model = build(variant, encoder, **labels)
    inputs = inputs_of(model, padding, rows=12)
    thresholds = [*model.config.threshold_bounds, *thresholds_between(trace_of(model, inputs))]
    assert len(check_early_exit(model, inputs, thresholds)) > 1


@pytest.mark.parametrize("method", FAMILY_METHODS)
@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name not in CORE])
def test_early_exit_on_every_family(method: str, encoder: str) -> None:
    model = build(method, encoder)
    inputs = inputs_of(model)
    check_early_exit(model, inputs, thresholds_between(trace_of(model, inputs)))


@every_variant
def test_a_subset_of_exits_does_as_its_trace_predicts(variant: str) -> None:
    model = build(variant, "roberta", exit_layers=[2, 4])
    inputs = inputs_of(model)
    thresholds = [*model.config.threshold_bounds, *thresholds_between(trace_of(model, inputs))]
    assert check_early_exit(model, inputs, thresholds) <= {2, 4}
    assert trace_of(model, inputs).exit_scores.shape == (6, 2)


@every_variant
def test_each_exit_may_have_a_threshold(variant: str) -> None:
    model = build(variant, "roberta")
    inputs = inputs_of(model)
    low, high = model.config.threshold_bounds
    between = thresholds_between(trace_of(model, inputs))[0]
    check_early_exit(model, inputs, [[low, high, between, low], [high, between, low, high]])


@every_method  # what its options change are exits, which read no positions
def test_positions_leave_with_their_rows(method: str) -> None:
    for encoder in ("bert", "modernbert"):
        model = build(method, encoder)
        inputs = inputs_of(model) | {"position_ids": torch.arange(9) + torch.arange(6)[:, None]}
        check_early_exit(model, inputs, thresholds_between(trace_of(model, inputs)))


@every_method
def test_exits_that_read_all_tokens_need_to_know_the_pads(method: str) -> None:
    model = build(method, exit_pooling="mean")
    inputs = inputs_of(model) | {"attention_mask": torch.ones(6, 1, 9, 9)}
    with pytest.raises(ValueError, match=r"attention_mask: got shape \(6, 1, 9, 9\); .* shape \(batch, tokens\)"):
        model(**inputs)


@every_variant
@torch.no_grad()
def test_no_threshold_is_full_depth(variant: str) -> None:
    model = build(variant, exit_threshold=None)
    inputs = inputs_of(model)
    output, trace = model(**inputs), trace_of(model, inputs)
    assert output.exit_layer.tolist() == [3] * 6
    assert torch.equal(output.logits, trace.exit_logits[:, -1])


@every_method
@torch.no_grad()
def test_the_call_overrides_the_configs_threshold(method: str) -> None:
    low, high = build(method).config.threshold_bounds
    strict, loose = (build(method, exit_threshold=value) for value in (low, high))
    inputs = inputs_of(strict)
    assert strict(**inputs).exit_layer.tolist() != loose(**inputs).exit_layer.tolist()
    assert strict(**inputs, exit_threshold=high).exit_layer.tolist() == loose(**inputs).exit_layer.tolist()
    assert strict.config.exit_threshold == low


@every_variant
@torch.no_grad()
def test_the_trace_does_not_depend_on_the_threshold(variant: str) -> None:
    model, traces = build(variant), []
    for threshold in (None, *model.config.threshold_bounds):
        model.config.exit_threshold = threshold
        traces.append(trace_of(model, inputs_of(model)))
    assert all(torch.equal(traces[0].exit_scores, trace.exit_scores) for trace in traces[1:])
    assert all(torch.equal(traces[0].exit_logits, trace.exit_logits) for trace in traces[1:])


@every_method
@torch.no_grad()
def test_an_early_exit_has_no_trace(method: str) -> None:
    model = build(method, exit_threshold=build(method).config.threshold_bounds[0])
    output = model(**inputs_of(model))
    assert output.exit_logits is None
    assert output.exit_scores is None


@every_method
@torch.no_grad()
def test_early_exit_false_gives_the_trace(method: str) -> None:
    model = build(method, exit_threshold=build(method).config.threshold_bounds[0])
    output = model(**inputs_of(model), early_exit=False)
    assert output.exit_layer.tolist() == [3] * 6
    assert output.exit_logits.shape == (6, 3, 3)
    assert output.exit_scores.shape == (6, 3)
    assert torch.equal(output.logits, output.exit_logits[:, -1])


@every_method
def test_early_exit_true_needs_a_threshold(method: str) -> None:
    model = build(method)
    low = model.config.threshold_bounds[0]
    inputs = inputs_of(model)
    message = r"early_exit: got True, which needs .* call model.eval\(\)"
    with pytest.raises(ValueError, match=message):
        model(**inputs, early_exit=True)
    with pytest.raises(ValueError, match=message):
        model(**inputs, early_exit=True, exit_threshold=low, objective=model.objectives[0])
    with pytest.raises(ValueError, match=message):
        model.train()(**inputs, early_exit=True, exit_threshold=low)


@every_method
def test_training_never_exits_early(method: str) -> None:
    model = build(method, exit_threshold=build(method).config.threshold_bounds[0]).train()
    output = model(**inputs_of(model), labels=labels_of(model))
    assert output.exit_layer.tolist() == [3] * 6
    assert output.exit_scores.shape == (6, 3)
    assert output.loss.requires_grad


@every_method
@core_encoders
@torch.no_grad()
def test_asking_for_states_changes_no_answer(method: str, encoder: str) -> None:
    model = build(method, encoder, attn_implementation="eager")
    inputs = inputs_of(model)
    threshold = thresholds_between(trace_of(model, inputs))[0]
    plain = model(**inputs, exit_threshold=threshold)
    full = model(**inputs, exit_threshold=threshold, output_hidden_states=True, output_attentions=True)
    depth = model.config.encoder_config.num_hidden_layers
    assert (len(full.hidden_states), len(full.attentions)) == (depth + 1, depth)
    assert full.exit_layer.tolist() == plain.exit_layer.tolist()
    torch.testing.assert_close(full.logits, plain.logits, atol=1e-5, rtol=1e-5)


@every_method
@torch.no_grad()
def test_a_tuple_has_the_fields_in_order(method: str) -> None:
    model = build(method)
    inputs = inputs_of(model) | {"labels": labels_of(model)}
    output = model(**inputs)
    values = model(**inputs, return_dict=False)
    assert list(output) == ["loss", "logits", "exit_layer", "exit_logits", "exit_scores"]
    assert all(torch.equal(value, output[name]) for value, name in zip(values, output, strict=True))


@every_variant
@torch.no_grad()
def test_the_loss_in_eval_is_that_of_the_answer(variant: str) -> None:
    model = build(variant)
    inputs, labels = inputs_of(model), labels_of(model)
    threshold = thresholds_between(trace_of(model, inputs))[0]
    output = model(**inputs, labels=labels, exit_threshold=threshold)
    torch.testing.assert_close(output.loss, model.task_loss(output.logits, labels))


@every_variant
@torch.no_grad()
def test_labels_may_come_as_a_column(variant: str) -> None:
    model = build(variant)
    inputs, labels = inputs_of(model), labels_of(model)
    assert model(**inputs, labels=labels[:, None]).loss == model(**inputs, labels=labels).loss


def test_exits_may_read_the_mean_of_the_tokens_without_pads():
    model = build("deebert", exit_pooling="mean")
    inputs = inputs_of(model, "left")
    states = model(**inputs, early_exit=False, output_hidden_states=True).hidden_states
    weights = inputs["attention_mask"][..., None].float()
    for index, head in enumerate(model.exits):
        mean = (states[index + 1] * weights).sum(dim=1) / weights.sum(dim=1)
        torch.testing.assert_close(trace_of(model, inputs).exit_logits[:, index], head(mean))


def test_exit_pooling_survives_saving(tmp_path):
    build("berxit", exit_pooling="mean").save_pretrained(tmp_path)
    assert CLASSES["berxit"].from_pretrained(tmp_path).config.exit_pooling == "mean"


def test_an_unknown_exit_pooling_is_refused():
    with pytest.raises(ValueError, match="exit_pooling: got 'max'; choose one of 'first', 'mean'"):
        build("berxit", exit_pooling="max")
