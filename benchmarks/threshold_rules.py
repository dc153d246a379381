"""Compare rules for choosing a threshold: what they lose, on rows that did not choose it.

    python benchmarks/threshold_rules.py traces/*/validation.safetensors

The traces are those that `compare_methods.py --traces` and `adaexit train --save_traces` save. Each is split into
halves in several ways; a threshold is chosen on one half and scored on the other. Printed are the mean over the ways:
loss of the score relative to full depth, in percent, and mean layers.

- "first": `choose_threshold`, the last point before the first that loses too much, from full depth on.
- "any": the point with the largest saving of all that do not lose too much, wherever it lies.
- "spent": `choose_within`, the most layers up to a budget.
- "best": the best score up to a budget.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from adaexit_hf import CurvePoint, ExitTrace, choose_within, tradeoff_curve
from adaexit_hf.evaluation.cross_fit import half_curves, with_thresholds_of_other_half
from adaexit_hf.evaluation.metrics import task_metrics
from adaexit_hf.evaluation.thresholds import best_point, good_as

Choose = Callable[[Sequence[CurvePoint]], CurvePoint]


def any_point(curve: Sequence[CurvePoint], max_drop: float) -> CurvePoint:
    """The point with the largest saving whose score is good enough, also beyond others that are not."""
    full = next(point for point in curve if point.threshold is None)
    return max(
        (point for point in curve if good_as(point.score, full.score, max_drop, higher_is_better=True)),
        key=lambda point: (point.saving, point.score),
    )


def best_within(curve: Sequence[CurvePoint], max_layers: float) -> CurvePoint:
    """The point with the best score that runs few enough layers."""
    return max(
        (point for point in curve if point.mean_layers <= max_layers), key=lambda point: (point.score, point.saving)
    )


RULES: dict[str, Choose] = {
    "1 % first": lambda curve: best_point(curve, 0.01),
    "1 % any": lambda curve: any_point(curve, 0.01),
    "2 % first": lambda curve: best_point(curve, 0.02),
    "2 % any": lambda curve: any_point(curve, 0.02),
    "2 layers spent": lambda curve: choose_within(curve, 2),
    "2 layers best": lambda curve: best_within(curve, 2),
    "3 layers spent": lambda curve: choose_within(curve, 3),
    "3 layers best": lambda curve: best_within(curve, 3),
}


def measured(trace: ExitTrace, metric: str, choose: Choose, ways: int) -> tuple[float, float]:
    """The loss relative to full depth, in percent, and the mean layers, as means over ways to halve the rows."""
    full_depth = tradeoff_curve(trace, metric, [])[-1].score
    found = [
        with_thresholds_of_other_half(trace, half_curves(trace, metric, seed), [metric], choose)
        for seed in range(ways)
    ]
    losses, layers = zip(*((1 - each.scores[metric] / full_depth, each.mean_layers) for each in found), strict=True)
    return 100 * sum(losses) / ways, sum(layers) / ways


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table with a row per trace and a column per rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path, help="Files of traces with labels.")
    parser.add_argument("--metric", help="Default: accuracy, or for regression the Spearman correlation.")
    parser.add_argument("--ways", type=int, default=10, help="Ways to split the rows into halves. Default: 10.")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"| trace | {' | '.join(RULES)} |\n| --- |{' --- |' * len(RULES)}")
    for path in options.traces:
        trace = ExitTrace.load(path)
        metric = options.metric or task_metrics(trace.logits.shape[-1], trace.multi_label)[0]
        cells = [measured(trace, metric, choose, options.ways) for choose in RULES.values()]
        print(f"| {path.parent.name} | {' | '.join(f'{loss:.1f} @ {layers:.2f}' for loss, layers in cells)} |")


if __name__ == "__main__":
    main()
