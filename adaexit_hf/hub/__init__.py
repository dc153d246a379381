"""Publish and import checkpoints: model cards, uploads, conversion of the papers' authors' checkpoints."""

from .card_facts import CardDataset, MeasuredSpeed
from .conversion import convert_checkpoint
from .model_card import write_model_card

__all__ = [
    "CardDataset",
    "MeasuredSpeed",
    "convert_checkpoint",
    "write_model_card",
]
