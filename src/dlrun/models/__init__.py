"""Architectures: each file builds one family from what is known of the data."""
