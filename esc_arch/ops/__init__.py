"""What the networks compute, as formulas in torch: functions without parameters.

Importing this makes the kernels known that may stand for some of them, see `esc_arch.kernels`.
"""

from esc_arch.ops.attention import (
    feature_attention,
    flashbias_attention,
    flashbias_self_attention,
    self_attention,
    window_attention,
)
from esc_arch.ops.convolutions import (
    conv_attn,
    conv_ffn,
    factored_dynamic_conv,
    long_range_dynamic_conv,
    separable_dynamic_conv,
)
from esc_arch.ops.fusible import replaceable
from esc_arch.ops.geometry import d4_mean, embed_kernel, pixel_shuffle

__all__ = [
    "conv_attn",
    "conv_ffn",
    "d4_mean",
    "embed_kernel",
    "factored_dynamic_conv",
    "feature_attention",
    "flashbias_attention",
    "flashbias_self_attention",
    "long_range_dynamic_conv",
    "pixel_shuffle",
    "replaceable",
    "self_attention",
    "separable_dynamic_conv",
    "window_attention",
]

import esc_arch.kernels  # noqa: E402, F401
