"""Temperatures make the probabilities of every exit as sure as they are right, and change nothing else."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import METHODS, Row, collate, new_model, texts
from helpers.tiny import build, check_early_exit, inputs_of
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification

from adaexit_hf import collect_trace
from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.exit_criteria import best_temperature, confidence, entropy

Model = EarlyExitForSequenceClassification
pytestmark = pytest.mark.filterwarnings("ignore:temperature .* is at its bound")  # of exits that know nothing
every_method = pytest.mark.parametrize("method", METHODS)


def random_answers(temperature: float, samples: int = 400, labels: int = 4) -> tuple[Tensor, Tensor]:
    """Logits, and labels as likely as softmax(logits / temperature) says."""
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(samples, labels, generator=generator)
    return logits, (logits / temperature).softmax(dim=-1).multinomial(1, generator=generator).squeeze(1)


# One temperature -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gap", "right", "wrong"), [(2.0, 3, 1), (5.0, 3, 2), (0.5, 9, 1), (30.0, 3, 2)])
def test_a_temperature_by_hand(gap: float, right: int, wrong: int) -> None:
    """Two classes, always the same gap of logits: the right probability is the share of right answers."""
    logits = torch.tensor([[gap, 0.0]] * (right + wrong))
    labels = torch.tensor([0] * right + [1] * wrong)
    assert best_temperature(logits, labels) == pytest.approx(gap / math.log(right / wrong), rel=1e-9)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_no_temperature_of_a_grid_is_better(temperature: float) -> None:
    logits, labels = random_answers(temperature)
    grid = torch.logspace(-2, 2, 801)
    losses = torch.stack([cross_entropy(logits.double() / value, labels) for value in grid])
    found = best_temperature(logits, labels)
    nearest = grid[losses.argmin()].item()
    assert cross_entropy(logits.double() / found, labels) <= losses.min()
    assert nearest / 1.012 < found < nearest * 1.012  # one step of the grid
    assert found == pytest.approx(temperature, rel=0.2)  # it is what the labels were drawn with


@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_a_temperature_undoes_a_factor(factor: float) -> None:
    logits, labels = random_answers(1.5)
    expected = factor * best_temperature(logits.double(), labels)
    assert best_temperature(factor * logits.double(), labels) == pytest.approx(expected)


def test_large_logits_do_not_overflow() -> None:
    logits, labels = random_answers(1.0)
    assert best_temperature(30 * logits.half(), labels) == pytest.approx(
        30 * best_temperature(logits, labels), rel=0.01
    )


@pytest.mark.parametrize(
    ("labels", "bound", "why"),
    [
        ([0, 1, 0], 0.01, "temperature 0.01 is at its bound, since all predictions are right on 3 samples"),
        (
            [1, 0, 1],
            100.0,
            "temperature 100.0 is at its bound, since predictions are no better than chance on 3 samples",
        ),
    ],
)
def test_a_bound_is_reported(labels: list[int], bound: float, why: str) -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    with pytest.warns(UserWarning, match=why):
        assert best_temperature(logits, torch.tensor(labels)) == bound


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_answers_that_are_not_finite_do_not_count(value: float) -> None:
    logits, labels = random_answers(2.0)
    expected = best_temperature(logits[1:], labels[1:])
    logits[0, 2] = value
    assert best_temperature(logits, labels) == expected
    with pytest.raises(ValueError, match="logits: NaN or infinite for all 400 samples; check the model"):
        best_temperature(torch.full_like(logits, value), labels)


# Those of a model ----------------------------------------------------------------------------------------------------


def noisy_rows(model: Model, count: int = 40) -> list[Row]:
    """Texts with labels drawn from the last exit's probabilities, made half as sure."""
    rows = texts(count)
    logits = collect_trace(model, rows, progress=False).logits[:, -1]
    drawn = (logits / 2).softmax(dim=-1).multinomial(1, generator=torch.Generator().manual_seed(0)).squeeze(1)
    return [row | {"label": label} for row, label in zip(rows, drawn.tolist(), strict=True)]


def calibrated(method: str, **options: Any) -> tuple[Model, list[Row]]:
    model = new_model(method, **options).eval()
    rows = noisy_rows(model)
    model.calibrate_temperatures(rows)
    return model, rows


def losses(logits: Tensor, rows: list[Row]) -> Tensor:
    labels = torch.tensor([row["label"] for row in rows])
    return torch.stack([cross_entropy(each, labels) for each in logits.unbind(dim=1)])


