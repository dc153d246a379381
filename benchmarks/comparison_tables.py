"""Markdown tables of methods by data sets, from the results of `compare_methods.py`."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from scipy.stats import t as student_t

from adaexit_hf.data.glue import TASKS

LEGEND = "full depth -> with exits, in percent; ± half the width of the 95 % interval over seeds (Student's t)"
Row = Mapping[str, Any]


class Figures(NamedTuple):
    """The results of one run on one split; scores are those of the main metric.

    Attributes:
        full: Score at full depth.
        exits: Score with early exit.
        layer: Mean exit layer.
        depth: Number of layers of the model.
    """

    full: float
    exits: float
    layer: float
    depth: int


def figures(row: Row) -> dict[str, Figures]:
    """Results by split. The first split, on which the threshold was chosen, is always called validation."""
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
    """Mean, and half the width of its 95 % interval (Student's t), which is NaN for a single value.

    >>> [round(value, 4) for value in interval([0.7, 0.8, 0.9])]
    [0.8, 0.2484]
    """
    if len(values) == 1:
        return values[0], float("nan")
    scale = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(student_t.ppf(0.975, len(values) - 1)) * scale


def measured(values: Sequence[float], digits: int) -> str:
    """The mean with its interval, as text.

    >>> measured([70, 80, 90], 1), measured([70], 0)
    ('80.0 ± 24.8', '70')
    """
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def seeds_if_few(values: Sequence[Any]) -> str:
    """The number of seeds, as text, if there are fewer than three.

    >>> seeds_if_few([1.0]), seeds_if_few([1.0, 2.0]), seeds_if_few([1.0, 2.0, 3.0])
    (' (1 seed)', ' (2 seeds)', '')
    """
    return "" if len(values) > 2 else f" ({len(values)} seed{'s' * (len(values) > 1)})"


def describe(runs: Sequence[Figures], depth: int, note: str) -> list[str]:
    """Three cells: score at full depth -> with exits, mean exit layer, and layers saved of `depth` layers.

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
    """The note in a cell of the table, beside its numbers or instead of them.

    Args:
        keys: Keys of the runs of the cell, one per seed; none if the method does not apply.
        rows: Lines of the results file, by key.
        failed: Keys of failed runs.

    >>> note_of([], {}, []), note_of([1, 2], {}, [2]), note_of([1, 2], {1: {}}, [])
    ('-', 'failed', ' (n=1, not run: 1)')
    """
    if not keys:
        return "-"
    done, reason = sum(key in rows for key in keys), "failed" if set(keys) & set(failed) else "not run"
    if not done:
        return reason
    if done < len(keys):
        return f" (n={done}, {reason}: {len(keys) - done})"
    return " (n=1)" if done == 1 else ""


def is_regression(dataset: str) -> bool:
    """Whether the labels of a data set are numbers."""
    return dataset in TASKS and "spearmanr" in TASKS[dataset].metrics


def kind_of(dataset: str) -> str:
    """The kind of a data set; data sets of the same kind are in one table.

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
    """Lines of one table; arguments as for `tables`."""
    head, columns = ["method"], []
    methods = list(dict.fromkeys(method for _, method in cells))
    for dataset in datasets:
        lines = [rows[key] for method in methods for key in cells[dataset, method] if key in rows]
        metric = lines[0]["metric"] if lines else "?"
        # The number of layers of the full encoder, also for methods that use only its first layers.
        depth = max((run.depth for line in lines for run in figures(line).values()), default=0)
        head += [f"{dataset} ({metric})", f"layer of {depth or '?'}", "saved"]
        column = []
        for method in methods:
            keys = cells[dataset, method]
            by_split = [figures(rows[key]) for key in keys if key in rows]
            runs = [results[split] for results in by_split if split in results]
            column.append(describe(runs, depth, note_of(keys, rows, failed)))
        columns.append(column)
    body = [[method, *[text for column in columns for text in column[index]]] for index, method in enumerate(methods)]
    return markdown(head, body)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table.

    >>> markdown(["a", "b"], [["1", "2"]])
    ['| a | b |', '| --- | --- |', '| 1 | 2 |']
    """
    return ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body]]


def tables(cells: Mapping[tuple[str, str], list[Any]], rows: Mapping[Any, Row], failed: Any = ()) -> str:
    """One table for each kind of data set and each split.

    Args:
        cells: Keys of the runs, one per seed, by (data set, method); none if the method does not apply.
        rows: Lines of the results file, by key.
        failed: Keys of failed runs.
    """
    lines = [LEGEND]
    datasets = list(dict.fromkeys(dataset for dataset, _ in cells))
    splits: dict[str, set[str]] = {dataset: {"validation"} for dataset in datasets}
    for (dataset, _), keys in cells.items():
        splits[dataset].update(*[figures(rows[key]) for key in keys if key in rows])
    for kind in dict.fromkeys(map(kind_of, datasets)):
        same_kind = [dataset for dataset in datasets if kind_of(dataset) == kind]
        other_splits = set().union(*[splits[dataset] for dataset in same_kind]) - {"validation"}
        for split in ("validation", *sorted(other_splits)):
            with_split = [dataset for dataset in same_kind if split in splits[dataset]]
            lines += [f"\n{kind}, {split}\n", *table(split, with_split, cells, rows, failed)]
    return "\n".join(lines)
