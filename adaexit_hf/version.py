"""The version of the package; nothing else says it."""

__version__ = "0.1.0"
