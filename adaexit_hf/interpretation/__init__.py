"""TODO interpretation."""
