"""The figure of crops that papers show: one place of a picture, as several methods give it."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from basicsr.metrics import calculate_psnr, calculate_ssim
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from esc_arch.errors import UserError
from esc_arch.inference.picture_files import read_picture
from esc_arch.prepare.imresize import imresize


@dataclass(frozen=True)
class Panel:
    """A picture to compare.

    Attributes:
        name: What to write below it.
        pixels: (H, W, 3), RGB, uint8.
        psnr: On Y, in dB; None without a reference, or for it.
        ssim: On Y; likewise.
    """

    name: str
    pixels: np.ndarray
    psnr: float | None = None
    ssim: float | None = None

    @property
    def caption(self) -> str:
        """The name, and PSNR / SSIM below it where there are any."""
        if self.psnr is None or self.ssim is None:
            return self.name
        return f"{self.name}\n{self.psnr:.2f} dB / {self.ssim:.4f}"


def read_rgb(path: Path) -> np.ndarray:
    """Read a picture as (H, W, 3), RGB, uint8; what is transparent lies on white.

    Raises:
        UserError: It cannot be read.
    """
    pixels = read_picture(path).pixels
    values = pixels.astype(np.float64) / np.iinfo(pixels.dtype).max
    if values.shape[2] in (2, 4):
        alpha = values[..., -1:]
        values = values[..., :-1] * alpha + 1 - alpha
    return np.repeat((values * 255).round().astype(np.uint8), 3 // values.shape[2], axis=2)


def make_panels(
    results: Sequence[tuple[str, Path]], reference: Path | None, lr: Path | None
) -> tuple[list[Panel], int]:
    """Read pictures and measure them.

    Args:
        results: Name and file of each method's result, all of one size.
        reference: The ground truth, of the same size (or less than a factor larger, as the HR of
            benchmark sets may be); the last panel.
        lr: What the results were made from; its bicubic enlargement is the first panel.

    Returns:
        The panels, and the border in pixels that the metrics leave out: the factor between `lr` and
        the results, or 0 without `lr`.

    Raises:
        UserError: A picture cannot be read, or is of another size.
    """
    named = [(name, read_rgb(path)) for name, path in results]
    height, width = named[0][1].shape[:2]
    wanted = f"{results[0][1]} is {width}x{height}"
    for (_, pixels), (_, path) in zip(named, results, strict=True):
        if pixels.shape[:2] != (height, width):
            raise UserError(f"{path}: is {_size(pixels)}, and {wanted}; one size is needed")
    border = 0
    if lr is not None:
        small = read_rgb(lr)
        border = max(1, width // small.shape[1])
        if (small.shape[0] * border, small.shape[1] * border) != (height, width):
            raise UserError(f"--lr {lr}: is {_size(small)}, and {wanted}: no multiple of it")
        named.insert(0, ("bicubic", imresize(small, border)))
    truth = None
    if reference is not None:
        truth = read_rgb(reference)
        excess = truth.shape[0] - height, truth.shape[1] - width
        if not all(0 <= more < max(1, border) for more in excess):
            raise UserError(f"--reference {reference}: is {_size(truth)}, and {wanted}")
        truth = truth[:height, :width]
        named.append(("ground truth", truth))
    panels = []
    for name, pixels in named:
        if truth is None or pixels is truth:
            panels.append(Panel(name, pixels))
            continue
        # BasicSR's metrics take BGR.
        pair = [np.ascontiguousarray(image[..., ::-1]) for image in (pixels, truth)]
        figures = [
            float(metric(*pair, crop_border=border, test_y_channel=True))
            for metric in (calculate_psnr, calculate_ssim)
        ]
        panels.append(Panel(name, pixels, *figures))
    return panels, border


def side_by_side(lr: Path, result: Path) -> np.ndarray:
    """The bicubic enlargement of a picture and its result, a strip of white between them.

    Args:
        lr: The picture.
        result: What upscaling it gave.

    Returns:
        (H, 2 W + 8, 3), RGB, uint8.

    Raises:
        UserError: One of them cannot be read.
    """
    sr, small = read_rgb(result), read_rgb(lr)
    bicubic = imresize(small, max(1, sr.shape[1] // small.shape[1]))
    return np.hstack([bicubic, np.full((len(sr), 8, 3), 255, np.uint8), sr])


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def most_different(panels: Sequence[Panel], side: int) -> tuple[int, int]:
    """Left and top of the square in which the pictures differ most from each other."""
    stack = np.stack([panel.pixels.mean(2) for panel in panels])
    sums = np.pad(stack.std(0), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(left), int(top)


def draw_crops(panels: Sequence[Panel], crop: tuple[int, int, int], kind: str = "png") -> bytes:
    """Draw the whole picture with a square in it, and the square of each panel beside it.

    Args:
        panels: At least one; the whole picture is the last's.
        crop: Left, top and side of the square in pixels.
        kind: png, pdf or svg.

    Returns:
        The file.

    Raises:
        UserError: The square is not within the pictures.
    """
    left, top, side = crop
    height, width = panels[-1].pixels.shape[:2]
    if side < 4 or min(left, top) < 0 or left + side > width or top + side > height:
        raise UserError(
            f"--crop {left} {top} {side}: not a square of 4 pixels or more within {width}x{height}"
        )
    rows = 1 if len(panels) < 4 else 2
    columns = math.ceil(len(panels) / rows)
    whole = max(1.0, min(2.5, width / height)) * rows
    size = (2.1 * (whole + columns), 2.45 * rows)
    figure = Figure(figsize=size, layout="constrained")
    parts = figure.subfigures(1, 2, width_ratios=[whole, columns])
    axes = parts[0].subplots()
    axes.imshow(panels[-1].pixels)
    axes.add_patch(Rectangle((left, top), side, side, fill=False, color="red", linewidth=1.5))
    axes.set_axis_off()
    grid = parts[1].subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.imshow(panel.pixels[top : top + side, left : left + side], interpolation="nearest")
        axes.set_title(panel.caption, fontsize=8, y=-0.04, va="top")
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=200)
    return content.getvalue()
