"""Results of `compare_methods.py` by data set and method, their curves, and areas under and between curves."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compare_methods import GRID_DATASETS, PRECISION, grouped
from comparison_tables import Row, figures

from adaexit_hf.evaluation.curves import CurvePoint, MeanPoint, Point, area_under_curve, areas_between, score_at

OF_THE_RUN = ("--seed", *PRECISION)  # flags that may differ between the seeds of a method
Runs = Mapping[tuple[str, str], Sequence[Row]]  # one line per seed, by (data set, method)

# The order in tables and figures; other methods follow after these.
METHODS = [
    "plain", "limit-3", "layerdrop", "static-12", "static-8", "static-6", "static-4", "static-3", "static-2",
    "recommended", "deebert", "berxit", "dact-bert", "pabee", "fastbert", "right-tool", "depth-adaptive",
    "berxit-joint", "berxit-exits-1e-3",
]  # fmt: skip
NAMES = {
    "deebert": "DeeBERT", "berxit": "BERxiT", "dact-bert": "DACT-BERT", "pabee": "PABEE", "fastbert": "FastBERT",
    "right-tool": "Right Tool", "depth-adaptive": "Depth-Adaptive", "recommended": "recommended",
}  # fmt: skip
OURS = "recommended"
PAPERS = [method for method in NAMES if method != OURS]
# Names in tables, which may have more rows than a figure has lines.
ROWS = NAMES | {"berxit-exits-1e-3": "BERxiT, exits 1e-3"}


def in_order(names: Sequence[str], order: Sequence[str]) -> list[str]:
    """The names in the given order, followed by names that are not part of it.

    >>> in_order(["x", "pabee", "plain"], METHODS)
    ['plain', 'pabee', 'x']
    """
    return [name for name in order if name in names] + [name for name in names if name not in order]


def names_of(runs: Runs) -> tuple[list[str], list[str]]:
    """The data sets and the methods of the runs, in order."""
    datasets, methods = (list(dict.fromkeys(names)) for names in zip(*runs, strict=True))
    return in_order(datasets, GRID_DATASETS), in_order(methods, METHODS)


def datasets_of(runs: Runs) -> list[str]:
    """The data sets of the runs, in order."""
    return names_of(runs)[0]


def depth_of(runs: Runs) -> int:
    """The number of layers of the encoder."""
    return max(figures(row)["validation"].depth for rows in runs.values() for row in rows)


def by_method(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Lines by (data set, method), one per seed.

    If a method was run with several settings, those with the most seeds are kept, of as many the latest.

    The precision is no such setting: a seed in bf16 and another in fp32 are of the same method. Where both were run on
    SICK, the scores of all layers agreed to 0.1 percent.

    >>> rows = [
    ...     {"dataset": "rte", "method": "pabee", "model": "m", "seed": seed, "settings": [*rate, "--seed", str(seed)]}
    ...     for rate, seed in ((["--lr", "1"], 2), (["--lr", "2"], 1), (["--lr", "2"], 0))
    ... ]
    >>> [row["seed"] for row in by_method(rows)["rte", "pabee"]]
    [0, 1]
    >>> [row["seed"] for row in by_method([*rows[1:], rows[0]])["rte", "pabee"]]
    [0, 1]
    """
    by_setting: dict[tuple[str, str], dict[Any, dict[int, Row]]] = {}
    for row in rows:
        flags = {name: value for name, value in grouped(row["settings"]).items() if name not in OF_THE_RUN}
        setting = row["model"], json.dumps(flags, sort_keys=True)
        settings = by_setting.setdefault((row["dataset"], row["method"]), {})
        settings[setting] = settings.pop(setting, {}) | {row["seed"]: row}  # moves the latest setting to the end
    return {
        key: [row for _, row in sorted(max(reversed(list(settings.values())), key=len).items())]
        for key, settings in by_setting.items()
    }


def by_encoder(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Lines by the encoder that methods are compared on, the one with the most lines first.

    Single rows of other encoders (`plain@distilbert/distilbert-base-uncased`) belong to the first.
    """
    compared = Counter(row["model"] for row in rows if "@" not in row["method"])
    encoders = [model for model, _ in compared.most_common()]
    return {
        encoder: [row for row in rows if row["model"] == encoder or (place == 0 and "@" in row["method"])]
        for place, encoder in enumerate(encoders)
    }


def validation_of(row: Row) -> dict[str, Any]:
    """The results of a run on the split on which its threshold was chosen."""
    return next(iter(row["results"].values()))


def curve_of(row: Row) -> list[CurvePoint]:
    """The trade-off curve of a run; empty if all of its points have the same number of layers."""
    points = [CurvePoint(**point) for point in row.get("curve", [])]
    return points if len({point.mean_layers for point in points}) > 1 else []


def fixed_layers(row: Row) -> list[MeanPoint]:
    """The curve of the same model if all texts exit at the same layer, with one point per exit."""
    metric, depth = row["metric"], figures(row)["validation"].depth
    return [
        MeanPoint(scores[metric], float(layer), 1 - int(layer) / depth)
        for layer, scores in validation_of(row)["by_exit"].items()
    ]


def area(row: Row, start: float) -> float | None:
    """Mean score in percent from `start` layers to full depth; None if the curve starts later."""
    curve, depth = curve_of(row), figures(row)["validation"].depth
    if not curve or min(point.mean_layers for point in curve) > start:
        return None
    return 100 * area_under_curve(curve, between=(start, float(depth)))


def full_score(row: Row) -> float:
    """The full-depth validation score, in percent."""
    return 100 * figures(row)["validation"].full


def above(first: Sequence[Point], second: Sequence[Point]) -> float:
    """Percentage points by which the first curve lies above the second, mean over the layers that both cover.

    >>> high, low = ([MeanPoint(score, layers, 0.0) for layers in (1.0, 3.0)] for score in (0.9, 0.85))
    >>> round(above(high, low), 6), round(above(low, high), 6)
    (5.0, -5.0)
    """
    areas = areas_between(first, second)
    return 100 * (areas.first_above - areas.second_above) / (areas.end - areas.start)


def above_at_points(few: Sequence[CurvePoint], line: Sequence[Point]) -> float:
    """Percentage points by which a curve with few points lies above another, mean over its points with a threshold.

    Only the points are compared, since thresholds between points that are far apart may not exist. Beyond its ends the
    other curve is continued as a constant.

    >>> few = [CurvePoint(2.0, 0.8, 2.0, 0.0), CurvePoint(None, 0.9, 3.0, 0.0)]
    >>> line = [MeanPoint(score, layers, 0.0) for layers, score in ((1.0, 0.6), (3.0, 0.9))]
    >>> round(above_at_points(few, line), 6)
    5.0
    """
    low, high = (end(point.mean_layers for point in line) for end in (min, max))
    gains = [
        point.score - score_at(line, min(max(point.mean_layers, low), high))
        for point in few
        if point.threshold is not None
    ]
    return 100 * statistics.fmean(gains)
