"""All stages run in one call; each starts fresh, trains what it should, and leaves everything as it found it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import (
    METHODS,
    At,
    History,
    frozen_in,
    interrupted,
    largest_difference,
    new_model,
    new_trainer,
    run,
    stopped,
    texts,
    weights,
)
from transformers import EarlyStoppingCallback, EvalPrediction

from adaexit_hf.trainer.training_args import CHECKPOINTING

# The trainer knows nothing of a method but its stages, objectives and parameters: one method that trains all in one
# stage, one that freezes the encoder in its second, one with parameters that no stage trains.
FEW = ("berxit", "deebert", "depth-adaptive")
TWO_STAGES = ("deebert", "fastbert")  # the second of FastBERT needs no labels


def raise_error(**kwargs: Any) -> None:
    raise RuntimeError("out of memory")


def autocast_in(model: torch.nn.Module) -> list[bool]:
    seen: list[bool] = []
    hook = model.exits[0].register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    model(input_ids=torch.tensor([[1, 7, 2]]))
    hook.remove()
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_train_runs_every_stage_in_order(method: str, tmp_path: Path) -> None:
    history = History()
    model = new_model(method)
    result = new_trainer(model, tmp_path, [history], max_steps=2).train()
    names = [stage.name for stage in model.stages]
    assert [log["stage"] for log in history.logs if "loss" in log] == [name for name in names for _ in range(2)]
    assert result.global_step == 2 * len(names)
    assert {f"{name}_train_loss" for name in names} <= result.metrics.keys()


def test_one_stage_can_be_run_alone(tmp_path: Path) -> None:
    history = History()
    result = new_trainer(new_model("deebert"), tmp_path, [history], max_steps=2).train(stage="exits")
    assert {log["stage"] for log in history.logs} == {"exits"}
    assert result.global_step == 2


@pytest.mark.parametrize("method", TWO_STAGES)
def test_all_stages_at_once_are_the_stages_one_by_one(method: str, tmp_path: Path) -> None:
    together, _ = run(method, tmp_path / "together", dropout=0.1)
    alone = new_model(method, dropout=0.1)
    for stage in alone.stages:
        new_trainer(alone, tmp_path / "alone").train(stage=stage.name)
    assert largest_difference(weights(together), weights(alone)) == 0.0


def test_one_trainer_can_run_one_stage_after_the_other(tmp_path: Path) -> None:
    together, _ = run("deebert", tmp_path / "together")
    model = new_model("deebert")
    trainer = new_trainer(model, tmp_path / "alone")
    trainer.train(stage="backbone")
    trainer.train(stage="exits")
    assert largest_difference(weights(together), weights(model)) == 0.0


def test_a_trainer_can_train_again(tmp_path: Path) -> None:
    trainer = new_trainer(new_model("deebert"), tmp_path, max_steps=1)
    trainer.train()
    assert trainer.train().global_step == 2


def test_temperatures_of_before_are_dropped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("transformers", "adaexit_hf"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    model = new_model("deebert", exit_temperatures=[1.0, 2.0, 3.0, 4.0])
    new_trainer(model, tmp_path, max_steps=1).train()
    assert model.config.exit_temperatures is None
    assert "exit_temperatures: set to None, since training" in caplog.text
    assert "call calibrate_temperatures again, and choose exit_threshold anew" in caplog.text
    caplog.clear()
    new_trainer(model, tmp_path / "again", max_steps=1).train()
    assert "exit_temperatures" not in caplog.text


@pytest.mark.parametrize(
    ("method", "criterion", "threshold", "left"),
    [
        ("deebert", "entropy", 0.3, None),
        ("right-tool", "confidence", 0.8, None),
        ("deebert", "patience", 2, 2),
        ("dact-bert", "dact", 0.1, 0.1),
    ],
)
def test_a_threshold_for_tempered_logits_is_dropped_with_the_temperatures(
    method: str, criterion: str, threshold: float, left: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("transformers", "adaexit_hf"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    model = new_model(
        method, exit_temperatures=[1.0, 2.0, 3.0, 4.0], exit_criterion=criterion, exit_threshold=threshold
    )
    new_trainer(model, tmp_path, max_steps=1).train()
    assert model.config.exit_threshold == left
    message = f"exit_threshold, which was {threshold} for tempered logits: set to None"
    assert (message in caplog.text) == (left is None)


def test_a_threshold_in_another_unit_is_refused_before_training(tmp_path: Path) -> None:
    model = new_model("deebert", exit_threshold=0.3)
    model.config.exit_criterion = "margin"
    trainer = new_trainer(model, tmp_path, max_steps=1)
    with pytest.raises(ValueError, match="exit_threshold: 0.3 was set in the unit of 'entropy'"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_threshold_of_before_the_calibration_does_not_keep_from_training(tmp_path: Path) -> None:
    model = new_model("deebert", exit_threshold=0.3)
    model.config.exit_temperatures = [1.0, 2.0, 3.0, 4.0]
    new_trainer(model, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    assert (model.config.exit_temperatures, model.config.exit_threshold) == (None, None)


def test_exits_that_all_answer_the_same_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("transformers", "adaexit_hf"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    options = {"eval_dataset": texts()}
    model = new_model("deebert", id2label={0: "bad", 1: "fair", 2: "good"})
    new_trainer(model, tmp_path / "fine", trainer_options=options, max_steps=1).train()
    assert "all exits answer" not in caplog.text
    for classifier in model.classifiers:
        classifier.bias.data[1] = 1e3
    new_trainer(model, tmp_path / "stuck", trainer_options=options, max_steps=1).train()
    assert "all exits answer 'fair' to each of the first evaluation texts" in caplog.text
    assert model.training


def several(**labels: Any) -> list[dict[str, Any]]:
    """Rows with three labels at once."""
    rows = [row | {"label": [float(row["label"] == 0), 1.0, float(row["label"] < 2)]} for row in texts()]
    return [row | labels for row in rows]


@pytest.mark.parametrize("method", ["fastbert", "berxit"])
def test_several_labels_at_once_are_trained_and_evaluated(method: str, tmp_path: Path) -> None:
    model = new_model(method, problem_type="multi_label_classification")
    found = []

    def compute_metrics(result: Any) -> dict[str, float]:
        found.append((result.predictions.shape, result.label_ids.tolist()))
        return {}

    options = {"eval_dataset": several(), "compute_metrics": compute_metrics}
    trainer = new_trainer(model, tmp_path, rows=several(), trainer_options=options, max_steps=2, logging_steps=1)
    trainer.train()
    assert {f"exit_{layer}_loss" for layer in model.config.exit_layers} <= trainer.state.log_history[0].keys()
    trainer.evaluate()
    assert found == [((24, 3), [row["label"] for row in several()])]


def test_a_label_that_is_neither_0_nor_1_is_refused_with_its_row(tmp_path: Path) -> None:
    rows = several()
    rows[5] = rows[5] | {"label": [0.0, 0.5, 1.0]}
    model = new_model("deebert", problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="train_dataset, row 5: labels: got 0.5 with problem_type"):
        new_trainer(model, tmp_path, rows=rows, max_steps=1).train()


@pytest.mark.parametrize(("bias", "answer"), [([1e3, -1e3, 1e3], "bad, good"), ([-1e3] * 3, "no label")])
def test_exits_that_all_give_the_same_label_set_are_reported(
    bias: list[float], answer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("transformers", "adaexit_hf"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    names = {0: "bad", 1: "fair", 2: "good"}
    model = new_model("deebert", id2label=names, problem_type="multi_label_classification")
    for classifier in model.classifiers:
        classifier.bias.data = torch.tensor(bias)
    new_trainer(model, tmp_path, rows=several(), trainer_options={"eval_dataset": several()}, max_steps=1).train()
    assert f"all exits answer '{answer}' to each of the first evaluation texts" in caplog.text


def test_an_output_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output_dir: got '.*/file/out', but no file can be written"):
        new_trainer(new_model("deebert"), tmp_path / "file" / "out")


@pytest.mark.parametrize("method", TWO_STAGES)
def test_the_learning_rate_restarts_in_every_stage(method: str, tmp_path: Path) -> None:
    _, logs = run(method, tmp_path, max_steps=4)
    rates = [log["learning_rate"] for log in logs if "loss" in log]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4] * 2)


@pytest.mark.parametrize("method", TWO_STAGES)
def test_every_stage_starts_with_an_empty_optimizer(method: str, tmp_path: Path) -> None:
    sizes = []
    look = At("on_train_begin", lambda optimizer, **kwargs: sizes.append(len(optimizer.state)))
    new_trainer(new_model(method), tmp_path, [look], max_steps=2).train()
    assert sizes == [0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_frozen_parameters_do_not_change_by_a_bit(method: str, tmp_path: Path) -> None:
    model = new_model(method)
    for stage in model.stages:
        before = weights(model)
        new_trainer(model, tmp_path / stage.name, weight_decay=0.1).train(stage=stage.name)
        for name, value in model.named_parameters():
            assert torch.equal(value, before[name]) == frozen_in(stage, name), name


@pytest.mark.parametrize("method", FEW)
def test_the_clip_norm_is_that_of_the_trainable_parameters(method: str, tmp_path: Path) -> None:
    norms = []

    def measure(model: torch.nn.Module, **kwargs: Any) -> None:
        assert all(value.grad is None for value in model.parameters() if not value.requires_grad)
        gradients = [value.grad for value in model.parameters() if value.requires_grad and value.grad is not None]
        norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

    history = History()
    look = At("on_pre_optimizer_step", measure)
    new_trainer(new_model(method), tmp_path, [look, history], max_grad_norm=1e9, max_steps=3).train()
    assert [log["grad_norm"] for log in history.logs if "loss" in log] == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("error", [None, interrupted, raise_error], ids=["finished", "interrupted", "failed"])
@pytest.mark.parametrize("stage", [1, 2])
def test_the_model_and_trainer_are_left_as_they_were(error: Any, stage: int, tmp_path: Path) -> None:
    model = new_model("deebert")
    callbacks = [At("on_step_end", error, stage)] if error else []
    trained = [value.requires_grad for value in model.parameters()]
    trainer = new_trainer(model, tmp_path, callbacks, max_steps=2, bf16=True, **{CHECKPOINTING: True})
    args = trainer.args
    if error:
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            trainer.train()
    else:
        trainer.train()
    assert [value.requires_grad for value in model.parameters()] == trained
    assert trainer.args is args and trainer.stage is None and trainer.model_wrapped is model
    assert not getattr(model, f"is_{CHECKPOINTING}")
    assert autocast_in(model) == [False]


@pytest.mark.parametrize("method", FEW)
def test_what_the_user_froze_stays_frozen(method: str, tmp_path: Path) -> None:
    model = new_model(method)
    trained = sum(value.requires_grad for value in model.parameters())
    embeddings = model.get_input_embeddings().requires_grad_(False).weight
    before = embeddings.clone()
    new_trainer(model, tmp_path, max_steps=2).train()
    assert torch.equal(embeddings, before) and not embeddings.requires_grad
    assert sum(value.requires_grad for value in model.parameters()) == trained - 1


def test_a_given_optimizer_trains_a_single_stage(tmp_path: Path) -> None:
    model = new_model("deebert")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    used = []
    look = At("on_train_begin", lambda optimizer, **kwargs: used.append(optimizer.optimizer))
    new_trainer(model, tmp_path, [look], trainer_options={"optimizers": (optimizer, None)}).train(stage="exits")
    assert used == [optimizer]


def test_a_given_optimizer_cannot_serve_several_stages(tmp_path: Path) -> None:
    model = new_model("deebert")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = new_trainer(model, tmp_path, trainer_options={"optimizers": (optimizer, None)})
    with pytest.raises(ValueError, match="one optimizer cannot serve several stages; leave it out"):
        trainer.train()


class Scripted:
    """`compute_metrics` that gives the numbers it was told, one per evaluation."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = iter(scores)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        return {"score": next(self.scores)}


