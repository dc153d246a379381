"""The first sections of the results page: what is lost at half of the layers, the goals, and what exits cost."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from compare_methods import applies, static_depths, variant_of
from comparison_tables import figures, interval, markdown, seeds_if_few
from matplotlib.figure import Figure
from results_claims import compared, differences, verdict
from results_figures import (
    NAMES,
    OURS,
    PAPERS,
    Row,
    Runs,
    area,
    curve_of,
    datasets_of,
    depth_of,
    full_score,
    names_of,
    validation_of,
)

Score = Callable[[Row], float | None]
RIVALS = ("berxit-exits-1e-3", "fastbert+head")  # methods of papers that are better with other rates or heads
CHART = {
    "static": ("one exit after half of the layers", "D", "#7f7f7f"),
    "paper": ("best paper's method", "s", "#0072b2"),
    OURS: ("recommended", "o", "#d55e00"),
}


def score_within(layers: int, split: str = "validation") -> Score:
    """A run's score in percent at this mean number of layers or fewer, at thresholds that its rows did not choose.

    For a model that has no more layers it is the score at full depth. None if there is none.

    Args:
        layers: The largest mean number of layers, on the validation rows that choose the threshold.
        split: Name of the split that is scored.
    """

    def score(row: Row) -> float | None:
        results = figures(row)
        if split not in results:
            return None
        if results[split].depth <= layers:
            return 100 * results[split].full
        points = dict(zip(results, row.get("points", {}).values(), strict=False)).get(split, [])  # none of one exit
        return next((100 * point["score"] for point in points if point.get("max_layers") == layers), None)

    return score


def third_area(row: Row) -> float | None:
    """Mean score in percent from a third of the layers to all of them."""
    return area(row, figures(row)["validation"].depth / 3)


def scores_of(runs: Runs, dataset: str, method: str, score: Score) -> list[float]:
    """A score of every run of a method on a data set that has it."""
    return [value for row in runs.get((dataset, method), []) if (value := score(row)) is not None]


def best_paper(runs: Runs, dataset: str, score: Score) -> str | None:
    """The paper's method with the best mean score; only those with as many seeds as most are compared."""
    scores = {method: scores_of(runs, dataset, method, score) for method in PAPERS}
    seeds = max(map(len, scores.values()))
    comparable = [method for method in PAPERS if len(scores[method]) == seeds > 0]
    return max(comparable, key=lambda method: statistics.fmean(scores[method]), default=None)


def rivals(runs: Runs, dataset: str) -> dict[str, str | None]:
    """The methods that are compared at half of the layers of a data set, by their role."""
    half = depth_of(runs) // 2
    return {
        "static": f"static-{half}",
        "paper": best_paper(runs, dataset, score_within(half)),
        OURS: OURS,
    }


