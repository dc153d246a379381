"""What every optimizer step optimizes: which objective, over which rows, with which gradient; what the logs say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import (
    METHODS,
    At,
    collate,
    largest_difference,
    new_model,
    new_trainer,
    recorded_objectives,
    run,
    texts,
    weights,
)
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from adaexit_hf import EarlyExitTrainer

IN_ORDER = {"train_sampling_strategy": "sequential"}
# Made by `python tests/helpers/pin_trajectories.py`. A new method need not be there.
TRAJECTORIES = json.loads(Path(__file__).with_name("trajectories.json").read_text())


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    """The first batches of four rows that a sequential sampler gives, epoch after epoch."""
    return [collate(texts()[4 * (index % 6) :][:4]) for index in range(count)]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_berxit_alternates_by_optimizer_steps(accumulation: int, tmp_path: Path) -> None:
    model = new_model("berxit")
    with recorded_objectives(model) as seen:
        new_trainer(model, tmp_path, gradient_accumulation_steps=accumulation).train()
    steps = [seen[first : first + accumulation] for first in range(0, len(seen), accumulation)]
    assert steps == [["final"] * accumulation, ["joint"] * accumulation] * 3


def test_alternation_goes_on_over_the_end_of_an_epoch(tmp_path: Path) -> None:
    model = new_model("berxit")
    with recorded_objectives(model) as seen:
        new_trainer(model, tmp_path, rows=texts(12)).train()  # three steps an epoch
    assert seen == ["final", "joint"] * 3


@pytest.mark.parametrize("method", METHODS)
def test_stages_with_one_objective_use_it_in_every_step(method: str, tmp_path: Path) -> None:
    model = new_model(method)
    for stage in model.stages:
        with recorded_objectives(model) as seen:
            new_trainer(model, tmp_path / stage.name, max_steps=3, gradient_accumulation_steps=2).train(
                stage=stage.name
            )
        assert seen[::2] == [stage.objectives[step % len(stage.objectives)] for step in range(3)]


def test_berxit_equals_a_loop_written_by_hand(tmp_path: Path) -> None:
    # The true gradient of a key's bias is 0; Adam with its usual epsilon makes whole steps of its rounding noise.
    epsilon = 1e-4
    trained = new_model("berxit")
    new_trainer(trained, tmp_path, max_steps=10, weight_decay=0.1, adam_epsilon=epsilon, **IN_ORDER).train()

    model = new_model("berxit").train()
    decayed = [value for name, value in model.named_parameters() if value.dim() > 1]
    others = [value for name, value in model.named_parameters() if value.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, eps=epsilon)
    for step, batch in enumerate(batches(10)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (10 - step) / 10
        labels = batch.pop("labels")
        states = model.encoder(**batch, output_hidden_states=True).hidden_states[1:]
        exits = [head(state[:, 0]) for head, state in zip(model.exits, states, strict=True)]
        losses = [functional.cross_entropy(logits, labels) for logits in exits]
        loss = losses[-1] if step % 2 == 0 else torch.stack(losses).sum()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert largest_difference(weights(trained), weights(model)) < 1e-6


def test_a_head_that_a_step_does_not_use_is_left_alone(tmp_path: Path) -> None:
    """Not even weight decay or the momentum of earlier steps move it."""
    snapshots: list[dict[str, torch.Tensor]] = []
    unused: list[set[str]] = []

    def gradients(model: torch.nn.Module, **kwargs: Any) -> None:
        unused.append({name for name, value in model.named_parameters() if value.grad is None})

    look = [
        At("on_step_end", lambda model, **_: snapshots.append(weights(model))),
        At("on_pre_optimizer_step", gradients),
    ]
    model = new_model("berxit")
    new_trainer(model, tmp_path, look, max_steps=4, weight_decay=0.1).train()
    early_heads = {name for name in snapshots[0] if name.startswith(("exits.0", "exits.1", "exits.2"))}
    assert unused == [early_heads, set()] * 2
    joint, final = snapshots[1:3]
    assert {name for name in final if torch.equal(final[name], joint[name])} == early_heads


# How many pieces there are is the affair of Transformers' loop, which knows nothing of methods.
@pytest.mark.parametrize(("method", "pieces"), [*((method, 2) for method in METHODS), ("berxit", 4)])
def test_accumulated_pieces_give_the_weights_of_one_big_batch(method: str, pieces: int, tmp_path: Path) -> None:
    settings = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3}
    whole, logs = run(method, tmp_path / "whole", per_device_train_batch_size=8, **settings)
    split = {"per_device_train_batch_size": 8 // pieces, "gradient_accumulation_steps": pieces}
    accumulated, same_logs = run(method, tmp_path / "accumulated", **settings, **split)
    # Rounding: 1.4e-6 and 4e-6 on a CPU without AVX-512. Gradients of half the size would differ by 7e-3 or more.
    assert largest_difference(weights(whole), weights(accumulated)) < 3e-6
    losses = [[log[name] for log in logs for name in log if name.endswith("loss")] for logs in (logs, same_logs)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_trainer_divides_the_loss_by_the_accumulation_steps(method: str, tmp_path: Path) -> None:
    trainer = new_trainer(new_model(method), tmp_path)
    assert trainer.model_accepts_loss_kwargs is False and trainer.loss_is_scaled_for_ga is False


# Stages are the trainer's affair: a method with one, and one with two.
@pytest.mark.parametrize("method", ["berxit", "deebert"])
def test_every_log_names_its_stage(method: str, tmp_path: Path) -> None:
    options = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    model, logs = run(method, tmp_path, trainer_options={"eval_dataset": texts(4)}, **options)
    # Of each stage: two steps, two evaluations, and the summary.
    assert [log["stage"] for log in logs] == [stage.name for stage in model.stages for _ in range(5)]


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_every_exit_is_logged(method: str, tmp_path: Path) -> None:
    """With learning rate 0 the weights are those of the start, so the losses can be computed from outside."""
    settings = {"learning_rate": 0.0, "gradient_accumulation_steps": 2, "logging_steps": 2, "max_steps": 2}
    model, logs = run(method, tmp_path, exit_layers=[2, 4], **settings, **IN_ORDER)
    expected = torch.zeros(2)
    for batch in batches(4):
        labels = batch.pop("labels")
        with torch.no_grad():
            exits = model(**batch, early_exit=False).exit_logits.unbind(dim=1)
        expected += torch.stack([functional.cross_entropy(logits, labels) for logits in exits]) / 4
    found = [[log["exit_2_loss"], log["exit_4_loss"]] for log in logs if "loss" in log]
    assert found == [pytest.approx(expected.tolist(), abs=1e-5)] * len(model.stages)
    assert not any("exit_1_loss" in log for log in logs)


def test_an_exit_loss_covers_only_the_steps_since_the_last_log(tmp_path: Path) -> None:
    """Five steps: the last one is never logged, and must not leak into the next stage."""
    settings = {"learning_rate": 0.0, "max_steps": 5} | IN_ORDER
    _, single = run("deebert", tmp_path / "single", logging_steps=1, **settings)
    _, double = run("deebert", tmp_path / "double", logging_steps=2, **settings)
    each = [log["exit_1_loss"] for log in single if "loss" in log]
    means = [(each[index] + each[index + 1]) / 2 for index in (0, 2, 5, 7)]
    assert [log["exit_1_loss"] for log in double if "loss" in log] == pytest.approx(means, abs=1e-6)


def test_regression_logs_squared_errors(tmp_path: Path) -> None:
    rows = [{"input_ids": row["input_ids"], "label": float(row["label"])} for row in texts()]
    model = new_model("berxit", num_labels=1)
    seen: list[dict[str, Any]] = []
    look = At("on_log", lambda logs, **_: seen.append(dict(logs)))
    new_trainer(model, tmp_path, [look], rows=rows, learning_rate=0.0, max_steps=1, **IN_ORDER).train()
    batch = collate(rows[:4])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    assert seen[0]["exit_4_loss"] == pytest.approx((logits - batch["labels"]).square().mean().item(), abs=1e-5)


@pytest.mark.parametrize("method", TRAJECTORIES)
def test_loss_trajectory_is_the_pinned_one(method: str, tmp_path: Path) -> None:
    _, logs = run(method, tmp_path, max_steps=20)
    losses = [log["loss"] for log in logs if "loss" in log]
    assert losses == pytest.approx(TRAJECTORIES[method], abs=1e-4)


class Popping(EarlyExitTrainer):
    """The Hub's usual recipe for class weights."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = functional.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]))
        return (loss, outputs) if return_outputs else loss


