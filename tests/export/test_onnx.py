"""Models exported to ONNX, compared with PyTorch, which is given one text at a time."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.exports import (
    CASES,
    INT8,
    Exported,
    clear_thresholds,
    export_again,
    exported,
    facts_of,
)
from helpers.runs import new_model, new_trainer, texts
from helpers.tiny import FAMILIES, build, encoder, encoder_config
from helpers.words import new_tokenizer
from transformers import AutoModelForSequenceClassification, CanineTokenizer

from adaexit_hf import collect_trace
from adaexit_hf.evaluation.collect import onnx_trace
from adaexit_hf.evaluation.cross_fit import cross_fitted
from adaexit_hf.evaluation.thresholds import best_point
from adaexit_hf.evaluation.tradeoff import tradeoff_curve
from adaexit_hf.export import onnx as onnx_export
from adaexit_hf.export.onnx import export_onnx
from adaexit_hf.models import METHODS
from adaexit_hf.onnx_runtime import OnnxEarlyExitClassifier


def stages_of(folder: Path, precision: str = "fp32") -> list[dict[str, Any]]:
    return facts_of(folder)["precisions"][precision]["stages"]


def in_encoder(node: onnx.NodeProto) -> bool:
    return any("'model.encoder" in entry.value for entry in node.metadata_props)


every_case = pytest.mark.parametrize("name", CASES)
every_int8_case = pytest.mark.parametrize("name", INT8)
pytestmark = pytest.mark.slow


@torch.no_grad()
def trace_of(made: Exported) -> tuple[np.ndarray, np.ndarray]:
    """Logits and scores of all exits, from PyTorch."""
    outputs = [made.model(**row, early_exit=False) for row in made.rows()]
    return (
        torch.cat([output.exit_logits for output in outputs]).numpy(),
        torch.cat([output.exit_scores for output in outputs]).numpy(),
    )


@torch.no_grad()
def check_exits(made: Exported, threshold: Any) -> set[int]:
    """Logits and exit layers are PyTorch's; returns the exit layers."""
    found = made.run().predict(made.items, threshold)
    outputs = [made.model(**row, exit_threshold=threshold) for row in made.rows()]
    assert found.exit_layer.tolist() == [output.exit_layer.item() for output in outputs]
    np.testing.assert_allclose(found.logits, torch.cat([output.logits for output in outputs]), atol=1e-4, rtol=0)
    return set(found.exit_layer.tolist())


# The same as PyTorch -------------------------------------------------------------------------------------------------


def test_all_methods_and_families_are_tried() -> None:
    assert {case.method for case in CASES.values() if case.encoder == "bert"} == set(METHODS) - {"depth-adaptive"}
    assert {case.encoder for case in CASES.values()} == set(FAMILIES)


@every_case
def test_logits_and_scores_of_all_exits_are_those_of_pytorch(name: str) -> None:
    made = exported(name)
    found, (logits, scores) = made.run().trace(made.items), trace_of(made)
    np.testing.assert_allclose(found.logits, logits, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found.scores, scores, atol=1e-4, rtol=0)


@every_case
def test_texts_leave_where_they_leave_in_pytorch(name: str) -> None:
    made = exported(name)
    trace = collect_trace(made.model, made.items, made.tokenizer, batch_size=1, progress=False)
    layers = set()
    for threshold in clear_thresholds(trace):
        layers |= check_exits(made, threshold)
    exits, patient = made.model.config.exit_layers, made.model.config.exit_criterion == "patience"
    assert layers == set(exits[patient:])  # the first exit agrees with none before it


@every_case
def test_full_depth_is_that_of_pytorch(name: str) -> None:
    made = exported(name)
    found, (logits, scores) = made.run().predict(made.items, early_exit=False), trace_of(made)
    np.testing.assert_allclose(found.logits, logits[:, -1], atol=1e-4, rtol=0)
    np.testing.assert_allclose(found.exit_score, scores[:, -1], atol=1e-4, rtol=0)
    assert set(found.exit_layer) == {made.model.config.exit_layers[-1]}


def test_every_exit_may_have_a_threshold_of_its_own() -> None:
    made = exported("dact-bert")
    scores = collect_trace(made.model, made.items, made.tokenizer, batch_size=1, progress=False).scores
    middle = len(scores) // 2
    thresholds = scores.sort(dim=0).values[middle - 1 : middle + 1].mean(dim=0).tolist()  # half are ready at each exit
    assert check_exits(made, thresholds) == {1, 2, 3}


