"""Data sets: each component finds rows, makes the splits that are missing, and says what a model must know of them."""
