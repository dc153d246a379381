"""Metrics of a trace: at full depth, at a threshold and at every exit."""

import json
from pathlib import Path
from typing import Any

import torch

from ..utils.files import replace_text, without_nan
from .curves import CurvePoint
from .metrics import check_classes, compute_score
from .trace import ExitTrace
from .tradeoff import exit_histogram, expected_saving, scored_answers


def report(trace: ExitTrace, metrics: tuple[str, ...], threshold: float | list[float] | None) -> dict[str, Any]:
    """All metrics at full depth, at the threshold, and at every exit.

    Raises:
        ValueError: the trace has no labels, or only such as a metric is not defined for; F1 of more than two classes.
    """
    for name in metrics:
        check_classes(name, trace.logits.shape[-1])
    labels, answers, chosen = trace.known_labels().numpy(), scored_answers(trace), trace.exits_at(threshold)
    exit_layer = torch.tensor(trace.exit_layers)[chosen]

    def scores(answers: torch.Tensor) -> dict[str, float]:
        return {name: compute_score(name, answers.numpy(), labels) for name in metrics}

    return {
        "samples": len(trace.logits),
        "full_depth": scores(answers[:, -1]),
        "at_threshold": scores(answers.gather(1, chosen[:, None])[:, 0]),
        "exit_threshold": threshold,
        "mean_exit_layer": exit_layer.double().mean().item(),
        "saving": expected_saving(exit_layer, trace.depth),
        "by_exit": {str(layer): scores(answers[:, k]) for k, layer in enumerate(trace.exit_layers)},
        "exit_histogram": {str(layer): count for layer, count in exit_histogram(trace, threshold).items()},
        "not_finite": int((~trace.logits.isfinite()).any(dim=-1).sum()),
    }


def write_results(folder: Path, results: dict[str, Any], curve: list[CurvePoint]) -> None:
    """metrics.json and curve.json of a folder, which is made; what is not finite is null there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {"metrics": results, "curve": [point._asdict() for point in curve]}.items():
        replace_text(folder / f"{name}.json", json.dumps(without_nan(value), indent=2))
