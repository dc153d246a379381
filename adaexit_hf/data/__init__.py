"""Prepare training data: batches of similar length, columns of tasks, token depths, collators."""

from .collators import DataCollatorWithTokenDepths
from .reconstruction import anytime_masked_lm, estimate_depths_by_reconstruction

__all__ = [
    "DataCollatorWithTokenDepths",
    "anytime_masked_lm",
    "estimate_depths_by_reconstruction",
]
