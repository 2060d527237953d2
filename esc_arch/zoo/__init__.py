"""Checkpoints: which are published, what a file holds, and reading and writing them."""
