"""What a trace says, in numbers: metrics at full depth, at a threshold and at every exit (extra `train`)."""

import json
from pathlib import Path
from typing import Any

import torch

from .evaluation import CurvePoint, ExitTrace, exit_histogram, expected_saving, scored_answers
from .tasks import check_classes, compute_score
from .utils.files import replace_text, without_nan


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


def print_curve(points: list[CurvePoint], metric: str, chosen: float | list[float] | None) -> None:
    full = next(point.flops for point in points if point.threshold is None)
    more = "" if full is None else f" {'FLOPs saved':>12}"
    print(f"\n{'threshold':>12} {metric:>20} {'mean exit layer':>16} {'saved':>7}{more}")
    shown = points[:: max(1, len(points) // 12)]
    for point in sorted({*shown, *[p for p in points if p.threshold in (chosen, None)]}, key=lambda p: p.mean_layers):
        name = "full depth" if point.threshold is None else f"{point.threshold:.6g}"
        mark = " <- chosen" if point.threshold == chosen else ""
        more = "" if full is None or point.flops is None else f" {1 - point.flops / full:>12.1%}"
        print(f"{name:>12} {point.score:>20.4f} {point.mean_layers:>16.2f} {point.saving:>7.1%}{more}{mark}")


def print_results(results: dict[str, Any], metric: str) -> None:
    for split, result in results.items():
        full, exits = result["full_depth"], result["at_threshold"]
        print(f"\n{split}, {result['samples']} samples: mean exit layer {result['mean_exit_layer']:.2f}")
        for name in full:
            interval = result.get("intervals", {}).get(name)
            sure = "" if interval is None else " (95 % interval over samples: {:.4f} to {:.4f})".format(*interval)
            print(f"  {name}: {full[name]:.4f} at full depth, {exits[name]:.4f} with exits{sure}")
        print(
            "  exit by layer:  " + "  ".join(f"{layer}: {count}" for layer, count in result["exit_histogram"].items())
        )
        by_exit = result["by_exit"].items()
        print(f"  {metric} by layer:  " + "  ".join(f"{layer}: {score[metric]:.4f}" for layer, score in by_exit))
