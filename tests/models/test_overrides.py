"""Arguments given when a checkpoint is loaded, or set on a config afterwards, are checked like any others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import CLASSES, build, inputs_of, trace_of


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("deebert", {"exit_layers": [1, 3]}, r"exit_layers: got \[1, 3\], but the checkpoint's exits are after"),
        ("deebert", {"exit_layers": []}, r"exit_layers: got \[\], but the checkpoint's"),
        ("deebert", {"exit_threshold": 9.0}, "exit_threshold: got 9.0"),
        ("deebert", {"exit_threshold": "0.3"}, "exit_threshold: got '0.3'"),
        ("berxit", {"fine_tuning": "foo"}, "fine_tuning: got 'foo'"),
        ("dact-bert", {"halting_bound": "foo"}, "halting_bound: got 'foo'"),
        ("berxit", {"exit_pooling": "foo"}, "exit_pooling: got 'foo'"),
    ],
)
def test_overrides_at_load_are_checked(method: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    build(method).save_pretrained(tmp_path)
    with pytest.raises((ValueError, TypeError), match=message):
        CLASSES[method].from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("threshold", [0.3, None])
def test_a_threshold_given_at_load_holds(threshold: float | None, tmp_path: Path) -> None:
    build("dact-bert", exit_threshold=0.5).save_pretrained(tmp_path)
    model = CLASSES["dact-bert"].from_pretrained(tmp_path, exit_threshold=threshold)
    assert model.config.exit_threshold == threshold


@pytest.mark.parametrize("name", ["exit_pooling", "fine_tuning"])
def test_a_config_changed_to_nonsense_builds_no_model(name: str) -> None:
    config = build("berxit").config
    setattr(config, name, "foo")
    with pytest.raises(ValueError, match=f"{name}: got 'foo'"):
        CLASSES["berxit"](config)


def test_authors_variant_needs_learning_to_exit() -> None:
    with pytest.raises(ValueError, match="lte_variant: got 'authors'"):
        build("berxit", lte_variant="authors")


@pytest.mark.parametrize("fine_tuning", ["joint", "two_stage", "alternating"])
def test_the_stages_train_the_last_exit_in_every_variant(fine_tuning: str) -> None:
    model = build("berxit", exit_criterion="learned", lte_variant="authors", fine_tuning=fine_tuning).train()
    inputs = inputs_of(model)
    for stage in model.stages:
        for objective in stage.objectives:
            model(**inputs, labels=torch.arange(6) % 3, objective=objective).loss.backward()
    assert model.exits[-1].classifier.weight.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("method", CLASSES)
def test_compiles_into_one_graph_for_every_threshold(method: str) -> None:
    model = build(method)
    inputs = inputs_of(model)
    scores = trace_of(model, inputs).exit_scores[:, 0].tolist()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for threshold in sorted(scores)[:3]:
        with torch.no_grad():
            expected, output = model(**inputs, exit_threshold=threshold), compiled(**inputs, exit_threshold=threshold)
        assert output.exit_layer.tolist() == expected.exit_layer.tolist()
        torch.testing.assert_close(output.logits, expected.logits)


@pytest.mark.slow
@pytest.mark.parametrize("method", CLASSES)
def test_exports_with_a_dynamic_batch(method: str) -> None:
    model = build(method)
    threshold = trace_of(model, inputs_of(model)).exit_scores[:, 0].median().item()
    model.config.exit_threshold = threshold
    inputs = {name: inputs_of(model)[name] for name in ("input_ids", "attention_mask")}
    shapes = {name: {0: torch.export.Dim("batch", min=2, max=64)} for name in inputs}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes)
    fewer = {name: value[:4] for name, value in inputs.items()}
    output = program.module()(**fewer)
    with torch.no_grad():
        expected = model(**fewer)
    assert output.exit_layer.tolist() == expected.exit_layer.tolist()
    torch.testing.assert_close(output.logits, expected.logits)
