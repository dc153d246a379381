"""Sections of the results page that check the papers' claims about quality, from runs of `compare_methods.py`."""

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence

from comparison_tables import interval, is_regression, markdown, measured, seeds_if_few
from results_figures import (
    OURS,
    PAPERS,
    Row,
    Runs,
    above,
    above_at_points,
    curve_of,
    datasets_of,
    fixed_layers,
)

# How the classifiers of each method are trained.
TRAINED = {
    "deebert": "two-stage, exits at 1e-3", "fastbert": "two-stage, distilled at 5e-4", "berxit-joint": "joint",
    "berxit": "alternating", OURS: "the recommended recipe", "right-tool": "joint",
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


def fine_tuning(runs: Runs) -> list[str]:
    """BERxiT, Figs. 2 and 3: the score of every layer, by how the exits were trained."""
    lines = []
    for dataset in datasets_of(runs):
        body = []
        depth = max(max(exit_scores(row)) for (name, _), rows in runs.items() if name == dataset for row in rows)
        for method, training in TRAINED.items():
            rows = [exit_scores(row) for row in runs.get((dataset, method), [])]
            if rows:
                means = [
                    statistics.fmean(values) if (values := at(rows, layer)) else None for layer in range(1, depth + 1)
                ]
                scores = ["" if mean is None else f"{mean:.1f}" for mean in means]
                body.append([f"{method}: {training}", str(len(rows)), *scores])
        if len(body) > 1:
            lines += [*markdown([dataset, "seeds", *map(str, range(1, depth + 1))], body), ""]
    body = []
    for first, second in (("berxit", "berxit-joint"), ("berxit", "deebert"), (OURS, "deebert"), (OURS, "berxit")):
        for name, place in (("first", min), ("last", max)):
            cells = [compared(exit_gains(runs, dataset, first, second, place)) for dataset in datasets_of(runs)]
            if any(cells):
                body.append([f"{first} minus {second}, {name} exit", *cells])
    return [*lines, *markdown(["points", *datasets_of(runs)], body)]


def exit_scores(row: Row) -> dict[int, float]:
    """The score of every exit in percent, by its layer."""
    return {round(point.mean_layers): 100 * point.score for point in fixed_layers(row)}


def at(rows: Sequence[dict[int, float]], layer: int) -> list[float]:
    """The scores of the exits after a layer, of the runs that have one."""
    return [scores[layer] for scores in rows if layer in scores]


def exit_gains(
    runs: Runs, dataset: str, first: str, second: str, place: Callable[[Iterable[int]], int]
) -> list[float]:
    """Differences of the first or the last exit, by seed; none if these are not after the same layer."""
    ends = {place(exit_scores(row)) for method in (first, second) for row in runs.get((dataset, method), [])}
    if len(ends) != 1:
        return []
    (layer,) = ends
    return differences(
        runs.get((dataset, first), []), runs.get((dataset, second), []), lambda row: exit_scores(row)[layer]
    )


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


def above_one_exit(runs: Runs, dataset: str, method: str) -> list[float]:
    """Points by which a method's curve lies above the same model with one exit for all texts, by seed.

    None for the recommended recipe on regressions, which has one exit for all texts.
    """
    if method == OURS and is_regression(dataset):
        return []
    compare = above_at_points if method == "pabee" else above
    return [compare(curve_of(row), fixed_layers(row)) for row in runs.get((dataset, method), []) if curve_of(row)]


def against_fixed_layers(runs: Runs) -> list[str]:
    """Compare deciding per text with one exit for all texts of the same model."""
    body = []
    datasets = datasets_of(runs)
    for method in [*PAPERS, OURS]:
        cells = []
        for dataset in datasets:
            cells.append(compared(above_one_exit(runs, dataset, method)))
        if any(cells):
            body.append([method, *cells])
    return markdown(["method", *datasets], body)


def claims(runs: Runs) -> list[str]:
    """The claims that a difference between two methods decides, and on how many data sets it does."""

    def ends(first: str, second: str, place: Callable[[Iterable[int]], int]) -> list[Sequence[float]]:
        return [exit_gains(runs, dataset, first, second, place) for dataset in datasets_of(runs)]

    def per_text(method: str) -> list[Sequence[float]]:
        return [above_one_exit(runs, dataset, method) for dataset in datasets_of(runs)]

    made = [
        (
            "two-stage is better than alternating at the last layer (BERxiT, Figs. 2, 3)",
            ends("deebert", "berxit", max),
        ),
        ("joint is better than alternating in the first layer", ends("berxit-joint", "berxit", min)),
        *(
            (f"{method}: deciding per text is better than one exit for all", per_text(method))
            for method in (*PAPERS, OURS)
        ),
    ]
    body = []
    for claim, gains in made:
        each = [found for values in gains if (found := verdict(values))]
        if each:
            counts = [each.count(name) for name in ("higher", "lower", "no difference seen")]
            body.append([claim, *map(str, counts)])
    return markdown(["claim", "confirmed on", "the contrary on", "no difference seen on"], body)


OF_RUNS = (claims, fine_tuning, regression, against_fixed_layers)
