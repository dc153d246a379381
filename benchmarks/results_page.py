r"""Write benchmarks/RESULTS.md and its figures from the recorded runs of `compare_methods.py`.

    python benchmarks/results_page.py benchmarks/results_by_method.jsonl --speed benchmarks/inference_speed.jsonl \
        --ponder_costs benchmarks/dact_ponder_costs.jsonl --earlier benchmarks/comparison.jsonl \
        --pages README.md docs/results.md model_cards/[a-z]*.md

Every number and every verdict on the page is computed from the lines of these files, so run the command again when
there are more lines; what was not run is empty. The text around the tables is in results_template.md. RESULTS.md and
the figures are written to the folder of the results file. If there are runs of several encoders, RESULTS.md is that of
the one with the most lines, and each other encoder has a page named after it. Methods are compared by seed: they
differ if the 95 % interval of their differences (Student's t) excludes zero.
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
import results_first as first
import results_savings as savings
from compare_methods import applies, variant_of, whole_lines
from comparison_tables import LEGEND, figures, markdown, measured, seeds_if_few, tables
from matplotlib import rc_context
from matplotlib.figure import Figure
from results_figures import NAMES, PAPERS, ROWS, Row, Runs, area, by_encoder, by_method, curve_of, depth_of, names_of

from adaexit_hf.evaluation.curves import Point, mean_curve
from adaexit_hf.visualization.figures import comparison_figure

MARK = "<!-- written by benchmarks/results_page.py -->"
SHOWN = 0.15  # figures show scores down to this much below the best
TEMPLATE = Path(__file__).with_name("results_template.md")


def setting(rows: Sequence[Row]) -> list[str]:
    """Lines with encoder, seeds, hours, machines and versions."""
    models = sorted({row["model"] for row in rows})
    versions = sorted({", ".join(f"{name} {number}" for name, number in row["versions"].items()) for row in rows})
    machines = sorted({machine_of(row) for row in rows})
    half = sum("--bf16" in row["settings"] for row in rows)
    seconds = [row["seconds"] for row in rows if row["seconds"]]  # not recorded in early lines
    hours = f", {sum(seconds) / 3600:.1f} hours for the {len(seconds)} runs with a recorded time" if seconds else ""
    return [
        f"- Encoder: {', '.join(models)}.",
        f"- {len(rows)} runs, seeds {min(row['seed'] for row in rows)} to {max(row['seed'] for row in rows)}{hours}.",
        f"- Machine: {'; '.join(machines)}.",
        f"- Precision: bf16 in {half} runs, fp32 in {len(rows) - half}.",
        f"- Versions: {'; '.join(versions)}.",
    ]


def machine_of(row: Row) -> str:
    """The machine of a run in words."""
    machine = row["machine"]
    flags = "".join(f"{flag}, " for flag in machine.get("cpu_flags", []))  # not recorded in early lines
    return f"{machine['processor']} ({flags}{machine['threads']} threads per run), GPU: {machine['gpu']}"


def areas(runs: Runs, share: float) -> list[str]:
    """Table of the mean score between a fraction of the layers and all layers."""
    datasets, methods = names_of(runs)
    body = []
    for method in methods:
        cells = []
        for dataset in datasets:
            rows = [row for row in runs.get((dataset, method), []) if curve_of(row)]
            by_seed = [area(row, share * figures(row)["validation"].depth) for row in rows]
            values = [value for value in by_seed if value is not None]
            if len(values) < len(by_seed):
                cells.append(f"starts later ({len(by_seed) - len(values)} of {len(by_seed)} seeds)")
            else:
                cells.append(measured(values, 1) + seeds_if_few(values) if values else "")
        if any(cells):
            body.append([ROWS.get(method, method), *cells])
    return markdown(["method", *datasets], body)


def summary(runs: Runs) -> list[str]:
    """One table for all data sets: score at full depth -> with exits, and mean layers with exits."""
    datasets, methods = names_of(runs)
    metrics = {
        dataset: next(rows[0]["metric"] for (name, _), rows in runs.items() if name == dataset) for dataset in datasets
    }
    body = []
    for method in methods:
        if method not in ROWS and has_exits(method):  # a variant that only one section of the page needs
            continue
        cells = []
        for dataset in datasets:
            validation = [figures(row)["validation"] for row in runs.get((dataset, method), [])]
            if not validation:
                cells.append("" if applies(variant_of(method), dataset) else "-")
                continue
            full, exits, layer = (
                statistics.fmean(getattr(run, name) for run in validation) for name in ("full", "exits", "layer")
            )
            score = f"{100 * full:.1f}" + (
                f" -> {100 * exits:.1f}, {layer:.2f}" if has_exits(method) else f", {layer:.0f}"
            )
            cells.append(score + seeds_if_few(validation))
        body.append([ROWS.get(method, method), *cells])
    return markdown(["method", *[f"{dataset} ({metrics[dataset]})" for dataset in datasets]], body)


def has_exits(method: str) -> bool:
    """Whether a method has several exits, or is a model of which any number of layers can be kept.

    >>> [name for name in ("plain", "static-3", "layerdrop", "pabee") if has_exits(name)]
    ['layerdrop', 'pabee']
    """
    variant = variant_of(method)
    if variant.method == "plain":
        return "--layer_drop" in variant.flags
    layers = variant.config.get("exit_layers")
    return layers is None or len(layers) > 1


def card_table(runs: Runs, method: str) -> list[str]:
    """The table in a method's card: its validation scores beside those of the encoder without exits."""
    body = []
    for dataset in names_of(runs)[0]:
        rows = runs.get((dataset, method), [])
        seeds = {row["seed"] for row in rows}
        plain = [row for row in runs.get((dataset, "plain"), []) if row["seed"] in seeds]
        if len(plain) == len(rows) > 0:
            with_exits, without = ([figures(row)["validation"] for row in group] for group in (rows, plain))
            columns = [
                [run.full for run in without], [run.full for run in with_exits], [run.exits for run in with_exits]
            ]  # fmt: skip
            layers = [run.layer for run in with_exits]
            saved = measured([100 * (1 - layer / with_exits[0].depth) for layer in layers], 0)
            body.append(
                [f"{dataset} ({rows[0]['metric']})", str(len(rows)),
                 *(measured([100 * score for score in scores], 1) for scores in columns),
                 measured(layers, 2), f"{saved} %"]
            )  # fmt: skip
    head = ["task (metric)", "seeds", "plain encoder", "full depth", "with exits", "mean exit layer", "layers saved"]
    return markdown(head, body)


