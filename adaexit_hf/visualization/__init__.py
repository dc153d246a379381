"""TODO visualization."""
