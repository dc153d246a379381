"""The Trainer writes the card of what it trained, from what it knows and what it is told."""

import math
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import new_model, new_trainer, texts
from huggingface_hub import ModelCard
from transformers import BertModel

from adaexit_hf import CurvePoint, DeeBertForSequenceClassification, EarlyExitTrainer
from adaexit_hf.hub.card_facts import CardDataset
from adaexit_hf.trainer import model_card_mixin

CURVE = [CurvePoint(0.4, 0.7, 2.0, 0.5), CurvePoint(None, 0.75, 4.0, 0.0)]


def accuracy(result: Any) -> dict[str, float]:
    return {"accuracy": float((result.predictions.argmax(-1) == result.label_ids).mean())}


def trainer_in(folder: Path, method: str = "deebert", model: Any = None, **arguments: Any) -> EarlyExitTrainer:
    options = {"eval_dataset": texts(), "compute_metrics": accuracy}
    return new_trainer(model or new_model(method), folder / "out", trainer_options=options, **arguments)


def card_in(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "out" / "README.md")


def told(curve: list[CurvePoint] = CURVE, threshold: float | None = None, **values: float) -> dict[str, Any]:
    metrics = {"validation": {"at_threshold": values or {"accuracy": 0.7}, "exit_threshold": threshold}}
    return {"curve": curve, "metrics": metrics, "dataset": CardDataset("GLUE SST-2", "nyu-mll/glue", "sst2")}


def test_the_card_says_how_it_was_trained(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, stage_overrides={"exits": {"learning_rate": 0.5}}, seed=7, max_steps=1)
    trainer.create_model_card()
    assert "learning_rate" not in card_in(tmp_path).text  # nothing was trained yet
    trainer.train()
    trainer.create_model_card()
    text = card_in(tmp_path).text
    assert text.count("# out\n") == 1
    for row in (
        "| `training rows` | `24` |",
        "| `learning_rate` | `0.001` |",
        "| `seed` | `7` |",
        "`learning_rate=0.5`",
    ):
        assert row in text
    assert "`lr_scheduler_type` | `linear`" in text
    assert str(tmp_path) not in text and "hub_token" not in text


def test_the_base_model_is_the_encoder_it_started_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model("deebert")
    model.config.name_or_path = "google-bert/bert-base-uncased"
    trainer_in(tmp_path, model=model).create_model_card()
    assert card_in(tmp_path).data.base_model == "google-bert/bert-base-uncased"


def test_a_folder_is_no_base_model(tmp_path: Path) -> None:
    BertModel(new_model("deebert").config.encoder_config).save_pretrained(tmp_path / "encoder")
    model = DeeBertForSequenceClassification.from_encoder_pretrained(str(tmp_path / "encoder"), num_labels=3)
    assert model.config.name_or_path == str(tmp_path / "encoder")
    model.save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
    trainer_in(tmp_path, model=model).create_model_card()
    assert card_in(tmp_path).data.base_model is None


def test_what_it_is_told_once_the_push_repeats(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    trainer.create_model_card(language="en", **told())
    trainer.create_model_card(model_name="sst2-exits", tags=[])  # as push_to_hub calls it
    card = card_in(tmp_path)
    assert card.data.language == "en"
    assert card.data.model_name == "sst2-exits"
    assert [each.metric_value for each in card.data.eval_results] == [0.7]
    assert "| 0.4 | 0.7000 | 2.00 | 50.0% |" in card.text


def test_training_again_forgets_what_was_measured(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, max_steps=1)
    trainer.create_model_card(language="en", **told())
    trainer.train()
    trainer.create_model_card()
    card = card_in(tmp_path)
    assert (card.data.language, card.data.datasets) == ("en", ["nyu-mll/glue"])
    assert card.data.eval_results is None
    assert "Trade-off" not in card.text


def test_it_reports_its_last_evaluation_of_the_finished_model(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1)
    trainer.train()
    trainer.create_model_card()
    assert card_in(tmp_path).data.eval_results is None  # those inside of stages were of other models
    measured = trainer.evaluate()
    trainer.create_model_card()
    found = {each.metric_type: each.metric_value for each in card_in(tmp_path).data.eval_results}
    assert found == {"loss": measured["eval_loss"], "accuracy": measured["eval_accuracy"]}
    trainer.create_model_card(curve=CURVE)
    assert "| threshold | score |" in card_in(tmp_path).text
    trainer.model.config.exit_threshold = 0.3
    trainer.create_model_card()
    assert card_in(tmp_path).data.eval_results is None  # it was measured without


@pytest.mark.parametrize("change", [{"exit_criterion": "margin"}, {"exit_temperatures": [1.0, 2.0, 1.0, 1.0]}])
def test_an_evaluation_by_other_settings_is_not_reported(change: dict[str, Any], tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    trainer.evaluate()
    for name, value in change.items():
        setattr(trainer.model.config, name, value)
    trainer.create_model_card()
    assert card_in(tmp_path).data.eval_results is None


def test_it_takes_the_arguments_of_transformers(tmp_path: Path) -> None:
    trainer_in(tmp_path).create_model_card(
        language="en", license="mit", tags="glue", model_name="mrpc", finetuned_from="org/encoder",
        tasks="text-classification", dataset_tags="nyu-mll/glue", dataset="GLUE MRPC", dataset_args="mrpc",
        metrics={"validation": {"at_threshold": {"f1": 0.5}}},
    )  # fmt: skip
    data = card_in(tmp_path).data
    assert (data.license, data.base_model, data.datasets) == ("mit", "org/encoder", ["nyu-mll/glue"])
    assert data.tags[-1] == "glue"
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_config, result.metric_value) == ("GLUE MRPC", "mrpc", 0.5)


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ({"tasks": "fill-mask"}, ValueError, "tasks: got 'fill-mask'; these models do 'text-classification'"),
        ({"dataset_tags": ["glue", "sick"]}, ValueError, r"dataset_tags: got \['glue', 'sick'\]; .* pass one"),
        ({"datset": "glue"}, TypeError, "datset"),
        (told(accuracy=math.nan), ValueError, r"metrics: 'accuracy' of 'validation' \(at_threshold\) is nan"),
        (told(threshold=0.4), ValueError, "was measured at exit_threshold 0.4, but the model's is None"),
    ],
)
def test_what_makes_no_card(argument: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    with pytest.raises(error, match=message):
        trainer.create_model_card(**argument)
    assert not (tmp_path / "out" / "README.md").exists()
    trainer.create_model_card()
    assert card_in(tmp_path).data.eval_results is None  # it is not kept for the next card


def test_a_card_written_by_hand_stays_and_a_warning_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(model_card_mixin.logger, "warning", warnings.append)
    trainer, card = trainer_in(tmp_path), tmp_path / "out" / "README.md"
    card.parent.mkdir(exist_ok=True)
    card.write_text("# Mine\n")
    trainer.create_model_card()
    assert card.read_text() == "# Mine\n"
    assert len(warnings) == 1 and "was not written by adaexit_hf" in warnings[0]


def test_only_one_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_in(tmp_path)
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.create_model_card(language="en")
    assert not (tmp_path / "out" / "README.md").exists()
