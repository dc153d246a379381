"""What the page knows besides the model: the trade-off curve and examples of texts, the contents of `demo.json`."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..evaluation.curves import CurvePoint
from ..evaluation.trace import ExitTrace, comparison_of, exit_rule, predictions, same_answers
from ..hub.card_facts import CardDataset
from ..hub.card_text import readable

EASY, HARD, SAVED = (
    "Easy texts, which left early",
    "Hard texts, which left late",
    "The first exit was wrong, a later one right",
)
LONGEST_EXAMPLE = 400  # characters


def demo_facts(
    model: Any,
    name: str,
    *,
    title: str | None = None,
    max_tokens: int | None = None,
    dataset: CardDataset | None = None,
    metric: str = "score",
    curve: Sequence[CurvePoint] = (),
    examples: Sequence[dict[str, Any]] = (),
    hub_model: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Collect what the page shows besides the answers of the model.

    Args:
        model: An early-exit model.
        name: Name of the model, as it is shown.
        title: Title of the page. Default: the name.
        max_tokens: Number of tokens to which texts are truncated. Default: None, that of the tokenizer.
        dataset: The data set of the curve. Default: unknown.
        metric: Name of the curve's metric.
        curve: The trade-off curve; points without a score are left out. Default: none.
        examples: From `examples_of`. Default: none.
        hub_model: Name on the Hub from which a Space loads the model. Default: None, from the folder beside it.
        revision: Commit of `hub_model`.

    Returns:
        A dict that JSON can represent.

    Raises:
        ValueError: As `comparison_of`.
    """
    config = model.config
    pairs = getattr(config, "pairs", None)
    return {
        "title": title or name,
        "model": name,
        "rule": exit_rule(config.exit_layers, config.exit_criterion, comparison_of(model), config.multi_label),
        "pairs": dataset.pairs if pairs is None and dataset is not None else pairs,
        "max_tokens": max_tokens,
        "dataset": "unknown data" if dataset is None else dataset.name,
        "metric": readable(metric),
        "curve": [
            [point.threshold, point.score, point.mean_layers]
            for point in curve
            if point.score is not None and math.isfinite(point.score)
        ],
        "examples": list(examples),
        "hub_model": hub_model,
        "revision": revision,
    }


def examples_of(
    trace: ExitTrace,
    texts: Sequence[str | Sequence[str]],
    threshold: float | list[float] | None,
    count: int = 3,
) -> list[dict[str, Any]]:
    """Choose texts that are easy and hard for a model.

    Easy ones left first and right, hard ones left last; and of those that left right, but not at the first exit, the
    first to leave of those whose first exit was wrong. In regression an answer is right if its error is
    no larger than the median. The choice depends on nothing but the arguments. Left out are texts that occur
    before, those with more than 400 characters, and those with logits that are not finite.

    Args:
        trace: Trace with labels.
        texts: The text, or the two texts, of every sample.
        threshold: Exit threshold, as for `ExitTrace.exits_at`.
        count: Number of easy texts, and of hard ones. Default: 3.

    Returns:
        Examples with `kind` (in words), `texts`, `layer` (after which the text left) and `label` (the true one, in
        words). Empty if all texts leave at one exit, where none is easier than another, or if none may be shown.

    Raises:
        ValueError: If the trace has no labels.
    """
    chosen = trace.exits_at(threshold)
    right = _right(trace)
    rows = list(_usable(trace, texts))
    if not rows or len({int(chosen[row]) for row in rows}) < 2:
        return []
    # Ascending: the first is the readiest of all at the first exit.
    first = trace.scores[:, 0] * (1 if trace.ready in ("lt", "le") else -1)
    order = sorted(rows, key=lambda row: (int(chosen[row]), float(first[row]), row))
    at_exit = right[torch.arange(len(chosen)), chosen]
    earliest, latest = int(chosen[order[0]]), int(chosen[order[-1]])
    easy = [row for row in order if at_exit[row] and chosen[row] < latest][:count]
    hard = [row for row in reversed(order) if chosen[row] > earliest and row not in easy][:count]
    saved = [row for row in order if at_exit[row] and not right[row, 0] and chosen[row] > 0]
    saved = [row for row in saved if row not in easy and row not in hard][:1]
    return [
        {
            "kind": kind,
            "texts": [texts[row]] if isinstance(texts[row], str) else list(texts[row]),
            "layer": trace.exit_layers[int(chosen[row])],
            "label": _label(trace, row),
        }
        for kind, found in ((EASY, easy), (HARD, hard), (SAVED, saved))
        for row in found
    ]


def _usable(trace: ExitTrace, texts: Sequence[str | Sequence[str]]) -> Iterator[int]:
    """Rows whose texts are new, short and not empty, and whose logits are finite."""
    finite, seen = trace.logits.isfinite().flatten(1).all(dim=1).tolist(), set()
    for row, text in enumerate(texts):
        parts = (text,) if isinstance(text, str) else tuple(text)
        short = len(" ".join(parts)) <= LONGEST_EXAMPLE and all(part.strip() for part in parts)
        if finite[row] and short and parts not in seen:
            yield row
        seen.add(parts)


def _right(trace: ExitTrace) -> Tensor:
    """Whether the answer of every exit is right, bool, (samples, exits)."""
    labels, answers = trace.known_labels(), predictions(trace.logits, trace.multi_label)
    if trace.logits.shape[-1] == 1:
        errors = (answers - labels[:, None]).abs()
        return errors <= errors[:, -1].nanmedian()
    return same_answers(answers, labels, trace.multi_label)


def _label(trace: ExitTrace, row: int) -> str | None:
    """The true label of a sample, in words; None without names."""
    value, names = trace.known_labels()[row], trace.label_names
    if names is None:
        return f"{value.item():.3g}" if trace.logits.shape[-1] == 1 else None
    if trace.multi_label:
        return ", ".join(name for name, given in zip(names, value.tolist(), strict=True) if given) or "no label"
    return names[int(value)]
