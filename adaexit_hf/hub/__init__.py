"""Publish models with model cards, and convert the checkpoints of the papers' authors."""

from .card_facts import CardDataset, MeasuredSpeed
from .conversion import convert_checkpoint
from .model_card import write_model_card

__all__ = [
    "CardDataset",
    "MeasuredSpeed",
    "convert_checkpoint",
    "write_model_card",
]
