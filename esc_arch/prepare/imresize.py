"""MATLAB's `imresize` (bicubic, antialiased) on NumPy arrays, with its rounding.

The papers' LR images were made by MATLAB on 8 bit integers. MATLAB stores the image in its own
type between the two passes, so an integer image is rounded twice; without the first rounding about
one value in seven is off by one.
"""

import math

import numpy as np

# Output rows made by one matrix product: more share more of their input rows, but a larger part of
# the matrix is zero.
_BAND = 8


def imresize(
    image: np.ndarray,
    scale: float | None = None,
    output_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Resize an image as MATLAB's `imresize(image, scale)` does.

    Bicubic with a = -0.5; the kernel is widened by 1/scale when shrinking (antialiasing). The
    borders are mirrored. For integer types the result is that of sums in float64, one tap after
    the other, and so the same on every machine.

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
    pixels = image[:, :, None] if image.ndim == 2 else image
    # MATLAB starts with the side that shrinks most, and with the rows when both shrink alike.
    for axis in sorted((0, 1), key=lambda axis: scales[axis]):
        height, width, channels = pixels.shape
        taps = _taps(pixels.shape[axis], output_size[axis], scales[axis])
        flat = pixels.reshape(height, -1)
        if axis == 0:
            pixels = _resize_rows(flat, *taps).reshape(-1, width, channels)
        else:
            # What is summed lies in rows, as matrix products like it: (W, C * H).
            columns = np.ascontiguousarray(flat.T).reshape(width, -1)
            resized = _resize_rows(columns, *taps).reshape(-1, height)
            pixels = np.ascontiguousarray(resized.T).reshape(height, -1, channels)
    return pixels.reshape(*output_size, *image.shape[2:])


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
    """Weighted sums of the rows of a (H, W) array, in the type of the array.

    Works on a few output rows at a time, so that the floating-point workspace stays small.
    """
    integer = np.issubdtype(rows.dtype, np.integer)
    top = np.iinfo(rows.dtype).max if integer else 0
    working = np.float32 if rows.dtype == np.uint8 else np.float64
    margin = _error_bound(weights, top, working) if integer else 0.0
    first, last = indices.min(axis=1), indices.max(axis=1) + 1
    bands = [slice(start, start + _BAND) for start in range(0, len(indices), _BAND)]
    spans = [slice(first[band].min(), last[band].max()) for band in bands]

    out = np.empty((len(indices), rows.shape[1]), rows.dtype)
    # Before the source rows one of ones, for what is added to every sum.
    values = np.ones((1 + max(span.stop - span.start for span in spans), rows.shape[1]), working)
    totals, wholes = np.empty((2, _BAND, rows.shape[1]), working)
    for band, span in zip(bands, spans, strict=True):
        taps = indices[band] - span.start
        matrix = np.zeros((len(taps), 1 + span.stop - span.start))
        # Mirrored taps may fall on one row more than once.
        np.add.at(matrix, (np.arange(len(taps))[:, None], 1 + taps), weights[band])
        if integer:
            matrix[:, 0] = 0.5 + margin
        source = values[: matrix.shape[1]]
        source[1:] = rows[span]
        total = np.matmul(matrix.astype(working), source, out=totals[: len(taps)])
        if integer:
            np.clip(total, 0.5, top + 0.5, out=total)
        if not margin:
            out[band] = total
            continue
        whole = np.floor(total, out=wholes[: len(taps)])
        out[band] = whole
        total -= whole
        # Exact halves are common (one value in 162 at x3), and there the order of a sum decides to
        # which side it is rounded.
        near = np.flatnonzero(total < 2 * margin)
        if len(near):
            row, column = np.divmod(near, rows.shape[1])
            again = _sums(rows[span], weights[band], taps, row, column)
            out[band][row, column] = np.clip(again + 0.5, 0, top)
    return out


def _error_bound(weights: np.ndarray, top: int, working: type) -> float:
    """How far from the exact sum of values up to `top` one that is computed can be, in any order.

    Twice the error of as many products and additions, and 0 where there is none: at x2 and x4 the
    weights are small multiples of a power of 1/2.
    """
    largest = top * np.abs(weights).sum(axis=1).max() + 1
    limits = np.finfo(working)
    bits = limits.nmant - math.ceil(math.log2(largest))
    scaled = weights * 2.0**bits
    if (scaled == np.rint(scaled)).all():
        return 0.0
    return float((weights.shape[1] + 4) * limits.eps * largest)


def _sums(
    source: np.ndarray,
    weights: np.ndarray,
    indices: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
) -> np.ndarray:
    """Some of the sums, in float64, one tap after the other."""
    terms = weights[row] * source[indices[row], column[:, None]]
    # Unlike `sum`, which adds in pairs.
    return np.add.accumulate(terms, axis=1)[:, -1]
