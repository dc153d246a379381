"""The recommended recipe: what `adaexit train` trains if no method is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import new_model
from transformers import BertConfig

from adaexit_hf import METHODS, recommended_recipe
from adaexit_hf.cli.train import parse
from adaexit_hf.cli.train_model import follow_recipe, tell_of_pooling
from adaexit_hf.cli.train_options import Arguments
from adaexit_hf.data.tasks import Labels
from adaexit_hf.trainer.recipe import sentence_pooling

BASE = ["--model_name_or_path", "encoder", "--output_dir", "out", "--use_cpu", "true"]


def followed(*flags: str, names: list[str] | None = None) -> tuple[Arguments, Any]:
    arguments, training = parse([*BASE, *flags])
    follow_recipe(arguments, training, Labels(names), BertConfig(num_hidden_layers=4))
    return arguments, training


def test_without_a_method_the_recipe_suits_the_data() -> None:
    single, training = followed("--task_name", "sst2", names=["no", "yes"])
    assert (single.method, training.exits_learning_rate) == ("berxit", 1e-3)
    assert single.method_config == {"exit_head": "attention-pool", "exit_pooling": "mean", "fine_tuning": "joint"}
    pair, _ = followed("--task_name", "mrpc", names=["no", "yes"])
    assert pair.method_config["exit_head"] == "pair"


def test_the_settings_of_the_recipe_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    followed("--task_name", "mrpc", names=["no", "yes"])
    assert capsys.readouterr().err == (
        "adaexit train: recommended recipe for classes, berxit with exit_head='pair', exit_pooling='mean', "
        "fine_tuning='joint'; exits_learning_rate=0.001; train_loss is the sum of the losses of all exits\n"
    )


def test_a_regression_leaves_after_one_layer_for_all_texts() -> None:
    assert recommended_recipe(num_labels=1, pairs=True, num_layers=6).config["exit_criterion"] == "layer"


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [2, 3, 4]), (6, [2, 3, 4, 6]), (12, [4, 6, 8, 12]), (7, [3, 4, 5, 7])],
)
def test_a_regression_has_exits_after_a_third_half_two_thirds_and_all_layers(
    num_layers: int, expected: list[int]
) -> None:
    assert recommended_recipe(1, pairs=True, num_layers=num_layers).config["exit_layers"] == expected


@pytest.mark.parametrize(
    "options", [{"num_labels": 2}, {"num_labels": 1, "method": "pabee"}, {"num_labels": 1, "keeps_classifier": True}]
)
def test_all_others_have_exits_after_every_layer(options: dict[str, Any]) -> None:
    assert "exit_layers" not in recommended_recipe(pairs=True, num_layers=6, **options).config


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [2, 3, 4]),
        ({"num_hidden_layers": 3}, [1, 2, 3]),
        ({"exit_layers": [1, 4]}, [1, 4]),
        ({"num_hidden_layers": "3"}, [1]),  # refused when the model is built, under this name
    ],
)
def test_the_number_of_layers_is_the_encoders_unless_passed(config: dict[str, Any], expected: list[int]) -> None:
    arguments, _ = followed("--task_name", "stsb", "--method_config", json.dumps(config))
    assert arguments.method_config["exit_layers"] == expected


def test_a_method_alone_is_that_of_its_paper() -> None:
    arguments, training = followed("--task_name", "mrpc", "--method", "deebert", names=["no", "yes"])
    assert (arguments.method, arguments.method_config, training.exits_learning_rate) == ("deebert", {}, None)


def test_a_method_with_the_recommended_heads() -> None:
    flags = ("--task_name", "mrpc", "--method", "deebert", "--recipe", "recommended")
    arguments, training = followed(*flags, names=["no", "yes"])
    assert arguments.method_config == {"exit_head": "pair", "exit_pooling": "mean"}
    assert training.exits_learning_rate == 1e-3


def test_berxit_by_name_keeps_its_own_training() -> None:
    assert recommended_recipe(2, pairs=True, method="berxit").config == {"exit_head": "pair", "exit_pooling": "mean"}


def test_what_is_passed_has_priority() -> None:
    flags = ("--task_name", "sst2", "--exits_learning_rate", "1e-4", "--method_config", '{"exit_head": "dense"}')
    arguments, training = followed(*flags, names=["no", "yes"])
    assert (arguments.method_config["exit_head"], training.exits_learning_rate) == ("dense", 1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--recipe", "best"), "recipe: got 'best'; choose one of 'recommended', 'paper'"),
        (("--recipe", "paper"), "method: missing; --recipe paper needs one of"),
        (("--recipe", "recommended", "--method", "plain"), "recipe: got 'recommended' with --method plain"),
    ],
)
def test_what_contradicts_itself_is_refused(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse([*BASE, "--task_name", "mrpc", *flags])


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_the_recommended_settings(method: str, pairs: bool) -> None:
    recipe = recommended_recipe(num_labels=2, pairs=pairs, method=method)
    assert METHODS[method].config_class(num_labels=2, **recipe.config).exit_head == (
        "pair" if pairs else "attention-pool"
    )


@pytest.mark.parametrize(
    ("num_labels", "pairs", "error", "message"),
    [
        (0, True, ValueError, "num_labels: got 0; pass a whole number from 1"),
        (True, True, ValueError, "num_labels: got True"),
        (2, "no", TypeError, "pairs: got 'no'; pass True for pairs of texts"),
    ],
)
def test_what_describes_no_data_is_refused(num_labels: Any, pairs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        recommended_recipe(num_labels, pairs)


def test_no_number_of_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="num_layers: got 0; pass a whole number from 1"):
        recommended_recipe(1, pairs=True, num_layers=0)


def test_a_regression_needs_the_number_of_layers() -> None:
    with pytest.raises(ValueError, match="num_layers: missing; .* pass AutoConfig.from_pretrained"):
        recommended_recipe(1, pairs=True)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method: got 'dact'; choose one of .* Did you mean 'dact-bert'"):
        recommended_recipe(2, pairs=False, method="dact")


def with_pooling(folder: Path, **modes: bool) -> str:
    """A folder with the pooling file of a sentence-transformers model."""
    (folder / "1_Pooling").mkdir()
    settings = {"word_embedding_dimension": 8} | {f"pooling_mode_{name}": used for name, used in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.mark.parametrize(
    ("modes", "pooling"),
    [
        ({"cls_token": False, "mean_tokens": True}, "mean"),
        ({"cls_token": True, "mean_tokens": False}, "first"),
        ({"cls_token": False, "max_tokens": True}, None),
        ({"cls_token": True, "mean_tokens": True}, None),
    ],
)
def test_the_pooling_of_a_sentence_encoder_is_read_from_its_files(tmp_path: Path, modes, pooling) -> None:
    assert sentence_pooling(with_pooling(tmp_path, **modes)) == pooling


def test_other_encoders_do_not_say_how_they_pool(tmp_path: Path) -> None:
    assert sentence_pooling(str(tmp_path)) is None


def test_exits_read_what_the_encoder_was_trained_to_make() -> None:
    assert recommended_recipe(2, pairs=False, pooling="first").config["exit_pooling"] == "first"
    assert recommended_recipe(2, pairs=True, pooling="first").config["exit_pooling"] == "mean"


def test_a_paper_that_reads_the_first_token_of_a_sentence_encoder_is_told(tmp_path: Path, capsys) -> None:
    arguments = Arguments(model_name_or_path=with_pooling(tmp_path, mean_tokens=True), method="berxit")
    for pooling in ("mean", "first"):
        tell_of_pooling(arguments, new_model("berxit", exit_pooling=pooling))
        assert ("was trained to make the mean over the tokens" in capsys.readouterr().err) == (pooling == "first")


def test_numbers_that_yaml_reads_as_texts_are_numbers(tmp_path: Path) -> None:
    settings = {"model_name_or_path": "x", "output_dir": "out", "train_file": "a.csv", "use_cpu": True}
    lines = [
        *(f"{name}: {value}" for name, value in settings.items()),
        "learning_rate: 2e-5",
        "exits_learning_rate: 1e-3",
    ]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    _, training = parse([str(tmp_path / "run.yaml")])
    assert (training.learning_rate, training.exits_learning_rate) == (2e-5, 1e-3)
