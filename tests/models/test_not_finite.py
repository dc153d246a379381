"""NaN and infinite logits are no answer: their rows go on, the batch survives, a warning says so."""

import warnings

import pytest
import torch
from helpers.tiny import CLASSES, VARIANTS, build, inputs_of, predicted, thresholds_between, trace_of
from torch import Tensor

from adaexit_hf.models import EarlyExitForSequenceClassification

Model = EarlyExitForSequenceClassification
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_method = pytest.mark.parametrize("method", CLASSES)
BAD = 2  # the row with the bad input
OTHERS = [0, 1, 3, 4, 5]


def poisoned(model: Model, value: float) -> dict[str, Tensor]:
    """Embeddings of a batch in which one row has one value that is not finite."""
    inputs = inputs_of(model)
    if getattr(model, "depth_table", None) is not None:
        inputs["token_depths"] = model.depth_table(inputs["input_ids"])
    embedded = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    embedded[BAD, 1] = value
    return inputs | {"inputs_embeds": embedded}


# The norm after the embeddings makes NaN of infinity, so that no exit can tell the two apart.
@pytest.mark.parametrize(
    ("variant", "value"), [*((variant, torch.nan) for variant in VARIANTS), ("deebert", torch.inf)]
)
@torch.no_grad()
def test_a_bad_row_runs_all_layers_and_the_others_are_unaffected(variant: str, value: float) -> None:
    model = build(variant)
    clean, dirty = poisoned(model, 0.0), poisoned(model, value)
    threshold = thresholds_between(trace_of(model, clean))[0]
    for bound in (threshold, *model.config.threshold_bounds):
        expected = model(**clean, exit_threshold=bound)
        with pytest.warns(RuntimeWarning, match="exits gave NaN or infinite logits; .* dtype=torch.float32"):
            output = model(**dirty, exit_threshold=bound)
        assert output.exit_layer[BAD] == 3
        assert output.exit_layer[OTHERS].tolist() == expected.exit_layer[OTHERS].tolist()
        torch.testing.assert_close(output.logits[OTHERS], expected.logits[OTHERS], atol=1e-5, rtol=1e-5)


@every_variant
@torch.no_grad()
def test_the_trace_of_a_bad_row_has_nan_scores(variant: str) -> None:
    model = build(variant)
    with pytest.warns(RuntimeWarning, match="^3 exits gave NaN"):
        scores = trace_of(model, poisoned(model, torch.nan)).exit_scores
    assert scores[BAD].isnan().all()
    assert scores[OTHERS].isfinite().all()


@every_variant
@torch.no_grad()
def test_an_exit_with_infinite_logits_never_answers(variant: str) -> None:
    model = build(variant)
    model.classifiers[0].bias.fill_(torch.inf)
    inputs = inputs_of(model)
    with pytest.warns(RuntimeWarning):
        trace = trace_of(model, inputs)
    assert trace.exit_scores[:, 0].isnan().all()
    for bound in model.config.threshold_bounds:
        with pytest.warns(RuntimeWarning):
            output = model(**inputs, exit_threshold=bound)
        assert output.exit_layer.tolist() == predicted(model, trace, bound)[1].tolist()
        assert output.exit_layer.min() > 1


@every_method
@torch.no_grad()
def test_a_batch_of_only_bad_rows(method: str) -> None:
    model = build(method)
    inputs = {name: value[BAD : BAD + 1] for name, value in poisoned(model, torch.nan).items()}
    with pytest.warns(RuntimeWarning):
        output = model(**inputs, exit_threshold=model.config.threshold_bounds[0])
    assert output.exit_layer.tolist() == [3]


@every_method
def test_a_good_batch_does_not_warn(method: str) -> None:
    model = build(method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs_of(model), exit_threshold=model.config.threshold_bounds[0])
