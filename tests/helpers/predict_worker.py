"""Predict in prediction of several processes, and write what came out; see `test_predict_distributed.py`."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from helpers.predictions import rows_of
from helpers.tiny import build

from adaexit_hf import predict, predict_stream
from adaexit_hf.models import EarlyExitForSequenceClassification

THRESHOLD = 0.9


def message(model: EarlyExitForSequenceClassification, rows: list[Any]) -> str:
    """What is raised, and how."""
    try:
        predict(model, rows, exit_threshold=THRESHOLD, progress=False)
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return ""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    state, model, rows = PartialState(cpu=True), build("deebert"), rows_of()
    predictions = predict(model, iter(rows), exit_threshold=THRESHOLD, max_memory=20_000, progress=False)
    few = predict(model, rows[:1], exit_threshold=THRESHOLD, progress=False)
    share = [
        prediction.place for prediction in predict_stream(model, rows[:5], exit_threshold=THRESHOLD, progress=False)
    ]
    bad_row = message(model, [*rows[:4], {"input_ids": []}])  # of the first process

    class LocalError(Exception):
        """One that no other process could be sent."""

    def broken(*_: Any) -> Any:
        raise LocalError("weights lost")

    if state.process_index == 0:
        model.embed = broken
    broken_model = message(model, rows)
    results = {
        "logits": predictions.logits.tolist(),
        "exit_layer": predictions.exit_layer.tolist(),
        "few": few.exit_layer.tolist(),
        "share": share,
        "bad_row": bad_row,
        "broken_model": broken_model,
    }
    (folder / f"{state.process_index}.json").write_text(json.dumps(results))
