"""Tokenized rows as padded batches, their labels, and full-depth passes over them in eval mode.

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
# Per-token columns, and what pads them; `None` is the encoder's padding token.
COLUMNS: dict[str, int | None] = {"input_ids": None, "attention_mask": 0, "token_type_ids": 0, "token_depths": 0}


def padded_batch(rows: Sequence[Row], encoder_config: Any) -> dict[str, Tensor]:
    """Rows of token lists -> tensors (rows, longest), padded on the right, with an attention mask.

    Raises:
        ValueError: a column is not as long as `input_ids`, or only some rows have it.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, Tensor] = {}
    for name, filling in COLUMNS.items():
        if name != "attention_mask" and not any(name in row for row in rows):
            continue
        fill = (encoder_config.pad_token_id or 0) if filling is None else filling
        lines = []
        for row in rows:
            if name not in row and name != "attention_mask":
                raise ValueError(
                    f"dataset: some rows have a column '{name}', others have not; pass it for all or none"
                )
            line = token_column(row, name) if name in row else [1] * len(row["input_ids"])
            lines.append(line + [fill] * (longest - len(line)))
        batch[name] = torch.tensor(lines)
    return batch


def token_column(row: Row, name: str) -> list[int]:
    """One value for every token.

    Raises:
        ValueError: more or fewer.
    """
    values, tokens = list(row[name]), len(row["input_ids"])
    if len(values) != tokens:
        raise ValueError(
            f"{name}: got {len(values)} values for {tokens} tokens; was the column made with another tokenizer? Make "
            "it again from these input_ids"
        )
    return values


def checked_rows(dataset: Iterable[Row]) -> list[Row]:
    """The rows of a tokenized data set, as lists of numbers.

    Raises:
        ValueError: it is empty, has no `input_ids`, or is several splits.
    """
    return list(stream_rows(dataset))


def stream_rows(dataset: Iterable[Row]) -> Iterator[Row]:
    """The same one by one, for data sets that need not fit into memory.

    Raises:
        ValueError: as `checked_rows`.
    """
    if isinstance(dataset, Mapping):
        raise ValueError(f"dataset: got the splits {', '.join(dataset)}; pass one of them, e.g. dataset['train']")
    # In another format tokens would be tensors, which equal nothing but themselves.
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
    """The column that holds the labels, `labels` or `label`: one with a label if there is any; None where none is."""
    found = [name for name in ("labels", "label") if any(name in row for row in rows)]
    return next((name for name in found if any(row.get(name) is not None for row in rows)), next(iter(found), None))


def wide_labels(labels: Tensor) -> Tensor:
    """The same in a dtype that can be compared and rounded: whole numbers and bool as int64, bfloat16 as float32.

    >>> wide_labels(torch.tensor([True, False])).tolist(), wide_labels(torch.zeros(1, dtype=torch.bfloat16)).dtype
    ([1, 0], torch.float32)
    """
    whole = not labels.is_floating_point()
    return labels.long() if whole else labels.to(torch.promote_types(labels.dtype, torch.float32))


def wrong_labels(labels: Tensor, num_labels: int) -> Tensor:
    """Which labels are none: no class index, or with one label no finite number; any shape -> bool.

    >>> wrong_labels(torch.tensor([0, 2, 3, -1]), 3).tolist(), wrong_labels(torch.tensor([0.5, torch.nan]), 1).tolist()
    ([False, False, True, True], [False, True])
    """
    labels = wide_labels(labels)
    if num_labels == 1:
        return ~labels.isfinite()
    return (labels < 0) | (labels >= num_labels) | (labels != labels.round())  # NaN, too, is not itself


