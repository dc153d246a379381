"""Collect a trace: run a data set once at full depth and keep the logits and scores of every exit."""

from collections.abc import Iterable, Mapping, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..models.configuration_early_exit import check_whole_number
from ..models.modeling_early_exit import EarlyExitForSequenceClassification
from ..models.padded_batches import (
    check_model,
    full_depth,
    iterable_of,
    label_column,
    progress_bar,
    row_labels,
    stream_rows,
)
from .fingerprints import row_hash
from .flops import RowFlops
from .summary import label_names, score_settings
from .trace import ExitTrace, comparison_of

# Number of batches that are read ahead, so that texts of similar length can share a batch.
_WINDOW = 32


def collect_trace(
    model: EarlyExitForSequenceClassification,
    dataset: Iterable[Any],
    tokenizer: Any = None,
    *,
    batch_size: int = 32,
    progress: bool = True,
    count_flops: bool = False,
    about: Mapping[str, Any] | None = None,
) -> ExitTrace:
    """Run a data set once at full depth and keep the logits and scores of every exit.

    The data set is read once, about 1000 rows or 32 batches ahead, so the memory needed is little more than that of
    the trace.

    Args:
        model: Model on any device. Its train or eval mode is restored afterwards.
        dataset: As for `predict`; with a column `label` or `labels`, the trace has labels. Other columns are ignored.
            Rows of similar length share a batch.
        tokenizer: The model's tokenizer. Not needed for tokenized rows.
        batch_size: Rows per forward pass, 1 or more. Default: 32.
        progress: Show a progress bar. Default: True.
        count_flops: Also count the floating-point operations of each sample, as `flops_per_exit` does. This takes one
            more forward pass per text length that occurs, or per sample if the cost of a text depends on its words.
            Default: False.
        about: Facts to store in the trace, e.g. `{"dataset": "mrpc", "seed": 1}`. Default: none.

    Returns:
        The trace, in the order of the data set, on the CPU, with logits and scores in float32.

    Raises:
        ValueError: If the data set is empty or has no `input_ids`, if a label is not a class index or number or only
            some rows have one, if the batch size is less than 1, or if `model.ready` is not one of the comparisons
            that a trace can store.
        TypeError: If the model has no exits.

    Examples:
        >>> from transformers import BertConfig
        >>> from adaexit_hf.models.modeling_deebert import DeeBertConfig, DeeBertForSequenceClassification
        >>> encoder = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=3, num_attention_heads=1)
        >>> model = DeeBertForSequenceClassification(DeeBertConfig(encoder_config=encoder))
        >>> rows = [{"input_ids": [2, 5, 3], "label": 0}, {"input_ids": [2, 7, 8, 3], "label": 1}]
        >>> trace = collect_trace(model, rows, progress=False)
        >>> trace.logits.shape, trace.exit_layers, trace.criterion
        (torch.Size([2, 3, 2]), (1, 2, 3), 'entropy')
    """
    check_model(model)
    check_whole_number("batch_size", batch_size, low=1, advice="e.g. batch_size=32")
    config = model.config
    comparison = comparison_of(model)
    dataset = iterable_of(dataset)
    stream, outputs, flops = stream_rows(dataset, tokenizer, config), [], []
    labels: list[Tensor | None] = []
    lengths: list[int] = []
    hashes: list[int] = []
    column, counter = None, RowFlops(model) if count_flops else None
    total = len(dataset) if isinstance(dataset, Sized) else None
    with progress_bar(total=total, desc="Tracing exits", unit=" rows", disable=not progress) as bar:
        while window := list(islice(stream, _WINDOW * batch_size)):
            column = column or label_column(window)
            labelled = labels[0] is not None if labels else None
            arguments = (config.num_labels, column, len(lengths), labelled, config.multi_label)
            labels.append(row_labels(window, *arguments) if column else None)
            window_lengths = [len(row["input_ids"]) for row in window]
            lengths += window_lengths
            hashes += [row_hash(row["input_ids"]) for row in window]
            outputs.append(full_depth(model, window, batch_size, tell=bar.update))
            if counter is not None:
                flops += [counter.of(row, length) for row, length in zip(window, window_lengths, strict=True)]
    logits, scores = (torch.cat(tensors) for tensors in zip(*outputs, strict=True))
    names = label_names(config)
    return ExitTrace(
        logits,
        scores,
        torch.cat([part for part in labels if part is not None]) if labels[0] is not None else None,
        tuple(config.exit_layers),
        comparison,
        criterion=config.exit_criterion,
        bounds=config.threshold_bounds,
        method=config.model_type,
        label_names=None if names is None else tuple(names),
        lengths=torch.tensor(lengths),
        flops=torch.stack(flops) if flops else None,
        about=dict(about or {}),
        settings=score_settings(config),
        multi_label=config.multi_label,
        row_hashes=torch.tensor(hashes),
    )


def onnx_trace(
    classifier: Any, dataset: Iterable[Any], tokenizer: Any, config: Any, about: Mapping[str, Any] | None = None
) -> ExitTrace:
    """Collect a trace through ONNX Runtime, as `collect_trace` does through PyTorch.

    Args:
        classifier: an `OnnxEarlyExitClassifier`.
        dataset: as in `collect_trace`.
        tokenizer: the model's tokenizer. Not needed for tokenized rows.
        config: config of the model that was exported.
        about: as in `collect_trace`.

    Returns:
        The trace, with labels if the data set has some.
    """
    rows = list(stream_rows(dataset, tokenizer, config))
    column = label_column(rows)
    labels = None if column is None else row_labels(rows, config.num_labels, column, multi_label=config.multi_label)
    trace = classifier.trace(rows, about=about)
    facts = trace.facts | {
        name: None if trace.facts[name] is None else tuple(trace.facts[name])
        for name in ("exit_layers", "bounds", "label_names")
    }
    names = ("logits", "scores", "lengths", "row_hashes")
    tensors: dict[str, Any] = {name: torch.from_numpy(getattr(trace, name)) for name in names}
    return ExitTrace(labels=labels, **tensors, **facts)
