"""What the papers claim of depth and cost, looked up in the runs of `compare_methods.py`: sections of the page."""

import functools
import itertools
import statistics
from collections.abc import Sequence

from compare_methods import variant_of
from comparison_tables import figures, markdown, measured
from results_claims import compared, differences
from results_figures import DATASETS, OURS, PAPERS, Row, Runs, curve_of, datasets_of, full_score, validation_of
from transformers import BertConfig

from adaexit_hf import METHODS
from adaexit_hf.evaluation.curves import CurvePoint
from adaexit_hf.evaluation.flops import flops_per_exit


def transfer(runs: Runs) -> list[str]:
    """What a threshold that was chosen on validation costs on the test set."""
    body = []
    datasets = [dataset for dataset in datasets_of(runs) if any(
        len(figures(row)) > 1 for method in PAPERS for row in runs.get((dataset, method), [])
    )]  # fmt: skip
    for method in [*PAPERS, OURS]:
        cells = []
        for dataset in datasets:
            told = [figures(row) for row in runs.get((dataset, method), [])]
            costs = [
                100 * (each.full - each.exits) for run in told for split, each in run.items() if split != "validation"
            ]
            cells.append(f"{statistics.fmean(costs):.1f} ({max(costs):.1f})" if costs else "")
        if any(cells):
            body.append([method, *cells])
    return markdown(["method", *datasets], body)


def at_threshold(row: Row, threshold: float) -> CurvePoint:
    """The point of a run's curve that is nearest to a threshold of another run."""
    known = [point for point in curve_of(row) if point.threshold is not None]
    return min(known, key=lambda point: abs(point.threshold - threshold))


def threshold_sensitivity(runs: Runs) -> list[str]:
    """Is the threshold that one seed's validation chose right for the models of other seeds?"""
    body = []
    for method in [*PAPERS, OURS]:
        for dataset in datasets_of(runs):
            rows = [row for row in runs.get((dataset, method), []) if curve_of(row)]
            taken = [validation_of(row)["exit_threshold"] for row in rows]
            if len(rows) < 3 or None in taken:
                continue
            own = [figures(row)["validation"].layer for row in rows]
            pairs = [
                (other, at_threshold(other, threshold))
                for (row, threshold), other in itertools.product(zip(rows, taken, strict=True), rows)
                if row is not other
            ]
            losses = [100 * (figures(other)["validation"].full - point.score) for other, point in pairs]
            layers = [point.mean_layers for _, point in pairs]
            body.append(
                [method, dataset, ", ".join(f"{threshold:.3g}" for threshold in taken),
                 f"{min(own):.2f} to {max(own):.2f}", f"{min(layers):.2f} to {max(layers):.2f}",
                 f"{round(statistics.fmean(losses), 1) + 0.0:.1f} ({round(max(losses), 1) + 0.0:.1f})"]
            )  # fmt: skip
    head = [
        "method",
        "data set",
        "thresholds chosen",
        "layers with its own",
        "with another seed's",
        "points lost then",
    ]
    return markdown(head, body)


def last_layers(runs: Runs) -> list[str]:
    """DACT-BERT, Fig. 3: how many texts still run the last layer, and how deep its sound rule goes."""
    body, datasets = [], datasets_of(runs)
    for method in [*PAPERS, OURS]:
        shares = [
            [100 * histogram_of(row)[-1] / sum(histogram_of(row)) for row in runs.get((dataset, method), [])]
            for dataset in datasets
        ]
        body.append([method, *(f"{statistics.fmean(each):.0f} %" if each else "" for each in shares)])
    sound = [
        [layers for row in runs.get((dataset, "dact-bert"), []) if (layers := layers_when_sound(row)) is not None]
        for dataset in datasets
    ]
    body.append(["dact-bert, threshold 0: mean layers", *(measured(each, 2) if each else "" for each in sound)])
    return markdown(["texts at the last layer", *datasets], body)


