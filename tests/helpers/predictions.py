"""Texts and rows to predict, models that let some of them leave early, and `predict` without a progress bar."""

import random
from typing import Any

import torch
from helpers.pipeline_without_package import TEXTS
from helpers.tiny import build, predicted, thresholds_between, trace_of
from helpers.words import new_tokenizer

from adaexit_hf import Predictions, predict
from adaexit_hf.models import EarlyExitForSequenceClassification


def rows_of(count: int = 40, longest: int = 24) -> list[dict[str, list[int]]]:
    """Random rows of random lengths, without special tokens."""
    source = random.Random(0)
    lengths = [1, 2, longest] + [source.randint(1, longest) for _ in range(count - 3)]
    return [{"input_ids": [source.randrange(5, 64) for _ in range(length)]} for length in lengths]


def silent(model: EarlyExitForSequenceClassification, dataset: Any, *args: Any, **kwargs: Any) -> Predictions:
    """`predict` without a progress bar."""
    return predict(model, dataset, *args, progress=False, **kwargs)


def exiting(method: str, items: list[Any] = TEXTS, **kwargs: Any) -> EarlyExitForSequenceClassification:
    """A model whose threshold lets some of these texts leave early and others not."""
    model = build(method, **kwargs)
    texts = items if isinstance(items[0], str) else [list(pair.values()) for pair in items]
    trace = trace_of(model, dict(new_tokenizer()(texts, padding=True, return_tensors="pt")))
    model.config.exit_threshold = max(
        thresholds_between(trace), key=lambda threshold: len(predicted(model, trace, threshold)[1].unique())
    )
    return model


def count_layers(model: EarlyExitForSequenceClassification) -> list[int]:
    """Grows by the rows of every layer that is run."""
    rows: list[int] = []
    layer_step = model.layer_step

    def counting(index: int, layer: Any, hidden: torch.Tensor, *args: Any) -> Any:
        rows.append(len(hidden))
        return layer_step(index, layer, hidden, *args)

    model.layer_step = counting  # type: ignore[method-assign]
    return rows
