"""Optimizers: each file builds one over the parameter groups of a run."""
