"""Starting from a pretrained encoder or a fine-tuned classifier, of every family."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import CLASSES, ENCODERS, FAMILIES, batch, build, encoder, encoder_config, inputs_of, trace_of
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
)

from adaexit_hf import BerxitForSequenceClassification, DeeBertForSequenceClassification
from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.encoder_layers import family_of
from adaexit_hf.models.exit_heads import ExitFeatures

every_family = pytest.mark.parametrize("name", FAMILIES)
every_encoder = pytest.mark.parametrize("name", ENCODERS)
every_method = pytest.mark.parametrize("method", CLASSES)
POOLED = ("bert", "roberta", "xlm-roberta", "albert", "mpnet")

Save = Callable[..., tuple[Path, PreTrainedModel]]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Saves a stock model: (name of the encoder, auto class, ...) -> folder, model."""

    def save(name: str, auto: Any = AutoModelForSequenceClassification, **kwargs: Any) -> tuple[Path, PreTrainedModel]:
        torch.manual_seed(3)
        model = auto.from_config(encoder_config(name, **kwargs)).eval()
        for parameter in model.parameters():  # biases, too, differ from those of a fresh model
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / "stock")
        return tmp_path / "stock", model

    return save


def stock_logits(model: PreTrainedModel) -> tuple[dict[str, Tensor], Tensor]:
    inputs = batch(model.config)
    with torch.no_grad():
        return inputs, model(**inputs).logits


@every_encoder
def test_full_depth_is_the_fine_tuned_classifier(name: str, save: Save) -> None:
    folder, stock = save(name, num_labels=3)
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder).eval()
    inputs, expected = stock_logits(stock)
    torch.testing.assert_close(trace_of(model, inputs).logits, expected, atol=1e-6, rtol=0)


@every_family
def test_a_fine_tuned_regressor(name: str, save: Save) -> None:
    folder, stock = save(name, num_labels=1)
    model = BerxitForSequenceClassification.from_encoder_pretrained(folder).eval()
    inputs, expected = stock_logits(stock)
    torch.testing.assert_close(trace_of(model, inputs).logits, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{"exit_head": "attention-pool"}, {"exit_pooling": "mean"}], ids=str)
@every_encoder
def test_a_classifier_beside_other_heads_is_kept_bit_for_bit(name: str, options: dict[str, Any], save: Save) -> None:
    folder, stock = save(name, num_labels=3)
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder, last_exit_head="dense", **options).eval()
    inputs, expected = stock_logits(stock)
    assert model.took_over_classifier
    with torch.no_grad():  # with the states, since otherwise the last layer may run for the first token only
        assert torch.equal(model(**inputs, output_hidden_states=[0]).logits, expected)


