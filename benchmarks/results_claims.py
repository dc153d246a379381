"""Sections of the results page that check the papers' claims about quality, from runs of `compare_methods.py`."""

import itertools
import statistics
from collections.abc import Callable, Sequence

from comparison_tables import figures, interval, is_regression, markdown, measured, seeds_if_few
from results_figures import (
    OURS,
    PAPERS,
    Row,
    Runs,
    above,
    above_at_points,
    area,
    curve_of,
    datasets_of,
    fixed_layers,
    full_score,
    score_after_three_layers,
)

# How the classifiers of each method are trained.
TRAINED = {
    "deebert": "two-stage, exits at 1e-3", "fastbert": "two-stage, distilled at 5e-4", "berxit-joint": "joint",
    "berxit": "alternating", OURS: "alternating, exits at 1e-3", "right-tool": "joint",
    "pabee": "joint, weighted by depth", "layerdrop": "no exits, LayerDrop 0.2, cut here",
}  # fmt: skip


def differences(first: Sequence[Row], second: Sequence[Row], figure: Callable[[Row], float | None]) -> list[float]:
    """Differences of a figure between two methods, for every seed for which both have it."""
    second_by_seed = {row["seed"]: figure(row) for row in second}
    pairs = [(figure(row), second_by_seed.get(row["seed"])) for row in first]
    return [value - other for value, other in pairs if value is not None and other is not None]


def verdict(values: Sequence[float]) -> str:
    """Whether the mean difference is above or below zero with 95 % confidence; "" for fewer than three differences.

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
    """Mean difference with its interval and verdict, or with the number of seeds if there are fewer than three.

    >>> compared([1.0, 1.1, 0.9]), compared([1.0, 2.0]), compared([])
    ('1.00 ± 0.25, higher', '1.50 (2 seeds)', '')
    """
    if len(values) < 3:
        return f"{statistics.fmean(values):.2f}{seeds_if_few(values)}" if values else ""
    return f"{measured(values, 2)}, {verdict(values)}"


def better_default(runs: Runs) -> list[str]:
    """Compare the area of our training settings with that of the best method of the papers and with BERxiT."""
    lines = []
    for share, share_text in ((1 / 3, "a third"), (1 / 2, "half")):
        body, gains = [], []
        for dataset in datasets_of(runs):
            gains_over = {method: area_gains(runs, dataset, method, share) for method in PAPERS}
            seeds = max(map(len, gains_over.values()))
            comparable = [method for method in PAPERS if len(gains_over[method]) == seeds > 0]
            if comparable:
                best = min(comparable, key=lambda method: statistics.fmean(gains_over[method]))
                gains.append(gains_over[best])
                cells = [compared(gains_over[best]), compared(gains_over["berxit"])]
                body.append([dataset, str(len(comparable)), best, *cells])
        best_head = f"best of them, from {share_text} of the layers"
        head = ["data set", "methods compared", best_head, "ours minus best", "ours minus BERxiT"]
        verdicts = [verdict(values) for values in gains]
        higher, lower, neither = (verdicts.count(name) for name in ("higher", "lower", "no difference seen"))
        higher_mean = sum(statistics.fmean(values) > 0 for values in gains)
        conclusion = (
            f"Ours compared with the best of the papers' methods: higher on {higher} data sets, lower on {lower}, no "
            f"difference seen on {neither}; its mean is higher on {higher_mean} of {len(gains)}."
        )
        lines += [*markdown(head, body), "", conclusion, ""] if body else []
    return lines[:-1]


def area_gains(runs: Runs, dataset: str, method: str, share: float) -> list[float]:
    """By how much our area is larger than that of a method, from a fraction of the layers to all, for every seed."""
    return differences(
        runs.get((dataset, OURS), []),
        runs.get((dataset, method), []),
        lambda row: area(row, share * figures(row)["validation"].depth),
    )


def fine_tuning(runs: Runs) -> list[str]:
    """BERxiT, Figs. 2 and 3: the score of every layer, by how the exits were trained."""
    lines = []
    for dataset in datasets_of(runs):
        body = []
        for method, training in TRAINED.items():
            layers = [[100 * point.score for point in fixed_layers(row)] for row in runs.get((dataset, method), [])]
            if layers:
                scores = [f"{statistics.fmean(values):.1f}" for values in zip(*layers, strict=True)]
                body.append([f"{method}: {training}", str(len(layers)), *scores])
        if len(body) > 1:
            lines += [*markdown([dataset, "seeds", *map(str, range(1, len(body[0]) - 1))], body), ""]
    body = []
    for first, second in (("berxit", "berxit-joint"), ("berxit", "deebert"), (OURS, "deebert"), (OURS, "berxit")):
        for name, index in (("first", 0), ("last", -1)):
            cells = [
                compared(
                    differences(
                        runs.get((dataset, first), []),
                        runs.get((dataset, second), []),
                        lambda row, index=index: 100 * fixed_layers(row)[index].score,
                    )
                )
                for dataset in datasets_of(runs)
            ]
            if any(cells):
                body.append([f"{first} minus {second}, {name} exit", *cells])
    return [*lines, *markdown(["points", *datasets_of(runs)], body)]


def regression(runs: Runs) -> list[str]:
    """BERxiT, Fig. 6 and Table 3: learning to exit compared with PABEE and with fixed layers."""
    body = []
    for dataset in filter(is_regression, datasets_of(runs)):
        berxit_rows, pabee_rows = runs.get((dataset, "berxit"), []), runs.get((dataset, "pabee"), [])
        static = [above(curve_of(row), fixed_layers(row)) for row in berxit_rows if curve_of(row)]
        pabee = [
            -above_at_points(curve_of(other), curve_of(row))
            for row, other in itertools.product(berxit_rows, pabee_rows)
            if row["seed"] == other["seed"] and curve_of(row) and curve_of(other)
        ]
        body += [
            [dataset, "fixed layers of the same model", compared(static)],
            [dataset, "PABEE, at its points", compared(pabee)],
        ]
    return markdown(["data set", "compared with", "points above"], body)


def against_fixed_layers(runs: Runs) -> list[str]:
    """Compare deciding per text with one exit for all texts of the same model."""
    body = []
    datasets = datasets_of(runs)
    for method in [*PAPERS, OURS]:
        cells = []
        for dataset in datasets:
            compare = above_at_points if method == "pabee" else above
            values = [
                compare(curve_of(row), fixed_layers(row)) for row in runs.get((dataset, method), []) if curve_of(row)
            ]
            cells.append(compared(values))
        if any(cells):
            body.append([method, *cells])
    return markdown(["method", *datasets], body)


def against_static(runs: Runs) -> list[str]:
    """Compare early exit with separately trained models with one exit, of three layers and of all layers."""
    body, datasets = [], datasets_of(runs)
    for static, depth_text, score in (
        ("static-3", "after three layers", score_after_three_layers),
        ("static-6", "full depth", full_score),
    ):
        for method in [*PAPERS, OURS]:
            cells = [
                compared(differences(runs.get((dataset, method), []), runs.get((dataset, static), []), score))
                for dataset in datasets
            ]
            if any(cells):
                body.append([f"{method} minus {static}, {depth_text}", *cells])
    return markdown(["points", *datasets], body)


OF_RUNS = (better_default, fine_tuning, regression, against_fixed_layers, against_static)
