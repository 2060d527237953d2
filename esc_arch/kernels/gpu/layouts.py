"""What the kernels of window attention read and write, laid out for them by torch."""

import math

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)
# log2 of the sum of exponentials of a query that is outside of the image: no weight is left.
OUTSIDE = 30000.0


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) with its channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def pixel_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) with its channels last as a matrix (pixels, C), without a copy."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def bias_tiles(bias_table: Tensor, window_size: int) -> Tensor:
    """Lay a table out so that the biases of a row of queries and a row of keys are a tile.

    Args:
        bias_table: (heads, (2w - 1)^2).
        window_size: Side w of a window in pixels.

    Returns:
        (heads, 2w - 1, w, w) in float32, times log2(e): row distance, query column, key column.
    """
    heads, w = bias_table.shape[0], window_size
    grid = bias_table.float().view(heads, 2 * w - 1, 2 * w - 1) * LOG2_E
    return grid.unfold(2, w, 1).flip(2).contiguous()


def fold_reflection(padded: Tensor, height: int, width: int) -> Tensor:
    """Add the gradients of pixels that continue a feature map to those of the pixels they repeat.

    Args:
        padded: (B, C, H', W') with H' >= H and W' >= W, continued by reflection.
        height: H.
        width: W.

    Returns:
        (B, C, H, W), of the same values in the same order of sums each time.
    """
    for dim, size in ((-2, height), (-1, width)):
        total = padded.narrow(dim, 0, size).clone()
        start, mirrored = size, True
        while start < padded.shape[dim]:
            # One more turn of the reflection: size - 1 pixels, the last one excluded.
            length = min(max(size - 1, 1), padded.shape[dim] - start)
            part = padded.narrow(dim, start, length)
            if size == 1:
                total += part
            elif mirrored:
                total.narrow(dim, size - 1 - length, length).add_(part.flip(dim))
            else:
                total.narrow(dim, 1, length).add_(part)
            start, mirrored = start + length, not mirrored
        padded = total
    return padded


def sums_of(log_sums: Tensor, out: Tensor, grad_out: Tensor) -> Tensor:
    """What is taken from a query's scores and from their gradients, negative.

    Args:
        log_sums: Of each query the largest score, and log2 of its sum of exponentials over that
            (windows, heads, 2, w * w).
        out: Results (B, heads * D, H, W).
        grad_out: Their gradients.

    Returns:
        (windows, heads, w * w, 16) in the dtype of `out`. In float32 the two of `log_sums` are in
        the first two columns: their sum would lose what is small beside a large score. Else their
        sum is in the first three, whose values add up to one of 24 bits, for the matrix units to
        take. So large is what is taken outside the image that no weight is left. In the eighth
        column, or in three from there on, is the product of a result with its gradient.
    """
    windows, heads, _, pixels = log_sums.shape
    w = math.isqrt(pixels)
    products = (out.float() * grad_out.float()).unflatten(1, (heads, -1)).sum(2)
    inside = _in_windows(torch.ones_like(products), w) > 0
    tops, rests = torch.where(inside.unsqueeze(2), log_sums, OUTSIDE).unbind(2)
    sums = out.new_zeros((windows, heads, pixels, 16))
    if out.dtype == torch.float32:
        for column, value in ((0, tops), (1, rests), (8, _in_windows(products, w))):
            sums[..., column] = -value
        return sums
    largest = torch.finfo(out.dtype).max
    for first, value in ((8, _in_windows(products, w)), (0, tops + rests)):
        rest = -value
        for column in range(first, first + 3):
            # What is beyond the largest number of float16 is left to the next columns.
            part = torch.where(rest.isinf(), rest, rest.clamp(-largest, largest))
            sums[..., column] = part
            rest = rest - sums[..., column].float()
    return sums


def _in_windows(x: Tensor, w: int) -> Tensor:
    """Cut (B, heads, H, W) into (windows, heads, w * w), completed by zeros."""
    heads, height, width = x.shape[1:]
    x = torch.nn.functional.pad(x, (0, -width % w, 0, -height % w))
    x = x.unflatten(3, (-1, w)).unflatten(2, (-1, w))
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, heads, w * w)


def origins_of(q: Tensor, out: Tensor, heads: int, w: int) -> tuple[Tensor, int]:
    """Where each window begins, those first that the image fills.

    Returns:
        (windows, 5) of int64: a window's offsets in `q`, in `out` and in what `sums_of` returns,
        its first row and its first column; and how many windows the image fills.
    """
    batch, _, height, width = q.shape
    down, across = -(-height // w), -(-width // w)
    # Made where it is read: a copy from the CPU waits, which CUDA graphs cannot record.
    windows = torch.arange(batch * down * across, device=q.device)
    rows, columns = windows // across % down * w, windows % across * w
    images = windows // (down * across)
    offsets = [images * x.stride(0) + rows * x.stride(2) + columns * x.stride(3) for x in (q, out)]
    offsets.append(windows * (heads * w**2 * 16))
    completed = (rows + w > height) | (columns + w > width)
    order = completed.to(torch.uint8).argsort(stable=True)
    origins = torch.stack([*offsets, rows, columns], dim=1)[order]
    return origins, batch * (height // w) * (width // w)


def table_gradient(grad_bias: Tensor, w: int) -> Tensor:
    """Sum a gradient over the pairs of pixels that share a relative position.

    As `ops.bias.relative_position_bias_backward`, in a few launches in place of 2 w.

    Args:
        grad_bias: (heads, w * w, w * w), queries by keys.
        w: Side of a window in pixels.

    Returns:
        (heads, (2w - 1)^2).
    """
    heads = grad_bias.shape[0]
    by_query = grad_bias.view(heads, w, w, w * w).flip(1, 2).transpose(1, 2)
    by_row = _sum_of_shifted(by_query, w).view(heads, w, 2 * w - 1, w)
    return _sum_of_shifted(by_row.transpose(1, 2), 1).view(heads, -1)


def _sum_of_shifted(rows: Tensor, step: int) -> Tensor:
    """The sum of rows (..., w, w * step), each `step` places further to the right."""
    w, length = rows.shape[-2:]
    padded = torch.nn.functional.pad(rows, (0, length)).flatten(-2)
    return padded[..., : w * (2 * length - step)].unflatten(-1, (w, -1)).sum(-2)
