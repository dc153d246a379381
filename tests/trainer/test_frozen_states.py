"""A wholly frozen encoder runs once per row; what is trained on its states is as if it had run in every step."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import (
    At,
    History,
    collate,
    interrupted,
    largest_difference,
    new_model,
    new_trainer,
    texts,
    weights,
)
from helpers.tiny import PADDED_CASES, build, inputs_of
from torch.utils.data import Dataset, IterableDataset

from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.trainer.frozen_states import frozen_states

# Method, its options, and the last stage that freezes the encoder.
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "deebert": ("deebert", {}, "exits"),
    "deebert-some": ("deebert", {"exit_layers": [2, 4]}, "exits"),
    "deebert-mean": ("deebert", {"exit_pooling": "mean"}, "exits"),
    "berxit": ("berxit", {"fine_tuning": "two_stage", "exit_criterion": "learned"}, "exits"),
    "dact-bert-exits": ("dact-bert", {"fine_tuning": "three_stage_distilled"}, "exits"),
    "dact-bert-halting": ("dact-bert", {"fine_tuning": "three_stage"}, "halting"),
    "fastbert": ("fastbert", {}, "distil"),
    "fastbert-mean": ("fastbert", {"exit_pooling": "mean"}, "distil"),
}
# Adam with its usual epsilon makes whole steps of rounding noise.
SETTINGS: dict[str, Any] = {"max_steps": 8, "adam_epsilon": 1e-4}
FILED = {"frozen_states_memory": 0}


def trained(
    case: str, folder: Path, dropout: float = 0.0, callbacks: Any = (), seed: int = 0, **arguments: Any
) -> tuple[EarlyExitForSequenceClassification, list[dict[str, Any]]]:
    method, options, stage = CASES[case]
    model, history = new_model(method, dropout, seed, **options), History()
    new_trainer(model, folder, [history, *callbacks], **SETTINGS | arguments).train(stage=stage)
    return model, history.logs


def losses(logs: list[dict[str, Any]]) -> list[float]:
    return [log[name] for log in logs for name in sorted(log) if name == "loss" or name.endswith("_loss")]


def count_rows(model: EarlyExitForSequenceClassification) -> list[int]:
    """Rows of every call of the encoder from now on."""
    seen: list[int] = []
    model.encoder.embeddings.register_forward_hook(lambda *given: seen.append(len(given[-1])))
    return seen


@pytest.fixture(autouse=True)
def several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all rows of a test were one batch."""
    monkeypatch.setattr("adaexit_hf.trainer.frozen_states.MOST_ROWS", 5)


