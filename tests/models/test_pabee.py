"""PABEE against its paper, written out example by example, and against recordings of the authors' code."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import recordings
from helpers.runs import new_model, new_trainer
from helpers.scripted import naming, scripted, texts
from helpers.tiny import build, check_loss_and_gradients, encoder_config, inputs_of, labels_of, one_by_one, trace_of
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from adaexit_hf import (
    Metric,
    PabeeConfig,
    PabeeForSequenceClassification,
    choose_threshold,
    collect_trace,
    tradeoff_curve,
)

Model = PabeeForSequenceClassification
CASES = {
    "classes": ("pabee", {"num_labels": 2}),
    "numbers": ("pabee-regression", {}),
    "some layers": ("pabee", {"num_labels": 2, "exit_layers": [2, 3, 5, 6]}),
}
every_case = pytest.mark.parametrize("case", CASES)


def six_layers(case: str) -> Model:
    variant, options = CASES[case]
    return build(variant, encoder_config=encoder_config("bert", num_hidden_layers=6), **options)


def classifiers(model: Model, example: dict[str, Tensor]) -> list[Tensor]:
    """What every classifier says of one example, without its padding: all read the one pooler's view of [CLS]."""
    kept = example["attention_mask"][0].bool() if "attention_mask" in example else slice(None)
    states = model.encoder(**{name: value[:, kept] for name, value in example.items()}, output_hidden_states=True)
    answers = []
    for layer, head in zip(model.config.exit_layers, model.exits, strict=True):
        pooled = torch.tanh(model.pooler.dense.weight @ states.hidden_states[layer][0, 0] + model.pooler.dense.bias)
        answers.append(head.weight @ pooled + head.bias)
    return answers


def counters(answers: list[Tensor], tolerance: float | None) -> list[int]:
    """Section 3.2 for one example: the counter after every classifier."""
    counts = [0]
    for before, now in zip(answers, answers[1:], strict=False):
        if tolerance is None:
            agree = int(before.argmax()) == int(now.argmax())
        else:
            agree = abs(float(before) - float(now)) < tolerance
        counts.append(counts[-1] + 1 if agree else 0)
    return counts


def exit_taken(counts: list[int], patience: int) -> int:
    """Index of the exit at which the counter reaches the patience; patience 0 is full depth."""
    return next((index for index, count in enumerate(counts) if 0 < patience == count), len(counts) - 1)


def weighted_loss(answers: list[Tensor], label: Tensor) -> Tensor:
    """Section 3.3 for one example: sum i L_i / sum i."""
    total = torch.zeros(())
    for number, answer in enumerate(answers, start=1):
        one = (answer[0] - label) ** 2 if len(answer) == 1 else torch.log(torch.exp(answer).sum()) - answer[label]
        total = total + number * one
    return total / sum(range(1, len(answers) + 1))


# The paper -----------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("padding", ["right", "none"])  # pads on the left move the positions of BERT
@torch.no_grad()
def test_scores_are_counters(case: str, padding: str) -> None:
    model = six_layers(case)
    inputs = inputs_of(model, padding, rows=12)
    trace = trace_of(model, inputs)
    answers = [classifiers(model, example) for example in one_by_one(inputs)]
    expected = [counters(each, model.config.patience_tolerance) for each in answers]
    torch.testing.assert_close(trace.exit_logits, torch.stack([torch.stack(each) for each in answers]))
    assert trace.exit_scores.tolist() == expected
    assert len({count for counts in expected for count in counts}) >= 3  # else little was tested


@every_case
@torch.no_grad()
def test_inference_for_every_patience(case: str) -> None:
    model = six_layers(case)
    inputs = inputs_of(model, rows=12)
    answers = [classifiers(model, example) for example in one_by_one(inputs)]
    counts = [counters(each, model.config.patience_tolerance) for each in answers]
    for patience in range(len(model.exits) + 1):
        taken = [exit_taken(each, patience) for each in counts]
        output = model(**inputs, exit_threshold=patience)
        assert output.exit_layer.tolist() == [model.config.exit_layers[index] for index in taken]
        expected = torch.stack([each[index] for each, index in zip(answers, taken, strict=True)])
        torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-5)


@every_case
def test_the_loss_and_its_gradients(case: str) -> None:
    model = six_layers(case)
    inputs, labels = inputs_of(model), labels_of(model)
    pairs = zip(one_by_one(inputs), labels, strict=True)
    expected = torch.stack([weighted_loss(classifiers(model, example), label) for example, label in pairs]).mean()
    check_loss_and_gradients(model, expected, model(**inputs, labels=labels, objective="weighted").loss)


