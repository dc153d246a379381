"""Attributions sum to what they explain, are those of a linear model where they are known, and never go to pads."""

import json
import sys
from typing import Any

import pytest
import torch
from helpers.tiny import CLASSES, build, inputs_of, trace_of
from helpers.words import new_tokenizer
from torch import Tensor

from adaexit_hf.interpretation import attribution
from adaexit_hf.interpretation.attribution import Explanation, explain, layer_conductance
from adaexit_hf.interpretation.faithfulness import PERCENT
from adaexit_hf.interpretation.probes import as_json
from adaexit_hf.interpretation.unrolled import Columns, Unrolled, through
from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.exit_heads import Exit

Row = dict[str, list[int]]
COUNTED = {"pabee", "pabee-regression", "deebert-patience", "depth-adaptive", "depth-adaptive-halting"}
# Heads with corners, ReLU or the maximum over tokens, need more steps than 64.
SMOOTH = [
    "dact-bert",
    "dact-bert-entropy",
    "deebert",
    "fastbert-mean",
    "berxit",
    "berxit-learned",
    "berxit-regression",
]
SMOOTH += ["pabee", "right-tool"]
OTHERS = ["roberta", "albert-groups", "electra-projected", "mpnet", "deberta-v2-conv", "modernbert-mean"]
CASES = [(name, "bert") for name in SMOOTH] + [("dact-bert", name) for name in OTHERS]


def rows_of(model: EarlyExitForSequenceClassification, count: int = 3) -> list[Row]:
    """Texts of 3 to 9 tokens, without pads."""
    inputs = inputs_of(model, rows=count)
    real = inputs["attention_mask"].bool()
    return [{name: value[row][real[row]].tolist() for name, value in inputs.items()} for row in range(count)]


def run(model: EarlyExitForSequenceClassification, rows: list[Row], **kwargs: Any) -> list[Explanation]:
    return explain(model, rows, **{"progress": False, "baseline_id": 3, "steps": 8} | kwargs)


@pytest.mark.parametrize(("variant", "encoder"), CASES)
def test_attributions_and_conductance_are_complete_at_64_steps(variant: str, encoder: str) -> None:
    model = build(variant, encoder)
    rows, scores = rows_of(model, 2), variant not in COUNTED
    # Explaining several exits is explaining one after the other: once is enough.
    layers = model.config.exit_layers if (variant, encoder) == ("dact-bert", "bert") else model.config.exit_layers[-1:]
    trace = [trace_of(model, {name: torch.tensor([value]) for name, value in row.items()}) for row in rows]
    found = run(model, rows, steps=64, scores=scores, layers=layers)
    for one, told in zip(found, trace, strict=True):
        parts = [(one.answer, told.exit_logits[0, -len(layers) :, one.label])]
        if scores:
            own = None if model.config.exit_criterion == "dact" else told.exit_scores[0, -len(layers) :]
            parts.append((one.score, own))
        for part, value in parts:
            assert part.error.max() < 0.01
            torch.testing.assert_close(part.values.sum(dim=1), part.change, rtol=0.01, atol=1e-6)
            if value is not None:
                torch.testing.assert_close(part.value, value, rtol=1e-4, atol=1e-5)
    for of in ("answer", "score")[: 1 + scores]:
        for one in layer_conductance(model, rows, of=of, baseline_id=3, progress=False):
            assert one.error.max() < 0.01
            torch.testing.assert_close(
                one.values.sum(dim=1) + one.state, torch.full_like(one.state, one.change), rtol=0.01, atol=1e-6
            )


@pytest.mark.parametrize("criterion", ["confidence", "margin", "normalized_entropy"])
def test_scores_are_explained_where_other_classes_lead_on_the_way(criterion: str) -> None:
    model = build("deebert", exit_criterion=criterion)
    rows = rows_of(model)
    for row, one in zip(rows, run(model, rows, steps=64), strict=True):
        told = trace_of(model, {name: torch.tensor([value]) for name, value in row.items()})
        torch.testing.assert_close(one.score.value, told.exit_scores[0], rtol=1e-4, atol=1e-5)
        assert one.score.error.max() < 0.01


