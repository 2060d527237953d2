"""Parameters and FLOPs of a network, counted as the paper counts them."""

import warnings
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from esc_arch.archs import NETWORKS
from esc_arch.errors import UserError

# The paper's output size, in pixels, and so LR pictures of 640x360, 426x240 and 320x180. (For x3
# the paper measures latency at 427x240, but its FLOPs are those of 426x240.)
OUTPUT_WIDTH, OUTPUT_HEIGHT = 1280, 720


def paper_input_size(scale: int) -> tuple[int, int]:
    """Height and width in pixels of the LR picture that the paper counts FLOPs at."""
    return OUTPUT_HEIGHT // scale, OUTPUT_WIDTH // scale


def count_parameters(network: nn.Module) -> int:
    """Number of learned values of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_flops(network: nn.Module, height: int, width: int) -> int:
    """Count with fvcore what a network computes for one picture, by running it on the picture.

    As fvcore counts: a multiplication with its addition is one, normalisation is 5 a value, pooling
    is 1 a value, and activations, softmax and elementwise arithmetic are not counted. The kernels
    of fused attention are unknown to it, so the network must have `attn_type: Naive`.

    Args:
        network: Takes (1, 3, H, W).
        height: H in pixels.
        width: W in pixels.

    Returns:
        Multiply-accumulates.

    Raises:
        UserError: fvcore is not installed.
    """
    with warnings.catch_warnings():
        # fvcore traces through torch.jit, of which torch warns on import and at each constant.
        warnings.simplefilter("ignore")
        try:
            from fvcore.nn import FlopCountAnalysis
        except ImportError as error:
            raise UserError("FLOPs are counted by fvcore: pip install fvcore") from error
        device = next(network.parameters()).device
        counter = FlopCountAnalysis(network.eval(), torch.zeros(1, 3, height, width, device=device))
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(counter.total())


def extrapolate_flops(network: nn.Module, height: int, width: int) -> int:
    """The same figure as `count_flops`, without running the network on the whole picture.

    Naive attention on 640x360 pixels would take gigabytes. What each operation of these networks
    costs is proportional to the pixels of the picture, or to those after padding to whole windows,
    or it is constant; so fvcore's counts at three small sizes give the count at any size, exactly.

    Args:
        network: One of this package's networks with `attn_type: Naive`; takes (1, 3, H, W).
        height: H in pixels.
        width: W in pixels.

    Returns:
        Multiply-accumulates.

    Raises:
        UserError: fvcore is not installed.
    """
    w = network.window_size
    part = max(1, w // 4)
    in_part_of_a_window = count_flops(network, part, part)
    in_a_window = count_flops(network, w, w)
    in_two_windows = count_flops(network, w, 2 * w)
    constant = 2 * in_a_window - in_two_windows
    a_pixel = Fraction(in_a_window - in_part_of_a_window, w**2 - part**2) if w > 1 else Fraction(0)
    a_padded_pixel = Fraction(in_a_window - constant, w**2) - a_pixel
    padded_pixels = (height + -height % w) * (width + -width % w)
    return int(a_pixel * height * width + a_padded_pixel * padded_pixels + constant)


def paper_complexity(network_options: dict[str, Any]) -> tuple[int, int]:
    """Parameters and FLOPs as in the paper's tables, for an output of 1280x720 pixels.

    Args:
        network_options: `network_g` of one of this package's networks that upscale; its attention
            backend makes no difference.

    Returns:
        Learned values, and multiply-accumulates (fvcore, naive attention, LR not padded).

    Raises:
        UserError: An option has a value that cannot be, or fvcore is not installed.
    """
    options = {**network_options, "attn_type": "Naive"}
    network = NETWORKS[options.pop("type")](**options)
    flops = extrapolate_flops(network, *paper_input_size(network.upscaling_factor))
    return count_parameters(network), flops
