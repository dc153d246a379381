"""What the papers claim of quality, looked up in the runs of `compare_methods.py`: sections, with their verdicts."""

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

# How their classifiers are trained.
TRAINED = {
    "deebert": "two-stage, exits at 1e-3", "fastbert": "two-stage, distilled at 5e-4", "berxit-joint": "joint",
    "berxit": "alternating", OURS: "alternating, exits at 1e-3", "right-tool": "joint",
    "pabee": "joint, weighted by depth", "layerdrop": "no exits, LayerDrop 0.2, cut here",
}  # fmt: skip


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


def better_default(runs: Runs) -> list[str]:
    """Does ours beat every paper's own in area, and where?"""
    lines = []
    for share, said in ((1 / 3, "a third"), (1 / 2, "half")):
        body, gains = [], []
        for dataset in datasets_of(runs):
            found = {method: more_area(runs, dataset, method, share) for method in PAPERS}
            seeds = max(map(len, found.values()))
            known = [method for method in PAPERS if len(found[method]) == seeds > 0]
            if known:
                best = min(known, key=lambda method: statistics.fmean(found[method]))
                gains.append(found[best])
                body.append([dataset, str(len(known)), best, compared(found[best]), compared(found["berxit"])])
        head = ["data set", "recipes", f"best of them, from {said} of the layers", "ours minus it", "minus BERxiT"]
        verdicts = [verdict(each) for each in gains]
        higher, lower, neither = (verdicts.count(each) for each in ("higher", "lower", "no difference seen"))
        above_all = sum(statistics.fmean(each) > 0 for each in gains)
        said_of_all = (
            f"Ours against the best of the papers' recipes: higher on {higher} data sets, lower on {lower}, no "
            f"difference seen on {neither}; its mean is the higher one on {above_all} of {len(gains)}."
        )
        lines += [*markdown(head, body), "", said_of_all, ""] if body else []
    return lines[:-1]


def more_area(runs: Runs, dataset: str, method: str, share: float) -> list[float]:
    """By how much our area is larger than a method's, between a share of the layers and all, seed by seed."""
    return differences(
        runs.get((dataset, OURS), []),
        runs.get((dataset, method), []),
        lambda row: area(row, share * figures(row)["validation"].depth),
    )


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
            -above_at_points(curve_of(other), curve_of(row))
            for row, other in itertools.product(ours, theirs)
            if row["seed"] == other["seed"] and curve_of(row) and curve_of(other)
        ]
        body += [
            [dataset, "fixed layers of the same model", compared(static)],
            [dataset, "PABEE, at its points", compared(pabee)],
        ]
    return markdown(["data set", "against", "points above"], body)


def against_fixed_layers(runs: Runs) -> list[str]:
    """Does it help to decide per text?"""
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
    """Do exits beat an encoder with one exit, trained as such, of three layers and of all?"""
    body, datasets = [], datasets_of(runs)
    for static, what, score in (
        ("static-3", "after three layers", score_after_three_layers),
        ("static-6", "full depth", full_score),
    ):
        for method in [*PAPERS, OURS]:
            cells = [
                compared(differences(runs.get((dataset, method), []), runs.get((dataset, static), []), score))
                for dataset in datasets
            ]
            if any(cells):
                body.append([f"{method} minus {static}, {what}", *cells])
    return markdown(["points", *datasets], body)


OF_RUNS = (better_default, fine_tuning, regression, against_fixed_layers, against_static)
