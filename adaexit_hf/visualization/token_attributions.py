"""Texts with what each word adds to the answer, or to readiness, as the HTML report shows them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite
from typing import Any, NamedTuple

from ..interpretation.attribution import Explanation

# The page has a number as one of 91 characters: those that neither JSON nor HTML escapes.
DIGITS = "".join(chr(code) for code in range(33, 127) if chr(code) not in '"<\\')
STEPS = len(DIGITS) // 2  # from 0 to the largest of a row


class TokenAttributions(NamedTuple):
    """Why a sample was answered as it was, and left where it did.

    Args:
        tokens: the words of the sample, in order.
        values: what is explained, e.g. "answer at layer 3" -> one number per token, of either sign. What ends in
            " at layer ..." can also be shown for the layer where each sample leaves.
        separator: what stands between tokens; "" where they have their own spaces.
    """

    tokens: Sequence[str]
    values: Mapping[str, Sequence[float]]
    separator: str = " "


def token_attributions(explanation: Explanation, text: str | Sequence[str], tokenizer: Any) -> TokenAttributions:
    """An explanation, over the text as it was written.

    Special tokens, which have no attributions, are left out, and what the model did not read has none. Where the
    tokenizer does not know where in the text its tokens are (`is_fast`), they are shown as it names them.

    Args:
        explanation: of the text, from `explain`.
        text: that was explained, or the pair.
        tokenizer: that made its row.

    Raises:
        ValueError: the tokenizer makes other tokens of the text than were explained.
    """
    values = explanation.named_values()
    if not tokenizer.is_fast:
        words = [k for k, special in enumerate(explanation.special.tolist()) if not special]
        named = {name: [row[k] for k in words] for name, row in values.items()}
        return TokenAttributions([explanation.tokens[k] for k in words], named)
    sides, count = [text] if isinstance(text, str) else list(text), len(explanation.tokens)
    # As long as what was explained, so that it is cut where that was.
    found = tokenizer(*sides, truncation=True, max_length=count, return_offsets_mapping=True)
    if tokenizer.convert_ids_to_tokens(found["input_ids"]) != list(explanation.tokens):
        raise ValueError(
            f"text: {text!r} has other tokens than the {count} that were explained; pass the text and the tokenizer "
            "of the row that explain() got"
        )
    pieces: list[tuple[str, list[int]]] = []
    for side, whole in enumerate(sides):
        spans = [(*found["offset_mapping"][k], k) for k, of in enumerate(found.sequence_ids()) if of == side]
        pieces += [("\n", [])] * (side > 0) + _pieces(whole, spans)
    summed = {name: [sum(row[k] for k in tokens) for _, tokens in pieces] for name, row in values.items()}
    return TokenAttributions([piece for piece, _ in pieces], summed, separator="")


def _pieces(text: str, spans: list[tuple[int, int, int]]) -> list[tuple[str, list[int]]]:
    """A text, cut before each token, with the tokens of each piece: bytes of one character share theirs.

    Args:
        spans: start and end of each token in the text, and its number.
    """
    tokens: dict[int, list[int]] = {}
    for start, _, number in sorted(spans):
        tokens.setdefault(start, []).append(number)
    read = max((end for _, end, _ in spans), default=0)
    cuts = pairwise([0, *list(tokens)[1:], read])
    pieces = [(text[start:end], numbers) for (start, end), numbers in zip(cuts, tokens.values(), strict=False)]
    return pieces + [(text[read:], [])] * (read < len(text))


def finite_only(attributions: TokenAttributions) -> TokenAttributions:
    """Without the rows that have a number that is not finite, which the page cannot show."""
    kept = {name: row for name, row in attributions.values.items() if all(map(isfinite, row))}
    return attributions._replace(values=kept)


def embedded(
    name: str, found: Sequence[TokenAttributions] | None, texts: Sequence[str | Sequence[str]] | None
) -> dict[str, Any] | None:
    """As the page has them: names once, rows of numbers packed, and tokens as lengths where they spell the text.

    Args:
        name: of the trace, for errors.

    Raises:
        ValueError: a row has not one finite number per token.
    """
    if found is None:
        return None
    names = list(dict.fromkeys(what for each in found for what in each.values))
    samples: list[dict[str, Any]] = []
    for place, each in enumerate(found):
        for what, row in each.values.items():
            where = f"attributions['{name}']: '{what}' of sample {place} has"
            if len(row) != len(each.tokens):
                raise ValueError(f"{where} {len(row)} numbers for {len(each.tokens)} tokens; pass one for each")
            wrong = next((value for value in row if not isfinite(value)), None)
            if wrong is not None:
                raise ValueError(f"{where} the number {wrong}; pass finite ones, or leave the attributions out")
        text = None if texts is None else texts[place]
        whole = text if text is None or isinstance(text, str) else "\n".join(text)
        spelled = each.separator.join(each.tokens) == whole
        tokens = [len(token.encode("utf-16-le")) // 2 for token in each.tokens] if spelled else list(each.tokens)
        rows = [packed(each.values[what]) if what in each.values else None for what in names]
        samples.append({"tokens": tokens, "separator": each.separator, "rows": rows})
    return {"names": names, "samples": samples}


def packed(row: Sequence[float]) -> tuple[float, str]:
    """The size of a step, and a character per number: the middle one of `DIGITS` is 0.

    >>> packed([0.9, -0.9, 0.0, 0.02])
    (0.02, '~!PQ')
    """
    step = float(f"{max(map(abs, row), default=0.0) / STEPS or 1.0:.3g}")
    return step, "".join(DIGITS[STEPS + round(value / step)] for value in row)
