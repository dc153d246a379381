"""A run that was interrupted anywhere and resumed by a new model and trainer ends bit for bit where it would have."""

import json
import logging
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import (
    At,
    History,
    Row,
    interrupted,
    largest_difference,
    new_model,
    new_trainer,
    recorded_objectives,
    stopped,
    texts,
    weights,
)
from transformers import Trainer

from adaexit_hf import EarlyExitTrainer

Weights = dict[str, torch.Tensor]
# Five steps a stage in epochs of three, a checkpoint after every second; dropout makes the random state matter.
SETTINGS = {"max_steps": 5, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2}


def trainer_of(method: str, folder: Path, callbacks: Any = (), seed: int = 0, **arguments: Any) -> EarlyExitTrainer:
    return new_trainer(new_model(method, dropout=0.1, seed=seed), folder, callbacks, **SETTINGS | arguments)


def resume(method: str, folder: Path, source: Any = True, seed: int = 99, **arguments: Any) -> EarlyExitTrainer:
    """By a new trainer, with a model whose weights are other ones."""
    trainer = trainer_of(method, folder, seed=seed, **arguments)
    trainer.train(resume_from_checkpoint=source)
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Weights, Path]]:
    """Weights and folder of the run without interruption."""
    runs: dict[str, tuple[Weights, Path]] = {}

    def of(method: str) -> tuple[Weights, Path]:
        if method not in runs:
            folder = tmp_path_factory.mktemp(method)
            trainer = trainer_of(method, folder)
            trainer.train()
            runs[method] = weights(trainer.model), folder
        return runs[method]

    return of


MOMENTS = {
    "before the first checkpoint": ("on_step_end", 1, 1),
    "middle of stage 1": ("on_step_end", 1, 3),
    "right after a checkpoint": ("on_save", 1, 2),
    "between two micro-batches": ("on_substep_end", 1, 3),
    "end of stage 1": ("on_train_end", 1, 5),
}
LATER = {
    "between the stages": ("on_train_begin", 2, 0),
    "before the first checkpoint of stage 2": ("on_step_end", 2, 1),
    "middle of stage 2": ("on_pre_optimizer_step", 2, 3),
    "end of stage 2": ("on_train_end", 2, 5),
}
# Which stage runs, and since when, is known to the trainer alone; a method with more parameters to restore: once.
CASES = [("berxit", moment) for moment in MOMENTS] + [("deebert", moment) for moment in LATER]
CASES += [("dact-bert", "middle of stage 2")]


@pytest.mark.parametrize(("method", "moment"), [*CASES, ("deebert", "middle of stage 1")])
def test_an_interrupted_run_ends_where_it_would_have(method: str, moment: str, finished: Any, tmp_path: Path) -> None:
    event, stage, step = (MOMENTS | LATER)[moment]
    with pytest.raises(KeyboardInterrupt):
        trainer_of(method, tmp_path, [At(event, interrupted, stage, step)]).train()
    seed = 0 if moment == "before the first checkpoint" else 99  # there only the user has the weights
    assert largest_difference(weights(resume(method, tmp_path, seed=seed).model), finished(method)[0]) == 0.0


@pytest.mark.parametrize(("method", "stage"), [("berxit", 1), ("deebert", 1), ("deebert", 2)])
def test_a_stopped_run_ends_where_it_would_have(method: str, stage: int, finished: Any, tmp_path: Path) -> None:
    history = History()
    trainer = trainer_of(method, tmp_path, [history, At("on_step_end", stopped, stage, 3)])
    trainer.train()
    assert history.logs[-1]["stage"] == trainer.model.stages[stage - 1].name  # no later stage has run
    assert largest_difference(weights(resume(method, tmp_path).model), finished(method)[0]) == 0.0


