"""A folder with an exported model is refused if it is incomplete, was changed, or is older than its checkpoint."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.exports import copied, export_again, exported, facts_of, write_facts

from adaexit_hf.onnx_runtime import ExportFolderError, OnnxEarlyExitClassifier

NAME = "fastbert-bert"
pytestmark = pytest.mark.slow


def load(folder: Any, **options: Any) -> OnnxEarlyExitClassifier:
    return OnnxEarlyExitClassifier.from_pretrained(folder, threads=1, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copied(NAME, tmp_path / "model")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint with an exported model in its subfolder."""
    exported(NAME).model.save_pretrained(tmp_path)
    export_again(NAME, tmp_path / "onnx")
    return tmp_path


# Where it is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "onnx"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_checkpoint_and_its_subfolder_are_the_same_model(place: str, kind: Any, checkpoint: Path) -> None:
    assert load(kind(checkpoint / place)).predict(["w5"]).exit_layer.tolist() == [2]


def test_the_subfolder_may_be_used_without_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).unlink()
    assert load(checkpoint).exit_layers == [1, 2]


def test_a_folder_without_an_exported_model_says_how_to_make_one(tmp_path: Path) -> None:
    message = f"name_or_path: '{tmp_path}' has no exported model; call adaexit export {tmp_path}"
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"name_or_path: '{tmp_path / 'file'}' is no folder"):
        load(tmp_path / "file")


@pytest.mark.parametrize("name", ["oout", "./oout", "../oout", "/oout", "~/oout", "a/b/c", "out/", "runs/oout", ""])
def test_a_mistyped_folder_is_not_looked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adaexit_hf.onnx_runtime.classifier.download", pytest.fail)
    (tmp_path / "runs").mkdir()
    message = f"name_or_path: there is no folder '{name}'; pass the folder of an exported model, or a name on the Hub"
    with pytest.raises(ValueError, match=message if name else "name_or_path: '.' has no exported model"):
        load(name)


def test_other_names_are_looked_for_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("adaexit_hf.onnx_runtime.classifier.download", lambda *given: (asked.append(given), folder)[1])
    assert load("you/model_2-a.b", revision="v2").exit_layers == [1, 2]
    assert asked == [("you/model_2-a.b", None, {"revision": "v2"})]


def test_a_part_of_an_exported_model_names_the_folder_to_pass(folder: Path) -> None:
    with pytest.raises(ValueError, match=f"'{folder}/fp32' is a part of an exported model; pass '{folder}'"):
        load(folder / "fp32")


def test_options_of_the_hub_are_refused_for_a_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match=f"revision: only for a name on the Hub, and '{folder}' is a local folder; l"):
        load(folder, revision="v2")
    with pytest.raises(ValueError, match="token, cache_dir: only for a name on the Hub"):
        load(folder, token="secret", cache_dir="cache")
    assert load(folder, revision=None, local_files_only=True).exit_layers == [1, 2]


def test_an_unknown_option_is_refused(folder: Path) -> None:
    message = "from_pretrained: unknown options device, dtype; it takes precision, threads, revision"
    with pytest.raises(TypeError, match=message):
        load(folder, dtype="float32", device="cpu")


# The checkpoint beside it --------------------------------------------------------------------------------------------


def change_config(checkpoint: Path) -> str:
    values = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(values | {"exit_threshold": 0.25}))
    return "config.json"


def change_weights(checkpoint: Path) -> str:
    model = exported(NAME).model
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["exits.0.classifier.bias"] += 1
    model.save_pretrained(checkpoint, state_dict=state)
    return "model.safetensors"


@pytest.mark.parametrize("change", [change_config, change_weights])
@pytest.mark.parametrize("place", ["", "onnx"])
def test_a_checkpoint_that_was_changed_after_the_export_is_refused(
    change: Callable[[Path], str], place: str, checkpoint: Path
) -> None:
    name = change(checkpoint)
    message = (
        f"'{checkpoint / name}' has changed since .* was exported from it; call adaexit export {checkpoint} .*, or"
    )
    with pytest.raises(ExportFolderError, match=message):
        load(checkpoint / place)


