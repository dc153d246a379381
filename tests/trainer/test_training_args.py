"""Arguments of single stages take effect there and only there; what cannot work is refused with a clear error."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import At, History, collate, new_model, new_trainer, texts
from transformers import HfArgumentParser, TrainingArguments

from adaexit_hf import EarlyExitTrainer, EarlyExitTrainingArguments
from adaexit_hf.models.exit_heads import ExitHead
from adaexit_hf.models.modeling_early_exit import Stage
from adaexit_hf.trainer.training_args import CHECKPOINTING

# What stage "exits" overrides, and what "backbone" has.
OVERRIDES = {
    "max_steps": -1,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.5,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.25,
    "adam_beta1": 0.75,
    "max_grad_norm": 1e-3,
    "bf16": True,
    CHECKPOINTING: True,
    "logging_steps": 4,
    "save_strategy": "steps",
    "save_steps": 3,
    "seed": 5,
}


@dataclasses.dataclass
class Seen:
    """What one stage really did."""

    rates: list[float] = dataclasses.field(default_factory=list)
    rows: list[int] = dataclasses.field(default_factory=list)
    first: list[int] = dataclasses.field(default_factory=list)  # the first batch's first row
    norm: float = 0.0  # of the gradient after clipping
    group: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the optimizer
    autocast: set[bool] = dataclasses.field(default_factory=set)
    checkpointing: bool = False
    logged: list[int] = dataclasses.field(default_factory=list)
    saved: list[str] = dataclasses.field(default_factory=list)


def watched(folder: Path, base: dict[str, Any], overrides: dict[str, dict[str, Any]]) -> dict[str, Seen]:
    """Train DeeBERT's two stages and look at what they do."""
    model, seen = new_model("deebert"), {"backbone": Seen(), "exits": Seen()}

    def step(args: Any, optimizer: Any, **kwargs: Any) -> None:
        now = seen[trainer.stage.name]
        now.rates.append(optimizer.param_groups[0]["lr"])
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        now.norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        now.group = optimizer.param_groups[0]
        now.checkpointing = getattr(model, f"is_{CHECKPOINTING}")

    def batch(module: Any, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        now = seen[trainer.stage.name]
        now.rows.append(len(kwargs["input_ids"]))
        now.first = now.first or kwargs["input_ids"][0].tolist()

    def log(state: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" in logs:
            seen[logs["stage"]].logged.append(state.global_step)

    model.register_forward_pre_hook(batch, with_kwargs=True)
    model.exits[0].register_forward_hook(
        lambda *_: seen[trainer.stage.name].autocast.add(torch.is_autocast_enabled("cpu"))
    )
    callbacks = [At("on_pre_optimizer_step", step), At("on_log", log)]
    trainer = new_trainer(model, folder, callbacks, stage_overrides=overrides, **base)
    trainer.train()
    for number, name in enumerate(seen, start=1):
        seen[name].saved = sorted(path.name for path in folder.glob(f"stage-{number}-{name}/*"))
    return seen


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return watched(tmp_path_factory.mktemp("plain"), {"max_steps": 3}, {"exits": OVERRIDES})["backbone"]


@pytest.fixture(scope="module")
def overridden(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return watched(tmp_path_factory.mktemp("overridden"), {"max_steps": 3}, {"exits": OVERRIDES})["exits"]


def test_epochs_batch_size_and_accumulation(plain: Seen, overridden: Seen) -> None:
    assert plain.rows == [4] * 3
    assert overridden.rows == [3] * (2 * 8)  # two epochs of 24 rows
    assert len(plain.rates) == 3 and len(overridden.rates) == 8


def test_learning_rate_and_schedule(plain: Seen, overridden: Seen) -> None:
    assert plain.rates == pytest.approx([1e-3, 1e-3 * 2 / 3, 1e-3 / 3])
    assert overridden.rates == [0.5] * 8


def test_optimizer(plain: Seen, overridden: Seen) -> None:
    assert (plain.group["weight_decay"], plain.group["betas"][0]) == (0.0, 0.9)
    assert (overridden.group["weight_decay"], overridden.group["betas"][0]) == (0.25, 0.75)


def test_clipping(plain: Seen, overridden: Seen) -> None:
    assert plain.norm > 0.1
    assert overridden.norm == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(("base", "override"), [(True, False), (False, True), (True, True)])
def test_mixed_precision_holds_for_its_stage(base: bool, override: bool, tmp_path: Path) -> None:
    seen = watched(tmp_path, {"max_steps": 1, "bf16": base}, {"exits": {"bf16": override}})
    assert (seen["backbone"].autocast, seen["exits"].autocast) == ({base}, {override})


@pytest.mark.parametrize("base", [True, False])
def test_evaluation_after_training_has_the_precision_of_the_run(base: bool, tmp_path: Path) -> None:
    model, seen = new_model("deebert"), []
    trainer = new_trainer(model, tmp_path, max_steps=1, bf16=base, stage_overrides={"exits": {"bf16": not base}})
    trainer.train()
    model.exits[0].register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    trainer.evaluate(texts(2))
    assert seen == [base]


def test_activation_checkpointing(plain: Seen, overridden: Seen) -> None:
    assert (plain.checkpointing, overridden.checkpointing) == (False, True)


def test_activation_checkpointing_ends_with_its_stage(tmp_path: Path) -> None:
    seen = watched(tmp_path, {"max_steps": 1}, {"backbone": {CHECKPOINTING: True}})
    assert (seen["backbone"].checkpointing, seen["exits"].checkpointing) == (True, False)


def test_logging(plain: Seen, overridden: Seen) -> None:
    assert plain.logged == [1, 2, 3]
    assert overridden.logged == [4, 8]


def test_saving(plain: Seen, overridden: Seen) -> None:
    assert plain.saved == []
    assert overridden.saved == ["checkpoint-3", "checkpoint-6", "checkpoint-8", "final"]


def test_seed(plain: Seen, tmp_path: Path) -> None:
    seen = watched(tmp_path, {"max_steps": 1}, {"exits": {"seed": 5}})
    assert seen["backbone"].first == plain.first != seen["exits"].first


def test_a_metric_of_one_stage_brings_its_own_direction(tmp_path: Path) -> None:
    directions = []
    look = At("on_train_begin", lambda args, **kwargs: directions.append(args.greater_is_better))
    overrides = {"exits": {"metric_for_best_model": "accuracy"}}
    new_trainer(
        new_model("deebert"), tmp_path, [look], max_steps=1, metric_for_best_model="loss", stage_overrides=overrides
    ).train()
    assert directions == [False, True]


def test_overrides_from_the_command_line() -> None:
    line = ["--output_dir", "out", "--use_cpu", "--stage_overrides", '{"exits": {"learning_rate": 0.1}}']
    (args,) = HfArgumentParser(EarlyExitTrainingArguments).parse_args_into_dataclasses(line)
    assert args.stage_overrides == {"exits": {"learning_rate": 0.1}}
    assert args.ddp_find_unused_parameters is True


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"exit": {"seed": 1}}, ValueError, "stage_overrides: got stage 'exit'; this model has backbone, exits"),
        ({"exits": {"learing_rate": 1}}, ValueError, "sets 'learing_rate', .* Did you mean 'learning_rate'"),
        ({"exits": {"qqqqq": 1}}, ValueError, "sets 'qqqqq', .* see EarlyExitTrainingArguments"),
        ({"exits": {"output_dir": "x"}}, ValueError, "stage 'exits' sets 'output_dir', which a stage cannot set"),
        (
            {"exits": {"label_smoothing_factor": 0.1}},
            ValueError,
            "sets 'label_smoothing_factor', which a stage cannot",
        ),
        pytest.param(
            {"exits": {"gradient_checkpointing": True}},
            ValueError,
            "Did you mean 'activation_checkpointing'",
            marks=pytest.mark.skipif(CHECKPOINTING == "gradient_checkpointing", reason="has no other name there"),
        ),
        ([1], TypeError, "stage_overrides: got .1.; pass a dict, e.g. {'exits': "),
    ],
)
def test_wrong_overrides_are_refused(overrides: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        new_trainer(new_model("deebert"), tmp_path, stage_overrides=overrides).train()


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stage: got 'exit'; DeeBertForSequenceClassification has backbone, exits"):
        new_trainer(new_model("deebert"), tmp_path).train(stage="exit")


def with_stages(*stages: Stage, exit_layers: int = 4) -> Any:
    model = new_model("deebert")
    model.exits = torch.nn.ModuleList(ExitHead(model.config.encoder_config, 3) for _ in range(exit_layers))
    model.__class__ = type("Staged", (type(model),), {"stages": stages})
    return model


def test_a_frozen_name_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    model = with_stages(Stage("first", ("final",)), Stage("second", ("exits",), ("encoder", "exits.12")))
    history = History()
    with pytest.raises(ValueError, match=r"stage 'second' freezes 'exits\.12', which matches no parameter"):
        new_trainer(model, tmp_path, [history]).train()
    assert history.logs == []  # found before the first stage has run


def test_a_frozen_name_is_a_whole_name(tmp_path: Path) -> None:
    """'exits.1' is not 'exits.10'."""
    model = with_stages(Stage("only", ("exits",), ("exits.1",)), exit_layers=12)
    seen = []
    look = At(
        "on_train_begin", lambda model, **_: seen.extend(each.dense.weight.requires_grad for each in model.exits)
    )
    new_trainer(model, tmp_path, [look], max_steps=1).train()
    assert [index for index, trainable in enumerate(seen) if not trainable] == [1]


def test_a_single_parameter_can_be_frozen(tmp_path: Path) -> None:
    model = with_stages(Stage("only", ("final",), ("exits.3.dense.bias",)))
    before = model.exits[3].dense.bias.clone()
    new_trainer(model, tmp_path).train()
    assert torch.equal(model.exits[3].dense.bias, before)


def test_arguments_of_the_wrong_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"args: got TrainingArguments; pass EarlyExitTrainingArguments\(output_dir="):
        EarlyExitTrainer(new_model("deebert"), TrainingArguments(str(tmp_path), use_cpu=True))


