"""What the networks compute, fused: one folder a kind of processor, and `choose`, which decides."""

from esc_arch.kernels import choose, cpu, gpu

__all__ = ["choose", "cpu", "gpu"]
