"""All metrics of a trace in one dict: at full depth, at a threshold and at every exit."""

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
    """Compute all metrics at full depth, at a threshold, and at every exit.

    Args:
        trace: Trace with labels.
        metrics: Names of the metrics.
        threshold: Exit threshold, as for `ExitTrace.exits_at`; None is full depth.

    Returns:
        A dict that JSON can represent, but for NaN.

    Raises:
        ValueError: If the trace has no labels, if a metric is not defined for them, or if the metric is F1 and there
            are more than two classes.
    """
    for name in metrics:
        check_classes(name, trace.logits.shape[-1])
    labels, answers, chosen = trace.known_labels(), scored_answers(trace), trace.exits_at(threshold)
    exit_layer = torch.tensor(trace.exit_layers, device=chosen.device)[chosen]

    def scores(answers: torch.Tensor) -> dict[str, float]:
        return {name: compute_score(name, predictions=answers, references=labels) for name in metrics}

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
    """Write metrics.json and curve.json into a folder, which is created if missing. NaN and infinity become null."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {"metrics": results, "curve": [point._asdict() for point in curve]}.items():
        replace_text(folder / f"{name}.json", json.dumps(without_nan(value), indent=2))
