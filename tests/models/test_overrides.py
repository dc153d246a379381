"""Arguments given when a checkpoint is loaded, or set on a config afterwards, are checked like any others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import CLASSES, build, inputs_of, trace_of
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

from adaexit_hf import DeeBertConfig


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


@pytest.mark.parametrize("auto", [True, False])
@pytest.mark.parametrize(
    ("option", "message"),
    [("ponder_cost", "'ponder_cost'; its arguments are"), ("exit_treshold", "'exit_treshold'; did you mean")],
)
def test_unknown_overrides_of_a_config_are_refused(auto: bool, option: str, message: str, tmp_path: Path) -> None:
    build("deebert").config.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=f"DeeBertConfig got an unknown argument {message}"):
        (AutoConfig if auto else DeeBertConfig).from_pretrained(tmp_path, **{option: 0.1})


@pytest.mark.parametrize("option", ["ponder_cost", "threshold", "thresholds"])  # the last is a name of a method
def test_unknown_overrides_of_a_model_are_refused(option: str, tmp_path: Path) -> None:
    build("deebert").save_pretrained(tmp_path)
    for loader in (CLASSES["deebert"], AutoModelForSequenceClassification):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'|unknown argument '{option}'"):
            loader.from_pretrained(tmp_path, **{option: 0.1})


def test_what_others_added_to_a_saved_config_stays(tmp_path: Path) -> None:
    made = build("deebert").config
    made.mine = {"a": 1}
    made.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"of_a_later_version": [1], "quantization_config": {}}))
    loaded = [AutoConfig.from_pretrained(tmp_path), DeeBertConfig.from_json_file(path)]
    loaded += [
        DeeBertConfig.from_pretrained(tmp_path, exit_threshold=0.3),
        DeeBertConfig.from_dict(loaded[0].to_dict()),
    ]
    for config in loaded:
        assert (config.mine, config.of_a_later_version, config.quantization_config) == ({"a": 1}, [1], {})
    assert DeeBertConfig.from_pretrained(tmp_path, mine=2).mine == 2


def test_arguments_of_loading_are_no_unknown_ones(tmp_path: Path) -> None:
    build("deebert").config.save_pretrained(tmp_path)
    # As `pipeline(..., model_kwargs=...)` calls it.
    options = {"device_map": "cpu", "low_cpu_mem_usage": True, "use_safetensors": True, "exit_threshold": 0.2}
    config = AutoConfig.from_pretrained(tmp_path, _from_pipeline="text-classification", **options)
    assert config.exit_threshold == 0.2
    config, unused = AutoConfig.from_pretrained(tmp_path, return_unused_kwargs=True, foo=1, exit_threshold=0.3)
    assert (config.exit_threshold, unused["foo"]) == (0.3, 1)


def test_a_part_of_the_encoders_config_may_be_overridden(tmp_path: Path) -> None:
    made = build("deebert").config
    made.save_pretrained(tmp_path)
    encoder = DeeBertConfig.from_pretrained(tmp_path, encoder_config={"vocab_size": 20}).encoder_config
    assert (encoder.vocab_size, encoder.hidden_size) == (20, made.encoder_config.hidden_size)


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("berxit", {"num_labels": 1}),
        ("berxit", {"problem_type": "regression"}),
        ("berxit", {"num_labels": 1, "problem_type": "regression", "ignore_mismatched_sizes": True}),
        ("berxit", {"id2label": {0: "score"}}),
        ("berxit-regression", {"num_labels": 3}),
        ("berxit-regression", {"problem_type": "single_label_classification"}),
    ],
)
def test_a_checkpoint_keeps_its_task(variant: str, options: dict[str, Any], tmp_path: Path) -> None:
    build(variant).save_pretrained(tmp_path)
    for loader in (CLASSES["berxit"], AutoModelForSequenceClassification):
        with pytest.raises(ValueError, match=r"num_labels, problem_type: got .*, but the checkpoint was trained for"):
            loader.from_pretrained(tmp_path, **options)


def test_a_pipeline_keeps_the_task_of_its_checkpoint(tmp_path: Path) -> None:
    build("berxit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"num_labels, problem_type: got num_labels=1 \(regression\), but the"):
        pipeline("text-classification", model=str(tmp_path), model_kwargs={"num_labels": 1})


def test_classes_may_be_renamed_or_replaced_at_load(tmp_path: Path) -> None:
    build("deebert", id2label={0: "a", 1: "b", 2: "c"}).save_pretrained(tmp_path)
    renamed = CLASSES["deebert"].from_pretrained(tmp_path, id2label={0: "x", 1: "y", 2: "z"}).config
    assert (renamed.id2label[2], renamed.label2id) == ("z", {"x": 0, "y": 1, "z": 2})
    assert CLASSES["deebert"].from_pretrained(tmp_path, num_labels=3).config.id2label[0] == "a"
    wider = CLASSES["deebert"].from_pretrained(tmp_path, num_labels=4, ignore_mismatched_sizes=True)
    assert wider.config.id2label[3] == "LABEL_3"


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
