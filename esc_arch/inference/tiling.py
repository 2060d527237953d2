"""Super-resolving an image tile by tile, for images that do not fit into memory whole."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


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


class _Tile(NamedTuple):
    row: Span
    column: Span

    def cut(self, image: Tensor, scale: int = 1) -> Tensor:
        """Look at the tile with its margins in (..., scale * H, scale * W)."""
        row, column = self.row, self.column
        return image[
            ...,
            row.outer_start * scale : row.outer_end * scale,
            column.outer_start * scale : column.outer_end * scale,
        ]


def super_resolve_tiled(
    network: Callable[[Tensor], Tensor],
    lq: Tensor,
    tile_size: int,
    tile_pad: int,
    multiple: int = 1,
    pools: Iterable[nn.Module] = (),
    watch: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """Run a network over overlapping tiles and fade one into the next.

    ConvAttn pools over what the network is given, here one tile. With `pools` all tiles are run
    twice: first to see what each pools, then with the mean over all tiles in its place, so that all
    convolve with the same kernels, nearly those of the whole image. Nearly, since the first time
    the layers before have kernels of their tile's own.

    Args:
        network: Maps (B, C, h, w) to (B, C', s*h, s*w) for any h and w.
        lq: LR images (B, C, H, W).
        tile_size: Side of a tile in LR pixels, margins not counted, >= 1.
        tile_pad: Width of the margin in LR pixels, >= 0; at the image's edge there is none.
        multiple: As for `tile_spans`.
        pools: Those modules of the network that pool over all of their input, see `global_pools`.
        watch: Wraps the list of tiles, such as in a progress bar.

    Returns:
        (B, C', s*H, s*W).
    """
    height, width = lq.shape[-2:]
    rows, columns = (tile_spans(side, tile_size, tile_pad, multiple) for side in (height, width))
    tiles = [_Tile(row, column) for row in rows for column in columns]
    pools = list(pools) if len(tiles) > 1 else []
    steps = [(tile, False) for tile in tiles if pools] + [(tile, True) for tile in tiles]
    statistics = {pool: 0.0 for pool in pools}
    area = height * width
    result = None
    for tile, is_last in watch(steps):
        if not is_last:
            with _sum_up(statistics, tile):
                network(tile.cut(lq))
            continue
        with _put_in_place({pool: total / area for pool, total in statistics.items()}):
            output = network(tile.cut(lq))
        scale = output.shape[-1] // tile.cut(lq).shape[-1]
        if result is None:
            result = output.new_zeros(*output.shape[:-2], height * scale, width * scale)
        down, across = (tile_weights(span, scale).to(output) for span in tile)
        tile.cut(result, scale).add_(output * down[:, None] * across)
    return result


def global_pools(network: nn.Module) -> list[nn.Module]:
    """The modules of a network whose one output is the mean over all of their input."""
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))
    ]


@contextmanager
def _hooked(pools: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    with ExitStack() as hooks:
        for pool in pools:
            hooks.callback(pool.register_forward_hook(hook).remove)
        yield


def _sum_up(statistics: dict[nn.Module, Any], tile: _Tile):
    """Add the sum over the tile without its margins of what each module pools."""
    rows, columns = (
        slice(span.start - span.outer_start, span.end - span.outer_start) for span in tile
    )

    def hook(pool: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        core = inputs[0][..., rows, columns]
        statistics[pool] = statistics[pool] + core.sum((-2, -1), keepdim=True)

    return _hooked(statistics, hook)


def _put_in_place(statistics: dict[nn.Module, Any]):
    return _hooked(statistics, lambda pool, _, pooled: statistics[pool])


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