def row_labels(
    rows: Sequence[Row], num_labels: int, column: str | None = None, start: int = 0, labelled: bool | None = None
) -> Tensor | None:
    """The labels, (rows,); None where there are none, or where all are None or negative, as in GLUE's test sets.

    Args:
        num_labels: 1 for regression, where -1 is a number like others.
        column: default: the one that has labels.
        start: the place of the first row in its data set, for errors.
        labelled: whether the rows before these have labels; None where there are none before.

    Raises:
        ValueError: a label that is no single number, no class index, not finite, or missing where other rows have one.
    """
    name = column or label_column(rows)
    if name is None:
        return None
    values = [_label(row.get(name), name, place) for place, row in enumerate(rows, start)]
    labels = wide_labels(torch.tensor([-1 if value is None else value for value in values]))
    missing = torch.tensor([value is None for value in values])
    if num_labels > 1:
        missing |= labels < 0
    if not labelled and bool(missing.all()):
        return None
    wrong = ~missing if labelled is False else missing | wrong_labels(labels, num_labels)
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0, 0])
        before = ", but the rows before it have no label" if labelled is False else ""
        allowed = "finite numbers" if num_labels == 1 else f"class indices from 0 to {num_labels - 1}"
        raise ValueError(
            f"{name}: got {values[place]} in row {start + place}{before}; pass {allowed}, and drop rows without a "
            "label, or the column"
        )
    return labels


def _label(value: Any, name: str, place: int) -> Any:
    """A label as a number, a list of one as that one; None where there is none.

    Raises:
        ValueError: it is a text, or not one number.
    """
    if value is None or isinstance(value, Real):
        return value
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):  # texts, lists of unequal lists, what is no number
        found = torch.empty(0)
    if found.dim() < 2 and found.numel() == 1:
        return found.item()
    what = (
        f"class indices, dataset.class_encode_column('{name}'), or numbers for regression"
        if isinstance(value, str)
        else "one number per row, the index of its class or the number to predict"
    )
    raise ValueError(f"{name}: got {value!r} in row {place}; pass {what}")


def check_model(model: Any) -> None:
    """Refuse a model without exits. Not by its class, which is another one in a checkpoint that carries its code.

    Raises:
        TypeError: it has none.
    """
    if not hasattr(model, "exit_step"):
        raise TypeError(
            f"model: got {type(model).__name__}, which has no exits; pass one that AutoModelForSequenceClassification"
            ".from_pretrained loads from a checkpoint with exits, or train one, e.g. "
            "BerxitForSequenceClassification.from_encoder_pretrained(...)"
        )


def by_length(
    rows: Sequence[Row], batch_size: int, encoder_config: Any, desc: str | None = None
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of rows of similar length, longest first: their places in `rows`, and the padded tensors.

    Args:
        desc: shown at a progress bar; None shows none.

    Raises:
        ValueError: no batch size.
    """
    check_whole_number("batch_size", batch_size, low=1, advice="e.g. batch_size=32")
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"]), reverse=True)
    for first in tqdm(range(0, len(order), batch_size), desc=desc, disable=desc is None):
        places = order[first : first + batch_size]
        yield places, padded_batch([rows[place] for place in places], encoder_config)


def model_inputs(model: Any, batch: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """What `embed` takes: what the model's forward knows of the batch, on its device; the rest is None."""
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "token_depths")
    # An adapter around the model hands on what is asked of it, but for `forward`, where it has its own.
    known = inspect.signature(model.thresholds_in_use.__self__.forward).parameters
    # Accelerate leaves weights that it offloads on no device, and moves them to another when they are needed.
    device = model._hf_hook.execution_device if model.device.type == "meta" else model.device
    values = {name: batch.get(name) for name in names if name in known}
    return {name: None if value is None else value.to(device, non_blocking=True) for name, value in values.items()}


@torch.inference_mode()
def full_depth(
    model: Any,
    rows: Sequence[Row],
    batch_size: int,
    desc: str | None = None,
    tell: Callable[[int], Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (rows, exits, labels) and scores (rows, exits) of every exit, in the order of the rows, on the CPU.

    Runs in eval mode and restores the modes of its modules afterwards.

    Args:
        model, rows, batch_size, desc: as in `by_length`.
        tell: called after every batch with the number of its rows, for a progress bar of the caller's.
    """
    order: list[int] = []
    logits, scores = [], []
    with eval_mode(model):
        for places, batch in by_length(rows, batch_size, model.config.encoder_config, desc):
            output = model(**model_inputs(model, batch), early_exit=False)
            order += places
            logits.append(output.exit_logits.float().cpu())
            scores.append(output.exit_scores.float().cpu())
            if tell is not None:
                tell(len(places))
    place = torch.tensor(order).argsort()
    return torch.cat(logits)[place], torch.cat(scores)[place]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, afterwards for every module its own mode again: users keep parts of a model in eval mode.

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
