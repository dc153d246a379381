"""Train a model in the stages of its method's paper: `EarlyExitTrainer`."""

from .recipe import Recipe, recommended_recipe
from .trainer import EarlyExitTrainer
from .training_args import EarlyExitTrainingArguments

__all__ = [
    "EarlyExitTrainer",
    "EarlyExitTrainingArguments",
    "Recipe",
    "recommended_recipe",
]
