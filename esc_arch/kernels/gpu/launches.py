"""How the kernels of this folder are cut into programs."""

import contextlib
import functools
import importlib.metadata
import os
import re
from typing import Any, NamedTuple

import torch

from esc_arch.kernels.operator import are_seen_through

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ON_AMD = torch.version.hip is not None
# What the kernels that go by pixels take: channels C; values of an image, counted in 32 bits.
LARGEST_CHANNELS = 128
LARGEST_IMAGE = 2**31 - 1
# Programs along all sides of a grid but the first. There may be less than 2^31 in all: Triton
# multiplies the sides in 32 bits, and launches nothing where that overflows.
LARGEST_SIDE = 2**16 - 1
# The least rows and columns of a tile of scores.
SMALLEST_BLOCK = 16
# With this in the environment Triton interprets kernels, on the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Which graphs hold what is inside of operators, see `operator`. Graphs hold no interpreted kernels;
# of gradients, those of one size, as they take ways that depend on it.
SEEN_THROUGH = "never" if INTERPRETED else "always"
GRADIENTS_SEEN_THROUGH = "never" if INTERPRETED else "fixed"
# Sides of tiles that the interpreter takes: it needs as long for a large one as for a small one.
INTERPRETED_BLOCK = 256


class Launch(NamedTuple):
    """How a kernel of attention is cut into programs.

    Attributes:
        block_m: Rows of a tile of scores: what a program works for.
        block_n: Columns: what it goes through, this many at a time.
        warps: Warps of a program.
        stages: Steps of the loop that are loaded ahead.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int


# Rows, columns and warps where warps have 32 lanes and matrix units none for float32: for heads of
# up to 16, 32 and 64 channels.
_ON_RDNA = {
    ("forward", "fp32"): ((64, 32, 8), (64, 16, 8), (32, 16, 8)),
    ("queries", "fp32"): ((32, 16, 4), (32, 16, 4), (16, 16, 8)),
    ("keys", "fp32"): ((64, 16, 8), (64, 16, 8), (16, 16, 8)),
    ("bias", "fp32"): ((32, 32, 8), (32, 32, 8), (16, 16, 8)),
    ("forward", "half"): ((128, 64, 8), (128, 64, 8), (64, 32, 8)),
    ("queries", "half"): ((128, 32, 4), (128, 32, 8), (64, 16, 4)),
    ("keys", "half"): ((128, 32, 8), (128, 32, 8), (64, 16, 4)),
    ("bias", "half"): ((64, 64, 4), (128, 32, 8), (128, 32, 8)),
}


@functools.cache
def on_rdna() -> bool:
    """Tell whether the GPU is one of AMD's whose warps have 32 lanes, as Radeon RX have."""
    if not ON_AMD:
        return False
    from triton.runtime import driver

    return driver.active.get_current_target().warp_size == 32


def launch_for(
    kernel: str,
    dtype: torch.dtype,
    head_dim: int,
    window_size: int,
    amd: bool = ON_AMD,
    rdna: bool | None = None,
) -> Launch:
    """Choose how to cut a kernel; benchmarks/gpu_static.py shows what registers each choice takes.

    Args:
        kernel: `forward`, `queries`, `keys` or `bias`.
        dtype: Of queries, keys and values.
        head_dim: Channels D of a head.
        window_size: Side w of a window in pixels.
        amd: Whether it runs on a GPU of AMD, which has less shared memory.
        rdna: Whether on one whose warps have 32 lanes; default: as this machine's.
    """
    rdna = on_rdna() if rdna is None else rdna
    pixels = max(SMALLEST_BLOCK, power_of_two(window_size**2))
    padded = max(16, power_of_two(head_dim))
    wide = padded > 32
    stages = 1
    if INTERPRETED:
        block_m, block_n, warps = INTERPRETED_BLOCK, INTERPRETED_BLOCK, 4
    elif rdna:
        kind = "fp32" if dtype == torch.float32 else "half"
        block_m, block_n, warps = _ON_RDNA[kernel, kind][padded.bit_length() - 5]
        uneven = window_size % 32 or head_dim % 16
        if uneven and padded == 16 and kind == "half" and kernel in ("queries", "bias"):
            # Pixels that do not lie in rows of 32, and masks, take registers.
            block_m //= 2
    elif dtype == torch.float32:
        block_m, block_n, warps = 64, 32, 8 if wide and not amd else 4
        if kernel == "bias":
            # With AMD's tiles a few registers would go to memory on GPUs of NVIDIA.
            block_m, warps = (32, 4) if amd else (64, 8)
        elif kernel == "keys" and wide and not amd:
            # With Triton 3.9, 32 would move 237 registers where images do not fill their windows.
            block_n = 16
    elif amd and kernel != "bias":
        block_m, block_n, warps = 64 if wide else 128, 32, 4
        if kernel == "forward" and not wide:
            block_n = 64
    elif kernel == "bias" and (head_dim <= 16 or amd and wide):
        block_m, block_n, warps = 64, 64, 8 if wide else 4
    elif kernel == "bias":
        block_m, block_n, warps = 128, 32, 8
    else:
        # The more channels, the less registers are left for scores.
        block_m, block_n, warps = 128, 2048 // padded, 8
        stages = 2 if kernel == "forward" else 1
        if kernel == "queries" and head_dim <= 16:
            # Before Triton 3.5 some of the registers of 64 columns would go to memory.
            block_n, warps = 64 if triton_version() >= (3, 5) else 32, 4
        elif kernel == "queries" and head_dim <= 32:
            block_n = 64
        if kernel != "forward" and not columns_of_tile(window_size, min(block_m, pixels)):
            # Masks and places of pixels in no rectangle take registers.
            if head_dim <= 16:
                block_m, block_n, warps = 64, min(block_n, 64), 4
            else:
                block_n //= 2
    return Launch(min(block_m, pixels), min(block_n, pixels), warps, stages)


