"""Padding to whole windows, and cutting feature maps into windows and back."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from esc_arch.ops.fusible import fusible


def reflect_pad(x: Tensor, pad_h: int, pad_w: int) -> Tensor:
    """Reflect-pad the bottom and the right of a batch of images, by any amount.

    Where the padding is smaller than the side this is `F.pad(mode="reflect")`, which refuses more.
    Beyond that the reflection is itself reflected, again and again, as `numpy.pad` does; a side of
    one pixel is repeated.

    Args:
        x: Images or features, (B, C, H, W).
        pad_h: Rows to add at the bottom, >= 0.
        pad_w: Columns to add at the right, >= 0.

    Returns:
        (B, C, H + pad_h, W + pad_w); `x` itself if there is nothing to add.
    """
    height, width = x.shape[-2:]
    if pad_h == 0 and pad_w == 0:
        return x
    if pad_h < height and pad_w < width:
        return F.pad(x, (0, pad_w, 0, pad_h), mode="reflect")
    rows = reflect_indices(height, 0, height + pad_h, x.device)
    columns = reflect_indices(width, 0, width + pad_w, x.device)
    return x.index_select(-2, rows).index_select(-1, columns)


def reflect_indices(size: int, before: int, end: int, device: torch.device) -> Tensor:
    """Where each pixel of a reflect-padded side comes from.

    Args:
        size: Pixels of the side.
        before: Pixels added before the first.
        end: Index after the last pixel wanted, `size` plus those added after it.
        device: Device of the result.

    Returns:
        (before + end,), indices from 0 to `size` - 1.
    """
    if size == 1:
        return torch.zeros(before + end, dtype=torch.long, device=device)
    period = 2 * (size - 1)
    position = torch.arange(-before, end, device=device) % period
    return torch.minimum(position, period - position)


@fusible
def reflect_margin(x: Tensor, margin: int) -> Tensor:
    """Reflect-pad all sides of a batch of images of any size, as `reflect_pad` does.

    Args:
        x: Images or features, (B, C, H, W).
        margin: Pixels to add at each side.

    Returns:
        (B, C, H + 2 * margin, W + 2 * margin).
    """
    if min(x.shape[-2:]) > margin:
        return F.pad(x, (margin,) * 4, mode="reflect")
    rows, columns = (
        reflect_indices(size, margin, size + margin, x.device) for size in x.shape[-2:]
    )
    return x.index_select(-2, rows).index_select(-1, columns)


@fusible
def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Reflect-pad the bottom and the right until both sides are multiples of `multiple`.

    Args:
        x: Images or features, (B, C, H, W).
        multiple: Window size in pixels, >= 1.

    Returns:
        (B, C, H', W') with H' and W' the next multiples.
    """
    height, width = x.shape[-2:]
    return reflect_pad(x, -height % multiple, -width % multiple)


def window_partition(x: Tensor, window_size: int, num_heads: int) -> Tensor:
    """Cut features into windows, heads and channels of a head.

    Args:
        x: Features (B, num_heads * D, H, W); H and W are multiples of `window_size`.
        window_size: Side w of a window in pixels.
        num_heads: Number of attention heads.

    Returns:
        (B * H/w * W/w, num_heads, w * w, D), windows and their pixels in row-major order.
    """
    batch, channels, height, width = x.shape
    w, rows, columns = window_size, height // window_size, width // window_size
    x = x.view(batch, num_heads, channels // num_heads, rows, w, columns, w)
    x = x.permute(0, 3, 5, 1, 4, 6, 2)
    return x.reshape(batch * rows * columns, num_heads, w * w, channels // num_heads)


def window_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Put windows back together: the inverse of `window_partition`.

    Args:
        windows: (B * H/w * W/w, num_heads, w * w, D).
        window_size: Side w of a window in pixels.
        height: H in pixels, a multiple of `window_size`.
        width: W in pixels, a multiple of `window_size`.

    Returns:
        Features (B, num_heads * D, H, W).
    """
    heads, head_dim = windows.shape[1], windows.shape[-1]
    w, rows, columns = window_size, height // window_size, width // window_size
    x = windows.view(-1, rows, columns, heads, w, w, head_dim)
    x = x.permute(0, 3, 6, 1, 4, 2, 5)
    return x.reshape(-1, heads * head_dim, height, width)


def in_windows(
    function: Callable[..., Tensor], *features: Tensor, window_size: int, num_heads: int
) -> Tensor:
    """Apply a function to the windows of feature maps.

    Args:
        function: Maps tensors (windows, num_heads, w * w, D) to one of the same shape.
        features: Its arguments, (B, num_heads * D, H, W); H and W are multiples of `window_size`.
        window_size: Side w of a window in pixels.
        num_heads: Number of attention heads.

    Returns:
        (B, num_heads * D, H, W).
    """
    out = function(*(window_partition(x, window_size, num_heads) for x in features))
    return window_reverse(out, window_size, *features[0].shape[-2:])


def to_maps(windows: Tensor, window_size: int) -> Tensor:
    """Make each window a feature map of its own.

    Args:
        windows: (windows, num_heads, w * w, D).
        window_size: Side w of a window in pixels.

    Returns:
        (windows, num_heads * D, w, w).
    """
    return windows.transpose(2, 3).reshape(windows.shape[0], -1, window_size, window_size)


def from_maps(maps: Tensor, window_size: int, num_heads: int) -> Tensor:
    """Undo `to_maps`.

    Args:
        maps: (windows, num_heads * D, w, w).
        window_size: Side w of a window in pixels.
        num_heads: Number of attention heads.

    Returns:
        (windows, num_heads, w * w, D).
    """
    return maps.reshape(maps.shape[0], num_heads, -1, window_size**2).transpose(2, 3)