def test_a_changed_checkpoint_is_refused_from_inside_of_the_folder(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_config(checkpoint)
    monkeypatch.chdir(checkpoint / "onnx")
    with pytest.raises(ExportFolderError, match=r"config.json' has changed since"):
        load(".")


def test_another_export_makes_a_changed_checkpoint_usable(checkpoint: Path) -> None:
    change_config(checkpoint)
    model = type(exported(NAME).model).from_pretrained(checkpoint).eval()
    export_again(NAME, checkpoint / "onnx", model=model)
    assert load(checkpoint).exit_threshold == 0.25


def test_an_export_elsewhere_does_not_depend_on_what_lies_beside_it(checkpoint: Path) -> None:
    os.rename(checkpoint / "onnx", checkpoint / "copy")
    change_config(checkpoint)
    assert load(checkpoint / "copy").exit_layers == [1, 2]


# Files of the folder -------------------------------------------------------------------------------------------------

FILES = ["fp32/stage_01.onnx", "fp32/stage_02.onnx", "tokenizer.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_changed_is_refused(name: str, folder: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    message = f"'{folder / name}' is not the file that was exported, whose hash is in early_exit.json; copy or"
    with pytest.raises(ExportFolderError, match=message):
        load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(ExportFolderError, match=f"'{folder / name}' is missing; copy or download the folder again"):
        load(folder)


def test_a_graph_that_cannot_be_run_is_refused(folder: Path) -> None:
    """With the hash of what is there, as if ONNX Runtime were too old for the graph."""
    facts, file = facts_of(folder), folder / FILES[0]
    file.write_bytes(b"no graph")
    facts["precisions"]["fp32"]["stages"][0]["sha256"] = hashlib.sha256(b"no graph").hexdigest()
    write_facts(folder, facts)
    with pytest.raises(ExportFolderError, match=f"'{file}' cannot be run by this version of ONNX Runtime .*; update"):
        load(folder)


@pytest.mark.parametrize(
    ("version", "message"),
    [(2, "has format version 2, and this version of the package reads 1; update the package"), (0, "export again")],
)
def test_another_format_is_refused(version: Any, message: str, folder: Path) -> None:
    write_facts(folder, facts_of(folder) | {"format_version": version})
    with pytest.raises(ExportFolderError, match=message):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format_version": null}', '{"format_version": "1"}'])
def test_a_manifest_that_is_none_is_refused(text: str, folder: Path) -> None:
    (folder / "early_exit.json").write_text(text)
    with pytest.raises(ExportFolderError, match="early_exit.json' is not what adaexit export writes .*; export again"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.pop("exit_layers"), "has no field exit_layers; export again"),
        (lambda facts: facts.pop("tokenizer"), "has no field tokenizer; export again"),
        (lambda facts: facts["tokenizer"].pop("sha256"), "has no field tokenizer.sha256; export again"),
        (lambda facts: facts["precisions"]["fp32"].pop("calibrated"), "has no field precisions.fp32.calibrated; "),
        (
            lambda facts: facts["precisions"]["fp32"]["stages"][1].pop("inputs"),
            "has no field precisions.fp32.stages.1.inputs; export again",
        ),
        (lambda facts: facts["precisions"]["fp32"]["stages"].pop(), "number of precisions.fp32.stages is 1, which ca"),
        (lambda facts: facts.update(precisions={}), r"precisions is \[\], which cannot be; export again"),
        (lambda facts: facts.update(precisions={"fp32": None}), "precisions.fp32 is None, which cannot be; export"),
        (lambda facts: facts.update(exit_layers=["1", "2"]), r"exit_layers is \['1', '2'\], which cannot be; export"),
        (lambda facts: facts.update(ready="<"), "ready is '<', which cannot be"),
        (lambda facts: facts.update(bounds=[0]), r"bounds is \[0\], which cannot be"),
        (lambda facts: facts.update(labels="no"), "labels is 'no', which cannot be"),
        (
            lambda facts: facts["precisions"]["fp32"].update(exit_threshold="0.5"),
            "precisions.fp32.exit_threshold is '0.5', which cannot be",
        ),
    ],
)
def test_a_manifest_that_was_edited_names_the_field(
    change: Callable[[dict[str, Any]], Any], message: str, folder: Path
) -> None:
    facts = facts_of(folder)
    change(facts)
    write_facts(folder, facts)
    with pytest.raises(ExportFolderError, match=f"'{folder / 'early_exit.json'}':? {message}"):
        load(folder)


# Precision -----------------------------------------------------------------------------------------------------------


def test_int8_is_the_default_where_there_is_one() -> None:
    assert load(exported("pabee-bert").folder).precision == "int8"
    assert load(exported(NAME).folder).precision == "fp32"


def test_each_precision_runs_its_own_graphs() -> None:
    found = [exported("pabee-bert").run(precision).predict(["w5"], 1).logits for precision in ("fp32", "int8")]
    assert 0 < abs(found[0] - found[1]).max() < 0.5


@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [
        (NAME, "int8", "precision: got 'int8'; this folder has fp32; export with --int8"),
        (NAME, "fp16", "precision: got 'fp16'; this folder has fp32$"),
        ("pabee-bert", "fp16", "precision: got 'fp16'; this folder has fp32 and int8$"),
    ],
)
def test_a_precision_that_was_not_exported_is_refused(name: str, precision: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(exported(name).folder, precision=precision)


def test_files_of_the_other_precision_need_not_be_there(tmp_path: Path) -> None:
    folder = copied("pabee-bert", tmp_path / "model")
    (folder / "fp32" / "stage_01.onnx").unlink()
    assert load(folder).predict(["w5"], 1).exit_layer.tolist() == [2]
