"""From a data set in any form to padded batches: its rows, their labels, and runs over all rows at full depth.

Training, `predict`, traces, calibration and explanations read data sets with the same code, so that they give a text
the same tokens.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

import inspect
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, islice
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .configuration_early_exit import check_whole_number
from .encoder_layers import check_token_ids
from .encoder_layers import family_of

Row = Mapping[str, Any]
Texts = tuple[str, str | None]
# Columns with one value per token, and the value used as padding; None is the encoder's padding token.
COLUMNS: dict[str, int | None] = {"input_ids": None, "attention_mask": 0, "token_type_ids": 0, "token_depths": 0}
LABEL_COLUMNS = ("labels", "label")
# Number of texts that are tokenized in one call.
BLOCK = 1000


class DatasetError(RuntimeError):
    """Reading an item of the data set raised an error; the message gives the index of the item and the error.

    The original error is the `__cause__`.
    """


def items_of(dataset: Any) -> Iterator[Any]:
    """Iterate over the items of a data set.

    Args:
        dataset: a list, a generator or any other iterable; a `datasets.Dataset` or `IterableDataset`, whose transform
            is applied; an object with a length and indices; or columns: a dict of lists, what a tokenizer returns, a
            data frame or a table. Columns become rows.

    Raises:
        ValueError: a single text, or an object that is not a data set of items: several splits, or a `DataLoader`,
            whose items are batches.
        DatasetError: the data set raises an error.

    Examples:
        >>> list(items_of({"text": ["a film", "a play"], "label": [0, 1]}))
        [{'text': 'a film', 'label': 0}, {'text': 'a play', 'label': 1}]
    """
    items = iter(iterable_of(dataset))
    for index in count():
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:
            raise DatasetError(f"dataset: item {index} raised {type(error).__name__}: {error}") from error
        yield item


def iterable_of(dataset: Any) -> Iterable[Any]:
    """Return a data set as an iterable of its items, which has a length if it is known.

    Args:
        dataset: as in `items_of`.

    Raises:
        ValueError: as in `items_of`.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        raise ValueError("dataset: got a DataLoader, which yields batches; pass its data set, dataloader.dataset")
    columns = _columns_of(dataset)
    if columns is not None:
        return _rows_of(columns, kind)
    if isinstance(dataset, str | bytes) or getattr(dataset, "ndim", 1) == 0:
        raise ValueError(f"dataset: got {kind}; pass a list of texts or rows, e.g. predict(model, [text], tokenizer)")
    if hasattr(dataset, "with_format"):
        # Tensors would only be converted back; a transform of the user's stays.
        chosen = getattr(dataset, "format", None) or {}
        if chosen.get("type") == "custom":
            return dataset
        # The columns that the user has chosen stay the only ones.
        kept = {name: chosen[name] for name in ("columns", "output_all_columns") if name in chosen}
        return dataset.with_format(None, **kept)
    if isinstance(dataset, Iterable):
        return dataset
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return (dataset[index] for index in range(len(dataset)))
    raise ValueError(f"dataset: got {kind}; pass a list of texts or rows, or one split of a data set")