def columns_of_tile(window_size: int, block_n: int) -> int:
    """How many columns of a window are in a tile of some of its pixels, a power of two.

    Tiles of that many fill the window without gaps; 0 where none do.
    """
    # Small tiles of one row would take more registers, as would large ones of short rows.
    columns = min(window_size & -window_size, block_n, 32 if block_n <= 64 else 64)
    return columns if window_size % (block_n // columns) == 0 else 0


def columns_of_sums(amd: bool = ON_AMD) -> int:
    """The least columns of a product: 8 of NVIDIA's matrix units, where Triton knows it."""
    if amd or not INTERPRETED and triton_version() < (3, 5):
        return 16
    return 8


@functools.cache
def triton_version() -> tuple[int, ...]:
    """Triton's version, as (3, 4); (0,) without."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return (0,)
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


class Tile(NamedTuple):
    """How a kernel that goes by pixels is cut into programs.

    Attributes:
        height: Rows of pixels of a program.
        width: Columns.
        channels: Channels at a time.
        warps: Warps of a program.
    """

    height: int
    width: int
    channels: int
    warps: int

    @property
    def pixels(self) -> int:
        """Pixels of a program."""
        return self.height * self.width

    def grid(self, x: torch.Tensor) -> tuple[int, int]:
        """Programs for features (B, C, H, W): of an image, and images."""
        height, width = x.shape[-2:]
        return -(-height // self.height) * -(-width // self.width), x.shape[0]


def tile_for(
    dtype: torch.dtype, gradients: bool = False, amd: bool = ON_AMD, rdna: bool | None = None
) -> Tile:
    """Choose how to cut the kernels that go by pixels.

    Args:
        dtype: Of features and weights.
        gradients: Whether they are those of the backward.
        amd: Whether they run on a GPU of AMD.
        rdna: See `launch_for`.
    """
    if INTERPRETED:
        return Tile(32, 32, 128, 4)
    if dtype == torch.float32 and (on_rdna() if rdna is None else rdna):
        return Tile(4, 16, 16, 16)
    if gradients and dtype == torch.float32:
        # Products are not computed by matrix units, and take more registers.
        return Tile(4, 16, 16, 8)
    return Tile(4, 16, 16 if amd else 32, 4)


def tile_constants(
    tile: Tile,
    dtype: torch.dtype,
    channels: int,
    hidden: int,
    pdim: int,
    side: int,
    amd: bool = ON_AMD,
) -> dict[str, Any]:
    """Constants of the kernels that go by pixels, each of which takes some of them.

    Args:
        tile: How they are cut into programs.
        dtype: Of features and weights.
        channels: C of the features.
        hidden: Hidden channels of a ConvFFN.
        pdim: Channels that a ConvAttn convolves.
        side: Of a ConvFFN's depthwise kernel.
        amd: Whether they run on a GPU of AMD.
    """
    tf32 = dtype == torch.float32 and torch.backends.cudnn.allow_tf32 and not amd
    return {
        "TILE_H": tile.height,
        "TILE_W": tile.width,
        "C": channels,
        "C_PADDED": max(16, power_of_two(channels)),
        "HIDDEN": hidden,
        "PDIM": pdim,
        "PDIM_PADDED": max(16, power_of_two(pdim)),
        "SIZE": side,
        "PRECISION": "tf32" if tf32 else "ieee",
        "BLOCK_M": tile.pixels,
        "BLOCK_N": max(tile.channels, 32),
        "BLOCK_K": tile.channels,
        "num_warps": tile.warps,
        "num_stages": 1,
    }


def is_known(condition: bool | torch.SymBool) -> bool:
    """Tell whether something holds; in graphs for many sizes, whether for all of these."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def launch(
    kernel: Any, grid: tuple[int, ...], constants: dict[str, Any], first: torch.Tensor, *args: Any
) -> None:
    """Launch a kernel where its first argument is; Triton would where torch's current GPU is.

    Args:
        kernel: A function marked by `triton.jit`.
        grid: Programs.
        constants: Its constants, of which it may have only some, `num_warps` and `num_stages`.
        first: Its first argument.
        *args: The others.
    """
    known = *kernel.arg_names, "num_warps", "num_stages"
    constants = {name: value for name, value in constants.items() if name in known}
    if are_seen_through():
        torch.library.wrap_triton(kernel)[grid](first, *args, **constants)
        return
    on_gpu = torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext()
    with on_gpu:
        kernel[grid](first, *args, **constants)


def power_of_two(value: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (value - 1).bit_length()
