"""Texts in any form as tokenized rows, one after the other."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from ..models.padded_batches import COLUMNS, token_column

Row = dict[str, list[int]]
Texts = tuple[str, str | None]
# Number of texts that are tokenized in one call.
BLOCK = 1000


class DatasetError(RuntimeError):
    """Reading an item of the data set raised an error; the message gives the index of the item and the error.

    The original error is the `__cause__`.
    """


def numbered(dataset: Iterable[Any], share: int, shares: int) -> Iterator[tuple[int, Any]]:
    """Every item of a share with its index in the data set; share k of n has the items k, k + n, k + 2n, ...

    Raises:
        ValueError: if the data set is a single text, a mapping, or not iterable.
        DatasetError: if the data set raises an error.

    >>> list(numbered(["a", "b", "c"], share=0, shares=2))
    [(0, 'a'), (2, 'c')]
    """
    if isinstance(dataset, str | Mapping) or not isinstance(dataset, Iterable):
        raise ValueError(
            f"dataset: got {type(dataset).__name__}; pass a list of texts or rows, or one split of a data set, e.g. "
            "predict(model, [text], tokenizer)"
        )
    items, index = iter(dataset), 0
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:
            raise DatasetError(f"dataset: item {index} raised {type(error).__name__}: {error}") from error
        if index % shares == share:
            yield index, item
        index += 1


class RowReader:
    """Reads texts, pairs of texts, rows with `text` and `text_pair`, and tokenized rows.

    Args:
        tokenizer: for items that are not tokenized; may be None if all are.
        longest: largest number of tokens of a row; longer ones are truncated and counted. None for no limit.
    """

    def __init__(self, tokenizer: Any, longest: int | None) -> None:
        self.tokenizer, self.longest = tokenizer, longest
        self.truncated = 0

    def rows(self, items: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Row]]:
        """Tokenized rows, each with its index; if an item raises an error, all rows before it, then the error."""
        failure = None
        while failure is None:
            block: list[tuple[int, Row | Texts]] = []
            try:
                for index, item in islice(items, BLOCK):
                    block.append((index, self._checked_row(index, item) if _is_row(item) else _texts_of(index, item)))
            except Exception as error:  # raised after the valid items before it
                failure = error
            if not block:
                break
            yield from self._tokenized(block)
        if failure is not None:
            raise failure

    def _tokenized(self, block: list[tuple[int, Row | Texts]]) -> Iterator[tuple[int, Row]]:
        texts = {place: item for place, (_, item) in enumerate(block) if isinstance(item, tuple)}
        rows: dict[int, Row] = {}
        for pairs in (False, True):  # a tokenizer takes either single texts or pairs in one call
            places = [place for place, (_, second) in texts.items() if (second is not None) == pairs]
            tokenized = self._tokenize([texts[place] for place in places]) if places else []
            rows |= dict(zip(places, tokenized, strict=True))
        for place, (index, item) in enumerate(block):
            row = rows[place] if isinstance(item, tuple) else item
            if not len(row["input_ids"]):
                raise ValueError(
                    f"dataset: item {index} has no tokens; remove it, or let the tokenizer add its special tokens"
                )
            yield index, row

    def _tokenize(self, texts: list[Texts]) -> list[Row]:
        """Rows of texts that are all single, or all pairs; those that are too long are truncated."""
        if self.tokenizer is None:
            raise ValueError(
                "tokenizer: got None for a data set of texts; pass AutoTokenizer.from_pretrained(<the checkpoint>), "
                "or tokenized rows"
            )
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

    def _call_tokenizer(self, texts: list[Texts], **options: Any) -> list[Row]:
        first, second = ([text[side] for text in texts] for side in (0, 1))
        encoding = self.tokenizer(first, None if second[0] is None else second, verbose=False, **options)
        columns = [name for name in COLUMNS if name in encoding]
        return [{name: encoding[name][place] for name in columns} for place in range(len(texts))]

    def _checked_row(self, index: int, item: Mapping[str, Any]) -> Row:
        """The per-token columns without the padding at the end; truncation keeps the last token, e.g. `[SEP]`."""
        try:
            row = {name: token_column(item, name) for name in COLUMNS if name in item}
        except (TypeError, ValueError) as error:
            raise ValueError(f"dataset: item {index}: {error}") from error
        mask = row.get("attention_mask")
        if mask and not mask[-1] and any(mask):
            end = len(mask) - mask[::-1].index(1)
            row = {name: values[:end] for name, values in row.items()}
        if self.longest is not None and len(row["input_ids"]) > self.longest:
            self.truncated += 1
            row = {name: [*values[: self.longest - 1], values[-1]] for name, values in row.items()}
        return row


def _is_row(item: Any) -> bool:
    return isinstance(item, Mapping) and "input_ids" in item


def _texts_of(index: int, item: Any) -> Texts:
    """The text of an item and None, or its two texts."""
    texts = item
    if isinstance(item, Mapping):
        texts = [item[name] for name in ("text", "text_pair") if item.get(name) is not None]
    elif isinstance(item, str):
        texts = [item]
    if isinstance(texts, list | tuple) and len(texts) in (1, 2) and all(isinstance(text, str) for text in texts):
        return texts[0], texts[1] if len(texts) == 2 else None
    raise ValueError(
        f"dataset: item {index} is {item!r:.80}; pass texts, pairs of texts, rows with 'text' (and 'text_pair'), or "
        "tokenized rows with 'input_ids'"
    )
