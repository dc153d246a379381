"""Data sets in any form give the same rows, and a text gives the same answer with padding on either side."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from datasets import Dataset, DatasetDict
from helpers.tiny import ENCODERS, VARIANTS, build, inputs_of, trace_of
from helpers.words import new_tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline

from adaexit_hf import collect_trace, predict
from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.early_exit_loop import right_padded, rotated_back
from adaexit_hf.models.padded_batches import DatasetError, eval_mode, items_of, read_rows

TEXTS = ["w7 w8", "w9", "w10 w11 w12 w13"]
LABELS = [0, 1, 2]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return new_tokenizer(model_max_length=None)


@pytest.fixture(scope="module")
def left_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = new_tokenizer(model_max_length=None)
    tokenizer.padding_side = "left"
    return tokenizer


def moved_left(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same batch with its padding on the left, row by row."""
    shifts = (inputs["attention_mask"] == 0).sum(dim=1).tolist()
    return {
        name: torch.stack([row.roll(shift, dims=0) for row, shift in zip(value, shifts, strict=True)])
        for name, value in inputs.items()
    }


# Padding sides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "encoder"),
    [*((variant, "bert") for variant in VARIANTS), *((method, name) for name in ENCODERS for method in ("deebert",))],
)
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(variant: str, encoder: str) -> None:
    model = build(variant, encoder)
    right = inputs_of(model)
    left = moved_left(right)
    expected, found = trace_of(model, right), trace_of(model, left)
    torch.testing.assert_close(found.exit_logits, expected.exit_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.exit_scores, expected.exit_scores, rtol=1e-5, atol=1e-5)
    threshold = sum(model.config.threshold_bounds) / 2 if model.config.exit_criterion != "patience" else 1.0
    exits, expected_exits = (model(**inputs, exit_threshold=threshold) for inputs in (left, right))
    assert torch.equal(exits.exit_layer, expected_exits.exit_layer)
    torch.testing.assert_close(exits.logits, expected_exits.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoder", ["bert", "mpnet"])
@torch.no_grad()
def test_hidden_states_and_attention_weights_are_those_of_the_tokens_that_were_passed(encoder: str) -> None:
    model = build("deebert", encoder)
    model.set_attn_implementation("eager")
    right = inputs_of(model)
    shifts = (right["attention_mask"] == 0).sum(dim=1).tolist()
    kept = {"output_hidden_states": True, "output_attentions": True}
    expected, found = (model(**inputs, **kept) for inputs in (right, moved_left(right)))
    for state, expected_state in zip(found.hidden_states, expected.hidden_states, strict=True):
        for row, expected_row, shift in zip(state, expected_state, shifts, strict=True):
            torch.testing.assert_close(row, expected_row.roll(shift, dims=0))
    for weights, expected_weights in zip(found.attentions, expected.attentions, strict=True):
        for row, expected_row, shift in zip(weights, expected_weights, shifts, strict=True):
            torch.testing.assert_close(row, expected_row.roll((shift, shift), dims=(1, 2)))


@torch.no_grad()
def test_positions_that_were_passed_stay_those_of_their_tokens() -> None:
    model = build("deebert")
    right = inputs_of(model) | {"position_ids": torch.arange(9) + torch.arange(6)[:, None]}
    expected = trace_of(model, right).exit_logits
    torch.testing.assert_close(trace_of(model, moved_left(right)).exit_logits, expected)
    # With one row of positions for all texts, each token keeps the position of its column.
    left = moved_left(inputs_of(model))
    columns = torch.arange(9).repeat(6, 1)
    by_text = trace_of(model, left | {"position_ids": columns}).exit_logits
    for positions in (torch.arange(9)[None], torch.arange(9)):
        torch.testing.assert_close(trace_of(model, left | {"position_ids": positions}).exit_logits, by_text)


@torch.no_grad()
def test_token_depths_move_with_their_tokens() -> None:
    model = build("depth-adaptive", depth_source="reconstruction")
    right = inputs_of(model)
    right["token_depths"] = (right["input_ids"] % 3 + 1) * right["attention_mask"]
    expected = trace_of(model, right).exit_logits
    torch.testing.assert_close(trace_of(model, moved_left(right)).exit_logits, expected)


@pytest.mark.parametrize("variant", ["deebert", "fastbert", "fastbert-mean"])
@torch.no_grad()
def test_states_of_a_frozen_encoder_belong_to_the_tokens_that_were_passed(variant: str) -> None:
    model = build(variant)
    left = moved_left(inputs_of(model))
    states = model.states_for_exits(left)
    found = model(exit_states=states, attention_mask=left["attention_mask"], early_exit=False).exit_logits
    torch.testing.assert_close(found, trace_of(model, left).exit_logits)


def test_training_is_the_same_with_padding_on_either_side() -> None:
    model, losses = build("berxit").train(), []
    right = inputs_of(model)
    for inputs in (right, moved_left(right)):
        model.zero_grad()
        torch.manual_seed(0)
        model.eval()  # without dropout, whose masks would lie on other tokens
        loss = model(**inputs, labels=torch.arange(6) % 3, objective="joint").loss
        loss.backward()
        losses.append((loss.item(), model.exits[0].dense.weight.grad.clone()))
    torch.testing.assert_close(losses[0], losses[1])


def test_a_row_of_nothing_but_padding_stays() -> None:
    inputs = {"input_ids": torch.tensor([[0, 5], [0, 0]]), "attention_mask": torch.tensor([[0, 1], [0, 0]])}
    moved, shift = right_padded(dict(inputs))
    assert moved["input_ids"].tolist() == [[5, 0], [0, 0]] and shift.tolist() == [1, 0]
    assert torch.equal(rotated_back(moved["input_ids"], shift), inputs["input_ids"])


def test_padding_inside_a_row_stays() -> None:
    mask = torch.tensor([[0, 1, 0, 1]])
    moved, _ = right_padded({"input_ids": torch.tensor([[0, 5, 0, 6]]), "attention_mask": mask})
    assert moved["attention_mask"].tolist() == [[1, 0, 1, 0]]


@torch.no_grad()
def test_all_paths_give_the_same_answers_with_a_tokenizer_that_pads_on_the_left(
    left_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = build("deebert", "deberta-v2", num_labels=3)
    batch = left_tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert batch["attention_mask"][1, 0] == 0
    rows = [{name: value[index].tolist() for name, value in batch.items()} for index in range(3)]
    answers = [
        model(**batch).logits,
        torch.cat([model(**left_tokenizer(text, return_tensors="pt")).logits for text in TEXTS]),
        predict(model, TEXTS, left_tokenizer, progress=False).logits,
        predict(model, rows, progress=False).logits,
        collect_trace(model, rows, progress=False).logits[:, -1],
        collect_trace(model, TEXTS, left_tokenizer, progress=False).logits[:, -1],
    ]
    for logits in answers[1:]:
        torch.testing.assert_close(logits, answers[0], rtol=1e-5, atol=1e-5)
    piped = pipeline("text-classification", model=model, tokenizer=left_tokenizer, batch_size=3, device="cpu")
    scores = [answer["score"] for answer in piped(TEXTS)]
    assert scores == pytest.approx(answers[0].softmax(dim=-1).amax(dim=-1).tolist(), abs=1e-5)


def test_long_rows_with_padding_on_the_left_keep_their_words() -> None:
    model = build("deebert")
    row = {"input_ids": [0] * 30 + [2, *range(5, 15), 3], "attention_mask": [0] * 30 + [1] * 12}
    (read,) = read_rows([row], None, model.config)
    assert read["input_ids"] == [2, *range(5, 15), 3]
    long = {"input_ids": [0] * 30 + [2, *range(5, 55), 3], "attention_mask": [0] * 30 + [1] * 52}
    with pytest.warns(UserWarning, match="1 texts have more than 32 tokens"):
        (read,) = read_rows([long], None, model.config)
    assert read["input_ids"] == [2, *range(5, 35), 3]


# Data sets -----------------------------------------------------------------------------------------------------------


class ByIndex:
    """A map-style data set, as PyTorch defines it: a length and indices."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": TEXTS[index], "label": LABELS[index]}


def rows() -> list[dict[str, Any]]:
    return [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


FORMS: dict[str, Any] = {
    "rows": rows,
    "dict of columns": lambda: {"text": TEXTS, "label": LABELS},
    "DataFrame": lambda: pandas.DataFrame(rows()),
    "Arrow table": lambda: pyarrow.Table.from_pylist(rows()),
    "Dataset": lambda: Dataset.from_list(rows()),
    "IterableDataset": lambda: Dataset.from_list(rows()).to_iterable_dataset(),
    "generator": lambda: (row for row in rows()),
    "map-style": ByIndex,
    "torch format": lambda: Dataset.from_list(rows()).with_format("torch"),
    "numpy format": lambda: Dataset.from_list(rows()).with_format("numpy"),
}


@pytest.mark.filterwarnings("ignore:temperature .* is at its bound")  # three texts are few
@pytest.mark.parametrize("form", FORMS)
def test_predict_traces_and_calibration_read_every_form_of_labelled_texts(
    form: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build("deebert")
    expected = predict(model, TEXTS, tokenizer, progress=False).logits
    assert torch.equal(predict(model, FORMS[form](), tokenizer, progress=False).logits, expected)
    trace = collect_trace(model, FORMS[form](), tokenizer, progress=False)
    torch.testing.assert_close(trace.logits[:, -1], expected)
    assert trace.known_labels().tolist() == LABELS
    temperatures = model.calibrate_temperatures(FORMS[form](), tokenizer)
    assert temperatures == model.calibrate_temperatures(rows(), tokenizer)


@pytest.mark.parametrize(
    "texts",
    [TEXTS, tuple(TEXTS), np.array(TEXTS), pandas.Series(TEXTS), Dataset.from_list(rows())["text"], iter(TEXTS)],
    ids=["list", "tuple", "array", "Series", "column", "iterator"],
)
def test_texts_alone_come_in_many_forms(texts: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build("deebert")
    expected = predict(model, list(TEXTS), tokenizer, progress=False).logits
    assert torch.equal(predict(model, texts, tokenizer, progress=False).logits, expected)


def test_what_a_tokenizer_returns_is_a_data_set(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build("deebert")
    expected = predict(model, TEXTS, tokenizer, progress=False).logits
    for encoding in (tokenizer(TEXTS), tokenizer(TEXTS, padding=True, return_tensors="pt")):
        torch.testing.assert_close(predict(model, encoding, progress=False).logits, expected)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("one text", r"dataset: got str; pass a list of texts or rows, e.g. predict\(model, \[text\], tokenizer\)"),
        (np.array("one text"), "dataset: got ndarray; pass a list"),
        ({"text": "one text"}, "dataset: got dict; pass a list .*it has text"),
        ({"text": TEXTS, "label": [0]}, "dataset: got dict; .* columns of the same length; it has text, label"),
        (DatasetDict(train=Dataset.from_list(rows())), r"dataset: got the splits train; .*dataset\['train'\]"),
        (DataLoader([1, 2]), "dataset: got a DataLoader, which yields batches; pass its data set, dataloader.dataset"),
        (7, "dataset: got int; pass a list of texts or rows"),
    ],
    ids=["text", "array", "row", "lengths", "splits", "loader", "number"],
)
def test_what_is_no_data_set_is_refused_with_the_call_to_make(
    dataset: Any, message: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build("deebert")
    for call in (
        lambda: predict(model, dataset, tokenizer, progress=False),
        lambda: collect_trace(model, dataset, tokenizer, progress=False),
        lambda: model.calibrate_temperatures(dataset, tokenizer),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_transform_of_the_users_is_applied_everywhere(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build("deebert")
    data = Dataset.from_list(rows()).with_transform(
        lambda batch: tokenizer(batch["text"]) | {"label": [2 - label for label in batch["label"]]}
    )
    expected = predict(model, TEXTS, tokenizer, progress=False).logits
    torch.testing.assert_close(predict(model, data, progress=False).logits, expected)
    trace = collect_trace(model, data, progress=False)
    torch.testing.assert_close(trace.logits[:, -1], expected)
    assert trace.known_labels().tolist() == [2, 1, 0]
    regression = build("berxit", num_labels=1)
    regression.classifiers[0].bias.data.zero_()
    regression.prepare(Dataset.from_list(rows()).with_transform(lambda batch: {"label": [9.0] * len(batch["text"])}))
    assert regression.classifiers[0].bias.item() == 9.0


def test_an_error_of_the_data_set_names_the_item(tokenizer: PreTrainedTokenizerFast) -> None:
    def broken() -> Iterator[str]:
        yield "w7"
        raise OSError("disk gone")

    with pytest.raises(DatasetError, match="dataset: item 1 raised OSError: disk gone"):
        collect_trace(build("deebert"), broken(), tokenizer, progress=False)


@pytest.mark.parametrize("token", [64, -1])
def test_a_token_that_is_not_in_the_vocabulary_is_refused(token: int) -> None:
    model = build("deebert")
    message = f"dataset: item 1 has the token id {token}, but the encoder's vocabulary has the ids 0 to 63"
    for call in (
        lambda rows: predict(model, rows, progress=False),
        lambda rows: collect_trace(model, rows, progress=False),
        model.calibrate_temperatures,
    ):
        with pytest.raises(ValueError, match=message):
            call([{"input_ids": [5, 6], "label": 0}, {"input_ids": [5, token], "label": 1}])
    with pytest.raises(ValueError, match=f"input_ids: got {token}, but the encoder's vocabulary has the ids 0 to 63"):
        model(torch.tensor([[5, token]]))


def test_items_of_columns_are_plain_values() -> None:
    columns = {"input_ids": torch.tensor([[1, 2], [3, 4]]), "label": np.array([0.5, 1.5])}
    assert list(items_of(columns)) == [{"input_ids": [1, 2], "label": 0.5}, {"input_ids": [3, 4], "label": 1.5}]


def test_columns_that_the_user_has_chosen_stay_the_only_ones(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build("deebert")
    rows = [dict(tokenizer(text, "w9")) | {"token_type_ids": [1] * 5} for text in ("w7", "w8")]
    chosen = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]
    data = Dataset.from_list(rows).with_format("torch", columns=["input_ids", "attention_mask"])
    expected = predict(model, chosen, progress=False).logits
    assert not torch.allclose(predict(model, rows, progress=False).logits, expected)
    assert torch.equal(predict(model, data, progress=False).logits, expected)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"input_ids": [5], "position_ids": [3]}, r"item 0 has position_ids, which only model\(\*\*batch\) reads"),
        ({"input_ids": [[5, 6]]}, r"item 0 has the input_ids \[\[5, 6\]\]; pass a flat list of token ids per row"),
        ({"text": None, "text_pair": "w7"}, "item 0 is .* pass texts, pairs of texts"),
        ("w7 \ud83d", "item 0 has half a surrogate pair"),
        (("w7", "\ud83d"), "item 0 has half a surrogate pair"),
    ],
    ids=["positions", "nested", "no text", "surrogate", "surrogate in the pair"],
)
def test_an_item_that_cannot_be_read_is_named(item: Any, message: str, tokenizer: PreTrainedTokenizerFast) -> None:
    for call in (predict, collect_trace):
        with pytest.raises(ValueError, match=f"dataset: {message}"):
            call(build("deebert"), [item], tokenizer, progress=False)


def test_a_single_tokenized_row_is_refused_with_the_call_to_make() -> None:
    with pytest.raises(ValueError, match=r"item 0 has the input_ids 5; .* a single row as a list, \[row\]"):
        predict(build("deebert"), {"input_ids": [5, 6]}, progress=False)


def test_any_number_but_0_in_a_mask_is_a_token() -> None:
    row = {"input_ids": [0, 5, 6, 0], "attention_mask": [0, 2, 2, 0]}
    assert read_rows([row], None, build("deebert").config)[0]["input_ids"] == [5, 6]


def test_a_batch_size_in_place_of_the_tokenizer_is_refused() -> None:
    for call in (
        lambda rows: collect_trace(build("deebert"), rows, 64),
        lambda rows: build("deebert").calibrate_temperatures(rows, 64),
    ):
        with pytest.raises(TypeError, match="tokenizer: got 64; .* passed by name, e.g. batch_size=32"):
            call([{"input_ids": [5], "label": 0}])


# Modes ---------------------------------------------------------------------------------------------------------------


def test_the_previous_mode_returns_when_the_last_thread_has_finished() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    inside, go_on, modes = threading.Barrier(2, timeout=10), threading.Event(), []

    def short() -> None:
        with eval_mode(model):
            inside.wait()

    def long() -> None:
        with eval_mode(model):
            inside.wait()
            go_on.wait(timeout=10)
            modes.append(model[0].training)

    threads = [threading.Thread(target=target) for target in (short, long)]
    for thread in threads:
        thread.start()
    threads[0].join()
    go_on.set()
    threads[1].join()
    assert modes == [False]
    assert [part.training for part in model] == [True, False]


def test_explaining_restores_the_mode_of_every_module(tokenizer: PreTrainedTokenizerFast) -> None:
    from adaexit_hf import attention_entropy, explain

    model: EarlyExitForSequenceClassification = build("deebert").train()
    model.set_attn_implementation("eager")
    model.encoder.eval()
    before = [module.training for module in model.modules()]
    explain(model, TEXTS[:1], tokenizer, steps=2, progress=False)
    assert [module.training for module in model.modules()] == before
    attention_entropy(model, TEXTS[:1], tokenizer, progress=False)
    assert [module.training for module in model.modules()] == before


# Pairs and single texts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [True, False])
def test_texts_of_the_other_kind_than_those_of_training_are_refused(
    pairs: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = build("deebert", pairs=pairs).config
    of_kind = {False: "w7", True: ("w7", "w8")}
    (row,) = read_rows([of_kind[pairs]], tokenizer, config)
    assert row["input_ids"]
    message = "item 1 is a (single text|pair of texts), but the model was trained on (single|pairs of) texts; pass"
    with pytest.raises(ValueError, match=message):
        read_rows([of_kind[pairs], of_kind[not pairs]], tokenizer, config)
    assert len(read_rows(list(of_kind.values()), tokenizer, build("deebert").config)) == 2  # unknown: both


def test_the_kind_of_texts_is_in_the_config(tmp_path: Path) -> None:
    assert build("deebert").config.pairs is None and build("deebert", exit_head="pair").config.pairs is True
    with pytest.raises(TypeError, match="pairs: got 'yes'; pass True for pairs of texts, False for single texts, or"):
        build("deebert", pairs="yes")
    with pytest.raises(
        ValueError, match="exit_head: got 'pair', which compares the two texts of a pair, but the model"
    ):
        build("deebert", exit_head="pair", pairs=False)
    build("deebert", pairs=True).save_pretrained(tmp_path)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.pairs is True
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path, pairs=None).config.pairs is None
