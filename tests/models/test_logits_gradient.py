"""In training `logits` are those of the last exit; a loss of them, as many recipes have it, would train no other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import CLASSES, build, gradients, inputs_of, labels_of
from helpers.words import new_tokenizer
from torch import nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from adaexit_hf.trainer.training_args import CHECKPOINTING

MESSAGE = (
    r"logits: the loss was computed from these, .* Use output.loss .* class_weights .* output.exit_logits\[:, -1\]"
)


def loss_of_logits(model: nn.Module, **call: Any) -> torch.Tensor:
    """As in the usual `compute_loss` with class weights."""
    logits = model(**inputs_of(model), **call).logits
    return functional.cross_entropy(logits, labels_of(model), weight=torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("method", CLASSES)
def test_a_loss_of_the_logits_is_refused_in_every_stage(method: str) -> None:
    for stage in build(method).stages:
        model = build(method).train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(name.startswith(prefix) for prefix in stage.frozen))
        with pytest.raises(ValueError, match=MESSAGE):
            loss_of_logits(model).backward()
        with pytest.raises(ValueError, match=MESSAGE):
            loss_of_logits(model, labels=labels_of(model)).backward()


@pytest.mark.parametrize("method", CLASSES)
def test_the_models_own_loss_and_that_of_all_exits_are_not(method: str) -> None:
    model = build(method).train()
    output = model(**inputs_of(model), labels=labels_of(model))
    functional.cross_entropy(output.exit_logits.flatten(0, 1), labels_of(model).repeat_interleave(3)).backward(
        retain_graph=True
    )
    functional.cross_entropy(output.exit_logits[:, -1], labels_of(model)).backward(retain_graph=True)
    output.loss.backward()


def test_eval_mode_and_a_single_exit_have_gradients() -> None:
    model = build("deebert")
    loss_of_logits(model).backward()
    assert any(value is not None for value in gradients(model).values())
    loss_of_logits(build("pabee", exit_layers=[3]).train()).backward()


def test_it_holds_under_autocast_and_activation_checkpointing() -> None:
    model = build("berxit").train()
    getattr(model, f"{CHECKPOINTING}_enable")()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs_of(model), labels=labels_of(model))
        loss = functional.cross_entropy(output.logits.float(), labels_of(model))
    for _ in range(2):  # accumulated
        output.loss.backward(retain_graph=True)
    with pytest.raises(ValueError, match=MESSAGE):
        loss.backward()


def test_a_gradient_of_zero_as_some_wrappers_pass_is_none() -> None:
    model = build("berxit").train()
    output = model(**inputs_of(model), labels=labels_of(model))
    (output.loss + 0 * output.logits.sum()).backward()


def test_without_gradients_nothing_is_guarded() -> None:
    model = build("berxit").train()
    with torch.no_grad():
        assert not model(**inputs_of(model)).logits.requires_grad
    assert not model.requires_grad_(False)(**inputs_of(model)).logits.requires_grad
    assert torch.func.functional_call(model, {}, kwargs=inputs_of(model)).logits.shape == (6, 3)


class WeightedTrainer(Trainer):
    """The recipe for class weights of many model cards and answers."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = functional.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]))
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("method", CLASSES)
def test_the_weighted_trainer_of_model_cards_is_refused_at_its_first_step(method: str, tmp_path: Path) -> None:
    model = build(method)
    rows = [{"input_ids": [1, 7, 8, 2], "attention_mask": [1] * 4, "labels": index % 3} for index in range(4)]
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    with pytest.raises(ValueError, match=MESSAGE):
        WeightedTrainer(model, arguments, train_dataset=rows).train()


@pytest.mark.slow
def test_the_trainer_of_cross_encoders_is_refused_at_its_first_step(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments

    build("pabee-regression").save_pretrained(tmp_path)
    new_tokenizer().save_pretrained(tmp_path)
    pairs = {"query": ["w7 w8"] * 4, "passage": ["w9", "w8", "w7 w9", "w5"], "label": [0.0, 1.0, 1.0, 0.0]}
    arguments = CrossEncoderTrainingArguments(
        str(tmp_path / "out"), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = CrossEncoderTrainer(CrossEncoder(str(tmp_path), device="cpu"), arguments, Dataset.from_dict(pairs))
    with pytest.raises(ValueError, match=MESSAGE):
        trainer.train()
