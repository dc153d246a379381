"""Run by test_add_a_method.py in a new process: use_added_method.py FOLDER.

FOLDER holds a copy of the package to which the method "margin-exits" was added.
"""

import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
sys.path.insert(0, str(FOLDER))

import torch
from helpers.runs import collate, new_model, new_trainer, texts, weights
from helpers.tiny import check_early_exit, inputs_of, thresholds_between, trace_of
from transformers import AutoConfig, AutoModelForSequenceClassification

import adaexit_hf
from adaexit_hf import METHODS, MODEL_TYPES, MarginExitsConfig, MarginExitsForSequenceClassification

NAME = "margin-exits"


def check_names() -> None:
    assert Path(adaexit_hf.__file__).is_relative_to(FOLDER)
    assert NAME in MODEL_TYPES
    assert METHODS[NAME] is MarginExitsForSequenceClassification
    config = AutoConfig.for_model(NAME, encoder_config=new_model(NAME).config.encoder_config)
    assert type(config) is MarginExitsConfig
    assert type(AutoModelForSequenceClassification.from_config(config)) is MarginExitsForSequenceClassification


def check_training() -> MarginExitsForSequenceClassification:
    model = new_model(NAME)
    before = weights(model)
    trainer = new_trainer(model, FOLDER / "run", max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
    assert all(not torch.equal(before[name], value) for name, value in weights(model).items() if "classifier" in name)
    return model.eval()


def check_exits(model: MarginExitsForSequenceClassification) -> None:
    inputs = inputs_of(model, rows=12)
    thresholds = [*model.config.threshold_bounds, *thresholds_between(trace_of(model, inputs))]
    assert len(check_early_exit(model, inputs, thresholds)) > 1


def check_checkpoint(model: MarginExitsForSequenceClassification) -> None:
    model.save_pretrained(FOLDER / "saved")
    reloaded = AutoModelForSequenceClassification.from_pretrained(FOLDER / "saved")
    assert type(reloaded) is MarginExitsForSequenceClassification
    batch = collate(texts(labels=False))
    assert torch.equal(trace_of(reloaded, batch).exit_logits, trace_of(model, batch).exit_logits)
    files = {path.name for path in (FOLDER / "saved").glob("*.py")}
    assert "modeling_margin_exits.py" in files
    assert len(files) <= 9, sorted(files)


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_names()
    trained = check_training()
    check_exits(trained)
    check_checkpoint(trained)
