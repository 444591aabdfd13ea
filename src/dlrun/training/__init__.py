"""The engine: one loop, its state, its checkpoints."""
