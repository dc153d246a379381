"""Classify many texts: `predict` and `predict_stream`."""

from .prediction import Prediction, Predictions, predict, predict_stream
from .row_reader import DatasetError

__all__ = [
    "DatasetError",
    "Prediction",
    "Predictions",
    "predict",
    "predict_stream",
]