def test_all_is_trained_together() -> None:
    (stage,) = build("pabee").stages
    assert (stage.objectives, stage.frozen) == (("weighted",), ())


def test_one_pooler_for_all_layers() -> None:
    names = {name.split(".")[0] + "." + name.split(".")[1] for name, _ in build("pabee").named_parameters()}
    heads = {name for name in names if not name.startswith("encoder")}
    assert heads == {"pooler.dense", "exits.0", "exits.1", "exits.2"}


# By hand -------------------------------------------------------------------------------------------------------------

CLASSES = [
    [0, 0, 0, 0, 0, 0],  # counts 0 1 2 3 4 5
    [0, 1, 1, 2, 2, 2],  # 0 0 1 0 1 2
    [0, 1, 0, 1, 0, 1],  # 0 0 0 0 0 0
    [0, 0, 1, 0, 0, 0],  # 0 1 0 0 1 2: what the first two said is forgotten
    [2, 1, 1, 1, 1, 0],  # 0 0 1 2 3 0
]
LAYERS = {0: [6, 6, 6, 6, 6], 1: [2, 3, 6, 2, 3], 2: [3, 6, 6, 6, 4], 3: [4, 6, 6, 6, 5], 4: [5, 6, 6, 6, 6]}
LAYERS |= {5: [6] * 5, 6: [6] * 5}
# Neighbours differ by 0.25, 0.5 or more, which floats represent exactly.
NUMBERS = [
    [1.0, 1.25, 1.5, 1.75, 2.0, 2.25],  # each is near the one before it, however far from the first
    [1.0, 1.5, 1.0, 1.25, 1.0, 3.0],  # 0.5 is not less than the tolerance: 0 0 0 1 2 0
    [0.0, -0.25, 5.0, 4.75, 4.75, 4.75],  # 0 1 0 1 2 3
]
NUMBERS_LAYERS = {1: [2, 4, 2], 2: [3, 5, 5], 3: [4, 6, 6], 4: [5, 6, 6], 5: [6, 6, 6], 6: [6, 6, 6]}


@pytest.mark.parametrize("patience", LAYERS)
@torch.no_grad()
def test_classes_by_hand(patience: int) -> None:
    model = scripted("pabee", naming(CLASSES))
    assert model(**texts(5), exit_threshold=patience).exit_layer.tolist() == LAYERS[patience]
    alone = [model(input_ids=row[None], exit_threshold=patience) for row in texts(5)["input_ids"]]
    assert [row.exit_layer.item() for row in alone] == LAYERS[patience]


@pytest.mark.parametrize("patience", NUMBERS_LAYERS)
@torch.no_grad()
def test_numbers_by_hand(patience: int) -> None:
    model = scripted("pabee", torch.tensor(NUMBERS)[..., None], patience_tolerance=0.5)
    assert model(**texts(3), exit_threshold=patience).exit_layer.tolist() == NUMBERS_LAYERS[patience]


@torch.no_grad()
def test_other_rows_of_the_batch_do_not_matter() -> None:
    """The authors' code lets a batch exit only if all its examples agree."""
    model = scripted("pabee", naming(CLASSES[::-1]))
    assert model(**texts(5), exit_threshold=1).exit_layer.tolist() == LAYERS[1][::-1]


@pytest.mark.parametrize("rows", [1, 4])
@torch.no_grad()
def test_all_leave_at_once_or_none_does(rows: int) -> None:
    agreeing, quarrelling = (scripted("pabee", naming([line] * rows)) for line in ([1] * 6, [0, 1] * 3))
    for patience in range(1, 6):
        assert agreeing(**texts(rows), exit_threshold=patience).exit_layer.tolist() == [patience + 1] * rows
        assert quarrelling(**texts(rows), exit_threshold=patience).exit_layer.tolist() == [6] * rows


@torch.no_grad()
def test_nothing_is_nearer_than_a_tolerance_of_0() -> None:
    model = scripted("pabee", torch.ones(2, 4, 1), patience_tolerance=0)
    assert model(**texts(2), exit_threshold=1).exit_layer.tolist() == [4, 4]


def test_a_single_exit_never_counts_an_agreement() -> None:
    model = build("pabee", exit_layers=[3], exit_threshold=1)
    assert model(**inputs_of(model)).exit_layer.tolist() == [3] * 6
    assert model(**inputs_of(model), labels=labels_of(model), objective="weighted").loss.isfinite()


# Arguments -----------------------------------------------------------------------------------------------------------