def tables_of(page: Path, runs: Runs, earlier: Runs, others: Sequence[Runs] = ()) -> list[list[str]]:
    """The tables of a page: in a card its method, in README.md the recipe on test sets, elsewhere all and a summary.

    The papers' methods are shown by earlier runs if there are any, since they have more of them. `others` are the runs
    of other encoders, each with a table, in a card those in which its method was run.
    """
    if page.stem in PAPERS:
        deeper = [first.scores_by_depth(each, page.stem) for each in others if page.stem in names_of(each)[1]]
        return [*deeper, card_table(earlier or runs, page.stem)]
    if page.name == "README.md":
        return [first.on_test_sets(runs, with_differences=False)]
    deeper = [first.scores_by_depth(each) for each in others]
    against = first.recommended_against_papers(runs, earlier)
    return [first.on_test_sets(runs), first.beside_fewer_layers(runs), against, *deeper, summary(earlier or runs)]


def write_tables(page: Path, runs: Runs, earlier: Runs, others: Sequence[Runs] = ()) -> None:
    """Replace the tables of a page, each between two marks.

    Raises:
        ValueError: The page does not have two marks for every table.
    """
    parts, tables = page.read_text().split(MARK), tables_of(page, runs, earlier, others)
    if len(parts) != 2 * len(tables) + 1:
        raise ValueError(
            f"pages: {page} does not have {2 * len(tables)} lines '{MARK}'; add two of them where each of "
            f"{len(tables)} tables should be"
        )
    parts[1::2] = ["\n".join(["\n", *table, "\n"]) for table in tables]
    page.write_text(MARK.join(parts))


def save(figure: Figure, path: Path) -> None:
    """Write a figure, the same bytes whenever it is drawn."""
    with rc_context({"svg.hashsalt": path.name}):  # without it the names inside the file are random
        figure.savefig(path, metadata={"Date": None})


