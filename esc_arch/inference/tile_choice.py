"""Which tiles pictures go in, and how many of them at once, by the memory that is free."""

import threading
from bisect import bisect_left
from functools import cached_property

from torch import nn

from esc_arch.inference.fit import (
    MOST_BYTES_PER_PIXEL,
    USABLE,
    bytes_per_pixel,
    free_memory,
)
from esc_arch.inference.tiling import Tiling

# Beyond this the features of a picture take gigabytes, and it goes tile by tile.
LARGEST_WHOLE = 1024 * 1024
DEFAULT_TILE = 512
# What is tried where less memory is free.
TILES = (512, 256, 128, 64)


class TileChoice:
    """What `esc_arch.Upscaler` knows of tiles and memory; its attributes are described there."""

    network: nn.Module
    scale: int
    window_size: int
    tile: int | None
    tile_pad: int | None
    memory_share: float
    _turn: threading.RLock

    def tiles_needed(self, height: int, width: int) -> bool:
        """Whether a picture goes tile by tile."""
        return self._tile_for(height, width) > 0

    def together(self, height: int, width: int, wanted: int) -> int:
        """How many pictures of a size go through the network at once: `wanted`, if they fit."""
        too_many = bisect_left(
            range(2, wanted + 1),
            True,
            key=lambda count: not self._fits(height * count, width, 0),
        )
        return too_many + 1

    def why_smaller_tiles(self, height: int, width: int) -> str | None:
        """A line where a picture goes in smaller tiles than usual, for want of memory."""
        tile = self._tile_for(height, width)
        if self.tile is not None or tile == _usual_tile(height, width):
            return None
        free = (self._usable_memory or 0) / USABLE / 1e9
        return f"in tiles of {tile}, since {free:.1f} GB of memory are free; --tile N sets them"

    def smaller_tile(self, height: int, width: int, tile: int | None) -> int | None:
        """What to try after tiles that were too large for the memory; None at the end.

        Args:
            height: Of the picture.
            width: Of the picture.
            tile: What was tried; None for the usual way.
        """
        if self.tile is not None:
            return None  # The user chose.
        tried = tile or self._tile_for(height, width) or max(height, width)
        return next((smaller for smaller in TILES if smaller < tried), None)

    def _tile_for(self, height: int, width: int) -> int:
        """The side of tiles; 0 for the whole picture."""
        if self.tile is not None:
            return self.tile
        usual = _usual_tile(height, width)
        sides = [usual, *(tile for tile in TILES if not usual or tile < usual)]
        return next((side for side in sides if self._fits(height, width, side)), TILES[-1])

    def _fits(self, height: int, width: int, tile: int) -> bool:
        usable = self._usable_memory
        if usable is None:
            return True
        if tile:
            margins = 2 * self._tiling().tile_pad
            height, wide = min(height, tile + margins), min(width, tile + margins)
            # A row of tiles waits as floats.
            usable -= 12 * height * width * self.scale**2
        else:
            wide = width
        multiple = self.window_size
        pixels = -(-height // multiple) * -(-wide // multiple) * multiple**2
        if pixels * MOST_BYTES_PER_PIXEL <= usable:
            return True
        try:
            return pixels * self._bytes_per_pixel <= usable
        except (MemoryError, RuntimeError):  # Not even a small picture fits into what is left.
            return False

    @cached_property
    def _usable_memory(self) -> float | None:
        free = free_memory(next(self.network.parameters()).device)
        return None if free is None else free * USABLE * self.memory_share

    @cached_property
    def _bytes_per_pixel(self) -> float:
        with self._turn:
            return bytes_per_pixel(self.network)

    def _tiling(self, tile: int = 0) -> Tiling:
        tile_pad = 2 * self.window_size if self.tile_pad is None else self.tile_pad
        return Tiling(tile or DEFAULT_TILE, tile_pad, self.window_size)


def _usual_tile(height: int, width: int) -> int:
    return 0 if height * width <= LARGEST_WHOLE else DEFAULT_TILE