def test_a_run_can_be_interrupted_twice(finished: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer_of("deebert", tmp_path, [At("on_step_end", interrupted, 1, 3)]).train()
    with pytest.raises(KeyboardInterrupt):
        again = trainer_of("deebert", tmp_path, [At("on_step_end", interrupted, 2, 3)], seed=99)
        again.train(resume_from_checkpoint=True)
    assert largest_difference(weights(resume("deebert", tmp_path).model), finished("deebert")[0]) == 0.0


def test_the_interrupted_trainer_itself_can_resume(finished: Any, tmp_path: Path) -> None:
    trainer = trainer_of("deebert", tmp_path, [At("on_step_end", interrupted, 1, 3)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.pop_callback(At)
    trainer.train(resume_from_checkpoint=True)
    assert largest_difference(weights(trainer.model), finished("deebert")[0]) == 0.0


@pytest.mark.parametrize("half", ["_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_checkpoint_written_by_half_is_not_used(
    half: str, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = getattr(Trainer, half)

    def killed(self: Trainer, output_dir: str) -> None:
        if output_dir.endswith("stage-2-exits/checkpoint-4"):
            raise KeyboardInterrupt
        write(self, output_dir)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, half, killed)
        trainer_of("deebert", tmp_path).train()
    assert (tmp_path / "stage-2-exits" / "checkpoint-4").exists()
    assert largest_difference(weights(resume("deebert", tmp_path).model), finished("deebert")[0]) == 0.0


def test_a_final_model_written_by_half_is_not_used(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Trainer, output_dir: str, **kwargs: Any) -> None:
        if Path(output_dir).name == "final":
            Path(output_dir).mkdir()
            raise KeyboardInterrupt
        Trainer.save_model(self, output_dir, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EarlyExitTrainer, "save_model", killed)
        trainer_of("deebert", tmp_path).train()
    assert largest_difference(weights(resume("deebert", tmp_path).model), finished("deebert")[0]) == 0.0


def remove_listed(method: str, folder: Path, checkpoint: Path) -> list[str]:
    """Do what the refusal says: remove what was trained after the checkpoint."""
    with pytest.raises(
        ValueError, match="were trained after it, and a later call could .*; move or remove them first"
    ) as e:
        resume(method, folder, str(checkpoint))
    listed = re.findall(r"'([^']+)'", str(e.value))[1:]
    for path in listed:
        shutil.rmtree(path)
    return [Path(path).relative_to(folder).as_posix() for path in listed]


@pytest.mark.parametrize(("kind", "stage", "step"), [(str, "stage-1-backbone", 2), (Path, "stage-2-exits", 4)])
def test_resuming_from_a_path(kind: Any, stage: str, step: int, finished: Any, tmp_path: Path) -> None:
    expected, folder = finished("deebert")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    remove_listed("deebert", tmp_path, tmp_path / stage / f"checkpoint-{step}")
    trainer = resume("deebert", tmp_path, kind(tmp_path / stage / f"checkpoint-{step}"))
    assert largest_difference(weights(trainer.model), expected) == 0.0


def test_a_stage_of_another_run_is_never_continued(finished: Any, tmp_path: Path) -> None:
    """Both stages finished; the first is resumed from a checkpoint, with other labels; the second is interrupted."""
    shutil.copytree(finished("deebert")[1], tmp_path, dirs_exist_ok=True)
    first, second = "stage-1-backbone", "stage-2-exits"
    gone = remove_listed("deebert", tmp_path, tmp_path / first / "checkpoint-2")
    assert gone == [f"{first}/checkpoint-{step}" for step in (4, 5)] + [f"{first}/final"] + [
        f"{second}/checkpoint-{step}" for step in (2, 4, 5)
    ] + [f"{second}/final"]
    rows = [row | {"label": (row["label"] + 1) % 3} for row in texts()]
    with pytest.raises(KeyboardInterrupt):
        trainer_of("deebert", tmp_path, [At("on_step_end", interrupted, 2, 1)], rows=rows).train(
            str(tmp_path / first / "checkpoint-2")
        )
    result = trainer_of("deebert", tmp_path, rows=rows, seed=99).train(resume_from_checkpoint=True)
    assert result.global_step == 5  # the whole second stage


def test_a_later_stage_is_outdated_when_an_earlier_one_starts_anew(finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished("deebert")[1], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "stage-1-backbone")
    with pytest.raises(ValueError, match="holds models of an earlier run, '.*/stage-2-exits/checkpoint-2'"):
        trainer_of("deebert", tmp_path).train(stage="backbone")


def test_a_later_stage_is_run_again_after_an_earlier_one(tmp_path: Path) -> None:
    trainer = trainer_of("deebert", tmp_path, save_strategy="no")
    trainer.train()
    trainer.train(stage="backbone")
    assert json.loads((tmp_path / "stages.json").read_text())["done"] == ["backbone"]


def test_a_stage_that_was_trained_alone_is_not_a_part_of_the_whole_run(tmp_path: Path) -> None:
    trainer_of("deebert", tmp_path).train(stage="exits")
    with pytest.raises(
        ValueError, match="got True, which continues stage 'backbone', but '.*checkpoint-2'.* without it"
    ):
        resume("deebert", tmp_path)


def other_tokens(row: Row) -> Row:
    return row | {"input_ids": [*row["input_ids"][:-2], 5, 2]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row | {"label": (row["label"] + 1) % 3} for row in texts()], "other texts or labels than before"),
        ([*texts(23), other_tokens(texts()[-1])], "other texts or labels than before"),
        # The same tokens one after the other, divided otherwise.
        ([{"input_ids": row["input_ids"] + [7], "label": 0} for row in texts()], "other texts or labels than before"),
        (texts(20), "20 rows, but the run began with 24"),
    ],
)
def test_other_data_are_another_run(rows: Any, message: str, finished: Any) -> None:
    """Also with `max_steps`, which leaves some rows unused."""
    with pytest.raises(ValueError, match=f"train_dataset: has {message}, so that resume_from_checkpoint"):
        resume("deebert", finished("deebert")[1], rows=rows)


def test_steps_that_use_a_part_of_the_rows_do_not_hide_other_data(tmp_path: Path) -> None:
    settings = {"max_steps": 1, "gradient_accumulation_steps": 1, "save_steps": 1}
    trainer_of("pabee", tmp_path, **settings).train()
    rows = [row | {"label": (row["label"] + 1) % 3} for row in texts()]
    with pytest.raises(ValueError, match="train_dataset: has other texts or labels than before"):
        resume("pabee", tmp_path, rows=rows, **settings)


def test_random_changes_of_the_texts_are_not_other_data(tmp_path: Path) -> None:
    class Shortened(list[Row]):
        def __getitem__(self, index: Any) -> Any:
            row = super().__getitem__(index)
            return row | {"input_ids": row["input_ids"][random.randint(0, 1) :]}

    trainer_of("pabee", tmp_path, rows=Shortened(texts())).train()
    random.random()
    assert resume("pabee", tmp_path, rows=Shortened(texts())).state.global_step == 0


def test_other_arguments_are_reported(
    finished: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("transformers", "adaexit_hf"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    resume("deebert", finished("deebert")[1], learning_rate=0.5)
    assert "learning_rate was 0.001 and is 0.5; stages that are done keep" in caplog.text


@pytest.mark.parametrize("save_strategy", ["steps", "no"])
def test_auto_starts_where_there_is_nothing_and_continues_where_there_is(save_strategy: str, tmp_path: Path) -> None:
    through = trainer_of("deebert", tmp_path / "through", save_strategy=save_strategy)
    through.train("auto")
    with pytest.raises(KeyboardInterrupt):
        trainer_of("deebert", tmp_path, [At("on_step_end", interrupted, 2, 3)], save_strategy=save_strategy).train(
            "auto"
        )
    saved = save_strategy == "steps"
    again = trainer_of("deebert", tmp_path, seed=99 if saved else 0, save_strategy=save_strategy)
    assert again.train("auto").global_step == (5 if saved else 10)
    assert largest_difference(weights(again.model), weights(through.model)) == 0.0


def test_auto_returns_the_model_of_a_finished_run(finished: Any) -> None:
    expected, folder = finished("deebert")
    trainer = resume("deebert", folder, "auto")
    assert trainer.state.global_step == 0
    assert largest_difference(weights(trainer.model), expected) == 0.0


def test_the_run_of_a_method_with_the_same_stages_is_refused(finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished("deebert")[1], tmp_path / "run")
    model = new_model("berxit", fine_tuning="two_stage")
    trainer = new_trainer(model, tmp_path / "run", **SETTINGS)
    with pytest.raises(ValueError, match="is of method 'deebert', but the model of 'berxit'; pass a model of that me"):
        trainer.train(resume_from_checkpoint=True)


def test_auto_refuses_another_plan(finished: Any) -> None:
    with pytest.raises(ValueError, match="was made with another stage plan"):
        resume("dact-bert", finished("deebert")[1], "auto")


def test_alternation_goes_on_where_it_was_also_at_the_end_of_an_epoch(finished: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer_of("berxit", tmp_path, [At("on_save", interrupted, 1, 3)], save_steps=3).train()
    trainer = trainer_of("berxit", tmp_path, save_steps=3, seed=99)
    with recorded_objectives(trainer.model) as seen:
        trainer.train(resume_from_checkpoint=True)
    assert seen == ["joint", "joint", "final", "final"]
    assert largest_difference(weights(trainer.model), finished("berxit")[0]) == 0.0


def test_resuming_a_finished_run_loads_its_model(finished: Any) -> None:
    expected, folder = finished("deebert")
    trainer = trainer_of("deebert", folder, seed=99)
    result = trainer.train(resume_from_checkpoint=True)
    assert result.global_step == 0
    assert largest_difference(weights(trainer.model), expected) == 0.0


def test_resuming_a_finished_stage_loads_its_model(finished: Any) -> None:
    _, folder = finished("deebert")
    trainer = trainer_of("deebert", folder, seed=99)
    trainer.train(resume_from_checkpoint=True, stage="backbone")
    expected = type(trainer.model).from_pretrained(folder / "stage-1-backbone" / "final")
    assert largest_difference(weights(trainer.model), weights(expected)) == 0.0


def test_a_single_stage_resumes(tmp_path: Path) -> None:
    through = trainer_of("deebert", tmp_path / "through")
    through.train(stage="exits")
    with pytest.raises(KeyboardInterrupt):
        trainer_of("deebert", tmp_path, [At("on_step_end", interrupted, 2, 3)]).train(stage="exits")
    trainer = trainer_of("deebert", tmp_path, seed=99)
    trainer.train(resume_from_checkpoint=True, stage="exits")
    assert largest_difference(weights(trainer.model), weights(through.model)) == 0.0


def test_the_ledger_says_what_is_done(finished: Any) -> None:
    ledger = json.loads((finished("deebert")[1] / "stages.json").read_text())
    assert ledger["done"] == ["backbone", "exits"]
    assert [stage["name"] for stage in ledger["plan"]] == ["backbone", "exits"]


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no stages\.json, so there is no run to continue; call train\(\)"):
        resume("deebert", tmp_path)


@pytest.mark.parametrize(("method", "overrides"), [("dact-bert", {}), ("deebert", {"exits": {"seed": 1}})])
def test_another_stage_plan_is_refused(method: str, overrides: Any, finished: Any) -> None:
    folder = finished("deebert")[1]
    with pytest.raises(ValueError, match="was made with another stage plan"):
        resume(method, folder, stage_overrides=overrides)


@pytest.mark.parametrize("path", ["checkpoint-2", "stage-1-backbone/checkpoint-77"])
def test_a_path_that_is_no_checkpoint_is_refused(path: str, finished: Any) -> None:
    folder = finished("deebert")[1]
    with pytest.raises(
        ValueError, match="pass True, or a checkpoint of this run, e.g. '.*/stage-1-backbone/checkpoint-"
    ):
        resume("deebert", folder, str(folder / path))


def test_a_path_of_another_stage_is_refused(finished: Any) -> None:
    folder = finished("deebert")[1]
    with pytest.raises(
        ValueError, match="pass True, or a checkpoint of this run, e.g. '.*/stage-1-backbone/checkpoint-"
    ):
        trainer_of("deebert", folder).train(str(folder / "stage-2-exits" / "checkpoint-2"), stage="backbone")


def test_a_model_that_was_never_saved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer_of("deebert", tmp_path, [At("on_step_end", interrupted, 2)], save_strategy="no").train()
    with pytest.raises(
        ValueError, match="the model of stage 'backbone' is lost; train with a save_strategy other than"
    ):
        resume("deebert", tmp_path, save_strategy="no")