@every_method
def test_every_exit_fits_held_out_data_no_worse_and_names_the_same_classes(method: str) -> None:
    model = new_model(method, exit_layers=[1, 3, 4]).eval()
    rows = noisy_rows(model)
    before = collect_trace(model, rows, progress=False)
    temperatures = model.calibrate_temperatures(rows)
    after = collect_trace(model, rows, progress=False)
    assert temperatures == model.config.exit_temperatures
    labels = torch.tensor([row["label"] for row in rows])
    assert temperatures == pytest.approx([best_temperature(each, labels) for each in before.logits.unbind(dim=1)])
    expected = before.logits / torch.tensor(temperatures)[:, None]
    torch.testing.assert_close(after.logits.log_softmax(dim=-1), expected.log_softmax(dim=-1))
    assert torch.equal(after.logits.argmax(dim=-1), before.logits.argmax(dim=-1))
    assert (losses(after.logits, rows) <= losses(before.logits, rows) + 1e-6).all()


@pytest.mark.parametrize(("criterion", "score"), [("confidence", confidence), ("entropy", entropy)])
def test_scores_are_those_of_the_calibrated_probabilities(criterion: str, score: Callable[[Tensor], Tensor]) -> None:
    model, rows = calibrated("deebert", exit_criterion=criterion)
    after = collect_trace(model, rows, progress=False)
    temperatures = torch.tensor(model.config.exit_temperatures)
    model.config.exit_temperatures = None
    before = collect_trace(model, rows, progress=False)
    torch.testing.assert_close(after.scores, score(before.logits / temperatures[:, None]))
    assert (after.scores - before.scores).abs().min(dim=0).values.max() > 1e-3


@every_method
def test_early_exit_is_what_the_trace_predicts(method: str) -> None:
    model, rows = calibrated(method, exit_criterion="confidence")
    inputs = collate(rows[:6])
    del inputs["labels"]
    scores = model(**inputs, early_exit=False).exit_scores
    between = (scores[:, 0].sort().values[2:4].sum() / 2).item()
    assert len(check_early_exit(model, inputs, [between])) > 1


@pytest.mark.parametrize(
    ("method", "criterion"), [("dact-bert", "dact"), ("berxit", "learned"), ("pabee", "patience")]
)
def test_scores_that_are_no_probabilities_stay_as_they_were(method: str, criterion: str) -> None:
    model, rows = calibrated(method, exit_criterion=criterion)
    after = collect_trace(model, rows, progress=False)
    model.config.exit_temperatures = None
    before = collect_trace(model, rows, progress=False)
    assert torch.equal(after.scores, before.scores)
    assert not torch.equal(after.logits, before.logits)


@torch.no_grad()
def test_training_knows_no_temperatures() -> None:
    model = new_model("pabee").train()
    inputs = collate(texts(6))
    before = model(**inputs)
    model.config.exit_temperatures = [0.5, 1.0, 2.0, 4.0]
    after = model(**inputs)
    assert torch.equal(after.exit_logits, before.exit_logits)
    assert after.loss == before.loss
    model.eval()
    torch.testing.assert_close(model(**inputs).logits, before.logits / 4)


@every_method
@torch.no_grad()
def test_the_loss_of_an_objective_knows_no_temperatures(method: str) -> None:
    model = new_model(method).eval()
    inputs = collate(texts(6))
    objectives = [objective for stage in model.stages for objective in stage.objectives]
    before = [model(**inputs, objective=objective) for objective in objectives]
    model.config.exit_temperatures = [0.5, 1.0, 2.0, 4.0]
    for objective, expected in zip(objectives, before, strict=True):
        output = model(**inputs, objective=objective)
        assert output.loss == expected.loss
        assert torch.equal(output.exit_logits, expected.exit_logits)


@torch.no_grad()
def test_log_probabilities_stay_log_probabilities() -> None:
    model = new_model("dact-bert").eval()
    inputs = collate(texts(6))
    before = model(**inputs, early_exit=False).exit_logits
    temperatures = torch.tensor([0.5, 1.0, 2.0, 4.0])
    model.config.exit_temperatures = temperatures.tolist()
    output = model(**inputs, early_exit=False)
    torch.testing.assert_close(output.exit_logits.exp(), (before / temperatures[:, None]).softmax(dim=-1))
    torch.testing.assert_close(output.loss, cross_entropy(before[:, -1] / 4, inputs["labels"]))
    torch.testing.assert_close(model(**inputs, exit_threshold=-1.0).logits, output.exit_logits[:, 0])


