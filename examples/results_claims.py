"""What the papers claim, looked up in the runs of `compare_methods.py`: sections of the page, with their verdicts."""

import functools
import itertools
import statistics
from collections.abc import Callable, Sequence

from comparison_tables import figures, interval, is_regression, markdown, measured, seeds_if_few
from results_figures import NAMES, Row, Runs, above, area, curve_of, fixed_layers, names_of, validation_of
from transformers import BertConfig

from adaexit_hf import METHODS
from adaexit_hf.curves import CurvePoint
from adaexit_hf.flops import flops_per_exit

OURS = "berxit-exits-1e-3"
PAPERS = [method for method in NAMES if method != OURS]
# How their classifiers are trained.
TRAINED = {
    "deebert": "two-stage, exits at 1e-3", "fastbert": "two-stage, distilled at 5e-4", "berxit-joint": "joint",
    "berxit": "alternating", OURS: "alternating, exits at 1e-3", "right-tool": "joint",
    "pabee": "joint, weighted by depth",
}  # fmt: skip


def datasets_of(runs: Runs) -> list[str]:
    return names_of(runs)[0]


def differences(first: Sequence[Row], second: Sequence[Row], of: Callable[[Row], float | None]) -> list[float]:
    """Of a figure of two methods, seed by seed, where both have it."""
    other = {row["seed"]: of(row) for row in second}
    pairs = [(of(row), other.get(row["seed"])) for row in first]
    return [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]


def verdict(values: Sequence[float]) -> str:
    """Are differences above zero, below, or neither, with 95 % confidence? Nothing is said of fewer than three.

    >>> verdict([1.0, 1.1, 0.9]), verdict([-0.2, 0.3, 0.1]), verdict([1.0, 1.0])
    ('higher', 'no difference seen', '')
    """
    if len(values) < 3:
        return ""
    mean, half = interval(values)
    if abs(mean) <= half:
        return "no difference seen"
    return "higher" if mean > 0 else "lower"


def compared(values: Sequence[float]) -> str:
    """Mean of differences with its interval and verdict, or the number of seeds where they are few.

    >>> compared([1.0, 1.1, 0.9]), compared([1.0, 2.0]), compared([])
    ('1.00 ± 0.25, higher', '1.50 (2 seeds)', '')
    """
    if len(values) < 3:
        return f"{statistics.fmean(values):.2f}{seeds_if_few(values)}" if values else ""
    return f"{measured(values, 2)}, {verdict(values)}"


def half_area(row: Row) -> float | None:
    return area(row, figures(row)["validation"].depth / 2)


def better_default(runs: Runs) -> list[str]:
    """Does ours beat every paper's own in area, and where?"""
    body, above_all = [], []
    for dataset in datasets_of(runs):
        ours = runs.get((dataset, OURS), [])
        found = {method: differences(ours, runs.get((dataset, method), []), half_area) for method in PAPERS}
        least = min(
            (method for method in PAPERS if found[method]), key=lambda m: statistics.fmean(found[m]), default=""
        )
        if least:
            above_all.append(statistics.fmean(found[least]) > 0)
            body.append([dataset, least, compared(found[least]), compared(found["berxit"])])
    table = markdown(["data set", "best of the papers", "ours minus it", "ours minus BERxiT"], body)
    count = f"{sum(above_all)} of {len(above_all)}"
    return [*table, "", f"In the mean over seeds ours is above the best of the papers' recipes on {count} data sets."]


def fine_tuning(runs: Runs) -> list[str]:
    """BERxiT, Figs. 2 and 3: every layer's score by how the exits were trained."""
    lines = []
    for dataset in datasets_of(runs):
        body = []
        for method, how in TRAINED.items():
            layers = [[100 * point.score for point in fixed_layers(row)] for row in runs.get((dataset, method), [])]
            if layers:
                scores = [f"{statistics.fmean(values):.1f}" for values in zip(*layers, strict=True)]
                body.append([f"{method}: {how}", str(len(layers)), *scores])
        if len(body) > 1:
            lines += [*markdown([dataset, "seeds", *map(str, range(1, len(body[0]) - 1))], body), ""]
    body = []
    for first, second in (("berxit", "berxit-joint"), ("berxit", "deebert"), (OURS, "deebert"), (OURS, "berxit")):
        for name, place in (("first", 0), ("last", -1)):
            cells = [
                compared(
                    differences(
                        runs.get((dataset, first), []),
                        runs.get((dataset, second), []),
                        lambda row, at=place: 100 * fixed_layers(row)[at].score,
                    )
                )
                for dataset in datasets_of(runs)
            ]
            if any(cells):
                body.append([f"{first} minus {second}, {name} exit", *cells])
    return [*lines, *markdown(["points", *datasets_of(runs)], body)]


def regression(runs: Runs) -> list[str]:
    """BERxiT, Fig. 6 and Table 3: learning to exit against PABEE and against fixed layers."""
    body = []
    for dataset in filter(is_regression, datasets_of(runs)):
        ours, theirs = runs.get((dataset, "berxit"), []), runs.get((dataset, "pabee"), [])
        static = [above(curve_of(row), fixed_layers(row)) for row in ours if curve_of(row)]
        pabee = [
            above(curve_of(row), curve_of(other))
            for row, other in itertools.product(ours, theirs)
            if row["seed"] == other["seed"] and curve_of(row) and curve_of(other)
        ]
        body += [[dataset, "fixed layers of the same model", compared(static)], [dataset, "PABEE", compared(pabee)]]
    return markdown(["data set", "against", "points above"], body)


def against_fixed_layers(runs: Runs) -> list[str]:
    """Does it help to decide per text?"""
    body = []
    datasets = datasets_of(runs)
    for method in [*PAPERS, OURS]:
        cells = []
        for dataset in datasets:
            values = [
                above(curve_of(row), fixed_layers(row)) for row in runs.get((dataset, method), []) if curve_of(row)
            ]
            cells.append(compared(values))
        if any(cells):
            body.append([method, *cells])
    return markdown(["method", *datasets], body)


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
                 f"{statistics.fmean(losses):.1f} ({max(losses):.1f})"]
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
        [point.mean_layers for row in runs.get((dataset, "dact-bert"), []) for point in curve_of(row)
         if point.threshold == 0]
        for dataset in datasets
    ]  # fmt: skip
    body.append(["dact-bert, threshold 0: mean layers", *(measured(each, 2) if each else "" for each in sound)])
    return markdown(["texts at the last layer", *datasets], body)


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
    for config, model, _ in METHODS:
        if config.model_type != "depth-adaptive":
            settings = {"encoder_config": encoder, "num_labels": 2, "exit_pooling": "mean"}
            every, last = (
                flops_per_exit(model(config(**settings, exit_layers=layers)), tokens=32)[-1].item()
                for layers in (None, [6])
            )
            body.append([config.model_type, f"{100 * (every / last - 1):.2f} %"])
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


def full_score(row: Row) -> float:
    return 100 * figures(row)["validation"].full


OF_RUNS = (
    better_default, fine_tuning, regression, against_fixed_layers, transfer, threshold_sensitivity, last_layers,
    depth_sources,
)  # fmt: skip
