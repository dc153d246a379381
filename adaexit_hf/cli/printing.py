"""How the commands print tables."""

from typing import Any

from ..evaluation.curves import CurvePoint


def print_curve(points: list[CurvePoint], metric: str, chosen: float | list[float] | None) -> None:
    """Print a table of about 12 points of a curve, always with full depth and the chosen threshold."""
    full_flops = next(point.flops for point in points if point.threshold is None)
    flops_column = "" if full_flops is None else f" {'FLOPs saved':>12}"
    print(f"\n{'threshold':>12} {metric:>20} {'mean exit layer':>16} {'saved':>7}{flops_column}")
    step = max(1, len(points) // 12)
    for place, point in enumerate(points):
        if place % step and point.threshold not in (chosen, None):
            continue
        name = "full depth" if point.threshold is None else f"{point.threshold:.6g}"
        mark = " <- chosen" if point.threshold == chosen else ""
        flops_column = ""
        if full_flops is not None and point.flops is not None:
            flops_column = f" {1 - point.flops / full_flops:>12.1%}"
        print(f"{name:>12} {point.score:>20.4f} {point.mean_layers:>16.2f} {point.saving:>7.1%}{flops_column}{mark}")


def print_choice(result: dict[str, Any]) -> None:
    """Print what `adaexit calibrate` has chosen, beside the old threshold and full depth."""
    old, metric = result["old"], result["metric"]
    print(f"{result['split']}, {result['samples']} samples\n")
    print(f"{'':>12} {'threshold':>12} {metric:>20} {'mean exit layer':>16} {'saved':>7}")
    for name, row in (("old", old), ("chosen", result)):
        threshold = row["threshold"]
        text = f"{threshold:.6g}" if isinstance(threshold, float | int) else "per exit" if threshold else "full depth"
        score = f"{row['score']:>20.4f} {row['mean_layers']:>16.2f} {row['saving']:>7.1%}" if "score" in row else ""
        print(f"{name:>12} {text:>12} {score}".rstrip())
    print(f"{'full depth':>12} {'':>12} {result['full_depth']:>20.4f}\n")
    criterion = result.get("exit_criterion", old["exit_criterion"])
    if criterion != old["exit_criterion"]:
        print(f"exit_criterion: {criterion}, was {old['exit_criterion']}; thresholds are in their units")
    if result["cross_fitted_thresholds"]:
        print("chosen: each half of the rows is scored with a threshold that was chosen on the other half")
    print("saved in config.json" if result["saved"] else "dry run: nothing was saved")


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
            print(f"  {name}: {full_depth[name]:.4f} at full depth, {with_exits[name]:.4f} with exits{interval_text}")
        print(
            "  exit by layer:  " + "  ".join(f"{layer}: {count}" for layer, count in result["exit_histogram"].items())
        )
        by_exit = result["by_exit"].items()
        print(f"  {metric} by layer:  " + "  ".join(f"{layer}: {score[metric]:.4f}" for layer, score in by_exit))