class Reading(EarlyExitTrainer):
    """The same, but the labels stay in the inputs."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        outputs = model(**inputs)
        loss = functional.cross_entropy(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class Stepping(EarlyExitTrainer):
    """Another whole step."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = model(**self._prepare_inputs(inputs)).loss
        self.accelerator.backward(loss)
        return loss.detach()


class Adding(EarlyExitTrainer):
    """Something is added to the objective's loss, without a gradient."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
        return (loss + 1.0, outputs) if return_outputs else loss + 1.0


def of_class(trainer_class: type[EarlyExitTrainer], method: str, folder: Path, **arguments: Any) -> EarlyExitTrainer:
    trainer = new_trainer(new_model(method), folder, **arguments)
    trainer.__class__ = trainer_class
    return trainer


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("trainer_class", [Popping, Reading])
def test_a_loss_that_bypasses_the_objective_is_refused_before_the_first_step(
    method: str, trainer_class: Any, tmp_path: Path
) -> None:
    trainer = of_class(trainer_class, method, tmp_path, max_steps=1)
    for stage in trainer.model.stages:
        before = weights(trainer.model)
        with pytest.raises(ValueError, match=r"class_weights or label_smoothing"):
            trainer.train(stage=stage.name)
        assert largest_difference(before, weights(trainer.model)) == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_that_bypasses_the_objective_is_refused_too(method: str, tmp_path: Path) -> None:
    trainer = of_class(Stepping, method, tmp_path, max_steps=1)
    before = weights(trainer.model)
    with pytest.raises(ValueError, match=r"Stepping did not call EarlyExitTrainer\.compute_loss"):
        trainer.train()
    assert largest_difference(before, weights(trainer.model)) == 0.0


@pytest.mark.parametrize("method", ["berxit", "deebert"])
def test_a_loss_that_adds_to_the_objective_is_fine(method: str, tmp_path: Path) -> None:
    plain, _ = run(method, tmp_path / "plain", max_steps=2)
    trainer = of_class(Adding, method, tmp_path / "adding", max_steps=2)
    trainer.train()
    assert largest_difference(weights(plain), weights(trainer.model)) == 0.0


def test_an_error_of_the_model_is_not_blamed_on_the_loss(tmp_path: Path) -> None:
    rows = [{"input_ids": row["input_ids"]} for row in texts()]
    for trainer_class in (EarlyExitTrainer, Adding):
        trainer = of_class(trainer_class, "pabee", tmp_path, rows=rows)
        with pytest.raises(ValueError, match="train_dataset: got rows with .* needs labels too"):
            trainer.train()
