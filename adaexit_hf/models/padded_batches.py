"""Padded batches of tokenized rows, their labels, and runs over a data set at full depth.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .configuration_early_exit import check_whole_number

Row = Mapping[str, Any]
# Columns with one value per token, and the value used as padding; None is the encoder's padding token.
COLUMNS: dict[str, int | None] = {"input_ids": None, "attention_mask": 0, "token_type_ids": 0, "token_depths": 0}


def padded_batch(rows: Sequence[Row], encoder_config: Any) -> dict[str, Tensor]:
    """Return rows as one batch, padded on the right.

    Args:
        rows: rows with `input_ids`, and other columns of `COLUMNS`.
        encoder_config: config of the encoder, for its padding token.

    Returns:
        Tensors of shape `(rows, tokens of the longest row)` by name, always with `attention_mask`.

    Raises:
        ValueError: a column is not as long as `input_ids`, or only some rows have it.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, Tensor] = {}
    for name, pad_value in COLUMNS.items():
        if name != "attention_mask" and not any(name in row for row in rows):
            continue
        pad = (encoder_config.pad_token_id or 0) if pad_value is None else pad_value
        padded = []
        for row in rows:
            if name not in row and name != "attention_mask":
                raise ValueError(
                    f"dataset: some rows have a column '{name}', others have not; pass it for all or none"
                )
            values = token_column(row, name) if name in row else [1] * len(row["input_ids"])
            padded.append(values + [pad] * (longest - len(values)))
        batch[name] = torch.tensor(padded)
    return batch


def token_column(row: Row, name: str) -> list[int]:
    """Return a column that has one value per token.

    Args:
        row: a row with `input_ids`.
        name: name of the column.

    Raises:
        ValueError: the column has more or fewer values than `input_ids`.
    """
    values, tokens = list(row[name]), len(row["input_ids"])
    if len(values) != tokens:
        raise ValueError(
            f"{name}: got {len(values)} values for {tokens} tokens; was the column made with another tokenizer? Make "
            "it again with these input_ids"
        )
    return values


def checked_rows(dataset: Iterable[Row]) -> list[Row]:
    """Return the rows of a tokenized data set, whose columns are lists of numbers.

    Args:
        dataset: rows with `input_ids`.

    Raises:
        ValueError: `dataset` is empty, has no `input_ids`, or is a dict of several splits.
    """
    return list(stream_rows(dataset))


def stream_rows(dataset: Iterable[Row]) -> Iterator[Row]:
    """Iterate over the rows of a tokenized data set, which need not fit into memory.

    Args:
        dataset: rows with `input_ids`.

    Raises:
        ValueError: as in `checked_rows`.
    """
    if isinstance(dataset, Mapping):
        raise ValueError(f"dataset: got the splits {', '.join(dataset)}; pass one of them, e.g. dataset['train']")
    # In another format the columns could be tensors, which cannot be compared like lists.
    rows = iter(dataset.with_format(None) if hasattr(dataset, "with_format") else dataset)
    first = next(rows, None)
    if first is None:
        raise ValueError("dataset: got no rows; pass at least one")
    if "input_ids" not in first:
        raise ValueError(
            f"dataset: rows have {', '.join(first)}, but no input_ids; call "
            "dataset.map(lambda row: tokenizer(row['text'], truncation=True)) first"
        )
    yield first
    yield from rows


def label_column(rows: Sequence[Row]) -> str | None:
    """Return the name of the column with the labels, `labels` or `label`, or None without such a column.

    Args:
        rows: rows of a data set. If they have both columns, the first with a label that is not None is chosen.
    """
    columns = [name for name in ("labels", "label") if any(name in row for row in rows)]
    return next(
        (name for name in columns if any(row.get(name) is not None for row in rows)), next(iter(columns), None)
    )


def wide_labels(labels: Tensor) -> Tensor:
    """Return labels in a dtype with all operations and enough precision: integers and bool as int64, else >= float32.

    Args:
        labels: labels of any shape and dtype.

    Examples:
        >>> wide_labels(torch.tensor([True, False])).tolist(), wide_labels(torch.zeros(1, dtype=torch.bfloat16)).dtype
        ([1, 0], torch.float32)
    """
    whole = not labels.is_floating_point()
    return labels.long() if whole else labels.to(torch.promote_types(labels.dtype, torch.float32))


def wrong_labels(labels: Tensor, num_labels: int) -> Tensor:
    """Return which labels are invalid: not a class index or, for regression, not a finite number.

    Args:
        labels: labels of any shape.
        num_labels: number of classes; 1 for regression.

    Returns:
        True where a label is invalid, in the shape of `labels`.

    Examples:
        >>> wrong_labels(torch.tensor([0, 2, 3, -1]), num_labels=3).tolist()
        [False, False, True, True]
        >>> wrong_labels(torch.tensor([0.5, torch.nan]), num_labels=1).tolist()
        [False, True]
    """
    labels = wide_labels(labels)
    if num_labels == 1:
        return ~labels.isfinite()
    return (labels < 0) | (labels >= num_labels) | (labels != labels.round())  # the last is True for NaN, too


