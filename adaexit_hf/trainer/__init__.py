"""Train a model in the stages of its paper: `EarlyExitTrainer`."""

from .trainer import EarlyExitTrainer
from .training_args import EarlyExitTrainingArguments

__all__ = [
    "EarlyExitTrainer",
    "EarlyExitTrainingArguments",
]
