r"""Write benchmarks/RESULTS.md and its figures: what the runs of `compare_methods.py` say, in numbers of their own.

    python benchmarks/results_page.py benchmarks/comparison.jsonl --speed benchmarks/inference_speed.jsonl \
        --pages README.md docs/results.md model_cards/[a-z]*.md

Every result and every verdict on the page is computed from the lines of those files, so the page is written anew,
whole, whenever there are more of them; the words around them are those of results_template.md. Methods are compared by
seed: two differ where the 95 % interval of their differences (Student's t) leaves out zero.
"""

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

import results_claims as claims
import results_savings as savings
from compare_methods import applies, variant_of, whole_lines
from comparison_tables import LEGEND, figures, markdown, measured, seeds_if_few, tables
from matplotlib import rc_context
from results_figures import NAMES, Row, Runs, area, by_method, curve_of, names_of

from adaexit_hf.evaluation.curves import CurvePoint, mean_curve
from adaexit_hf.visualization.figures import comparison_figure

MARK = "<!-- written by benchmarks/results_page.py -->"
SHOWN = 0.15  # of the score, below the best
# What the README's table shows of the runs; docs/results.md shows all.
README_DATASETS = ("trec", "mrpc", "stsb")
README_METHODS = ("static-6", "static-3", *NAMES)
TEMPLATE = Path(__file__).with_name("results_template.md")


def setting(rows: Sequence[Row]) -> list[str]:
    """What ran where: encoder, versions, machines, seeds, hours."""
    models = sorted({row["model"] for row in rows})
    versions = sorted({", ".join(f"{name} {number}" for name, number in row["versions"].items()) for row in rows})
    machines = sorted(
        {f"{row['machine']['processor']} ({row['machine']['threads']} threads a run), GPU: {row['machine']['gpu']}"
         for row in rows}
    )  # fmt: skip
    timed = [row["seconds"] for row in rows if row["seconds"]]  # early lines have none
    return [
        f"- Encoder: {', '.join(models)}.",
        f"- {len(rows)} runs, seeds {min(row['seed'] for row in rows)} to {max(row['seed'] for row in rows)}, "
        f"{sum(timed) / 3600:.1f} hours in the {len(timed)} of them that have their time.",
        f"- Machine: {'; '.join(machines)}.",
        f"- Versions: {'; '.join(versions)}.",
    ]


def areas(runs: Runs, share: float) -> list[str]:
    """Table of the mean score between a share of the layers and all of them."""
    datasets, methods = names_of(runs)
    body = []
    for method in methods:
        cells = []
        for dataset in datasets:
            rows = [row for row in runs.get((dataset, method), []) if curve_of(row)]
            found = [area(row, share * figures(row)["validation"].depth) for row in rows]
            values = [value for value in found if value is not None]
            if len(values) < len(found):
                cells.append(f"starts later ({len(found) - len(values)} of {len(found)} seeds)")
            else:
                cells.append(measured(values, 1) + seeds_if_few(values) if values else "")
        if any(cells):
            body.append([NAMES.get(method, method), *cells])
    return markdown(["method", *datasets], body)


def summary(runs: Runs, only_datasets: Sequence[str] = (), only_methods: Sequence[str] = ()) -> list[str]:
    """One table: score at full depth -> with exits, and mean layers with exits.

    Args:
        runs: lines by data set and method.
        only_datasets: in their order. Default: all that were run.
        only_methods: leave out all others. Default: none is left out.
    """
    datasets, methods = names_of(runs)
    datasets = [name for name in only_datasets or datasets if name in datasets]
    methods = [name for name in methods if not only_methods or name in only_methods]
    metrics = {
        dataset: next(rows[0]["metric"] for (name, _), rows in runs.items() if name == dataset) for dataset in datasets
    }
    body = []
    for method in methods:
        if method not in NAMES and has_exits(method):  # a variant, for one section of the page
            continue
        cells = []
        for dataset in datasets:
            told = [figures(row)["validation"] for row in runs.get((dataset, method), [])]
            if not told:
                cells.append("" if applies(variant_of(method), dataset) else "-")
                continue
            full, exits, layer = (
                statistics.fmean(getattr(run, name) for run in told) for name in ("full", "exits", "layer")
            )
            score = f"{100 * full:.1f}" + (
                f" -> {100 * exits:.1f}, {layer:.2f}" if has_exits(method) else f", {layer:.0f}"
            )
            cells.append(score + seeds_if_few(told))
        body.append([NAMES.get(method, method), *cells])
    return markdown(["method", *[f"{dataset} ({metrics[dataset]})" for dataset in datasets]], body)


