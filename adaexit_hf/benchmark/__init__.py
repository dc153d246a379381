"""Measure speed: early exit against Transformers' own classifier, timed in turn, all answers checked."""

from .runs import AnswersDifferError, Workload
from .timing import measure, trained_workload

__all__ = [
    "AnswersDifferError",
    "Workload",
    "measure",
    "trained_workload",
]