@pytest.fixture
def loud(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("adaexit_hf"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


# How batches are drawn is nothing to a method, only to states kept of one vector or of all tokens of a text.
@pytest.mark.parametrize(
    ("case", "sampling"),
    [*((case, "random") for case in CASES), ("deebert", "group_by_length"), ("fastbert", "group_by_length")],
)
def test_without_dropout_nothing_changes_but_the_time(case: str, sampling: str, tmp_path: Path) -> None:
    settings = {"train_sampling_strategy": sampling, "num_train_epochs": 2, "max_steps": -1}
    reused, logs = trained(case, tmp_path / "reused", **settings)
    recomputed, same = trained(case, tmp_path / "recomputed", reuse_frozen_states=False, **settings)
    assert len(losses(logs)) == len(losses(same)) > 12
    assert losses(logs) == pytest.approx(losses(same), abs=2e-5)
    assert largest_difference(weights(reused), weights(recomputed)) < 2e-6
    assert largest_difference(weights(reused), weights(new_model(CASES[case][0], **CASES[case][1]))) > 1e-3


@pytest.mark.parametrize("case", ["deebert", "fastbert"])
def test_the_encoder_runs_once_per_row(case: str, tmp_path: Path) -> None:
    method, options, stage = CASES[case]
    model = new_model(method, dropout=0.1, **options)
    trainer = new_trainer(model, tmp_path, max_steps=-1, num_train_epochs=3)
    seen = count_rows(model)
    trainer.train(stage=stage)
    assert sum(seen) == len(texts())
    del seen[:]
    trainer.evaluate(texts(5))
    assert sum(seen) == 5


@pytest.mark.parametrize("how", ["everywhere", "in the stage"])
def test_opting_out(how: str, tmp_path: Path) -> None:
    off = {"reuse_frozen_states": False}
    arguments: dict[str, Any] = off if how == "everywhere" else {"stage_overrides": {"exits": off}}
    model = new_model("deebert")
    seen = count_rows(model)
    new_trainer(model, tmp_path, max_steps=-1, num_train_epochs=3, **arguments).train(stage="exits")
    assert sum(seen) == 3 * len(texts())


def test_a_stage_that_trains_the_encoder_is_left_alone(tmp_path: Path) -> None:
    model = new_model("deebert")
    seen = count_rows(model)
    new_trainer(model, tmp_path, max_steps=-1, num_train_epochs=3).train(stage="backbone")
    assert sum(seen) == 3 * len(texts())


@pytest.mark.parametrize("free", [True, False])
def test_what_counts_is_the_encoder_that_the_user_froze(free: bool, tmp_path: Path) -> None:
    model = new_model("berxit")
    model.encoder.requires_grad_(False)
    next(model.encoder.parameters()).requires_grad_(free)
    seen = count_rows(model)
    new_trainer(model, tmp_path, max_steps=-1, num_train_epochs=2).train()
    assert sum(seen) == (2 if free else 1) * len(texts())


def test_evaluation_inside_the_stage_runs_the_encoder(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 2, "trainer_options": {"eval_dataset": texts(7)}}
    _, logs = trained("deebert", tmp_path / "reused", **settings)
    _, same = trained("deebert", tmp_path / "recomputed", reuse_frozen_states=False, **settings)
    found, expected = ([log["eval_loss"] for log in each if "eval_loss" in log] for each in (logs, same))
    assert len(found) == 4 and found == pytest.approx(expected, abs=2e-5)


def test_heads_keep_their_dropout(tmp_path: Path) -> None:
    with_dropout, _ = trained("deebert", tmp_path / "with", dropout=0.5)
    without, _ = trained("deebert", tmp_path / "without")
    assert largest_difference(weights(with_dropout), weights(without)) > 1e-4


def test_the_model_is_left_in_the_mode_it_had(tmp_path: Path) -> None:
    model = new_model("deebert").eval()
    modes: list[bool] = []
    model.encoder.embeddings.register_forward_hook(lambda module, *_: modes.append(module.training))
    new_trainer(model, tmp_path, [At("on_step_end", lambda model, **_: modes.append(model.training))]).train(
        stage="exits"
    )
    assert set(modes[:-6]) == {False} and modes[-6:] == [True] * 6


@pytest.mark.parametrize("case", ["deebert", "fastbert"])
def test_accumulated_pieces_give_the_weights_of_one_big_batch(case: str, tmp_path: Path) -> None:
    settings = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3}
    whole, _ = trained(case, tmp_path / "whole", per_device_train_batch_size=8, **settings)
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    pieces, _ = trained(case, tmp_path / "pieces", **split, **settings)
    assert largest_difference(weights(whole), weights(pieces)) < 1e-6


@pytest.mark.parametrize("arguments", [{}, FILED], ids=["memory", "file"])
@pytest.mark.parametrize("case", ["deebert", "fastbert"])
def test_an_interrupted_stage_resumes_bit_for_bit(case: str, arguments: Any, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2} | arguments
    through, _ = trained(case, tmp_path / "through", dropout=0.1, **settings)
    with pytest.raises(KeyboardInterrupt):
        stop = At("on_step_end", interrupted, step=5)
        trained(case, tmp_path / "broken", dropout=0.1, callbacks=[stop], **settings)
    method, options, stage = CASES[case]
    again = new_model(method, 0.1, seed=99, **options)
    new_trainer(again, tmp_path / "broken", **SETTINGS | settings).train(True, stage=stage)
    assert largest_difference(weights(through), weights(again)) == 0.0


def files(folder: Path) -> list[Path]:
    return list(folder.rglob("frozen_states*"))


@pytest.mark.parametrize("case", ["deebert", "fastbert"])
def test_a_file_gives_what_memory_gives(case: str, tmp_path: Path) -> None:
    sizes: list[int] = []

    def look(**kwargs: Any) -> None:
        sizes.extend(path.stat().st_size for path in files(tmp_path / "file"))

    # bf16 shows that states keep their dtype on their way.
    for bf16 in (False, True):
        kept, logs = trained(case, tmp_path / "memory", bf16=bf16)
        filed, same = trained(case, tmp_path / "file", callbacks=[At("on_step_end", look, step=1)], bf16=bf16, **FILED)
        assert largest_difference(weights(kept), weights(filed)) == 0.0 and losses(logs) == losses(same)
    tokens = sum(len(row["input_ids"]) for row in texts()) if case == "fastbert" else len(texts())
    assert sizes[0] == tokens * 4 * 32 * 4 and len(sizes) == 2  # exits, hidden, bytes
    assert files(tmp_path) == []


@pytest.mark.parametrize("moment", ["computing", "training"])
def test_the_file_is_removed_when_the_stage_fails(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks = [At("on_step_end", interrupted, step=2)]
    if moment == "computing":
        monkeypatch.setattr("adaexit_hf.trainer.frozen_states.FrozenStates.finish", interrupted)
    with pytest.raises((KeyboardInterrupt, TypeError)):
        trained("deebert", tmp_path, callbacks=callbacks, **FILED)
    assert files(tmp_path) == []


@pytest.mark.parametrize("left", ["half", "whole"])
def test_the_file_of_a_process_that_was_killed_is_not_read(left: str, tmp_path: Path) -> None:
    kept, _ = trained("deebert", tmp_path / "memory")
    stage = tmp_path / "file" / "stage-2-exits"
    stage.mkdir(parents=True)
    size = len(texts()) * 4 * 32 * 4
    (stage / "frozen_states-0").write_bytes(os.urandom(size // 2 if left == "half" else size))
    filed, _ = trained("deebert", tmp_path / "file", **FILED)
    assert largest_difference(weights(kept), weights(filed)) == 0.0


def test_without_room_the_encoder_runs_in_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loud: pytest.LogCaptureFixture
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    model, _ = trained("deebert", tmp_path, **FILED)
    assert "are not reused, it runs in every step: they take 0.0 GiB, and" in loud.text
    recomputed, _ = trained("deebert", tmp_path / "recomputed", reuse_frozen_states=False)
    assert largest_difference(weights(model), weights(recomputed)) == 0.0
    assert files(tmp_path) == []


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(texts())


def test_an_iterable_training_set_is_not_reused_and_the_log_says_why(
    tmp_path: Path, loud: pytest.LogCaptureFixture
) -> None:
    model = new_model("deebert")
    seen = count_rows(model)
    new_trainer(model, tmp_path, rows=Stream(), max_steps=12).train(stage="exits")  # type: ignore[arg-type]
    assert sum(seen) == 12 * 4
    assert "stage 'exits': the frozen encoder runs in every step, since the training set is iterable" in loud.text


class MoreThanStates(type(new_model("deebert"))):  # type: ignore[misc]
    def skip_step(self, hidden: Any, context: Any, state: Any) -> Any:
        return state


def test_exits_that_read_more_are_not_reused_and_the_log_says_why(
    tmp_path: Path, loud: pytest.LogCaptureFixture
) -> None:
    model = new_model("deebert")
    model.__class__ = MoreThanStates
    seen = count_rows(model)
    new_trainer(model, tmp_path).train(stage="exits")
    assert sum(seen) == 6 * 4 and "since the exits of MoreThanStates read more than its states" in loud.text


class Pairs(Dataset[Any]):
    """Rows that only the collator understands."""

    def __len__(self) -> int:
        return len(texts())

    def __getitem__(self, place: int) -> Any:
        return texts()[place]["input_ids"], texts()[place]["label"]


def test_noise_for_every_step_is_not_reused_and_the_log_says_why(
    tmp_path: Path, loud: pytest.LogCaptureFixture
) -> None:
    model = new_model("deebert")
    seen = count_rows(model)
    new_trainer(model, tmp_path, neftune_noise_alpha=5.0).train(stage="exits")
    assert sum(seen) == 6 * 4 and "since neftune_noise_alpha adds different noise in every step" in loud.text


@pytest.mark.parametrize("case", ["deebert", "fastbert"])
def test_rows_of_any_kind(case: str, tmp_path: Path) -> None:
    expected, _ = trained(case, tmp_path / "dicts")
    method, options, stage = CASES[case]
    model = new_model(method, **options)
    trainer = new_trainer(model, tmp_path, rows=Pairs(), **SETTINGS)  # type: ignore[arg-type]
    trainer.data_collator = lambda rows: collate([{"input_ids": ids, "label": label} for ids, label in rows])
    trainer.train(stage=stage)
    assert largest_difference(weights(model), weights(expected)) < 2e-6  # the batches are others


def test_rows_whose_length_only_the_collator_knows_do_not_share_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaexit_hf.trainer.frozen_states.MOST_ROWS", 256)
    model = new_model("deebert")
    trainer = new_trainer(model, tmp_path, rows=Pairs())  # type: ignore[arg-type]
    trainer.data_collator = lambda rows: collate([{"input_ids": ids, "label": label} for ids, label in rows])
    seen = count_rows(model)
    trainer.train(stage="exits")
    assert seen == [8] * 3


def test_texts_without_labels_are_distilled(tmp_path: Path) -> None:
    rows = texts(labels=False)
    models = [new_model("fastbert") for _ in range(2)]
    for model, reuse in zip(models, (True, False), strict=True):
        new_trainer(model, tmp_path / str(reuse), rows=rows, reuse_frozen_states=reuse, **SETTINGS).train(
            stage="distil"
        )
    assert largest_difference(*(weights(model) for model in models)) < 2e-6


@pytest.mark.slow
def test_workers_hand_on_places(tmp_path: Path) -> None:
    alone, _ = trained("deebert", tmp_path / "alone")
    helped, _ = trained("deebert", tmp_path / "helped", dataloader_num_workers=2)
    assert largest_difference(weights(alone), weights(helped)) == 0.0


def test_states_have_the_dtype_that_the_exits_would_read(tmp_path: Path) -> None:
    """Under autocast, too."""
    model = new_model("deebert")
    read: list[torch.dtype] = []
    model.exits[0].register_forward_pre_hook(lambda _, given: read.append(given[0].dtype))
    trainer = new_trainer(model, tmp_path, bf16=True, max_steps=1)
    states = frozen_states(
        model, texts(), collate, trainer.accelerator, tmp_path / "states", memory=2**20, progress=False
    )
    batch = collate(texts()[:4])
    with trainer.accelerator.autocast():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert states.batch(torch.arange(4), batch).dtype == read[0]


def test_a_negative_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="frozen_states_memory: got -1; pass a number of bytes >= 0; 0 always uses a file"
    ):
        new_trainer(new_model("deebert"), tmp_path, frozen_states_memory=-1)


PADDED = [
    (variant, padding)
    for variant, encoder, padding in PADDED_CASES
    if encoder == "bert" and build(variant).takes_exit_states
]


@pytest.mark.parametrize(("variant", "padding"), PADDED)
def test_exits_say_of_given_states_what_they_say_of_their_own(variant: str, padding: str) -> None:
    model = build(variant)
    inputs = inputs_of(model, padding)
    with torch.no_grad():
        states = model.states_for_exits(
            {name: inputs.get(name) for name in ("input_ids", "attention_mask", "token_type_ids")}
        )
        expected = model(**inputs, early_exit=False)
        found = model(**inputs, early_exit=False, exit_states=states)
    torch.testing.assert_close(found.exit_logits, expected.exit_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.exit_scores, expected.exit_scores, rtol=0, atol=1e-5)
    assert found.hidden_states is None and found.attentions is None


def test_a_threshold_selects_among_given_states() -> None:
    model = build("deebert")
    inputs = inputs_of(model)
    with torch.no_grad():
        trace = model(**inputs, early_exit=False)
        threshold = trace.exit_scores[:, :-1].median().item()
        states = model.states_for_exits(
            {name: inputs.get(name) for name in ("input_ids", "attention_mask", "token_type_ids")}
        )
        expected = model(**inputs, exit_threshold=threshold)
        found = model(**inputs, exit_threshold=threshold, exit_states=states)
    assert torch.equal(found.exit_layer, expected.exit_layer) and len(found.exit_layer.unique()) > 1


@pytest.mark.parametrize(
    ("method", "shape", "wanted"),
    [("deebert", (2, 5, 4, 32), "batch, exits, hidden"), ("fastbert", (2, 4, 32), "batch, tokens, exits, hidden")]
    + [("deebert", shape, r"4 exits of 32 numbers") for shape in ((2, 3, 32), (2, 4, 31), (0, 4, 32))],
)
def test_states_of_another_shape_are_refused(method: str, shape: tuple[int, ...], wanted: str) -> None:
    with pytest.raises(ValueError, match=rf"exit_states: got shape .*; pass .*{wanted}"):
        new_model(method)(exit_states=torch.zeros(shape))


def test_given_states_refuse_what_only_the_encoder_can_give() -> None:
    with pytest.raises(ValueError, match="cannot be returned with exit_states, where the encoder does not run"):
        new_model("deebert")(exit_states=torch.zeros(2, 4, 32), output_hidden_states=True)


def test_a_config_that_asks_for_states_does_not_stop_the_training(tmp_path: Path) -> None:
    model = new_model("deebert", output_hidden_states=True)
    assert model.config.output_hidden_states
    new_trainer(model, tmp_path, max_steps=1).train(stage="exits")
