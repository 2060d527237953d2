"""The relative position bias: from a table to every pair of pixels, and back."""

import torch
from torch import Tensor


def relative_position_bias(bias_table: Tensor, window_size: int) -> Tensor:
    """Spread a table of biases by relative position to every pair of pixels of a window.

    B[h, q, k] = bias_table[h, (kh - qh + w - 1) * (2w - 1) + (kw - qw + w - 1)], a two-level
    Toeplitz matrix: each query's row is a window of the table, which slides with the query.

    Args:
        bias_table: (heads, (2w - 1)^2).
        window_size: Side w of a window in pixels.

    Returns:
        (heads, w * w, w * w), queries by keys, contiguous.
    """
    heads, w = bias_table.shape[0], window_size
    grid = bias_table.view(heads, 2 * w - 1, 2 * w - 1)
    windows = [slice(w - 1 - query, 2 * w - 1 - query) for query in range(w)]
    columns = torch.stack([grid[:, :, window] for window in windows], dim=1)
    return torch.stack([columns[:, :, window] for window in windows], dim=1).view(heads, w * w, -1)


def relative_position_bias_backward(grad: Tensor, window_size: int) -> Tensor:
    """Sum a gradient over the pairs of pixels that share a relative position.

    Args:
        grad: Gradient of `relative_position_bias`'s result, (heads, w * w, w * w).
        window_size: Side w of a window in pixels.

    Returns:
        Gradient of the table, (heads, (2w - 1)^2).
    """
    heads, w = grad.shape[0], window_size
    by_row = grad.new_zeros(heads, 2 * w - 1, w, w)
    grad = grad.view(heads, w, w, w, w).flip(1, 2)
    for row in range(w):
        by_row[:, row : row + w] += grad[:, row].transpose(1, 2)
    table = grad.new_zeros(heads, 2 * w - 1, 2 * w - 1)
    for column in range(w):
        table[:, :, column : column + w] += by_row[:, :, column]
    return table.view(heads, -1)
