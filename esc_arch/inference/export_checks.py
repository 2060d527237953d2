"""Whether what was exported computes what PyTorch does."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn

from esc_arch.inference.export_forms import evaluated
from esc_arch.kernels import choose

Shape = tuple[int, int, int, int]

# Largest difference from PyTorch's float32 that a model may have: rounding, or in float16 a level
# of 8 bits and a bit.
LARGEST_ERRORS = {torch.float32: 1e-4, torch.float16: 1e-2}


def traced_shape(window_size: int) -> Shape:
    """What to trace a model of any size with: none of the shapes that are checked.

    Several images, rows and columns of windows, of which the last are not filled, since a tracer
    takes a side of one for granted.
    """
    return 2, 3, 3 * window_size + 5, 4 * window_size + 3


def check_shapes(window_size: int, shape: Shape | None = None) -> list[Shape]:
    """Shapes to check a model on: one pixel, windows not filled, several images.

    Args:
        window_size: Side of the attention windows in pixels.
        shape: What the model takes if it does not take any.
    """
    if shape is not None:
        return [shape]
    w = window_size
    sizes = [(1, 1), (31, 33), (w, 2 * w), (w + 1, w - 1 or 1), (3, w + 7), (2, 1), (5, 4)]
    return [(3, 3, 1, 1), *((1 + index % 2 * 2, 3, *size) for index, size in enumerate(sizes))]


def differences(
    run: Callable[[np.ndarray], np.ndarray], network: nn.Module, shapes: Iterable[Shape]
) -> Iterator[tuple[Shape, float]]:
    """Compare a model with PyTorch, in float32 and without kernels, as networks are evaluated.

    Args:
        run: Computes the model of pictures in float32.
        network: What was exported, in float32 on the CPU.
        shapes: Of the random pictures.

    Yields:
        Each shape with the largest difference, where 1 is the range from black to white.
    """
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        # What both take exactly, also where the model takes float16.
        x = torch.rand(shape, generator=generator).half().float()
        with torch.no_grad(), choose.switched_off():
            expected = evaluated(network, x).numpy()
        yield shape, largest_difference(run(x.numpy()), expected)


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of two results; infinite for other shapes or what is not finite."""
    if found.shape != expected.shape:
        return float("inf")
    difference = float(np.abs(found.astype(np.float32) - expected).max())
    return difference if np.isfinite(difference) else float("inf")
