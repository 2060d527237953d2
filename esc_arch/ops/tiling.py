"""Super-resolving an image tile by tile, for images that do not fit into memory whole."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Where one row or column of tiles lies, in pixels; ends exclude the last pixel.

    Attributes:
        start: First pixel of the tile.
        end: Its end.
        outer_start: First pixel of the tile with its margins.
        outer_end: Its end.
        fade_in: How far before and after `start` it fades in; 0 at the image's edge.
        fade_out: How far before and after `end` it fades out; 0 at the image's edge.
    """

    start: int
    end: int
    outer_start: int
    outer_end: int
    fade_in: int
    fade_out: int


def tile_spans(length: int, tile_size: int, tile_pad: int, multiple: int = 1) -> list[Span]:
    """Divide a side into tiles of about equal length, with margins where there is more image.

    Args:
        length: Pixels of the side, >= 1.
        tile_size: Largest length of a tile without its margins, >= 1; rounded up to `multiple`.
        tile_pad: Length of a margin, >= 0; rounded up to `multiple`.
        multiple: Tiles and margins start at multiples of this. With the network's window size,
            the windows of a tile are those of the whole image.

    Returns:
        The tiles in order; they cover the side without gap or overlap, margins not counted.
    """
    tile_size, tile_pad = (-(-value // multiple) * multiple for value in (tile_size, tile_pad))
    count = -(-length // tile_size)
    # Equal tiles rather than full ones and a sliver.
    step = -(-length // (count * multiple)) * multiple
    starts = list(range(0, length, step))
    ends = [*starts[1:], length]
    # Only the inner half of a margin is used: the image's end is near the outer one. Fades of one
    # tile must not meet.
    fades = [min(tile_pad, step, length - seam) // 2 for seam in starts[1:]]
    return [
        Span(start, end, max(start - tile_pad, 0), min(end + tile_pad, length), fade_in, fade_out)
        for start, end, fade_in, fade_out in zip(
            starts, ends, [0, *fades], [*fades, 0], strict=True
        )
    ]


def super_resolve_tiled(
    network: Callable[[Tensor], Tensor],
    lq: Tensor,
    tile_size: int,
    tile_pad: int,
    multiple: int = 1,
    watch: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """Run a network over overlapping tiles and fade one into the next.

    ConvAttn pools over what the network is given, here one tile, so that the result differs a
    little from the whole image's, and where tiles met would show an edge: so each fades into the
    next.

    Args:
        network: Maps (B, C, h, w) to (B, C', s*h, s*w) for any h and w.
        lq: LR images (B, C, H, W).
        tile_size: Side of a tile in LR pixels, margins not counted, >= 1.
        tile_pad: Width of the margin in LR pixels, >= 0; at the image's edge there is none.
        multiple: As for `tile_spans`.
        watch: Wraps the list of tiles, such as in a progress bar.

    Returns:
        (B, C', s*H, s*W).
    """
    height, width = lq.shape[-2:]
    spans = [tile_spans(side, tile_size, tile_pad, multiple) for side in (height, width)]
    result = None
    for row, column in watch([(row, column) for row in spans[0] for column in spans[1]]):
        tile = lq[..., row.outer_start : row.outer_end, column.outer_start : column.outer_end]
        output = network(tile)
        scale = output.shape[-1] // tile.shape[-1]
        if result is None:
            result = output.new_zeros(*output.shape[:-2], height * scale, width * scale)
        rows, columns = (tile_weights(span, scale).to(output) for span in (row, column))
        result[
            ...,
            row.outer_start * scale : row.outer_end * scale,
            column.outer_start * scale : column.outer_end * scale,
        ] += output * rows[:, None] * columns
    return result


def tile_weights(span: Span, scale: int) -> Tensor:
    """How much a tile counts at each pixel of its result along one side.

    Args:
        span: The tile, of `tile_spans`.
        scale: Scale s of the result.

    Returns:
        (s * (outer_end - outer_start),) in float32, from 0 to 1. Those of all tiles add up to 1
        at each pixel.
    """
    position = torch.arange(span.outer_start * scale, span.outer_end * scale) + 0.5
    return _rise(position - span.start * scale, span.fade_in * scale) * _rise(
        span.end * scale - position, span.fade_out * scale
    )


def _rise(distance: Tensor, half_width: int) -> Tensor:
    """From 0 at -half_width to 1 at half_width, or a step."""
    if half_width == 0:
        return (distance > 0).float()
    return (distance / (2 * half_width) + 0.5).clamp(0, 1)
