"""Explain a prediction and the exit where it was made: attributions by Captum (extra `interpret`).

Integrated gradients (Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017) of the logit and
the readiness score of every exit, layer conductance (Dhamdhere, Sundararajan, Yan, "How Important Is a Neuron?", ICLR
2019), and the faithfulness of attributions (DeYoung et al., "ERASER", ACL 2020, section 4.2). Analyses that need no
gradients are in `probes`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.configuration_early_exit import Threshold, check_choice, check_whole_number
from ..models.modeling_early_exit import EarlyExitForSequenceClassification
from ..utils.imports import needed
from .faithfulness import ROUNDING, completeness_error, faithfulness, warn_of_incomplete
from .inputs import Texts, texts
from .unrolled import Unrolled, Value, answer, probability, readiness


class Attribution(NamedTuple):
    """How much each token contributes to a value, at every explained exit.

    Attributes:
        values: Attributions, `(exits, tokens)`, in the unit of the value; 0 at special tokens.
        value: The value for the text, `(exits,)`.
        change: Value for the text minus value for the baseline, `(exits,)`. The attributions should sum to it.
        error: Completeness error `|sum of values - change| / |change|`, `(exits,)`, 0 at best. The divisor is at least
            1e-4.
        comprehensiveness: Drop of the value when the words with the highest attributions are masked, `(exits,)`, mean
            over the top 1, 5, 10, 20 and 50 percent of the words, rounded up. High values are faithful. For the
            attributions of a prediction it is the drop of the probability, as in the paper.
        sufficiency: Drop of the value when all other words are masked, `(exits,)`. Low values are faithful.
    """

    values: Tensor
    value: Tensor
    change: Tensor
    error: Tensor
    comprehensiveness: Tensor
    sufficiency: Tensor


class Explanation(NamedTuple):
    """The explanation of one text: attributions of the prediction and of the readiness score of each exit.

    Attributes:
        tokens: Tokens of the text, without padding.
        special: Which tokens are special tokens such as [CLS], `(tokens,)`, bool.
        exit_layer: Number of layers run for the text, 1..L.
        label: The class that is explained; 0 for regression.
        layers: Layers of the explained exits, 1..L.
        criterion: The config's `exit_criterion`, which names the kind of readiness score.
        answer: Attributions of the logit of the label (DACT-BERT: its log-probability; regression: the number).
        score: Attributions of the readiness score of each exit; None if they were not requested. Confidence and margin
            are computed for the classes with the highest probabilities for the text, whichever lead elsewhere on the
            path. For a method's own criterion, the explained value is the one learned for it: the certainty of
            BERxiT's learning to exit, or DACT-BERT's halting value, in [0, 1], where 0 stops.
    """

    tokens: tuple[str, ...]
    special: Tensor
    exit_layer: int
    label: int
    layers: tuple[int, ...]
    criterion: str
    answer: Attribution
    score: Attribution | None

    def named_values(self) -> dict[str, list[float]]:
        """Return all attributions by name.

        Returns:
            One number per token by name, e.g. `"answer at layer 3"` or `"confidence at layer 3"`.
        """
        parts = {"answer": self.answer} | ({} if self.score is None else {self.criterion: self.score})
        return {
            f"{name} at layer {layer}": row
            for name, part in parts.items()
            for layer, row in zip(self.layers, part.values.tolist(), strict=True)
        }


class Conductance(NamedTuple):
    """How much of a value at the exit of a text flows through each token after each layer.

    Attributes:
        tokens: Tokens of the text, without padding.
        special: Which tokens are special tokens such as [CLS], `(tokens,)`, bool. They have conductance, because
            layers move information about words to them.
        exit_layer: Number of layers run for the text, 1..L.
        label: The class that is explained; 0 for regression.
        values: Conductance, `(layers, tokens)`, for layers 1 to `exit_layer`, in the unit of the value.
        state: Conductance that does not flow through the tokens, `(layers,)`: through what earlier exits pass on to
            later ones.
        change: Value for the text minus value for the baseline. Values and state of each layer should sum to it.
        error: Completeness error of each layer, `(layers,)`, as in `Attribution`.
    """

    tokens: tuple[str, ...]
    special: Tensor
    exit_layer: int
    label: int
    values: Tensor
    state: Tensor
    change: float
    error: Tensor


def explain(
    model: EarlyExitForSequenceClassification,
    dataset: Iterable[Any],
    tokenizer: Any = None,
    *,
    scores: bool = True,
    layers: Sequence[int] | None = None,
    label: int | None = None,
    exit_threshold: Threshold = None,
    steps: int = 64,
    baseline_id: int | None = None,
    batch_size: int = 8,
    rows_per_pass: int = 64,
    progress: bool = True,
) -> list[Explanation]:
    """Compute integrated gradients of each exit's logit and readiness score with respect to the words of each text.

    The integration path leads from a baseline, the text with a baseline token in place of each word, to the text, in
    the space of word embeddings. Special tokens and padding are the same at both ends. If the method gives each token
    a depth, the depths of the text are used on the whole path, so the attributions hold for these depths. Each exit
    takes `steps` forward and backward passes for the logit, and as many for the score.

    Args:
        model: Model on any device. Its train or eval mode is restored afterwards.
        dataset: Texts or tokenized rows, as for `collect_trace`.
        tokenizer: The model's tokenizer, needed for texts; it provides the names of the tokens and tells which are
            special. Default: none; tokens are named by their ids, and the special ones are those that the encoder's
            config names.
        scores: Also explain the readiness scores. Default: True.
        layers: Exits to explain, by their layers, a subset of the config's `exit_layers`. Default: all.
        label: The class to explain, 0..labels - 1. Default: the predicted class of each text.
        exit_threshold: Threshold at which the texts leave. Default: that of the config.
        steps: Steps of the integral, 2 or more, by Gauss-Legendre quadrature. More steps make the completeness error
            smaller. Default: 64.
        baseline_id: Id of a token without meaning, for the baseline. Default: the tokenizer's mask token, else the
            encoder's padding token.
        batch_size: Number of texts explained together. Default: 8.
        rows_per_pass: Approximate number of rows per forward pass on the integration path. Default: 64.
        progress: Show a progress bar. Default: True.

    Returns:
        One explanation per text, in the order of the data set, on the CPU. `as_json` converts them to plain lists.

    Raises:
        ImportError: If Captum is not installed.
        ValueError: If the model predicts several labels at once, if there are no rows, if `layers`, `label`, `steps`
            or `baseline_id` is out of range, or if the readiness score is a count, such as patience, and has no
            gradient (`NoGradientError`).

    Warns:
        RuntimeWarning: If attributions differ from the change that they explain by more than 5 %.

    Examples:
        >>> from transformers import BertConfig, BertTokenizer
        >>> from adaexit_hf import DeeBertConfig, DeeBertForSequenceClassification
        >>> vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film")
        >>> tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})
        >>> encoder = BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> model = DeeBertForSequenceClassification(DeeBertConfig(encoder, num_labels=2))
        >>> (explanation,) = explain(model, [tokenizer("good film")], tokenizer, layers=[1], steps=16, progress=False)
        >>> explanation.tokens, explanation.exit_layer
        (('[CLS]', 'good', 'film', '[SEP]'), 2)
        >>> {name: len(values) for name, values in explanation.named_values().items()}
        {'answer at layer 1': 4, 'entropy at layer 1': 4}
    """
    run, exit_layers = Unrolled(model), list(model.config.exit_layers)
    chosen = exit_layers if layers is None else list(layers)
    if not chosen or not set(chosen) <= set(exit_layers):
        raise ValueError(f"layers: got {layers}; exits are after layers {exit_layers}, pass some of these")
    gradients = needed("captum.attr", "interpret").IntegratedGradients
    # Readiness comes first, so that a score without a gradient is refused before anything is computed.
    kinds = [(readiness, readiness)] * scores + [(answer, probability)]
    desc, by_place = "Explaining" if progress else None, {}
    check_whole_number("steps", steps, low=2, advice="e.g. steps=64")
    for batch in texts(run, dataset, tokenizer, label, exit_threshold, baseline_id, batch_size, desc):
        fields = []
        for value, measure in kinds:
            exits = [
                _attribute(gradients, run, value, measure, batch, exit_layers.index(layer), steps, rows_per_pass)
                for layer in chosen
            ]
            fields.append([torch.stack(field, dim=1).cpu() for field in zip(*exits, strict=True)])
        for row, place in enumerate(batch.places):
            real = batch.real[row].cpu()
            *score, prediction = [
                Attribution(values[row][:, real], *(other[row] for other in others)) for values, *others in fields
            ]
            by_place[place] = Explanation(
                *_text_facts(batch, row),
                tuple(chosen),
                model.config.exit_criterion,
                prediction,
                score[0] if score else None,
            )
    explanations = [by_place[place] for place in sorted(by_place)]
    parts = [part for text in explanations for part in (text.answer, text.score) if part is not None]
    warn_of_incomplete([part.error for part in parts], [_relative_miss(part.values, part.change) for part in parts])
    return explanations


def layer_conductance(
    model: EarlyExitForSequenceClassification,
    dataset: Iterable[Any],
    tokenizer: Any = None,
    *,
    of: str = "answer",
    label: int | None = None,
    exit_threshold: Threshold = None,
    steps: int = 64,
    baseline_id: int | None = None,
    batch_size: int = 8,
    rows_per_pass: int = 64,
    progress: bool = True,
) -> list[Conductance]:
    """Compute the conductance of every token after every layer that a text ran, for a value at the exit of the text.

    The integration path is that of `explain`. The integral is the mean of Captum's integrals from the baseline to the
    text and back, which is the trapezoidal rule; the error of one direction alone falls only linearly with the steps.

    Args:
        model: Model on any device. Its train or eval mode is restored afterwards.
        dataset: Texts or tokenized rows, as for `collect_trace`.
        tokenizer: As for `explain`.
        of: The value: `"answer"` (default), the logit of the label, or `"score"`, the readiness score.
        label: The class to explain, 0..labels - 1. Default: the predicted class of each text.
        exit_threshold: Threshold at which the texts leave. Default: that of the config.
        steps: Steps of the integral, 2 or more. Default: 64.
        baseline_id: As for `explain`.
        batch_size: Number of texts explained together. Default: 8.
        rows_per_pass: Approximate number of rows per forward pass on the integration path. Default: 64.
        progress: Show a progress bar. Default: True.

    Returns:
        One result per text, in the order of the data set, on the CPU.

    Raises:
        ImportError: If Captum is not installed.
        ValueError: If the model predicts several labels at once, if there are no rows, if `of`, `label`, `steps` or
            `baseline_id` is out of range, or if the readiness score is a count, such as patience, and has no gradient
            (`NoGradientError`).

    Warns:
        RuntimeWarning: If the conductance of a layer differs from the change that it explains by more than 5 %.

    Examples:
        >>> from transformers import BertConfig
        >>> from adaexit_hf import DeeBertConfig, DeeBertForSequenceClassification
        >>> encoder = BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> model = DeeBertForSequenceClassification(DeeBertConfig(encoder, num_labels=2))
        >>> (conductance,) = layer_conductance(model, [{"input_ids": [2, 5, 6, 3]}], steps=16, progress=False)
        >>> conductance.exit_layer, conductance.values.shape  # (layers, tokens)
        (2, torch.Size([2, 4]))
        >>> bool((conductance.error < 0.05).all())  # values and state of each layer sum to `conductance.change`
        True
    """
    run = Unrolled(model)
    forward = run.of({"answer": answer, "score": readiness}[check_choice("of", of, ("answer", "score"))])
    conductance = needed("captum.attr", "interpret").LayerConductance
    exit_layers, hidden = torch.tensor(model.config.exit_layers), model.config.encoder_config.hidden_size
    desc, by_place = "Explaining layers" if progress else None, {}
    check_whole_number("steps", steps, low=2, advice="e.g. steps=64")
    for batch in texts(run, dataset, tokenizer, label, exit_threshold, baseline_id, batch_size, desc):
        at = torch.searchsorted(exit_layers, batch.exit_layer.cpu()).to(batch.classes.device)
        classes = batch.classes[:, None] if of == "answer" else batch.ranking[torch.arange(len(at)), at]
        extra = (at, classes, *batch.columns)
        ends = batch.baseline, batch.embeddings
        with torch.no_grad():
            base, text = (forward(end, *extra) for end in ends)
        parts = [
            _conduct(conductance(forward, cut), ends, extra, hidden, steps, rows_per_pass)
            for cut in run.cuts[: int(batch.exit_layer.max())]
        ]
        tokens, state = (torch.stack(part, dim=1) for part in zip(*parts, strict=True))  # (batch, layers, ...)
        change = text - base
        error = completeness_error(tokens.sum(dim=-1) + state - change[:, None], change[:, None])
        for row, place in enumerate(batch.places):
            layers_run = slice(int(batch.exit_layer[row]))
            by_place[place] = Conductance(
                *_text_facts(batch, row),
                tokens[row, layers_run][:, batch.real[row]].cpu(),
                (state + (tokens * ~batch.real[:, None]).sum(dim=-1))[row, layers_run].cpu(),
                change[row].item(),
                error[row, layers_run].cpu(),
            )
    conductances = [by_place[place] for place in sorted(by_place)]
    warn_of_incomplete(
        [text.error for text in conductances],
        [
            _relative_miss(torch.column_stack([text.values, text.state]), torch.tensor(text.change))
            for text in conductances
        ],
    )
    return conductances


def _attribute(
    gradients: Any, run: Unrolled, value: Value, measure: Value, batch: Texts, index: int, steps: int, rows: int
) -> tuple[Tensor, ...]:
    """Return the fields of an `Attribution` at exit `index`: values (batch, tokens), all others (batch,)."""
    classes = batch.classes[:, None] if value is answer else batch.ranking[:, index]
    extra = (torch.full_like(batch.classes, index), classes, *batch.columns)
    forward = run.of(value)
    attributions, delta = gradients(forward).attribute(
        batch.embeddings,
        batch.baseline,
        additional_forward_args=extra,
        n_steps=steps,
        internal_batch_size=max(rows, len(batch.classes)),
        return_convergence_delta=True,
    )
    attributions = attributions.detach().float().sum(dim=-1)  # (batch, tokens)
    change = attributions.sum(dim=-1) - delta
    with torch.no_grad():
        text_value = forward(batch.embeddings, *extra)
        faithful = faithfulness(lambda embeddings: run.of(measure)(embeddings, *extra), batch, attributions)
    return attributions, text_value, change, completeness_error(delta, change), *faithful


def _conduct(
    method: Any, ends: tuple[Tensor, Tensor], extra: tuple[Any, ...], hidden: int, steps: int, rows: int
) -> tuple[Tensor, Tensor]:
    """Return the conductance through tokens (batch, tokens) and through the method's state (batch,) at one cut.

    Args:
        method: Captum's conductance of one layer.
        ends: Embeddings of the baseline and of the text.
        extra: Further arguments of the forward function.
        hidden: Hidden size.
        steps: Steps of the integral.
        rows: Approximate number of rows per forward pass.
    """
    to_text, to_baseline = (
        method.attribute(
            text,
            baseline,
            additional_forward_args=extra,
            n_steps=steps,
            method="riemann_trapezoid",
            internal_batch_size=max(rows, 2 * len(text)),
        )
        for baseline, text in (ends, ends[::-1])
    )
    conductance = (to_text - to_baseline).detach().float() / 2  # (batch, tokens * hidden + state)
    tokens, size = ends[0].shape[1], ends[0].shape[1] * hidden
    return conductance[:, :size].unflatten(1, (tokens, hidden)).sum(dim=-1), conductance[:, size:].sum(dim=-1)


def _text_facts(batch: Texts, row: int) -> tuple[tuple[str, ...], Tensor, int, int]:
    """Return the tokens of one text, which of them are special (tokens,), its exit layer and its class."""
    real = batch.real[row].cpu()
    names = tuple(name for name, is_real in zip(batch.names[row], real.tolist(), strict=True) if is_real)
    return names, ~batch.words[row].cpu()[real], int(batch.exit_layer[row]), int(batch.classes[row])


def _relative_miss(values: Tensor, change: Tensor) -> Tensor:
    """Return |sum of values (rows, parts) - change| as a share of the sum of their absolute values, (rows,)."""
    return (values.sum(dim=-1) - change).abs() / values.abs().sum(dim=-1).clamp_min(ROUNDING)
