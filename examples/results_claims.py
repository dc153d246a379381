"""What the papers claim, looked up in the runs of `compare_methods.py`: sections of the page, with their verdicts."""

import itertools
import statistics
from collections.abc import Callable, Sequence

from comparison_tables import figures, interval, is_regression, markdown, measured
from results_figures import Row, Runs, above, area, curve_of, fixed_layers, names_of
from transformers import BertConfig

from adaexit_hf import METHODS
from adaexit_hf.curves import CurvePoint
from adaexit_hf.flops import flops_per_exit

OURS = "berxit-exits-1e-3"
PAPERS = ["deebert", "berxit", "dact-bert", "pabee", "fastbert", "right-tool", "depth-adaptive"]
# How their classifiers are trained.
TRAINED = {
    "deebert": "two-stage", "fastbert": "two-stage, distilled", "berxit": "alternating", "right-tool": "joint",
    "pabee": "joint, weighted by depth", OURS: "alternating",
}  # fmt: skip


def datasets_of(runs: Runs) -> list[str]:
    return names_of(runs)[0]


def differences(first: Sequence[Row], second: Sequence[Row], of: Callable[[Row], float | None]) -> list[float]:
    """Of a figure of two methods, seed by seed, where both have it."""
    other = {row["seed"]: of(row) for row in second}
    pairs = [(of(row), other.get(row["seed"])) for row in first]
    return [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]


def verdict(values: Sequence[float]) -> str:
    """Are differences above zero, below, or neither, with 95 % confidence?

    >>> verdict([1.0, 1.1, 0.9]), verdict([-0.2, 0.3, 0.1]), verdict([1.0])
    ('higher', 'no difference seen', 'one seed')
    """
    if len(values) < 2:
        return "one seed" if values else "not run"
    mean, half = interval(values)
    if abs(mean) <= half:
        return "no difference seen"
    return "higher" if mean > 0 else "lower"


def better_default(runs: Runs) -> list[str]:
    """Does ours beat every paper's own in area, and where?"""
    body, best = [], []
    for dataset in datasets_of(runs):
        ours = runs.get((dataset, OURS), [])
        rivals = {method: runs[dataset, method] for method in PAPERS if (dataset, method) in runs}

        def mean_score(row: Row) -> float | None:
            return area(row, figures(row)["validation"].depth / 2)

        means = {
            method: statistics.fmean(values)
            for method, rows in rivals.items()
            if (values := [value for row in rows if (value := mean_score(row)) is not None])
        }
        if not ours or not means:
            continue
        strongest = max(means, key=lambda method: means[method])
        found = differences(ours, rivals[strongest], mean_score)
        same = differences(ours, rivals.get("berxit", []), mean_score)
        best.append(bool(found) and statistics.fmean(found) > 0)
        body.append(
            [dataset, strongest, measured(found, 2) if found else "", verdict(found),
             measured(same, 2) if same else "", verdict(same)]
        )  # fmt: skip
    table = markdown(["data set", "best of the papers", "ours minus it", "verdict", "minus BERxiT", "verdict"], body)
    above_all = (
        f"Ours is above the best of the papers' recipes on {sum(best)} of {len(best)} data sets, in the mean over"
    )
    return [*table, "", f"{above_all} seeds."]


