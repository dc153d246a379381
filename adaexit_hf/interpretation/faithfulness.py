"""Check attributions: completeness (their sum), comprehensiveness and sufficiency (the effect of masking words).

Completeness: Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, sections 3 and 5.
Comprehensiveness, sufficiency: DeYoung et al., "ERASER: A Benchmark to Evaluate Rationalized NLP Models", ACL 2020.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .inputs import Texts

PERCENT = (1, 5, 10, 20, 50)  # of the words that are masked: the bins of ERASER
ROUNDING = 1e-4  # a smaller change cannot be distinguished from rounding
TOLERATED = 0.05  # a larger completeness error causes a warning


def completeness_error(delta: Tensor, change: Tensor) -> Tensor:
    """Return how far attributions are from the change that they explain, relative to the change or 1e-4.

    Args:
        delta: Sum of attributions minus change, (batch, ...).
        change: Value for the text minus value for the baseline, (batch, ...).

    >>> completeness_error(torch.tensor([0.02, 0.0]), torch.tensor([-2.0, 0.0])).tolist()
    [0.009999999776482582, 0.0]
    """
    return delta.abs() / change.abs().clamp_min(ROUNDING)


def faithfulness(measure: Callable[[Tensor], Tensor], batch: Texts, attributions: Tensor) -> tuple[Tensor, Tensor]:
    """Compute comprehensiveness and sufficiency, means over the top 1, 5, 10, 20 and 50 % of words, rounded up.

    Args:
        measure: Function of word embeddings (batch, tokens, hidden) that returns a value (batch,).
        batch: Texts; a masked word gets the embedding of the baseline.
        attributions: Attributions (batch, tokens). The words with the highest are masked for comprehensiveness; all
            others are masked for sufficiency.

    Returns:
        Comprehensiveness and sufficiency, each (batch,).
    """
    order = attributions.masked_fill(~batch.words, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank, count = order.argsort(dim=-1), batch.words.sum(dim=-1, keepdim=True)
    value = measure(batch.embeddings)
    drops = []
    for percent in PERCENT:
        top = batch.words & (rank < (percent * count + 99) // 100)
        without_top, top_only = (
            torch.where(unmasked.unsqueeze(-1), batch.embeddings, batch.baseline) for unmasked in (~top, top)
        )
        drops.append(torch.stack([value - measure(without_top), value - measure(top_only)]))
    comprehensiveness, sufficiency = torch.stack(drops).mean(dim=0)
    return comprehensiveness, sufficiency


def warn_of_incomplete(errors: Sequence[Tensor], misses: Sequence[Tensor]) -> None:
    """Warn of attributions whose sum is too far from the change that they explain.

    Args:
        errors: Completeness errors, any shapes.
        misses: The same differences relative to the sum of the absolute attributions, which stays large where positive
            and negative attributions cancel. Only where both are large is an attribution reported.
    """
    error, miss = torch.cat([part.flatten() for part in errors]), torch.cat([part.flatten() for part in misses])
    bad = (error > TOLERATED) & (miss > TOLERATED)
    if bad.any():
        warnings.warn(
            f"{int(bad.sum())} of {len(bad)} attributions differ from the change that they explain by more than 5 %, "
            f"at most by {error[bad].max().item():.0%}, see `error`; pass more steps, or another baseline_id",
            RuntimeWarning,
            stacklevel=3,
        )
