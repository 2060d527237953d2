"""The networks, registered with BasicSR on import."""

from esc_arch.archs.conv_attn_arch import ConvAttn
from esc_arch.archs.esc_arch import ESC
from esc_arch.archs.escfp_arch import ESCFP
from esc_arch.archs.escreal_arch import ESCReal
from esc_arch.archs.flash_window_attn_arch import FlashWindowAttn

__all__ = ["ESC", "ESCFP", "ConvAttn", "ESCReal", "FlashWindowAttn"]
