"""Kernels for the CPU, in C++: `library` loads them, the other modules register them."""

from esc_arch.kernels.cpu import library

if library.is_built():
    from esc_arch.kernels.cpu import (  # noqa: F401
        flops,
        fused_attention,
        fused_conv_attn,
        fused_conv_ffn,
        fused_depthwise,
    )
