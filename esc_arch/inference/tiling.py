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


# Opens an image from its top: what it returns gives rows start to end (without the last) in
# (B, C, end - start, W), and is asked for rows further and further down.
OpenRows = Callable[[], Callable[[int, int], Tensor]]


class Tiling(NamedTuple):
    """How an image is cut.

    Attributes:
        tile_size: Side of a tile in LR pixels, margins not counted, >= 1.
        tile_pad: Width of the margin in LR pixels, >= 0; at the image's edge there is none.
        multiple: As for `tile_spans`.
    """

    tile_size: int
    tile_pad: int
    multiple: int = 1


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

    Args:
        network: Maps (B, C, h, w) to (B, C', s*h, s*w) for any h and w.
        lq: LR images (B, C, H, W).
        tile_size: As in `Tiling`.
        tile_pad: As in `Tiling`.
        multiple: As in `Tiling`.
        pools: As for `super_resolve_strips`.
        watch: As for `super_resolve_strips`.

    Returns:
        (B, C', s*H, s*W).
    """
    tiling = Tiling(tile_size, tile_pad, multiple)

    def open_rows() -> Callable[[int, int], Tensor]:
        return lambda start, end: lq[..., start:end, :]

    size = (lq.shape[-2], lq.shape[-1])
    return torch.cat([*super_resolve_strips(network, open_rows, size, tiling, pools, watch)], -2)


def super_resolve_strips(
    network: Callable[[Tensor], Tensor],
    open_rows: OpenRows,
    size: tuple[int, int],
    tiling: Tiling,
    pools: Iterable[nn.Module] = (),
    watch: Callable[[Iterable], Iterable] = iter,
) -> Iterator[Tensor]:
    """As `super_resolve_tiled`, of an image that is never in memory as a whole.

    ConvAttn pools over what the network is given, here one tile. With `pools` all tiles are run
    twice: first to see what each pools, then with the mean over all tiles in its place, so that all
    convolve with the same kernels, nearly those of the whole image. Nearly, since the first time
    the layers before have kernels of their tile's own.

    Args:
        network: Maps (B, C, h, w) to (B, C', s*h, s*w) for any h and w.
        open_rows: The image; opened once or, with `pools`, twice.
        size: Its height and width.
        tiling: How it is cut.
        pools: Those modules of the network that pool over all of their input, see `global_pools`.
        watch: Wraps the list of tiles, such as in a progress bar.

    Yields:
        The result (B, C', h, s*W) in strips from top to bottom.
    """
    rows, columns = (tile_spans(side, *tiling) for side in size)
    pools = list(pools) if len(rows) * len(columns) > 1 else []
    passes = [False, True] if pools else [True]
    steps = iter(watch([(row, column) for _ in passes for row in rows for column in columns]))
    statistics = {pool: 0.0 for pool in pools}
    for is_last in passes:
        read = open_rows()
        carry = None
        if is_last:
            means = {pool: total / (size[0] * size[1]) for pool, total in statistics.items()}
        for number, row in enumerate(rows):
            strip = read(row.outer_start, row.outer_end)
            result = None
            for column in columns:
                next(steps)
                tile = strip[..., column.outer_start : column.outer_end]
                if not is_last:
                    with _sum_up(statistics, row, column):
                        network(tile)
                    continue
                with _put_in_place(means):
                    output = network(tile)
                scale = output.shape[-1] // tile.shape[-1]
                if result is None:
                    height, width = strip.shape[-2] * scale, size[1] * scale
                    result = output.new_zeros(*output.shape[:-2], height, width)
                    if carry is not None:
                        result[..., : carry.shape[-2], :] = carry
                down, across = (tile_weights(span, scale).to(output) for span in (row, column))
                place = slice(column.outer_start * scale, column.outer_end * scale)
                result[..., place].add_(output * down[:, None] * across)
            if is_last:
                # Where no later tile reaches, it is done.
                end = rows[number + 1].outer_start if number + 1 < len(rows) else row.outer_end
                done = (end - row.outer_start) * scale
                carry = result[..., done:, :].clone()
                if done:
                    yield result[..., :done, :]
    next(steps, None)  # Lets the watch see its end.


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


def _sum_up(statistics: dict[nn.Module, Any], row: Span, column: Span):
    """Add the sum over the tile without its margins of what each module pools."""
    rows, columns = (
        slice(span.start - span.outer_start, span.end - span.outer_start) for span in (row, column)
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
