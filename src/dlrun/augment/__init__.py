"""Augmentations of training batches: keyed draws, on whatever device the batch is, before pixels are normalised."""
