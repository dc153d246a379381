"""Can attributions be believed? Do they sum to what they explain, and does the value fall without the words they name?

Completeness: Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, sections 3 and 5.
Comprehensiveness, sufficiency: DeYoung et al., "ERASER: A Benchmark to Evaluate Rationalized NLP Models", ACL 2020.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .inputs import Texts

PERCENT = (1, 5, 10, 20, 50)  # of the words that are masked: the bins of ERASER
ROUNDING = 1e-4  # a smaller change is not told from rounding
TOLERATED = 0.05


def completeness_error(delta: Tensor, change: Tensor) -> Tensor:
    """By how much attributions miss the change that they explain, as a share of it; / 1e-4 where it is less.

    Args:
        delta: sum of attributions minus change, (batch, ...).
        change: value of the text minus that of the baseline, (batch, ...).

    >>> completeness_error(torch.tensor([0.02, 0.0]), torch.tensor([-2.0, 0.0])).tolist()
    [0.009999999776482582, 0.0]
    """
    return delta.abs() / change.abs().clamp_min(ROUNDING)


def faithfulness(measure: Callable[[Tensor], Tensor], batch: Texts, attributions: Tensor) -> tuple[Tensor, Tensor]:
    """Comprehensiveness and sufficiency, each (batch,), means over the top 1, 5, 10, 20 and 50 % of words, rounded up.

    Args:
        measure: value of word embeddings, (batch, tokens, hidden) -> (batch,).
        batch: texts; what is masked has the embedding of the baseline.
        attributions: (batch, tokens); the highest are masked, or left alone.
    """
    order = attributions.masked_fill(~batch.words, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank, count = order.argsort(dim=-1), batch.words.sum(dim=-1, keepdim=True)
    whole = measure(batch.embeddings)
    falls = []
    for percent in PERCENT:
        top = batch.words & (rank < (percent * count + 99) // 100)
        without, alone = (torch.where(kept.unsqueeze(-1), batch.embeddings, batch.baseline) for kept in (~top, top))
        falls.append(torch.stack([whole - measure(without), whole - measure(alone)]))
    comprehensiveness, sufficiency = torch.stack(falls).mean(dim=0)
    return comprehensiveness, sufficiency


def warn_of_incomplete(errors: Sequence[Tensor], misses: Sequence[Tensor]) -> None:
    """Warn where attributions should not be shown as they are.

    Args:
        errors: of completeness, any shapes.
        misses: the same differences as a share of the sum of the attributions without their signs, which does not
            become small where attributions balance.
    """
    error, missed = torch.cat([part.flatten() for part in errors]), torch.cat([part.flatten() for part in misses])
    bad = (error > TOLERATED) & (missed > TOLERATED)
    if bad.any():
        warnings.warn(
            f"{int(bad.sum())} of {len(bad)} attributions miss the change of their value by more than 5 %, at most by "
            f"{error[bad].max().item():.0%}, see `error`; pass more steps, or another baseline_id",
            RuntimeWarning,
            stacklevel=3,
        )
