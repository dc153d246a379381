"""One self-contained HTML page: what every threshold costs and saves, which samples leave where, and why."""

import html
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy

from .evaluation import ExitTrace, predictions, spread_thresholds
from .interpretation import Explanation

HERE = Path(__file__).parent
METRICS = ("accuracy", "f1", "matthews_correlation", "pearson", "spearmanr")


class TokenAttributions(NamedTuple):
    """Why a sample was answered as it was, and left where it did.

    Args:
        tokens: the words of the sample, in order.
        values: what is explained, e.g. "answer at layer 3" -> one number per token, of either sign. What ends in
            " at layer ..." can also be shown for the layer where each sample leaves.
        separator: what stands between tokens; "" where they have their own spaces.
    """

    tokens: Sequence[str]
    values: Mapping[str, Sequence[float]]
    separator: str = " "


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


def token_attributions(explanation: Explanation, text: str | Sequence[str], tokenizer: Any) -> TokenAttributions:
    """An explanation, over the text as it was written.

    Special tokens, which have no attributions, are left out, and what the model did not read has none. Where the
    tokenizer does not know where in the text its tokens are (`is_fast`), they are shown as it names them.

    Args:
        explanation: of the text, from `explain`.
        text: that was explained, or the pair.
        tokenizer: that made its row.

    Raises:
        ValueError: the tokenizer makes other tokens of the text than were explained.
    """
    values = explanation.named_values()
    if not tokenizer.is_fast:
        return TokenAttributions(explanation.tokens, values)
    sides, count = [text] if isinstance(text, str) else list(text), len(explanation.tokens)
    # As long as what was explained, so that it is cut where that was.
    found = tokenizer(*sides, truncation=True, max_length=count, return_offsets_mapping=True)
    if tokenizer.convert_ids_to_tokens(found["input_ids"]) != list(explanation.tokens):
        raise ValueError(
            f"text: {text!r} has other tokens than the {count} that were explained; pass the text and the tokenizer "
            "of the row that explain() got"
        )
    pieces: list[tuple[str, list[int]]] = []
    for side, whole in enumerate(sides):
        spans = [(*found["offset_mapping"][k], k) for k, of in enumerate(found.sequence_ids()) if of == side]
        pieces += [("\n", [])] * (side > 0) + _pieces(whole, spans)
    summed = {name: [sum(row[k] for k in tokens) for _, tokens in pieces] for name, row in values.items()}
    return TokenAttributions([piece for piece, _ in pieces], summed, separator="")


def _pieces(text: str, spans: list[tuple[int, int, int]]) -> list[tuple[str, list[int]]]:
    """A text, cut before each token, with the tokens of each piece: bytes of one character share theirs.

    Args:
        spans: start and end of each token in the text, and its number.
    """
    tokens: dict[int, list[int]] = {}
    for start, _, number in sorted(spans):
        tokens.setdefault(start, []).append(number)
    read = max((end for _, end, _ in spans), default=0)
    cuts = pairwise([0, *list(tokens)[1:], read])
    pieces = [(text[start:end], numbers) for (start, end), numbers in zip(cuts, tokens.values(), strict=False)]
    return pieces + [(text[read:], [])] * (read < len(text))


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
        attributions: by name, of every sample or of the first ones; `token_attributions` makes them.
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
                "flops": _flops(trace),
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
    samples = len(first.logits)
    if texts is not None and len(texts) != samples:
        raise ValueError(f"texts: got {len(texts)} for {samples} samples; pass one for each")
    for name, rows in (attributions or {}).items():
        if not 0 < len(rows) <= samples:
            raise ValueError(
                f"attributions['{name}']: got {len(rows)} for {samples} samples; pass one for each, or for the first"
            )
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


def _flops(trace: ExitTrace) -> Any:
    """FLOPs (costs, exits), and which costs each sample has: texts of one length cost the same."""
    if trace.flops is None:
        return None
    costs, which = trace.flops.unique(dim=0, return_inverse=True)
    return {"costs": costs.tolist(), "which": which.tolist()}


def _attributions(found: Sequence[TokenAttributions] | None) -> Any:
    if found is None:
        return None
    return [
        {
            "tokens": list(each.tokens),
            "values": {name: [round(v, 5) for v in row] for name, row in each.values.items()},
            "separator": each.separator,
        }
        for each in found
    ]
