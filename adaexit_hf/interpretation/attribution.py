"""Why a text was answered as it was, and why it left where it did: attributions by Captum (extra `interpret`).

Integrated gradients (Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017) of every exit's
answer and readiness, layer conductance (Dhamdhere, Sundararajan, Yan, "How Important Is a Neuron?", ICLR 2019), and
how faithful they are (DeYoung et al., "ERASER", ACL 2020, section 4.2). `probes` has what needs no attributions.
"""

from collections.abc import Iterable, Mapping, Sequence
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
    """What each token adds to a value, at every explained exit.

    Args:
        values: (exits, tokens), in the unit of the value; 0 at special tokens.
        value: that of the text, (exits,).
        change: value of the text minus that of the baseline, (exits,), to which the attributions should sum.
        error: of completeness, |sum of values - change| / |change|, (exits,); / 1e-4 where the change is less.
        comprehensiveness: how much the value falls when the words with the highest attributions are masked, (exits,),
            mean over the top 1, 5, 10, 20 and 50 percent, rounded up; high is faithful. Of the answer it is the
            probability that falls, as in the paper.
        sufficiency: how much it falls when all other words are masked, (exits,); low is faithful.
    """

    values: Tensor
    value: Tensor
    change: Tensor
    error: Tensor
    comprehensiveness: Tensor
    sufficiency: Tensor


class Explanation(NamedTuple):
    """Why one text was answered as it was, and left where it did.

    Args:
        tokens: of the text, without pads.
        special: which are no words of the text, such as [CLS], (tokens,), bool.
        exit_layer: layers that were run, 1..L.
        label: the class that is explained; 0 with one label.
        layers: after which the explained exits are, 1..L.
        criterion: the config's `exit_criterion`, which says what the score is.
        answer: of the label's logit (DACT-BERT: log-probability; with one label: the number).
        score: of the exit's readiness; confidence and margin are followed for the classes that lead at the text. Of a
            method's own criterion it is of what was learned for it: the certainty of learning to exit, or DACT-BERT's
            halting value, in [0, 1], where 0 stops. None if it was not asked for.
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
        """All attributions by name, e.g. "answer at layer 3", each one number per token."""
        parts = {"answer": self.answer} | ({} if self.score is None else {self.criterion: self.score})
        return {
            f"{name} at layer {layer}": row
            for name, part in parts.items()
            for layer, row in zip(self.layers, part.values.tolist(), strict=True)
        }


class Conductance(NamedTuple):
    """How much of the value of a text, at the exit where it left, flows through each token after each layer.

    Args:
        tokens, special, exit_layer, label: as in `Explanation`. Special tokens count here: layers carry words there.
        values: (layers, tokens), for layers 1 to `exit_layer`, in the unit of the value.
        state: what flows past the tokens, (layers,): through what earlier exits handed on, and through a pad where
            exits read the first place and a text has its pads there.
        change: value of the text minus that of the baseline, to which values and state of each layer should sum.
        error: of completeness, of each layer, (layers,); as in `Attribution`.
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
    dataset: Iterable[Mapping[str, Any]],
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
    """Integrated gradients over the words of each text: of every exit's answer, and of every exit's readiness.

    The path leads from the text with a baseline token in place of each word to the text, through embeddings; special
    tokens and pads are the same at both ends, and so are the depths of tokens, where a method has such: attributions
    hold for those that the text has. Each exit takes 2 * steps passes forward and backward.

    Args:
        model: on any device; its train or eval mode is restored afterwards.
        dataset: tokenized rows, as for `collect_trace`.
        tokenizer: names the tokens, and says which are special; without it they are named by their numbers, and
            special are those that the encoder's config names.
        scores: explain readiness, too.
        layers: explain the exits after these, of the config's `exit_layers`. Default: all.
        label: the class that is explained. Default: each text's own answer.
        exit_threshold: when the texts leave; default the config's.
        steps: of the integral, >= 2, by Gauss and Legendre's rule. With more the completeness error gets smaller.
        baseline_id: token that stands for no word. Default: the tokenizer's mask token, or else the encoder's pad.
        batch_size: texts that are explained together.
        rows_per_pass: about how many rows go through the model at once, on the way from the baseline to the texts.
        progress: show a bar.

    Returns:
        one per text, in the order of the data set, on the CPU; `as_json` makes plain lists of them.

    Raises:
        ImportError: captum is not installed.
        ValueError: no rows; `layers`, `label`, `steps` or `baseline_id` out of range; a criterion whose score counts,
            such as patience (NoGradientError).
    """
    run, known = Unrolled(model), list(model.config.exit_layers)
    chosen = known if layers is None else list(layers)
    if not chosen or not set(chosen) <= set(known):
        raise ValueError(f"layers: got {layers}; exits are after layers {known}, pass some of these")
    gradients = needed("captum.attr", "interpret").IntegratedGradients
    kinds = [(readiness, readiness)] * scores + [(answer, probability)]  # what cannot be explained first, to refuse it
    desc, found = "Explaining" if progress else None, {}
    check_whole_number("steps", steps, low=2, advice="e.g. steps=64")
    for batch in texts(run, dataset, tokenizer, label, exit_threshold, baseline_id, batch_size, desc):
        fields = []
        for value, measure in kinds:
            exits = [
                _attribute(gradients, run, value, measure, batch, known.index(layer), steps, rows_per_pass)
                for layer in chosen
            ]
            fields.append([torch.stack(field, dim=1).cpu() for field in zip(*exits, strict=True)])
        for row, place in enumerate(batch.places):
            real = batch.real[row].cpu()
            *score, said = [
                Attribution(values[row][:, real], *(other[row] for other in others)) for values, *others in fields
            ]
            found[place] = Explanation(
                *_about(batch, row), tuple(chosen), model.config.exit_criterion, said, score[0] if score else None
            )
    explanations = [found[place] for place in sorted(found)]
    parts = [part for one in explanations for part in (one.answer, one.score) if part is not None]
    warn_of_incomplete([part.error for part in parts], [_missed(part.values, part.change) for part in parts])
    return explanations