def draw(runs: Runs, folder: Path, prefix: str) -> list[str]:
    """Draw one figure per data set, and return the lines of the page that show them."""
    datasets, methods = names_of(runs)
    lines = []
    for dataset in datasets:
        curves: dict[str, Sequence[Point]] = {}
        for method, name in NAMES.items():
            by_seed = [curve for row in runs.get((dataset, method), []) if (curve := curve_of(row))]
            curves[name + seeds_if_few(by_seed)] = mean_curve(by_seed) if by_seed else []
        if not any(curves.values()):
            continue
        fixed: dict[str, tuple[float, float]] = {}
        for method in methods:
            validation = [figures(row)["validation"] for row in runs.get((dataset, method), [])]
            if validation and not has_exits(method):
                fixed[method.removeprefix("static-")] = (
                    validation[0].layer,
                    statistics.fmean(run.full for run in validation),
                )
        rows = [row for method in methods for row in runs.get((dataset, method), [])]
        metric, depth = rows[0]["metric"], max(figures(row)["validation"].depth for row in rows)
        picture = f"{prefix}_{dataset}.svg"
        scores = [point.score for curve in curves.values() for point in curve]
        lowest = max(scores) - SHOWN
        cut = (
            f" Scores more than {100 * SHOWN:.0f} points below the best are not shown." if min(scores) < lowest else ""
        )
        figure = comparison_figure(
            curves, metric, depth, fixed, f"{dataset}, validation, mean of seeds", lowest if cut else None
        )
        save(figure, folder / picture)
        lines += [
            f"![{metric} over layers run on {dataset}, one line per method]({picture})",
            "",
            f"*{dataset}: {metric} on the validation set over the mean number of layers per text, at every threshold; "
            f"mean of three seeds, unless the legend says otherwise.{cut} Diamonds are models with one exit, "
            "a number K is `static-K`.*",
            "",
        ]
    return lines


def chart(runs: Runs, folder: Path, prefix: str) -> list[str]:
    """Draw what is lost at half of the layers, and return the line of the page that shows it."""
    figure = first.chart(runs)
    if figure is None:
        return [first.NOTHING]
    picture = f"{prefix}_half_of_the_layers.svg"
    save(figure, folder / picture)
    return [f"![What each method loses at half of the layers, per data set; the numbers are in the table]({picture})"]


def page(
    runs: Runs,
    speed: Sequence[Row],
    folder: Path,
    prefix: str = "results",
    ponder_costs: Sequence[Row] = (),
    earlier: Runs | None = None,
) -> str:
    """The text of the page; its figures, whose names start with the prefix, are written to the folder."""
    datasets, methods = names_of(runs)
    rows = [row for rows in runs.values() for row in rows]
    seeds = sorted({row["seed"] for row in rows})
    keys = {
        (dataset, method): [(dataset, method, seed) for seed in seeds if applies(variant_of(method), dataset)]
        for dataset in datasets
        for method in methods
    }
    by_key = {(row["dataset"], row["method"], row["seed"]): row for row in rows}
    lines = tables(keys, by_key).removeprefix(LEGEND).strip().splitlines()
    # A line that is no table row is the title of a table.
    with_titles = [line if line.startswith("|") or not line else f"### {line[:1].upper()}{line[1:]}" for line in lines]
    model = next(row["model"] for row in rows if "@" not in row["method"])
    flags = " ".join(flag for flag in ("--bf16", "--use_cpu") if all(flag in row["settings"] for row in rows))
    command = [
        f"python benchmarks/compare_methods.py --datasets {' '.join(datasets)} --seeds {len(seeds)} --jobs 2 \\",
        f"    --methods {shlex.join(methods)} \\",
        f"    --model_name_or_path {model} --exit_pooling mean \\",
        f"    --results benchmarks/results_by_method.jsonl -- {flags}  # runs what is missing",
        "# On a GPU: nine data sets, all methods, five seeds; the same command continues what was stopped.",
        f"python benchmarks/compare_methods.py --grid full --model_name_or_path {model} --exit_pooling mean \\",
        "    --results benchmarks/results_by_method.jsonl -- --bf16",
        "python benchmarks/results_page.py benchmarks/results_by_method.jsonl \\",
        "    --speed benchmarks/inference_speed.jsonl --ponder_costs benchmarks/dact_ponder_costs.jsonl \\",
        "    --earlier benchmarks/comparison.jsonl \\",
        "    --pages README.md docs/results.md model_cards/[a-z]*.md",
    ]
    parts = {
        "encoder": [model.split("/")[-1]],
        "layers": [str(depth_of(runs))],
        "chart": chart(runs, folder, prefix),
        "setting": setting(rows),
        "command": command,
        "legend": [f"{LEGEND[:1].upper()}{LEGEND[1:]}"],
        "tables": with_titles,
        "pictures": draw(runs, folder, prefix),
        "areas_from_a_third": areas(runs, 1 / 3),
        "areas_from_half": areas(runs, 1 / 2),
        "saving_on_the_clock": savings.saving_on_the_clock(speed),
        "heads": savings.heads(),
        "goals": first.goals(runs, earlier or {}),
        "recommended_against_papers": first.recommended_against_papers(runs, earlier or {}),
        "depth_by_ponder_cost": savings.depth_by_ponder_cost(ponder_costs),
        "saving_at_the_exact_rule": savings.saving_at_the_exact_rule(ponder_costs),
    }
    parts |= {claim.__name__: claim(runs) for claim in (*first.OF_RUNS, *claims.OF_RUNS, *savings.OF_RUNS)}
    texts = {name: first.NOTHING if is_empty(lines) else "\n".join(lines) for name, lines in parts.items()}
    return Template(TEMPLATE.read_text()).substitute(texts)


