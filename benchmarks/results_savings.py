"""Sections of the results page that check the papers' claims about depth and cost, from `compare_methods.py`."""

import functools
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from compare_methods import GRID_DATASETS, variant_of
from comparison_tables import figures, markdown, measured
from results_claims import compared, differences
from results_figures import OURS, PAPERS, Row, Runs, curve_of, datasets_of, full_score, validation_of
from transformers import BertConfig

from adaexit_hf import METHODS
from adaexit_hf.evaluation.curves import CurvePoint
from adaexit_hf.evaluation.flops import flops_per_exit


def transfer(runs: Runs) -> list[str]:
    """The score lost on the test set by a threshold that was chosen on the validation set."""
    body = []
    datasets = [dataset for dataset in datasets_of(runs) if any(
        len(figures(row)) > 1 for method in (*PAPERS, OURS) for row in runs.get((dataset, method), [])
    )]  # fmt: skip
    for method in [*PAPERS, OURS]:
        cells = []
        for dataset in datasets:
            others = [
                result for row in runs.get((dataset, method), []) for split, result in figures(row).items()
                if split != "validation"
            ]  # fmt: skip
            losses = [100 * (result.full - result.exits) for result in others]
            cells.append(f"{statistics.fmean(losses):.1f} ({max(losses):.1f})" if losses else "")
        if any(cells):
            body.append([method, *cells])
    return markdown(["method", *datasets], body)


def at_threshold(row: Row, threshold: float) -> CurvePoint:
    """The point of a run's curve whose threshold is nearest to one of another run."""
    points = [point for point in curve_of(row) if point.threshold is not None]
    return min(points, key=lambda point: abs(point.threshold - threshold))


def threshold_sensitivity(runs: Runs) -> list[str]:
    """Use the threshold that was chosen for one seed with the models of the other seeds."""
    body = []
    for method in [*PAPERS, OURS]:
        for dataset in datasets_of(runs):
            rows = [row for row in runs.get((dataset, method), []) if curve_of(row)]
            thresholds = [validation_of(row)["exit_threshold"] for row in rows]
            if len(rows) < 3 or None in thresholds:
                continue
            own_layers = [at_threshold(row, own).mean_layers for row, own in zip(rows, thresholds, strict=True)]
            pairs = [
                (other, at_threshold(other, threshold))
                for (row, threshold), other in itertools.product(zip(rows, thresholds, strict=True), rows)
                if row is not other
            ]
            losses = [100 * (figures(other)["validation"].full - point.score) for other, point in pairs]
            other_layers = [point.mean_layers for _, point in pairs]
            body.append(
                [method, dataset, ", ".join(f"{threshold:.3g}" for threshold in thresholds),
                 f"{min(own_layers):.2f} to {max(own_layers):.2f}",
                 f"{min(other_layers):.2f} to {max(other_layers):.2f}",
                 f"{round(statistics.fmean(losses), 1) + 0.0:.1f} ({round(max(losses), 1) + 0.0:.1f})"]
            )  # fmt: skip
    head = [
        "method",
        "data set",
        "chosen thresholds",
        "layers, own threshold",
        "layers, threshold of another seed",
        "points lost with it",
    ]
    return markdown(head, body)


def last_layers(runs: Runs) -> list[str]:
    """DACT-BERT, Fig. 3: the fraction of texts that run the last layer, and the mean layers at threshold 0."""
    body, datasets = [], datasets_of(runs)
    for method in [*PAPERS, OURS]:
        shares = [
            [100 * histogram_of(row)[-1] / sum(histogram_of(row)) for row in runs.get((dataset, method), [])]
            for dataset in datasets
        ]
        body.append([method, *(f"{statistics.fmean(values):.0f} %" if values else "" for values in shares)])
    at_zero = [
        [layers for row in runs.get((dataset, "dact-bert"), []) if (layers := layers_at_zero(row)) is not None]
        for dataset in datasets
    ]
    body.append(
        ["dact-bert, threshold 0: mean layers", *(measured(values, 2) if values else "" for values in at_zero)]
    )
    return markdown(["texts at the last layer", *datasets], body)


