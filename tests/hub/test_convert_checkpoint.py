"""Folders as the papers' authors left them become our models, and what is no such folder gets one clear message."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import recordings
from helpers.authors_names import authors_names, pabees_names
from helpers.pipeline_without_package import TEXTS
from helpers.tiny import build, inputs_of, trace_of
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from adaexit_hf.hub import checkpoint_files
from adaexit_hf.hub.conversion import convert_checkpoint
from adaexit_hf.models import EarlyExitForSequenceClassification

NAMES = [name for method in ("deebert", "berxit", "pabee") for name in recordings.names(method)]
DROPPED = {"use_bfloat16": False, "output_past": True, "finetuning_task": None}  # that Transformers 2.1 wrote


def folder_with(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], kind: str = "legacy") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "safetensors":
        save_file({name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors")
    else:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "zip")
    return folder


def authors_folder(folder: Path, variant: str = "deebert", family: str = "bert", **values: Any) -> Path:
    """A tiny model of ours, as its method's authors would have saved it."""
    model = build(variant, family)
    names = pabees_names if variant.startswith("pabee") else authors_names
    config = {name: value for name, value in model.config.encoder_config.to_dict().items() if name != "model_type"}
    for name in ("id2label", "label2id", "architectures"):
        config.pop(name, None)
    return folder_with(folder, config | DROPPED | values, names(model, family))


def assert_same(found: EarlyExitForSequenceClassification, expected: EarlyExitForSequenceClassification) -> None:
    assert type(found) is type(expected)
    assert not found.training
    inputs = inputs_of(expected)
    assert torch.equal(trace_of(found, inputs).exit_logits, trace_of(expected, inputs).exit_logits)
    assert torch.equal(trace_of(found, inputs).exit_scores, trace_of(expected, inputs).exit_scores)