def fine_tuning(runs: Runs) -> list[str]:
    """BERxiT, Figs. 2 to 5: every layer's score by how the exits were trained."""
    lines = []
    for dataset in datasets_of(runs):
        body = []
        for method, how in TRAINED.items():
            rows = runs.get((dataset, method), [])
            if not rows:
                continue
            layers = [[100 * point.score for point in fixed_layers(row)] for row in rows]
            if len(set(map(len, layers))) == 1 and len(layers[0]) > 1:
                scores = [f"{statistics.fmean(values):.1f}" for values in zip(*layers, strict=True)]
                body.append([f"{method} ({how}), {len(rows)} seed(s)", *scores])
        if len(body) > 1:
            lines += [*markdown([dataset, *map(str, range(1, len(body[0])))], body), ""]
    counts = []
    for first, second in (("berxit", "deebert"), (OURS, "deebert"), (OURS, "berxit")):
        for name, place in (("first", 0), ("last", -1)):
            found = [
                differences(
                    runs[dataset, first], runs[dataset, second], lambda row, at=place: fixed_layers(row)[at].score
                )
                for dataset in datasets_of(runs)
                if (dataset, first) in runs and (dataset, second) in runs
            ]
            better = sum(statistics.fmean(values) > 0 for values in found if values)
            sure = sum(verdict(values) == "higher" for values in found)
            counts.append(
                f"- {first} against {second}, {name} exit: better in the mean on {better} of {len(found)} data sets, "
                f"beyond the seeds' spread on {sure}."
            )
    return [*lines, *counts]


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
        for name, values in (("fixed layers of the same model", static), ("PABEE", pabee)):
            body.append([dataset, name, measured(values, 2) if values else "", verdict(values)])
    return markdown(["data set", "against", "points above", "verdict"], body)


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
            cells.append(f"{measured(values, 2)} ({verdict(values)})" if values else "")
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
    """DACT-BERT's criticism of entropy: the right threshold differs from run to run."""
    body = []
    for method in [*PAPERS, OURS]:
        for dataset in datasets_of(runs):
            rows = [row for row in runs.get((dataset, method), []) if curve_of(row)]
            taken = [row["results"][next(iter(row["results"]))]["exit_threshold"] for row in rows]
            pairs = [
                (other, at_threshold(other, threshold))
                for (row, threshold), other in itertools.product(zip(rows, taken, strict=True), rows)
                if row is not other and threshold is not None
            ]
            if len(rows) < 3 or not pairs:
                continue
            losses = [100 * (figures(other)["validation"].full - point.score) for other, point in pairs]
            layers = [point.mean_layers for _, point in pairs]
            shown = [f"{threshold:.3g}" for threshold in taken if threshold is not None]
            body.append(
                [method, dataset, ", ".join(shown), f"{min(layers):.2f} to {max(layers):.2f}",
                 f"{statistics.fmean(losses):.1f} ({max(losses):.1f})"]
            )  # fmt: skip
    head = ["method", "data set", "thresholds chosen", "layers with another seed's", "points lost"]
    return markdown(head, body)


def last_layers(runs: Runs) -> list[str]:
    """DACT-BERT, Figs. 2 and 3: are the last layers used?"""
    body = []
    for (dataset, method), rows in runs.items():
        if method.split(":")[0] != "dact-bert":
            continue
        deepest, sound = [], []
        for row in rows:
            histogram = row["results"][next(iter(row["results"]))]["exit_histogram"]
            deepest.append(max(int(layer) for layer, count in histogram.items() if count))
            sound += [point.mean_layers for point in curve_of(row) if point.threshold == 0]
        depth = figures(rows[0])["validation"].depth
        body.append(
            [method, dataset, f"{', '.join(map(str, deepest))} of {depth}", measured(sound, 2) if sound else ""]
        )
    return markdown(["method", "data set", "deepest layer, by seed", "mean layer of the sound rule"], body)


def saving_on_the_clock(speed: Sequence[Row]) -> list[str]:
    """DeeBERT, Fig. 3: expected saving against measured."""
    body = [
        [row["candidate"], row["baseline"], str(row["batch_size"]), f"{1 - 1 / row['layer_speed_up']:.0%}",
         f"{1 - 1 / statistics.median(row['speed_up']):.0%}"]
        for row in speed
        if row.get("weights") == "random" and "speed_up" in row
    ]  # fmt: skip
    return markdown(["run", "against", "batch", "layers saved", "time saved"], body)


def heads() -> list[str]:
    """What exits cost, of which the other tables know nothing."""
    encoder = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=100
    )
    body = []
    for config, model, _ in METHODS:
        if config.model_type != "depth-adaptive":  # its cost depends on the words
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
        if method.split(":")[0] != "depth-adaptive":
            continue
        plain = runs.get((dataset, "plain"), [])
        lost = differences(rows, plain, lambda row: 100 * figures(row)["validation"].full)
        full, layers = ([getattr(figures(row)["validation"], name) for row in rows] for name in ("full", "layer"))
        body.append(
            [method, dataset, measured([100 * score for score in full], 1), measured(lost, 1), verdict(lost),
             measured(layers, 2)]
        )  # fmt: skip
    return markdown(["method", "data set", "full depth", "minus plain", "verdict", "layers at the threshold"], body)


OF_RUNS = (
    better_default, fine_tuning, regression, against_fixed_layers, transfer, threshold_sensitivity, last_layers,
    depth_sources,
)  # fmt: skip
