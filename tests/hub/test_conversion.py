"""The authors' parameter names become ours by rule, for every family that they have and any depth."""

import pytest
import torch
from helpers.authors_names import authors_names, pabees_names
from helpers.tiny import build, config, inputs_of
from torch import Tensor, nn
from transformers import AutoModel

from adaexit_hf.hub.conversion import convert_encoder_config, convert_name, convert_state_dict
from adaexit_hf.models import EarlyExitForSequenceClassification

AUTHORS = ("bert", "roberta", "albert", "distilbert")
PABEES = ("bert", "albert")
every_family = pytest.mark.parametrize("family", AUTHORS)


def assert_same(converted: dict[str, Tensor], model: EarlyExitForSequenceClassification) -> None:
    assert converted.keys() == model.state_dict().keys()
    assert all(torch.equal(value, converted[name]) for name, value in model.state_dict().items())


@every_family
@pytest.mark.parametrize("variant", ["deebert", "berxit", "berxit-learned", "berxit-regression"])
def test_every_parameter_finds_its_place(variant: str, family: str) -> None:
    model = build(variant, family)
    assert_same(convert_state_dict(authors_names(model, family), model.config), model)


@pytest.mark.parametrize("family", PABEES)
@pytest.mark.parametrize("variant", ["pabee", "pabee-regression"])
def test_every_parameter_of_pabee_finds_its_place(variant: str, family: str) -> None:
    model = build(variant, family)
    assert_same(convert_state_dict(pabees_names(model, family), model.config), model)


@pytest.mark.parametrize("family", PABEES)
def test_a_subset_of_exits_leaves_pabees_other_classifiers_out(family: str) -> None:
    model, fewer = build("pabee", family), config("pabee", family, exit_layers=[2, 3])
    converted = convert_state_dict(pabees_names(model, family), fewer)
    assert [name for name in converted if name.endswith(".bias") and name.startswith("exits")] == (
        ["exits.0.bias", "exits.1.bias"]
    )
    assert torch.equal(converted["exits.0.weight"], model.exits[1].weight)
    assert torch.equal(converted["exits.1.weight"], model.exits[2].weight)
    assert torch.equal(converted["pooler.dense.weight"], model.pooler.dense.weight)


@pytest.mark.parametrize("family", PABEES)
@torch.no_grad()
def test_pabees_last_answer_is_that_of_the_stock_model_with_its_pooler(family: str) -> None:
    made = config("pabee", family)
    torch.manual_seed(0)
    stock, heads = AutoModel.from_config(made.encoder_config).eval(), nn.ModuleList(nn.Linear(32, 3) for _ in range(3))
    saved = {f"{family}.{name}": value for name, value in stock.state_dict().items()}
    saved |= {f"classifiers.{name}": value for name, value in heads.state_dict().items()}
    model = build("pabee", family)
    model.load_state_dict(convert_state_dict(saved, made))
    inputs = inputs_of(model)
    torch.testing.assert_close(model(**inputs).logits, heads[-1](stock(**inputs).pooler_output))


def test_the_checkpoint_of_another_method_is_refused() -> None:
    pabee, deebert = build("pabee"), build("deebert")
    with pytest.raises(
        ValueError, match=r"'deebert' has no place for classifiers\.0\.bias, .*classifiers\.2\.weight$"
    ):
        convert_state_dict(pabees_names(pabee, "bert"), deebert.config)
    with pytest.raises(ValueError, match=r"'pabee' has no place for bert\.encoder\.highway\.0\.classifier\.bias, "):
        convert_state_dict(authors_names(deebert, "bert"), pabee.config)


def test_a_classifier_beyond_the_last_layer_is_refused() -> None:
    model = build("pabee")
    with pytest.raises(ValueError, match=r"no place for classifiers\.3\.bias$"):
        convert_state_dict(pabees_names(model, "bert") | {"classifiers.3.bias": torch.ones(3)}, model.config)


def test_any_number_of_layers_is_converted() -> None:
    encoder = {
        "model_type": "bert",
        "num_hidden_layers": 12,
        "hidden_size": 4,
        "num_attention_heads": 1,
        "vocab_size": 9,
    }
    model = build("deebert", encoder_config=encoder)
    assert_same(convert_state_dict(authors_names(model, "bert"), model.config), model)


def test_a_subset_of_exits_leaves_the_other_off_ramps_out() -> None:
    model, fewer = build("deebert", "roberta"), config("deebert", "roberta", exit_layers=[2, 4])
    converted = convert_state_dict(authors_names(model, "roberta"), fewer)
    assert torch.equal(converted["exits.0.dense.weight"], model.exits[1].dense.weight)
    assert torch.equal(converted["exits.1.classifier.weight"], model.exits[3].classifier.weight)
    assert "exits.2.dense.weight" not in converted


def test_learning_to_exit_is_left_out_where_nothing_reads_it() -> None:
    model = build("berxit-learned")
    converted = convert_state_dict(authors_names(model, "bert"), build("berxit").config)
    assert not [name for name in converted if name.startswith("lte")]


def test_the_last_off_ramps_pooler_serves_the_authors_learning_to_exit() -> None:
    converted = convert_state_dict(authors_names(build("berxit-learned"), "bert"), build("berxit-authors").config)
    assert (converted["lte_last.dense.weight"] == 7).all()


def test_old_names_of_norm_weights_are_converted() -> None:
    assert convert_name("bert.embeddings.LayerNorm.gamma", [1, 2]) == "encoder.embeddings.LayerNorm.weight"
    assert convert_name("bert.embeddings.LayerNorm.beta", [1, 2]) == "encoder.embeddings.LayerNorm.bias"


def test_buffers_are_left_out() -> None:
    assert convert_name("bert.embeddings.position_ids", [1, 2]) is None


def test_unknown_names_are_listed() -> None:
    model = build("deebert")
    extra = {"bert.encoder.layer.0.bogus.weight": torch.ones(1), "head.bias": torch.ones(1)}
    extra["bert.encoder.highway.9.classifier.bias"] = torch.ones(3)
    with pytest.raises(
        ValueError, match=r"no place for bert\.encoder\.highway\.9.*, bert\.encoder\.layer\.0\.bogus.*, head"
    ):
        convert_state_dict(authors_names(model, "bert") | extra, model.config)


def test_missing_names_are_listed() -> None:
    model = build("deebert")
    saved = authors_names(model, "bert")
    del saved["classifier.bias"]
    with pytest.raises(ValueError, match=r"needs exits\.2\.classifier\.bias too; pass the complete state dict"):
        convert_state_dict(saved, model.config)


@every_family
def test_the_encoders_config_loses_arguments_that_no_longer_exist(family: str) -> None:
    depth = "n_layers" if family == "distilbert" else "num_hidden_layers"
    made = convert_encoder_config({depth: 3, "use_bfloat16": False, "finetuning_task": None, "num_labels": 3}, family)
    assert (made.model_type, made.num_hidden_layers, made.num_labels) == (family, 3, 2)
    assert not hasattr(made, "use_bfloat16")
