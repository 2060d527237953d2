"""imresize against published MATLAB output and against exact rational arithmetic."""

import math
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from esc_arch.prepare.imresize import imresize

BUTTERFLY = Path(__file__).parents[1] / "data" / "set5_butterfly"


def photograph(height: int, width: int) -> np.ndarray:
    image = cv2.imread(str(BUTTERFLY / "HR.png"))
    return np.ascontiguousarray(image[20 : 20 + height, 30 : 30 + width])


def exact_line(line: list, scale: Fraction, out_length: int) -> list[Fraction]:
    """One row or column by the definition of the filter, in rational numbers."""
    shrink = min(scale, Fraction(1))
    result = []
    for i in range(out_length):
        centre = (i + Fraction(1, 2)) / scale - Fraction(1, 2)
        reach = 2 / shrink
        total = norm = Fraction(0)
        for j in range(math.ceil(centre - reach), math.floor(centre + reach) + 1):
            x = abs(centre - j) * shrink
            if x <= 1:
                weight = (3 * x**3 - 5 * x**2 + 2) / 2
            else:
                weight = (-(x**3) + 5 * x**2 - 8 * x + 4) / 2
            mirrored = j
            while not 0 <= mirrored < len(line):
                mirrored = -1 - mirrored if mirrored < 0 else 2 * len(line) - 1 - mirrored
            total += weight * line[mirrored]
            norm += weight
        result.append(total / norm)
    return result


def exact_grey(image: list[list], scales: tuple[Fraction, Fraction], size, top) -> list[list]:
    """Rows first, rounded to whole numbers in 0..top after each pass unless top is None."""

    def store(line: list[Fraction]) -> list:
        if top is None:
            return line
        return [min(max(math.floor(value + Fraction(1, 2)), 0), top) for value in line]

    columns = [store(exact_line(list(c), scales[0], size[0])) for c in zip(*image, strict=True)]
    return [store(exact_line(list(r), scales[1], size[1])) for r in zip(*columns, strict=True)]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_equals_the_published_lr_of_set5_bit_for_bit(scale):
    published = cv2.imread(str(BUTTERFLY / f"LRx{scale}.png"))
    # The files are the top left corners of the image and of its LR; only LR pixels whose taps lie
    # within the HR corner are kept.
    ours = imresize(cv2.imread(str(BUTTERFLY / "HR.png")), 1 / scale)
    height, width = published.shape[:2]
    assert np.array_equal(ours[:height, :width], published)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("scale", [Fraction(1, 4), Fraction(1, 2), Fraction(2), Fraction(4)])
def test_integers_are_rounded_after_each_pass_halves_up(dtype, scale):
    # Weights at powers of two are exact in float64, so that halves are exact halves.
    grey = photograph(13, 10)[:, :, 1].astype(dtype)
    if dtype == np.uint16:
        grey = grey * dtype(257)
    size = tuple(math.ceil(side * scale) for side in grey.shape)
    expected = exact_grey(grey.tolist(), (scale, scale), size, int(np.iinfo(dtype).max))
    ours = imresize(grey, float(scale))
    assert ours.dtype == dtype
    assert ours.tolist() == expected


@pytest.mark.parametrize("scale", [Fraction(1, 3), Fraction(2, 5), Fraction(3, 4), Fraction(3, 2)])
def test_floats_are_neither_rounded_nor_clipped_at_any_scale(scale):
    grey = photograph(11, 14)[:, :, 0] / 255 * 3 - 1
    size = tuple(math.ceil(side * scale) for side in grey.shape)
    exact = [[Fraction(value) for value in row] for row in grey.tolist()]
    expected = np.array(exact_grey(exact, (scale, scale), size, None), dtype=np.float64)
    assert np.abs(imresize(grey, float(scale)) - expected).max() < 1e-13
    single = imresize(grey.astype(np.float32), float(scale))
    assert single.dtype == np.float32
    assert np.abs(single - expected).max() < 1e-6


def test_output_size_sets_the_factor_of_each_side_and_the_smaller_factor_goes_first():
    grey = photograph(8, 12)[:, :, 2]
    transposed = grey.T.tolist()
    # Height 8 -> 4 and width 12 -> 3: columns shrink more, so they come first.
    expected = exact_grey(transposed, (Fraction(1, 4), Fraction(1, 2)), (3, 4), 255)
    assert imresize(grey, output_size=(4, 3)).T.tolist() == expected


def test_output_size_with_scale_computes_part_of_the_same_grid():
    image = photograph(20, 20)
    assert np.array_equal(imresize(image, 0.5, (4, 6)), imresize(image, 0.5)[:4, :6])


def test_an_output_side_is_rounded_up():
    assert imresize(photograph(7, 10), 1 / 3).shape == (3, 4, 3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_are_independent(channels):
    planes = [photograph(15, 18)[:, :, i % 3] // (1 + i) for i in range(channels)]
    image = np.stack(planes, axis=2)
    before = image.copy()
    together = imresize(image, 1 / 3)
    assert together.shape == (5, 6, channels)
    for i, plane in enumerate(planes):
        assert np.array_equal(together[:, :, i], imresize(plane, 1 / 3))
    assert np.array_equal(image, before)


def test_the_result_does_not_depend_on_how_the_image_lies_in_memory():
    image = photograph(40, 30)
    strided = np.asfortranarray(image[::-1, ::-1])[::-1, ::-1]
    assert np.array_equal(imresize(strided, 0.5), imresize(image, 0.5))


def test_an_image_larger_than_one_band_is_seamless():
    tile = photograph(60, 60)
    wide = np.tile(tile, (6, 20, 1))
    ours = imresize(wide, 0.5)
    assert ours.shape == (180, 600, 3)
    assert np.array_equal(ours[30:60, 30:60], ours[90:120, 480:510])


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.1, 0.25, 1.0, 3.0])
def test_images_smaller_than_the_kernel_work(side, scale):
    flat = np.full((side, side, 3), 77, np.uint8)
    assert (imresize(flat, scale) == 77).all()


@pytest.mark.parametrize(
    ("image", "arguments", "error"),
    [
        (np.zeros((4, 4), np.int32), {"scale": 0.5}, TypeError),
        (np.zeros((4, 4), bool), {"scale": 0.5}, TypeError),
        (np.zeros((4, 4, 3, 1), np.uint8), {"scale": 0.5}, ValueError),
        (np.zeros((0, 4), np.uint8), {"scale": 0.5}, ValueError),
        (np.zeros((4, 4), np.uint8), {}, ValueError),
        (np.zeros((4, 4), np.uint8), {"scale": 0.0}, ValueError),
        (np.zeros((4, 4), np.uint8), {"scale": math.nan}, ValueError),
        (np.zeros((4, 4), np.uint8), {"output_size": (0, 3)}, ValueError),
    ],
)
def test_what_cannot_be_resized_is_refused(image, arguments, error):
    with pytest.raises(error):
        imresize(image, **arguments)