def has_exits(method: str) -> bool:
    """Exits besides the one at the end, or a choice of layers to keep.

    >>> [name for name in ("plain", "static-3", "layerdrop", "pabee") if has_exits(name)]
    ['layerdrop', 'pabee']
    """
    variant = variant_of(method)
    if variant.method == "plain":
        return "--layer_drop" in variant.flags
    layers = variant.config.get("exit_layers")
    return layers is None or len(layers) > 1


def card_table(runs: Runs, method: str) -> list[str]:
    """What a method's card shows: its validation scores beside those of the encoder without exits."""
    body = []
    for dataset in names_of(runs)[0]:
        rows = runs.get((dataset, method), [])
        seeds = {row["seed"] for row in rows}
        plain = [row for row in runs.get((dataset, "plain"), []) if row["seed"] in seeds]
        if len(plain) == len(rows) > 0:
            told, without = ([figures(row)["validation"] for row in each] for each in (rows, plain))
            scores = [[run.full for run in without], [run.full for run in told], [run.exits for run in told]]
            layers = [run.layer for run in told]
            saved = measured([100 * (1 - layer / told[0].depth) for layer in layers], 0)
            body.append(
                [f"{dataset} ({rows[0]['metric']})", str(len(rows)),
                 *(measured([100 * score for score in each], 1) for each in scores), measured(layers, 2), f"{saved} %"]
            )  # fmt: skip
    head = ["task (metric)", "seeds", "plain encoder", "full depth", "with exits", "mean exit layer", "layers saved"]
    return markdown(head, body)


def write_table(page: Path, runs: Runs) -> None:
    """Write the table anew that a page has: a method's card that of its method, README a part, any other page all.

    Raises:
        ValueError: it has no place for it.
    """
    parts = page.read_text().split(MARK)
    if len(parts) != 3:
        raise ValueError(f"pages: {page} has no two lines '{MARK}', between which the table goes; add them")
    if page.stem in NAMES:
        table = card_table(runs, page.stem)
    elif page.name == "README.md":
        table = summary(runs, README_DATASETS, README_METHODS)
    else:
        table = summary(runs)
    parts[1] = "\n".join(["\n", *table, "\n"])
    page.write_text(MARK.join(parts))


def draw(runs: Runs, folder: Path) -> list[str]:
    """A figure per data set; returns the lines that show them."""
    datasets, methods = names_of(runs)
    lines = []
    for dataset in datasets:
        curves: dict[str, list[CurvePoint]] = {}
        for method, name in NAMES.items():
            known = [curve for row in runs.get((dataset, method), []) if (curve := curve_of(row))]
            curves[name + seeds_if_few(known)] = mean_curve(known) if known else []
        if not any(curves.values()):
            continue
        fixed: dict[str, tuple[float, float]] = {}
        for method in methods:
            told = [figures(row)["validation"] for row in runs.get((dataset, method), [])]
            if told and not has_exits(method):
                fixed[method] = (told[0].layer, statistics.fmean(run.full for run in told))
        everything = [row for method in methods for row in runs.get((dataset, method), [])]
        metric, depth = everything[0]["metric"], max(figures(row)["validation"].depth for row in everything)
        picture = f"results_{dataset}.svg"
        scores = [point.score for curve in curves.values() for point in curve]
        lowest = max(scores) - SHOWN
        cut = f" What is {100 * SHOWN:.0f} points below the best is cut off." if min(scores) < lowest else ""
        figure = comparison_figure(
            curves, metric, depth, fixed, f"{dataset}, validation, mean of seeds", lowest if cut else None
        )
        with rc_context({"svg.hashsalt": picture}):  # else every drawing has other names inside
            figure.savefig(folder / picture, metadata={"Date": None})
        lines += [
            f"![{metric} over layers run on {dataset}, one line per method]({picture})",
            "",
            f"*{dataset}: {metric} on the validation set against mean layers run per text, at every threshold; mean "
            f"of three seeds, unless the legend says otherwise.{cut} Diamonds: models with one exit.*",
            "",
        ]
    return lines