@every_encoder
@torch.no_grad()
def test_a_bare_encoder_keeps_its_weights(name: str, save: Save) -> None:
    folder, stock = save(name, AutoModel)
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder).eval()
    inputs = batch(stock.config)
    states = model(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(states[-1], stock(**inputs).last_hidden_state)


@every_family
@torch.no_grad()
def test_an_encoder_out_of_a_language_model(name: str, save: Save) -> None:
    folder, stock = save(name, AutoModelForMaskedLM)
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder).eval()
    inputs = batch(stock.config)
    states = model(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(states[-1], stock.base_model(**inputs).last_hidden_state)


def heads_of(model: EarlyExitForSequenceClassification) -> list[ExitFeatures]:
    return [module for module in model.modules() if isinstance(module, ExitFeatures)]


# Heads are found by shared code: by that of `ExitHead` in DeeBERT, of one pooler for all exits in PABEE.
@pytest.mark.parametrize(
    ("method", "name"),
    [*((method, "bert") for method in CLASSES)]
    + [(method, name) for method in ("deebert", "pabee") for name in POOLED[1:]],
)
def test_the_pretrained_pooler_is_in_every_exit(method: str, name: str, save: Save) -> None:
    folder, stock = save(name, AutoModel)
    model = CLASSES[method].from_encoder_pretrained(folder, num_labels=3)
    pooler = stock.get_submodule(family_of(stock.config).pooler)
    heads = heads_of(model)
    assert all(torch.equal(head.dense.weight, pooler.weight) for head in heads)
    assert all(torch.equal(head.dense.bias, pooler.bias) for head in heads)


def test_the_authors_variant_starts_from_the_pretrained_pooler_throughout(save: Save) -> None:
    folder, stock = save("bert", AutoModel)
    options = {"exit_criterion": "learned", "lte_variant": "authors"}
    model = BerxitForSequenceClassification.from_encoder_pretrained(folder, **options)
    assert torch.equal(model.lte_last.dense.weight, stock.pooler.dense.weight)


@every_family
def test_a_fine_tuned_classifier_is_the_last_exit_of_the_authors_variant(name: str, save: Save) -> None:
    folder, stock = save(name, num_labels=3)
    options = {"exit_criterion": "learned", "lte_variant": "authors"}
    model = BerxitForSequenceClassification.from_encoder_pretrained(folder, **options).eval()
    inputs, expected = stock_logits(stock)
    torch.testing.assert_close(trace_of(model, inputs).logits, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
@every_encoder
@torch.no_grad()
def test_the_first_layers_of_an_encoder(name: str, auto: Any, save: Save) -> None:
    folder, stock = save(name, auto)
    if name in ("albert-groups", "albert-inner"):
        with pytest.raises(ValueError, match="num_hidden_layers: got 2; this ALBERT's [23] groups of layers cannot"):
            DeeBertForSequenceClassification.from_encoder_pretrained(folder, num_hidden_layers=2)
        return
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder, num_hidden_layers=2).eval()
    assert (model.config.encoder_config.num_hidden_layers, len(model.exits)) == (2, 2)
    inputs = batch(stock.config)
    states = model(**inputs, output_hidden_states=True).hidden_states
    expected = stock.base_model(**inputs, output_hidden_states=True).hidden_states
    family = family_of(stock.config)
    assert len(states) == 3
    assert all(torch.equal(one, other) for one, other in zip(states[:2], expected[:2], strict=True))
    assert torch.equal(states[2], family.finish(model.encoder, expected[2]))


@pytest.mark.parametrize("count", [0, -1, 4, 2.0, True])
def test_layers_that_an_encoder_does_not_have_are_refused(count: Any, save: Save) -> None:
    folder, _ = save("bert", AutoModel)
    with pytest.raises(ValueError, match=f"num_hidden_layers: got {count}; the encoder has layers 1 to 3"):
        DeeBertForSequenceClassification.from_encoder_pretrained(folder, num_hidden_layers=count)


@every_method
def test_the_fine_tuned_dense_layer_is_in_every_exit(method: str, save: Save) -> None:
    folder, stock = save("roberta", num_labels=3)
    model = CLASSES[method].from_encoder_pretrained(folder)
    if not heads_of(model):
        return  # built differently: a warning says that the classifier is not used
    assert all(torch.equal(head.dense.weight, stock.classifier.dense.weight) for head in heads_of(model))
    assert torch.equal(model.classifiers[-1].weight, stock.classifier.out_proj.weight)
    assert not torch.equal(model.classifiers[0].weight, stock.classifier.out_proj.weight)


@every_method
def test_the_encoders_answers_are_reproducible(method: str, save: Save) -> None:
    folder, stock = save("bert", AutoModel)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(CLASSES[method].from_encoder_pretrained(folder, num_labels=3).state_dict())
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


@every_method
def test_labels_are_kept(method: str, save: Save) -> None:
    names = {0: "bad", 1: "so-so", 2: "good"}
    folder, _ = save("bert", id2label=names, label2id={"bad": 0, "so-so": 1, "good": 2})
    config = CLASSES[method].from_encoder_pretrained(folder).config
    assert (config.num_labels, config.id2label, config.label2id["good"]) == (3, names, 2)


def test_the_problem_type_is_kept(save: Save) -> None:
    folder, _ = save("bert", num_labels=3, problem_type="single_label_classification")
    assert DeeBertForSequenceClassification.from_encoder_pretrained(folder).config.problem_type == (
        "single_label_classification"
    )


def test_another_number_of_labels_leaves_the_classifier_behind(save: Save) -> None:
    folder, stock = save("bert", num_labels=3)
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder, num_labels=5)
    assert model.exits[-1].classifier.out_features == 5
    assert torch.equal(model.exits[-1].dense.weight, stock.bert.pooler.dense.weight)
    assert model.config.id2label[4] == "LABEL_4"


def test_new_names_for_the_same_labels_keep_the_classifier(save: Save) -> None:
    folder, stock = save("bert", num_labels=3)
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder, id2label={0: "a", 1: "b", 2: "c"})
    assert torch.equal(model.exits[-1].classifier.weight, stock.classifier.weight)
    assert model.config.id2label[2] == "c"


