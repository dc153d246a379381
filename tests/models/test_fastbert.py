"""FastBERT against its paper and the authors' code, written out token by token and example by example."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import History, largest_difference, new_model, new_trainer, texts, weights
from helpers.tiny import build, check_loss_and_gradients, encoder_config, inputs_of, labels_of, one_by_one, trace_of
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig

from adaexit_hf import FastBertConfig, FastBertForSequenceClassification
from adaexit_hf.models.exit_heads import AttentionBlock
from adaexit_hf.models.modeling_early_exit import Stage

Model = FastBertForSequenceClassification
every_pooling = pytest.mark.parametrize("pooling", ["first", "mean"])
KL = ("teacher_student", "student_teacher")


def linear(layer: nn.Linear, vector: Tensor) -> Tensor:
    return layer.weight @ vector + layer.bias


def branch(head: AttentionBlock, states: Tensor, pooling: str) -> Tensor:
    """Logits of one text without padding: states (tokens, hidden) -> (labels,)."""
    tokens = [torch.tanh(linear(head.narrow, state)) for state in states]
    size = len(tokens[0]) // head.heads
    outputs = []
    for asking in tokens:
        parts = []
        for number in range(head.heads):
            own = slice(number * size, (number + 1) * size)
            query = linear(head.query, asking)[own]
            shares = [torch.exp(query @ linear(head.key, token)[own] / math.sqrt(size)) for token in tokens]
            values = [linear(head.value, token)[own] for token in tokens]
            parts.append(sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares))
        outputs.append(linear(head.output, torch.cat(parts)))
    pooled = outputs[0] if pooling == "first" else sum(outputs) / len(outputs)
    return linear(head.classifier, torch.tanh(linear(head.dense, pooled)))


def branches(model: Model, inputs: dict[str, Tensor], pooling: str = "first") -> list[list[Tensor]]:
    """Logits of every exit for every text of a batch that is padded on the right."""
    found = []
    for example in one_by_one(inputs):
        length = int(example["attention_mask"].sum())
        text = {name: value[:, :length] for name, value in example.items()}
        states = model.encoder(**text, output_hidden_states=True).hidden_states[1:]
        found.append([branch(head, state[0], pooling) for head, state in zip(model.exits, states, strict=True)])
    return found


def probabilities(logits: Tensor) -> Tensor:
    return torch.exp(logits) / torch.exp(logits).sum()


def uncertainty(logits: Tensor) -> float:
    """Section 3.3."""
    shares = probabilities(logits).tolist()
    return sum(share * math.log(share) for share in shares) / math.log(1 / len(shares))


def divergence(teacher: Tensor, student: Tensor, kl: str) -> Tensor:
    one, other = probabilities(teacher.detach()), probabilities(student)
    if kl == "student_teacher":
        one, other = other, one
    return sum(p * (torch.log(p) - torch.log(q)) for p, q in zip(one, other, strict=True))


# Answers and exits ---------------------------------------------------------------------------------------------------


@every_pooling
@torch.no_grad()
def test_logits_and_scores(pooling: str) -> None:
    model = build("fastbert", exit_pooling=pooling)
    inputs = inputs_of(model)
    trace, expected = trace_of(model, inputs), branches(model, inputs, pooling)
    torch.testing.assert_close(trace.exit_logits, torch.stack([torch.stack(exits) for exits in expected]))
    scores = [[uncertainty(logits) for logits in exits] for exits in expected]
    torch.testing.assert_close(trace.exit_scores, torch.tensor(scores), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_text_leaves_at_the_first_student_below_the_speed() -> None:
    model = build("fastbert")
    inputs = inputs_of(model)
    expected = [[(logits, uncertainty(logits)) for logits in exits] for exits in branches(model, inputs)]
    for speed in (0.0, *sorted(score for exits in expected for _, score in exits)[2::5], 1.0):
        speed = min(1.0, speed + 1e-6)
        output = model(**inputs, exit_threshold=speed)
        for row, exits in enumerate(expected):
            layer = next((layer for layer, (_, score) in enumerate(exits, start=1) if score < speed), len(exits))
            assert output.exit_layer[row] == layer
            torch.testing.assert_close(output.logits[row], exits[layer - 1][0])


@every_pooling
def test_a_branch_classifier_by_hand(pooling: str) -> None:
    """All matrices are 1, all biases 0: tokens (0.5, 0) and (0, 0.5), and a third one that is padding."""
    encoder = BertConfig(hidden_size=2, num_attention_heads=1, num_hidden_layers=1)
    head = AttentionBlock(encoder, 2, pooling, size=2).eval()
    for layer in head.children():
        layer.weight.data, layer.bias.data = torch.eye(2), torch.zeros(2)
    hidden = torch.tensor([[[0.5, 0.0], [0.0, 0.5], [0.9, -0.9]]]).atanh()
    # Each head has one feature. A token that has it asks for itself: e^(1/4) / (e^(1/4) + 1) = 0.562177 of 0.5.
    own, other = 0.281088, 0.25
    pooled = torch.tensor([[own, other]]) if pooling == "first" else torch.full((1, 2), (own + other) / 2)
    torch.testing.assert_close(head(hidden[:, 0], hidden, torch.tensor([[1, 1, 0]])), pooled.tanh(), atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_first_tokens_query_is_enough(padding: str) -> None:
    model = build("fastbert")
    head, mask = model.exits[0], inputs_of(model, padding).get("attention_mask")
    asked: list[int] = []
    head.query.register_forward_pre_hook(lambda _, given: asked.append(given[0].shape[1]))
    hidden = torch.randn(6, 9, 32)
    tokens = head.narrow(hidden).tanh()
    full = head.output(head._attend(tokens, tokens, mask))[:, 0]
    torch.testing.assert_close(head(hidden[:, 0], hidden, mask), head.classifier(head.dense(full).tanh()))
    assert asked == [9, 1]


@every_pooling
@torch.no_grad()
def test_a_texts_answer_does_not_depend_on_the_batchs_padding(pooling: str) -> None:
    model = build("fastbert", exit_pooling=pooling)
    inputs = inputs_of(model)
    wider = {name: nn.functional.pad(value, (0, 5)) for name, value in inputs.items()}
    expected = trace_of(model, inputs).exit_logits
    torch.testing.assert_close(trace_of(model, wider).exit_logits, expected)
    alone = {name: value[:1, : int(inputs["attention_mask"][0].sum())] for name, value in inputs.items()}
    torch.testing.assert_close(trace_of(model, alone).exit_logits, expected[:1])
    if pooling == "mean":  # the first token of a text padded on the left is padding, as in the stock models
        shift = 9 - inputs["attention_mask"].sum(dim=1)
        left = {
            name: torch.stack([row.roll(int(by)) for row, by in zip(value, shift, strict=True)])
            for name, value in inputs.items()
        }
        left["position_ids"] = (torch.arange(9) - shift[:, None]).clamp_min(0)
        torch.testing.assert_close(trace_of(model, left).exit_logits, expected)


def test_pooling_is_that_of_the_encoders_own_classifier() -> None:
    assert [build("fastbert", name).config.pooling for name in ("bert", "modernbert", "modernbert-mean")] == [
        "first", "first", "mean",
    ]  # fmt: skip
    assert build("fastbert", "modernbert-mean", exit_pooling="first").config.pooling == "first"


def test_a_mask_of_pairs_of_tokens_does_not_tell_the_pads() -> None:
    model = build("fastbert")
    with pytest.raises(ValueError, match=r"attention_mask: got shape \(2, 1, 4, 4\); .* shape \(batch, tokens\)"):
        model(input_ids=torch.full((2, 4), 7), attention_mask=torch.ones(2, 1, 4, 4).bool())


def test_the_comparison_is_strict() -> None:
    assert build("fastbert").ready(torch.tensor([0.4, 0.5, math.nan]), 0.5).tolist() == [True, False, False]


@torch.no_grad()
def test_dropout_is_on_attention_weights_in_training_only() -> None:
    head = build("fastbert", encoder_config=encoder_config("bert", hidden_dropout_prob=0.5)).exits[0]
    head.value.weight.zero_()
    head.value.bias.fill_(1.0)  # so attention gives the sum of its weights
    token = torch.zeros(1, 1, 128)
    assert head._attend(token, token, None).unique().tolist() == [1.0]
    head.train()
    seen = torch.cat([head._attend(token, token, None) for _ in range(40)])
    assert seen.unique().tolist() == [0.0, 2.0]


# Training ------------------------------------------------------------------------------------------------------------


@every_pooling
@pytest.mark.parametrize(
    ("objective", "kl"), [("final", KL[0]), ("distillation", KL[0]), ("distillation", KL[1]), ("joint", KL[1])]
)
def test_objectives_and_their_gradients(objective: str, kl: str, pooling: str) -> None:
    model = build("fastbert", distillation_kl=kl, exit_pooling=pooling)
    inputs, labels = inputs_of(model, rows=3), labels_of(model, rows=3)
    losses = []
    for exits, label in zip(branches(model, inputs, pooling), labels, strict=True):
        parts = {
            "final": [-torch.log(probabilities(exits[-1])[label])],
            "distillation": [divergence(exits[-1], student, kl) for student in exits[:-1]],
        }
        losses.append(sum(parts.get(objective) or [*parts["final"], *parts["distillation"]]))
    check_loss_and_gradients(
        model, torch.stack(losses).mean(), model(**inputs, labels=labels, objective=objective).loss
    )


def test_two_stages_as_in_section_3() -> None:
    teacher, distil = build("fastbert").stages
    assert teacher == Stage("teacher", ("final",), frozen=("exits.0", "exits.1"))
    assert distil == Stage("distil", ("distillation",), frozen=("encoder", "exits.2"))
    assert build("fastbert", exit_layers=[3]).stages == (Stage("teacher", ("final",)),)


def test_distillation_needs_students() -> None:
    model = build("fastbert", exit_layers=[3])
    with pytest.raises(
        ValueError,
        match="objective: got 'distillation', which trains nothing in a model with a single exit; pass more",
    ):
        model(**inputs_of(model), objective="distillation")


def rows(kind: str) -> list[dict[str, Any]]:
    """As `texts()`, with labels, without, or with -1 as in GLUE's test sets."""
    found = texts(labels=kind != "unlabelled")
    return [row | {"label": -1} for row in found] if kind == "-1" else found