def layer_conductance(
    model: EarlyExitForSequenceClassification,
    dataset: Iterable[Mapping[str, Any]],
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
    """Conductance of every token's state after every layer that a text ran, for its value at the exit where it left.

    The same path as in `explain`. The integral is the mean of Captum's on the way there and on the way back, which is
    the trapezoidal rule; one way alone is of first order in the steps.

    Args:
        model, dataset, tokenizer, label, exit_threshold, baseline_id, batch_size, rows_per_pass, progress: as for
            `explain`.
        of: "answer", the logit of the label, or "score", the exit's readiness.
        steps: of the integral, >= 2.

    Returns:
        one per text, in the order of the data set, on the CPU.

    Raises:
        ImportError, ValueError: as `explain`.
    """
    run = Unrolled(model)
    forward = run.of({"answer": answer, "score": readiness}[check_choice("of", of, ("answer", "score"))])
    conductance = needed("captum.attr", "interpret").LayerConductance
    exit_layers, hidden = torch.tensor(model.config.exit_layers), model.config.encoder_config.hidden_size
    desc, found = "Explaining layers" if progress else None, {}
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
            below = slice(int(batch.exit_layer[row]))
            found[place] = Conductance(
                *_about(batch, row),
                tokens[row, below][:, batch.real[row]].cpu(),
                (state + (tokens * ~batch.real[:, None]).sum(dim=-1))[row, below].cpu(),
                change[row].item(),
                error[row, below].cpu(),
            )
    conductances = [found[place] for place in sorted(found)]
    warn_of_incomplete(
        [one.error for one in conductances],
        [_missed(torch.column_stack([one.values, one.state]), torch.tensor(one.change)) for one in conductances],
    )
    return conductances


def _attribute(
    gradients: Any, run: Unrolled, value: Value, measure: Value, batch: Texts, index: int, steps: int, rows: int
) -> tuple[Tensor, ...]:
    """The fields of an `Attribution` at exit `index`, each (batch, ...), the first (batch, tokens)."""
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
        whole = forward(batch.embeddings, *extra)
        faithful = faithfulness(lambda embeddings: run.of(measure)(embeddings, *extra), batch, attributions)
    return attributions, whole, change, completeness_error(delta, change), *faithful


def _conduct(
    method: Any, ends: tuple[Tensor, Tensor], extra: tuple[Any, ...], hidden: int, steps: int, rows: int
) -> tuple[Tensor, Tensor]:
    """What flows through tokens (batch, tokens) and past them (batch,) at one cut, from the first end to the other."""
    there, back = (
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
    whole = (there - back).detach().float() / 2  # (batch, tokens * hidden + state)
    tokens, states = ends[0].shape[1], ends[0].shape[1] * hidden
    return whole[:, :states].unflatten(1, (tokens, hidden)).sum(dim=-1), whole[:, states:].sum(dim=-1)


def _about(batch: Texts, row: int) -> tuple[tuple[str, ...], Tensor, int, int]:
    """Names of the tokens, which are special (tokens,), exit layer and class of one text."""
    real = batch.real[row].cpu()
    names = tuple(name for name, kept in zip(batch.names[row], real.tolist(), strict=True) if kept)
    return names, ~batch.words[row].cpu()[real], int(batch.exit_layer[row]), int(batch.classes[row])


def _missed(values: Tensor, change: Tensor) -> Tensor:
    """What values (rows, parts) miss of a change, as a share of their sum without signs, (rows,)."""
    return (values.sum(dim=-1) - change).abs() / values.abs().sum(dim=-1).clamp_min(ROUNDING)