def test_depths_that_a_halting_unit_chooses_stay_those_of_the_text() -> None:
    model = build("depth-adaptive-halting")
    torch.nn.init.normal_(model.halting.weight)  # else all tokens choose one depth
    rows = rows_of(model)
    for row, one in zip(rows, run(model, rows, steps=512, scores=False), strict=True):
        told = trace_of(model, {name: torch.tensor([value]) for name, value in row.items()})
        torch.testing.assert_close(one.answer.value, told.exit_logits[0, :, one.label], rtol=1e-4, atol=1e-4)
        assert one.answer.error.max() < 0.05


def test_heads_with_corners_want_more_steps() -> None:
    model = build("dact-bert", "distilbert")
    (one,) = run(model, rows_of(model)[-1:], steps=512, scores=False, layers=[3])
    assert one.answer.error < 0.01


class Linear(Unrolled):
    """Exit k answers k w x for class 0 and -k w x for class 1, and learned the score k w x."""

    def exits(self, embeddings: Tensor, columns: Columns, last: int) -> list[Exit]:
        weights = torch.linspace(-1, 1, embeddings.shape[-1])
        found = []
        for number in range(1, last + 1):
            (embeddings,) = through(self.cuts[number - 1], [embeddings])
            value = number * (embeddings @ weights).sum(dim=1)
            found.append(Exit(torch.stack([value, -value], dim=1), value.detach(), (value,)))
        return found


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> EarlyExitForSequenceClassification:
    monkeypatch.setattr(attribution, "Unrolled", Linear)
    return build("dact-bert", num_labels=2)