def distilled(kind: str, folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    history, model = History(), new_model("fastbert", dropout=0.1)
    options = {"trainer_options": {"eval_dataset": rows(kind)[:8]}, "eval_strategy": "steps", "eval_steps": 3}
    new_trainer(model, folder, [history], rows(kind), weight_decay=0.1, **options).train(stage="distil")
    return weights(model), history.logs


def test_distillation_needs_no_labels(tmp_path: Path) -> None:
    expected, logs = distilled("labelled", tmp_path / "labelled")
    assert all({"exit_1_loss", "exit_4_loss"} <= log.keys() for log in logs if "loss" in log)
    for kind in ("unlabelled", "-1"):
        found, others = distilled(kind, tmp_path / kind)
        assert largest_difference(found, expected) == 0.0
        for name in ("loss", "eval_loss"):
            values = [log[name] for log in others if name in log]
            assert values == [log[name] for log in logs if name in log] and len(values) in (2, 6)
        assert not any("exit_1_loss" in log for log in others)


def test_the_loss_of_an_unlabelled_evaluation_is_the_distillation(tmp_path: Path) -> None:
    model = new_model("fastbert")
    options = {"trainer_options": {"eval_dataset": rows("unlabelled")}, "per_device_eval_batch_size": 24}
    trainer = new_trainer(model, tmp_path, learning_rate=0.0, max_steps=1, eval_strategy="epoch", **options)
    trainer.train(stage="distil")
    during = next(log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log)
    batch = trainer.data_collator(rows("unlabelled"))
    assert during == pytest.approx(model(**batch, objective="distillation").loss.item(), abs=1e-5)
    assert "eval_loss" not in trainer.evaluate()  # outside of a stage it is the task loss, which needs labels


def test_the_teacher_needs_labels(tmp_path: Path) -> None:
    for kind, message in {
        "unlabelled": "train_dataset: got rows with input_ids, attention_mask, but objective 'final' of stage "
        r"'teacher' needs labels too; pass rows with a column 'label' or 'labels', or call train\(stage='distil'\)",
        "-1": r"labels: got -1; allowed are 0 to 2\. .* a split that has labels \(GLUE's test sets have none\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            new_trainer(new_model("fastbert"), tmp_path / kind, rows=rows(kind)).train()


def test_one_stage_may_mix_objectives_with_and_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = (Stage("mixed", ("final", "distillation")),)
    monkeypatch.setattr(Model, "stages", property(lambda model: mixed))
    history = History()
    new_trainer(new_model("fastbert"), tmp_path / "labelled", [history]).train()
    steps = [log for log in history.logs if "loss" in log]
    same = [log["loss"] == pytest.approx(log["exit_4_loss"]) for log in steps]
    assert same == [True, False] * 3
    with pytest.raises(ValueError, match="objective 'final' of stage 'mixed' needs labels too; .* 'labels'$"):
        new_trainer(new_model("fastbert"), tmp_path / "unlabelled", rows=rows("unlabelled")).train()


# Config and start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classifier_size": 0}, ValueError, "classifier_size: got 0; pass a finite number >= 1"),
        ({"classifier_heads": 2.0}, TypeError, "classifier_heads: got 2.0 of type float; pass an integer"),
        ({"classifier_heads": "2"}, TypeError, "classifier_heads: got '2' of type str; pass a number"),
        (
            {"classifier_size": 9, "classifier_heads": 4},
            ValueError,
            "classifier_size: got 9, .* 4 heads do not .*=256",
        ),
        ({"distillation_kl": "both"}, ValueError, "distillation_kl: got 'both'; choose one of 'teacher_student', "),
        ({"exit_pooling": "max"}, ValueError, "exit_pooling: got 'max'; choose one of 'first', 'mean'"),
        ({"num_labels": 1}, ValueError, r"num_labels: got 1 \(regression\), which fastbert does not define"),
    ],
    ids=str,
)
def test_bad_configs_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FastBertConfig(**options)


def test_a_fine_tuned_classifier_gives_its_encoder_and_labels_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {0: "bad", 1: "good"}
    stock = AutoModelForSequenceClassification.from_config(
        encoder_config("bert", id2label=names, label2id={"bad": 0, "good": 1})
    )
    stock.save_pretrained(tmp_path)
    for name in ("transformers", "adaexit_hf"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    model = Model.from_encoder_pretrained(str(tmp_path))
    assert "its classifier is not used, since the exits of fastbert with exit_head='paper' are built" in caplog.text
    assert model.config.id2label == names
    kept = stock.bert.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in model.encoder.state_dict().items())


def test_branches_start_as_in_the_authors_code() -> None:
    for layer in build("fastbert").exits[0].children():  # PyTorch's own start, not the encoder's
        bound = layer.in_features**-0.5
        for value in (layer.weight, layer.bias):
            assert value.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_the_output_layers_in_order() -> None:
    model = build("fastbert", exit_layers=[1, 3])
    assert model.classifiers == [model.exits[0].classifier, model.exits[1].classifier]