def test_fp32_keeps_the_exit_threshold_of_the_model() -> None:
    made = exported("deebert-electra")
    assert made.run().exit_threshold == made.model.config.exit_threshold == [1.0, 0.5]
    found, expected = made.run().predict(made.items), made.run().predict(made.items, [1.0, 0.5])
    assert found.exit_layer.tolist() == expected.exit_layer.tolist()
    assert len(set(found.exit_layer)) == 2


def test_a_row_of_one_token_is_answered_as_by_pytorch() -> None:
    made = exported("dact-bert")
    found = made.run().predict([{"input_ids": [7]}], early_exit=False)
    with torch.no_grad():
        expected = made.model(torch.tensor([[7]]), early_exit=False)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4, rtol=0)


def test_a_model_in_half_precision_with_one_exit_is_computed_in_float32(tmp_path: Path) -> None:
    model = build("deebert", encoder_config=encoder_config("bert", num_hidden_layers=1)).bfloat16()
    export_onnx(model, new_tokenizer(), tmp_path / "onnx", progress=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    made = Exported(model.float(), new_tokenizer(), tmp_path / "onnx", ["w5 w6", ""])
    assert check_exits(made, 0.5) == {1}


# State that goes from one exit to the next ---------------------------------------------------------------------------


def test_what_exits_read_of_those_before_goes_from_stage_to_stage() -> None:
    inputs = {name: [stage["inputs"] for stage in stages_of(exported(name).folder)] for name in CASES}
    assert inputs["deebert-bert-pair"] == [["input_ids", "token_type_ids"], ["hidden", "token_second"]]
    assert inputs["berxit-roberta-pair"] == [["input_ids"], ["hidden", "token_second"]]
    assert inputs["pabee-bert"][1:] == [["hidden", "memory_0", "memory_1"]] * 2
    assert inputs["dact-bert"][1:] == [["hidden", "state_0", "state_1"]] * 2
    assert inputs["right-tool-bert-gaps"] == [["input_ids"], ["hidden", "state_0"]]  # of layer 2, too
    assert inputs["fastbert-bert"] == [["input_ids"], ["hidden"]]


def test_a_pair_is_another_one_with_its_texts_swapped() -> None:
    """The second stage knows by `token_second` alone which text is which."""
    for name in ("deebert-bert-pair", "berxit-roberta-pair"):
        found = exported(name).run().predict([("w5 w6", "w7"), ("w7", "w5 w6")], early_exit=False).logits
        assert np.abs(found[0] - found[1]).max() > 0.01


# Int8 ----------------------------------------------------------------------------------------------------------------


@every_int8_case
def test_int8_texts_leave_where_their_own_trace_says(name: str) -> None:
    """In any order and with any number of threads, to the last bit."""
    made = exported(name)
    classifier = made.run("int8")
    trace = onnx_trace(classifier, made.items, made.tokenizer, made.model.config)
    order = random.Random(0).sample(range(len(made.items)), len(made.items))
    shuffled = [made.items[place] for place in order]
    for threshold in clear_thresholds(trace):
        chosen = trace.exits_at(threshold)
        logits, layers = (values.numpy() for values in trace.at(threshold))
        scores = trace.scores.gather(1, chosen[:, None])[:, 0].numpy()
        for threads in (1, 3):
            found = made.run("int8", threads).predict(shuffled, threshold)
            np.testing.assert_array_equal(found.logits, logits[order])
            np.testing.assert_array_equal(found.exit_layer, layers[order])
            np.testing.assert_array_equal(found.exit_score, scores[order])


@every_int8_case
def test_int8_is_near_fp32_but_not_it(name: str) -> None:
    made = exported(name)
    difference = np.abs(made.run("int8").trace(made.items).logits - made.run().trace(made.items).logits).max()
    assert 1e-4 < difference < 0.5


@every_int8_case
def test_all_matrices_of_the_encoder_are_int8(name: str) -> None:
    """But those of which there is one per attention head."""
    folder = exported(name).folder
    for fp32, int8 in zip(stages_of(folder), stages_of(folder, "int8"), strict=True):
        plain, quantized = (onnx.load(folder / stage["file"]).graph for stage in (fp32, int8))
        matrices = {tensor.name for tensor in plain.initializer if len(tensor.dims) == 2}
        products = [node for node in plain.node if node.op_type in ("MatMul", "Gemm") and in_encoder(node)]
        expected = {node.input[1] for node in products} & matrices
        assert len(expected) >= 6  # queries, keys, values, output, and two more
        found = [tensor for tensor in quantized.initializer if tensor.name.endswith("_quantized")]
        assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in found) == len(expected)


