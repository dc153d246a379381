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

__all__ = [
    "Answer",
    "EarlyExitEngine",
    "EngineClosedError",
    "InferenceError",
    "QueueFullError",
    "Statistics",
    "TextTooLongError",
]
