"""What the classifier of exported models takes and gives."""

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.exports import PAIRS, TEXTS, copied, exported, facts_of, words, write_facts
from transformers import PreTrainedTokenizerFast

import adaexit_hf.onnx_runtime
from adaexit_hf import ExitTrace, collect_trace
from adaexit_hf.evaluation.collect import onnx_trace
from adaexit_hf.export.onnx import _tokenizer_text
from adaexit_hf.models.padded_batches import read_rows
from adaexit_hf.onnx_runtime import OnnxEarlyExitClassifier, OnnxPredictions
from adaexit_hf.onnx_runtime.__main__ import main as shell
from adaexit_hf.onnx_runtime.folder import sha256
from adaexit_hf.serving import EarlyExitEngine

MIXED = ["w5 w6", ("w7", "w8 w9"), {"input_ids": [1, 11, 2]}, {"text": "w12"}, {"text": "w5", "text_pair": "w6"}]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def classifier() -> OnnxEarlyExitClassifier:
    """With token types, patience as criterion, and three exits."""
    return exported("pabee-bert").run("fp32")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return exported("pabee-bert").tokenizer


@pytest.fixture(scope="module")
def by_margin() -> OnnxEarlyExitClassifier:
    """For pairs, with two exits."""
    return exported("deebert-bert-pair").run("fp32")


def rows_of(classifier: OnnxEarlyExitClassifier, items: Any) -> list[dict[str, list[int]]]:
    """What the first stage reads of every item."""
    windows = classifier._windows(items)
    return [{name: values[0].tolist() for name, values in row.items()} for window in windows for row in window]


def same(found: OnnxPredictions, expected: OnnxPredictions) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


# Token ids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_token_ids_are_those_of_the_tokenizer(
    items: list[Any], classifier: OnnxEarlyExitClassifier, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = rows_of(classifier, items)
    expected = [tokenizer(*(item if isinstance(item, tuple) else (item,))) for item in items]
    assert found == [{name: row[name] for name in ("input_ids", "token_type_ids")} for row in expected]


