"""How the commands print tables."""

import math
from collections.abc import Sequence
from typing import Any

from ..evaluation.curves import CurvePoint


def aligned(numbers: Sequence[float]) -> list[str]:
    """Write numbers with equally many decimals: four digits of the smallest, or up to eight to tell them apart.

    >>> aligned([0.69311, 0.69312])
    ['0.69311', '0.69312']
    >>> aligned([0.5, 0.0123456]), aligned([1.0, 2.0]), aligned([])
    (['0.50000', '0.01235'], ['1', '2'], [])
    """
    sizes = [abs(number) for number in numbers if number]
    if all(float(number).is_integer() for number in numbers):
        return [f"{number:.0f}" for number in numbers]
    for decimals in range(min(8, max(2, 3 - math.floor(math.log10(min(sizes))))), 9):
        names = [f"{number:.{decimals}f}" for number in numbers]
        if len(set(names)) == len(set(numbers)):
            break
    return names


def print_curve(points: list[CurvePoint], metric: str, chosen: float | list[float] | None) -> None:
    """Print a table of about 12 points of a curve, always with full depth and the chosen threshold.

    Points that are no better than always giving the most frequent answer are marked.
    """
    full_flops = next(point.flops for point in points if point.threshold is None)
    flops_column = "" if full_flops is None else f" {'FLOPs saved':>12}"
    print(f"\n{'threshold':>12} {metric:>20} {'mean exit layer':>16} {'saved':>7}{flops_column}")
    step = max(1, len(points) // 12)
    shown = [point for place, point in enumerate(points) if not place % step or point.threshold in (chosen, None)]
    names = iter(aligned([point.threshold for point in shown if point.threshold is not None]))
    for point in shown:
        name = "full depth" if point.threshold is None else next(names)
        mark = " *" * point.no_better_than_majority + " <- chosen" * (point.threshold == chosen)
        flops_column = ""
        if full_flops is not None and point.flops is not None:
            flops_column = f" {1 - point.flops / full_flops:>12.1%}"
        print(f"{name:>12} {point.score:>20.4f} {point.mean_layers:>16.2f} {point.saving:>7.1%}{flops_column}{mark}")
    if points[0].majority is not None:
        starred = "; * no better than that" if any(point.no_better_than_majority for point in shown) else ""
        print(f"{'majority':>12} {points[0].majority:>20.4f}  always the most frequent answer{starred}")


def print_results(results: dict[str, Any], metric: str) -> None:
    """Print the scores of every split: at full depth, at the threshold, and of every exit."""
    for split, result in results.items():
        full_depth, with_exits = result["full_depth"], result["at_threshold"]
        print(f"\n{split}, {result['samples']} samples: mean exit layer {result['mean_exit_layer']:.2f}")
        if "cross_fitted_thresholds" in result:
            print("  with exits: each half of the rows with a threshold that was chosen on the other half")
        for name in full_depth:
            interval = result.get("intervals", {}).get(name)
            interval_text = (
                "" if interval is None else " (95 % interval over samples: {:.4f} to {:.4f})".format(*interval)
            )
            scores = f"{full_depth[name]:.4f} at full depth, {with_exits[name]:.4f} with exits{interval_text}"
            majority = result.get("majority", {}).get(name)
            baseline = "" if majority is None else f", {majority:.4f} of always the most frequent answer"
            print(f"  {name}: {scores}{baseline}")
        print(
            "  exit by layer:  " + "  ".join(f"{layer}: {count}" for layer, count in result["exit_histogram"].items())
        )
        by_exit = {layer: score[metric] for layer, score in result["by_exit"].items()}
        majority = result.get("majority", {}).get(metric, -math.inf)
        marked = [f"{layer}: {score:.4f}{'*' * (score <= majority)}" for layer, score in by_exit.items()]
        starred = any(score <= majority for score in by_exit.values())
        print(f"  {metric} by layer:  " + "  ".join(marked) + "  (* no better than the majority)" * starred)
