"""One self-contained HTML page: what every threshold costs and saves, which samples leave where, and why."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy

from .evaluation import ExitTrace, predictions, spread_thresholds

HERE = Path(__file__).parent
METRICS = ("accuracy", "f1", "matthews_correlation", "pearson", "spearmanr")


class TokenAttributions(NamedTuple):
    """Why a sample was answered as it was, and left where it did.

    Args:
        tokens: the words of the sample, in order.
        values: what is explained, e.g. "answer at layer 3" -> one number per token, of either sign.
    """

    tokens: Sequence[str]
    values: Mapping[str, Sequence[float]]


class Report(NamedTuple):
    """A page; in a notebook it shows itself.

    Args:
        page: the whole HTML document.
    """

    page: str

    def save(self, path: str | Path) -> Path:
        """Write the page into a file, which needs no other."""
        path = Path(path)
        path.write_text(self.page, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self.page)}" style="width:100%;height:900px;border:0"></iframe>'


def write_report(traces: ExitTrace | Mapping[str, ExitTrace], path: str | Path, **options: Any) -> Path:
    """Write `build_report` into a file: one HTML page that works from disk, without a network.

    Args:
        traces, options: as for `build_report`.
        path: of the file.

    Raises:
        ValueError: as `build_report`.
    """
    return build_report(traces, **options).save(path)


def build_report(
    traces: ExitTrace | Mapping[str, ExitTrace],
    *,
    metric: str = "accuracy",
    thresholds: Mapping[str, float | list[float] | None] | None = None,
    criteria: Mapping[str, str] | None = None,
    texts: Sequence[str | Sequence[str]] | None = None,
    labels: Sequence[str] | None = None,
    attributions: Mapping[str, Sequence[TokenAttributions]] | None = None,
    title: str = "Early exit",
    note: str = "",
    most_rows: int = 200,
) -> Report:
    """A page with trade-off curves, and a slider per method that recomputes everything from its trace.

    Args:
        traces: of one data set, with labels; by name where there are several methods.
        metric: accuracy, f1 (of class 1), matthews_correlation, pearson or spearmanr.
        thresholds: where the sliders start, by name, e.g. the models' own. Default: full depth.
        criteria: what the scores are, by name, e.g. "entropy (nats), exits below".
        texts: of the samples, or pairs of texts.
        labels: names of the classes, in order. Default: their numbers.
        attributions: by name, of every sample.
        title, note: what the page says at its head.
        most_rows: so many samples are shown at once.

    Raises:
        ValueError: no trace, no labels, traces of different data sets or numbers of labels, a metric
            that does not fit the labels or is unknown, or a number of texts, labels or attributions that does not fit.
    """
    named = {"model": traces} if isinstance(traces, ExitTrace) else dict(traces)
    _check(named, metric, texts, labels, attributions)
    first = next(iter(named.values()))
    truth, count = first.labels, first.logits.shape[-1]
    assert truth is not None  # checked
    methods = []
    for name, trace in named.items():
        start = (thresholds or {}).get(name)
        methods.append(
            {
                "name": name,
                "criterion": (criteria or {}).get(name, "readiness in the method's own unit"),
                "exit_layers": trace.exit_layers,
                "ready": trace.ready,
                "scores": [[_exact(score) for score in row] for row in trace.scores.float().tolist()],
                "answers": [[_exact(value) for value in row] for row in _answers(trace)],
                "thresholds": [_rounded(each) for each in [*spread_thresholds(trace), start, None]],
                "start": _rounded(start),
                "attributions": _attributions((attributions or {}).get(name)),
            }
        )
    data = {
        "metric": metric,
        "truth": [_exact(value) for value in truth.tolist()],
        "labels": None if count == 1 else list(labels or map(str, range(count))),
        "texts": None if texts is None else [text if isinstance(text, str) else list(text) for text in texts],
        "methods": methods,
        "note": note,
        "most_rows": most_rows,
    }
    # "<" would end the element that holds the data, were "</script>" in a text.
    embedded = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"title": html.escape(title), "data": embedded, "script": (HERE / "report.js").read_text(encoding="utf-8")}
    return Report(Template((HERE / "report_template.html").read_text(encoding="utf-8")).substitute(parts))


def _check(
    traces: Mapping[str, ExitTrace], metric: str, texts: Any, labels: Any, attributions: Mapping[str, Any] | None
) -> None:
    if not traces:
        raise ValueError("traces: got none; pass a trace, or a dict of them by name")
    if metric not in METRICS:
        raise ValueError(f"metric: got {metric!r}; choose one of {', '.join(METRICS)}")
    first_name, first = next(iter(traces.items()))
    for name, trace in traces.items():
        if trace.labels is None:
            raise ValueError(f"traces: '{name}' has no labels; collect it on a data set with a 'label' column")
        if trace.logits.shape[-1] != first.logits.shape[-1]:
            raise ValueError(
                f"traces: '{name}' has {trace.logits.shape[-1]} labels, '{first_name}' {first.logits.shape[-1]}; pass "
                "traces of one task"
            )
        if first.labels is None or trace.labels.tolist() != first.labels.tolist():
            raise ValueError(
                f"traces: '{name}' and '{first_name}' are of different samples; collect both on the same data set"
            )
    regression = first.logits.shape[-1] == 1
    if regression != (metric in ("pearson", "spearmanr")):
        fitting = "pearson or spearmanr" if regression else "accuracy, f1 or matthews_correlation"
        raise ValueError(f"metric: got '{metric}' for {first.logits.shape[-1]} labels; pass {fitting}")
    if labels is not None and len(labels) != first.logits.shape[-1]:
        raise ValueError(f"labels: got {len(labels)} names for {first.logits.shape[-1]} labels; pass one for each")
    explained = {f"attributions['{name}']": rows for name, rows in (attributions or {}).items()}
    for what, rows in ({"texts": texts} | explained).items():
        if rows is not None and len(rows) != len(first.logits):
            raise ValueError(f"{what}: got {len(rows)} for {len(first.logits)} samples; pass one for each")
    unknown = sorted(set(attributions or {}) - set(traces))
    if unknown:
        raise ValueError(f"attributions: got '{unknown[0]}'; the traces are {', '.join(traces)}")


def _rounded(threshold: float | list[float] | None) -> Any:
    """As float32, in which traces compare, so that the page compares alike."""
    return [_exact(each) for each in threshold] if isinstance(threshold, list) else threshold and _exact(threshold)


def _exact(value: float) -> float | int | None:
    """The shortest number that is this float32; None for what is not finite."""
    if isinstance(value, int):
        return value
    return float(str(numpy.float32(value))) if numpy.isfinite(value) else None


def _answers(trace: ExitTrace) -> list[list[float]]:
    return [list(row) for row in predictions(trace.logits).tolist()]


def _attributions(found: Sequence[TokenAttributions] | None) -> Any:
    if found is None:
        return None
    return [
        {
            "tokens": list(each.tokens),
            "values": {name: [round(v, 5) for v in row] for name, row in each.values.items()},
        }
        for each in found
    ]
