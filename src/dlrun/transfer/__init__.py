"""Transfer learning: each file fits a model that starts from given weights to its new task."""
