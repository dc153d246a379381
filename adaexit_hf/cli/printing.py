"""How the commands print tables."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
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


def print_curve(
    points: list[CurvePoint], metric: str, chosen: float | list[float] | None, rule: str = "", mark: str = "chosen"
) -> None:
    """Print a table of about 12 points of a curve, always with full depth and the model's threshold.

    Points that are no better than always giving the most frequent answer are marked.

    Args:
        points: The curve.
        metric: Title of the column of scores.
        chosen: The model's threshold.
        rule: When a text leaves, from `rule_in_words`, to print above the table.
        mark: What to write beside the point of the model's threshold.
    """
    if rule:
        print(f"\n{textwrap.fill(rule, 100)}")
    full_flops = next(point.flops for point in points if point.threshold is None)
    flops_column = "" if full_flops is None else f" {'FLOPs saved':>12}"
    print(f"\n{'threshold':>12} {metric:>20} {'mean exit layer':>16} {'saved':>7}{flops_column}")
    step = max(1, len(points) // 12)
    shown = [point for place, point in enumerate(points) if not place % step or point.threshold in (chosen, None)]
    names = iter(aligned([point.threshold for point in shown if point.threshold is not None]))
    for point in shown:
        name = "full depth" if point.threshold is None else next(names)
        marks = " *" * point.no_better_than_majority + f" <- {mark}" * (point.threshold == chosen)
        flops_column = ""
        if full_flops is not None and point.flops is not None:
            flops_column = f" {1 - point.flops / full_flops:>12.1%}"
        print(f"{name:>12} {point.score:>20.4f} {point.mean_layers:>16.2f} {point.saving:>7.1%}{flops_column}{marks}")
    if points[0].majority is not None:
        starred = "; * no better than that" if any(point.no_better_than_majority for point in shown) else ""
        print(f"{'majority':>12} {points[0].majority:>20.4f}  always the most frequent answer{starred}")


def print_comparison(comparison: dict[str, Any]) -> None:
    """Print a table with one row per checkpoint, from `comparison_of`."""
    models, majority = comparison["models"], comparison["majority"]
    width = max(len(name) for name in ("majority", *(model["name"] for model in models)))
    print(f"\n{comparison['metric']} on {comparison['split']}, {comparison['samples']} samples{_runtimes(models)}")
    heads = ("full depth", "with exits", "95 % interval", "mean layers", "layers saved")
    print(f"{'':<{width}}  {heads[0]:>10}  {heads[1]:>10}  {heads[2]:>16}  {heads[3]:>13}  {heads[4]:>12}")
    for model in models:
        interval = "-" if model["interval"] is None else "{:.4f} - {:.4f}".format(*model["interval"])
        mark = "*" * (model["at_threshold"] <= majority)
        layers = f"{model['mean_layers']:.2f} of {model['depth']}"
        scores = f"{model['full_depth']:>10.4f}  {model['at_threshold']:>10.4f}  {interval:>16}"
        print(f"{model['name']:<{width}}  {scores}  {layers:>13}  {model['saving']:>12.1%} {mark}".rstrip())
    starred = "; * no better than that" * any(model["at_threshold"] <= majority for model in models)
    print(f"{'majority':<{width}}  {majority:>10.4f}  always the most frequent answer{starred}")


def print_speed(records: Sequence[dict[str, Any]], depth: int, standard: bool) -> None:
    """Print milliseconds per text of every comparison of `adaexit benchmark`, and what they mean.

    Args:
        records: The measurements.
        depth: Number of layers of the model.
        standard: Whether they are the two standard comparisons, of single texts and of many.
    """
    first, last = records[0], records[-1]
    threads = f"{first['threads']} thread{'s' * (first['threads'] > 1)}"
    machine = f"{threads} of {first['cpu']}" if first["device"] == "cpu" else first["device"]
    print(f"\n{machine}, {first['dtype']}, {len(first['seconds'])} rounds\n")
    print(f"{'milliseconds per text':<34} {'median':>10} {'p95':>10} {'speed-up':>10}")
    titles = {"single": "one text at a time", "predict-texts": f"many texts, stock {last['batch_size']} per batch"}
    for record in records:
        names = (record["candidate"], record["baseline"])
        title = titles[names[0]] if standard else f"{names[0]} against {names[1]}"
        print(f"{title}, {record['texts']} texts")
        for name, shown in zip(names, ("with exits", "stock classifier") if standard else names, strict=True):
            time = record["milliseconds"][name]
            speed_up = f" {record['speed_up'][1]:>10.2f}" if name == names[0] else ""
            print(f"  {shown:<32} {time['median']:>10.2f} {time['p95']:>10.2f}{speed_up}")
    print("\nspeed-up: in each round, the total time of the second line divided by that of the first; the median.")
    if standard:
        layers = " and ".join(f"{depth / record['layer_speed_up']:.2f}" for record in records)
        best = " and ".join(f"{record['layer_speed_up']:.2f}" for record in records)
        print(
            f"with exits: texts run {layers} of {depth} layers on average; {best} times as fast would be ideal.\n"
            "stock classifier: Transformers' own, with the weights of the same encoder, at full depth; many texts are "
            "sorted by length.\n"
            "one text at a time, as a server does: the p95 is the time within which 95 % of the texts are answered.\n"
            "many texts, as a batch job does: the p95 is over the passes through all texts.\n"
            "Both are from the text to the answer, with tokenization."
        )
        if not first["same_head"]:
            print("The stock classifier has another head than the last exit, of about the same cost.")


def print_choice(result: dict[str, Any]) -> None:
    """Print what `adaexit calibrate` has chosen, beside the old threshold and full depth."""
    old, metric = result["old"], result["metric"]
    print(f"{result['split']}, {result['samples']} samples{_runtimes([result])}\n")
    print(f"{'':>12} {'threshold':>12} {metric:>20} {'mean exit layer':>16} {'saved':>7}")
    for name, row in (("old", old), ("chosen", result)):
        threshold = row["threshold"]
        text = _threshold_text(threshold)
        score = f"{row['score']:>20.4f} {row['mean_layers']:>16.2f} {row['saving']:>7.1%}" if "score" in row else ""
        print(f"{name:>12} {text:>12} {score}".rstrip())
    print(f"{'full depth':>12} {'':>12} {result['full_depth']:>20.4f}\n")
    criterion = result.get("exit_criterion", old["exit_criterion"])
    if criterion != old["exit_criterion"]:
        print(f"exit_criterion: {criterion}, was {old['exit_criterion']}; thresholds are in their units")
    if result["cross_fitted_thresholds"]:
        print("chosen: each half of the rows is scored with a threshold that was chosen on the other half")
        if "score" in old:
            print("old: scored on these rows as it is; too good a score if they are the rows that chose it")
    print(f"saved in {result['saved']}" if result["saved"] else "dry run: nothing was saved")


def print_results(results: dict[str, Any], metric: str) -> None:
    """Print the scores of every split: at full depth, at the threshold, and of every exit.

    Of a model with one exit only the scores are printed.
    """
    for split, result in results.items():
        full_depth, with_exits = result["full_depth"], result["at_threshold"]
        layers = list(result["by_exit"])
        exits = len(layers) > 1
        mean = f": mean exit layer {result['mean_exit_layer']:.2f} of {layers[-1]}" if exits else ""
        print(f"\n{split}, {result['samples']} samples{_runtimes([result])}{mean}")
        if "cross_fitted_thresholds" in result:
            print(
                "  with exits: each half of the rows with a threshold that was chosen on the other half; quote these "
                "scores, not those in the table above"
            )
        for name in full_depth:
            interval = result.get("intervals", {}).get(name)
            interval_text = (
                "" if interval is None else " (95 % interval over samples: {:.4f} to {:.4f})".format(*interval)
            )
            scores = f"{with_exits[name]:.4f}{interval_text}"
            if exits:
                scores = f"{full_depth[name]:.4f} at full depth, {with_exits[name]:.4f} with exits{interval_text}"
            majority = result.get("majority", {}).get(name)
            baseline = "" if majority is None else f", {majority:.4f} of always the same answer"
            print(f"  {name}: {scores}{baseline}")
        if not exits:
            continue
        print(
            "  exit by layer:  " + "  ".join(f"{layer}: {count}" for layer, count in result["exit_histogram"].items())
        )
        by_exit = {layer: score[metric] for layer, score in result["by_exit"].items()}
        majority = result.get("majority", {}).get(metric, -math.inf)
        marked = [f"{layer}: {score:.4f}{'*' * (score <= majority)}" for layer, score in by_exit.items()]
        starred = any(score <= majority for score in by_exit.values())
        print(f"  {metric} by layer:  " + "  ".join(marked) + "  (* no better than the majority)" * starred)


def print_export(manifest: dict[str, Any], folder: Path, metrics: Sequence[str] | None) -> None:
    """Print size, threshold and, where they were measured, scores of every precision that was exported."""
    depth = manifest["exit_layers"][-1]
    heads = ("threshold", "full depth", "with exits", "mean layers", "MB")
    print(f"\n{'':<6} {heads[0]:>12} {heads[1]:>12} {heads[2]:>12} {heads[3]:>14} {heads[4]:>6}")
    for precision, entry in manifest["precisions"].items():
        threshold = entry["exit_threshold"]
        text = "none yet" if not entry["calibrated"] else _threshold_text(threshold)
        size = sum((folder / stage["file"]).stat().st_size for stage in entry["stages"]) / 1e6
        scores = f"{'-':>12} {'-':>12} {'-':>14}"
        if metrics and "results" in entry:
            result = entry["results"]
            layers = f"{result['mean_exit_layer']:.2f} of {depth}"
            full_depth, with_exits = (result[name][metrics[0]] for name in ("full_depth", "at_threshold"))
            scores = f"{full_depth:>12.4f} {with_exits:>12.4f} {layers:>14}"
        print(f"{precision:<6} {text:>12} {scores} {size:>6.0f}")
    if any("cross_fitted_thresholds" in entry.get("results", {}) for entry in manifest["precisions"].values()):
        print("int8: each half of the rows is scored with a threshold that was chosen on the other half")
    for precision, entry in manifest["precisions"].items():
        same = entry.get("results", {}).get("same_as_fp32")
        if same:
            what = "labels" if manifest["multi_label"] else "class"
            print(
                f"{precision}: the {what} of fp32 on {same['at_threshold']:.1%} of the texts with exits, "
                f"{same['full_depth']:.1%} at full depth"
            )
    print(f"\nsaved in {folder}")


def _runtimes(results: Sequence[dict[str, Any]]) -> str:
    """Write what made results, from `ran_by`; nothing of those that do not say.

    >>> _runtimes([{"runtime": "onnx", "precision": "int8"}, {"runtime": "torch", "dtype": "float32"}])
    ', onnx int8 and torch float32'
    """
    names = [f"{each['runtime']} {each.get('precision') or each['dtype']}" for each in results if "runtime" in each]
    return f", {' and '.join(dict.fromkeys(names))}" if names else ""


def _threshold_text(threshold: Any) -> str:
    """Write a threshold: a number, or that there are several or none."""
    return f"{threshold:.6g}" if isinstance(threshold, float | int) else "per exit" if threshold else "full depth"