def page(runs: Runs, speed: Sequence[Row], folder: Path) -> str:
    """The whole page."""
    datasets, methods = names_of(runs)
    rows = [row for each in runs.values() for row in each]
    seeds = sorted({row["seed"] for row in rows})
    keys = {
        (dataset, method): [(dataset, method, seed) for seed in seeds if applies(variant_of(method), dataset)]
        for dataset in datasets
        for method in methods
    }
    by_key = {(row["dataset"], row["method"], row["seed"]): row for row in rows}
    told = tables(keys, by_key).removeprefix(LEGEND).strip().splitlines()
    headed = [
        line if line.startswith("|") or not line else f"### {line[:1].upper()}{line[1:]}" for line in told
    ]  # what the tables call themselves
    command = [
        f"python benchmarks/compare_methods.py --datasets {' '.join(datasets)} --seeds 3 --jobs 2 \\",
        f"    --methods {shlex.join(methods)} \\",
        "    --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --exit_pooling mean \\",
        "    --results benchmarks/comparison.jsonl -- --bf16 --use_cpu  # runs what is missing",
        "python benchmarks/results_page.py benchmarks/comparison.jsonl --speed benchmarks/inference_speed.jsonl \\",
        "    --pages README.md docs/results.md model_cards/[a-z]*.md",
    ]
    parts = {
        "setting": setting(rows),
        "command": command,
        "legend": [f"{LEGEND[:1].upper()}{LEGEND[1:]}"],
        "tables": headed,
        "pictures": draw(runs, folder),
        "areas_from_a_third": areas(runs, 1 / 3),
        "areas_from_half": areas(runs, 1 / 2),
        "saving_on_the_clock": savings.saving_on_the_clock(speed),
        "heads": savings.heads(),
    }
    parts |= {claim.__name__: claim(runs) for claim in (*claims.OF_RUNS, *savings.OF_RUNS)}
    return Template(TEMPLATE.read_text()).substitute({name: "\n".join(lines) for name, lines in parts.items()})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON lines of compare_methods.py.")
    parser.add_argument("--speed", type=Path, help="JSON lines of benchmark_inference.py.")
    parser.add_argument("--output", type=Path, help="Folder. Default: that of the results.")
    parser.add_argument(
        "--pages",
        type=Path,
        nargs="*",
        default=[],
        help="Also write the tables of README.md, docs/results.md and the method cards anew.",
    )
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    for path in filter(None, (options.results, options.speed)):
        if not path.is_file():
            maker = "compare_methods.py --results" if path == options.results else "benchmark_inference.py --output"
            parser.error(f"{path}: no such file; run {maker} {path}")
    rows = list(whole_lines(options.results))
    speed = [json.loads(line) for line in options.speed.read_text().splitlines()] if options.speed else []
    if not rows:
        parser.error(f"{options.results}: has no lines; run compare_methods.py --results {options.results}")
    encoders = {row["model"] for row in rows if "@" not in row["method"]}
    if len(encoders) > 1:
        parser.error(
            f"{options.results}: has runs of {', '.join(sorted(encoders))}; a page compares methods on one encoder, "
            "pass lines of one"
        )
    folder = options.output or options.results.parent
    folder.mkdir(parents=True, exist_ok=True)
    runs = by_method(rows)
    left_out = len(rows) - sum(map(len, runs.values()))
    if left_out:
        print(f"{left_out} lines of earlier recipes left out", file=sys.stderr)
    (folder / "RESULTS.md").write_text(page(runs, speed, folder).rstrip() + "\n")
    for path in options.pages:
        write_table(path, runs)
    print(folder / "RESULTS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
