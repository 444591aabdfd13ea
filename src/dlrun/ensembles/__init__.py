"""Ways to make one predictor out of several; one file each, found by its name."""
