"""What the networks compute, fused: one folder a kind of processor."""