def ponder_costs(runs: Runs) -> list[str]:
    """DACT-BERT, Fig. 2: the effect of the ponder cost, and how much runs with the same ponder cost differ."""
    body = []
    for (dataset, method), rows in runs.items():
        variant = variant_of(method)
        if variant.method == "dact-bert":
            validation = [figures(row)["validation"] for row in rows]
            columns = (
                (1, [100 * run.full for run in validation]),
                (2, [layers for row in rows if (layers := layers_at_zero(row)) is not None]),
                (1, [100 * run.exits for run in validation]),
                (2, [run.layer for run in validation]),
            )
            cells = [measured(values, digits) if values else "" for digits, values in columns]
            body.append([dataset, f"{variant.config['ponder_cost']:g}", str(len(rows)), *cells])
    head = ["data set", "ponder cost", "seeds", "full depth", "layers, threshold 0", "with exits", "layers with exits"]
    costs = markdown(head, sorted(body, key=lambda cells: (GRID_DATASETS.index(cells[0]), float(cells[1]))))
    return [*costs, "", *one_setting(runs)]


def depth_by_ponder_cost(lines: Sequence[Row]) -> list[str]:
    """Table of the runs of dact_ponder_costs.py: quality and depth at the exact rule, and where texts leave."""
    body = []
    for line in sorted(lines, key=lambda line: (json.dumps(line["settings"], sort_keys=True), line["ponder_cost"])):
        validation, settings = next(iter(line["results"].values())), line["settings"]
        metric, full = next(iter(validation["full_depth"].items()))
        shares = [f"{count / validation['samples']:.0%}" for count in validation["exit_histogram"].values()]
        by_layer = line.get("by_layer", {})  # not recorded in early lines
        halting = [f"{value:.2f}" for value in by_layer.get("halting", [])]
        own = [f"{100 * value:.0f}" for value in by_layer.get("own_accuracy", [])]
        config = {name: value for name, value in settings["method_config"].items() if name != "exit_pooling"}
        data, encoder = settings["task_name"] or settings["dataset_name"], settings["model_name_or_path"]
        body.append(
            [
                f"{data.split('/')[-1]}{training_rows(settings)}, {encoder.split('/')[-1]}",
                json.dumps(config)[1:-1] or "-",
                f"{line['ponder_cost']:g}",
                f"{settings['exits_learning_rate']:g}",
                str(settings["seed"]),
                f"{100 * full:.1f} ({metric})",
                f"{validation['mean_exit_layer']:.2f}",
                f"{validation['saving']:.0%}",
                *(" ".join(values) for values in (shares, halting, own)),
            ]
        )
    head = ["data, encoder", "settings", "ponder cost", "rate of exits", "seed", "score", "mean layers", "saved"]
    return markdown([*head, "texts by exit", "halting values", "accuracy of own outputs"], body)


def training_rows(settings: Mapping[str, Any]) -> str:
    """How many rows a run was trained on, if not on all.

    >>> training_rows({"max_train_samples": 3000}), training_rows({})
    (' (3,000 training rows)', '')
    """
    rows = settings.get("max_train_samples")
    return f" ({rows:,} training rows)" if rows else ""


def saving_at_the_exact_rule(lines: Sequence[Row]) -> list[str]:
    """What DACT-BERT saves at threshold 0 with its default settings, by encoder and data set."""
    found: dict[str, list[str]] = {}
    for line in lines:
        validation, settings = next(iter(line["results"].values())), line["settings"]
        default = {*settings["method_config"]} <= {"exit_pooling"} and settings["exits_learning_rate"] == 1e-3
        if not default or line["ponder_cost"] != 0.1:
            continue
        encoder = f"{settings['model_name_or_path'].split('/')[-1]}, {len(validation['by_exit'])} layers"
        (score,), (full,) = validation["at_threshold"].values(), validation["full_depth"].values()
        data = (settings["task_name"] or settings["dataset_name"]).split("/")[-1]
        data += training_rows(settings)
        words = f"{data} {validation['saving']:.0%} saved, {100 * score:.1f} % (full depth {100 * full:.1f} %)"
        found.setdefault(encoder, []).append(words)
    return [f"- {encoder}: {'; '.join(words)}." for encoder, words in sorted(found.items())]


