"""Texts with what each word adds to the answer, or to readiness, as the HTML report shows them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from .interpretation import Explanation


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
        return TokenAttributions(explanation.tokens, values)
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


def embedded(found: Sequence[TokenAttributions] | None) -> list[dict[str, Any]] | None:
    """As the page has them."""
    if found is None:
        return None
    return [
        {
            "tokens": list(each.tokens),
            "values": {name: [round(v, 5) for v in row] for name, row in each.values.items()},
            "separator": each.separator,
        }
        for each in found
    ]