def test_a_model_without_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model: Linear has no stages; pass an early-exit model"):
        new_trainer(torch.nn.Linear(1, 1), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "options", "got"),
    [
        ({"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor: got 0.1"),
        ({}, {"compute_loss_func": lambda *_, **__: None}, "compute_loss_func: got <function"),
    ],
    ids=["label-smoothing", "compute-loss-func"],
)
def test_arguments_that_bypass_the_objectives_are_refused(
    arguments: Any, options: Any, got: str, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=f"{got}.*, which replaces the objectives .* set class_weights or label_smooth"
    ):
        new_trainer(new_model("deebert"), tmp_path, trainer_options=options, **arguments)


def test_a_loss_function_that_is_passed_by_position_is_refused_too(tmp_path: Path) -> None:
    args = EarlyExitTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="compute_loss_func: got <function"):
        EarlyExitTrainer(new_model("deebert"), args, collate, texts(), None, None, None, lambda *_, **__: None)


def test_leftovers_of_an_earlier_run(tmp_path: Path) -> None:
    new_trainer(new_model("deebert"), tmp_path, max_steps=1, save_strategy="steps").train(stage="exits")
    trainer = new_trainer(new_model("deebert"), tmp_path, max_steps=1, save_strategy="steps")
    with pytest.raises(
        ValueError,
        match="which holds models of an earlier run, '.*stage-2-exits/checkpoint-1'.*; call train.resume_from",
    ):
        trainer.train()


def test_the_arguments_of_the_run_do_not_change(tmp_path: Path) -> None:
    args = EarlyExitTrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, stage_overrides={"exits": OVERRIDES})
    before = args.to_dict()
    trainer = EarlyExitTrainer(new_model("deebert"), args, data_collator=collate, train_dataset=texts())
    trainer.train(stage="exits")
    assert args.to_dict() == before and trainer.args is args


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator to use")
def test_bf16_without_an_accelerator_uses_the_cpu(tmp_path: Path) -> None:
    assert EarlyExitTrainingArguments(str(tmp_path), bf16=True).use_cpu
    assert not EarlyExitTrainingArguments(str(tmp_path)).use_cpu
