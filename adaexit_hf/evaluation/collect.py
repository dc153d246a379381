"""One full-depth pass over a data set, which collects what every exit says: a trace."""

from collections.abc import Iterable, Mapping, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.batching import check_model, full_depth, label_column, row_labels, stream_rows
from ..models.configuration_early_exit import check_whole_number
from ..models.modeling_early_exit import EarlyExitForSequenceClassification
from .flops import RowFlops
from .trace import COMPARISONS, ExitTrace

# So many batches are read ahead, and sorted by length.
_WINDOW = 32


def collect_trace(
    model: EarlyExitForSequenceClassification,
    dataset: Iterable[Mapping[str, Any]],
    batch_size: int = 32,
    progress: bool = True,
    count_flops: bool = False,
    about: Mapping[str, Any] | None = None,
) -> ExitTrace:
    """Run a tokenized data set once at full depth and keep what every exit said.

    The data set is read once, a few batches at a time, so memory holds little more than the trace.

    Args:
        model: on any device; its train or eval mode is restored afterwards.
        dataset: rows with `input_ids`, optionally `attention_mask`, `token_type_ids`, and `label` or `labels`; other
            columns are left out. Rows need not be padded; batches are made of rows of similar length.
        batch_size: rows per forward pass.
        progress: show a bar.
        count_flops: also count what each sample costs, as `flops_per_exit` does; one more pass for every length that
            occurs, and for every sample where what a text costs depends on its words.
        about: what the trace shall say of itself besides, e.g. `{"dataset": "mrpc", "seed": 1}`.

    Returns:
        the trace, in the order of the data set, on the CPU in float32.

    Raises:
        ValueError: the data set is empty, or has no `input_ids`; a label that is no class index or no number, or that
            only some rows have; no batch size; a method whose `ready` is no plain comparison.
        TypeError: a model without exits.
    """
    check_model(model)
    check_whole_number("batch_size", batch_size, low=1, advice="e.g. batch_size=32")
    config = model.config
    comparison = next((name for name, function in COMPARISONS.items() if function is model.ready), None)
    if comparison is None:
        raise ValueError(
            f"model: its `ready` is {model.ready}; a trace knows torch.lt, torch.le, torch.gt and torch.ge"
        )
    stream, parts, flops = stream_rows(dataset), [], []
    labels: list[Tensor | None] = []
    lengths: list[int] = []
    column, counter = None, RowFlops(model) if count_flops else None
    total = len(dataset) if isinstance(dataset, Sized) else None
    with tqdm(total=total, desc="Tracing exits", unit=" rows", disable=not progress) as bar:
        while window := list(islice(stream, _WINDOW * batch_size)):
            column = column or label_column(window)
            known = labels[0] is not None if labels else None
            labels.append(row_labels(window, config.num_labels, column, len(lengths), known) if column else None)
            lengths += [text_length(row) for row in window]
            parts.append(full_depth(model, window, batch_size, tell=bar.update))
            if counter is not None:
                flops += [counter.of(row, text_length(row)) for row in window]
    logits, scores = (torch.cat(each) for each in zip(*parts, strict=True))
    return ExitTrace(
        logits,
        scores,
        torch.cat([each for each in labels if each is not None]) if labels[0] is not None else None,
        tuple(config.exit_layers),
        comparison,
        criterion=config.exit_criterion,
        bounds=config.threshold_bounds,
        method=config.model_type,
        label_names=tuple(config.id2label[index] for index in range(config.num_labels))
        if config.num_labels > 1
        else None,
        lengths=torch.tensor(lengths),
        flops=torch.stack(flops) if flops else None,
        about=dict(about or {}),
    )


def text_length(row: Mapping[str, Any]) -> int:
    """Tokens of a row up to the last that is no pad; all of them where every one is a pad.

    >>> text_length({"input_ids": [1, 7, 2, 0], "attention_mask": [1, 1, 1, 0]}), text_length({"input_ids": [1, 2]})
    (3, 2)
    """
    tokens = len(row["input_ids"])
    mask = row.get("attention_mask")
    return tokens if mask is None else next((place for place in range(tokens, 0, -1) if mask[place - 1]), tokens)
