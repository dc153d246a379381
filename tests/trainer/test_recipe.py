"""The recommended recipe: what `adaexit train` trains if no method is named."""

from typing import Any

import pytest

from adaexit_hf import METHODS, recommended_recipe
from adaexit_hf.cli.train import Arguments, follow_recipe, parse
from adaexit_hf.data.tasks import Labels

BASE = ["--model_name_or_path", "encoder", "--output_dir", "out", "--use_cpu", "true"]


def followed(*flags: str, names: list[str] | None = None) -> tuple[Arguments, Any]:
    arguments, training = parse([*BASE, *flags])
    follow_recipe(arguments, training, Labels(names))
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
        "adaexit train: recommended recipe, berxit with exit_head='pair', exit_pooling='mean', fine_tuning='joint'; "
        "exits_learning_rate=0.001\n"
    )


def test_a_regression_leaves_after_one_layer_for_all_texts() -> None:
    assert recommended_recipe(num_labels=1, pairs=True).config["exit_criterion"] == "layer"


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


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method: got 'dact'; choose one of .* Did you mean 'dact-bert'"):
        recommended_recipe(2, pairs=False, method="dact")