def at_half_and_plain(runs: Runs, dataset: str, method: str | None) -> list[tuple[float, float]]:
    """Score of a method at half of the layers, and of plain fine-tuning with all layers, for every seed of both."""
    half = score_within(depth_of(runs) // 2)
    plain = {row["seed"]: full_score(row) for row in runs.get((dataset, "plain"), [])}
    scores = {row["seed"]: half(row) for row in runs.get((dataset, method or ""), [])}
    return [(score, plain[seed]) for seed, score in scores.items() if score is not None and seed in plain]


def lost(runs: Runs, dataset: str, method: str | None) -> list[float]:
    """By how many points a method at half of the layers is above plain fine-tuning with all layers, by seed."""
    return [score - plain for score, plain in at_half_and_plain(runs, dataset, method)]


def mean_of(scores: Sequence[float]) -> str:
    """The mean of scores, and their number if there are fewer than three; empty without any.

    >>> mean_of([70.0, 71.0]), mean_of([])
    ('70.5 (2 seeds)', '')
    """
    return f"{statistics.fmean(scores):.1f}{seeds_if_few(scores)}" if scores else ""


def at_half(runs: Runs) -> list[str]:
    """What each method loses at half of the layers."""
    half = depth_of(runs) // 2
    body = []
    for dataset in datasets_of(runs):
        cells = []
        for name in ("plain", OURS):
            cells.append(mean_of(scores_of(runs, dataset, name, full_score)))
        for role, method in rivals(runs, dataset).items():
            scores = scores_of(runs, dataset, method or "", score_within(half))
            if not scores:
                cells.append("")
                continue
            values = lost(runs, dataset, method)
            few = seeds_if_few(values) if len(values) < len(scores) else ""  # of which there is no plain fine-tuning
            against = [f"{statistics.fmean(values):+.1f}{few}"] if values else []
            against += [str(method)] if role == "paper" else []
            added = f" ({', '.join(against)})" if against else ""
            cells.append(f"{statistics.fmean(scores):.1f}{added}{seeds_if_few(scores)}")
        body.append([dataset, *cells])
    head = [
        "data set",
        "plain, all layers",
        "recommended, all layers",
        f"static-{half}",
        "best paper's method",
        "recommended",
    ]
    return markdown(head, body)


def majority(row: Row) -> float | None:
    """The score of always giving the most frequent answer, in percent; None where it was not recorded."""
    score = validation_of(row).get("majority", {}).get(row["metric"])
    return None if score is None else 100 * score


def beside_fewer_layers(runs: Runs) -> list[str]:
    """The recommended recipe at full depth, half and a third of the layers, beside models with so many layers.

    After the table comes a sentence that counts the differences beyond the spread of the seeds.
    """
    depth = depth_of(runs)
    head, columns = ["plain"], [("plain", full_score)]
    for layers in (depth, depth // 2, depth // 3):
        head += [f"static-{layers}", f"recommended, {layers} layers"]
        columns += [(f"static-{layers}", full_score), (OURS, score_within(layers))]
    head, columns = [*head, "always the same answer"], [*columns, (OURS, majority)]
    body = []
    for dataset in datasets_of(runs):
        cells = [mean_of(scores_of(runs, dataset, method, score)) for method, score in columns]
        if (dataset, OURS) in runs:
            body.append([f"{dataset} ({runs[dataset, OURS][0]['metric']})", *cells])
    table = markdown(["data set (metric)", *head], body)
    return [*table, *beyond_the_spread(runs, (depth // 2, depth // 3), "validation")]


def beyond_the_spread(runs: Runs, depths: Sequence[int], split: str) -> list[str]:
    """How often the recommended recipe differs from models with fewer layers; empty without three seeds."""
    found: dict[str, list[str]] = {"higher": [], "lower": [], "no difference seen": []}
    for layers in depths:
        for dataset in datasets_of(runs):
            if each := verdict(over_static(runs, layers, dataset, split=split)):
                found[each].append(f"{dataset} at {layers}")
    if not any(found.values()):
        return []
    higher, lower = (
        f"{len(cases)} ({', '.join(cases)})" if cases else "none" for cases in (found["higher"], found["lower"])
    )
    rivals = " and ".join(f"`static-{layers}`" for layers in depths)
    count, alike = sum(map(len, found.values())), len(found["no difference seen"])
    return [
        "",
        f"Of the {count} comparisons with {rivals} that have three seeds, the recipe is higher beyond their spread in "
        f"{higher}, lower in {lower}; in {alike} no difference is seen.",
    ]


def on_test_sets(runs: Runs, with_differences: bool = True) -> list[str]:
    """The recommended recipe on test sets beside models with fewer layers; thresholds are chosen on validation.

    Args:
        runs: The runs of one encoder.
        with_differences: Whether the table has columns with the differences by seed.
    """
    depth = depth_of(runs)
    depths = (depth // 2, depth // 3)

    def mean(dataset: str, method: str, layers: int) -> str:
        return mean_of(scores_of(runs, dataset, method, score_within(layers, "test")))

    body = []
    for dataset in datasets_of(runs):
        cells = [mean(dataset, method, depth) for method in ("plain", OURS)]
        for layers in depths:
            cells += [mean(dataset, method, layers) for method in (f"static-{layers}", OURS)]
            if with_differences:
                cells.append(compared(over_static(runs, layers, dataset, split="test")))
        if (dataset, OURS) in runs and any(cells):
            body.append([f"{dataset} ({runs[dataset, OURS][0]['metric']})", *cells])
    head = ["plain", f"recommended, {depth} layers"]
    for layers in depths:
        head += [f"static-{layers}", f"recommended, {layers} layers"]
        if with_differences:
            head.append("difference")
    return [*markdown(["data set (metric)", *head], body), *beyond_the_spread(runs, depths, "test")]


def scores_by_depth(runs: Runs, method: str | None = None) -> list[str]:
    """Scores with at most all, half and a third of the layers, for each data set: one row per method.

    Models with one exit have the same score wherever they have no more layers.

    Args:
        runs: The runs of one encoder.
        method: Show only this one and what it is compared with: plain fine-tuning, half and a third of the layers
            trained as such, the recommended recipe. Default: every method.
    """
    depth = depth_of(runs)
    datasets, methods = names_of(runs)
    metrics = {dataset: rows[0]["metric"] for (dataset, _), rows in runs.items()}
    if method is not None:
        methods = ["plain", f"static-{depth // 2}", f"static-{depth // 3}", OURS, method]
    scores: list[Score] = [full_score, score_within(depth // 2), score_within(depth // 3)]
    counts = {len(rows) for (_, name), rows in runs.items() if name in methods}
    same = seeds_if_few(range(min(counts))) if len(counts) == 1 else ""
    body = []
    for method in methods:
        cells = []
        for dataset in datasets:
            rows = runs.get((dataset, method), [])
            found = [scores_of(runs, dataset, method, score) for score in scores]
            means = [f"{statistics.fmean(values):.1f}" if 0 < len(values) == len(rows) else "-" for values in found]
            seeds = "" if same else seeds_if_few(rows)
            cells.append(", ".join(means) + seeds if rows else "")
        body.append([NAMES.get(method, method), *cells])
    return markdown([f"method{same}", *(f"{dataset} ({metrics[dataset]})" for dataset in datasets)], body)


def chart(runs: Runs) -> Figure | None:
    """Points lost at half of the layers, one column per data set; None if there is nothing to draw."""
    datasets = [
        name for name in datasets_of(runs) if any(lost(runs, name, each) for each in rivals(runs, name).values())
    ]
    if not datasets:
        return None
    figure = Figure(figsize=(7.8, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="#24292f", linewidth=1)
    for offset, (role, (name, marker, color)) in zip((-0.15, 0, 0.15), CHART.items(), strict=True):
        places, means, halves = [], [], []
        for place, dataset in enumerate(datasets):
            values = lost(runs, dataset, rivals(runs, dataset)[role])
            if values:
                places.append(place + offset)
                means.append(statistics.fmean(values))
                halves.append(interval(values)[1] if len(values) > 2 else 0.0)
        if places:
            axes.errorbar(places, means, halves, fmt=marker, color=color, label=name, markersize=7, elinewidth=1)
    axes.set_xticks(range(len(datasets)), datasets)
    axes.set_xlim(-0.5, len(datasets) - 0.5)
    axes.set_title("Points above plain fine-tuning with all layers, at half of the layers", loc="left", fontsize=11)
    axes.grid(axis="y", color="#d8dee4", linewidth=0.8)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.legend(frameon=False, fontsize=9.5)
    return figure


def table_of(runs: Runs, gains: Callable[[str, str], Sequence[float]], names: Sequence[str], head: str) -> list[str]:
    """A table of differences, with one row per name and one column per data set; empty rows are left out."""
    datasets = datasets_of(runs)
    body = [[name, *(compared(gains(dataset, name)) for dataset in datasets)] for name in names]
    return markdown([head, *datasets], [row for row in body if any(row[1:])])


def between(runs: Runs, first: str, second: str, dataset: str, score: Score) -> list[float]:
    """Differences of a score between two methods on a data set, for every seed for which both have it."""
    return differences(runs.get((dataset, first), []), runs.get((dataset, second), []), score)


def recommended_against_papers(runs: Runs, earlier: Runs) -> list[str]:
    """The recommended recipe's area minus that of every paper's method, and of two with other rates or heads."""
    runs = with_earlier_papers(runs, earlier)
    names = [*PAPERS, *RIVALS]
    return table_of(runs, lambda dataset, method: between(runs, OURS, method, dataset, third_area), names, "minus")


def with_earlier_papers(runs: Runs, earlier: Runs) -> Runs:
    """The runs, and of the papers' methods that are not among them those of an earlier file, on as many rows."""
    rows = {dataset: validation_of(found[0])["samples"] for (dataset, method), found in runs.items() if method == OURS}
    return {
        (dataset, method): found
        for (dataset, method), found in earlier.items()
        if method in (*PAPERS, *RIVALS) and validation_of(found[0])["samples"] == rows.get(dataset)
    } | dict(runs)


def gain_of_the_head(runs: Runs) -> list[str]:
    """What the recommended head adds to each paper's method."""

    def gains(dataset: str, method: str) -> list[float]:
        return between(runs, f"{method}+head", method, dataset, third_area)

    return table_of(runs, gains, PAPERS, "with the recommended head minus as in its paper")


def gain_of_the_method(runs: Runs) -> list[str]:
    """What is left between the recommended recipe and the papers' methods with the same head."""
    names = [f"{method}+head" for method in PAPERS]
    return table_of(runs, lambda dataset, name: between(runs, OURS, name, dataset, third_area), names, "minus")


def against_static(runs: Runs) -> list[str]:
    """Every method at a mean of K layers minus the model with K layers and one exit, and at full depth."""
    names = [OURS, *PAPERS, *(f"{method}+head" for method in PAPERS)]
    lines = []
    for layers in static_depths(depth_of(runs)):
        gains = partial(over_static, runs, layers)
        lines += [*table_of(runs, gains, names, f"minus static-{layers}, at {layers} layers"), ""]
    return lines[:-1]


def over_static(runs: Runs, layers: int, dataset: str, method: str = OURS, split: str = "validation") -> list[float]:
    """By how many points a method at a mean of so many layers is above the model with so many layers, by seed."""
    return between(runs, method, f"static-{layers}", dataset, score_within(layers, split))


def middle_depths(runs: Runs) -> list[int]:
    """A third, half, and two thirds of the layers."""
    depth = depth_of(runs)
    return [depth // 3, depth // 2, 2 * depth // 3]


def verdicts(gains: Iterable[Sequence[float]]) -> list[str]:
    """The verdicts on the gains on each data set, where there is one."""
    return [found for each in gains if (found := verdict(each))]


def goals(runs: Runs, earlier: Runs) -> list[str]:
    """What the recommended recipe should reach, and on how many of the data sets that were measured it does."""
    papers = with_earlier_papers(runs, earlier)

    def against_papers(dataset: str) -> dict[str, str]:
        return {
            method: verdict(between(papers, OURS, method, dataset, third_area))
            for method in PAPERS
            # Without an area, a method always runs more than a third of the layers.
            if applies(variant_of(method), dataset)
            and all(third_area(row) is not None for row in papers.get((dataset, method), []))
        }

    compared_with = {dataset: against_papers(dataset) for dataset in datasets_of(runs)}
    found = {dataset: each for dataset, each in compared_with.items() if each and "" not in each.values()}
    higher = {dataset: each for dataset, each in found.items() if set(each.values()) == {"higher"}}
    named = "; ".join(f"{dataset}: above {', '.join(each)}" for dataset, each in higher.items())
    body = [
        [
            "area from a third of the layers above every paper's method that has one",
            "5 of 6",
            f"{len(higher)} of {len(found)}{f' ({named})' if named else ''}",
        ]
    ]
    for layers in middle_depths(runs):
        each = verdicts(over_static(runs, layers, dataset) for dataset in datasets_of(runs))
        body.append([f"above static-{layers}, at {layers} layers", "4 of 6", f"{each.count('higher')} of {len(each)}"])
    full = verdicts(between(runs, OURS, "plain", dataset, full_score) for dataset in datasets_of(runs))
    body.append(["full depth not below plain fine-tuning", "all", f"{len(full) - full.count('lower')} of {len(full)}"])
    sound = [met for dataset in datasets_of(runs) if (met := sound_saving(runs, dataset)) is not None]
    body.append(
        [
            "DACT-BERT saves 25 % of the layers at threshold 0 within 1 % of its full depth",
            "2",
            f"{sum(sound)} of {len(sound)}",
        ]
    )
    return markdown(["goal", "wanted, data sets", "reached, of those measured with three seeds"], body)


def sound_saving(runs: Runs, dataset: str) -> bool | None:
    """Whether DACT-BERT saves a quarter of the layers at threshold 0 and loses at most 1 %; None if not measured."""
    savings, losses = [], []
    for row in runs.get((dataset, "dact-bert"), []):
        full = figures(row)["validation"].full
        for point in curve_of(row):
            if point.threshold == 0:
                savings.append(point.saving)
                losses.append(1 - point.score / full)
    if len(savings) < 3:
        return None
    return statistics.fmean(savings) >= 0.25 and statistics.fmean(losses) <= 0.01


def in_short(runs: Runs) -> list[str]:
    """The main results in sentences, all of them computed."""
    depth = depth_of(runs)
    lines = []
    by_role = {
        role: {dataset: lost(runs, dataset, rivals(runs, dataset)[role]) for dataset in datasets_of(runs)}
        for role in CHART
    }
    # Means over other data sets say nothing about the methods.
    shared = [dataset for dataset in datasets_of(runs) if by_role["static"][dataset] and by_role[OURS][dataset]]
    for role, (name, *_) in CHART.items():
        means = [statistics.fmean(values) for dataset in shared if (values := by_role[role][dataset])]
        if means and len(means) == len(shared):
            lines.append(
                f"- At {depth // 2} of {depth} layers, *{name}* is {statistics.fmean(means):+.1f} points from plain "
                f"fine-tuning with all layers, mean of {len(means)} data set{'s' * (len(means) > 1)} (from "
                f"{min(means):+.1f} to {max(means):+.1f})."
            )
    for layers in dict.fromkeys(middle_depths(runs)):
        gains = [found for dataset in datasets_of(runs) if (found := over_static(runs, layers, dataset))]
        if gains:
            means = [statistics.fmean(found) for found in gains]
            lines.append(
                f"- Recommended recipe minus `static-{layers}`, at {layers} layers: {statistics.fmean(means):+.1f} "
                f"points, mean of {len(means)} data set{'s' * (len(means) > 1)} (from {min(means):+.1f} to "
                f"{max(means):+.1f})."
            )
        each = verdicts(gains)
        if each:
            lines[-1] += f" With three seeds, it {counted(each)}."
    return lines or [NOTHING]


def counted(each: Sequence[str]) -> str:
    """Verdicts in words.

    >>> counted(["higher", "no difference seen", "higher"])
    'is better on 2, worse on 0, and not seen to differ on 1 of 3 data sets'
    """
    higher, lower, neither = (each.count(name) for name in ("higher", "lower", "no difference seen"))
    return f"is better on {higher}, worse on {lower}, and not seen to differ on {neither} of {len(each)} data sets"


NOTHING = (
    "Not measured yet with this version and this encoder; version 0.1.0 measured [all-MiniLM-L6-v2](RESULTS_0.1.0.md)."
)


def prices(runs: Runs) -> list[str]:
    """Training cost and size of one model with exits, beside those of models with one exit for each depth."""
    depths, body = static_depths(depth_of(runs)), []

    def mean(dataset: str, method: str, figure: Callable[[Row], float | None]) -> float | None:
        # Seconds are null where other programs ran beside the training.
        found = [figure(row) for row in runs.get((dataset, method), []) if "training" in row]
        values = [value for value in found if value is not None]
        return statistics.fmean(values) if values else None

    for dataset in datasets_of(runs):
        cells = []
        for figure, digits in (
            (lambda row: row["training"]["seconds"], 0),
            (lambda row: row["training"]["optimizer_steps"], 0),
            (lambda row: row["bytes"] / 1e6, 1),
        ):
            plain, exits = (mean(dataset, method, figure) for method in ("plain", OURS))
            static = [mean(dataset, f"static-{layers}", figure) for layers in depths]
            together = None if None in static else sum(value for value in static if value is not None)
            cells += ["" if value is None else f"{value:.{digits}f}" for value in (plain, exits, together)]
        if any(cells):
            body.append([dataset, *cells])
    names = ["plain", "recommended", f"static-{', '.join(map(str, depths))} together"]
    head = [f"{what}: {name}" for what in ("seconds of training", "optimizer steps", "MB") for name in names]
    if not body:
        return []
    columns = [column for column in zip(["data set", *head], *body, strict=True) if any(column[1:])]
    first_line, *lines = zip(*columns, strict=True)
    return markdown(first_line, lines)


OF_RUNS = (
    in_short, at_half, on_test_sets, gain_of_the_head, gain_of_the_method, against_static, prices,
)  # fmt: skip
