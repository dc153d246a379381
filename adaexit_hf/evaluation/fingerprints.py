"""Which texts two data sets share, told by hashes of their tokens, and which a model has seen."""

import hashlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .trace import ExitTrace


def row_hash(tokens: Sequence[int] | Tensor) -> int:
    """Hash the token ids of a text: BLAKE2b of them as little-endian 64-bit integers, the first 8 bytes, signed.

    Texts that tokenizer and length limit make equal have the same hash; two of a million different ones collide with a
    probability of 3 in 100 million. The hash is no secret: whoever guesses a short text can confirm the guess.

    Args:
        tokens: Token ids without padding, `(tokens,)`.

    Examples:
        >>> row_hash([101, 2023, 102]), row_hash([101, 2023, 102]) == row_hash([101, 102])
        (-5824338107644911591, False)
    """
    digest = hashlib.blake2b(np.asarray(tokens, dtype="<i8").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def overlap(trace: ExitTrace, other: ExitTrace | Tensor) -> Tensor:
    """Find the samples of a trace whose text also occurs in other data.

    Args:
        trace: Trace with `row_hashes`, as `collect_trace` makes it.
        other: Another such trace, with the same tokenizer and length limit, or the hashes of its rows, `(rows,)`.

    Returns:
        bool, `(samples,)`: True where the text occurs in `other`, too. `trace.take(~overlap(trace, other))` leaves
        these out.

    Raises:
        ValueError: If a trace has no `row_hashes`.

    Examples:
        >>> hashes = torch.tensor([row_hash([2, 7, 3]), row_hash([2, 8, 3])])
        >>> trace = ExitTrace(torch.zeros(2, 1, 2), torch.zeros(2, 1), None, (6,), "gt", row_hashes=hashes)
        >>> overlap(trace, torch.tensor([row_hash([2, 8, 3])])).tolist()
        [False, True]
    """
    hashes = [known_hashes(trace, "trace"), known_hashes(other, "other") if isinstance(other, ExitTrace) else other]
    return torch.isin(*hashes)


def known_hashes(trace: ExitTrace, name: str) -> Tensor:
    """Return the hashes of a trace's texts.

    Args:
        trace: The trace.
        name: Name of the argument, for the error.

    Raises:
        ValueError: If the trace has none.
    """
    if trace.row_hashes is None:
        raise ValueError(
            f"{name}: a trace without row_hashes does not say which texts it has; collect it again with "
            "collect_trace, which records them"
        )
    return trace.row_hashes


# File in a model's folder with the hashes of the rows that had a part in it.
SEEN_ROWS = "seen_rows.npz"
# Part in a record, without hashes: the model, or what it started from, was trained on rows that are not known.
UNKNOWN = "unknown"


def hashes_of(rows: Iterable[Mapping[str, Sequence[int]]]) -> Tensor:
    """Return the hashes of tokenized rows, int64, `(rows,)`.

    Args:
        rows: Rows with `input_ids`, without padding.

    Examples:
        >>> hashes_of([{"input_ids": [101, 102]}]).tolist() == [row_hash([101, 102])]
        True
    """
    return torch.tensor([row_hash(row["input_ids"]) for row in rows], dtype=torch.int64)


def save_seen_rows(folder: str | Path, seen: Mapping[str, Tensor]) -> None:
    """Record which rows had a part in a model, so that `adaexit certify` can refuse them.

    Args:
        folder: The model's folder.
        seen: Hashes of rows, `(rows,)`, by the part that they had: `"training"`, `"threshold"`, `"temperatures"`.
    """
    path = Path(folder, SEEN_ROWS)
    scratch = path.with_name(f".{path.name}")
    with scratch.open("wb") as file:
        np.savez_compressed(file, **{part: hashes.unique().numpy() for part, hashes in seen.items()})
    scratch.replace(path)


def read_seen_rows(folder: str | Path) -> dict[str, Tensor] | None:
    """Return what `save_seen_rows` recorded in a model's folder; None if there is no record.

    Args:
        folder: The model's folder; a name on the Hub has no record.

    Raises:
        ValueError: If the file cannot be read.
    """
    path = Path(folder, SEEN_ROWS)
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {part: torch.from_numpy(arrays[part].astype(np.int64)) for part in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"'{path}' cannot be read ({error}); copy it again, or delete it: then nobody knows which rows were "
            "trained on"
        ) from error


def add_seen_rows(folder: str | Path, seen: Mapping[str, Tensor]) -> None:
    """Add rows to the record in a model's folder; one that is begun says that nothing is known of the training.

    Args:
        folder: The model's folder.
        seen: As for `save_seen_rows`.
    """
    earlier = read_seen_rows(folder)
    if earlier is None:
        earlier = {UNKNOWN: torch.empty(0, dtype=torch.int64)}
    save_seen_rows(folder, union(earlier, seen))


def union(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows of two records, by the part that they had.

    Args:
        first: Hashes by part.
        second: Hashes by part.
    """
    none = torch.empty(0, dtype=torch.int64)
    return {
        part: torch.cat([each.get(part, none) for each in (first, second)]) for part in first.keys() | second.keys()
    }
