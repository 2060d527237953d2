"""Kernels for GPUs, in Triton; imported only where Triton is and a GPU wants them."""