def one_setting(runs: Runs) -> list[str]:
    """The range of mean layers over seeds with the same setting: the same ponder cost, or the same threshold."""
    body, datasets = [], [dataset for dataset in datasets_of(runs) if (dataset, "dact-bert") in runs]
    for method, setting in (("dact-bert", "ponder cost, threshold 0"), ("dact-bert", ""), ("deebert", "")):
        cells = []
        for dataset in datasets:
            rows = [row for row in runs.get((dataset, method), []) if curve_of(row)]
            if setting:
                layers = [mean for row in rows if (mean := layers_at_zero(row)) is not None]
            else:
                threshold = validation_of(rows[0])["exit_threshold"] if rows else None
                layers = [at_threshold(row, threshold).mean_layers for row in rows] if threshold is not None else []
            cells.append(f"{min(layers):.2f} to {max(layers):.2f}" if len(layers) > 2 else "")
        if any(cells):
            body.append([f"{method}, same {setting or 'threshold, that of seed 0'}", *cells])
    return markdown(["mean layers, three seeds", *datasets], body)


def layers_at_zero(row: Row) -> float | None:
    """Mean layers at threshold 0, at which DACT-BERT never changes a prediction; None without such a point."""
    return next((point.mean_layers for point in curve_of(row) if point.threshold == 0), None)


def histogram_of(row: Row) -> list[int]:
    """Numbers of validation texts by exit, in the order of the layers."""
    histogram = validation_of(row)["exit_histogram"]
    return [count for _, count in sorted((int(layer), count) for layer, count in histogram.items())]


def saving_on_the_clock(speed: Sequence[Row]) -> list[str]:
    """DeeBERT, Fig. 3: the expected and the measured saving."""
    body = [
        [row["candidate"], row["baseline"], str(row["batch_size"]), f"{1 - 1 / row['layer_speed_up']:.0%}",
         f"{1 - 1 / statistics.median(row['speed_up']):.0%}"]
        for row in speed
        if (row["device"], row["weights"], row.get("hidden_size")) == ("cpu", "random", 768) and "speed_up" in row
    ]  # fmt: skip
    return markdown(["run", "compared with", "batch", "layers saved", "time saved"], body)


@functools.cache  # does not depend on the runs
def heads() -> list[str]:
    """The computation of the exits themselves, which the other tables do not include."""
    encoder = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=100
    )
    body = []
    for name, model in METHODS.items():
        if name != "depth-adaptive":
            settings = {"encoder_config": encoder, "num_labels": 2, "exit_pooling": "mean"}
            all_exits, last_exit = (
                flops_per_exit(model(model.config_class(**settings, exit_layers=layers)), tokens=32)[-1].item()
                for layers in (None, [6])
            )
            body.append([name, f"{100 * (all_exits / last_exit - 1):.2f} %"])
    return markdown(["method", "added by five exits"], body)


def depth_sources(runs: Runs) -> list[str]:
    """Faster Depth-Adaptive Transformers, Table 3: the source of the tokens' depths."""
    body = []
    for (dataset, method), rows in runs.items():
        if method.split(":")[0] == "depth-adaptive":
            gains = differences(runs.get((dataset, "depth-adaptive"), []), rows, full_score)
            validation = [figures(row)["validation"] for row in rows]
            body.append(
                [dataset, method, str(len(rows)), measured([100 * run.full for run in validation], 1),
                 measured([run.layer for run in validation], 2), compared(gains) if method != "depth-adaptive" else ""]
            )  # fmt: skip
    head = ["data set", "method", "seeds", "full depth", "layers at the threshold", "mutual information minus it"]
    return markdown(head, sorted(body))


OF_RUNS = (transfer, threshold_sensitivity, ponder_costs, last_layers, depth_sources)
