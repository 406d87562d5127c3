"""The baseline that the skill score refers to."""

BASELINE = "persistence"
"""The architecture whose error is the reference of the skill score: 1 - error / error of this baseline."""
