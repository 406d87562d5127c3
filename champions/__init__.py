"""What becomes of a model after it was evaluated: compared, promoted, served, watched, rolled back."""
