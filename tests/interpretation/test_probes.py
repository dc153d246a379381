"""Attention entropy, correlation of confidence with BLEU, and answers not waited for, against numbers by hand."""

import json
import math
import sys

import pytest
import torch
from helpers.tiny import EAGER_ONLY, build, inputs_of, trace_of

from adaexit_hf import ExitTrace
from adaexit_hf.evaluation.later_answers import had_they_gone_on
from adaexit_hf.evaluation.tradeoff import layer_scores
from adaexit_hf.interpretation.probes import as_json, attention_entropy, confidence_bleu_correlation

FIRST = [
    "the cat sat on the mat today",
    "a dog ran over the green hill",
    "we like tea very much",
    "one two three four",
]
SECOND = [
    "the cat sat on the mat now",
    "the birds fly south in winter",
    "we like tea very much",
    "one two six three four",
]


@pytest.mark.parametrize("encoder", ["bert", "roberta", "albert", "distilbert", "modernbert", *EAGER_ONLY])
def test_entropy_of_attention(encoder: str) -> None:
    model = build("deebert", encoder, attn_implementation="eager").train()
    inputs = inputs_of(model, rows=3)
    real = inputs["attention_mask"].bool()
    rows = [{name: value[row][real[row]].tolist() for name, value in inputs.items()} for row in range(3)]
    found = attention_entropy(model, rows, batch_size=2, progress=False)
    assert model.training
    assert found.tokens.tolist() == [3, 6, 9]
    model.eval()
    with torch.no_grad():
        weights = model(**inputs, early_exit=False, output_attentions=True).attentions
    for layer, weight in enumerate(weights):
        for row in range(3):
            own = weight[row][:, real[row]][:, :, real[row]]  # (heads, tokens, tokens)
            by_hand = -(own * own.clamp_min(1e-30).log()).sum(dim=-1).mean(dim=-1)
            torch.testing.assert_close(found.entropy[row, layer], by_hand, rtol=1e-4, atol=1e-5)
    assert (found.entropy <= found.tokens[:, None, None].log() + 1e-5).all()


def test_uniform_attention_has_the_largest_entropy() -> None:
    model = build("deebert", attn_implementation="eager")
    for layer in model.encoder.encoder.layer:
        torch.nn.init.zeros_(layer.attention.self.query.weight)
    found = attention_entropy(model, [{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9]}], progress=False)
    torch.testing.assert_close(found.entropy[0], torch.full((3, 4), math.log(4)))
    assert not found.entropy[1].any()


def test_attention_without_weights_is_refused() -> None:
    model = build("deebert")
    with pytest.raises(
        ValueError, match=r"attention implementation 'sdpa'.* model.set_attn_implementation\('eager'\)"
    ):
        attention_entropy(model, [{"input_ids": [5, 6]}], progress=False)
    model.set_attn_implementation("eager")
    assert attention_entropy(model, [{"input_ids": [5, 6]}], progress=False).entropy.shape == (1, 3, 4)


def sentences(logits: torch.Tensor) -> ExitTrace:
    return ExitTrace(logits, torch.zeros(logits.shape[:2]), None, (1, 2)[: logits.shape[1]], "gt")


def test_confidence_follows_bleu() -> None:
    pytest.importorskip("sacrebleu")
    sure = torch.tensor([[0.9, 0.6], [0.6, 0.9], [0.95, 0.7], [0.8, 0.8]])  # (samples, exits)
    positive = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 0]])
    likely = torch.where(positive.bool(), sure, 1 - sure)
    found = confidence_bleu_correlation(sentences(torch.stack([1 - likely, likely], dim=-1).log()), FIRST, SECOND)
    assert found.samples.tolist() == [[0, 4], [2, 2]]
    assert found.bleu[2] == pytest.approx(100)
    assert found.bleu[0] == pytest.approx(100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)  # same length: no penalty
    by_hand = torch.corrcoef(torch.stack([found.bleu, sure[:, 0]]))[0, 1].item()
    assert found.correlation[0, 1].item() == pytest.approx(by_hand, abs=1e-5)
    assert found.correlation[0, 0].isnan()  # nobody there
    assert found.correlation[1].abs().tolist() == pytest.approx([1, 1])  # two points lie on a line
    assert json.loads(json.dumps(as_json(found), allow_nan=False))["correlation"][0][0] is None


