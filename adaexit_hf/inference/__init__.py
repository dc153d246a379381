"""Classify many texts: `predict` and `predict_stream`."""

from ..models.padded_batches import DatasetError
from .prediction import Prediction, Predictions, predict, predict_stream

__all__ = [
    "DatasetError",
    "Prediction",
    "Predictions",
    "predict",
    "predict_stream",
]
