"""Guess which columns of a data set have the texts and the labels, where only one choice makes sense."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.glue import TASKS

Rows = Sequence[Mapping[str, Any]]
# Rows from which columns are guessed.
SAMPLE = 1000
# Names that leave no choice.
TEXT, TEXT_PAIR, LABEL = "text", "text_pair", "label"
# Pairs of columns with texts, as the tasks of GLUE name them.
KNOWN_PAIRS = {task.text_columns for task in TASKS.values() if len(task.text_columns) == 2}
# Labels differ at least this much less often than rows, and have at most so many values.
ROWS_PER_LABEL, MOST_LABELS = 5, 200
TWO_WORDS = re.compile(r"[^\W\d_].*\s.*[^\W\d_]|[^\W\d_a-zA-Z]{4}", flags=re.DOTALL)
WHOLE, DECIMAL = re.compile(r"[+-]?\d+"), re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?")


def guess_text_columns(rows: Rows, pairs: bool | None, taken: Sequence[str] = ()) -> list[str]:
    """Guess the one or two columns with texts.

    Args:
        rows: Some rows, best from all over the data set.
        pairs: Whether there are pairs of texts; None if that is not known.
        taken: Columns with something else.

    Returns:
        One column or two.

    Raises:
        ValueError: None or several choices make sense.

    Examples:
        >>> rows = [{"id": str(row), "review": f"film {row} is good", "sentiment": "ok"} for row in range(20)]
        >>> guess_text_columns(rows, pairs=None)
        ['review']
    """
    names = [name for name in _names(rows) if name not in taken]
    found = [name for name in names if _is_text(_values(rows, name))]
    count = 1 + bool(pairs)
    if TEXT in names and (TEXT_PAIR in names or pairs is not True):
        return [TEXT, TEXT_PAIR] if pairs is not False and TEXT_PAIR in names else [TEXT]
    known = [pair for pair in KNOWN_PAIRS if set(pair) <= set(found)]
    if len(known) == 1 and pairs is not False:
        return list(known[0])
    if len(found) == count:
        return found
    wanted = {None: "one or two columns with texts", True: "two columns with texts", False: "the column with texts"}
    which = f"{', '.join(found)} may be it" if found else "none looks like it"
    raise ValueError(
        f"text_columns: missing; of the columns {', '.join(_names(rows))}: {which}; pass {wanted[pairs]}, e.g. "
        f"--text_columns {' '.join((found or names or ['text'])[:count])}"
    )


def guess_label_column(rows: Rows, taken: Sequence[str] = ()) -> str:
    """Guess the column with labels.

    Args:
        rows: Some rows, best from all over the data set.
        taken: Columns with something else.

    Returns:
        Its name.

    Raises:
        ValueError: None or several choices make sense.

    Examples:
        >>> rows = [{"id": str(row), "review": f"film {row} is good", "stars": str(row % 3)} for row in range(20)]
        >>> guess_label_column(rows)
        'stars'
    """
    names = [name for name in _names(rows) if name not in taken]
    if LABEL in names:
        return LABEL
    found = [name for name in names if _is_label(_values(rows, name))]
    if len(found) == 1:
        values = _values(rows, found[0])
        if found[0] in map(str, values):
            raise ValueError(
                f"label_column: the column '{found[0]}' has its own name as a label, as if the first line of the file "
                "were data; begin the file with a line of names, e.g. text,label, or pass --label_column"
            )
        return found[0]
    which = f"{', '.join(found)} may be it" if found else "none looks like it"
    flags = [name for name in found if set(map(str, _values(rows, name))) == {"0", "1"}]
    several = f", or for several labels at once --label_columns {' '.join(flags)}" if len(flags) > 1 else ""
    raise ValueError(
        f"label_column: missing; of the columns {', '.join(_names(rows))}: {which}; pass the column with labels, e.g. "
        f"--label_column {(found or names or ['label'])[0]}{several}"
    )


def _names(rows: Rows) -> list[str]:
    """Return the names of all columns, in order; JSON may leave a column out of a row."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _values(rows: Rows, name: str) -> list[Any]:
    """Return the values of a column that are not missing."""
    values = (row.get(name) for row in rows)
    return [value for value in values if value is not None and value != ""]


def _few(values: Sequence[Any]) -> bool:
    """Return whether the values are few different ones, but not all the same, as the labels of classes are.

    >>> _few(["a", "b"] * 5), _few(["a"] * 10), _few(["a", "b"])
    (True, False, False)
    """
    distinct = len(set(map(str, values)))
    return 1 < distinct < len(values) and distinct <= max(2, min(MOST_LABELS, len(values) // ROWS_PER_LABEL))


def _is_text(values: Sequence[Any]) -> bool:
    """Return whether the values are texts of several words, or in a script without spaces, most of them different.

    >>> _is_text(["a good film", "a bad one", "awful"]), _is_text(["yes", "no", "no"]), _is_text(["12-1", "3 4", "5"])
    (True, False, False)
    """
    if not values or not all(isinstance(value, str) for value in values) or _few(values):
        return False
    return 2 * sum(bool(TWO_WORDS.search(value)) for value in values) >= len(values)


def _is_label(values: Sequence[Any]) -> bool:
    """Return whether the values may be labels: few different ones, scores with decimals, or lists of labels.

    >>> _is_label(["0.5", "1.25", "3"]), _is_label(["a", "b", "a"]), _is_label([1, 2, 3]), _is_label([["a"], []])
    (True, True, False, True)
    """
    if not values:
        return False
    if all(isinstance(value, list) for value in values):
        return True
    numbers = all(WHOLE.fullmatch(str(value)) or DECIMAL.fullmatch(str(value)) for value in values)
    decimals = numbers and any(DECIMAL.fullmatch(str(value)) for value in values)
    return decimals or _few(values)
