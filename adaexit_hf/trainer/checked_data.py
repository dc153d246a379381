"""What the collator makes of a data set, read once before the first step: checked, and as rows for `model.prepare`."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers.trainer_utils import has_length

from ..data.batches_by_length import chunks, fetch_rows
from ..models.early_exit_loop import right_padded
from ..models.encoder_layers import family_of
from ..models.exit_heads import check_pairs, second_segment
from ..models.padded_batches import COLUMNS, LABEL_COLUMNS, wrong_labels
from .frozen_states import token_mask

Collate = Callable[[list[Any]], Any]


def check_kinds(train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
    """Check the kind of all data sets.

    Args:
        train_dataset: the training set, or None.
        eval_dataset: an evaluation set, a dict of several, or None.

    Returns:
        The data sets by their names in error messages.

    Raises:
        ValueError: as in `check_kind`.

    Examples:
        >>> check_kinds([1], {"early": [2], "late": [3]})
        {'train_dataset': [1], "eval_dataset['early']": [2], "eval_dataset['late']": [3]}
    """
    named = {"train_dataset": train_dataset}
    # Trainer would take columns for data sets with the names of the columns.
    if isinstance(eval_dataset, dict) and not {"input_ids", *LABEL_COLUMNS} & eval_dataset.keys():
        named |= {f"eval_dataset['{name}']": rows for name, rows in eval_dataset.items()}
    else:
        named["eval_dataset"] = eval_dataset
    for name, rows in named.items():
        check_kind(rows, name)
    return named


def check_kind(dataset: Any, name: str) -> None:
    """Check that a data set gives its rows by index or as a stream, before Transformers uses it.

    Args:
        dataset: what was passed as a data set, or None.
        name: name of the data set in error messages.

    Raises:
        ValueError: for columns, data frames, several splits, data loaders, generators and texts; the message has the
            call that makes a data set of it.
    """
    by_index = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, DataLoader):
        call = "its data set, dataloader.dataset"
    elif isinstance(dataset, Mapping):
        splits = [split for split, rows in dataset.items() if _is_split(rows)]
        call = "its rows, datasets.Dataset.from_dict(columns)"
        if splits:
            call = f"one of its splits, e.g. dataset['{'train' if 'train' in splits else splits[0]}']"
    elif hasattr(dataset, "columns") and hasattr(dataset, "to_dict"):
        library = "polars" if type(dataset).__module__.startswith("polars") else "pandas"
        call = f"its rows, datasets.Dataset.from_{library}(df)"
    elif hasattr(dataset, "to_pydict"):
        call = "its rows, datasets.Dataset(table)"
    elif isinstance(dataset, str | bytes):
        call = "rows, e.g. datasets.load_dataset('csv', data_files=file, split='train')"
    elif dataset is None or by_index or isinstance(dataset, IterableDataset) or hasattr(dataset, "with_format"):
        return
    elif isinstance(dataset, Iterable) and not isinstance(dataset, Dataset):
        call = "its rows, list(dataset)"
        if not isinstance(dataset, Sized):
            call += ", or for a stream datasets.IterableDataset.from_generator(function)"
    else:
        call = "a list of rows, or a data set with __len__ and __getitem__"
    raise ValueError(f"{name}: got {type(dataset).__name__}; pass {call}")


def _is_split(rows: Any) -> bool:
    """Whether a value of a dict is a data set, and not a column."""
    if isinstance(rows, Sequence) and rows:
        return isinstance(rows[0], Mapping)
    return isinstance(rows, Dataset) or hasattr(rows, "with_format")


def can_be_read_twice(dataset: Any) -> bool:
    """Whether a data set has a length and gives its rows by index; a stream may be endless, or be used up."""
    return dataset is not None and not isinstance(dataset, IterableDataset) and has_length(dataset)


def collated(
    dataset: Any, collate: Collate, batch_size: int, name: str, most_rows: int | None = None
) -> Iterator[tuple[int, Any]]:
    """Batches of a data set, in its order.

    Args:
        dataset: a data set with a length.
        collate: makes a batch from rows.
        batch_size: number of rows in a batch, as in training: a collator that does not pad may take single rows only.
        name: name of the data set in error messages.
        most_rows: stop after this many rows. Default: all.

    Returns:
        The index of the first row of each batch, and the batch.

    Raises:
        ValueError: if `collate` fails, or makes batches without tokens.
    """
    size = len(dataset) if most_rows is None else min(len(dataset), most_rows)
    for places in chunks(range(size), batch_size):
        rows = fetch_rows(dataset, places)
        try:
            batch = collate(rows)
        except Exception as error:
            raise ValueError(
                f"{name}: {_described(rows[0])}, of which the collator cannot make a batch "
                f"({type(error).__name__}: {error}). {_WANTED}"
            ) from error
        if not isinstance(batch, Mapping) or not {"input_ids", "inputs_embeds"} & batch.keys():
            raise ValueError(f"{name}: {_described(rows[0])}, of which the collator makes no input_ids. {_WANTED}")
        for column in (*COLUMNS, "inputs_embeds", "labels"):
            if not isinstance(batch.get(column), Tensor | None):
                raise ValueError(
                    f"{name}: the collator returns {column} as {type(batch[column]).__name__}; the model reads "
                    f"tensors, return torch.tensor({column})"
                )
        yield places[0], batch


_WANTED = (
    "Pass rows with input_ids and a number as label, e.g. dataset.map(lambda row: tokenizer(row['text'], "
    "truncation=True)) with processing_class=tokenizer, or a data_collator that tokenizes"
)


def _described(row: Any) -> str:
    if not isinstance(row, Mapping):
        return f"got rows of type {type(row).__name__}"
    texts = [column for column, value in row.items() if isinstance(value, str)]
    what = f"got rows with {', '.join(map(str, row)) or 'no columns'}"
    return what + (f" (texts in {', '.join(texts)})" if texts else "")


def check_dataset(
    model: Any,
    dataset: Any,
    collate: Collate,
    batch_size: int,
    name: str,
    needs_labels: bool,
) -> int:
    """Check every row of a data set as the model will get it, before anything expensive.

    Args:
        model: the model.
        dataset: a data set with a length.
        collate: makes a batch from rows.
        batch_size: number of rows in a batch, as in training: a collator that does not pad may take single rows only.
        name: name of the data set in error messages.
        needs_labels: whether labels have to be valid; a data set without any is not refused.

    Returns:
        A checksum of the token ids and labels, by which other data are noticed. It does not depend on the batch size
        and the padding.

    Raises:
        ValueError: if there are no rows; if no batch of tensors can be made; or for a token id, a number of tokens or
            a label that the model does not have.
    """
    if not len(dataset):
        raise ValueError(f"{name}: got no rows; pass at least one")
    encoder_config = model.config.encoder_config
    vocabulary = encoder_config.vocab_size
    longest = family_of(encoder_config).max_tokens(encoder_config)
    # One for each column: the bytes of all its batches are then those of the whole column, whatever the batch size.
    checksums = {"lengths": 0, "input_ids": 0, "labels": 0}

    def add(column: str, values: Tensor) -> None:
        data = values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        checksums[column] = zlib.crc32(data, checksums[column])

    for first, batch in collated(dataset, collate, batch_size, name):
        tokens = batch.get("input_ids")
        if tokens is not None:
            unknown = ((tokens < 0) | (tokens >= vocabulary)).nonzero()
            if len(unknown):
                row, place = unknown[0].tolist()
                raise ValueError(
                    f"{name}: got the token id {tokens[row, place]} in row {first + row}, but the model's vocabulary "
                    f"has the ids 0 to {vocabulary - 1}; tokenize with the encoder's own tokenizer, or after adding "
                    "tokens call model.resize_token_embeddings(len(tokenizer))"
                )
            if longest is not None and tokens.shape[1] > longest:
                raise ValueError(
                    f"{name}: got a batch of {tokens.shape[1]} tokens from row {first} on, but "
                    f"'{encoder_config.model_type}' has positions for {longest}; call "
                    f"tokenizer(text, truncation=True, max_length={longest})"
                )
            mask = token_mask(batch)
            if batch.get("attention_mask") is None and encoder_config.pad_token_id is not None:
                mask = tokens != encoder_config.pad_token_id
            if model.config.head == "pair":
                given, _ = right_padded(
                    {"input_ids": tokens, "token_type_ids": batch.get("token_type_ids"), "attention_mask": mask.long()}
                )
                second = second_segment(given["input_ids"], given["token_type_ids"], given["attention_mask"])
                try:
                    check_pairs(second, first)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
            add("lengths", mask.sum(dim=1))
            add("input_ids", tokens[mask].long())
        if "labels" not in batch:
            continue
        labels = batch["labels"]
        add("labels", labels)
        if needs_labels:
            try:
                model.checked_labels(labels, len(next(iter(batch.values()))))
            except ValueError as error:
                multi_label = model.config.multi_label
                wrong = wrong_labels(labels, model.config.num_labels, multi_label).nonzero()
                by_row = labels.dim() == (2 if multi_label else 1)
                row = f", row {first + int(wrong[0, 0])}" if len(wrong) and by_row else ""
                raise ValueError(f"{name}{row}: {error}") from None
    return zlib.crc32(repr(checksums).encode())


def rows_for_prepare(dataset: Any, collate: Collate, batch_size: int) -> list[dict[str, Any]] | None:
    """The rows of a data set for `model.prepare`, as the model gets them in training, without padding.

    So it does not matter whether rows are tokenized in the data set, by its transform, or by the collator.

    Args:
        dataset: a data set with a length.
        collate: makes a batch from rows.
        batch_size: number of rows in a batch, as in training: a collator that does not pad may take single rows only.

    Returns:
        Rows with `input_ids` and, if there are any, `labels`; None if batches have embeddings in place of token ids.
    """
    rows: list[dict[str, Any]] = []
    for _, batch in collated(dataset, collate, batch_size, "train_dataset"):
        if "input_ids" not in batch:
            return None
        tokens, mask = batch["input_ids"], batch.get("attention_mask")
        for place in range(len(tokens)):
            row = tokens[place] if mask is None else tokens[place][mask[place].bool()]
            rows.append({"input_ids": row.tolist()})
            if "labels" in batch:
                rows[-1]["labels"] = batch["labels"][place].tolist()
    return rows
