"""A network with how it is run: arrays, tensors, pictures in, the same kind out, larger."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from esc_arch.errors import UserError
from esc_arch.inference import kinds
from esc_arch.inference.padded_rows import PaddedRows
from esc_arch.inference.picture_files import Picture, Source, source_in_memory
from esc_arch.inference.replays import Replays, require_cuda
from esc_arch.inference.tile_choice import TileChoice
from esc_arch.inference.tiling import (
    global_pools,
    super_resolve_strips,
    super_resolve_tiled,
)
from esc_arch.inference.transparency import clamp_to_neighbours, fill_hidden
from esc_arch.ops.windows import pad_to_multiple, reflect_indices

if TYPE_CHECKING:
    import PIL.Image

    Kind = TypeVar("Kind", np.ndarray, Tensor, PIL.Image.Image, Path, str)

# Rows of a result that are rounded at once.
_ROWS = 64

Watch = Callable[[Iterable], Iterable]


class Upscaler(TileChoice):
    """Upscales with one network; safe to be called from several threads, which take turns.

    Args:
        network: In evaluation mode; its device and dtype are where and in what it computes.
        options: The option block that built it.
        tile: Side of tiles in LR pixels; 0 for whole pictures; None for whole ones up to
            `LARGEST_WHOLE` pixels and tiles of `DEFAULT_TILE` beyond, or for smaller tiles where
            the memory that is free does not suffice.
        tile_pad: Margin of tiles in LR pixels; None for two windows, with which seams stay below
            1/255 on photographs (benchmarks/tile_differences.py).
        model_card: What the checkpoint says of itself.
        cuda_graphs: On a CUDA GPU, replay the work on whole pictures of sizes that come again,
            from the third one of a size on: small ones are done sooner, and each of the last
            `replays.KEPT` sizes holds the memory that it needs. The network's weights may change
            but must stay where they are.

    Raises:
        UserError: An option has a value that cannot be.

    Attributes:
        network: The module itself.
        options: Its option block.
        model_card: What the checkpoint says of itself: training data, date, ...
        memory_share: What part of the device's memory is for this one, where there are several.
    """

    def __init__(
        self,
        network: nn.Module,
        options: Mapping[str, Any],
        tile: int | None = None,
        tile_pad: int | None = None,
        model_card: Mapping[str, str] | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self.network = network
        self.options = dict(options)
        self.tile = kinds.pixels("tile", tile)
        self.tile_pad = kinds.pixels("tile_pad", tile_pad)
        self.model_card = dict(model_card or {})
        self.memory_share = 1.0
        if cuda_graphs:
            require_cuda("cuda_graphs", next(network.parameters()).device)
        self._replays = Replays(network) if cuda_graphs else None
        self._turn = threading.RLock()

    def __repr__(self) -> str:
        weight = next(self.network.parameters())
        kind = str(weight.dtype).removeprefix("torch.")
        return f"Upscaler({type(self.network).__name__} x{self.scale}, {kind}, {weight.device})"

    @property
    def scale(self) -> int:
        """How many times larger results are."""
        found = self.options.get("upscaling_factor", self.options.get("scale"))
        return self.network.upscaling_factor if found is None else found

    @property
    def window_size(self) -> int:
        """Multiple that whole pictures are padded to."""
        # The network's own is in LR pixels, also where it folds the pixels into channels.
        return getattr(self.network, "window_size", self.options.get("window_size", 1))

    def upscale(self, image: "Kind", **options: Any) -> "Kind":
        """Upscale, and give back what was given.

        Args:
            image: One of

                - an array (H, W), (H, W, C) or (B, H, W, C), C from 1 to 4 (grey, grey with alpha,
                  RGB, RGBA), uint8, uint16, or floats in [0, 1];
                - a tensor (C, H, W) or (B, C, H, W), C 1 or 3, of floats in [0, 1], any device;
                - a Pillow image;
                - a path: the result is written beside it as `NAME_x2.png`, or to `output`.
            **options: `watch` wraps the list of tiles, such as in a progress bar; of paths also
                `output` (a path that ends in .png, .jpg, .webp or .tif) and `overwrite`.

        Returns:
            The same kind, dtype and number of dimensions, `scale` times as large; of a path, that
            of the result.

        Raises:
            UserError: It is none of these, or the result is not finite.
        """
        if isinstance(image, Tensor):
            return kinds.upscale_tensor(self, image, **options)
        if isinstance(image, np.ndarray):
            return kinds.upscale_array(self, image, **options)
        if isinstance(image, (str, os.PathLike)):
            return kinds.upscale_path(self, image, **options)
        return kinds.upscale_pillow(self, image, **options)

    def upscale_tensor(self, lq: Tensor, watch: Watch = iter) -> Tensor:
        """As in the paper's evaluation: reflect-padded at the bottom and right.

        Args:
            lq: (C, H, W) or (B, C, H, W) with C 1 or 3, RGB in [0, 1].
            watch: Wraps the list of tiles.

        Returns:
            s times as large, from 0 to 1, on `lq`'s device in its dtype.
        """
        floats = lq.is_floating_point() and lq.element_size() > 1
        if not floats or lq.dim() not in (3, 4) or lq.shape[-3] not in (1, 3):
            raise UserError(
                f"a tensor of shape {list(lq.shape)} in {lq.dtype}; floats (B, C, H, W) or "
                "(C, H, W) are needed, with 1 or 3 channels"
            )
        if min(lq.shape) == 0:
            raise UserError(f"a tensor of shape {list(lq.shape)} has no pixels")
        grey = lq.shape[-3] == 1
        batch = lq if lq.dim() == 4 else lq[None]
        with self._running():
            sr = self._whole_or_tiled(batch.expand(-1, 3, -1, -1), watch)
            sr = sr.mean(1, keepdim=True) if grey else sr
        # A copy out of inference mode is an ordinary tensor, which may be changed in place.
        return (sr if lq.dim() == 4 else sr[0]).to(lq.dtype, copy=True)

    def upscale_picture(self, picture: Picture, watch: Watch = iter) -> Picture:
        """Upscale a picture: its kind, depth, colours and metadata stay.

        Grey goes through the network as RGB of three equal channels, of which the mean is kept;
        alpha likewise, within the values around it.

        Args:
            picture: Of any kind.
            watch: Wraps the list of tiles.
        """
        height, width, _ = picture.pixels.shape
        if self.tiles_needed(height, width):
            rows = self.upscale_rows(source_in_memory(picture), watch)
            return replace(picture, pixels=np.concatenate([*rows]))
        return self.upscale_pictures([picture])[0]

    def upscale_pictures(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Upscale pictures of one size and kind together, whole; as `upscale_picture` each."""
        pixels = np.stack([picture.pixels for picture in pictures])
        colours = 3 if pixels.shape[3] >= 3 else 1
        if pixels.shape[3] > colours:
            pixels = np.stack([fill_hidden(one) for one in pixels])
        results = self._upscale_channels(pixels[..., :colours])
        if pixels.shape[3] > colours:
            alphas = [self._upscale_alpha(alpha) for alpha in pixels[..., colours:]]
            results = np.concatenate([results, np.stack(alphas)], axis=3)
        return [
            replace(picture, pixels=result)
            for picture, result in zip(pictures, results, strict=True)
        ]

    def upscale_rows(
        self, source: Source, watch: Watch = iter, tile: int | None = None
    ) -> Iterator[np.ndarray]:
        """Upscale a picture that is never in memory as a whole: a row of tiles at a time.

        Args:
            source: The picture.
            watch: Wraps the list of tiles.
            tile: Side of tiles in place of the usual one.

        Yields:
            Parts (h, s * W, C) of the result from top to bottom.
        """
        scale, multiple = self.scale, self.window_size
        tiling = self._tiling(tile or self._tile_for(source.height, source.width))
        largest = np.iinfo(source.dtype).max
        has_alpha = source.channels in (2, 4)
        padded = tuple(-(-side // multiple) * multiple for side in (source.height, source.width))
        columns = reflect_indices(source.width, 0, padded[1], torch.device("cpu")).numpy()

        def open_rows() -> Callable[[int, int], Tensor]:
            rows = PaddedRows(source, padded[0])

            def read(start: int, end: int) -> Tensor:
                part = rows.read(start, end)
                part = fill_hidden(part) if has_alpha else part
                # int32, since torch knows little of uint16.
                return torch.from_numpy(part[:, columns].astype(np.int32)).permute(2, 0, 1)[None]

            return read

        def run(tile: Tensor) -> Tensor:
            lq = tile.float() / largest
            colours = lq[:, :-1] if has_alpha else lq
            planes = [colours.expand(-1, 3, -1, -1)]
            if has_alpha:
                planes.append(lq[:, -1:].expand(-1, 3, -1, -1))
            sr = self._run(torch.cat(planes)).clamp_(0, 1)
            parts = [sr[:1] if colours.shape[1] == 3 else sr[:1].mean(1, keepdim=True)]
            if has_alpha:
                alpha = sr[1:].mean(1, keepdim=True)
                parts.append(clamp_to_neighbours(alpha, lq[:, -1:], scale))
            return torch.cat(parts, 1)

        strips = super_resolve_strips(
            run, open_rows, padded, tiling, global_pools(self.network), watch
        )
        left = source.height * scale
        with self._turn:
            while left:
                with torch.inference_mode():
                    strip = next(strips)[0, :, :left, : source.width * scale]
                left -= strip.shape[1]
                # In parts, since a strip is the largest thing in memory as it is.
                for part in strip.split(_ROWS, 1):
                    with torch.inference_mode():
                        values = part.clamp(0, 1).permute(1, 2, 0).mul(largest).round_()
                    yield values.numpy().astype(source.dtype)
                del strip, part, values

    @contextmanager
    def _running(self) -> Iterator[None]:
        # The network is shared, and with tiles it has hooks for a while.
        with self._turn, torch.inference_mode():
            yield

    def _run(self, lq: Tensor, whole: bool = False) -> Tensor:
        weight = next(self.network.parameters())
        # Tiles hook into the network, which no replay would notice.
        call = self._replays if whole and self._replays else self.network
        sr = call(lq.to(weight)).to(lq.device, torch.float32)
        if not bool(sr.isfinite().all()):
            raise UserError(_not_finite(weight.dtype))
        return sr

    def _whole_or_tiled(self, lq: Tensor, watch: Watch) -> Tensor:
        height, width = lq.shape[-2:]
        padded = pad_to_multiple(lq, self.window_size)
        if self.tiles_needed(height, width):
            pools = global_pools(self.network)
            tiling = self._tiling(self._tile_for(height, width))
            output = super_resolve_tiled(self._run, padded, *tiling, pools, watch)
        else:
            output = self._run(padded, whole=True)
        scale = output.shape[-1] // padded.shape[-1]
        return output[..., : height * scale, : width * scale].clamp_(0, 1)

    def _upscale_alpha(self, alpha: np.ndarray) -> np.ndarray:
        if (alpha == alpha[0, 0]).all():
            shape = (alpha.shape[0] * self.scale, alpha.shape[1] * self.scale, 1)
            return np.full(shape, alpha[0, 0, 0])
        return self._upscale_channels(alpha[None], is_alpha=True)[0]

    def _upscale_channels(self, pixels: np.ndarray, is_alpha: bool = False) -> np.ndarray:
        """Upscale (B, H, W, C), C 1 or 3, whole."""
        largest = np.iinfo(pixels.dtype).max
        lq = torch.from_numpy(pixels.astype(np.float32) / largest).permute(0, 3, 1, 2)
        # Convolutions sum in another order where channels lie last: results must not hang on that.
        lq = lq.contiguous()
        sr = self.upscale_tensor(lq)
        if is_alpha:
            sr = clamp_to_neighbours(sr, lq, self.scale)
        values = (sr.permute(0, 2, 3, 1) * largest).round().numpy()
        return values.astype(pixels.dtype)


def _not_finite(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float32:
        return "the result is not finite: the weights are too large for float32, or broken"
    others = "bfloat16 or float32" if dtype == torch.float16 else "float32"
    return f"the result is not finite in {name}; use {others}"
