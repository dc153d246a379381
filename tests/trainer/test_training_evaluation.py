"""`evaluate()` and `predict()` of the trainer work as everywhere: plain logits, and the loss of the answer."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.runs import METHODS, clear_thresholds, new_model, new_trainer, texts
from torch.nn import functional
from transformers import EvalPrediction

from adaexit_hf import collect_trace
from adaexit_hf.models import EarlyExitForSequenceClassification


def early(method: str) -> tuple[EarlyExitForSequenceClassification, torch.Tensor]:
    """A model that exits early, and its answers to `texts()`."""
    model = new_model(method)
    trace = collect_trace(model, texts(), progress=False)
    threshold = next(each for each in clear_thresholds(trace) if len(trace.at(each)[1].unique()) > 2)
    model.config.exit_threshold = threshold
    return model, trace.at(threshold)[0]


@pytest.mark.parametrize("method", METHODS)
def test_predictions_are_the_plain_logits(method: str, tmp_path: Path) -> None:
    model, logits = early(method)
    found = new_trainer(model, tmp_path, per_device_eval_batch_size=5).predict(texts())
    assert isinstance(found.predictions, np.ndarray) and found.predictions.shape == (24, 3)
    torch.testing.assert_close(torch.tensor(found.predictions), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_trace_is_not_gathered(method: str, tmp_path: Path) -> None:
    gathered = []

    def kept(logits: Any, labels: torch.Tensor) -> Any:
        gathered.append(logits)
        return logits

    options = {"preprocess_logits_for_metrics": kept}
    new_trainer(new_model(method, exit_threshold=None), tmp_path, trainer_options=options).predict(texts(8))
    assert [batch.shape for batch in gathered] == [(8, 3)]


@pytest.mark.parametrize("method", METHODS)
def test_metrics_are_computed_in_the_usual_way(method: str, tmp_path: Path) -> None:
    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(axis=-1) == prediction.label_ids).mean())}

    model = new_model(method)
    trainer = new_trainer(model, tmp_path, trainer_options={"compute_metrics": compute_metrics})
    trace = collect_trace(model, texts(), progress=False)
    answers = trace.at(model.config.exit_threshold)[0].argmax(dim=-1)
    expected = (answers == trace.labels).double().mean().item()
    assert trainer.evaluate(texts())["eval_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS)
def test_without_compute_metrics_the_accuracy_is_given(method: str, tmp_path: Path) -> None:
    model, logits = early(method)
    right = [int(answer) == row["label"] for answer, row in zip(logits.argmax(dim=-1), texts(), strict=True)]
    found = new_trainer(model, tmp_path, per_device_eval_batch_size=7).evaluate(texts())
    assert found["eval_accuracy"] == pytest.approx(sum(right) / len(right))


def test_a_regression_is_given_correlations_and_several_labels_f1(tmp_path: Path) -> None:
    rows = [{**row, "label": float(index % 5)} for index, row in enumerate(texts(labels=False))]
    number = new_trainer(new_model("berxit", num_labels=1), tmp_path).evaluate(rows)
    assert {"eval_spearmanr", "eval_pearson"} <= number.keys()
    rows = [{**row, "label": [1.0, 0.0, float(index % 2)]} for index, row in enumerate(texts(labels=False))]
    several = new_model("berxit", problem_type="multi_label_classification")
    assert {"eval_f1_micro", "eval_f1_macro", "eval_accuracy"} <= new_trainer(several, tmp_path).evaluate(rows).keys()


def test_rows_without_a_label_have_no_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = new_trainer(new_model("fastbert"), tmp_path, trainer_options={"eval_dataset": texts()})
    trainer.stage = trainer.model.stages[-1]  # needs no labels
    unlabelled = [{**row, "label": -1} for row in texts(8)]
    assert "eval_accuracy" not in trainer.evaluate(unlabelled)
    labels = [row["label"] for row in texts(16)]
    mixed = trainer.predict([*unlabelled, *texts(16)])
    answers = mixed.predictions[8:].argmax(axis=-1)
    assert mixed.metrics["test_accuracy"] == pytest.approx(float((answers == np.array(labels)).mean()))


def test_a_metric_that_is_not_defined_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("adaexit_hf"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    rows = [{**row, "label": 2.0} for row in texts(labels=False)]
    found = new_trainer(new_model("berxit", num_labels=1), tmp_path).evaluate(rows)
    assert "eval_pearson" not in found and "eval_loss" in found
    assert "evaluate: no pearson: references: the 24 labels are all equal" in caplog.text


@pytest.mark.parametrize("method", METHODS)
def test_the_evaluation_loss_is_that_of_the_answer(method: str, tmp_path: Path) -> None:
    model, logits = early(method)
    loss = functional.cross_entropy(logits, torch.tensor([row["label"] for row in texts()])).item()
    trainer = new_trainer(model, tmp_path, per_device_eval_batch_size=8)
    assert trainer.evaluate(texts())["eval_loss"] == pytest.approx(loss, abs=1e-5)


def test_inside_a_stage_the_evaluation_loss_is_that_of_its_last_objective(tmp_path: Path) -> None:
    model = new_model("deebert")
    options = {"trainer_options": {"eval_dataset": texts()}, "per_device_eval_batch_size": 24}
    trainer = new_trainer(model, tmp_path, learning_rate=0.0, max_steps=1, eval_strategy="epoch", **options)
    trainer.train(stage="exits")
    during = next(log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log)
    trace = collect_trace(model, texts(), progress=False)
    losses = [functional.cross_entropy(logits, trace.labels).item() for logits in trace.logits.unbind(dim=1)]
    assert during == pytest.approx(sum(losses[:-1]), abs=1e-5)


def test_the_best_model_of_a_stage_is_the_best_by_its_own_objective(tmp_path: Path) -> None:
    # The frozen last exit's loss never changes: by that, the first epoch would count as the best.
    options = {"trainer_options": {"eval_dataset": texts()}, "max_steps": 24, "learning_rate": 1e-2}
    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = new_trainer(new_model("deebert"), tmp_path, **options, **best)
    trainer.train(stage="exits")
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(set(losses)) == 4
    assert trainer.state.best_metric == min(losses) < losses[0]


def test_rows_without_labels_are_predicted(tmp_path: Path) -> None:
    found = new_trainer(new_model("deebert"), tmp_path).predict(texts(5, labels=False))
    assert found.predictions.shape == (5, 3) and found.label_ids is None


def test_regression_predicts_numbers(tmp_path: Path) -> None:
    rows = [row | {"label": float(row["label"])} for row in texts(5)]
    model = new_model("berxit", num_labels=1)
    found = new_trainer(model, tmp_path).predict(rows)
    expected = collect_trace(model, rows, progress=False).at(None)[0]
    torch.testing.assert_close(torch.tensor(found.predictions), expected, rtol=0, atol=1e-5)
    assert found.metrics["test_loss"] == pytest.approx(
        ((found.predictions[:, 0] - found.label_ids) ** 2).mean(), abs=1e-5
    )
