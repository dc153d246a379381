"""Temperature scaling: the probabilities of an exit made as sure as they are right. Guo et al., ICML 2017.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

import warnings

import torch
from torch import Tensor

BOUNDS = (0.01, 100.0)


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T in [0.01, 100] for which softmax(logits / T) gives the labels the largest likelihood.

    The negative log-likelihood is convex in 1 / T, so T is found by halving the interval where its slope changes sign,
    mean over samples of sum_c p_c z_c - z_y. At a bound, a warning: answers that are all right want T = 0, answers
    worse than chance want no confidence at all.

    Args:
        logits: (samples, labels); samples with NaN or infinite ones do not count, since they never exit.
        labels: classes, (samples,).

    Raises:
        ValueError: no finite logits at all.

    >>> logits, labels = torch.tensor([[2.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])  # softmax(2 / T) = 3 / 4
    >>> round(best_temperature(logits, labels), 6), round(2 / torch.tensor(3.0).log().item(), 6)
    (1.820478, 1.820478)
    """
    finite = logits.isfinite().all(dim=-1)
    if not finite.any():
        raise ValueError(f"logits: NaN or infinite for all {len(logits)} samples; check the model and its input")
    logits, labels = logits[finite].double(), labels[finite]
    truth = torch.take_along_dim(logits, labels.long()[:, None], dim=1).mean()

    def slope(inverse: float) -> float:
        return float(((logits * inverse).softmax(dim=-1) * logits).sum(dim=-1).mean() - truth)

    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    if slope(low) >= 0 or slope(high) <= 0:
        bound = BOUNDS[1] if slope(low) >= 0 else BOUNDS[0]
        why = "answers no better than chance" if slope(low) >= 0 else "answers that are all right"
        warnings.warn(f"temperature {bound} is at its bound: {why}, on {len(labels)} samples", stacklevel=3)
        return bound
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return (1 / low + 1 / high) / 2
