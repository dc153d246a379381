"""Token attributions over the original text, in the form that the HTML report shows."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite
from typing import Any, NamedTuple

from ..interpretation.attribution import Explanation

# The page stores each number as one of 91 characters, those that neither JSON nor HTML escapes.
DIGITS = "".join(chr(code) for code in range(33, 127) if chr(code) not in '"<\\')
STEPS = len(DIGITS) // 2  # steps from 0 to the largest value of a row


class TokenAttributions(NamedTuple):
    """The tokens of a sample with their attributions.

    Attributes:
        tokens: Tokens of the sample, in order.
        values: Attributions by name, e.g. `"answer at layer 3"`, one number of either sign per token. If a name ends
            in `" at layer <number>"`, the page can also show the attributions at the exit that each sample takes.
        separator: Text between tokens; `""` if the tokens contain their own spaces. Default: one space.
    """

    tokens: Sequence[str]
    values: Mapping[str, Sequence[float]]
    separator: str = " "


def token_attributions(explanation: Explanation, text: str | Sequence[str], tokenizer: Any) -> TokenAttributions:
    """Map an explanation back to the original text.

    Special tokens have no attributions and are left out. Text that was cut off before the model read it is kept,
    without attributions. A slow tokenizer (`is_fast` is False) does not report where in the text its tokens are; then
    the tokens themselves are returned.

    Args:
        explanation: Explanation of the text from `explain`.
        text: The text that was explained, or the pair of texts.
        tokenizer: The tokenizer with which the text was tokenized.

    Returns:
        Pieces of the text, one per token, with their attributions. A character that consists of several tokens is one
        piece, with the sum of their attributions.

    Raises:
        ValueError: If the tokenizer splits the text into other tokens than those that were explained.

    Examples:
        >>> from transformers import BertConfig, BertTokenizer
        >>> from adaexit_hf import DeeBertConfig, DeeBertForSequenceClassification, explain
        >>> vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film")
        >>> tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})
        >>> encoder = BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> model = DeeBertForSequenceClassification(DeeBertConfig(encoder, num_labels=2))
        >>> text = "Good film!"
        >>> (explanation,) = explain(model, [tokenizer(text)], tokenizer, scores=False, steps=16, progress=False)
        >>> attributions = token_attributions(explanation, text, tokenizer)
        >>> attributions.tokens, list(attributions.values)
        (['Good ', 'film', '!'], ['answer at layer 1', 'answer at layer 2'])
    """
    values = explanation.named_values()
    if not tokenizer.is_fast:
        words = [k for k, special in enumerate(explanation.special.tolist()) if not special]
        named = {name: [row[k] for k in words] for name, row in values.items()}
        return TokenAttributions([explanation.tokens[k] for k in words], named)
    sides, count = [text] if isinstance(text, str) else list(text), len(explanation.tokens)
    # With the explained number of tokens as max_length, the text is truncated where it was before.
    encoded = tokenizer(*sides, truncation=True, max_length=count, return_offsets_mapping=True)
    if tokenizer.convert_ids_to_tokens(encoded["input_ids"]) != list(explanation.tokens):
        raise ValueError(
            f"text: {text!r} has other tokens than the {count} that were explained; pass the text and the tokenizer "
            "of the row that was passed to explain()"
        )
    pieces: list[tuple[str, list[int]]] = []
    for side, side_text in enumerate(sides):
        spans = [
            (*encoded["offset_mapping"][k], k)
            for k, token_side in enumerate(encoded.sequence_ids())
            if token_side == side
        ]
        pieces += [("\n", [])] * (side > 0) + _pieces(side_text, spans)
    summed = {name: [sum(row[k] for k in tokens) for _, tokens in pieces] for name, row in values.items()}
    return TokenAttributions([piece for piece, _ in pieces], summed, separator="")


def _pieces(text: str, spans: list[tuple[int, int, int]]) -> list[tuple[str, list[int]]]:
    """Split a text before each token, and return each piece with the indices of its tokens.

    Tokens that start at the same character, such as the bytes of one character, share a piece.

    Args:
        text: The text.
        spans: Start and end of each token in the text, and the index of the token.
    """
    tokens: dict[int, list[int]] = {}
    for start, _, index in sorted(spans):
        tokens.setdefault(start, []).append(index)
    read_end = max((end for _, end, _ in spans), default=0)
    cuts = pairwise([0, *list(tokens)[1:], read_end])
    pieces = [(text[start:end], indices) for (start, end), indices in zip(cuts, tokens.values(), strict=False)]
    return pieces + [(text[read_end:], [])] * (read_end < len(text))


def finite_only(attributions: TokenAttributions) -> TokenAttributions:
    """Remove the rows that contain a number that is not finite, which the page cannot show."""
    finite_rows = {name: row for name, row in attributions.values.items() if all(map(isfinite, row))}
    return attributions._replace(values=finite_rows)


def embedded(
    name: str, attributions: Sequence[TokenAttributions] | None, texts: Sequence[str | Sequence[str]] | None
) -> dict[str, Any] | None:
    """Encode the attributions of a trace compactly for the page.

    Names are stored once, rows of numbers are packed, and tokens that together spell the sample's text are stored as
    their lengths.

    Args:
        name: Name of the trace, for error messages.
        attributions: Attributions of the first samples or of all.
        texts: Texts of all samples.

    Raises:
        ValueError: If a row does not have one finite number per token.
    """
    if attributions is None:
        return None
    value_names = list(dict.fromkeys(value_name for sample in attributions for value_name in sample.values))
    encoded: list[dict[str, Any]] = []
    for index, sample in enumerate(attributions):
        for value_name, row in sample.values.items():
            row_has = f"attributions['{name}']: '{value_name}' of sample {index} has"
            if len(row) != len(sample.tokens):
                raise ValueError(f"{row_has} {len(row)} numbers for {len(sample.tokens)} tokens; pass one per token")
            not_finite = next((value for value in row if not isfinite(value)), None)
            if not_finite is not None:
                raise ValueError(f"{row_has} the number {not_finite}; pass finite numbers, or leave the row out")
        text = None if texts is None else texts[index]
        joined = text if text is None or isinstance(text, str) else "\n".join(text)
        spells_text = sample.separator.join(sample.tokens) == joined
        # JavaScript counts the length of a string in UTF-16 units.
        tokens = [len(token.encode("utf-16-le")) // 2 for token in sample.tokens] if spells_text else [*sample.tokens]
        rows = [
            packed(sample.values[value_name]) if value_name in sample.values else None for value_name in value_names
        ]
        encoded.append({"tokens": tokens, "separator": sample.separator, "rows": rows})
    return {"names": value_names, "samples": encoded}


def packed(row: Sequence[float]) -> tuple[float, str]:
    """Return the size of one step and one character per number; the middle character of `DIGITS` is 0.

    >>> packed([0.9, -0.9, 0.0, 0.02])
    (0.02, '~!PQ')
    """
    step = float(f"{max(map(abs, row), default=0.0) / STEPS or 1.0:.3g}")
    return step, "".join(DIGITS[STEPS + round(value / step)] for value in row)