def scripted(folder: Path, scores: list[float], callbacks: list[Any], **arguments: Any) -> tuple[Any, Any]:
    model = new_model("deebert")
    options = {"compute_metrics": Scripted(scores), "eval_dataset": [{"input_ids": [1, 9, 2], "label": 0}]}
    trainer = new_trainer(
        model, folder, callbacks, trainer_options=options, save_strategy="steps", save_steps=1, eval_strategy="steps",
        eval_steps=1, load_best_model_at_end=True, metric_for_best_model="score", max_steps=5, **arguments,
    )  # fmt: skip
    return model, trainer


def test_every_stage_starts_from_the_best_model_of_the_one_before(tmp_path: Path) -> None:
    starts: list[dict[str, torch.Tensor]] = []
    look = At("on_train_begin", lambda model, **kwargs: starts.append(weights(model)))
    model, trainer = scripted(tmp_path, [0.1, 0.9, 0.3, 0.4, 0.2, 0.8, 0.3, 0.4, 0.1, 0.2], [look])
    trainer.train()
    best = [tmp_path / "stage-1-backbone" / "checkpoint-2", tmp_path / "stage-2-exits" / "checkpoint-1"]
    first, second = (type(model).from_pretrained(folder) for folder in best)
    assert largest_difference(starts[1], weights(first)) == 0.0
    assert largest_difference(weights(model), weights(second)) == 0.0


def test_early_stopping_ends_its_stage_and_starts_anew_in_the_next(tmp_path: Path) -> None:
    history = History()
    scores = [0.1, 0.9, 0.3, 0.4] + [
        0.5,
        0.4,
        0.6,
        0.5,
        0.4,
    ]  # each stage stops after two evaluations that are no better
    _, trainer = scripted(tmp_path, scores, [history, EarlyStoppingCallback(2)])
    assert trainer.train().global_step == len(scores)
    assert [log["stage"] for log in history.logs if "loss" in log] == ["backbone"] * 4 + ["exits"] * 5


def test_early_stopping_of_one_stage_does_not_hide_that_the_next_was_stopped(tmp_path: Path) -> None:
    callbacks = [EarlyStoppingCallback(1), At("on_step_end", stopped, stage=2, step=2)]
    seldom = {"exits": {"eval_steps": 4, "save_steps": 4}}
    _, trainer = scripted(tmp_path, [0.9, 0.1], callbacks, stage_overrides=seldom)
    assert trainer.train().global_step == 4
    assert json.loads((tmp_path / "stages.json").read_text())["done"] == ["backbone"]
