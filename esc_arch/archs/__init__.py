"""The networks, one a file, on PyTorch alone."""

from torch import nn

from esc_arch.archs.conv_attn import ConvAttn
from esc_arch.archs.esc import ESC
from esc_arch.archs.escfp import ESCFP
from esc_arch.archs.escreal import ESCReal
from esc_arch.archs.escrealm import ESCRealM
from esc_arch.archs.flash_window_attn import FlashWindowAttn

__all__ = ["ESC", "ESCFP", "NETWORKS", "ConvAttn", "ESCReal", "ESCRealM", "FlashWindowAttn"]

# What an option file's `type` names.
NETWORKS: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (ESC, ESCFP, ESCReal, ESCRealM, ConvAttn, FlashWindowAttn)
}
