"""Evaluation as the paper's results were made: the whole image, padded to whole windows."""

from typing import Any

from torch import Tensor

from esc_arch.errors import UserError
from esc_arch.inference.tiling import global_pools, super_resolve_tiled
from esc_arch.ops.windows import pad_to_multiple


class PaddedEvaluation:
    """Mixin, in front of BasicSR's SRModel and what stands on it.

    For evaluation the whole LR image is reflect-padded at the bottom and right to a multiple of
    the network's `window_size`, and the output is cropped. It reads `val: tile: {tile_size,
    tile_pad}` (or `tile` at the top level): tile by tile, in LR pixels, for images too large for
    the memory; the result then differs a little.

    Raises:
        UserError: `tile` has a value that cannot be used.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        self.tile = _read_tile(opt)

    def test(self) -> None:
        """Super-resolve `self.lq` (B, C, H, W) into `self.output`."""
        lq = self.lq
        if self.tile is None:
            self.output = self._super_resolve(lq)
        else:
            self.output = super_resolve_tiled(
                self._super_resolve,
                lq,
                *self.tile,
                multiple=self.window_size,
                pools=global_pools(getattr(self, "net_g_ema", self.net_g)),
            )
        self.lq = lq

    def _super_resolve(self, lq: Tensor) -> Tensor:
        self.lq = pad_to_multiple(lq, self.window_size)
        super().test()
        scale = self.output.shape[-1] // self.lq.shape[-1]
        return self.output[..., : lq.shape[-2] * scale, : lq.shape[-1] * scale]

    @property
    def window_size(self) -> int:
        """Multiple that evaluation pads to; 1 for a network without windows."""
        # The network knows better than its options: with `unshuffle_mod` its windows are larger.
        own = getattr(self.get_bare_model(self.net_g), "window_size", None)
        return own if type(own) is int else self.opt["network_g"].get("window_size") or 1


def _read_tile(opt: dict[str, Any]) -> tuple[int, int] | None:
    val_opt = opt.get("val") or {}
    tile_opt = val_opt.get("tile", opt.get("tile"))
    if not tile_opt:
        return None
    # Two windows of the published networks, with which seams stay below 1/255.
    tile = (tile_opt.get("tile_size"), tile_opt.get("tile_pad", 64))
    if not all(isinstance(value, int) for value in tile) or tile[0] < 1 or tile[1] < 0:
        raise UserError(
            f"tile: tile_size: {tile[0]!r}, tile_pad: {tile[1]!r}: must be whole numbers of LR "
            "pixels, tile_size at least 1 and tile_pad at least 0"
        )
    return tile
