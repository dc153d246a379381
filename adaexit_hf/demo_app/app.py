"""A page on which to try a classifier with early exits, with Gradio; run as a script, the app of a Hugging Face Space.

`adaexit space` copies this file unchanged into a folder where adaexit_hf is not installed. So it imports nothing but
the standard library, torch, transformers and gradio.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Threshold = float | list[float] | None
Texts = Sequence[str]  # one text, or the two of a pair
Facts = Mapping[str, Any]

SIGNS = {torch.lt: "&lt;", torch.le: "≤", torch.gt: "&gt;", torch.ge: "≥"}
COUNTS = ("patience", "layer")  # criteria whose thresholds are whole numbers
# Chinese and Japanese are written without spaces: there every character is removed on its own.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
MOST_WORDS, WORDS_PER_BATCH, NUMBERED_WORDS = 128, 32, 5
EMPTY = '<p class="hint">Type a text and press Enter, or choose an example.</p>'

CSS = """
.ax { font-size: 1rem; line-height: 1.45; color: var(--body-text-color); }
.ax h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 .25rem; overflow-wrap: anywhere; }
.ax h2 { font-size: 1.05rem; font-weight: 600; margin: 0 0 .35rem; }
.ax p { margin: 0 0 .5rem; }
.ax .hint, .ax .legend, .ax .skipped td { color: color-mix(in srgb, var(--body-text-color) 75%, transparent); }
.ax .hint, .ax .legend { font-size: .9rem; }
.ax .sentence { font-size: 1.15rem; overflow-wrap: anywhere; }
.ax .warning { border-left: 4px solid #d9822b; padding-left: .6rem; }
.ax .table { overflow-x: auto; }
.ax table { width: 100%; border-collapse: collapse; border: 0; margin: 0; font-variant-numeric: tabular-nums; }
.ax th, .ax td { text-align: left; padding: .3rem .4rem; border: 0; vertical-align: top;
  border-bottom: 1px solid var(--border-color-primary); }
.ax th { font-weight: 600; font-size: .85rem; }
@media (max-width: 480px) {
  .ax table { font-size: .78rem; }
  .ax th { font-size: .72rem; }
  .ax th, .ax td { padding: .3rem .15rem .3rem .2rem; }
}
.ax td.number { white-space: nowrap; }
.ax tr.left { background: var(--background-fill-secondary); box-shadow: inset 4px 0 0 var(--color-accent); }
.ax tr.left td { font-weight: 600; }
.ax .bar { display: block; height: .4rem; min-width: 3rem; margin-top: .2rem; border-radius: .2rem;
  background: var(--border-color-primary); }
.ax .bar i { display: block; height: 100%; border-radius: .2rem; background: var(--color-accent); }
.ax .skipped .bar i { background: var(--body-text-color-subdued); }
.ax .words { font-size: 1.1rem; line-height: 2; overflow-wrap: anywhere; white-space: pre-wrap; }
.ax mark { color: inherit; border-radius: .2rem; padding: 0 .1rem; text-decoration-line: underline;
  text-decoration-thickness: 2px; text-underline-offset: .25em; }
.ax mark.for { background: color-mix(in srgb, #3b82f6 calc(var(--strength) * 55%), transparent);
  text-decoration-color: #3b82f6; }
.ax mark.against { background: color-mix(in srgb, #d9822b calc(var(--strength) * 55%), transparent);
  text-decoration-style: dashed; text-decoration-color: #d9822b; }
.ax mark small { font-size: .7rem; vertical-align: super; margin-left: .15rem; }
.ax svg { width: 100%; max-width: 480px; height: auto; display: block; color: var(--body-text-color); }
.ax svg text { fill: currentColor; font-size: 13px; }
button.ax-example { text-align: left !important; justify-content: flex-start !important; overflow-wrap: anywhere;
  white-space: normal !important; font-weight: 400 !important; }
"""


# What a model does with one text


class Run(NamedTuple):
    """What a model does with one text.

    Attributes:
        logits: Logits of every exit, `(exits, labels)`.
        scores: Readiness score of every exit, `(exits,)`.
        exit: Index of the exit where the text leaves.
        thresholds: One threshold per exit; None is full depth.
        tokens: Number of tokens of the text.
        longest: Number of tokens that the model reads at most.
    """

    logits: Tensor
    scores: Tensor
    exit: int
    thresholds: list[float] | None
    tokens: int
    longest: int


@torch.inference_mode()
def run(model: Any, tokenizer: Any, texts: Texts, threshold: Threshold) -> Run:
    """Run a model on one text: once at full depth for what every exit says, once at the threshold for where it leaves.

    Args:
        model: An early-exit model in eval mode.
        tokenizer: Its tokenizer.
        texts: One text, or the two of a pair.
        threshold: Exit threshold, one number or one per exit; None is full depth.

    Returns:
        What it does.
    """
    inputs = tokenized(model, tokenizer, [texts])
    full = model(**inputs, early_exit=False)
    layers, thresholds = list(model.config.exit_layers), model.config.thresholds(threshold)
    layer = layers[-1] if thresholds is None else int(model(**inputs, exit_threshold=threshold).exit_layer)
    return Run(
        logits=full.exit_logits[0].float().cpu(),
        scores=full.exit_scores[0].float().cpu(),
        exit=layers.index(layer),
        thresholds=thresholds,
        tokens=len(tokenizer(*texts, verbose=False)["input_ids"]),
        longest=tokenizer.model_max_length,
    )


def tokenized(model: Any, tokenizer: Any, rows: Sequence[Texts]) -> dict[str, Tensor]:
    """Return texts, or pairs of texts, as a padded batch on the model's device.

    Padded here, at the right, since a tokenizer may have no padding token.
    """
    encoding = tokenizer(*[list(column) for column in zip(*rows, strict=True)], truncation=True)
    columns = {name: encoding[name] for name in ("input_ids", "token_type_ids") if name in encoding}
    columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
    longest = max(map(len, columns["input_ids"]))
    padding = {"input_ids": model.config.encoder_config.pad_token_id or 0}
    return {
        name: torch.tensor(
            [[*row, *[padding.get(name, 0)] * (longest - len(row))] for row in column], device=model.device
        )
        for name, column in columns.items()
    }


def answer(config: Any, logits: Tensor) -> tuple[str, float | None]:
    """Return what one exit says, and how sure it is.

    Args:
        config: The model's config.
        logits: Logits of the exit, `(labels,)`.

    Returns:
        The class, the predicted number, or the labels with a probability above 0.5; and the probability of the class,
        of the least sure label with several labels at once, or None for a number or logits that are not finite.

    Examples:
        >>> from types import SimpleNamespace as Config
        >>> names = {0: "negative", 1: "positive"}
        >>> said, sure = answer(Config(num_labels=2, multi_label=False, id2label=names), torch.tensor([0.0, 3.0]))
        >>> said, round(sure, 3)
        ('positive', 0.953)
        >>> said, sure = answer(Config(num_labels=2, multi_label=True, id2label=names), torch.tensor([-1.0, 3.0]))
        >>> said, round(sure, 3)  # negative: 0.269, so not given with probability 0.731
        ('positive', 0.731)
    """
    if not logits.isfinite().all():
        return "not a number", None
    if config.num_labels == 1:
        return f"{logits.item():.3f}", None
    if several_labels(config):
        given = (logits > 0).nonzero().flatten().tolist()
        sure = logits.abs().sigmoid().min().item()
        return ", ".join(str(config.id2label[index]) for index in given) or "no label", sure
    probabilities = logits.softmax(dim=-1)
    index = int(probabilities.argmax())
    return str(config.id2label[index]), probabilities[index].item()


def several_labels(config: Any) -> bool:
    """Return whether a text may have several labels at once; the code of old checkpoints does not say."""
    return bool(getattr(config, "multi_label", False))


def support(config: Any, logits: Tensor, reference: Tensor) -> Tensor:
    """Return how strongly logits support an answer.

    Args:
        config: The model's config.
        logits: `(rows, labels)`.
        reference: Logits whose answer it is, `(labels,)`.

    Returns:
        The log-probability of the answer, or of the whole label set with several labels at once; in regression the
        predicted number. `(rows,)`.

    Examples:
        >>> from types import SimpleNamespace as Config
        >>> config = Config(num_labels=2, multi_label=False)
        >>> support(config, torch.tensor([[0.0, 0.0]]), torch.tensor([1.0, 2.0])).exp().tolist()
        [0.5]
    """
    if config.num_labels == 1:
        return logits[:, 0]
    if several_labels(config):
        return functional.logsigmoid(torch.where(reference > 0, logits, -logits)).sum(dim=-1)
    return logits.log_softmax(dim=-1)[:, reference.argmax()]


class Word(NamedTuple):
    """A word of a text and what it does: by how much the support of the answer falls without it."""

    text: int
    start: int
    end: int
    effect: float


@torch.inference_mode()
def word_effects(model: Any, tokenizer: Any, texts: Texts, done: Run) -> tuple[list[Word], int]:
    """Leave out one word after the other, and see what the exit that the text took says then.

    Args:
        model: An early-exit model in eval mode.
        tokenizer: Its tokenizer.
        texts: One text, or the two of a pair.
        done: What the model did with it.

    Returns:
        The words that were left out in turn, the first `MOST_WORDS`; and the number of all words.
    """
    found = [(place, match.span()) for place, text in enumerate(texts) for match in WORD.finditer(text)]
    rows = []
    for place, (start, end) in found[:MOST_WORDS]:
        changed = list(texts)
        changed[place] = texts[place][:start] + texts[place][end:]
        rows.append(changed)
    reference, parts = done.logits[done.exit], [torch.zeros(0)]
    for first in range(0, len(rows), WORDS_PER_BATCH):
        output = model(**tokenized(model, tokenizer, rows[first : first + WORDS_PER_BATCH]), early_exit=False)
        parts.append(support(model.config, output.exit_logits[:, done.exit].float().cpu(), reference))
    effects = (support(model.config, reference[None], reference) - torch.cat(parts)).tolist()
    return [Word(place, *span, effect) for (place, span), effect in zip(found, effects, strict=False)], len(found)


# The curve


def point_at(curve: Sequence[Sequence[Any]], threshold: Threshold) -> int | None:
    """Return the index of the curve's point whose threshold is nearest; None without such a point.

    Args:
        curve: Points (threshold, score, mean layers); the threshold of full depth is None.
        threshold: Exit threshold; a list, one per exit, has no point.

    Examples:
        >>> curve = [(0.5, 0.8, 1.0), (0.9, 0.9, 2.5), (None, 0.91, 3.0)]
        >>> point_at(curve, 0.8), point_at(curve, None), point_at(curve, [0.5, 0.9])
        (1, 2, None)
    """
    if isinstance(threshold, list):
        return None
    known = [place for place, point in enumerate(curve) if (point[0] is None) == (threshold is None)]
    if threshold is None:
        return known[0] if known else None
    return min(known, key=lambda place: abs(curve[place][0] - threshold), default=None)


def threshold_for(curve: Sequence[Sequence[Any]], mean_layers: float) -> Threshold:
    """Return the threshold of the point whose mean number of layers is nearest; of several that with the best score.

    Examples:
        >>> threshold_for([(0.5, 0.8, 1.0), (0.9, 0.9, 2.5), (None, 0.91, 3.0)], 2.2)
        0.9
    """
    threshold: Threshold = min(curve, key=lambda point: (abs(point[2] - mean_layers), -point[1]))[0]
    return threshold


# HTML


def safe(text: Any) -> str:
    """Return a text as HTML. Braces and dollars are written as numbers, since gr.HTML fills in templates.

    >>> safe("<b>${x}")
    '&lt;b&gt;&#36;&#123;x&#125;'
    """
    return re.sub(r"[$`{}\\]", lambda match: f"&#{ord(match[0])};", escape(str(text)))


def percent(share: float) -> str:
    r"""Return a share in percent, with one digit.

    >>> percent(0.953), percent(0.99999), percent(1.0)
    ('95.3\xa0%', '> 99.9\xa0%', '100.0\xa0%')
    """
    shown = f"{100 * share:.1f}\u00a0%"
    return "> 99.9\u00a0%" if shown.startswith("100") and share < 1 else shown


def layers_in_words(count: int) -> str:
    """Return a number of layers in words.

    >>> layers_in_words(1), layers_in_words(4)
    ('1 layer was', '4 layers were')
    """
    return "1 layer was" if count == 1 else f"{count} layers were"


def sentence(config: Any, done: Run) -> str:
    """Return what the model answers, where the text left, and whether the last exit agrees, as text."""
    layers = list(config.exit_layers)
    said, sure = answer(config, done.logits[done.exit])
    layer, depth = layers[done.exit], layers[-1]
    first = said if sure is None else f"{said}, {percent(sure)}"
    if layer == depth:
        return f"{first}. Ran through all {depth} layers."
    last, _ = answer(config, done.logits[-1])
    agrees = "" if config.num_labels == 1 else " At full depth the answer is the same."
    if last != said:
        agrees = f" At full depth the answer is {last}."
    return f"{first}. Left after layer {layer} of {depth}: {layers_in_words(depth - layer)} not run.{agrees}"


def result_html(model: Any, done: Run) -> str:
    """Return the answer in a sentence, and the table of all exits."""
    config = model.config
    layers, sign = list(config.exit_layers), SIGNS[model.ready]
    warnings = []
    if done.tokens > done.longest:
        warnings.append(f"The text has {done.tokens} tokens; only {done.longest} of them were read.")
    if not done.logits.isfinite().all():
        warnings.append("Some exits gave numbers that are not finite. At these no text leaves but at the last one.")
    needed, rows = done.thresholds or [], []
    for place, layer in enumerate(layers):
        said, sure = answer(config, done.logits[place])
        state = "left here" if place == done.exit else "not ready" if place < done.exit else "not run"
        kind = {"left here": "left", "not run": "skipped"}.get(state, "")
        own = len(set(needed)) > 1 and place < len(layers) - 1
        limit = f" ({sign}&nbsp;{needed[place]:.5g})" if own else ""
        bar = (
            "" if sure is None else f'{percent(sure)}<span class="bar"><i style="width:{100 * sure:.1f}%"></i></span>'
        )
        rows.append(
            f'<tr class="{kind}"><td>{layer}</td><td class="answer">{safe(said)}</td>'
            + (f'<td class="number">{bar}</td>' if config.num_labels > 1 else "")
            + f"<td>{done.scores[place].item():.5g}{limit}</td><td>{state}</td></tr>"
        )
    sure_of = "of its least sure label" if several_labels(config) else "probability"
    heads = ["layer", "answer", *([sure_of] if config.num_labels > 1 else []), "readiness", "state"]
    rule = f" A text leaves if its readiness is {sign}&nbsp;{needed[0]:.5g}." if len(set(needed)) == 1 else ""
    return (
        f'<div class="ax"><p class="sentence" role="status">{safe(sentence(config, done))}</p>'
        + "".join(f'<p class="warning">{safe(warning)}</p>' for warning in warnings)
        + f'<p class="hint" id="exits">What every exit says.{rule} Layers after it are run for this table only.</p>'
        + '<div class="table"><table aria-labelledby="exits"><thead><tr>'
        + "".join(f'<th scope="col">{head}</th>' for head in heads)
        + f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def words_html(model: Any, texts: Texts, done: Run, words: Sequence[Word], total: int) -> str:
    """Return the texts with marked words, and what the marks mean."""
    said, _ = answer(model.config, done.logits[done.exit])
    finite = [word for word in words if word.effect == word.effect]
    largest = max((abs(word.effect) for word in finite), default=0.0)
    numbered = sorted(finite, key=lambda word: -abs(word.effect))[:NUMBERED_WORDS]
    paragraphs = []
    for place, text in enumerate(texts):
        pieces, end = [], 0
        for word in (each for each in finite if each.text == place):
            pieces += [
                safe(text[end : word.start]),
                _mark(text[word.start : word.end], word, largest, word in numbered),
            ]
            end = word.end
        paragraphs.append(f'<p class="words">{"".join(pieces)}{safe(text[end:])}</p>')
    layer = list(model.config.exit_layers)[done.exit]
    if model.config.num_labels == 1:
        meaning = "Blue, solid line: without the word the predicted number is smaller; orange, dashed: larger. "
        unit = "by how much the number falls without the word"
    else:
        meaning = (
            f"Blue, solid line: without the word the answer {safe(said)} is less probable; orange, dashed: more "
            "probable. "
        )
        unit = "by how much its log-probability falls without the word"
    part = f" Only the first {len(words)} of {total} words were left out in turn." if total > len(words) else ""
    return (
        f'<div class="ax"><h2>Words that decided, at the exit after layer {layer}</h2>{"".join(paragraphs)}'
        f'<p class="legend">{meaning}Stronger colour: more. Numbers, at the {NUMBERED_WORDS} strongest words: {unit}.'
        f"{part}</p></div>"
    )


def _mark(shown: str, word: Word, largest: float, numbered: bool) -> str:
    strength = abs(word.effect) / largest if largest else 0.0
    number = f"{word.effect:+.2g}"
    if strength < 0.05:
        return safe(shown)
    side = "for" if word.effect > 0 else "against"
    small = f"<small>{number}</small>" if numbered else ""
    return f'<mark class="{side}" style="--strength:{strength:.2f}" title="{number}">{safe(shown)}{small}</mark>'


def curve_html(facts: Facts, threshold: Threshold, depth: int) -> str:
    """Return the trade-off curve as a picture, with a marker at a threshold.

    Args:
        facts: The page's facts.
        threshold: The threshold in use.
        depth: Number of layers of the model.
    """
    curve = facts["curve"]
    if not curve:
        return ""
    width, height, left, right, top, bottom = 360, 250, 58, 12, 12, 48
    scores = [point[1] for point in curve]
    low, high = min(scores), max(scores)
    pad = (high - low) * 0.08 or max(abs(high), 1e-3) * 0.02
    low, high = low - pad, high + pad

    def x(layers: float) -> float:
        return left + (layers - 1) / max(depth - 1, 1) * (width - left - right)

    def y(score: float) -> float:
        return height - bottom - (score - low) / (high - low) * (height - top - bottom)

    ticks = []
    for layers in range(1, depth + 1, max(1, -(-(depth - 1) // 6))):
        ticks.append(f'<text x="{x(layers):.1f}" y="{height - bottom + 18}" text-anchor="middle">{layers}</text>')
    for place in range(4):
        score = low + pad + (high - low - 2 * pad) * place / 3
        label = f"{100 * score:.1f}"
        ticks.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y(score):.1f}" y2="{y(score):.1f}" stroke="currentColor" '
            f'opacity=".2"/><text x="{left - 6}" y="{y(score) + 5:.1f}" text-anchor="end">{label}</text>'
        )
    line = " ".join(f"{x(point[2]):.1f},{y(point[1]):.1f}" for point in sorted(curve, key=lambda point: point[2]))
    nearest = point_at(curve, threshold)
    if nearest is None:
        marker, told = "", "The thresholds in use, one per exit, are no point of the curve."
    else:
        at, score, layers = curve[nearest]
        dot = f'cx="{x(layers):.1f}" cy="{y(score):.1f}"'
        marker = f'<circle {dot} r="7" fill="var(--color-accent)" stroke="currentColor" stroke-width="2"/>'
        what = "at full depth" if at is None else f"with threshold {at:.6g}"
        told = f"Marked, {what}: {percent(score)} {facts['metric']}, {layers:.2f} of {depth} layers per text."
    unit = f"{facts['metric']} (%)"
    middle = top + (height - top - bottom) / 2
    return (
        f'<div class="ax"><h2>Quality and depth on {safe(facts["dataset"])}</h2>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{safe(told)}">{"".join(ticks)}'
        f'<line x1="{left}" x2="{width - right}" y1="{height - bottom}" y2="{height - bottom}" stroke="currentColor"/>'
        f'<text x="{left + (width - left - right) / 2}" y="{height - 8}" text-anchor="middle">'
        "layers run per text, mean</text>"
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{safe(unit)}</text>'
        f'<polyline points="{line}" fill="none" stroke="var(--color-accent)" stroke-width="2.5"/>{marker}</svg>'
        f'<p class="hint">{safe(told)}</p></div>'
    )


def header_html(facts: Facts) -> str:
    """Return the title, and when a text leaves."""
    about = f"Model: {facts['model']}. {facts['rule']}"
    return f'<div class="ax"><h1>{safe(facts["title"])}</h1><p class="hint">{safe(about)}</p></div>'


def own_label(config: Any) -> str:
    """Return the name of the box for the threshold that the page starts with: the saved one, or that of a flag."""
    threshold = config.exit_threshold
    if threshold is None:
        return "No threshold: full depth"
    if isinstance(threshold, list):
        return f"The model's thresholds, one per exit: {', '.join(f'{value:.4g}' for value in threshold)}"
    return f"The model's threshold, {threshold:.6g}"


def slider_settings(model: Any, facts: Facts) -> dict[str, Any]:
    """Return range, step, label and first value of the slider.

    With a curve it chooses the mean number of layers: the thresholds themselves often lie between 0.999 and 1, where
    a slider cannot tell them apart. Without a curve it chooses the threshold.

    Args:
        model: The model.
        facts: The page's facts.
    """
    config, curve = model.config, facts["curve"]
    if not curve:
        low, high = config.threshold_bounds
        step = 1.0 if config.exit_criterion in COUNTS else (high - low) / 1000
        own, most_layers = config.exit_threshold, low if model.ready in (torch.lt, torch.le) else high
        value = own if isinstance(own, float | int) else most_layers
        return {"minimum": low, "maximum": high, "step": step, "value": value, "label": "Exit threshold"}
    layers = [point[2] for point in curve]
    step = 0.1 if max(layers) - min(layers) > 1 else 0.01
    decimals = 1 if step == 0.1 else 2
    place = point_at(curve, config.exit_threshold)
    return {
        "minimum": int(min(layers) / step + 1e-9) * step,
        "maximum": round(max(layers) + step / 2, decimals),
        "step": step,
        "value": round(layers[place] if place is not None else max(layers), decimals),
        "label": "Exit threshold, by the layers that it runs per text (mean)",
        "info": f"On {facts['dataset']}. To the left fewer layers, to the right more.",
    }


# The page


def build(model: Any, tokenizer: Any, facts: Facts) -> Any:
    """Make the page.

    Args:
        model: An early-exit model; it is set to eval mode.
        tokenizer: Its tokenizer.
        facts: What `demo.json` holds: `title`, `model` (its name), `rule` (when a text leaves, in words), `pairs`
            (whether the model reads pairs; None if it reads both), `max_tokens`, `dataset`, `metric`, `curve`
            (threshold, score and mean layers of every point; may be empty) and `examples` (each with `kind`, `texts`,
            `layer` and `label`).

    Returns:
        The page, a `gradio.Blocks`, for `launch`.
    """
    import gradio as gr

    config = model.eval().config
    tokenizer.model_max_length = min(tokenizer.model_max_length, facts["max_tokens"] or tokenizer.model_max_length)
    depth, several_exits = config.exit_layers[-1], len(config.exit_layers) > 1
    settings = slider_settings(model, facts)

    def threshold_of(own: bool, place: float) -> Threshold:
        if own or not several_exits:
            threshold: Threshold = config.exit_threshold
            return threshold
        return threshold_for(facts["curve"], place) if facts["curve"] else place

    def given(texts: Texts) -> list[str]:
        texts = [text or "" for text in texts]
        return texts[:1] if facts["pairs"] is None and not texts[1].strip() else list(texts)

    def shown(own: bool, place: float, texts: Texts, decide: bool = False) -> tuple[str, str, str]:
        threshold, read = threshold_of(own, place), given(texts)
        curve, words = curve_html(facts, threshold, depth), ""
        if not all(text.strip() for text in read):
            missing = '<p class="warning">Both texts are needed.</p>' if any(text.strip() for text in read) else ""
            return f'<div class="ax">{missing or EMPTY}</div>', "", curve
        done = run(model, tokenizer, read, threshold)
        if decide and done.logits[done.exit].isfinite().all():
            words = words_html(model, read, done, *word_effects(model, tokenizer, read, done))
        elif decide:
            words = '<div class="ax"><p class="warning">The answer is not a number, so no word decided it.</p></div>'
        return result_html(model, done), words, curve

    def classify(own: bool, place: float, *texts: str) -> tuple[str, str, str]:
        return shown(own, place, texts)

    def decide(own: bool, place: float, *texts: str) -> tuple[str, str, str]:
        return shown(own, place, texts, decide=True)

    def move(place: float, *texts: str) -> tuple[Any, ...]:
        return False, *shown(False, place, texts)

    def tick(own: bool, place: float, *texts: str) -> tuple[Any, ...]:
        place = settings["value"] if own else place
        return place, *shown(own, place, texts)

    def choose(texts: list[str], own: bool, place: float) -> tuple[Any, ...]:
        texts = [*texts, *[""] * (len(labels) - len(texts))]
        return *texts, *shown(own, place, texts)

    labels = ["Text"] if facts["pairs"] is False else ["First text", "Second text"]
    if facts["pairs"] is None:
        labels[1] += ", empty for a single text"
    with gr.Blocks(title=facts["title"], analytics_enabled=False) as page:
        html = partial(gr.HTML, apply_default_css=False)
        html(header_html(facts))
        with gr.Row():
            with gr.Column(min_width=300):
                boxes = [
                    gr.Textbox(label=label, lines=1, max_lines=8, elem_id=f"text-{number}")
                    for number, label in enumerate(labels)
                ]
                start = gr.Button("Classify", variant="primary")
                own = gr.Checkbox(value=True, label=own_label(config), visible=several_exits, elem_id="own")
                slider = gr.Slider(**settings, visible=several_exits, elem_id="threshold")
            with gr.Column(min_width=300):
                result = html(f'<div class="ax">{EMPTY}</div>', elem_id="result")
                ask = gr.Button("Which words decided?", size="md")
                words = html(elem_id="words")
        with gr.Row():
            with gr.Column(min_width=300, visible=bool(facts["examples"])):
                buttons = []
                for kind in dict.fromkeys(example["kind"] for example in facts["examples"]):
                    html(f'<div class="ax"><h2>{safe(kind)}</h2></div>')
                    for example in facts["examples"]:
                        if example["kind"] == kind:
                            button = gr.Button(example_name(example), size="sm", elem_classes="ax-example")
                            buttons.append((button, example["texts"]))
            with gr.Column(min_width=300, visible=bool(facts["curve"]) and several_exits):
                curve = html(curve_html(facts, config.exit_threshold, depth), elem_id="curve")

        inputs, outputs = [own, slider, *boxes], [result, words, curve]
        # One at a time, of all visitors: truncation is a state of the tokenizer, which two threads may not share.
        alone: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        # "always_last": a text that is sent while another is under way is not ignored.
        quiet: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"} | alone
        start.click(classify, inputs, outputs, api_name="classify", **quiet)
        ask.click(decide, inputs, outputs, api_name="words", show_progress="minimal", **alone)
        hidden = quiet | {"api_visibility": "private"}
        for box in boxes:
            box.submit(classify, inputs, outputs, **hidden)
        # `input` comes from people only: what `tick` does to the slider does not untick the box again.
        slider.input(move, [slider, *boxes], [own, *outputs], **hidden)
        own.input(tick, inputs, [slider, *outputs], **hidden)
        for button, texts in buttons:
            button.click(partial(choose, texts), [own, slider], [*boxes, *outputs], **hidden)
    return page


def example_name(example: Mapping[str, Any], most: int = 160) -> str:
    """Return the name of an example's button: where its text left, its label, and its text, cut if it is long.

    >>> example_name({"layer": 2, "label": "positive", "texts": ["a gripping film"]})
    'layer 2, labelled positive: a gripping film'
    """
    text = " / ".join(example["texts"])
    label = "" if example["label"] is None else f", labelled {example['label']}"
    return f"layer {example['layer']}{label}: {text if len(text) <= most else text[: most - 1] + '…'}"


def launch(page: Any, **options: Any) -> None:
    """Start the server of a page, with its looks; nothing is loaded from elsewhere, and no text is recorded.

    Args:
        page: From `build`.
        **options: Arguments of `gradio.Blocks.launch`.
    """
    import gradio as gr

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    # The default's light grey on white is hard to read.
    theme.set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300")
    theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")
    looks: dict[str, Any] = {"theme": theme, "css": CSS, "footer_links": ["gradio", "settings"]}
    # `_frontend=False` leaves out one check: that the page answers within three seconds, too few on a busy machine.
    page.launch(**looks, share=False, run_history=False, ssr_mode=False, _frontend=False, **options)


def main() -> None:
    """Load the model in `model/` beside this file, or the one on the Hub that `demo.json` names; start the page."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = Path(__file__).parent
    facts = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    source, pinned = facts["hub_model"] or str(folder / "model"), {}
    if facts["hub_model"]:
        pinned["revision"] = facts["revision"]
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True, **pinned)
    model = AutoModelForSequenceClassification.from_pretrained(source, trust_remote_code=True, **pinned)
    launch(build(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, facts))


if __name__ == "__main__":
    main()
