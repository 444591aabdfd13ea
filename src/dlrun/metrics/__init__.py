"""Metrics: update with Outputs, add the float64 sums up over ranks, compute numbers by name."""