def test_correlation_wants_classes_and_a_pair_for_each_sample() -> None:
    with pytest.raises(ValueError, match="second: got 3 sentences for 4 samples"):
        confidence_bleu_correlation(sentences(torch.randn(4, 2, 2)), FIRST, SECOND[:3])
    with pytest.raises(ValueError, match="trace: got one label, and regression has no confidence; pass the trace"):
        confidence_bleu_correlation(sentences(torch.randn(4, 2, 1)), FIRST, SECOND)


def test_without_sacrebleu_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"need sacrebleu.* pip install adaexit_hf\[interpret\]"):
        confidence_bleu_correlation(sentences(torch.randn(4, 2, 2)), FIRST, SECOND)


def test_later_answers_are_those_found_by_hand() -> None:
    answers = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 0, 1]])
    scores = torch.tensor([[0.9, 0.9, 0.9], [0.1, 0.9, 0.9], [0.1, 0.2, 0.9], [0.9, 0.1, 0.1]])
    trace = ExitTrace(torch.eye(2)[answers], scores, torch.tensor([0, 1, 1, 0]), (2, 3, 6), "gt")
    found = had_they_gone_on(trace, threshold=0.5)
    assert found.exit_layer.tolist() == [2, 3, 6, 2]
    assert found.answer.tolist() == [0, 1, 1, 1]
    assert found.answers.tolist() == answers.tolist()
    assert found.changed.tolist() == [True, False, False, False]
    assert found.settled_layer.tolist() == [3, 2, 6, 6]
    assert found.right.tolist() == [
        [True, False, False], [True, True, True], [False, False, True], [False, True, False]
    ]  # fmt: skip
    assert as_json(found)["layers"] == [2, 3, 6]


def test_numbers_agree_within_a_tolerance() -> None:
    logits = torch.tensor([[[1.0], [2.0], [2.05]], [[2.0], [2.1], [1.0]]])
    trace = ExitTrace(logits, torch.ones(2, 3), torch.tensor([2.0, 1.0]), (1, 2, 3), "gt")
    found = had_they_gone_on(trace, threshold=[9.0, 0.5, 0.0], tolerance=0.1)
    assert found.answer.tolist() == pytest.approx([2.0, 2.1])
    assert found.changed.tolist() == [False, True]
    assert found.settled_layer.tolist() == [2, 3]
    assert found.right is None
    assert had_they_gone_on(trace, threshold=[9.0, 0.5, 0.0]).changed.tolist() == [True, True]
    with pytest.raises(ValueError, match="tolerance: got -1"):
        had_they_gone_on(trace, None, tolerance=-1)


def test_classes_agree_without_a_tolerance() -> None:
    trace = ExitTrace(torch.eye(2)[None], torch.ones(1, 2), None, (1, 2), "gt")
    with pytest.raises(
        ValueError, match="tolerance: got 0.1, but the trace is of a classifier; only regression takes"
    ):
        had_they_gone_on(trace, threshold=0.5, tolerance=0.1)


def test_an_answer_that_is_not_finite_is_wrong_and_agrees_with_none() -> None:
    nan = torch.nan
    logits = torch.tensor([[[nan, 0.0], [2.0, 1.0]], [[nan, nan], [nan, nan]]])  # argmax of the first would be 0
    trace = ExitTrace(logits, torch.ones(2, 2), torch.tensor([0, 0]), (1, 2), "gt")
    found = had_they_gone_on(trace, threshold=0.5)
    assert found.right.tolist() == [[False, True], [False, False]]
    assert found.answers.tolist() == [[-1, 0], [-1, -1]]
    assert found.changed.tolist() == [True, True]
    assert found.settled_layer.tolist() == [2, 2]
    with pytest.warns(RuntimeWarning, match="count as wrong"):
        scores = layer_scores(trace, "accuracy")
    assert list(scores.values()) == found.right.double().mean(dim=0).tolist()


def test_later_answers_of_a_real_trace_are_counted() -> None:
    model = build("berxit")
    told = trace_of(model, inputs_of(model))
    trace = ExitTrace(told.exit_logits, told.exit_scores, None, (1, 2, 3), "gt")
    found = had_they_gone_on(trace, threshold=None)
    assert not found.changed.any()
    assert (found.settled_layer <= found.exit_layer).all()