@every_int8_case
def test_exits_stay_float_in_int8(name: str) -> None:
    folder = exported(name).folder
    for fp32, int8 in zip(stages_of(folder), stages_of(folder, "int8"), strict=True):
        plain, quantized = (onnx.load(folder / stage["file"]).graph for stage in (fp32, int8))
        own = {tensor.name for tensor in plain.initializer if "exits" in tensor.name and len(tensor.dims) == 2}
        assert own
        kinds = {
            tensor.name.removesuffix("_Transposed"): tensor.data_type
            for tensor in quantized.initializer
            if "exits" in tensor.name
        }
        assert own <= set(kinds)
        assert set(kinds.values()) == {onnx.TensorProto.FLOAT}


def test_int8_has_no_threshold_without_validation() -> None:
    classifier = exported("pabee-bert").run("int8")
    assert classifier.exit_threshold is None
    assert not classifier.calibrated
    message = r"exit_threshold: none was chosen for int8, .*; export with labelled texts .*, or pass exit_threshold="
    for refused in (classifier.predict, classifier, lambda texts: list(classifier.predict_stream(texts))):
        with pytest.raises(ValueError, match=message):
            refused(["w5"])
    with pytest.raises(ValueError, match=message):
        classifier.predict(["w5"], early_exit=True)
    assert classifier.predict(["w5"], 1).exit_layer.tolist() == [2]
    assert classifier.predict(["w5"], early_exit=False).exit_layer.tolist() == [3]


# Validation ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    made = exported("dact-bert")
    folder = tmp_path_factory.mktemp("validated") / "onnx"
    export_again("dact-bert", folder, int8=True, validation=made.labelled(), max_drop=0.3)
    return made._replace(folder=folder)


def trace_of_validation(made: Exported, precision: str) -> Any:
    return onnx_trace(made.run(precision), made.labelled(), made.tokenizer, made.model.config)


def test_the_int8_threshold_is_chosen_on_the_int8_trace(validated: Exported) -> None:
    classifier = validated.run("int8")
    trace, other = (trace_of_validation(validated, precision) for precision in ("int8", "fp32"))
    expected = best_point(tradeoff_curve(trace, "accuracy"), 0.3).threshold
    assert classifier.exit_threshold == expected
    assert expected != best_point(tradeoff_curve(trace, "accuracy"), 0.01).threshold
    assert expected != best_point(tradeoff_curve(other, "accuracy"), 0.3).threshold
    assert facts_of(validated.folder)["precisions"]["int8"]["max_drop"] == 0.3
    assert classifier.predict(validated.items).exit_layer.tolist() == trace.at(expected)[1].tolist()


def test_the_int8_results_are_cross_fitted(validated: Exported) -> None:
    results = facts_of(validated.folder)["precisions"]["int8"]["results"]
    honest = cross_fitted(trace_of_validation(validated, "int8"), ["accuracy"], 0.3)
    assert results["cross_fitted_thresholds"] == list(honest.thresholds)
    assert results["at_threshold"] == honest.scores
    assert results["mean_exit_layer"] == honest.mean_layers


def test_the_fp32_results_are_those_at_the_threshold_of_the_model(validated: Exported) -> None:
    entry = facts_of(validated.folder)["precisions"]["fp32"]
    trace = trace_of_validation(validated, "fp32")
    assert entry["exit_threshold"] == validated.model.config.exit_threshold is None
    assert "cross_fitted_thresholds" not in entry["results"]
    assert entry["results"]["samples"] == len(validated.items)
    right = trace.logits[:, -1].argmax(dim=1) == trace.labels
    assert entry["results"]["at_threshold"] == {"accuracy": right.double().mean()}


def test_the_threshold_is_chosen_by_the_first_metric(tmp_path: Path) -> None:
    made = exported("dact-bert")
    metrics = ("matthews_correlation", "accuracy")
    manifest = export_again(
        "dact-bert", tmp_path / "onnx", int8=True, validation=made.labelled(), metrics=metrics, max_drop=0.3
    )
    entry, again = manifest["precisions"]["int8"], made._replace(folder=tmp_path / "onnx")
    trace = trace_of_validation(again, "int8")
    chosen = [best_point(tradeoff_curve(trace, metric), 0.3).threshold for metric in metrics]
    assert entry["exit_threshold"] == chosen[0] != chosen[1]
    assert set(entry["results"]["full_depth"]) == set(metrics)


