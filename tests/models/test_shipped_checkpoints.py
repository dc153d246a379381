"""A checkpoint loads where this package is not installed, and says exactly the same there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fresh import run_script
from helpers.load_without_package import answers
from helpers.tiny import CLASSES, FAMILY_METHODS, build, inputs_of

# Only the files of FAMILY_METHODS depend on the family of the encoder; the other methods leave it to shared files.
CHECKPOINTS = [f"{method}.bert" for method in CLASSES] + [
    f"{method}.{encoder}" for method in FAMILY_METHODS for encoder in ("roberta", "albert", "distilbert", "modernbert")
]
CHECKPOINTS += ["berxit-learned.bert", "berxit-regression.bert"]  # with weights of their own
SHARDED = "deebert.roberta"
INPUTS = {name: inputs_of(build("deebert"))[name] for name in ("input_ids", "attention_mask")}
every_checkpoint = pytest.mark.parametrize("name", CHECKPOINTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All checkpoints, and what the process without the package found in them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.save(INPUTS, folder / "inputs.pt")
    for name in CHECKPOINTS:
        build(*name.split(".")).save_pretrained(folder / name, max_shard_size="50KB" if name == SHARDED else "1GB")
    script, cache = Path(__file__).parents[1] / "helpers" / "load_without_package.py", str(folder / "cache")
    run_script(script, str(folder), HF_HOME=cache, HF_MODULES_CACHE=cache)
    return folder


def found(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / name / "found.pt")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@every_checkpoint
def test_answers_are_bit_equal(folder: Path, name: str) -> None:
    assert_same(found(folder, name)["float32"], answers(build(*name.split(".")), INPUTS))


@every_checkpoint
def test_bfloat16_answers_are_bit_equal(folder: Path, name: str) -> None:
    model = type(build(*name.split("."))).from_pretrained(folder / name, dtype=torch.bfloat16)
    assert_same(found(folder, name)["bfloat16"], answers(model, INPUTS))


@every_checkpoint
def test_saving_there_and_reloading_gives_the_same(folder: Path, name: str) -> None:
    assert_same(found(folder, name)["again"], answers(build(*name.split(".")), INPUTS))


@every_checkpoint
def test_saving_there_writes_the_same_config(folder: Path, name: str) -> None:
    before, after = (json.loads((folder / name / place / "config.json").read_text()) for place in ("", "again"))
    for config in (before, after):
        config["encoder_config"].pop("dtype", None)  # loading may fill it in
    assert after == before


@every_checkpoint
def test_auto_model_gives_the_encoder_with_the_same_weights(folder: Path, name: str) -> None:
    model, bare = build(*name.split(".")), found(folder, name)["encoder"]
    assert bare["class"] == type(model).__name__.replace("ForSequenceClassification", "Model")
    expected = {key: value for key, value in model.state_dict().items() if key.startswith("encoder.")}
    assert bare["weights"].keys() == expected.keys()
    assert all(torch.equal(value, bare["weights"][key]) for key, value in expected.items())


def test_the_weights_of_one_checkpoint_were_split(folder: Path) -> None:
    assert len(list((folder / SHARDED).glob("model-*.safetensors"))) > 1


@every_checkpoint
def test_a_checkpoint_carries_its_code(folder: Path, name: str) -> None:
    files = {path.name for path in (folder / name).glob("*.py")}
    module = CLASSES[build(*name.split(".")).config.model_type].__module__.split(".")[-1]
    assert files > {f"{module}.py", "modeling_early_exit.py", "encoder_layers.py", "exit_heads.py"}
    assert len([file for file in files if file.startswith("modeling_")]) == 2  # no other method's
    assert len(files) <= 9, sorted(files)
