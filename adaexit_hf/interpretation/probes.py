"""Analyses that need no gradients: attention entropy, and confidence against the overlap of two sentences."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..evaluation.trace import ExitTrace
from ..models.exit_criteria import confidence
from ..models.modeling_early_exit import EarlyExitForSequenceClassification
from ..models.padded_batches import by_length, check_model, eval_mode, model_inputs, read_rows
from ..utils.imports import needed


class AttentionEntropy(NamedTuple):
    """How widely each attention head spreads its attention.

    Attributes:
        entropy: Entropy of each head's attention in nats, mean over the tokens of a text, `(texts, layers, heads)`;
            from 0, all attention on one token, to the logarithm of the number of tokens, equal attention on all.
        tokens: Number of tokens of each text, without padding, `(texts,)`.
    """

    entropy: Tensor
    tokens: Tensor


class BleuCorrelation(NamedTuple):
    """Correlation of confidence with the overlap of two sentences, by exit and by predicted class.

    Attributes:
        layers: Number of layers run at each exit, 1..L.
        correlation: Pearson correlation of BLEU-4 and confidence, `(exits, labels)`, in [-1, 1]; NaN where it is
            undefined, with fewer than two samples or if either is constant.
        samples: Number of samples for which the exit predicts the class, `(exits, labels)`.
        bleu: BLEU-4 of each sample, `(samples,)`, in [0, 100].
    """

    layers: tuple[int, ...]
    correlation: Tensor
    samples: Tensor
    bleu: Tensor


def attention_entropy(
    model: EarlyExitForSequenceClassification,
    dataset: Iterable[Any],
    tokenizer: Any = None,
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> AttentionEntropy:
    """Compute the entropy of every attention head at full depth, as the mean over the tokens of each text.

    Args:
        model: Model with eager attention. Its train or eval mode is restored afterwards.
        dataset: Texts or tokenized rows, as for `collect_trace`.
        tokenizer: The model's tokenizer. Not needed for tokenized rows.
        batch_size: Rows per forward pass, 1 or more. Default: 32.
        progress: Show a progress bar. Default: True.

    Returns:
        Entropy and number of tokens of each text, in the order of the data set, on the CPU.

    Raises:
        ValueError: If there are no rows, or if the attention implementation of the model returns no weights.
        TypeError: If the model has no exits.

    Examples:
        >>> from transformers import BertConfig
        >>> from adaexit_hf.models.modeling_deebert import DeeBertConfig, DeeBertForSequenceClassification
        >>> encoder = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=3, num_attention_heads=2)
        >>> model = DeeBertForSequenceClassification(DeeBertConfig(encoder_config=encoder))
        >>> model.set_attn_implementation("eager")
        >>> result = attention_entropy(model, [{"input_ids": [2, 5, 3]}, {"input_ids": [2, 3]}], progress=False)
        >>> result.entropy.shape, result.tokens.tolist()
        (torch.Size([2, 3, 2]), [3, 2])
    """
    check_model(model)
    rows = read_rows(dataset, tokenizer, model.config)
    by_place: dict[int, tuple[Tensor, Tensor]] = {}
    with eval_mode(model):
        for places, batch in by_length(
            rows, batch_size, model.config.encoder_config, "Attending" if progress else None
        ):
            with torch.inference_mode():
                attentions = model(**model_inputs(model, batch), early_exit=False, output_attentions=True).attentions
            if attentions is None:
                implementation = model.encoder.config._attn_implementation
                raise ValueError(
                    f"model: got attention implementation '{implementation}', which returns no attention weights; "
                    "call model.set_attn_implementation('eager') first"
                )
            real = batch["attention_mask"].float()  # (batch, tokens)
            by_token = torch.stack([torch.special.entr(layer.float()).sum(-1) for layer in attentions], dim=1).cpu()
            count = real.sum(dim=-1)
            entropy = (by_token * real[:, None, None]).sum(dim=-1) / count[:, None, None]  # (batch, layers, heads)
            by_place |= dict(zip(places, zip(entropy, count.long(), strict=True), strict=True))
    entropies, counts = zip(*(by_place[place] for place in range(len(rows))), strict=True)
    return AttentionEntropy(torch.stack(entropies), torch.stack(counts))


def confidence_bleu_correlation(trace: ExitTrace, first: Sequence[str], second: Sequence[str]) -> BleuCorrelation:
    """Correlate confidence with the BLEU-4 of two sentences, by exit and predicted class (BERxiT, section 5.5).

    The paper names no implementation of BLEU and does not say which sentence is the reference. Here it is sentence
    BLEU by sacrebleu, and the second sentence is the reference. Effective order is used, because BLEU-4 of fewer than
    four words is 0 otherwise, and the default smoothing, "exp": the k-th order of n-grams without a match counts as
    1 / 2^k matches. Confidence is the largest probability, whichever criterion decides about exits.

    Args:
        trace: Trace of a classification task that compares two sentences.
        first: First sentence of each sample of the trace, in its order.
        second: Second sentence of each sample of the trace, in its order.

    Returns:
        Correlation and number of samples by exit and predicted class, and the BLEU of each sample.

    Raises:
        ImportError: If sacrebleu is not installed.
        ValueError: If the number of sentences is not the number of samples, or if the trace is of a regression, which
            has no confidence, or of several labels at once, which has no single class.

    Examples:
        >>> import torch
        >>> from adaexit_hf import ExitTrace
        >>> logits = torch.tensor([[[3.0, 0.0]], [[2.0, 0.0]], [[1.0, 0.0]]])  # (samples, exits, labels)
        >>> trace = ExitTrace(logits, torch.zeros(3, 1), None, exit_layers=(12,), ready="gt")
        >>> first = ["the film is good", "the film was good", "I left"]
        >>> result = confidence_bleu_correlation(trace, first, ["the film is good"] * 3)
        >>> [round(bleu, 1) for bleu in result.bleu.tolist()], result.samples.tolist()
        ([100.0, 35.4, 0.0], [[3, 0]])
        >>> [round(value, 3) for value in result.correlation[0].tolist()]  # no sample is predicted as class 1
        [0.933, nan]
    """
    samples, _, labels = trace.logits.shape
    if labels == 1:
        raise ValueError("trace: got one label, and regression has no confidence; pass the trace of a classifier")
    if trace.multi_label:
        raise ValueError("trace: is of several labels at once; pass the trace of a classifier with one label per text")
    for name, sentences in (("first", first), ("second", second)):
        if len(sentences) != samples:
            raise ValueError(f"{name}: got {len(sentences)} sentences for {samples} samples; pass one per sample")
    score = needed("sacrebleu", "interpret").sentence_bleu
    pairs = zip(first, second, strict=True)
    bleu = torch.tensor([score(one, [other], use_effective_order=True).score for one, other in pairs])
    confidences, predicted = confidence(trace.logits), trace.logits.argmax(dim=-1)  # (samples, exits)
    finite = trace.logits.isfinite().all(dim=-1)  # logits that are not finite predict no class
    groups = torch.stack(
        [finite & (predicted == label) for label in range(labels)], dim=-1
    )  # (samples, exits, labels)
    correlation = torch.tensor(
        [
            [pearson(bleu[group], confidences[group, index]) for group in groups[:, index].T]
            for index in range(predicted.shape[1])
        ]
    )
    return BleuCorrelation(tuple(trace.exit_layers), correlation, groups.sum(dim=0), bleu)


def pearson(first: Tensor, second: Tensor) -> float:
    """Compute the Pearson correlation of two tensors (samples,); NaN for fewer than two samples or if one is constant.

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
    """Convert a result to values that JSON can represent.

    Named tuples become dicts, tensors become lists, and NaN and infinity become None.

    Args:
        result: A result of this package, or a list of results.
        digits: Significant digits of the numbers. Default: 6.

    Returns:
        Dicts, lists, strings, numbers, booleans and None only.

    Examples:
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
