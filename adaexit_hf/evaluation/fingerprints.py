"""Which texts two data sets share, told by hashes of their tokens."""

import hashlib
from collections.abc import Sequence

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