def ponder_costs(runs: Runs) -> list[str]:
    """DACT-BERT, Fig. 2: what its price per layer sets, and how far runs with the same price differ."""
    body = []
    for (dataset, method), rows in runs.items():
        variant = variant_of(method)
        if variant.method == "dact-bert":
            told = [figures(row)["validation"] for row in rows]
            columns = (
                (1, [100 * run.full for run in told]),
                (2, [sound for row in rows if (sound := layers_when_sound(row)) is not None]),
                (1, [100 * run.exits for run in told]),
                (2, [run.layer for run in told]),
            )
            cells = [measured(values, digits) if values else "" for digits, values in columns]
            body.append([dataset, f"{variant.config['ponder_cost']:g}", str(len(rows)), *cells])
    head = ["data set", "ponder cost", "seeds", "full depth", "layers, threshold 0", "with exits", "layers then"]
    costs = markdown(head, sorted(body, key=lambda cells: (DATASETS.index(cells[0]), float(cells[1]))))
    return [*costs, "", *one_setting(runs)]


def one_setting(runs: Runs) -> list[str]:
    """Mean layers over the seeds with one and the same setting: DACT-BERT's price, or a threshold of DeeBERT's."""
    body, datasets = [], [dataset for dataset in datasets_of(runs) if (dataset, "dact-bert") in runs]
    for method, setting in (("dact-bert", "ponder cost, threshold 0"), ("dact-bert", ""), ("deebert", "")):
        cells = []
        for dataset in datasets:
            rows = [row for row in runs.get((dataset, method), []) if curve_of(row)]
            if setting:
                layers = [sound for row in rows if (sound := layers_when_sound(row)) is not None]
            else:
                first = validation_of(rows[0])["exit_threshold"] if rows else None
                layers = [at_threshold(row, first).mean_layers for row in rows] if first is not None else []
            cells.append(f"{min(layers):.2f} to {max(layers):.2f}" if len(layers) > 2 else "")
        body.append([f"{method}, one {setting or 'threshold, that of seed 0'}", *cells])
    return markdown(["mean layers, three seeds", *datasets], body)


def layers_when_sound(row: Row) -> float | None:
    """Mean layers at threshold 0, where DACT-BERT's rule never changes an answer."""
    return next((point.mean_layers for point in curve_of(row) if point.threshold == 0), None)


def histogram_of(row: Row) -> list[int]:
    """Validation texts by exit, in the order of the layers."""
    return [count for _, count in sorted((int(layer), n) for layer, n in validation_of(row)["exit_histogram"].items())]


def saving_on_the_clock(speed: Sequence[Row]) -> list[str]:
    """DeeBERT, Fig. 3: expected saving against measured."""
    body = [
        [row["candidate"], row["baseline"], str(row["batch_size"]), f"{1 - 1 / row['layer_speed_up']:.0%}",
         f"{1 - 1 / statistics.median(row['speed_up']):.0%}"]
        for row in speed
        if (row["device"], row["weights"], row.get("hidden_size")) == ("cpu", "random", 768) and "speed_up" in row
    ]  # fmt: skip
    return markdown(["run", "against", "batch", "layers saved", "time saved"], body)


@functools.cache  # the same on every page
def heads() -> list[str]:
    """What exits cost, of which the other tables know nothing."""
    encoder = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=100
    )
    body = []
    for name, model in METHODS.items():
        if name != "depth-adaptive":
            settings = {"encoder_config": encoder, "num_labels": 2, "exit_pooling": "mean"}
            every, last = (
                flops_per_exit(model(model.config_class(**settings, exit_layers=layers)), tokens=32)[-1].item()
                for layers in (None, [6])
            )
            body.append([name, f"{100 * (every / last - 1):.2f} %"])
    return markdown(["method", "added by five exits"], body)


def depth_sources(runs: Runs) -> list[str]:
    """Faster Depth-Adaptive Transformers, Table 3: where tokens get their depths from."""
    body = []
    for (dataset, method), rows in runs.items():
        if method.split(":")[0] == "depth-adaptive":
            usual = differences(runs.get((dataset, "depth-adaptive"), []), rows, full_score)
            told = [figures(row)["validation"] for row in rows]
            body.append(
                [dataset, method, str(len(rows)), measured([100 * run.full for run in told], 1),
                 measured([run.layer for run in told], 2), compared(usual) if method != "depth-adaptive" else ""]
            )  # fmt: skip
    head = ["data set", "method", "seeds", "full depth", "layers at the threshold", "mutual information minus it"]
    return markdown(head, sorted(body))


OF_RUNS = (transfer, threshold_sensitivity, ponder_costs, last_layers, depth_sources)