def test_one_row_gives_a_threshold_but_no_cross_fitted_results(tmp_path: Path) -> None:
    row = exported("dact-bert").labelled()[3:4]
    with pytest.warns(UserWarning, match="validation: the scores of int8 are those on the rows that chose its thresh"):
        manifest = export_again("dact-bert", tmp_path / "onnx", int8=True, validation=row)
    assert "cross_fitted_thresholds" not in manifest["precisions"]["int8"]["results"]


def test_what_is_returned_is_what_was_written(validated: Exported, tmp_path: Path) -> None:
    manifest = export_again("dact-bert", tmp_path / "onnx")
    assert manifest == facts_of(tmp_path / "onnx")
    assert manifest["method"] == "dact-bert"
    assert manifest["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert set(manifest["precisions"]) == {"fp32"}


@pytest.mark.parametrize("name", ["pabee-bert", "fastbert-mpnet-labels", "berxit-distilbert-regression"])
def test_a_trace_is_that_of_pytorch_with_its_facts_and_labels(name: str) -> None:
    made = exported(name)
    found = onnx_trace(made.run(), made.labelled(), made.tokenizer, made.model.config, {"split": "dev"})
    expected = collect_trace(made.model, made.labelled(), made.tokenizer, about={"split": "dev"}, progress=False)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    assert torch.equal(found.labels, expected.labels)
    assert found.lengths.tolist() == expected.lengths.tolist()
    facts = ("exit_layers", "ready", "criterion", "bounds", "method", "label_names", "settings", "multi_label")
    assert [getattr(found, fact) for fact in facts] == [getattr(expected, fact) for fact in facts]
    assert found.about == {"split": "dev", "precision": "fp32"}


def test_a_trace_without_labels_has_none() -> None:
    made = exported("pabee-bert")
    assert onnx_trace(made.run(), made.items, made.tokenizer, made.model.config).labels is None


# Exits that give NaN -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The first exit answers NaN, the second infinity, and only the third a class."""
    model = build("deebert")
    with torch.no_grad():
        model.classifiers[0].bias[1], model.classifiers[1].bias[2] = torch.nan, torch.inf
    folder = tmp_path_factory.mktemp("broken") / "onnx"
    with pytest.warns(RuntimeWarning, match="^2 exits gave NaN or infinite logits"):  # for each trial text
        export_onnx(model, new_tokenizer(), folder, progress=False)
    return Exported(model, new_tokenizer(), folder, ["w5", "w6 w7"])


def test_no_text_leaves_at_an_exit_that_is_not_finite(broken: Exported) -> None:
    classifier = broken.run()
    for threshold in classifier.facts["bounds"]:
        with pytest.warns(RuntimeWarning, match="4 exits gave NaN or infinite logits; .* went on to the next exit"):
            found = classifier.predict(broken.items, threshold)
        assert found.exit_layer.tolist() == [3, 3]
        assert np.isfinite(found.logits).all()
        np.testing.assert_array_equal(found.logits, classifier.predict(broken.items, early_exit=False).logits)


def test_the_trace_of_an_exit_that_is_not_finite_has_nan_scores(broken: Exported) -> None:
    trace = broken.run().trace(broken.items)
    assert np.isnan(trace.scores[:, :2]).all()
    assert np.isfinite(trace.scores[:, 2]).all()


@pytest.mark.parametrize("exits", [1, 2])
def test_the_last_exit_answers_though_it_is_not_finite(
    exits: int, broken: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = broken.run()
    monkeypatch.setattr(classifier, "stages", classifier.stages[:exits])
    monkeypatch.setattr(classifier, "exit_layers", [1, 2][:exits])
    with pytest.warns(RuntimeWarning, match=f"{2 * exits} exits gave NaN or infinite logits"):
        answers = classifier(broken.items, exit_threshold=0.5)
    assert answers == [{"label": None, "score": None, "exit_layer": exits}] * 2


# What is refused -----------------------------------------------------------------------------------------------------


def test_a_method_whose_tokens_skip_layers_is_refused(tmp_path: Path) -> None:
    message = "model: 'depth-adaptive' decides for every token .*; every other method can be exported, e.g. berxit"
    with pytest.raises(ValueError, match=message):
        export_onnx(build("depth-adaptive"), new_tokenizer(), tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_without_exits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model: got BertModel, which has no exits"):
        export_onnx(encoder("bert"), new_tokenizer(), tmp_path / "onnx")


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokenizer: CanineTokenizer is a slow tokenizer, .*; load a fast one"):
        export_onnx(build("deebert"), CanineTokenizer(), tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_a_drop_in_percent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_drop: got 2; pass a fraction"):
        export_onnx(build("deebert"), new_tokenizer(), tmp_path / "onnx", max_drop=2)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "onnx").write_text("mine")
    with pytest.raises((ValueError, OSError), match="onnx"):
        export_onnx(build("deebert"), new_tokenizer(), tmp_path / "onnx")
    assert (tmp_path / "onnx").read_text() == "mine"


@pytest.mark.parametrize("int8", [False, True])
def test_validation_without_labels_is_refused(int8: bool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validation: has no column 'label' or 'labels'"):
        export_again("fastbert-bert", tmp_path / "onnx", int8=int8, validation=["w5", "w6"])
    assert not list(tmp_path.iterdir())


def test_results_that_differ_from_pytorch_are_refused(tmp_path: Path) -> None:
    """The graphs are of a model whose last exit had another bias."""
    model = build("fastbert", **CASES["fastbert-bert"].config)
    with torch.no_grad():
        model.classifiers[-1].bias += 0.01
    with pytest.raises(RuntimeError, match=r"the logits of the exported model differ .* by 0\.01; report this"):
        export_again("fastbert-bert", tmp_path / "onnx", model=model)
    assert not list(tmp_path.iterdir())


# The checkpoint beside -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_threshold": 0.25}, r"\(exit_threshold is 0.25 there, and None in the model\)"),
        ({"exit_criterion": "margin"}, r"\(exit_criterion is margin there, and entropy in the model\)"),
        ({"exit_temperatures": [1.0, 2.0]}, r"\(exit_temperatures is \[1.0, 2.0\] there, and None in the model\)"),
        (
            {"encoder_config": encoder_config("bert", num_hidden_layers=2, hidden_act="relu")},
            r"\(encoder_config.hidden_act is relu there, and gelu in the model\)",
        ),
        (
            {"encoder_config": encoder_config("bert", num_hidden_layers=2, num_attention_heads=2)},
            r"\(encoder_config.num_attention_heads is 2 there, and 4 in the model\)",
        ),
    ],
)
def test_the_folder_of_a_checkpoint_with_other_exit_settings_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    small = {"encoder_config": encoder_config("bert", num_hidden_layers=2)}
    build("deebert", **small | changes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"folder: '.*' holds another model; pass another folder, .* {message}"):
        export_onnx(build("deebert", **small), new_tokenizer(), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_the_folder_of_a_checkpoint_with_other_weights_is_refused(tmp_path: Path) -> None:
    model = build("deebert")
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        model.classifiers[1].bias += 1
    with pytest.raises(ValueError, match=r"holds another model; .* \(its weight 'exits.1.*' differs\)"):
        export_onnx(model, new_tokenizer(), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_the_hashes_of_the_checkpoint_are_kept_only_in_its_subfolder_onnx(tmp_path: Path) -> None:
    exported("fastbert-bert").model.save_pretrained(tmp_path)
    inside = export_again("fastbert-bert", tmp_path / "onnx")
    assert sorted(inside["source"]) == ["config.json", "model.safetensors"]
    assert not export_again("fastbert-bert", tmp_path / "elsewhere")["source"]


def test_the_model_that_a_checkpoint_loads_is_that_of_its_folder(tmp_path: Path) -> None:
    exported("fastbert-bert").model.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype="float32", output_attentions=True)
    export_again("fastbert-bert", tmp_path / "onnx", model=model)
    assert OnnxEarlyExitClassifier.from_pretrained(tmp_path, threads=1).predict(["w5"]).exit_layer.tolist() == [2]


# An earlier export ---------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("error", [RuntimeError("differs"), KeyboardInterrupt()], ids=["failed", "interrupted"])
def test_an_export_that_ends_early_leaves_the_earlier_one(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_again("fastbert-bert", tmp_path / "onnx")
    before = contents(tmp_path)

    def ends(*_: Any) -> None:
        raise error

    monkeypatch.setattr("adaexit_hf.export.onnx._compare_with_pytorch", ends)
    with pytest.raises(type(error)):
        export_again("fastbert-bert", tmp_path / "onnx", int8=True)
    assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == [tmp_path / "onnx"]


def test_an_export_replaces_the_earlier_one(tmp_path: Path) -> None:
    export_again("dact-bert", tmp_path / "onnx", int8=True)
    export_again("fastbert-bert", tmp_path / "onnx")
    assert contents(tmp_path / "onnx") == contents(exported("fastbert-bert").folder)
    assert list(tmp_path.iterdir()) == [tmp_path / "onnx"]


def test_a_model_is_unchanged_by_its_export(tmp_path: Path) -> None:
    model = build("fastbert", **CASES["fastbert-bert"].config).train()
    settings, weights = model.config.to_dict(), {name: value.clone() for name, value in model.state_dict().items()}
    export_again("fastbert-bert", tmp_path / "onnx", model=model)
    assert model.training
    assert model.config.to_dict() == settings
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_large_layers_of_exits_are_quantized_but_no_layer_of_logits(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(onnx_export, "LARGE", 1)
    source = exported("berxit-bert-learned").folder / "fp32" / "stage_01.onnx"
    onnx_export._quantize(source, tmp_path / "int8.onnx", "model.encoder")
    names = {tensor.name for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    found = {name.partition("exits.0.")[2] for name in names}
    assert "dense.weight_Transposed_quantized" in found
    assert "classifier.weight_Transposed" in found


def test_graphs_hold_no_paths_of_the_machine_that_made_them() -> None:
    for file in exported("deebert-bert-pair").folder.glob("*/*.onnx"):
        assert b"site-packages" not in file.read_bytes() and b"adaexit_hf" not in file.read_bytes()


# Agreement of int8 with fp32 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `early_exit.json` says of a model that was trained until it knows the classes of its texts."""
    folder, rows = tmp_path_factory.mktemp("trained"), texts(400)
    for row in rows:
        row["input_ids"][1] = 5 + row["label"]  # a word of the class
    model = new_model("berxit", exit_layers=[1, 2, 4])
    sizes = {"max_steps": 100, "per_device_train_batch_size": 32, "learning_rate": 3e-3, "logging_steps": 100}
    new_trainer(model, folder / "run", rows=rows[:300], **sizes).train()
    export_onnx(model.eval(), new_tokenizer(), folder / "onnx", int8=True, validation=rows[300:], progress=False)
    return facts_of(folder / "onnx") | {"folder": folder / "onnx", "rows": rows[300:], "config": model.config}


def test_int8_gives_the_classes_of_fp32(trained: dict[str, Any]) -> None:
    """The bound of docs/export.md."""
    results = trained["precisions"]["int8"]["results"]
    assert results["full_depth"]["accuracy"] > 0.9
    same = results["same_as_fp32"]
    assert min(same["full_depth"], same["at_threshold"], *same["by_exit"].values()) >= 0.95


def test_the_agreement_is_that_of_the_answers(trained: dict[str, Any]) -> None:
    found, classes = trained["precisions"]["int8"]["results"]["same_as_fp32"], {}
    for precision in ("fp32", "int8"):
        classifier = OnnxEarlyExitClassifier.from_pretrained(trained["folder"], precision, threads=1)
        rows = [{"input_ids": row["input_ids"]} for row in trained["rows"]]
        answers = [classifier.predict(rows).logits, *classifier.trace(rows).logits.swapaxes(0, 1)]
        classes[precision] = np.stack(answers).argmax(axis=-1)
    expected = (classes["fp32"] == classes["int8"]).mean(axis=1).tolist()
    assert [found["at_threshold"], *found["by_exit"].values()] == pytest.approx(expected)
    assert found["full_depth"] == found["by_exit"]["4"]


def test_numbers_and_fp32_have_no_agreement(validated: Exported, tmp_path: Path) -> None:
    assert "same_as_fp32" not in facts_of(validated.folder)["precisions"]["fp32"]["results"]
    made = exported("berxit-distilbert-regression")
    manifest = export_again("berxit-distilbert-regression", tmp_path / "onnx", int8=True, validation=made.labelled())
    assert "same_as_fp32" not in manifest["precisions"]["int8"]["results"]
