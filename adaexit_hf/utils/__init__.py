"""Helpers for optional dependencies and for files."""
