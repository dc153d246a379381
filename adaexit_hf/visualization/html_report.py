"""One self-contained HTML page: what every threshold costs and saves, which samples leave where, and why."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy

from ..evaluation.metrics import METRICS
from ..evaluation.trace import ExitTrace, check_same_data, predictions
from ..evaluation.tradeoff import spread_thresholds
from ..models.configuration_early_exit import Threshold
from .token_attributions import DIGITS, TokenAttributions, embedded, token_attributions

__all__ = ["Report", "TokenAttributions", "build_report", "token_attributions", "write_report"]

ASSETS = Path(__file__).parent / "assets"
LEAVES = {"lt": "below", "le": "at or below", "gt": "above", "ge": "at or above"}


class Report(NamedTuple):
    """A page; in a notebook it shows itself.

    Args:
        page: the whole HTML document.
    """

    page: str

    def save(self, path: str | Path) -> Path:
        """Write the page into a file, which needs no other; its folder is made."""
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
    title: str = "Early exit",
    note: str = "",
    most_rows: int = 200,
) -> Path:
    """Write `build_report` into a file: one HTML page that works from disk, without a network.

    Args:
        traces, metric, thresholds, texts, attributions, title, note, most_rows: as for `build_report`.
        path: of the file; its folder is made.

    Raises:
        ValueError: as `build_report`.
    """
    report = build_report(
        traces,
        metric=metric,
        thresholds=thresholds,
        texts=texts,
        attributions=attributions,
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
    title: str = "Early exit",
    note: str = "",
    most_rows: int = 200,
) -> Report:
    """A page with trade-off curves, and a slider per method that recomputes everything from its trace.

    Args:
        traces: of one data set, with labels; by name where there are several methods. A single one is called "model".
        metric: accuracy, f1 (of class 1 of two), matthews_correlation, pearson or spearmanr; computed as
            `compute_score` does, and "not defined" where that refuses.
        thresholds: where the sliders start, by name, e.g. the models' own; of a single trace also the threshold
            itself. Default: full depth.
        texts: of the samples, or pairs of texts.
        attributions: by name, of every sample or of the first ones; `token_attributions` makes them.
            Their numbers are rounded, to a 45th of the largest of a row.
        title, note: what the page says at its head.
        most_rows: so many samples are shown at once.

    Raises:
        ValueError: no trace, no labels, traces of different data, a metric that does not fit the labels or is unknown,
            a threshold that is none, a name that is none of a trace, or a number of texts or attributions that does
            not fit.
    """
    named = {"model": traces} if isinstance(traces, ExitTrace) else dict(traces)
    _check(named, metric, texts, attributions or {})
    first = next(iter(named.values()))
    count, names = first.logits.shape[-1], [trace.label_names for trace in named.values() if trace.label_names]
    starts = _starts(named, thresholds)
    methods = [
        {
            "name": name,
            "criterion": (trace.criterion or "score").replace("_", " "),
            "leaves": LEAVES[trace.ready],
            "exit_layers": trace.exit_layers,
            "ready": trace.ready,
            "scores": [[_exact(score) for score in row] for row in trace.scores.float().tolist()],
            "answers": _answers(trace),
            "thresholds": [*map(_rounded, spread_thresholds(trace)), starts[name], None],
            "start": starts[name],
            "flops": _flops(trace),
            "attributions": embedded(name, (attributions or {}).get(name), texts),
        }
        for name, trace in named.items()
    ]
    data = {
        "metric": metric,
        "truth": [_exact(value) for value in first.known_labels().tolist()],
        "labels": None if count == 1 else list(names[0] if names else map(str, range(count))),
        "texts": None if texts is None else [text if isinstance(text, str) else list(text) for text in texts],
        "methods": methods,
        "digits": DIGITS,
        "note": note,
        "most_rows": most_rows,
    }
    # "<" would end the element that holds the data, were "</script>" in a text.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    script = "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("report_runs.js", "report.js"))
    parts = {"title": html.escape(title), "data": text, "script": script}
    return Report(Template((ASSETS / "report_template.html").read_text(encoding="utf-8")).substitute(parts))


def _check(traces: Mapping[str, ExitTrace], metric: str, texts: Any, attributions: Mapping[str, Any]) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric: got {metric!r}; choose one of {', '.join(METRICS)}")
    check_same_data(list(traces.values()), list(traces))
    for name, trace in traces.items():
        if trace.labels is None:
            raise ValueError(f"traces: '{name}' has no labels; collect it on a data set with a 'label' column")
    samples, _, count = next(iter(traces.values())).logits.shape
    fitting = (
        ["pearson", "spearmanr"] if count == 1 else ["accuracy", "matthews_correlation", "f1"][: 2 + (count == 2)]
    )
    if metric not in fitting:
        raise ValueError(f"metric: got '{metric}' for {count} labels; pass {' or '.join(fitting)}")
    if texts is not None and len(texts) != samples:
        raise ValueError(f"texts: got {len(texts)} for {samples} samples; pass one for each")
    _check_names("attributions", attributions, traces)
    for name, rows in attributions.items():
        if not 0 < len(rows) <= samples:
            raise ValueError(
                f"attributions['{name}']: got {len(rows)} for {samples} samples; pass one for each, or for the first"
            )


def _check_names(argument: str, given: Mapping[str, Any], traces: Mapping[str, ExitTrace]) -> None:
    unknown = [name for name in given if name not in traces]
    if unknown:
        raise ValueError(f"{argument}: got '{unknown[0]}'; the traces are {', '.join(traces)}")


def _starts(traces: Mapping[str, ExitTrace], thresholds: Threshold | Mapping[str, Threshold]) -> dict[str, Any]:
    """Where each slider starts, checked; None is full depth, which patience 0 is, too."""
    if not isinstance(thresholds, Mapping):
        if thresholds is not None and len(traces) > 1:
            raise ValueError(f"thresholds: got {thresholds} for {len(traces)} traces; pass a dict of them by name")
        thresholds = dict.fromkeys(traces, thresholds)
    _check_names("thresholds", thresholds, traces)
    found = {}
    for name, trace in traces.items():
        start = thresholds.get(name)
        try:
            trace.exits_at(start)
        except (TypeError, ValueError) as error:
            raise type(error)(f"thresholds: for '{name}', {error}") from error
        found[name] = None if trace.criterion == "patience" and start == 0 else _rounded(start)
    return found


def _rounded(threshold: Threshold) -> Any:
    """As float32, in which traces compare, so that the page compares alike; the largest for infinity."""
    if isinstance(threshold, list | tuple):
        return [_rounded(each) for each in threshold]
    largest = float(numpy.finfo(numpy.float32).max)
    return None if threshold is None else _exact(min(max(float(threshold), -largest), largest))


def _answers(trace: ExitTrace) -> list[list[float | int | None]]:
    """Classes or numbers, [sample][exit]; None for what is not finite."""
    answers, finite = predictions(trace.logits).tolist(), trace.logits.isfinite().all(dim=-1).tolist()
    return [
        [_exact(value) if known else None for value, known in zip(*row, strict=True)]
        for row in zip(answers, finite, strict=True)
    ]


def _exact(value: float) -> float | int | None:
    """The shortest number that is this float32; None for what is not finite."""
    if isinstance(value, int):
        return value
    return float(str(numpy.float32(value))) if numpy.isfinite(value) else None


def _flops(trace: ExitTrace) -> Any:
    """FLOPs (costs, exits), and which costs each sample has: texts of one length cost the same."""
    if trace.flops is None:
        return None
    costs, which = trace.flops.unique(dim=0, return_inverse=True)
    return {"costs": costs.tolist(), "which": which.tolist()}
