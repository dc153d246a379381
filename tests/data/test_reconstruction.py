"""Depths by reconstruction against Eq. 4 and one forward pass for each masked token."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from helpers.tiny import COMMON, ENCODERS, FAMILIES, encoder_config
from torch.nn import functional
from transformers import (
    AutoModelForMaskedLM,
    BertTokenizerFast,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from adaexit_hf import DepthAdaptiveForSequenceClassification, EarlyExitTrainer, EarlyExitTrainingArguments
from adaexit_hf.data.collators import DataCollatorWithTokenDepths
from adaexit_hf.data.reconstruction import (
    anytime_losses,
    anytime_masked_lm,
    depths_by_penalty,
    estimate_depths_by_reconstruction,
)
from adaexit_hf.models.modeling_depth_adaptive import DepthAdaptiveConfig

assert COMMON["vocab_size"] == 64


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(59))]
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("\n".join(words))
    return BertTokenizerFast(vocab=dict(zip(words, range(64), strict=True)))


def masked_lm(name: str = "bert") -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(encoder_config(name)).eval()


def rows(count: int = 5) -> datasets.Dataset:
    generator = torch.Generator().manual_seed(3)
    texts = [[2, *torch.randint(5, 64, (2 + n,), generator=generator).tolist(), 3] for n in range(count)]
    return datasets.Dataset.from_list([{"input_ids": text, "label": 0} for text in texts])


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_last_layers_prediction_is_the_stock_models(name: str) -> None:
    model = masked_lm(name)
    ids = torch.tensor([[2, 7, 4, 9, 3], [2, 4, 3, 0, 0]])
    mask = (ids != 0).long()
    targets = torch.full_like(ids, -100)
    targets[0, 2], targets[1, 1] = 8, 11
    losses = anytime_losses(model, {"input_ids": ids, "attention_mask": mask}, targets)
    logits = model(input_ids=ids, attention_mask=mask).logits[targets != -100]
    layers = getattr(model.config, "num_hidden_layers", 3)
    assert losses.shape == (layers, 2)
    expected = functional.cross_entropy(logits.float(), targets[targets != -100], reduction="none")
    torch.testing.assert_close(losses[-1], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def naive_depths(model: PreTrainedModel, text: list[int], penalty: float) -> list[int]:
    depths = []
    for place, token in enumerate(text):
        if token in (0, 1, 2, 3, 4):
            depths.append(1)
            continue
        masked = torch.tensor([[*text[:place], 4, *text[place + 1 :]]])
        states = model.base_model(masked, output_hidden_states=True).hidden_states[1:]
        costs = [
            float(-model.cls(h)[0, place].log_softmax(dim=0)[token]) + penalty * n
            for n, h in enumerate(states, start=1)
        ]
        depths.append(costs.index(min(costs)) + 1)
    return depths


@pytest.mark.parametrize("penalty", [0.0, 0.1, 2.0])
def test_depths_are_those_of_one_mask_at_a_time(tokenizer: BertTokenizerFast, penalty: float) -> None:
    model, data = masked_lm(), rows()
    found = estimate_depths_by_reconstruction(data, model, tokenizer, penalty=penalty, batch_size=4)
    assert found["token_depths"] == [naive_depths(model, text, penalty) for text in data["input_ids"]]


def test_a_larger_penalty_gives_lesser_depths(tokenizer: BertTokenizerFast) -> None:
    model, data = masked_lm(), rows()
    sums = []
    for penalty in (0.0, 0.2, 1.0, 100.0):
        found = estimate_depths_by_reconstruction(data, model, tokenizer, penalty=penalty)
        sums.append(sum(map(sum, found["token_depths"])))
    assert sums == sorted(sums, reverse=True) and len(set(sums)) > 2
    assert sums[-1] == sum(map(len, data["input_ids"]))


def test_several_masks_at_once_estimate_depths(tokenizer: BertTokenizerFast) -> None:
    data, calls = rows(), []
    model = masked_lm()
    model.base_model.embeddings.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    estimate_depths_by_reconstruction(data, model, tokenizer, masked_at_once=1)
    single, calls[:] = sum(calls), []
    found = estimate_depths_by_reconstruction(data, model, tokenizer, masked_at_once=3)
    assert single == sum(len(text) - 2 for text in data["input_ids"])
    assert sum(calls) == sum(-(-(len(text) - 2) // 3) for text in data["input_ids"])
    assert [len(row) for row in found["token_depths"]] == [len(text) for text in data["input_ids"]]


def test_interrupted_work_goes_on(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    model, data, file = masked_lm(), rows(), tmp_path / "losses.jsonl"
    whole = estimate_depths_by_reconstruction(data, model, tokenizer, losses_file=file)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:10])
    calls: list[int] = []
    model.base_model.embeddings.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    again = estimate_depths_by_reconstruction(data, model, tokenizer, losses_file=file)
    assert again["token_depths"] == whole["token_depths"]
    assert sum(calls) == sum(len(text) - 2 for text in data["input_ids"][2:])
    assert [json.loads(line) for line in file.read_text().splitlines()] == [json.loads(line) for line in lines]


def test_another_penalty_costs_nothing(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    model, data, file = masked_lm(), rows(), tmp_path / "losses.jsonl"
    estimate_depths_by_reconstruction(data, model, tokenizer, losses_file=file)
    model.base_model.embeddings.register_forward_hook(lambda *_: pytest.fail("ran again"))
    found = estimate_depths_by_reconstruction(data, model, tokenizer, penalty=100.0, losses_file=file)
    assert {depth for row in found["token_depths"] for depth in row} == {1}


def test_losses_of_other_texts_are_refused(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    model, file = masked_lm(), tmp_path / "losses.jsonl"
    estimate_depths_by_reconstruction(rows(), model, tokenizer, losses_file=file)
    with pytest.raises(ValueError, match="losses_file: .* made from other texts, weights or masked_at_once"):
        estimate_depths_by_reconstruction(rows(6), model, tokenizer, losses_file=file)


def test_training_lowers_the_summed_loss_and_saves_as_ever(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    model = anytime_masked_lm(masked_lm())
    data = rows(8).remove_columns("label")
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=12, learning_rate=5e-3, report_to=[], save_strategy="no", use_cpu=True,
        per_device_train_batch_size=8, logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5, seed=0)
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data, data_collator=collator)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "mlm"))
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "mlm")
    assert torch.equal(again.cls.predictions.transform.dense.weight, model.cls.predictions.transform.dense.weight)


def test_the_anytime_loss_is_the_sum_over_layers() -> None:
    model = masked_lm()
    ids = torch.tensor([[2, 7, 4, 9, 3]])
    labels = torch.tensor([[-100, -100, 8, 9, -100]])
    expected = anytime_losses(model, {"input_ids": ids}, labels).mean(dim=1).sum()
    torch.testing.assert_close(anytime_masked_lm(model)(input_ids=ids, labels=labels).loss, expected)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_collator_pads_depths_along(tokenizer: BertTokenizerFast, side: str) -> None:
    tokenizer.padding_side = side
    features: list[dict[str, Any]] = [
        {"input_ids": [2, 7, 3], "token_depths": [1, 2, 1], "label": 0},
        {"input_ids": [2, 7, 8, 3], "token_depths": [1, 3, 2, 1], "label": 1},
    ]
    batch = DataCollatorWithTokenDepths(tokenizer)(features)
    tokenizer.padding_side = "right"
    assert batch["token_depths"].tolist() == [[1, 2, 1, 0] if side == "right" else [0, 1, 2, 1], [1, 3, 2, 1]]
    assert batch["labels"].tolist() == [0, 1]


def test_the_column_drives_the_classifier(tokenizer: BertTokenizerFast) -> None:
    data = estimate_depths_by_reconstruction(rows(), masked_lm(), tokenizer)
    torch.manual_seed(0)
    config = DepthAdaptiveConfig(encoder_config("bert"), depth_source="reconstruction", num_labels=1)
    model = DepthAdaptiveForSequenceClassification(config).eval()
    batch = DataCollatorWithTokenDepths(tokenizer)([dict(row) for row in data])
    batch.pop("labels")
    assert model(**batch).exit_layer.tolist() == [max(row) for row in data["token_depths"]]


def test_the_trainer_pads_the_column(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    data = estimate_depths_by_reconstruction(rows(), masked_lm(), tokenizer)
    config = DepthAdaptiveConfig(encoder_config("bert"), depth_source="reconstruction", num_labels=2)
    model = DepthAdaptiveForSequenceClassification(config)
    args = EarlyExitTrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    trainer = EarlyExitTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    assert trainer.train().global_step == 2


def test_rows_as_tensors_give_the_same(tokenizer: BertTokenizerFast) -> None:
    model, data = masked_lm(), rows()
    plain = estimate_depths_by_reconstruction(data, model, tokenizer)
    tensors = estimate_depths_by_reconstruction(data.with_format("torch"), model, tokenizer)
    assert tensors.with_format(None)["token_depths"] == plain["token_depths"]


def test_unknown_words_get_the_deepest_layer(tokenizer: BertTokenizerFast) -> None:
    data = datasets.Dataset.from_list([{"input_ids": [2, 1, 9, 3]}, {"input_ids": [2, 3]}])
    found = estimate_depths_by_reconstruction(data, masked_lm(), tokenizer)["token_depths"]
    assert (found[0][0], found[0][1], found[0][3], found[1]) == (1, 3, 1, [1, 1])


def test_bad_arguments_are_refused(tokenizer: BertTokenizerFast) -> None:
    model, data = masked_lm(), rows()
    with pytest.raises(ValueError, match="penalty: got -0.1; pass a number >= 0"):
        estimate_depths_by_reconstruction(data, model, tokenizer, penalty=-0.1)
    with pytest.raises(ValueError, match="masked_at_once: got 0"):
        estimate_depths_by_reconstruction(data, model, tokenizer, masked_at_once=0)
    with pytest.raises(ValueError, match="dataset: got no rows"):
        estimate_depths_by_reconstruction([], model, tokenizer)
    with pytest.raises(TypeError, match="dataset: got list; pass a datasets.Dataset"):
        estimate_depths_by_reconstruction([dict(row) for row in data], model, tokenizer)
    for refused in (anytime_masked_lm, lambda bare: estimate_depths_by_reconstruction(data, bare, tokenizer)):
        with pytest.raises(ValueError, match="model: got BertModel; pass a masked language model"):
            refused(model.base_model)
    with pytest.raises(ValueError, match="token_depths: got 2 values for 3 tokens; .* another tokenizer"):
        DataCollatorWithTokenDepths(tokenizer)([{"input_ids": [2, 7, 3], "token_depths": [1, 2]}])


def test_ties_go_to_the_lower_layer() -> None:
    assert depths_by_penalty(torch.zeros(3, 2), 0.0).tolist() == [1, 1]
    assert set(ENCODERS) >= set(FAMILIES)