def test_options_of_the_method_are_passed_on(save: Save) -> None:
    folder, _ = save("roberta", num_labels=3)
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder, exit_layers=[2, 4], exit_threshold=0.5)
    assert (model.config.exit_layers, model.config.exit_threshold, len(model.exits)) == ([2, 4], 0.5, 2)


@every_family
def test_dtype(name: str, save: Save) -> None:
    folder, _ = save(name, num_labels=3)
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@every_family
def test_attention_implementation(name: str, save: Save) -> None:
    folder, _ = save(name, num_labels=3)
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder, attn_implementation="eager")
    assert model.encoder.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "eager"


def test_the_config_has_no_trace_of_the_old_head_or_folder(save: Save) -> None:
    folder, _ = save("bert", num_labels=3, id2label={0: "x", 1: "y", 2: "z"})
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder)
    assert str(folder) not in model.config.to_json_string()
    assert model.config.encoder_config.id2label != model.config.id2label
    assert model.config.encoder_config.architectures is None


@every_family
def test_a_started_model_saves_and_reloads(name: str, save: Save, tmp_path: Path) -> None:
    folder, _ = save(name, num_labels=3)
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder).eval()
    model.save_pretrained(tmp_path / "ours")
    again = DeeBertForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert torch.equal(trace_of(model, inputs_of(model)).logits, trace_of(again, inputs_of(model)).logits)


def test_an_unsupported_family_is_refused(tmp_path: Path) -> None:
    GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot run 'gpt2' layer by layer; supported: albert"):
        DeeBertForSequenceClassification.from_encoder_pretrained(tmp_path)


@every_method
def test_an_early_exit_checkpoint_is_refused(method: str, tmp_path: Path) -> None:
    build(method).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is already an early-exit model .* call AutoModelForSequenceClassification"):
        DeeBertForSequenceClassification.from_encoder_pretrained(tmp_path)


def test_missing_weights_of_the_encoder_are_refused(save: Save) -> None:
    folder, _ = save("bert", AutoModel)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks weights of its encoder: encoder\.layer\.1\.output\.dense\.weight; pass a complete"
    ):
        DeeBertForSequenceClassification.from_encoder_pretrained(folder)


def test_a_missing_pooler_is_no_error(tmp_path: Path) -> None:
    encoder("bert").save_pretrained(tmp_path)
    model = DeeBertForSequenceClassification.from_encoder_pretrained(tmp_path)
    assert not torch.equal(model.exits[0].dense.weight, model.exits[1].dense.weight)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        DeeBertForSequenceClassification.from_encoder_pretrained(str(tmp_path / "nowhere"))


NAMES = ["contradiction", "neutral", "entailment"]


def test_a_classifier_follows_its_labels_into_another_order(save: Save) -> None:
    folder, stock = save("bert", id2label=dict(enumerate(NAMES)), label2id={name: k for k, name in enumerate(NAMES)})
    order = [2, 0, 1]
    wanted = {"id2label": {new: NAMES[old] for new, old in enumerate(order)}}
    wanted |= {"label2id": {name: new for new, name in wanted["id2label"].items()}}
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder, **wanted).eval()
    inputs, expected = stock_logits(stock)
    torch.testing.assert_close(trace_of(model, inputs).logits, expected[:, order], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "options", [{"num_labels": 2}, {"id2label": {0: "a", 1: "b", 2: "c"}}, {"exit_pooling": "mean"}], ids=str
)
def test_a_classifier_of_other_labels_or_pooling_is_left_behind_with_a_warning(
    save: Save, options: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, stock = save("bert", id2label=dict(enumerate(NAMES)), label2id={name: k for k, name in enumerate(NAMES)})
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("adaexit_hf"), "propagate", True)
    model = DeeBertForSequenceClassification.from_encoder_pretrained(folder, **options)
    assert "its classifier is not used, since" in caplog.text
    assert not model.exits[-1].classifier.bias.any() and not model.took_over_classifier


def test_unknown_arguments_are_refused(save: Save) -> None:
    folder, _ = save("bert", AutoModel)
    with pytest.raises(TypeError, match="unknown argument 'threshold'; did you mean 'exit_threshold'"):
        DeeBertForSequenceClassification.from_encoder_pretrained("missing", threshold=0.3)
    with pytest.raises(TypeError, match=r"unknown arguments \['speed'\]; pass arguments of DeeBertConfig"):
        DeeBertForSequenceClassification.from_encoder_pretrained(folder, speed=0.3)
