"""With `exits_learning_rate` what is outside of the encoder learns at a rate of its own."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers.runs import At, interrupted, new_model, new_trainer, weights
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from adaexit_hf import EarlyExitTrainingArguments

RATES = {"learning_rate": 1e-3, "exits_learning_rate": 0.25, "lr_scheduler_type": "constant", "weight_decay": 0.5}


def rates_by_name(method: str, folder: Path, stage: str, **arguments: Any) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter that the stage trains."""
    model, found = new_model(method), {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def look(args: Any, optimizer: Any, **kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert names[id(parameter)] not in found
                found[names[id(parameter)]] = group["lr"], group["weight_decay"]

    new_trainer(model, folder, [At("on_train_begin", look)], max_steps=1, **RATES | arguments).train(stage=stage)
    return found


def test_the_encoder_and_the_rest_have_their_rates(tmp_path: Path) -> None:
    rates = rates_by_name("berxit", tmp_path, "alternate")
    assert set(rates) == {name for name, _ in new_model("berxit").named_parameters()}
    assert {rate for name, (rate, _) in rates.items() if name.startswith("encoder.")} == {1e-3}
    assert {rate for name, (rate, _) in rates.items() if not name.startswith("encoder.")} == {0.25}


def test_weight_decay_stays_as_it_was(tmp_path: Path) -> None:
    own = rates_by_name("berxit", tmp_path / "own", "alternate")
    usual = rates_by_name("berxit", tmp_path / "usual", "alternate", exits_learning_rate=None)
    assert {name: decay for name, (_, decay) in own.items()} == {name: decay for name, (_, decay) in usual.items()}


def test_a_stage_without_the_encoder_has_one_rate(tmp_path: Path) -> None:
    assert {rate for rate, _ in rates_by_name("deebert", tmp_path, "exits").values()} == {0.25}


def test_a_step_goes_as_far_as_its_rate(tmp_path: Path) -> None:
    model = new_model("berxit")
    before = weights(model)
    new_trainer(model, tmp_path, max_steps=1, optim="sgd", max_grad_norm=0, **RATES | {"weight_decay": 0}).train()
    usual = new_model("berxit")
    same = RATES | {"weight_decay": 0, "exits_learning_rate": None}
    new_trainer(usual, tmp_path / "usual", max_steps=1, optim="sgd", max_grad_norm=0, **same).train()
    for name, value in weights(model).items():
        times = 1 if name.startswith("encoder.") else 250
        torch.testing.assert_close(
            value - before[name], times * (weights(usual)[name] - before[name]), rtol=1e-3, atol=1e-4
        )


def test_an_interrupted_run_ends_where_it_would_have(tmp_path: Path) -> None:
    settings = RATES | {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}
    whole = new_trainer(new_model("berxit", dropout=0.1), tmp_path / "whole", **settings)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        new_trainer(
            new_model("berxit", dropout=0.1), tmp_path / "half", [At("on_step_end", interrupted, 1, 3)], **settings
        ).train()
    resumed = new_trainer(new_model("berxit", dropout=0.1, seed=9), tmp_path / "half", **settings)
    resumed.train(resume_from_checkpoint=True)
    for name, value in weights(whole.model).items():
        assert torch.equal(weights(resumed.model)[name], value), name


def test_a_given_optimizer_keeps_its_own_rates(tmp_path: Path) -> None:
    model = new_model("berxit")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = new_trainer(model, tmp_path, trainer_options={"optimizers": (optimizer, None)}, **RATES)
    with pytest.raises(ValueError, match="exits_learning_rate: got 0.25 with an optimizer that was passed"):
        trainer.train()


def test_a_smaller_batch_keeps_optimizer_and_rates(tmp_path: Path) -> None:
    model, sizes, rates = new_model("berxit"), [], set()

    def full(module: Any, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if len(sizes) == 1:
            raise RuntimeError("CUDA out of memory.")

    def look(args: Any, optimizer: Any, **kwargs: Any) -> None:
        rates.update(group["lr"] for group in optimizer.param_groups)

    model.register_forward_pre_hook(full, with_kwargs=True)
    new_trainer(model, tmp_path, [At("on_step_end", look)], auto_find_batch_size=True, max_steps=1, **RATES).train()
    assert sizes[0] > sizes[-1]
    assert rates == {1e-3, 0.25}


def test_an_optimizer_of_other_parameters_is_refused(tmp_path: Path) -> None:
    options = {"optimizer_cls_and_kwargs": (LayerWiseDummyOptimizer, {"optimizer_dict": {}})}
    trainer = new_trainer(new_model("berxit"), tmp_path, trainer_options=options, **RATES)
    with pytest.raises(ValueError, match=r"exits_learning_rate: got 0\.25, but LayerWiseDummyOptimizer holds tensors"):
        trainer.train()


def test_the_rate_of_a_stage_comes_with_that_of_its_exits(tmp_path: Path) -> None:
    overrides: dict[str, Any] = {"exits": {"learning_rate": 0.5}}
    message = r"stage 'exits' sets learning_rate to 0\.5, but its exits would keep the exits_learning_rate 0\.25"
    with pytest.raises(ValueError, match=message):
        rates_by_name("deebert", tmp_path / "left", "exits", stage_overrides=overrides)
    for number, (own, expected) in enumerate([(0.125, 0.125), (None, 0.5)]):
        overrides["exits"]["exits_learning_rate"] = own
        found = rates_by_name("deebert", tmp_path / str(number), "exits", stage_overrides=overrides)
        assert {rate for rate, _ in found.values()} == {expected}
    del overrides["exits"]["exits_learning_rate"]
    found = rates_by_name("deebert", tmp_path / "none", "exits", stage_overrides=overrides, exits_learning_rate=None)
    assert {rate for rate, _ in found.values()} == {0.5}


def test_a_rate_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exits_learning_rate: got 'fast'; pass a positive number"):
        EarlyExitTrainingArguments(str(tmp_path), exits_learning_rate=cast(float, "fast"))


@pytest.mark.parametrize("rate", [0, -1e-3, float("nan"), float("inf")])
def test_a_bad_rate_is_refused(rate: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"exits_learning_rate: got {rate}; pass a positive number, e.g. 1e-3"):
        EarlyExitTrainingArguments(str(tmp_path), use_cpu=True, exits_learning_rate=rate)
