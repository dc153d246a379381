"""Measure the speed of early exit against Transformers' own classifier; every prediction is checked."""

from .runs import AnswersDifferError, Workload
from .timing import measure, trained_workload

__all__ = [
    "AnswersDifferError",
    "Workload",
    "measure",
    "trained_workload",
]
