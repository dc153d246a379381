"""What explanations differentiate is the model: run from embeddings it says what it says of words."""

import pytest
import torch
from helpers.tiny import ENCODERS, VARIANTS, build, inputs_of, trace_of

from adaexit_hf.interpretation.unrolled import Unrolled
from adaexit_hf.models import EarlyExitForSequenceClassification


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_function_that_is_explained_is_the_model(variant: str) -> None:
    check_unrolled(build(variant))


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name != "bert"])
@pytest.mark.parametrize("variant", ["dact-bert", "right-tool"])
def test_the_function_that_is_explained_is_the_model_on_every_encoder(variant: str, encoder: str) -> None:
    check_unrolled(build(variant, encoder))
    check_unrolled(build(variant, encoder), padding="left")


def check_unrolled(model: EarlyExitForSequenceClassification, padding: str = "right") -> None:
    if model.config.num_labels > 1:
        model.config.exit_temperatures = [0.5 + index for index in range(len(model.config.exit_layers))]
    inputs, unrolled = inputs_of(model, padding), Unrolled(model)
    with torch.no_grad():
        columns = unrolled.columns(inputs)
        exits = unrolled.exits(model.get_input_embeddings()(columns[0]), columns, model.config.exit_layers[-1])
    expected = trace_of(model, inputs).exit_logits
    torch.testing.assert_close(torch.stack([exit.logits for exit in exits], dim=1), expected, rtol=1e-4, atol=1e-4)
