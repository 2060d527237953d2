"""Parameters and FLOPs of a network, counted as the paper counts them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from esc_arch.archs import NETWORKS

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
    """Count what a network computes for one picture, by running it on tensors without values.

    The paper counts by fvcore: a multiplication with its addition is one, normalisation is 5 a
    value, pooling is 1 a value, and activations, softmax and elementwise arithmetic are not
    counted. The same is counted here, but nothing is computed, so any size will do at once.

    Args:
        network: Takes (B, 3, H, W). Attention must be computed as written: `attn_type: Naive`.
        height: H in pixels.
        width: W in pixels.

    Returns:
        Multiply-accumulates.
    """
    network = copy.deepcopy(network).eval().to("meta")
    # Two pictures, since for one alone the convolutions with a kernel for each picture are merged
    # into those with the shared one.
    pictures = torch.empty(2, 3, height, width, device="meta")
    counter = FlopCounterMode(display=False, custom_mapping=_ALSO_COUNTED)
    with torch.no_grad(), counter:
        network(pictures)
    # It counts a multiplication and an addition as two.
    return counter.get_total_flops() // (2 * len(pictures))


def paper_complexity(network_options: dict[str, Any]) -> tuple[int, int]:
    """Parameters and FLOPs as in the paper's tables, for an output of 1280x720 pixels.

    Args:
        network_options: `network_g` of one of this package's networks that upscale; its attention
            backend makes no difference.

    Returns:
        Learned values, and multiply-accumulates (naive attention, LR not padded).

    Raises:
        UserError: An option has a value that cannot be.
    """
    options = {**network_options, "attn_type": "Naive"}
    with torch.device("meta"):
        network = NETWORKS[options.pop("type")](**options)
    flops = count_flops(network, *paper_input_size(network.upscaling_factor))
    return count_parameters(network), flops


def _normalisation(input_shape: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * 5 * input_shape.numel()


def _pooling(input_shape: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * input_shape.numel()


def _mean(
    input_shape: torch.Size, dims: Sequence[int] | None = None, *args: Any, **kwargs: Any
) -> int:
    # Pooling to one pixel is a mean over rows and columns; other means average weights.
    is_pooling = len(input_shape) == 4 and {dim % 4 for dim in dims or ()} == {2, 3}
    return 2 * input_shape.numel() if is_pooling else 0


_aten = torch.ops.aten
_ALSO_COUNTED = {
    _aten.native_layer_norm: _normalisation,
    _aten.native_group_norm: _normalisation,
    _aten.mean: _mean,
    _aten._adaptive_avg_pool2d: _pooling,
    _aten.avg_pool2d: _pooling,
}
