"""Draw the README's chart from the recorded runs: score over mean layers, for some methods and models with one exit.

    python benchmarks/readme_figure.py benchmarks/results_by_method.jsonl

The chart, tradeoff.svg, is written to the folder of the results file. Its background is transparent, and its colours
are readable on white and on black.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from compare_methods import whole_lines
from comparison_tables import figures
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results_figures import Runs, by_encoder, by_method, curve_of

from adaexit_hf.evaluation import mean_curve

NAME = "tradeoff.svg"
# Contrast of at least 3 : 1 on white and on GitHub's dark background.
INK, FAINT = "#768390", "#76839055"
METHODS = {
    "recommended": ("recommended", "#d4762c"),
    "fastbert": ("FastBERT", "#2da44e"),
    "deebert": ("DeeBERT", "#388bfd"),
}
BASELINES = {"static-2": "2 layers", "static-3": "3 layers", "static-4": "4 layers", "static-6": "6 layers"}
PANELS = {"trec": "TREC, accuracy (%)", "mrpc": "MRPC, F1 (%)"}
SHOWN = {"trec": (88, 96), "mrpc": (82, 87.5)}  # percent
SIZE = (7.8, 3.2)  # inches


def draw_panel(axes: Axes, runs: Runs, dataset: str) -> None:
    """Draw the curves of one data set, mean of seeds, and a diamond for every model with one exit."""
    axes.set_title(PANELS[dataset], loc="left", fontsize=11, color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    for method, (name, color) in METHODS.items():
        rows = runs.get((dataset, method), [])
        if not rows:
            print(f"{NAME}: no runs of {method} on {dataset}", file=sys.stderr)
            continue
        curve = mean_curve([curve_of(row) for row in rows])
        layers, scores = [point.mean_layers for point in curve], [100 * point.score for point in curve]
        axes.plot(layers, scores, color=color, linewidth=2.2, label=name)
    for method, name in BASELINES.items():
        validation = [figures(row)["validation"] for row in runs.get((dataset, method), [])]
        if not validation:
            print(f"{NAME}: no runs of {method} on {dataset}", file=sys.stderr)
            continue
        layer, score = validation[0].layer, 100 * statistics.fmean(run.full for run in validation)
        axes.plot(layer, score, "D", color=INK, markersize=7, zorder=3)
        last = layer == 6  # its label is above and to the left, those of the others below and to the right
        axes.annotate(
            name, (layer, score), (0, 9) if last else (8, -3), textcoords="offset points", color=INK, fontsize=9.5,
            ha="right" if last else "left", va="bottom" if last else "top",
        )  # fmt: skip
    axes.set_ylim(*SHOWN[dataset])
    axes.set_xticks(range(1, 7))
    axes.set_xlabel("mean layers run per text, of 6", color=INK, fontsize=10)
    axes.tick_params(length=0, labelcolor=INK, labelsize=9.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.set_axisbelow(True)


def draw(runs: Runs) -> Figure:
    """Draw the chart."""
    figure = Figure(figsize=SIZE, layout="constrained")
    figure.patch.set_alpha(0)
    for axes, dataset in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        axes.patch.set_alpha(0)
        draw_panel(axes, runs, dataset)
    figure.axes[0].legend(loc="lower right", bbox_to_anchor=(1, 0.02), frameon=False, labelcolor=INK, fontsize=10)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the chart; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="Results file of compare_methods.py, JSON lines.")
    parser.add_argument("--output", type=Path, help="Folder to write to. Default: that of the results file.")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if not options.results.is_file():
        parser.error(f"{options.results}: there is no such file; run compare_methods.py --results {options.results}")
    rows = next(iter(by_encoder(list(whole_lines(options.results))).values()))
    path = (options.output or options.results.parent) / NAME
    with rc_context({"svg.hashsalt": NAME}):  # without it the names inside the file are random
        draw(by_method(rows)).savefig(path, metadata={"Date": None})
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
