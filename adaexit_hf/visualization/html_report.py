"""Build a self-contained HTML page: trade-off curves, a threshold slider, and every sample with its exit."""

import html
import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy

from ..evaluation.bootstrap import score_bands
from ..evaluation.metrics import METRICS
from ..evaluation.thresholds import spread_thresholds
from ..evaluation.trace import ExitTrace, check_same_data, made_up, predictions, rule_in_words
from ..evaluation.tradeoff import majority_score
from ..models.configuration_early_exit import Threshold
from .attributed_tokens import DIGITS, TokenAttributions, embedded

ASSETS = Path(__file__).parent / "assets"


class Report(NamedTuple):
    """An HTML report. A notebook displays it if it is the last value of a cell.

    Attributes:
        page: The whole HTML document.
    """

    page: str

    def save(self, path: str | Path) -> Path:
        """Write the page into one file that needs no other files and no network.

        Args:
            path: Path of the file. Missing folders are created.

        Returns:
            The path.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.page, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self.page)}" style="width:100%;height:900px;border:0"></iframe>'


def write_report(
    traces: ExitTrace | Mapping[str, ExitTrace],
    path: str | Path,
    *,
    metric: str = "accuracy",
    thresholds: Threshold | Mapping[str, Threshold] = None,
    texts: Sequence[str | Sequence[str]] | None = None,
    attributions: Mapping[str, Sequence[TokenAttributions]] | None = None,
    fixed: Mapping[str, tuple[float, float]] | None = None,
    title: str = "Early exit",
    note: str = "",
    most_rows: int = 200,
) -> Path:
    """Build an HTML report and write it into one file, which can be opened from disk without a network.

    Args:
        traces: As for `build_report`.
        path: Path of the file. Missing folders are created.
        metric: As for `build_report`.
        thresholds: As for `build_report`.
        texts: As for `build_report`.
        attributions: As for `build_report`.
        fixed: As for `build_report`.
        title: As for `build_report`.
        note: As for `build_report`.
        most_rows: As for `build_report`.

    Returns:
        The path.

    Raises:
        TypeError: As `build_report`.
        ValueError: As `build_report`.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from adaexit_hf import ExitTrace
        >>> logits = torch.tensor([[[0.0, 1.0], [0.0, 2.0]], [[0.5, 0.4], [0.0, 2.0]]])
        >>> scores = torch.tensor([[0.73, 0.88], [0.52, 0.88]])  # confidence
        >>> trace = ExitTrace(logits, scores, torch.tensor([1, 1]), exit_layers=(6, 12), ready="gt")
        >>> with TemporaryDirectory() as folder:
        ...     path = write_report(trace, f"{folder}/report.html", thresholds=0.7, title="Film reviews")
        ...     "<title>Film reviews</title>" in path.read_text(encoding="utf-8")
        True
    """
    report = build_report(
        traces,
        metric=metric,
        thresholds=thresholds,
        texts=texts,
        attributions=attributions,
        fixed=fixed,
        title=title,
        note=note,
        most_rows=most_rows,
    )
    return report.save(path)


def build_report(
    traces: ExitTrace | Mapping[str, ExitTrace],
    *,
    metric: str = "accuracy",
    thresholds: Threshold | Mapping[str, Threshold] = None,
    texts: Sequence[str | Sequence[str]] | None = None,
    attributions: Mapping[str, Sequence[TokenAttributions]] | None = None,
    fixed: Mapping[str, tuple[float, float]] | None = None,
    title: str = "Early exit",
    note: str = "",
    most_rows: int = 200,
) -> Report:
    """Build an HTML page with the trade-off curves of one or more traces and a threshold slider for each.

    When a slider moves, the page recomputes all its numbers from the trace. Scores have a 95 % bootstrap interval over
    the samples, and are compared with always giving the most frequent answer, see `majority_score`.

    Args:
        traces: One trace with labels, or several of the same data set by the name of the method. A single trace is
            named "model".
        metric: Name of the metric: `"accuracy"` (default), `"f1"` (two classes only), `"matthews_correlation"`, or
            `"pearson"` or `"spearmanr"` for regression, or `"accuracy"`, `"f1_micro"` or `"f1_macro"` for several
            labels at once. The page computes it as `compute_score` does, and shows "not
            defined" where that raises an error.
        thresholds: Thresholds at which the sliders start, by name, e.g. those of the models' configs. For a single
            trace the threshold itself is enough. Default: full depth.
        texts: One text per sample, or one pair of texts. Default: the page shows the samples' numbers.
        attributions: Token attributions from `token_attributions` by name of the trace, for all samples or for the
            first ones. They are rounded to 1/45 of the largest value of a row, to keep the page small. Default: none.
        fixed: Models without exits to compare with, e.g. an encoder of fewer layers that was trained as such: by name
            `(layers, score)`, with the score of the same metric on the same samples. Default: none.
        title: Title of the page.
        note: Sentence shown below the title. Default: none.
        most_rows: Samples shown at first, and how many more with each click on "Show more". Default: 200.

    Returns:
        The page. Call its `save(path)` to write it into a file.

    Raises:
        TypeError: If a threshold is not a number, a list of numbers or None.
        ValueError: If there are no traces, a trace has no labels, the traces are of different data, the metric is
            unknown or does not suit the labels, a threshold is out of range, a name belongs to no trace, or the number
            of texts or attributions does not match the number of samples.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[[0.0, 1.0], [0.0, 2.0]], [[0.5, 0.4], [0.0, 2.0]]])
        >>> scores = torch.tensor([[0.73, 0.88], [0.52, 0.88]])
        >>> trace = ExitTrace(logits, scores, torch.tensor([1, 1]), exit_layers=(6, 12), ready="gt")
        >>> build_report(trace, thresholds=0.7).page[:15]
        '<!doctype html>'
    """
    named = {"model": traces} if isinstance(traces, ExitTrace) else dict(traces)
    _check(named, metric, texts, attributions or {}, fixed or {})
    first = next(iter(named.values()))
    num_labels = first.logits.shape[-1]
    all_names = [trace.label_names for trace in named.values() if trace.label_names]
    label_names = next((names for names in all_names if not made_up(names)), [*all_names, range(num_labels)][0])
    starts = _start_thresholds(named, thresholds)
    thresholds_of = {name: _thresholds(trace, starts[name]) for name, trace in named.items()}
    bands = {
        name: score_bands(trace, metric, [_in_bounds(threshold, trace) for threshold in thresholds_of[name]])
        for name, trace in named.items()
    }
    methods = [
        {
            "name": name,
            "criterion": (trace.criterion or "score").replace("_", " "),
            "rule": rule_in_words(trace),
            "exit_layers": trace.exit_layers,
            "ready": trace.ready,
            "scores": [[_exact(score) for score in row] for row in trace.scores.float().tolist()],
            "answers": _answers(trace),
            "thresholds": thresholds_of[name],
            "bands": [band and [round(end, 5) for end in band] for band in bands[name]],
            "start": starts[name],
            "flops": _flops(trace),
            "attributions": embedded(name, (attributions or {}).get(name), texts),
        }
        for name, trace in named.items()
    ]
    written = _label_set if first.multi_label else _exact
    data = {
        "metric": metric,
        "majority": _majority(first, metric),
        "fixed": [{"name": name, "layers": layers, "score": score} for name, (layers, score) in (fixed or {}).items()],
        "truth": [written(value) for value in first.known_labels().tolist()],
        "labels": None if num_labels == 1 else list(map(str, label_names)),
        "label_sets": first.multi_label,
        "texts": None if texts is None else [text if isinstance(text, str) else list(text) for text in texts],
        "methods": methods,
        "digits": DIGITS,
        "note": note,
        "most_rows": most_rows,
    }
    # A text that contains "</script>" must not end the script element that holds the data.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    script = "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("report_numbers.js", "report_page.js"))
    parts = {"title": html.escape(title), "data": text, "script": script}
    return Report(Template((ASSETS / "report_template.html").read_text(encoding="utf-8")).substitute(parts))


def _check(
    traces: Mapping[str, ExitTrace],
    metric: str,
    texts: Any,
    attributions: Mapping[str, Any],
    fixed: Mapping[str, tuple[float, float]],
) -> None:
    if not isinstance(metric, str) or metric not in METRICS:
        raise ValueError(f"metric: got {metric!r}, which the page cannot compute; choose one of {', '.join(METRICS)}")
    check_same_data(list(traces.values()), list(traces))
    for name, trace in traces.items():
        if trace.labels is None:
            raise ValueError(f"traces: '{name}' has no labels; call collect_trace on a data set with a 'label' column")
    first = next(iter(traces.values()))
    samples, _, num_labels = first.logits.shape
    suitable = [
        name
        for name, known in METRICS.items()
        if known.regression == (num_labels == 1)
        and (name != "f1" or num_labels == 2)
        and known.label_sets in (None, first.multi_label)
    ]
    if metric not in suitable:
        kind = f"{num_labels} labels{' at once' if first.multi_label else ''}"
        raise ValueError(f"metric: got '{metric}' for {kind}; pass {' or '.join(suitable)}")
    if texts is not None and len(texts) != samples:
        raise ValueError(f"texts: got {len(texts)} for {samples} samples; pass one per sample")
    for name, (layers, score) in fixed.items():
        if not (isfinite(layers) and isfinite(score)):
            raise ValueError(f"fixed['{name}']: got {(layers, score)}; pass (layers, score), two finite numbers")
    _check_names("attributions", attributions, traces)
    for name, rows in attributions.items():
        if not 0 < len(rows) <= samples:
            raise ValueError(
                f"attributions['{name}']: got {len(rows)} for {samples} samples; pass one per sample, or those of the "
                "first samples"
            )


def _check_names(argument: str, values: Mapping[str, Any], traces: Mapping[str, ExitTrace]) -> None:
    unknown = [name for name in values if name not in traces]
    if unknown:
        raise ValueError(f"{argument}: got '{unknown[0]}'; the traces are {', '.join(traces)}")


def _majority(trace: ExitTrace, metric: str) -> float | None:
    """Return the score of always giving the most frequent answer; None where the metric is not defined."""
    try:
        return majority_score(trace, metric)
    except ValueError:
        return None  # the page shows that no score is defined for these labels


def _start_thresholds(
    traces: Mapping[str, ExitTrace], thresholds: Threshold | Mapping[str, Threshold]
) -> dict[str, Any]:
    """Return the checked threshold at which each slider starts; None is full depth, and so is a patience of 0."""
    if not isinstance(thresholds, Mapping):
        if thresholds is not None and len(traces) > 1:
            raise ValueError(f"thresholds: got {thresholds} for {len(traces)} traces; pass a dict of them by name")
        thresholds = dict.fromkeys(traces, thresholds)
    _check_names("thresholds", thresholds, traces)
    starts = {}
    for name, trace in traces.items():
        start = thresholds.get(name)
        try:
            trace.exits_at(start)
        except (TypeError, ValueError) as error:
            raise type(error)(f"thresholds: for '{name}', {error}") from error
        starts[name] = None if trace.criterion == "patience" and start == 0 else _rounded(start)
    return starts


def _thresholds(trace: ExitTrace, start: Any) -> list[Any]:
    """Return the thresholds of the slider, the most eager first, with the one at which it starts and full depth."""
    numbers = [*map(_rounded, spread_thresholds(trace)), *([start] if isinstance(start, float) else [])]
    ordered = sorted(numbers, reverse=trace.ready in ("lt", "le"))
    return [*ordered, *([start] if isinstance(start, list) else []), None]


def _rounded(threshold: Threshold) -> Any:
    """Round thresholds to float32, as `ExitTrace.exits_at` does, so that the page takes the same exits.

    JSON has no infinity, so it becomes the largest float32.
    """
    if isinstance(threshold, list | tuple):
        return [_rounded(value) for value in threshold]
    largest = float(numpy.finfo(numpy.float32).max)
    return None if threshold is None else _exact(min(max(float(threshold), -largest), largest))


def _in_bounds(threshold: Any, trace: ExitTrace) -> Any:
    """Move a threshold that `_rounded` put outside of the bounds of its criterion, such as ln 2, back to them."""
    if threshold is None or trace.bounds is None:
        return threshold
    if isinstance(threshold, list):
        return [_in_bounds(value, trace) for value in threshold]
    return min(max(threshold, trace.bounds[0]), trace.bounds[1])


def _answers(trace: ExitTrace) -> list[list[float | int | str | None]]:
    """Return predicted classes, numbers or label sets, [sample][exit]; None where the logits are not finite."""
    answers = predictions(trace.logits, trace.multi_label).tolist()
    finite, written = trace.logits.isfinite().all(dim=-1).tolist(), _label_set if trace.multi_label else _exact
    return [
        [written(value) if is_finite else None for value, is_finite in zip(*row, strict=True)]
        for row in zip(answers, finite, strict=True)
    ]


def _label_set(flags: list[int]) -> str:
    """Return a label set as text, in which the page finds a label at its index, and compares two sets as one value.

    >>> _label_set([1, 0, 1])
    '101'
    """
    return "".join(map(str, flags))


def _exact(value: float) -> float | int | None:
    """Return the number with the fewest digits that rounds to this float32; None if it is not finite."""
    if isinstance(value, int):
        return value
    return float(str(numpy.float32(value))) if numpy.isfinite(value) else None


def _flops(trace: ExitTrace) -> Any:
    """Return the different rows of FLOPs per exit, and the row of each sample: texts of equal length share one."""
    if trace.flops is None:
        return None
    costs, row_of_sample = trace.flops.unique(dim=0, return_inverse=True)
    return {"costs": costs.tolist(), "which": row_of_sample.tolist()}