def test_patience_0_is_full_depth() -> None:
    assert PabeeConfig(exit_threshold=0).exit_threshold is None
    model = build("pabee", exit_threshold=1)
    assert model(**inputs_of(model), exit_threshold=0).exit_layer.tolist() == [3] * 6


@pytest.mark.parametrize("patience", [-1, 13, 0.5])
def test_a_patience_out_of_range_is_refused(patience: float) -> None:
    message = rf"exit_threshold: got {patience}; pabee with 2 labels takes a number in \[1, 12\], or None for full"
    with pytest.raises(ValueError, match=message):
        PabeeConfig(exit_threshold=patience)


def test_the_default_criterion_is_patience() -> None:
    config = PabeeConfig()
    assert (config.exit_criterion, config.patience_tolerance, config.exit_threshold) == ("patience", None, None)
    assert PabeeConfig(num_labels=1).tolerance == 0.1


# Regression, from training to a saved threshold ----------------------------------------------------------------------


@pytest.mark.slow
def test_regression_from_end_to_end(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    rows: list[dict[str, Any]] = []
    for _ in range(48):
        words = torch.randint(5, 64, (6,), generator=generator).tolist()
        rows.append({"input_ids": [1, *words, 2], "label": 3.0 + words[0] / 32})
    model = new_model("pabee", num_labels=1, patience_tolerance=0.2)
    model.start_from_mean(sum(row["label"] for row in rows) / len(rows))
    assert [head.bias.item() for head in model.exits] == pytest.approx([4.06] * 4, abs=0.2)

    def error(labels: Tensor, predictions: Tensor) -> float:
        return (predictions - labels).square().double().mean().item()

    metric = Metric(error, higher_is_better=False)
    before = tradeoff_curve(collect_trace(model, rows, progress=False), metric)[-1].score
    new_trainer(model, tmp_path / "runs", rows=rows, max_steps=30, learning_rate=3e-3).train()
    trace = collect_trace(model, rows, progress=False)
    curve = tradeoff_curve(trace, metric)
    assert curve[-1].score < before / 2
    assert {point.threshold for point in curve} <= {1.0, 2.0, 3.0, None}

    chosen = choose_threshold(curve, max_drop=0.5)
    model.config.exit_threshold = chosen.threshold
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert (again.config.patience_tolerance, again.config.exit_threshold) == (0.2, chosen.threshold)
    assert chosen.saving > 0
    output = again(input_ids=torch.tensor([row["input_ids"] for row in rows]))
    logits, layers = trace.at(chosen.threshold)
    assert torch.equal(output.exit_layer, layers)
    torch.testing.assert_close(output.logits, logits, atol=1e-5, rtol=1e-5)


# Recordings ----------------------------------------------------------------------------------------------------------

every_recording = pytest.mark.parametrize("name", recordings.names("pabee"))


def ours(text: str, exits: int) -> tuple[float | None, dict[str, float]]:
    """Their patience, with one label `patience/tolerance`, as our threshold and option of the config.

    A patience that no counter can reach, one above the number of exits, is full depth there and an error here.
    """
    patience, _, tolerance = text.partition("/")
    threshold = float(patience) if 0 < float(patience) <= exits else None
    return threshold, {"patience_tolerance": float(tolerance)} if tolerance else {}


@every_recording
@torch.no_grad()
def test_the_authors_answers_and_exits(name: str) -> None:
    recording = recordings.read(name)
    assert len(recording.thresholds) >= 3
    for text in recording.thresholds:
        threshold, options = ours(text, recording.config["num_hidden_layers"])
        output = recordings.model_of(recording, **options)(**recording.inputs, exit_threshold=threshold)
        assert output.exit_layer.tolist() == recording.tensors[f"exit_layer@{text}"].tolist(), text
        torch.testing.assert_close(output.logits, recording.tensors[f"logits@{text}"], atol=1e-5, rtol=0)


@every_recording
@torch.no_grad()
def test_the_authors_loss(name: str) -> None:
    recording = recordings.read(name)
    labels = recording.tensors["labels"]
    loss = recordings.model_of(recording)(**recording.inputs, labels=labels, objective="weighted").loss
    torch.testing.assert_close(loss, recording.tensors["train_loss"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", (None, {})), ("6", (6.0, {})), ("7", (None, {})), ("2/0.1", (2.0, {"patience_tolerance": 0.1}))],
)
def test_the_authors_notation_is_read(text: str, expected: tuple[float | None, dict[str, float]]) -> None:
    assert ours(text, exits=6) == expected