def is_empty(lines: Sequence[str]) -> bool:
    """Whether there is nothing, or nothing but the heads of tables.

    >>> is_empty(markdown(["a"], [])), is_empty(markdown(["a"], [["1"]])), is_empty([])
    (True, False, True)
    """
    parts = "\n".join(lines).split("\n\n")
    return all(not part.strip() or part.startswith("|") and part.count("\n") == 1 for part in parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, its figures, and the tables of other pages; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="Results file of compare_methods.py, JSON lines.")
    parser.add_argument("--speed", type=Path, help="Output of inference.py, JSON lines.")
    parser.add_argument("--ponder_costs", type=Path, help="Output of dact_ponder_costs.py, JSON lines.")
    parser.add_argument("--earlier", type=Path, help="Results file of version 0.1.0, JSON lines.")
    parser.add_argument("--output", type=Path, help="Folder to write to. Default: that of the results file.")
    parser.add_argument(
        "--pages",
        type=Path,
        nargs="*",
        default=[],
        help="Pages in which to replace the table: README.md, docs/results.md and the method cards.",
    )
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    makers = {
        options.results: "compare_methods.py --results",
        options.speed: "inference.py --output",
        options.ponder_costs: "dact_ponder_costs.py --results",
        options.earlier: "compare_methods.py --results",
    }
    for path, maker in makers.items():
        if path is not None and not path.is_file():
            parser.error(f"{path}: there is no such file; run {maker} {path}")
    rows = list(whole_lines(options.results))
    speed = [json.loads(line) for line in options.speed.read_text().splitlines()] if options.speed else []
    ponder_costs = list(whole_lines(options.ponder_costs)) if options.ponder_costs else []
    earlier_rows = list(whole_lines(options.earlier)) if options.earlier else []
    earlier = by_method(next(iter(by_encoder(earlier_rows).values()), []))
    if not rows:
        parser.error(f"{options.results}: has no results; run compare_methods.py --results {options.results}")
    folder = options.output or options.results.parent
    folder.mkdir(parents=True, exist_ok=True)
    groups = by_encoder(rows)
    runs_of = {encoder: by_method(lines) for encoder, lines in groups.items()}
    for place, (encoder, runs) in enumerate(runs_of.items()):
        lines, name = groups[encoder], encoder.split("/")[-1]
        shown = {id(row) for rows in runs.values() for row in rows}
        left_out = sorted({f"{row['dataset']} {row['method']}" for row in lines if id(row) not in shown})
        if left_out:
            message = "lines of other settings or of the same seed in another precision are left out"
            print(f"{message}: {', '.join(left_out)}", file=sys.stderr)
        file, prefix = (f"RESULTS_{name}.md", f"results_{name}") if place else ("RESULTS.md", "results")
        (folder / file).write_text(
            page(runs, speed, folder, prefix, ponder_costs, {} if place else earlier).rstrip() + "\n"
        )
        for path in [] if place else options.pages:
            write_tables(path, runs, earlier, list(runs_of.values())[1:])
        print(folder / file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