@pytest.mark.parametrize("kind", ["safetensors", "legacy", "zip"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_converted_models_give_the_authors_answers(name: str, kind: str, tmp_path: Path) -> None:
    recording = recordings.read(name)
    folder = folder_with(tmp_path / "theirs", recording.config, recording.state_dict, kind)
    settings = {"exit_criterion": "learned" if recording.learned else "entropy"} if name.startswith("berxit") else {}
    convert_checkpoint(folder, tmp_path / "ours", **settings)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    assert model.config.model_type == name.split("-")[0]
    if "final_logits" in recording.tensors:
        logits = trace_of(model, recording.inputs).exit_logits
        torch.testing.assert_close(logits[:, -1], recording.tensors["final_logits"], atol=1e-5, rtol=0)
        torch.testing.assert_close(logits[:, :-1], recording.tensors["offramp_logits"][:, :-1], atol=1e-5, rtol=0)
    if recording.learned:
        scores = trace_of(model, recording.inputs).exit_scores
        torch.testing.assert_close(scores.T, 1 - recording.tensors["lte_uncertainty"], atol=1e-5, rtol=0)
    if name.startswith("pabee"):
        for patience in ("0", "1", "3"):
            output = model(**recording.inputs, exit_threshold=int(patience))
            torch.testing.assert_close(output.logits, recording.tensors[f"logits@{patience}"], atol=1e-5, rtol=0)
            if patience != "0":
                assert output.exit_layer.tolist() == recording.tensors[f"exit_layer@{patience}"].tolist()


@pytest.mark.parametrize(
    ("variant", "family", "written"),
    [
        ("deebert", "bert", {}), ("deebert", "roberta", {}), ("berxit", "albert", {}),
        ("berxit-authors", "bert", {"divide": "alternate-lte"}), ("berxit-authors", "roberta", {"divide": "x-lte"}),
        ("berxit-learned", "distilbert", {"divide": "alternate-lte"}),
        ("pabee", "bert", {"model_type": "bert"}), ("pabee", "albert", {}),
    ],
)  # fmt: skip
def test_method_and_family_are_found(variant: str, family: str, written: dict[str, Any], tmp_path: Path) -> None:
    source = build(variant.replace("authors", "learned"), family)
    found = convert_checkpoint(authors_folder(tmp_path, variant.replace("authors", "learned"), family, **written))
    assert (found.config.model_type, found.config.encoder_config.model_type) == (source.config.model_type, family)
    expected, trace = trace_of(source, inputs_of(source)), trace_of(found, inputs_of(source))
    assert torch.equal(trace.exit_logits, expected.exit_logits)
    if variant == "berxit-authors":
        assert (found.config.exit_criterion, found.config.lte_variant) == ("learned", "authors")
    else:
        assert torch.equal(trace.exit_scores, expected.exit_scores)


def test_a_regression_by_patience_is_converted(tmp_path: Path) -> None:
    found = convert_checkpoint(authors_folder(tmp_path, "pabee-regression"), patience_tolerance=0.5)
    assert_same(found, build("pabee-regression"))


def test_a_regression_that_learned_to_exit_is_converted(tmp_path: Path) -> None:
    found = convert_checkpoint(authors_folder(tmp_path, "berxit-regression"), exit_threshold=0.9)
    assert (found.config.num_labels, found.config.problem_type) == (1, "regression")
    assert (found.config.exit_criterion, found.config.lte_variant) == ("learned", "authors")
    assert found.config.exit_threshold == 0.9


@pytest.mark.parametrize(
    ("family", "written", "labels"),
    [
        ("bert", {"finetuning_task": "mnli"}, ["contradiction", "entailment", "neutral"]),
        ("roberta", {"finetuning_task": "MNLI"}, ["contradiction", "neutral", "entailment"]),
        ("bert", {"finetuning_task": "mnli-mm"}, ["contradiction", "entailment", "neutral"]),
        (
            "bert",
            {"id2label": {"0": "no", "1": "yes", "2": "maybe"}, "finetuning_task": "mnli"},
            ["no", "yes", "maybe"],
        ),
        ("bert", {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ("bert", {}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
    ],
)
def test_labels_keep_their_order(family: str, written: dict[str, Any], labels: list[str], tmp_path: Path) -> None:
    config = convert_checkpoint(authors_folder(tmp_path, "deebert", family, **written)).config
    assert [config.id2label[number] for number in range(3)] == labels
    assert config.label2id == {name: number for number, name in enumerate(labels)}


def test_labels_may_be_given_and_must_fit(tmp_path: Path) -> None:
    folder = authors_folder(tmp_path, finetuning_task="mnli")
    assert convert_checkpoint(folder, labels=["a", "b", "c"]).config.id2label[2] == "c"
    with pytest.raises(ValueError, match=r"labels: got 2 names; pass 3, as many as the classifier has outputs"):
        convert_checkpoint(folder, labels=["a", "b"])
    folder = authors_folder(tmp_path, id2label={"0": "no", "1": "yes"})
    with pytest.raises(ValueError, match=r"config\.json: names 2 labels, but the classifier has 3; pass labels="):
        convert_checkpoint(folder)


def test_settings_are_those_of_the_method(tmp_path: Path) -> None:
    folder = authors_folder(tmp_path)
    config = convert_checkpoint(folder, exit_threshold=0.3, exit_layers=[2, 3]).config
    assert (config.exit_threshold, config.exit_layers) == (0.3, [2, 3])
    with pytest.raises(
        TypeError, match=r"unknown settings \['lte_variant', 'num_labels'\]; it takes those of DeeBertC"
    ):
        convert_checkpoint(folder, num_labels=2, lte_variant="paper")


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    folder = authors_folder(tmp_path / "theirs", finetuning_task="mnli")
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(4, 64))])
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "max_len": 128}))
    model = convert_checkpoint(folder, tmp_path / "ours", exit_threshold=0.5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer("W7 w9")["input_ids"] == [2, 7, 9, 3]
    found = pipeline("text-classification", model=str(tmp_path / "ours"))(TEXTS)
    with torch.no_grad():
        ids = tokenizer(TEXTS, padding=True, return_tensors="pt")
        expected = model(**ids).logits.argmax(dim=-1).tolist()
    assert [each["label"] for each in found] == [model.config.id2label[label] for label in expected]


def test_a_name_on_the_hub_is_downloaded_without_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **given: Any) -> str:
        asked.update(given, name=name)
        return str(authors_folder(tmp_path))

    monkeypatch.setattr(checkpoint_files, "snapshot_download", download)
    assert_same(convert_checkpoint("ji-xin/bert_base-RTE-two_stage", revision="abc"), build("deebert"))
    assert (asked["name"], asked["revision"]) == ("ji-xin/bert_base-RTE-two_stage", "abc")
    assert not any("py" in pattern.split(".")[-1] for pattern in asked["allow_patterns"])


