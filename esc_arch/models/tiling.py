"""Super-resolving an image piece by piece, for images that do not fit into memory whole."""

from collections.abc import Callable

from torch import Tensor


def super_resolve_tiled(
    network: Callable[[Tensor], Tensor], lq: Tensor, tile_size: int, tile_pad: int
) -> Tensor:
    """Run a network over tiles with overlapping margins and put the middles together.

    ESC's global pooling then sees one tile at a time, so the result differs a little from that of
    the whole image; larger tiles are closer.

    Args:
        network: Maps (B, C, h, w) to (B, C', s*h, s*w) for any h and w.
        lq: LR images (B, C, H, W).
        tile_size: Side of a tile in LR pixels, margins not counted, >= 1.
        tile_pad: Width of the margin in LR pixels, >= 0; at the image's edge there is none.

    Returns:
        (B, C', s*H, s*W).
    """
    height, width = lq.shape[-2:]
    result = None
    for top in range(0, height, tile_size):
        for left in range(0, width, tile_size):
            bottom, right = min(top + tile_size, height), min(left + tile_size, width)
            first_row, first_column = max(top - tile_pad, 0), max(left - tile_pad, 0)
            tile = lq[..., first_row : bottom + tile_pad, first_column : right + tile_pad]
            output = network(tile)
            scale = output.shape[-1] // tile.shape[-1]
            if result is None:
                result = output.new_empty(*output.shape[:-2], height * scale, width * scale)
            row, column = (top - first_row) * scale, (left - first_column) * scale
            result[..., top * scale : bottom * scale, left * scale : right * scale] = output[
                ...,
                row : row + (bottom - top) * scale,
                column : column + (right - left) * scale,
            ]
    return result
