"""`model_init`: a new model for every run; `hyperparameter_search`: all stages for every trial, in its own folder."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.runs import History, collate, largest_difference, new_model, new_trainer, texts, weights
from transformers import Trainer
from transformers.hyperparameter_search import ALL_HYPERPARAMETER_SEARCH_BACKENDS, OptunaBackend
from transformers.trainer_utils import BestRun, HPSearchBackend

from adaexit_hf import EarlyExitTrainer, EarlyExitTrainingArguments

SETTINGS = {
    "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no",
    "report_to": "none", "disable_tqdm": True, "use_cpu": True,
}  # fmt: skip


def from_init(model_init: Any, folder: Path, callbacks: Any = (), **arguments: Any) -> EarlyExitTrainer:
    args = EarlyExitTrainingArguments(str(folder), **SETTINGS | arguments)
    return EarlyExitTrainer(
        args=args, model_init=model_init, data_collator=collate, train_dataset=texts(), eval_dataset=texts(8),
        callbacks=list(callbacks),
    )  # fmt: skip


class Fixed(OptunaBackend):
    """Optuna's part of a search, as Transformers calls it: trials with given parameters, the lowest value wins."""

    trials: tuple[dict[str, Any], ...] = ()

    @staticmethod
    def is_available() -> bool:
        return True

    def run(self, trainer: Any, n_trials: int, direction: str, **kwargs: Any) -> BestRun:
        runs = []
        for number, params in enumerate(self.trials):
            trainer.objective = None
            trainer.train(trial=SimpleNamespace(number=number, params=params))
            if trainer.objective is None:
                trainer.objective = trainer.compute_objective(trainer.evaluate())
            runs.append(BestRun(str(number), trainer.objective, params))
            trainer.model = trainer.model_wrapped = None  # it frees their memory
        return min(runs, key=lambda run: run.objective)


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.OPTUNA, Fixed)

    def run(trainer: Trainer, *trials: dict[str, Any]) -> BestRun:
        monkeypatch.setattr(Fixed, "trials", trials)
        return trainer.hyperparameter_search(hp_space=lambda trial: trial.params, backend="optuna")

    return run


def test_a_run_calls_model_init_once_and_all_stages_train_its_model(tmp_path: Path) -> None:
    made: list[Any] = []

    def model_init() -> Any:
        made.append(new_model("deebert"))
        return made[-1]

    trainer = from_init(model_init, tmp_path / "init")
    result = trainer.train()
    assert len(made) == 2 and trainer.model is made[1]  # Trainer itself calls it once more, when it is built
    assert result.global_step == 4
    plain = new_model("deebert")
    new_trainer(plain, tmp_path / "plain", max_steps=2).train()
    assert largest_difference(weights(plain), weights(trainer.model)) == 0.0
    trainer.train()
    assert largest_difference(weights(plain), weights(trainer.model)) == 0.0
    assert trainer.model_init is model_init


def test_every_trial_trains_a_new_model_in_all_stages_with_its_parameters(search: Any, tmp_path: Path) -> None:
    history = History()
    trainer = from_init(lambda: new_model("deebert"), tmp_path, [history])
    best = search(trainer, {"learning_rate": 1e-4}, {"learning_rate": 2e-3, "exits_learning_rate": 1e-2})
    assert best.run_id in ("0", "1") and best.objective > 0
    steps = [(log["stage"], log["learning_rate"]) for log in history.logs if "loss" in log]
    stages = ["backbone", "backbone", "exits", "exits"]
    assert [stage for stage, _ in steps] == stages * 2
    assert [rate for _, rate in steps] == pytest.approx([1e-4, 5e-5] * 2 + [2e-3, 1e-3, 1e-2, 5e-3])
    for number in (0, 1):
        ledger = json.loads((tmp_path / f"run-{number}" / "stages.json").read_text())
        assert ledger["done"] == ["backbone", "exits"]
    assert not (tmp_path / "stages.json").exists()
    assert trainer.args.learning_rate == 1e-3 and trainer.args.output_dir == str(tmp_path)


def test_a_trial_is_the_run_with_its_parameters(search: Any, tmp_path: Path) -> None:
    trained: list[dict[str, torch.Tensor]] = []
    trainer = from_init(lambda: new_model("deebert"), tmp_path / "search")
    evaluate = trainer.evaluate

    def look(*args: Any, **kwargs: Any) -> Any:
        trained.append(weights(trainer.model))
        return evaluate(*args, **kwargs)

    trainer.evaluate = look  # type: ignore[method-assign]
    overrides = {"exits": {"learning_rate": 1e-2}}
    best = search(trainer, {"learning_rate": 1e-9}, {"learning_rate": 2e-3, "stage_overrides": overrides})
    plain = new_model("deebert")
    alone = new_trainer(plain, tmp_path / "alone", max_steps=2, learning_rate=2e-3, stage_overrides=overrides)
    alone.train()
    assert largest_difference(weights(plain), trained[1]) == 0.0
    assert best.run_id == "1"
    assert best.objective == pytest.approx(alone.evaluate(texts(8))["eval_loss"], abs=1e-6)


def test_checkpoints_of_a_trial_are_in_its_folder(search: Any, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = from_init(lambda: new_model("deebert"), tmp_path, load_best_model_at_end=True, **settings)
    search(trainer, {"learning_rate": 1e-4}, {"learning_rate": 1e-3})
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("**/checkpoint-2")}
    assert found == {
        f"run-{number}/stage-{stage}/checkpoint-2" for number in (0, 1) for stage in ("1-backbone", "2-exits")
    }


def test_a_parameter_that_is_no_training_argument_is_refused(search: Any, tmp_path: Path) -> None:
    trainer = from_init(lambda: new_model("deebert"), tmp_path)
    with pytest.raises(ValueError, match="hp_space: got 'learning_rat', which is no training argument.* Did you mean"):
        search(trainer, {"learning_rat": 1e-4})


def test_a_search_needs_model_init_and_an_evaluation(search: Any, tmp_path: Path) -> None:
    trainer = new_trainer(new_model("deebert"), tmp_path)
    with pytest.raises(ValueError, match="model_init: missing; every trial needs a new model, pass EarlyExitTrainer"):
        search(trainer)
    trainer = from_init(lambda: new_model("deebert"), tmp_path)
    trainer.eval_dataset = None
    with pytest.raises(ValueError, match="eval_dataset: missing; trials are compared by their evaluation"):
        search(trainer)


def test_model_init_has_to_build_a_new_model(tmp_path: Path) -> None:
    model = new_model("deebert")
    trainer = from_init(lambda: model, tmp_path)
    with pytest.raises(ValueError, match="model_init: returned the same model again"):
        trainer.train()


def test_model_init_has_to_return_a_model_with_stages(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model_init: Linear has no stages"):
        from_init(lambda: torch.nn.Linear(1, 1), tmp_path)


def test_without_model_and_model_init(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="requires either a `model` or `model_init`"):
        EarlyExitTrainer(args=EarlyExitTrainingArguments(str(tmp_path), **SETTINGS))


def test_a_later_stage_alone_would_lose_what_an_earlier_one_trained(tmp_path: Path) -> None:
    trainer = from_init(lambda: new_model("deebert"), tmp_path)
    trainer.train(stage="backbone")
    with pytest.raises(ValueError, match="stage: got 'exits', but with model_init every call of train starts from"):
        trainer.train(stage="exits")
