"""Symmetry of the large kernel, and where pixels go."""

import torch
from torch import Tensor

from esc_arch.ops.fusible import fusible


@fusible
def d4_mean(kernel: Tensor) -> Tensor:
    """Mean of a kernel over the 8 flips and quarter turns of its last two axes.

    The geometric re-parameterisation of ESC: the network learns `kernel` and convolves with its
    projection onto the kernels that the dihedral group D4 leaves alone.

    Args:
        kernel: (..., K, K).

    Returns:
        Same shape.
    """
    turns = [torch.rot90(kernel, k, (-2, -1)) for k in range(4)]
    mean = torch.stack(turns).mean(0)
    return (mean + mean.transpose(-2, -1)) / 2


def embed_kernel(small: Tensor, kernel_size: int) -> Tensor:
    """Zero-pad a kernel around its centre.

    Args:
        small: (..., k, k), k odd and at most `kernel_size`.
        kernel_size: Odd side of the result.

    Returns:
        (..., kernel_size, kernel_size), which convolves as `small` does.
    """
    margin = (kernel_size - small.shape[-1]) // 2
    return torch.nn.functional.pad(small, (margin,) * 4)


def pixel_shuffle(x: Tensor, scale: int) -> Tensor:
    """Make each pixel's channels a square of pixels.

    As torch's function, but the result's pixels lie row by row in memory however those of `x` lie:
    much that takes pictures, discriminators among it, expects no less.

    Args:
        x: (B, C * scale * scale, H, W).
        scale: Side of the square.

    Returns:
        (B, C, scale * H, scale * W), contiguous.
    """
    return torch.nn.functional.pixel_shuffle(x.contiguous(), scale)