def _rows_of(columns: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return columns of the same length as rows."""
    splits = [name for name, values in columns.items() if hasattr(values, "column_names")]
    if splits:
        example = "train" if "train" in splits else splits[0]
        raise ValueError(f"dataset: got the splits {', '.join(splits)}; pass one of them, e.g. dataset['{example}']")
    lists = {name: _plain(values) for name, values in columns.items()}
    sized = all(isinstance(values, Sequence) and not isinstance(values, str) for values in lists.values())
    if not sized or len({len(values) for values in lists.values()}) != 1:
        raise ValueError(
            f"dataset: got {kind}; pass a list of texts or rows, e.g. predict(model, [row], tokenizer), or columns of "
            f"the same length; it has {', '.join(map(str, columns)) or 'no columns'}"
        )
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _columns_of(dataset: Any) -> Mapping[str, Any] | None:
    """Return the columns of a dict, a data frame (pandas, Polars) or a table (Arrow); None for all other objects."""
    if isinstance(dataset, Mapping):
        return dataset
    names = getattr(dataset, "columns", None)
    if names is not None and hasattr(dataset, "to_dict"):
        return {name: dataset[name] for name in names}
    if not hasattr(dataset, "with_format") and hasattr(dataset, "to_pydict"):
        return dataset.to_pydict()
    return None


def _plain(values: Any) -> Any:
    """Return tensors, arrays and series as lists of Python's own numbers and texts."""
    return values.tolist() if hasattr(values, "tolist") else values.to_list() if hasattr(values, "to_list") else values


class RowReader:
    """Reads texts, pairs of texts, rows with `text` and `text_pair`, and tokenized rows, as tokenized rows.

    Padding at both ends of a row is removed. Rows that are too long are truncated; a warning says how many, with the
    first ones, and if there are more once again at the end.

    Args:
        tokenizer: for items that are not tokenized; may be None if all are.
        config: the model's config: whether it was trained on pairs, and the encoder's largest number of tokens and
            size of the vocabulary.
        warn: whether to warn of truncated rows.

    Attributes:
        longest: the largest number of tokens of a row; None for no limit.
        truncated: number of rows that were truncated so far.
    """

    def __init__(self, tokenizer: Any, config: Any, warn: bool = True) -> None:
        if tokenizer is not None and not callable(tokenizer):
            raise TypeError(
                f"tokenizer: got {tokenizer!r}; pass the model's tokenizer, or None for tokenized rows. Other "
                "arguments are passed by name, e.g. batch_size=32"
            )
        encoder_config = config.encoder_config
        self.tokenizer, self.vocab_size = tokenizer, encoder_config.vocab_size
        self.pairs = getattr(
            config, "pairs", None
        )  # the code of an earlier version, saved with a checkpoint, lacks it
        limits = (family_of(encoder_config).max_tokens(encoder_config), getattr(tokenizer, "model_max_length", None))
        self.longest: int | None = min((limit for limit in limits if limit), default=None)
        self.truncated = self.told = 0  # the second: how many of them were warned of
        self.warn = warn

    def rows(self, items: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Return tokenized rows, each with its index; if an item raises an error, all rows before it come first.

        Args:
            items: items with their indices in the data set.
        """
        failure = None
        while failure is None:
            block: list[tuple[int, dict[str, Any] | Texts]] = []
            labels: list[dict[str, Any]] = []
            try:
                for index, item in islice(items, BLOCK):
                    if self.tokenizer is None and not _is_row(item):
                        raise self._no_tokenizer(item)
                    block.append(
                        (index, self._checked_row(index, item) if _is_row(item) else self._texts(index, item))
                    )
                    row = item if isinstance(item, Mapping) else {}
                    labels.append({name: row[name] for name in LABEL_COLUMNS if name in row})
            except Exception as error:  # raised after the valid items before it
                failure = error
            if not block:
                break
            for (index, row), own_labels in zip(self._tokenized(block), labels, strict=True):
                if not self.told:  # now, since there may be no end
                    self._tell_of_truncated()
                yield index, row | own_labels
        self._tell_of_truncated()
        if failure is not None:
            raise failure

    def _tell_of_truncated(self) -> None:
        if self.warn and self.truncated > self.told:
            self.told = self.truncated
            warnings.warn(
                f"{self.truncated} texts have more than {self.longest} tokens, the most that this model reads (the "
                "tokenizer's model_max_length, or the encoder's positions); they were truncated",
                stacklevel=4,
            )

    def _texts(self, index: int, item: Any) -> Texts:
        """Return the text of an item and None, or its two texts, if the model was trained on such."""
        texts = _texts_of(index, item)
        check_kind(texts[1] is not None, self.pairs, f"dataset: item {index}")
        return texts

    @staticmethod
    def _no_tokenizer(item: Any) -> ValueError:
        tokenizer = "AutoTokenizer.from_pretrained(<the checkpoint>)"
        if isinstance(item, Mapping):
            return ValueError(
                f"dataset: rows have {', '.join(map(str, item))}, but no input_ids; call dataset.map(lambda row: "
                f"tokenizer(row['text'], truncation=True)), or pass tokenizer={tokenizer}"
            )
        return ValueError(f"tokenizer: got None for a data set of texts; pass {tokenizer}, or tokenized rows")

    def _tokenized(self, block: list[tuple[int, dict[str, Any] | Texts]]) -> Iterator[tuple[int, dict[str, Any]]]:
        texts = {place: item for place, (_, item) in enumerate(block) if isinstance(item, tuple)}
        rows: dict[int, dict[str, Any]] = {}
        for pairs in (False, True):  # a tokenizer takes either single texts or pairs in one call
            places = [place for place, (_, second) in texts.items() if (second is not None) == pairs]
            tokenized = self._tokenize([texts[place] for place in places]) if places else []
            rows |= dict(zip(places, tokenized, strict=True))
        for place, (index, item) in enumerate(block):
            row = rows[place] if isinstance(item, tuple) else item
            self._check_tokens(index, row["input_ids"])
            yield index, row

    def _check_tokens(self, index: int, tokens: Sequence[int]) -> None:
        if not len(tokens):
            raise ValueError(
                f"dataset: item {index} has no tokens; remove it, or let the tokenizer add its special tokens"
            )
        check_token_ids(f"dataset: item {index} has the token id", min(tokens), max(tokens), self.vocab_size)

    def _tokenize(self, texts: list[Texts]) -> list[dict[str, Any]]:
        """Return rows of texts that are all single, or all pairs; those that are too long are truncated."""
        rows = self._call_tokenizer(texts)
        if self.longest is not None:
            too_long = [place for place, row in enumerate(rows) if len(row["input_ids"]) > self.longest]
            if too_long:
                options = {"truncation": True, "max_length": self.longest}
                truncated = self._call_tokenizer([texts[place] for place in too_long], **options)
                for place, row in zip(too_long, truncated, strict=True):
                    rows[place] = row
            self.truncated += len(too_long)
        return rows

    def _call_tokenizer(self, texts: list[Texts], **options: Any) -> list[dict[str, Any]]:
        first, second = ([text[side] for text in texts] for side in (0, 1))
        encoding = self.tokenizer(first, None if second[0] is None else second, verbose=False, **options)
        columns = [name for name in COLUMNS if name in encoding]
        return [{name: encoding[name][place] for name in columns} for place in range(len(texts))]

    def _checked_row(self, index: int, item: Row) -> dict[str, Any]:
        """Return the per-token columns without padding at either end; truncation keeps the last token, e.g. [SEP]."""
        unread = [name for name in ("position_ids", "inputs_embeds") if item.get(name) is not None]
        if unread:
            raise ValueError(
                f"dataset: item {index} has {' and '.join(unread)}, which only model(**batch) reads; remove the column"
            )
        tokens = _plain(item["input_ids"])
        # Of the kinds, not of every token: this check would take longer than the others together.
        flat = isinstance(tokens, list | tuple) and all(issubclass(kind, Integral) for kind in set(map(type, tokens)))
        if not flat:
            raise ValueError(
                f"dataset: item {index} has the input_ids {tokens!r:.60}; pass a flat list of token ids per row, and "
                "a single row as a list, [row]"
            )
        try:
            row: dict[str, Any] = {name: token_column(item, name) for name in COLUMNS if name in item}
        except (TypeError, ValueError) as error:
            raise ValueError(f"dataset: item {index}: {error}") from error
        real = [place for place, value in enumerate(row.get("attention_mask", ())) if value]
        if real:
            start, end = real[0], real[-1] + 1
            row = {name: values[start:end] for name, values in row.items()}
        if self.longest is not None and len(row["input_ids"]) > self.longest:
            self.truncated += 1
            row = {name: [*values[: self.longest - 1], values[-1]] for name, values in row.items()}
        return row


def check_kind(pair: bool, trained_on_pairs: bool | None, where: str) -> None:
    """Check that an input is of the kind that the model was trained on.

    Args:
        pair: whether it is a pair of texts.
        trained_on_pairs: whether the model was trained on pairs; None if that is not known, which allows both.
        where: what the input is called in the error message.

    Raises:
        ValueError: it is of the other kind.

    Examples:
        >>> check_kind(False, True, "item 0")
        Traceback (most recent call last):
            ...
        ValueError: item 0 is a single text, but the model was trained on pairs of texts; pass both texts, e.g. as \
{'text': ..., 'text_pair': ...}. A model that is loaded with pairs=None takes both kinds
    """
    if trained_on_pairs in (None, pair):
        return
    kinds = ("a single text", "a pair of texts")
    call = "both texts, e.g. as {'text': ..., 'text_pair': ...}" if trained_on_pairs else "one text"
    raise ValueError(
        f"{where} is {kinds[pair]}, but the model was trained on {('single texts', 'pairs of texts')[not pair]}; pass "
        f"{call}. A model that is loaded with pairs=None takes both kinds"
    )


def _is_row(item: Any) -> bool:
    return isinstance(item, Mapping) and "input_ids" in item


def _texts_of(index: int, item: Any) -> Texts:
    """Return the text of an item and None, or its two texts."""
    texts = item
    if isinstance(item, Mapping):
        texts = [item.get("text"), *([] if item.get("text_pair") is None else [item["text_pair"]])]
    elif isinstance(item, str):
        texts = [item]
    texts = _plain(texts)  # an array of texts
    if isinstance(texts, list | tuple) and len(texts) in (1, 2) and all(isinstance(text, str) for text in texts):
        _check_encodable(index, texts)
        return str(texts[0]), str(texts[1]) if len(texts) == 2 else None
    raise ValueError(
        f"dataset: item {index} is {item!r:.80}; pass texts, pairs of texts, rows with 'text' (and 'text_pair'), or "
        "tokenized rows with 'input_ids', e.g. dataset.map(lambda row: tokenizer(row['sentence'], truncation=True))"
    )


def _check_encodable(index: int, texts: Sequence[str]) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"dataset: item {index} has half a surrogate pair, {error.object[error.start]!r}, which is no character; "
            "repair the text, e.g. text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from None


def stream_rows(dataset: Any, tokenizer: Any, config: Any) -> Iterator[dict[str, Any]]:
    """Iterate over the tokenized rows of a data set, with their labels; it need not fit into memory.

    Args:
        dataset: texts or tokenized rows, as in `items_of` and `RowReader`.
        tokenizer: as in `RowReader`.
        config: as in `RowReader`.

    Raises:
        ValueError: the data set is empty, or an item is neither a text nor a tokenized row.
        DatasetError: the data set raises an error.
    """
    empty = True
    for _, row in RowReader(tokenizer, config).rows(enumerate(items_of(dataset))):
        empty = False
        yield row
    if empty:
        raise ValueError("dataset: got no rows; pass at least one")


def read_rows(dataset: Any, tokenizer: Any, config: Any) -> list[dict[str, Any]]:
    """Return the rows of `stream_rows` as a list.

    Args:
        dataset: as in `stream_rows`.
        tokenizer: as in `stream_rows`.
        config: as in `stream_rows`.
    """
    return list(stream_rows(dataset, tokenizer, config))


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
    values, tokens = list(_plain(row[name])), len(row["input_ids"])
    if len(values) != tokens:
        raise ValueError(
            f"{name}: got {len(values)} values for {tokens} tokens; was the column made with another tokenizer? Make "
            "it again with these input_ids"
        )
    return values


def label_column(rows: Sequence[Row]) -> str | None:
    """Return the name of the column with the labels, `labels` or `label`, or None without such a column.

    Args:
        rows: rows of a data set. If they have both columns, the first with a label that is not None is chosen.
    """
    columns = [name for name in LABEL_COLUMNS if any(name in row for row in rows)]
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


def wrong_labels(labels: Tensor, num_labels: int, multi_label: bool = False) -> Tensor:
    """Return which labels are invalid: not a class index or, for regression, not a finite number.

    Args:
        labels: labels of any shape.
        num_labels: number of classes; 1 for regression.
        multi_label: whether a text may have several labels at once, so that labels are 0 and 1.

    Returns:
        True where a label is invalid, in the shape of `labels`.

    Examples:
        >>> wrong_labels(torch.tensor([0, 2, 3, -1]), num_labels=3).tolist()
        [False, False, True, True]
        >>> wrong_labels(torch.tensor([0.5, torch.nan]), num_labels=1).tolist()
        [False, True]
        >>> wrong_labels(torch.tensor([[0, 1, 2]]), num_labels=3, multi_label=True).tolist()
        [[False, False, True]]
    """
    labels = wide_labels(labels)
    if multi_label:
        return (labels != 0) & (labels != 1)
    if num_labels == 1:
        return ~labels.isfinite()
    return (labels < 0) | (labels >= num_labels) | (labels != labels.round())  # the last is True for NaN, too


def row_labels(
    rows: Sequence[Row],
    num_labels: int,
    column: str | None = None,
    start: int = 0,
    labelled: bool | None = None,
    multi_label: bool = False,
) -> Tensor | None:
    """Return the labels of rows of a data set.

    Args:
        rows: rows, possibly only a part of the data set.
        num_labels: number of classes; 1 for regression, where negative labels are numbers like all others.
        column: name of the column with the labels. Default: see `label_column`.
        start: index of the first row in the data set, for error messages.
        labelled: whether the previous rows of the data set have labels; None for the first part.
        multi_label: whether a text may have several labels at once; the label of a row is then a list of `num_labels`
            numbers, 1 for each label that it has and 0 for the others.

    Returns:
        The labels, shape `(rows,)`; with several labels at once int64, shape `(rows, num_labels)`. None without such a
        column, or if all labels are missing: None or, for classification, negative, as in GLUE's test sets.

    Raises:
        ValueError: a label is not a single number, not a class index, not finite, or missing though other rows have
            one; or it is not one 0 or 1 per label.
    """
    name = column or label_column(rows)
    if name is None:
        return None
    if multi_label:
        values = [_label_set(row.get(name), name, num_labels, number) for number, row in enumerate(rows, start)]
        labels = wide_labels(torch.tensor([[-1] * num_labels if value is None else value for value in values]))
    else:
        values = [_label(row.get(name), name, row_number) for row_number, row in enumerate(rows, start)]
        labels = wide_labels(torch.tensor([-1 if value is None else value for value in values]))
    missing = torch.tensor([value is None for value in values])
    if num_labels > 1:
        missing |= (labels < 0).reshape(len(rows), -1).all(dim=1)
    if not labelled and bool(missing.all()):
        return None
    invalid = wrong_labels(labels, num_labels, multi_label).reshape(len(rows), -1).any(dim=1)
    wrong = ~missing if labelled is False else missing | invalid
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0, 0])
        before = ", but the rows before it have no label" if labelled is False else ""
        allowed = "finite numbers" if num_labels == 1 else f"class indices from 0 to {num_labels - 1}"
        allowed = f"{num_labels} numbers per row, 0 or 1" if multi_label else allowed
        raise ValueError(
            f"{name}: got {values[first]} in row {start + first}{before}; pass {allowed}, and drop rows without a "
            "label, or the column"
        )
    return labels.long() if multi_label else labels


def _label_set(value: Any, name: str, num_labels: int, row_number: int) -> list[Any] | None:
    """Return the numbers of a row's label set, one per label; None if they are missing.

    Raises:
        ValueError: they are not one number per label.
    """
    values = _plain(value)
    if values is None:
        return None
    numbers = isinstance(values, list | tuple) and all(isinstance(number, Real) for number in values)
    if numbers and len(values) == num_labels:
        return list(values)
    raise ValueError(
        f"{name}: got {value!r} in row {row_number}; pass one number per label, a list of {num_labels}: 1 for each "
        "label that the text has, and 0 for the others"
    )


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
    for first in progress_bar(range(0, len(order), batch_size), desc=desc, disable=desc is None):
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


class _Lines:
    """A stream on which every state of a progress bar is a line of its own, for logs."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self.stream.write(f"{text.strip()}\n")

    def flush(self) -> None:
        self.stream.flush()


def progress_bar(items: Any = None, **settings: Any) -> Any:
    """Return a progress bar of tqdm.

    If stderr is neither a terminal nor a notebook, it writes a line every 10 seconds, and nothing before the first.

    Args:
        items: as in tqdm.
        **settings: as in tqdm. The environment variable `TQDM_MININTERVAL` sets another interval.
    """
    if (sys.stderr is not None and sys.stderr.isatty()) or "ipykernel" in sys.modules:
        return tqdm(items, **settings)
    in_log: dict[str, Any] = {} if "TQDM_MININTERVAL" in os.environ else {"mininterval": 10, "delay": 10}
    if sys.stderr is not None:
        in_log["file"] = _Lines(sys.stderr)
    return tqdm(items, **in_log | settings)


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


# Model -> how many callers of `eval_mode` are inside, and the modules that were in training mode before the first.
_EVAL: weakref.WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = weakref.WeakKeyDictionary()
_EVAL_LOCK = threading.Lock()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Context manager: eval mode inside, and afterwards each module's previous mode.

    `model.train()` would not restore it, since users may keep parts of a model in eval mode. If several threads use a
    model at once, the previous mode returns when the last one has finished.

    Args:
        model: the model.

    Examples:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with eval_mode(model):
        ...     inside = [part.training for part in model]
        >>> inside, [part.training for part in model]
        ([False, False], [True, False])
    """
    with _EVAL_LOCK:
        callers, training = _EVAL.get(model, (0, []))
        if not callers:
            training = [module for module in model.modules() if module.training]
            model.eval()
        _EVAL[model] = callers + 1, training
    try:
        yield
    finally:
        with _EVAL_LOCK:
            callers, training = _EVAL.pop(model)
            if callers > 1:
                _EVAL[model] = callers - 1, training
            else:
                for module in training:
                    module.training = True
