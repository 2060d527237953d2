"""Networks of every kind, small, that tests of exports build."""

import torch
from torch import nn

from esc_arch.archs.esc import ESC
from esc_arch.archs.escfp import ESCFP
from esc_arch.archs.escreal import ESCReal
from esc_arch.archs.escrealm import ESCRealM
from esc_arch.archs.upsamplers import UPSAMPLERS

SMALL = dict(dim=16, pdim=8, kernel_size=5, n_blocks=1, conv_blocks=1, window_size=8, num_heads=2)
NETWORKS = {
    "ESC": lambda: ESC(**SMALL, upscaling_factor=2, use_ln=True),
    "ESC with FlashBias": lambda: ESC(
        **SMALL, upscaling_factor=3, attn_type="FlashBias", flashbias_rank=8
    ),
    # As wide as those of published networks.
    "ESC with windows of 32": lambda: ESC(**{**SMALL, "window_size": 32}, upscaling_factor=2),
    "ESCFP": lambda: ESCFP(**SMALL, upscaling_factor=4),
    "ESCReal": lambda: ESCReal(**SMALL),
    "ESCReal with DySample": lambda: ESCReal(**SMALL, use_dysample=True),
    "ESCRealM unshuffled": lambda: ESCRealM(
        **SMALL, upscaling_factor=2, unshuffle_mod=True, upsampler="pixelshuffle"
    ),
}
REALM = {
    f"ESCRealM {name}": lambda name=name: ESCRealM(**SMALL, upscaling_factor=2, upsampler=name)
    for name in UPSAMPLERS
    if name != "conv"
}


def built(make) -> nn.Module:
    """A network in which nothing is zero, as some layers are at the start."""
    torch.manual_seed(0)
    network = make().eval().requires_grad_(False)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network