def test_temperatures_are_saved(tmp_path: Path) -> None:
    model, rows = calibrated("berxit")
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.exit_temperatures == model.config.exit_temperatures
    one, other = (collect_trace(each, rows, progress=False) for each in (model, again))
    torch.testing.assert_close(one.scores, other.scores)


def test_calibrating_again_starts_from_the_bare_logits() -> None:
    model, rows = calibrated("deebert")
    before = list(model.config.exit_temperatures)
    assert model.calibrate_temperatures(rows) == before
    assert model.calibrate_temperatures(iter(rows), batch_size=7) == pytest.approx(before, rel=1e-4)


def test_whole_labels_may_be_floats() -> None:  # as in a DataFrame whose column had missing values
    model, rows = calibrated("deebert")
    before = list(model.config.exit_temperatures)
    assert model.calibrate_temperatures([row | {"label": float(row["label"])} for row in rows]) == before


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_that_of_before_and_dropout_is_off(training: bool) -> None:
    model = new_model("berxit", dropout=0.5)
    rows = noisy_rows(model)
    first = model.train(training).calibrate_temperatures(rows)
    assert model.training is training
    assert model.calibrate_temperatures(rows) == first


@pytest.mark.parametrize("before", [None, [1.0, 2.0, 3.0, 4.0]])
def test_an_error_leaves_all_as_it_was(before: list[float] | None) -> None:
    model = new_model("deebert", exit_temperatures=before).train()
    with pytest.raises(ValueError, match="dataset: item 5 has the token id 1000000"):
        model.calibrate_temperatures([*texts(5), {"input_ids": [10**6], "label": 0}])
    assert model.config.exit_temperatures == before
    assert model.training


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            texts(2),
            "dataset: got 2 samples, with labels, for 3 classes; pass a validation set with labels, at least 3",
        ),
        (texts(5, labels=False), "dataset: got 5 samples, without labels, for 3 classes; pass a validation set with"),
        ([row | {"label": -1} for row in texts(5)], "dataset: got 5 samples, without labels"),
        ([row | {"label": 3} for row in texts(5)], "label: got 3 in row 0; pass class indices from 0 to 2"),
        ([row | {"label": 0.5} for row in texts(5)], "label: got 0.5 in row 0; pass class indices from 0 to 2"),
        ([], "dataset: got no rows; pass at least one"),
        ([{"text": "good", "label": 1}], "dataset: rows have text, label, but no input_ids"),
    ],
    ids=["too few", "no labels", "as in GLUE", "out of range", "numbers", "none", "not tokenized"],
)
def test_a_data_set_that_cannot_calibrate_is_refused(rows: list[Row], message: str) -> None:
    model = new_model("deebert")
    with pytest.raises(ValueError, match=message):
        model.calibrate_temperatures(rows)
    assert model.config.exit_temperatures is None


def test_regression_has_nothing_to_calibrate() -> None:
    with pytest.raises(ValueError, match="regression, num_labels=1, has no probabilities to calibrate"):
        new_model("pabee", num_labels=1).calibrate_temperatures(texts(5))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            [1.0, 1.0],
            ValueError,
            r"got \[1.0, 1.0\] for 3 exits; pass a list of 3 positive numbers, or call model.cal",
        ),
        (1.5, ValueError, "got 1.5 for 3 exits; pass a list"),
        ([1.0, 0.0, 1.0], ValueError, "got 0.0; pass positive numbers, 1 changes nothing"),
        ([1.0, -2.0, 1.0], ValueError, "got -2.0; pass positive numbers"),
        ([1.0, math.nan, 1.0], ValueError, "got nan; pass a finite number"),
        ([1.0, "1", 1.0], TypeError, "got '1' of type str; pass a number"),
    ],
)
def test_wrong_temperatures_are_refused(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"exit_temperatures: {message}"):
        build("deebert", exit_temperatures=value)
    model = build("deebert")
    model.config.exit_temperatures = value
    with pytest.raises(error, match=f"exit_temperatures: {message}"):
        model(**inputs_of(model))


def test_regression_takes_no_temperatures() -> None:
    with pytest.raises(ValueError, match="exit_temperatures: regression, num_labels=1, has no probabilities to cal"):
        build("pabee", num_labels=1, exit_temperatures=[1.0, 1.0, 1.0])
