"""Serve a model: an engine that answers texts as they arrive, and an HTTP server around it (extra `serve`)."""

from .engine import (
    Answer,
    EarlyExitEngine,
    EngineClosedError,
    InferenceError,
    QueueFullError,
    Statistics,
    TextTooLongError,
)
from .shadow import ShadowTraffic

__all__ = [
    "Answer",
    "EarlyExitEngine",
    "EngineClosedError",
    "InferenceError",
    "QueueFullError",
    "ShadowTraffic",
    "Statistics",
    "TextTooLongError",
]
