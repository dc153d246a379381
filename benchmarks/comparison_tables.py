"""Markdown tables of methods by data sets, from the lines that `compare_methods.py` writes."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from scipy.stats import t as student_t

from adaexit_hf.data.tasks import TASKS

LEGEND = "full depth -> with exits, in percent; ± half the width of the 95 % interval over seeds (Student's t)"
Row = Mapping[str, Any]


class Figures(NamedTuple):
    """What a table tells of one run on one split; the scores are those of the headline metric."""

    full: float
    exits: float
    layer: float
    depth: int


def figures(row: Row) -> dict[str, Figures]:
    """By split; the one that the threshold was chosen on, the first, is called validation."""
    metric = row["metric"]
    return {
        "validation" if index == 0 else split: Figures(
            result["full_depth"][metric],
            result["at_threshold"][metric],
            result["mean_exit_layer"],
            max(map(int, result["by_exit"])),
        )
        for index, (split, result) in enumerate(row["results"].items())
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t); NaN for one value.

    >>> [round(value, 4) for value in interval([0.7, 0.8, 0.9])]
    [0.8, 0.2484]
    """
    if len(values) == 1:
        return values[0], float("nan")
    scale = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(student_t.ppf(0.975, len(values) - 1)) * scale


def measured(values: Sequence[float], digits: int) -> str:
    """The mean with its interval.

    >>> measured([70, 80, 90], 1), measured([70], 0)
    ('80.0 ± 24.8', '70')
    """
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def seeds_if_few(values: Sequence[Any]) -> str:
    """How many seeds stand behind a figure, where they are not three.

    >>> seeds_if_few([1.0]), seeds_if_few([1.0, 2.0]), seeds_if_few([1.0, 2.0, 3.0])
    (' (1 seed)', ' (2 seeds)', '')
    """
    return "" if len(values) > 2 else f" ({len(values)} seed{'s' * (len(values) > 1)})"


def describe(runs: Sequence[Figures], depth: int, note: str) -> list[str]:
    """Score at full depth -> with exits, mean exit layer, share saved of an encoder with `depth` layers.

    >>> describe([Figures(0.86, 0.85, 3.0, 6)], 6, " (n=1)")
    ['86.0 -> 85.0 (n=1)', '3.00', '50 %']
    """
    if not runs:
        return [note, "", ""]
    full, exits = (measured([100 * score for score in scores], 1) for scores in list(zip(*runs, strict=True))[:2])
    layers = [run.layer for run in runs]
    saved = measured([100 * (1 - layer / depth) for layer in layers], 0)
    return [(full if exits == full else f"{full} -> {exits}") + note, measured(layers, 2), f"{saved} %"]


def note_of(keys: Sequence[Any], rows: Mapping[Any, Row], failed: Iterable[Any]) -> str:
    """What a place in the table says besides its numbers, or instead of them: of one cell per seed, by their keys.

    >>> note_of([], {}, []), note_of([1, 2], {}, [2]), note_of([1, 2], {1: {}}, [])
    ('-', 'failed', ' (n=1, not run: 1)')
    """
    if not keys:
        return "-"
    done, why = sum(key in rows for key in keys), "failed" if set(keys) & set(failed) else "not run"
    if not done:
        return why
    if done < len(keys):
        return f" (n={done}, {why}: {len(keys) - done})"
    return " (n=1)" if done == 1 else ""


def is_regression(dataset: str) -> bool:
    return dataset in TASKS and "spearmanr" in TASKS[dataset].metrics


def kind_of(dataset: str) -> str:
    """Data sets of one kind share a table.

    >>> kind_of("trec"), kind_of("mrpc"), kind_of("stsb")
    ('one text', 'two texts', 'regression')
    """
    if is_regression(dataset):
        return "regression"
    return "two texts" if dataset in TASKS and len(TASKS[dataset].text_columns) == 2 else "one text"


def table(
    split: str,
    datasets: Sequence[str],
    cells: Mapping[tuple[str, str], list[Any]],
    rows: Mapping[Any, Row],
    failed: Any,
) -> list[str]:
    """Lines of one table; `cells` are the keys of the runs, one per seed, by (data set, method)."""
    head, columns = ["method"], []
    methods = list(dict.fromkeys(method for _, method in cells))
    for dataset in datasets:
        lines = [rows[key] for method in methods for key in cells[dataset, method] if key in rows]
        metric = lines[0]["metric"] if lines else "?"
        # That of the plain encoder, also for its first layers alone.
        depth = max((run.depth for line in lines for run in figures(line).values()), default=0)
        head += [f"{dataset} ({metric})", f"layer of {depth or '?'}", "saved"]
        column = []
        for method in methods:
            keys = cells[dataset, method]
            runs = [told[split] for key in keys if key in rows and split in (told := figures(rows[key]))]
            column.append(describe(runs, depth, note_of(keys, rows, failed)))
        columns.append(column)
    body = [[method, *[text for column in columns for text in column[index]]] for index, method in enumerate(methods)]
    return markdown(head, body)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table.

    >>> markdown(["a", "b"], [["1", "2"]])
    ['| a | b |', '| --- | --- |', '| 1 | 2 |']
    """
    return ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body]]


def tables(cells: Mapping[tuple[str, str], list[Any]], rows: Mapping[Any, Row], failed: Any = ()) -> str:
    """A table for each kind of data set and each split.

    Args:
        cells: keys of the runs, one per seed, by (data set, method); none where the method does not apply.
        rows: lines of the results file, by key.
        failed: keys.
    """
    lines = [LEGEND]
    datasets = list(dict.fromkeys(dataset for dataset, _ in cells))
    splits: dict[str, set[str]] = {dataset: {"validation"} for dataset in datasets}
    for (dataset, _), keys in cells.items():
        splits[dataset].update(*[figures(rows[key]) for key in keys if key in rows])
    for kind in dict.fromkeys(map(kind_of, datasets)):
        own = [dataset for dataset in datasets if kind_of(dataset) == kind]
        for split in ("validation", *sorted(set().union(*[splits[dataset] for dataset in own]) - {"validation"})):
            shown = [dataset for dataset in own if split in splits[dataset]]
            lines += [f"\n{kind}, {split}\n", *table(split, shown, cells, rows, failed)]
    return "\n".join(lines)