def row_labels(
    rows: Sequence[Row], num_labels: int, column: str | None = None, start: int = 0, labelled: bool | None = None
) -> Tensor | None:
    """Return the labels of rows of a data set.

    Args:
        rows: rows, possibly only a part of the data set.
        num_labels: number of classes; 1 for regression, where negative labels are numbers like all others.
        column: name of the column with the labels. Default: see `label_column`.
        start: index of the first row in the data set, for error messages.
        labelled: whether the previous rows of the data set have labels; None for the first part.

    Returns:
        The labels, shape `(rows,)`; None without such a column, or if all labels are missing: None or, for
        classification, negative, as in GLUE's test sets.

    Raises:
        ValueError: a label is not a single number, not a class index, not finite, or missing though other rows have
            one.
    """
    name = column or label_column(rows)
    if name is None:
        return None
    values = [_label(row.get(name), name, row_number) for row_number, row in enumerate(rows, start)]
    labels = wide_labels(torch.tensor([-1 if value is None else value for value in values]))
    missing = torch.tensor([value is None for value in values])
    if num_labels > 1:
        missing |= labels < 0
    if not labelled and bool(missing.all()):
        return None
    wrong = ~missing if labelled is False else missing | wrong_labels(labels, num_labels)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0, 0])
        before = ", but the rows before it have no label" if labelled is False else ""
        allowed = "finite numbers" if num_labels == 1 else f"class indices from 0 to {num_labels - 1}"
        raise ValueError(
            f"{name}: got {values[first]} in row {start + first}{before}; pass {allowed}, and drop rows without a "
            "label, or the column"
        )
    return labels


def _label(value: Any, name: str, row_number: int) -> Any:
    """Return a label as a number, also if it is a list of one number; None if it is missing.

    Raises:
        ValueError: it is a text, or not one number.
    """
    if value is None or isinstance(value, Real):
        return value
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):  # texts, nested lists of unequal lengths, other objects
        tensor = torch.empty(0)
    if tensor.dim() < 2 and tensor.numel() == 1:
        return tensor.item()
    allowed = (
        f"class indices, dataset.class_encode_column('{name}'), or numbers for regression"
        if isinstance(value, str)
        else "one number per row, the index of its class or the number to predict"
    )
    raise ValueError(f"{name}: got {value!r} in row {row_number}; pass {allowed}")


def check_model(model: Any) -> None:
    """Check that a model has exits.

    Args:
        model: the model that was passed.

    Raises:
        TypeError: it has no exits.
    """
    # Not `isinstance`: a model that runs the code saved with its checkpoint is of another class.
    if not hasattr(model, "exit_step"):
        raise TypeError(
            f"model: got {type(model).__name__}, which has no exits; pass one that AutoModelForSequenceClassification"
            ".from_pretrained loads from a checkpoint with exits, or train one, e.g. "
            "BerxitForSequenceClassification.from_encoder_pretrained(...)"
        )


def by_length(
    rows: Sequence[Row], batch_size: int, encoder_config: Any, desc: str | None = None
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Iterate over batches of rows of similar length, longest first.

    Args:
        rows: tokenized rows.
        batch_size: rows per batch.
        encoder_config: config of the encoder, for its padding token.
        desc: text beside the progress bar; None shows no bar.

    Yields:
        The indices of the batch's rows in `rows`, and the padded batch.

    Raises:
        ValueError: `batch_size` is not a whole number from 1.
    """
    check_whole_number("batch_size", batch_size, low=1, advice="e.g. batch_size=32")
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]), reverse=True)
    for first in tqdm(range(0, len(order), batch_size), desc=desc, disable=desc is None):
        indices = order[first : first + batch_size]
        yield indices, padded_batch([rows[index] for index in indices], encoder_config)


def model_inputs(model: Any, batch: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Return the inputs for `model.embed`, on the model's device.

    Args:
        model: an early-exit model, or an adapter around one.
        batch: tensors by name.

    Returns:
        All inputs that the model's `forward` accepts and that describe the texts, None where `batch` has none.
    """
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "token_depths")
    # `__self__` is the model itself: an adapter around it has the model's methods, but a `forward` of its own.
    accepted = inspect.signature(model.thresholds_in_use.__self__.forward).parameters
    # Accelerate keeps offloaded weights on "meta", and moves them to the execution device when they are needed.
    device = model._hf_hook.execution_device if model.device.type == "meta" else model.device
    values = {name: batch.get(name) for name in names if name in accepted}
    return {name: None if value is None else value.to(device, non_blocking=True) for name, value in values.items()}


@torch.inference_mode()
def full_depth(
    model: Any,
    rows: Sequence[Row],
    batch_size: int,
    desc: str | None = None,
    tell: Callable[[int], Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run all rows at full depth in eval mode, and return logits and readiness scores of every exit.

    The mode of every module is restored afterwards.

    Args:
        model: an early-exit model.
        rows: tokenized rows.
        batch_size: rows per batch.
        desc: text beside the progress bar; None shows no bar.
        tell: called after every batch with the number of its rows, for a progress bar of the caller.

    Returns:
        Logits, shape `(rows, exits, labels)`, and scores, shape `(rows, exits)`, in the order of the rows, as float32
        on the CPU.
    """
    order: list[int] = []
    logits, scores = [], []
    with eval_mode(model):
        for indices, batch in by_length(rows, batch_size, model.config.encoder_config, desc):
            output = model(**model_inputs(model, batch), early_exit=False)
            order += indices
            logits.append(output.exit_logits.float().cpu())
            scores.append(output.exit_scores.float().cpu())
            if tell is not None:
                tell(len(indices))
    original_order = torch.tensor(order).argsort()
    return torch.cat(logits)[original_order], torch.cat(scores)[original_order]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Context manager: eval mode inside, and afterwards each module's previous mode.

    `model.train()` would not restore it, since users may keep parts of a model in eval mode.

    Args:
        model: the model.

    Examples:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with eval_mode(model):
        ...     inside = [part.training for part in model]
        >>> inside, [part.training for part in model]
        ([False, False], [True, False])
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
