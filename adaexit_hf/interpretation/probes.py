"""What can be seen of a model without gradients: attention, what confidence depends on, and answers not waited for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..evaluation.trace import ExitTrace
from ..models.batching import by_length, check_model, checked_rows, model_inputs
from ..models.exit_heads import confidence
from ..models.modeling_early_exit import EarlyExitForSequenceClassification
from ..utils.imports import needed


class AttentionEntropy(NamedTuple):
    """How widely heads look around.

    Args:
        entropy: of a head's attention in nats, mean over a text's tokens, (texts, layers, heads); from 0, all on one
            token, to ln tokens, the same on all.
        tokens: of each text, without pads, (texts,).
    """

    entropy: Tensor
    tokens: Tensor


class BleuCorrelation(NamedTuple):
    """Does confidence follow the overlap of the two sentences? By exit and by the class that the exit predicts.

    Args:
        layers: after which the exits are, 1..L.
        correlation: Pearson's, of BLEU-4 and confidence, (exits, labels), in [-1, 1]; NaN where it is undefined,
            with fewer than two samples or without any spread.
        samples: how many the exit predicts to be of the class, (exits, labels).
        bleu: of each sample, (samples,), in [0, 100].
    """

    layers: tuple[int, ...]
    correlation: Tensor
    samples: Tensor
    bleu: Tensor


def attention_entropy(
    model: EarlyExitForSequenceClassification,
    dataset: Iterable[Mapping[str, Any]],
    batch_size: int = 32,
    progress: bool = True,
) -> AttentionEntropy:
    """Entropy of every attention head at full depth, mean over the tokens of each text, pads left out.

    Args:
        model: with eager attention; its train or eval mode is restored afterwards.
        dataset: tokenized rows, as for `collect_trace`.
        batch_size: rows per forward pass.
        progress: show a bar.

    Returns:
        (texts, layers, heads), in the order of the data set, on the CPU.

    Raises:
        ValueError: no rows; another implementation of attention, which keeps no weights.
    """
    check_model(model)
    rows, training = checked_rows(dataset), model.training
    found: dict[int, tuple[Tensor, Tensor]] = {}
    model.eval()
    try:
        for places, batch in by_length(
            rows, batch_size, model.config.encoder_config, "Attending" if progress else None
        ):
            with torch.inference_mode():
                attentions = model(**model_inputs(model, batch), early_exit=False, output_attentions=True).attentions
            if attentions is None:
                raise ValueError(
                    f"model: got attention implementation '{model.encoder.config._attn_implementation}', which keeps "
                    "no weights; call model.set_attn_implementation('eager') first"
                )
            real = batch["attention_mask"].float()  # (batch, tokens)
            looks = torch.stack([torch.special.entr(layer.float()).sum(dim=-1) for layer in attentions], dim=1).cpu()
            count = real.sum(dim=-1)
            entropy = (looks * real[:, None, None]).sum(dim=-1) / count[:, None, None]  # (batch, layers, heads)
            found |= dict(zip(places, zip(entropy, count.long(), strict=True), strict=True))
    finally:
        model.train(training)
    entropies, counts = zip(*(found[place] for place in range(len(rows))), strict=True)
    return AttentionEntropy(torch.stack(entropies), torch.stack(counts))


def confidence_bleu_correlation(trace: ExitTrace, first: Sequence[str], second: Sequence[str]) -> BleuCorrelation:
    """Pearson correlation of confidence with BLEU-4 between two sentences, by exit and predicted class; BERxiT, 5.5.

    Sentence BLEU by sacrebleu with effective order, since BLEU-4 of fewer than four words is none, and its default
    smoothing, "exp": the k-th order of n-grams without a match counts as 1 / 2^k matches. The paper names no
    implementation, and does not say which sentence is the reference: here the second. Confidence is the largest
    probability, whatever decides about exits.

    Args:
        trace: of a task that compares two sentences.
        first, second: the sentences of each sample of the trace, in its order.

    Raises:
        ImportError: sacrebleu is not installed.
        ValueError: as many sentences as samples are needed; regression has no confidence.
    """
    samples, _, labels = trace.logits.shape
    if labels == 1:
        raise ValueError("trace: one label has no confidence; pass the trace of a classifier")
    for name, sentences in (("first", first), ("second", second)):
        if len(sentences) != samples:
            raise ValueError(f"{name}: got {len(sentences)} sentences for {samples} samples; pass one for each")
    score = needed("sacrebleu", "interpret").sentence_bleu
    pairs = zip(first, second, strict=True)
    bleu = torch.tensor([score(one, [other], use_effective_order=True).score for one, other in pairs])
    sure, said = confidence(trace.logits), trace.logits.argmax(dim=-1)  # (samples, exits)
    groups = torch.stack([said == label for label in range(labels)], dim=-1)  # (samples, exits, labels)
    correlation = torch.tensor(
        [[pearson(bleu[group], sure[group, index]) for group in groups[:, index].T] for index in range(said.shape[1])]
    )
    return BleuCorrelation(tuple(trace.exit_layers), correlation, groups.sum(dim=0), bleu)


def pearson(first: Tensor, second: Tensor) -> float:
    """Pearson's correlation of two rows of numbers, (samples,) each; NaN for fewer than two, or where one is constant.

    >>> round(pearson(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2.0, 1.0, 5.0])), 4)
    0.8386
    >>> pearson(torch.ones(3), torch.arange(3))
    nan
    """
    if len(first) < 2:
        return float("nan")
    one, other = (values.double() - values.double().mean() for values in (first, second))
    return ((one @ other) / (one.norm() * other.norm())).item()


def as_json(result: Any, digits: int = 6) -> Any:
    """A result as what JSON knows: named tuples are objects, tensors lists; NaN and infinity are null.

    Args:
        result: of this module or of `interpretation`, or a list of such.
        digits: significant digits of numbers.

    >>> as_json(AttentionEntropy(torch.tensor([[[0.1234567, torch.nan]]]), torch.tensor([3])))
    {'entropy': [[[0.123457, None]]], 'tokens': [3]}
    """
    if isinstance(result, Tensor):
        return as_json(result.tolist(), digits)
    if isinstance(result, tuple) and hasattr(result, "_asdict"):
        return {name: as_json(value, digits) for name, value in result._asdict().items()}
    if isinstance(result, list | tuple):
        return [as_json(value, digits) for value in result]
    if isinstance(result, float):
        return float(f"{result:.{digits}g}") if result - result == 0 else None
    return result
