"""It cannot be imported."""

HALF = 1 / 0
