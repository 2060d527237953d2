"""MATLAB's `imresize` (bicubic, antialiased) on NumPy arrays, with its rounding.

The papers' LR images were made by MATLAB on 8 bit integers. MATLAB stores the image in its own
type between the two passes, so an integer image is rounded twice; without the first rounding about
one value in seven is off by one.
"""

import math

import numpy as np

# Values of float64 workspace per band of output rows: small enough to stay in a core's cache.
_BAND_VALUES = 1 << 16


def imresize(
    image: np.ndarray,
    scale: float | None = None,
    output_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Resize an image as MATLAB's `imresize(image, scale)` does.

    Bicubic with a = -0.5; the kernel is widened by 1/scale when shrinking (antialiasing). The
    borders are mirrored. Sums are taken in float64, one tap after the other, so that the result is
    the same on every machine.

    Args:
        image: (H, W) or (H, W, C) array of uint8, uint16 or a floating type. Channels are
            independent, so RGB, BGR and RGBA all do.
        scale: Factor for both sides, above 0. The output has ceil(side * scale) pixels a side.
        output_size: Height and width of the output. Alone it also sets the factor of each side;
            with `scale` it only says how many pixels of that grid to compute.

    Returns:
        The resized array, of the type of `image`. Integer types are rounded (halves up) and
        clipped after each pass; floating types are never clipped.

    Raises:
        TypeError: The type of `image` is none of the above.
        ValueError: Neither `scale` nor `output_size` is given, one is not positive, or `image`
            is empty or has neither 2 nor 3 axes.
    """
    if image.dtype not in (np.uint8, np.uint16) and not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"image has type {image.dtype}; uint8, uint16 or a floating type is needed")
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"image has shape {image.shape}; (H, W) or (H, W, C) is needed")
    if scale is None and output_size is None:
        raise ValueError("scale or output_size is needed")
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is {scale}; it must be above 0")
    if output_size is None:
        output_size = (math.ceil(image.shape[0] * scale), math.ceil(image.shape[1] * scale))
    if min(output_size) < 1:
        raise ValueError(f"output_size is {output_size}; both sides must be at least 1")

    scales = [scale or output_size[axis] / image.shape[axis] for axis in (0, 1)]
    # MATLAB starts with the side that shrinks most, and with the rows when both shrink alike.
    for axis in sorted((0, 1), key=lambda axis: scales[axis]):
        moved = np.swapaxes(image, 0, axis)
        weights, indices = _taps(moved.shape[0], output_size[axis], scales[axis])
        rows = np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
        resized = _resize_rows(rows, weights, indices).reshape(-1, *moved.shape[1:])
        image = np.swapaxes(resized, 0, axis)
    return np.ascontiguousarray(image)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return near * (x <= 1) + far * ((x > 1) & (x <= 2))


def _taps(in_length: int, out_length: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and source positions of every output position along one axis.

    Returns:
        Weights, float64, and indices into the input, both (out_length, taps).
    """
    shrink = min(scale, 1.0)
    width = 4 / shrink
    # Pixel centres, counted from 1 as in MATLAB so that the same numbers are rounded.
    centre = np.arange(1, out_length + 1) / scale + 0.5 * (1 - 1 / scale)
    left = np.floor(centre - width / 2)
    positions = left[:, None] + np.arange(math.ceil(width) + 2)
    weights = shrink * _cubic(shrink * (centre[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)

    used = np.flatnonzero((weights != 0).any(axis=0))
    weights, positions = weights[:, used], positions[:, used].astype(np.intp) - 1
    positions %= 2 * in_length
    indices = np.where(positions < in_length, positions, 2 * in_length - 1 - positions)
    return weights, indices


def _resize_rows(rows: np.ndarray, weights: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Weighted sums of the rows of a (H, N) array, in the type of the array.

    Works on a few output rows at a time, so that the float64 workspace does not grow with H.
    """
    out = np.empty((len(indices), rows.shape[1]), rows.dtype)
    integer = np.issubdtype(rows.dtype, np.integer)
    band = max(1, _BAND_VALUES // rows.shape[1])
    for start in range(0, len(indices), band):
        taken = indices[start : start + band]
        first = taken.min()
        source = rows[first : taken.max() + 1].astype(np.float64)
        total = np.zeros((len(taken), rows.shape[1]))
        term = np.empty_like(total)
        for tap in range(taken.shape[1]):
            np.take(source, taken[:, tap] - first, axis=0, out=term, mode="clip")
            term *= weights[start : start + band, tap, None]
            total += term
        if integer:
            total += 0.5
            np.clip(total, 0, np.iinfo(rows.dtype).max, out=total)
        out[start : start + band] = total
    return out
