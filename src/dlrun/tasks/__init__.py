"""Tasks: what is learned. Each file says the loss, the outputs, the metrics and the readable rows of one kind."""
