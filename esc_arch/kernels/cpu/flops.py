"""What torch's FLOP counter counts for the operators of this folder."""

from esc_arch.kernels import counts

# They define the operators, which must be there first.
from esc_arch.kernels.cpu import (  # noqa: F401
    fused_attention,
    fused_conv_attn,
    fused_conv_ffn,
    fused_depthwise,
)

_COUNTED = {
    "conv_ffn": counts.conv_ffn,
    "conv_ffn_backward": counts.conv_ffn_backward,
    "conv_attn": counts.conv_attn,
    "symmetric_conv": counts.symmetric_conv,
    "symmetric_conv_weight": counts.symmetric_conv_weight,
    "depthwise_conv": counts.depthwise_conv,
    "depthwise_conv_weight": counts.depthwise_conv_weight,
    "window_attention": counts.window_attention,
    "window_attention_backward": counts.window_attention_backward,
}

counts.register(_COUNTED)