def test_the_same_text_may_come_in_many_forms(classifier: OnnxEarlyExitClassifier) -> None:
    single = ["w5 w6", ["w5 w6"], ("w5 w6",), {"text": "w5 w6"}, {"text": "w5 w6", "text_pair": None, "label": 1}]
    single += [{"input_ids": [1, 5, 6, 2]}, {"input_ids": np.array([1, 5, 6, 2])}]
    ids = torch.tensor([1, 5, 6, 2])
    single += [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": None}]
    pair = [("w5", "w6"), ["w5", "w6"], {"text": "w5", "text_pair": "w6"}]
    pair += [{"input_ids": [1, 5, 2, 6, 2], "token_type_ids": [0, 0, 0, 1, 1], "attention_mask": None}]
    for forms in (single, pair):
        found = classifier.predict(forms, 1)
        for values in found:
            assert (values == values[0]).all()


def test_kinds_may_be_mixed(classifier: OnnxEarlyExitClassifier) -> None:
    together = classifier.predict(MIXED, 1)
    alone = [classifier.predict([item], 1) for item in MIXED]
    assert same(together, OnnxPredictions(*(np.concatenate(parts) for parts in zip(*alone, strict=True))))


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_of_tokenized_rows_is_removed(side: str, classifier: OnnxEarlyExitClassifier) -> None:
    ids, types = [1, 5, 2, 6, 2], [0, 0, 0, 1, 1]
    padded = {
        name: values + [0] * 3 if side == "right" else [0] * 3 + values
        for name, values in (("input_ids", ids), ("token_type_ids", types), ("attention_mask", [1] * 5))
    }
    assert rows_of(classifier, [padded]) == [{"input_ids": ids, "token_type_ids": types}]


LONG = [words(50), (words(50), "w5"), ("w5", words(50)), (words(40), words(45, 9))]


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_is_that_of_pytorch(side: str, tmp_path: Path) -> None:
    made, folder = exported("pabee-bert"), copied("pabee-bert", tmp_path / "model")
    tokenizer = type(made.tokenizer)(
        tokenizer_object=made.tokenizer.backend_tokenizer,
        model_max_length=32,
        truncation_side=side,
        model_input_names=made.tokenizer.model_input_names,
    )
    text = _tokenizer_text(tokenizer, 32, None)
    (folder / "tokenizer.json").write_text(text)
    facts = facts_of(folder)
    write_facts(folder, facts | {"tokenizer": facts["tokenizer"] | {"sha256": sha256(text.encode())}})
    classifier = OnnxEarlyExitClassifier.from_pretrained(folder, threads=1)
    row = {"input_ids": [1, *range(5, 55), 2]}
    message = "5 texts have more than 32 tokens, the most that this model reads"
    with pytest.warns(UserWarning, match=message):
        expected = read_rows([*LONG, "w5", row], tokenizer, made.model.config)
    with pytest.warns(UserWarning, match=message):
        found = rows_of(classifier, [*LONG, "w5", row])
    assert [each["input_ids"] for each in found] == [each["input_ids"] for each in expected]
    assert [each["token_type_ids"] for each in found[:-1]] == [each["token_type_ids"] for each in expected[:-1]]
    assert {len(each["input_ids"]) for each in found} == {32, 3}
    other = tokenizer.truncation_side = {"left": "right", "right": "left"}[side]
    with pytest.warns(UserWarning, match="truncated"):
        cut_at_the_other_end = read_rows(LONG, tokenizer, made.model.config)
    for asked, wanted in ((other, cut_at_the_other_end), (side, expected), (None, expected)):
        rows = [row["input_ids"][0].tolist() for row, _ in classifier.rows(enumerate(LONG), asked)]
        assert rows == [each["input_ids"] for each in wanted[: len(LONG)]]


def test_the_first_truncated_text_of_a_stream_is_told_of(
    classifier: OnnxEarlyExitClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have no end; what follows is counted at the end."""
    monkeypatch.setattr("adaexit_hf.onnx_runtime.classifier.WINDOW_TOKENS", 10)
    endless = classifier.predict_stream((words(50) for _ in count()), 1)
    with pytest.warns(UserWarning, match="texts have more than 32 tokens"):
        next(endless)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(endless)
    with pytest.warns(UserWarning, match="^[24] texts have more than 32 tokens") as told:
        list(classifier.predict_stream([words(50)] * 4, 1))
    assert [str(each.message)[:7] for each in told] == ["2 texts", "4 texts"]


def test_texts_that_fit_are_not_warned_of(classifier: OnnxEarlyExitClassifier) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(rows_of(classifier, [words(30)])[0]["input_ids"]) == 32


def test_a_model_without_a_longest_text_truncates_none() -> None:
    classifier = exported("right-tool-modernbert").run()
    assert classifier.facts["max_tokens"] is None
    assert len(rows_of(classifier, [words(600)])[0]["input_ids"]) == 602


def test_empty_texts_are_read_as_predict_reads_them(
    classifier: OnnxEarlyExitClassifier, tokenizer: PreTrainedTokenizerFast
) -> None:
    """As texts without words, in both; `adaexit predict` and `python -m adaexit_onnx` answer that they are empty."""
    items, config = ["", " \n", ("", "w5"), ("w5", "")], exported("pabee-bert").model.config
    expected = read_rows(items, tokenizer, config)
    assert [row["input_ids"] for row in rows_of(classifier, items)] == [row["input_ids"] for row in expected]


# Bad items -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts: got none; pass at least one"),
        (iter(()), "texts: got none; pass at least one"),
        ("one text", r"texts: got str; pass a list of texts, e.g. predict\(\[text\]\)"),
        (b"one text", "texts: got bytes; pass a list of texts"),
        ({"text": ["w5"]}, "texts: got dict; pass a list of texts"),
        (["w5", 8], "texts: item 1 is 8; pass texts, pairs of texts, rows with 'text' "),
        ([None], "texts: item 0 is None; pass texts"),
        ([b"w5"], "texts: item 0 is b'w5'; pass texts"),
        ([("w7", "w8", "w9")], "texts: item 0 is .*'w9'.*pass texts"),
        ([()], r"texts: item 0 is \(\); pass texts"),
        ([(None, "w5")], "texts: item 0 is .*None.*pass texts"),
        ([{"sentence": "w7"}], "texts: item 0 is {'sentence': 'w7'}; pass texts"),
        ([{"text": 5}], "texts: item 0 is {'text': 5}; pass texts"),
        (["half \ud800"], "texts: item 0 has half a surrogate pair"),
        ([{"input_ids": []}], "texts: item 0 has no input_ids"),
        ([{"input_ids": None}], "texts: item 0 has the input_ids None; pass a flat list"),
        ([{"input_ids": 7}], "texts: item 0 has the input_ids 7; pass a flat list"),
        ([{"input_ids": [[7, 8]]}], r"texts: item 0 has the input_ids \[\[7, 8\]\]; pass a flat list"),
        ([{"input_ids": [7.5, 8.5]}], r"texts: item 0 has the input_ids \[7.5, 8.5\]; pass a flat list"),
        ([{"input_ids": ["7"]}], r"texts: item 0 has the input_ids \['7'\]; pass a flat list"),
        ([{"input_ids": [7, 64]}], "texts: item 0 has the token id 64, but the vocabulary has the ids 0 to 63; use"),
        ([{"input_ids": [7, -1]}], "texts: item 0 has the token id -1, but the vocabulary"),
        ([{"input_ids": [7, 8], "attention_mask": [1]}], "item 0 has .*more or fewer .*attention_mask; tokenize it"),
        ([{"input_ids": [7, 8], "attention_mask": [1] * 3}], "item 0 has .*more or fewer .*attention_mask; tokenize"),
        ([{"input_ids": [7, 8], "token_type_ids": [0]}], "item 0 has .*more or fewer token_type_ids"),
        ([{"input_ids": [7, 8, 9], "attention_mask": [1, 0, 1]}], "item 0 has an attention_mask with gaps, which PyT"),
        ([{"input_ids": [7], "position_ids": [3]}], "item 0 has position_ids, which an exported model does not read"),
        ([{"input_ids": [7], "inputs_embeds": [[0.5]]}], "item 0 has inputs_embeds, which an exported model"),
    ],
)
def test_bad_texts_are_refused(texts: Any, message: str, classifier: OnnxEarlyExitClassifier) -> None:
    with pytest.raises(ValueError, match=message):
        classifier.predict(texts, 1)


def test_a_trace_refuses_bad_texts_too(classifier: OnnxEarlyExitClassifier) -> None:
    with pytest.raises(ValueError, match="texts: item 1 is 8"):
        classifier.trace(["w5", 8])
    with pytest.raises(ValueError, match="texts: got none"):
        classifier.trace([])


def test_a_model_of_pairs_takes_no_single_texts(by_margin: OnnxEarlyExitClassifier) -> None:
    message = "item 1 is a single text, but the model was trained on pairs of texts; pass a pair of texts per item"
    with pytest.raises(ValueError, match=message):
        by_margin.predict([("w5", "w6"), "w7"])


def test_a_model_of_single_texts_takes_no_pairs(tmp_path: Path) -> None:
    folder = copied("fastbert-bert", tmp_path / "model")
    write_facts(folder, facts_of(folder) | {"pairs": False})
    message = "item 0 is a pair of texts, but the model was trained on single texts; pass a single text per item"
    with pytest.raises(ValueError, match=message):
        OnnxEarlyExitClassifier.from_pretrained(folder, threads=1).predict([("w5", "w6")])


# Thresholds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exit_threshold": -0.1}, "exit_threshold: got -0.1; margin takes numbers from 0 to 1, or None"),
        ({"exit_threshold": 1.5}, "exit_threshold: got 1.5; margin takes numbers from 0 to 1"),
        ({"exit_threshold": math.nan}, "exit_threshold: got nan; margin takes numbers from 0 to 1"),
        ({"exit_threshold": True}, "exit_threshold: got True; margin takes numbers"),
        ({"exit_threshold": "0.5"}, "exit_threshold: got '0.5'; margin takes numbers"),
        ({"exit_threshold": [0.5, 2]}, "exit_threshold: got 2; margin takes numbers"),
        ({"exit_threshold": [0.5]}, "exit_threshold: got 1 numbers for 2 exits; pass one number, or one per exit"),
        ({"exit_threshold": []}, "exit_threshold: got 0 numbers for 2 exits"),
        ({"exit_threshold": 0.5, "early_exit": False}, "exit_threshold: got 0.5 with early_exit=False, where all lay"),
        ({"early_exit": True}, "early_exit: got True, which needs a threshold; pass exit_threshold=<number>"),
    ],
)
def test_bad_thresholds_are_refused(options: dict[str, Any], message: str, by_margin: OnnxEarlyExitClassifier) -> None:
    def stream(texts: Any, **given: Any) -> None:
        list(by_margin.predict_stream(texts, **given))

    for refused in (by_margin.predict, by_margin, stream):
        with pytest.raises(ValueError, match=message):
            refused([("w5", "w6")], **options)


@pytest.mark.parametrize("bad", [1.5, 4, False, -1])
def test_patience_takes_whole_numbers_up_to_the_number_of_exits(bad: Any, classifier: OnnxEarlyExitClassifier) -> None:
    with pytest.raises(
        ValueError, match=f"exit_threshold: got {bad}; patience takes whole numbers from 1 to 3, or No"
    ):
        classifier.predict(["w5"], bad)


def test_a_patience_of_zero_is_full_depth(classifier: OnnxEarlyExitClassifier) -> None:
    assert set(classifier.predict(TEXTS, 0).exit_layer) == {3}
    assert 2 in classifier.predict(TEXTS, 1).exit_layer
    with pytest.raises(ValueError, match="early_exit: got True, which needs a threshold"):
        classifier.predict(TEXTS, 0, early_exit=True)


def test_no_layer_is_the_zeroth() -> None:
    classifier = exported("deebert-deberta-layer").run()
    with pytest.raises(ValueError, match="exit_threshold: got 0; layer takes whole numbers from 1 to 2, or None"):
        classifier.predict(["w5"], 0)


@pytest.mark.parametrize("one", [0.25, np.float32(0.25), np.float64(0.25), np.array(0.25)])
def test_thresholds_may_be_of_numpy_or_one_per_exit(one: Any, by_margin: OnnxEarlyExitClassifier) -> None:
    expected = by_margin.predict(PAIRS, 0.25)
    assert len(set(expected.exit_layer)) == 2
    for threshold in (one, [0.25, 1.0], (0.25, 0.0), np.array([0.25, 0.5])):
        assert same(by_margin.predict(PAIRS, threshold), expected)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_bad_numbers_of_threads_are_refused(threads: Any) -> None:
    with pytest.raises(
        ValueError, match=f"threads: got {threads!r}; pass a whole number from 1, or None for all cores"
    ):
        exported("pabee-bert").run(threads=threads)


def test_the_default_is_a_thread_for_every_core_of_this_process() -> None:
    assert exported("pabee-bert").run(threads=None).threads == len(os.sched_getaffinity(0))


# Answers -------------------------------------------------------------------------------------------------------------


def test_predictions_are_arrays_in_the_order_of_the_texts(classifier: OnnxEarlyExitClassifier) -> None:
    found = classifier.predict(iter(TEXTS), 1)
    assert (found.logits.shape, found.logits.dtype) == ((len(TEXTS), 3), np.float32)
    assert (found.exit_layer.shape, found.exit_score.dtype) == ((len(TEXTS),), np.float32)
    backwards = classifier.predict(TEXTS[::-1], 1)
    assert same(OnnxPredictions(*(values[::-1] for values in backwards)), found)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("tokens", [1, 40, 2**14])
@pytest.mark.parametrize("block", [1, 5, 256])
def test_a_stream_gives_what_predict_gives(
    threads: int, tokens: int, block: int, classifier: OnnxEarlyExitClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number of texts is kept, or tokenized, at a time."""
    expected = classifier.predict(MIXED + TEXTS, 1)
    assert len(set(expected.exit_layer)) == 2
    monkeypatch.setattr("adaexit_hf.onnx_runtime.classifier.WINDOW_TOKENS", tokens)
    monkeypatch.setattr("adaexit_hf.onnx_runtime.classifier.BLOCK", block)
    several = exported("pabee-bert").run("fp32", threads)
    assert same(several.predict(MIXED + TEXTS, 1), expected)
    logits, layers, scores = zip(*several.predict_stream(iter(MIXED + TEXTS), 1), strict=True)
    assert same(OnnxPredictions(np.stack(logits), np.array(layers), np.array(scores, dtype=np.float32)), expected)
    full_depth = classifier.predict(MIXED + TEXTS, early_exit=False)
    np.testing.assert_array_equal(several.trace(MIXED + TEXTS).logits[:, -1], full_depth.logits)


def test_a_text_that_has_left_runs_no_further_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, ran = exported("pabee-bert").run(), [0, 0, 0]
    stage_class = type(classifier.stages[0])
    run = stage_class.run

    def counting(self: Any, tensors: Any) -> Any:
        ran[classifier.stages.index(self)] += 1
        return run(self, tensors)

    monkeypatch.setattr(stage_class, "run", counting)
    layers = classifier.predict(TEXTS, 1).exit_layer
    assert ran == [int((layers >= layer).sum()) for layer in (1, 2, 3)]
    assert ran[1] > ran[2] > 0


def test_a_stream_may_be_endless(classifier: OnnxEarlyExitClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaexit_hf.onnx_runtime.classifier.WINDOW_TOKENS", 10)
    stream = classifier.predict_stream((f"w{5 + number % 50}" for number in count()), 1)
    assert [type(part) for part in next(stream)] == [np.ndarray, int, float]


def test_what_comes_before_a_failing_data_set_is_answered(
    classifier: OnnxEarlyExitClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaexit_hf.onnx_runtime.classifier.WINDOW_TOKENS", 6)
    monkeypatch.setattr("adaexit_hf.onnx_runtime.classifier.BLOCK", 2)

    def texts() -> Iterator[str]:
        yield from ["w5", "w6", "w7", "w8"]
        raise OSError("disk")

    stream = classifier.predict_stream(texts(), 1)
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(OSError, match="disk"):
        list(stream)


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(dim=-1).numpy()


def test_answers_name_the_class_and_its_probability(classifier: OnnxEarlyExitClassifier) -> None:
    answers, found = classifier(TEXTS, exit_threshold=1), classifier.predict(TEXTS, 1)
    assert [answer["label"] for answer in answers] == [f"LABEL_{best}" for best in found.logits.argmax(axis=1)]
    assert [answer["exit_layer"] for answer in answers] == found.exit_layer.tolist()
    np.testing.assert_allclose([answer["score"] for answer in answers], softmax(found.logits).max(axis=1), rtol=1e-12)
    assert {type(value) for answer in answers for value in answer.values()} == {str, float, int}


def test_answers_of_a_regression_are_numbers() -> None:
    classifier = exported("berxit-distilbert-regression").run()
    assert classifier.labels is None
    found = classifier.predict(TEXTS, 0.5)
    expected = [
        {"score": number, "exit_layer": layer}
        for number, layer in zip(found.logits[:, 0].tolist(), found.exit_layer.tolist(), strict=True)
    ]
    assert classifier(TEXTS, exit_threshold=0.5) == expected


def test_answers_of_several_labels_at_once_name_all_above_one_half() -> None:
    classifier = exported("fastbert-mpnet-labels").run()
    answers, found = classifier(TEXTS, early_exit=False), classifier.predict(TEXTS, early_exit=False)
    names = ["LABEL_0", "LABEL_1", "LABEL_2"]
    probabilities = torch.from_numpy(found.logits).double().sigmoid().numpy()
    for answer, row in zip(answers, probabilities, strict=True):
        assert list(answer["scores"]) == names
        np.testing.assert_allclose(list(answer["scores"].values()), row, rtol=1e-12)
        assert answer["labels"] == [name for name, value in zip(names, row, strict=True) if value > 0.5]
    assert len({tuple(answer["labels"]) for answer in answers}) > 1


@pytest.mark.parametrize("size", [1e4, 3e38])
def test_probabilities_of_huge_logits_are_finite(size: float, classifier: OnnxEarlyExitClassifier) -> None:
    named = classifier._named(np.array([size, -size, 0.0], dtype=np.float32), 1)
    assert named == {"label": "LABEL_0", "score": 1.0, "exit_layer": 1}


# Traces --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pabee-bert", "fastbert-mpnet-labels", "berxit-distilbert-regression"])
def test_a_saved_trace_is_read_by_the_package(name: str, tmp_path: Path) -> None:
    made = exported(name)
    classifier, about = made.run(), {"split": "dev"}
    labels = [row["label"] for row in made.labelled()]
    classifier.trace(made.items, labels, about).save(tmp_path / "trace.safetensors")
    found = ExitTrace.load(tmp_path / "trace.safetensors")
    expected = onnx_trace(classifier, made.labelled(), made.tokenizer, made.model.config, about)
    tensors = ("logits", "scores", "labels", "lengths", "row_hashes")
    for part in tensors:
        assert torch.equal(getattr(found, part), getattr(expected, part))
    in_torch = collect_trace(made.model, made.labelled(), made.tokenizer, progress=False)
    assert torch.equal(found.row_hashes, in_torch.row_hashes)
    facts = [name for name in vars(expected) if name not in tensors]
    assert {fact: getattr(found, fact) for fact in facts} == {fact: getattr(expected, fact) for fact in facts}


def test_a_trace_without_labels_is_saved_without(classifier: OnnxEarlyExitClassifier, tmp_path: Path) -> None:
    classifier.trace(TEXTS).save(tmp_path / "new" / "trace.safetensors")
    found = ExitTrace.load(tmp_path / "new" / "trace.safetensors")
    assert found.labels is None
    assert found.about == {"precision": "fp32"}


def test_more_or_fewer_labels_than_texts_are_refused(classifier: OnnxEarlyExitClassifier) -> None:
    for labels in ([], [0], [0, 1, 2]):
        with pytest.raises(ValueError, match=f"labels: got {len(labels)} for 2 texts; pass one per text"):
            classifier.trace(["w5", "w6"], labels)


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("pabee-bert", [0, 3], "labels: got 3 for text 1; pass class indices from 0 to 2"),
        ("pabee-bert", [-1, 2], "labels: got -1 for text 0; pass class indices from 0 to 2"),
        ("pabee-bert", [0, 1.5], "labels: got 1.5 for text 1; pass class indices"),
        ("pabee-bert", [0, math.nan], "labels: got nan for text 1; pass class indices"),
        ("pabee-bert", ["no", "yes"], r"labels: got \['no', 'yes'\]; pass class indices"),
        ("pabee-bert", [0, None], r"labels: got \[0, None\]; pass class indices"),
        ("pabee-bert", [[0], [1]], r"labels: got \[\[0\], \[1\]\]; pass class indices"),
        ("pabee-bert", 1, "labels: got 1; pass class indices"),
        ("berxit-distilbert-regression", [0.5, math.inf], "labels: got inf for text 1; pass finite numbers"),
        ("fastbert-mpnet-labels", [0, 1], r"labels: got \[0, 1\]; pass for each text a list of 3 numbers, 0 or 1"),
        ("fastbert-mpnet-labels", [[0, 1, 2], [0, 0, 0]], r"labels: got \[0, 1, 2\] for text 0; pass for each text"),
        ("fastbert-mpnet-labels", [[0, 1, 1], [0]], "pass for each text a list of 3 numbers"),
    ],
)
def test_wrong_labels_are_refused(name: str, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exported(name).run().trace(["w5", "w6"], labels)


def test_labels_have_the_types_of_a_trace() -> None:
    kinds = {"pabee-bert": [1.0, 2], "berxit-distilbert-regression": [1, 2], "fastbert-mpnet-labels": [[True] * 3] * 2}
    found = {name: exported(name).run().trace(["w5", "w6"], labels).labels for name, labels in kinds.items()}
    assert [str(labels.dtype) for labels in found.values() if labels is not None] == ["int64", "float32", "int64"]


# From a shell --------------------------------------------------------------------------------------------------------


def test_texts_are_answered_in_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    made = exported("fastbert-bert")
    assert shell([str(made.folder), "w5", " ", "w6 w7"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    first, last = made.run()(["w5", "w6 w7"])
    empty = {"label": None, "score": None, "exit_layer": None, "reason": "the text is empty"}
    assert found == [{"text": "w5"} | first, {"text": " "} | empty, {"text": "w6 w7"} | last]


def test_lines_are_answered_in_a_shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("adaexit_hf.onnx_runtime.__main__.BLOCK", 2)
    monkeypatch.setattr("sys.stdin", io.StringIO("w5\tw6\n\tw7\nw7\tw8 w9\r\n"))
    made = exported("deebert-bert-pair")
    assert shell([str(made.folder), "--precision", "fp32"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["text"] for each in found] == ["w5\tw6", "\tw7", "w7\tw8 w9"]
    answered = made.run()([("w5", "w6"), ("w7", "w8 w9")])
    assert [found[0], found[2]] == [{"text": found[0]["text"]} | answered[0], {"text": found[2]["text"]} | answered[1]]
    assert found[1]["reason"] == "the text is empty"


def test_a_shell_is_told_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert shell(["./oout", "w5"]) == 1
    assert capsys.readouterr().err.startswith("adaexit_onnx: name_or_path: there is no folder './oout'")


def test_what_is_loaded_can_be_seen(by_margin: OnnxEarlyExitClassifier) -> None:
    folder = exported("deebert-bert-pair").folder
    expected = f"OnnxEarlyExitClassifier('{folder}', fp32, threads=1, exit_layers=[1, 2], exit_threshold=None)"
    assert repr(by_margin) == expected
    assert repr(exported("deebert-bert-pair").run("int8")).endswith("exit_threshold=not chosen)")


# Without PyTorch -----------------------------------------------------------------------------------------------------

ALONE = """
import sys
for name in ("torch", "transformers", "adaexit_hf", "safetensors", "huggingface_hub"):
    sys.modules[name] = None  # importing it raises ImportError
from adaexit_onnx import OnnxEarlyExitClassifier
classifier = OnnxEarlyExitClassifier.from_pretrained(sys.argv[1], "int8", threads=2)
for answer in classifier(["w5 w6", ""], exit_threshold=1):
    print(answer)
try:
    classifier.trace(["w5"]).save("trace.safetensors")
except ImportError as error:
    print(error)
print(sorted(name for name, module in sys.modules.items() if module and name.split(".")[0] in ("torch", "adaexit_hf")))
"""


def test_it_runs_by_another_name_where_pytorch_cannot_be_imported(tmp_path: Path) -> None:
    made = exported("pabee-bert")
    shutil.copytree(
        Path(adaexit_hf.onnx_runtime.__file__).parent,
        tmp_path / "adaexit_onnx",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(made.folder)],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    expected = [str(answer) for answer in made.run("int8")(["w5 w6", ""], exit_threshold=1)]
    message = "a trace is saved as safetensors; call pip install safetensors"
    assert done.stdout.splitlines() == [*expected, message, "[]"]


def test_it_says_what_to_install_where_onnx_runtime_is_missing(tmp_path: Path) -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; from adaexit_hf.onnx_runtime import OnnxEarlyExitClassifier"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert re.search(r"ImportError: you need ONNX Runtime and Tokenizers \(.*\); call pip install", done.stderr)


# In the engine of `adaexit_hf.serving` -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_engine_gives_the_same_answers(precision: str) -> None:
    classifier = exported("pabee-bert").run(precision, threads=3)
    expected = classifier.predict(TEXTS, exit_threshold=1)
    with EarlyExitEngine(classifier, exit_threshold=1) as engine:
        answers = [future.result(60) for future in [engine.submit(text) for text in TEXTS]]
    assert np.array_equal(np.stack([answer.logits.numpy() for answer in answers]), expected.logits)
    assert [answer.exit_layer for answer in answers] == expected.exit_layer.tolist()
    assert engine.statistics().batches == {1: sum(expected.exit_layer)}


def test_the_engine_refuses_what_belongs_to_pytorch(
    classifier: OnnxEarlyExitClassifier, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match="^tokenizer: got .* with an OnnxEarlyExitClassifier, which has its own"):
        EarlyExitEngine(classifier, tokenizer)
