"""Tables and JSON for the terminal."""

import json
from typing import Any

from ..evaluation.curves import CurvePoint


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


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
