"""Kernels for GPUs, in Triton, which is imported when one of them runs first."""

import importlib.util

if importlib.util.find_spec("triton") is not None:
    from esc_arch.kernels.gpu import triton_backend  # noqa: F401
