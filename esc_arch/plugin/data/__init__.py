"""Data sets that are registered with BasicSR, and the order and guarding of samples of any."""
