"""Stages and objectives: what learns, what is frozen, what a step leaves alone; and activation checkpointing."""

import pytest
import torch
from helpers.tiny import (
    CLASSES,
    CORE,
    CORE_CASES,
    FAMILIES,
    FAMILY_METHODS,
    VARIANTS,
    build,
    gradients,
    inputs_of,
    labels_of,
)
from torch import Tensor, nn
from transformers import set_seed

from adaexit_hf.models.encoder_layers import family_of
from adaexit_hf.trainer.training_args import CHECKPOINTING

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def matches(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def run(model: nn.Module, objective: str) -> dict[str, Tensor | None]:
    """Gradients of one training step, with the same dropout every time."""
    model.zero_grad()
    set_seed(1)
    model.train()(**inputs_of(model), labels=labels_of(model), objective=objective).loss.backward()
    return gradients(model)


def check_stages(variant: str, encoder: str, **kwargs: object) -> None:
    for stage in build(variant, encoder, **kwargs).stages:
        model = build(variant, encoder, **kwargs)
        frozen = {name for name, _ in model.named_parameters() for prefix in stage.frozen if matches(name, prefix)}
        for prefix in stage.frozen:
            assert any(matches(name, prefix) for name in frozen), f"'{prefix}' matches nothing"
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        steps = [run(model, objective) for objective in stage.objectives]
        learning = {name for step in steps for name, value in step.items() if value is not None}
        assert learning == {name for name, _ in model.named_parameters()} - frozen


@pytest.mark.parametrize(("variant", "encoder"), CORE_CASES)
def test_a_stage_trains_all_that_is_not_frozen(variant: str, encoder: str) -> None:
    check_stages(variant, encoder)


@pytest.mark.parametrize("method", FAMILY_METHODS)
@pytest.mark.parametrize("encoder", [name for name in FAMILIES if name not in CORE])
def test_stages_on_every_family(method: str, encoder: str) -> None:
    check_stages(method, encoder)


# With a single exit a stage may have nothing to train; with two it is as with all, whatever the method's options.
@pytest.mark.parametrize(
    ("variant", "exit_layers"), [*((variant, [3]) for variant in VARIANTS), *((method, [1, 3]) for method in CLASSES)]
)
def test_stages_with_fewer_exits(variant: str, exit_layers: list[int]) -> None:
    check_stages(variant, "bert", exit_layers=exit_layers)


@every_variant
def test_stages_name_known_objectives(variant: str) -> None:
    model = build(variant)
    assert {name for stage in model.stages for name in stage.objectives} <= set(model.objectives)


@every_variant
def test_training_without_a_plan_uses_the_first_objective(variant: str) -> None:
    model = build(variant)
    inputs, labels = inputs_of(model), labels_of(model)
    expected = model(**inputs, labels=labels, objective=model.objectives[0]).loss
    model.training = True  # of the model alone: its modules stay without dropout
    torch.testing.assert_close(model(**inputs, labels=labels).loss, expected)


@pytest.mark.parametrize(
    ("method", "encoder"),
    [*((method, "bert") for method in CLASSES)]
    + [(method, encoder) for method in FAMILY_METHODS for encoder in ("albert", "mpnet")],
)
def test_activation_checkpointing_gives_equal_gradients(method: str, encoder: str) -> None:
    model = build(method, encoder)
    plain = run(model, model.objectives[0])
    getattr(model, f"{CHECKPOINTING}_enable")()
    checkpointed = run(model, model.objectives[0])
    assert all(torch.equal(value, checkpointed[name]) for name, value in plain.items() if value is not None)


@pytest.mark.parametrize("encoder", ["bert", "albert", "mpnet"])
def test_activation_checkpointing_runs_a_layer_again(encoder: str) -> None:
    model, calls = build("deebert", encoder), []
    layer = family_of(model.encoder.config).layers(model.encoder)[0]
    attention = next(module for name, module in layer.named_modules() if name.endswith("attention"))
    attention.register_forward_hook(lambda *_: calls.append(1))
    getattr(model, f"{CHECKPOINTING}_enable")()
    run(model, "joint")
    assert len(calls) == 2 * (3 if encoder == "albert" else 1)  # ALBERT's layers are one