# What is no such checkpoint ------------------------------------------------------------------------------------------


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"path_or_repo: '.*/nowhere' is neither a folder nor a valid name on the Hub"
    ):
        convert_checkpoint(tmp_path / "nowhere")


def test_missing_or_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json, so it is not a checkpoint; it has nothing"):
        convert_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json' is not valid JSON"):
        convert_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json' is a list, not a config"):
        convert_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no model\.safetensors or pytorch_model\.bin; it has config\.json$"):
        convert_checkpoint(tmp_path)


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("this must not run",))


@pytest.mark.parametrize("content", [b"", b"rubbish", pickle.dumps(Harmful(), 2), pickle.dumps({"a": Harmful()}, 2)])
def test_damaged_or_harmful_weights_are_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = authors_folder(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin' cannot be read as weights; it is damaged or contains code"
    ):
        convert_checkpoint(folder)
    assert capsys.readouterr().out == ""
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors' cannot be read as weights"):
        convert_checkpoint(folder)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = authors_folder(tmp_path)
    torch.save({"model": {"bert.pooler.dense.bias": torch.ones(2)}}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin' is a dict with other values than tensors"):
        convert_checkpoint(folder)


def test_other_models_are_refused(tmp_path: Path) -> None:
    ours = build("deebert")
    ours.save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"is already an early-exit model of this package; call AutoModelFor"):
        convert_checkpoint(tmp_path / "ours")
    stock = AutoModelForSequenceClassification.from_config(ours.config.encoder_config)
    stock.save_pretrained(tmp_path / "stock")
    with pytest.raises(
        ValueError, match=r"among .*bert\..* and \d+ more; it has no exits: call the from_encoder_pret"
    ):
        convert_checkpoint(tmp_path / "stock")
    other = {"classifiers.0.output_layer_0.weight": torch.ones(2, 2), "embedding.word.weight": torch.ones(2, 2)}
    with pytest.raises(
        ValueError, match=r"no classifiers of PABEE among classifiers\.0\.output_layer_0\.weight, embe"
    ):
        convert_checkpoint(folder_with(tmp_path / "other", {}, other))


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = authors_folder(tmp_path)
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(
        ValueError, match=r"cannot be converted: tensors: 'deebert' has no place for bert\.new\.weight$"
    ):
        convert_checkpoint(folder_with(tmp_path, config, tensors | {"bert.new.weight": torch.ones(1)}))
    fewer = {name: value for name, value in tensors.items() if not name.endswith("highway.1.classifier.bias")}
    with pytest.raises(ValueError, match=r"'deebert' needs exits\.1\.classifier\.bias too"):
        convert_checkpoint(folder_with(tmp_path, config, fewer))
    fewer = {name: value for name, value in tensors.items() if not name.startswith("classifier.")}
    with pytest.raises(ValueError, match=r"no classifier\.weight among them"):
        convert_checkpoint(folder_with(tmp_path, config, fewer))
    with pytest.raises(
        ValueError, match=r"got encoder\.embeddings\.word_embeddings\.weight of shape \(64, 32\), not \(9, 32\)"
    ):
        convert_checkpoint(folder_with(tmp_path, config | {"vocab_size": 9}, tensors))
    with pytest.raises(ValueError, match=r"config\.json: says 'roberta', but the tensors are those of 'bert'"):
        convert_checkpoint(folder_with(tmp_path, config | {"model_type": "roberta"}, tensors))


def test_nothing_is_written_when_something_is_wrong(tmp_path: Path) -> None:
    folder = authors_folder(tmp_path / "theirs")
    with pytest.raises(ValueError, match="exit_threshold: got 7"):
        convert_checkpoint(folder, tmp_path / "ours", exit_threshold=7)
    assert not (tmp_path / "ours").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"save_directory: '.*file' is a file; pass a folder"):
        convert_checkpoint(folder, tmp_path / "file")