def test_attributions_of_a_linear_model_are_known(linear: EarlyExitForSequenceClassification) -> None:
    rows, embed = rows_of(linear), linear.get_input_embeddings()
    with torch.no_grad():
        token = (embed.weight - embed.weight[3]) @ torch.linspace(-1, 1, embed.weight.shape[1])
    for one, row in zip(run(linear, rows, label=1, steps=2), rows, strict=True):
        known = token[torch.tensor(row["input_ids"])]
        for index, layer in enumerate(one.layers):
            torch.testing.assert_close(one.answer.values[index], -layer * known, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one.score.values[index], layer * known, rtol=1e-4, atol=1e-5)
            highest = known.sort(descending=True).values
            falls = [highest[: -(-percent * len(known) // 100)].sum() for percent in PERCENT]
            fall = layer * torch.stack(falls).mean()
            torch.testing.assert_close(one.score.comprehensiveness[index], fall, rtol=1e-4, atol=1e-4)
            rest = layer * known.sum() - fall
            torch.testing.assert_close(one.score.sufficiency[index], rest, rtol=1e-4, atol=1e-4)
        assert one.answer.error.max() < 1e-3
    for one, row in zip(layer_conductance(linear, rows, label=1, progress=False, baseline_id=3), rows, strict=True):
        known = -one.exit_layer * token[torch.tensor(row["input_ids"])]
        torch.testing.assert_close(one.values, known.expand(one.exit_layer, -1), rtol=1e-4, atol=1e-4)


def test_for_the_answer_it_is_the_probability_that_falls() -> None:
    model = build("deebert")
    found = run(model, rows_of(model))
    fields = torch.cat([torch.cat([one.answer.comprehensiveness, one.answer.sufficiency]) for one in found])
    assert fields.abs().max() <= 1
    assert fields.abs().max() > 0


@pytest.mark.parametrize("padding", ["left", "right"])
def test_pads_get_no_attribution_and_change_none(padding: str) -> None:
    model = build("dact-bert", "roberta", exit_pooling="mean")  # neither positions nor pooling count pads
    rows = rows_of(model)
    pad = model.config.encoder_config.pad_token_id
    longer = []
    for row in rows:
        pads = {"input_ids": [pad] * 4, "attention_mask": [0] * 4, "token_type_ids": [0] * 4}
        sides = {name: (pads[name], value) for name, value in row.items()}
        longer.append({name: a + b if padding == "left" else b + a for name, (a, b) in sides.items()})
    for without, alone in (
        (run(model, longer, layers=[2], steps=32), run(model, rows, batch_size=1, layers=[2], steps=32)),
        (conduct(model, longer), conduct(model, rows)),
    ):
        for one, other in zip(without, alone, strict=True):
            assert one.tokens == other.tokens
            check_equal(one, other)
    assert [len(one.tokens) for one in run(model, longer, steps=16, layers=[1])] == [3, 6, 9]


def conduct(model: EarlyExitForSequenceClassification, rows: list[Row]) -> list[Any]:
    return layer_conductance(model, rows, of="score", baseline_id=3, progress=False, steps=16)


def check_equal(one: Any, other: Any) -> None:
    for name, value in one._asdict().items():
        if isinstance(value, Tensor):
            if name != "error":  # what rounding leaves
                torch.testing.assert_close(value, getattr(other, name), rtol=1e-3, atol=1e-4)
        elif hasattr(value, "_asdict"):
            check_equal(value, getattr(other, name))


def test_a_pad_in_first_place_takes_no_part() -> None:
    model = build("deebert")
    row = {"input_ids": [0, 0, 9, 10, 11], "attention_mask": [0, 0, 1, 1, 1]}
    (one,) = layer_conductance(model, [row], baseline_id=3, progress=False)
    assert one.tokens == ("9", "10", "11")
    assert not one.state.any()
    torch.testing.assert_close(one.values.sum(dim=1), torch.full((3,), one.change), rtol=0.01, atol=1e-5)


def test_special_tokens_are_named_and_get_nothing() -> None:
    model, tokenizer = build("deebert"), new_tokenizer()
    rows = [tokenizer("w9 w10"), tokenizer("w12", "w13 w14 nobody")]
    one, pair = explain(model, [dict(row) for row in rows], tokenizer, progress=False, steps=16)
    assert one.tokens == ("[CLS]", "w9", "w10", "[SEP]")
    assert pair.tokens == ("[CLS]", "w12", "[SEP]", "w13", "w14", "[UNK]", "[SEP]")
    assert pair.special.tolist() == [True, False, True, False, False, False, True]
    for part in (pair.answer, pair.score):
        assert not part.values[:, pair.special].any()
        assert part.values[:, ~pair.special].all()
    assert set(one.named_values()) == {f"{name} at layer {n}" for name in ("answer", "entropy") for n in (1, 2, 3)}
    assert len(one.named_values()["entropy at layer 2"]) == 4


def test_a_text_without_words_has_nothing_to_attribute() -> None:
    model, tokenizer = build("dact-bert"), new_tokenizer()
    (one,) = explain(model, [dict(tokenizer(""))], tokenizer, progress=False)
    for part in (one.answer, one.score):
        assert not any(field.any() for name, field in part._asdict().items() if name != "value")


def test_texts_are_explained_for_their_answer_at_their_exit() -> None:
    model = build("dact-bert")
    rows, threshold = rows_of(model), -0.99
    found, flows = (
        call(model, rows, exit_threshold=threshold, progress=False, baseline_id=3)
        for call in (explain, layer_conductance)
    )
    for row, one, flow in zip(rows, found, flows, strict=True):
        with torch.no_grad():
            told = model(**{name: torch.tensor([value]) for name, value in row.items()}, exit_threshold=threshold)
        assert one.exit_layer == flow.exit_layer == told.exit_layer.item() < 3
        assert one.label == told.logits.argmax().item()
        assert flow.values.shape == (one.exit_layer, len(one.tokens))
        index = one.layers.index(one.exit_layer)
        assert flow.change == pytest.approx(one.answer.change[index].item(), abs=1e-4)


def test_exits_and_the_class_may_be_chosen() -> None:
    model = build("deebert", exit_layers=[2, 3])
    one = run(model, rows_of(model)[:1], layers=[3], label=2)[0]
    assert (one.layers, one.label, one.answer.values.shape) == ((3,), 2, (1, 3))
    both = run(model, rows_of(model)[:1], label=2)[0]
    torch.testing.assert_close(both.answer.values[1:], one.answer.values, rtol=1e-4, atol=1e-6)


def test_the_model_stays_as_it_was() -> None:
    model = build("berxit-learned").train()
    run(model, rows_of(model)[:1])
    layer_conductance(model, rows_of(model)[:1], baseline_id=3, progress=False)
    assert model.training
    assert all(value.grad is None for value in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def test_results_are_json() -> None:
    model = build("deebert")
    one = run(model, rows_of(model)[:1], scores=False)[0]
    read = json.loads(json.dumps(as_json([one, *conduct(model, rows_of(model)[:1])]), allow_nan=False))
    assert read[0]["score"] is None
    assert read[0]["answer"]["values"][2] == pytest.approx(one.answer.values[2].tolist(), rel=1e-5)
    assert len(read[1]["error"]) == 3


def test_a_large_completeness_error_is_reported() -> None:
    model = build("deebert")
    with pytest.warns(RuntimeWarning, match=r"attributions differ .* more than 5 %.* pass more steps"):
        run(model, rows_of(model), steps=2)


@pytest.mark.parametrize("variant", sorted(COUNTED))
def test_scores_without_a_gradient_are_refused(variant: str) -> None:
    model = build(variant)
    message = "counts, so its score has no gradient; explain the predictions only, with scores=False"
    hint = "" if model.config.num_labels == 1 else ".*exit_criterion='entropy' or 'normalized_entropy' or 'confidence'"
    with pytest.raises(ValueError, match=message + f".*{hint}"):
        run(model, rows_of(model)[:1])
    with pytest.raises(ValueError, match="counts"):
        layer_conductance(model, rows_of(model)[:1], of="score", progress=False)


def test_every_method_was_tried() -> None:
    assert {next(name for name in CLASSES if case.startswith(name)) for case in {*SMOOTH, *COUNTED}} == set(CLASSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [4]}, r"layers: got \[4\]; exits are after layers \[1, 2, 3\]"),
        ({"layers": []}, r"layers: got \[\]"),
        ({"label": 3}, "label: got 3; allowed are 0 to 2"),
        ({"label": 0.5}, "label: got 0.5; allowed are 0 to 2"),
        ({"label": True}, "label: got True; allowed are 0 to 2"),
        ({"steps": 1}, "steps: got 1; pass a whole number from 2, e.g. steps=64"),
        ({"baseline_id": 64}, "baseline_id: got 64; .* in 0 to 63"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    model = build("deebert")
    with pytest.raises(ValueError, match=message):
        run(model, rows_of(model), **options)
    with pytest.raises(ValueError, match="dataset: got no rows"):
        run(model, [])
    with pytest.raises(ValueError, match="of: got 'logits'; choose one of 'answer', 'score'"):
        layer_conductance(model, rows_of(model), of="logits")


def test_without_captum_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    model = build("deebert")
    for call in (explain, layer_conductance):
        with pytest.raises(ImportError, match=r"need captum.* pip install adaexit_hf\[interpret\]"):
            call(model, rows_of(model))


def test_several_labels_at_once_are_refused() -> None:
    model = build("deebert", problem_type="multi_label_classification")
    for function in (explain, layer_conductance):
        with pytest.raises(ValueError, match="model: predicts several labels at once .*, and explanations are of one"):
            function(model, [{"input_ids": [1, 5, 2]}])
