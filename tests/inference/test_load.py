"""`esc_arch.load` and `Upscaler.upscale` with values that cannot be: one line each."""

from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from PIL import Image

import esc_arch
from esc_arch.errors import UserError


@pytest.mark.parametrize(
    "given, told",
    [
        ("", "the name of the checkpoint is empty"),
        (3, "int: the name of a checkpoint or the path of a file is needed"),
        (b"net.pth", "bytes: the name"),
        (["net.pth"], "list: the name"),
        (torch.zeros(2), "Tensor: the name"),
        (Path("."), ".: is a folder"),
        ("x" * 3000, "no such checkpoint"),
        ("~nobody-here/net.pth", "~nobody-here/net.pth: no such checkpoint"),
        ("a\0b", "no such checkpoint"),
    ],
)
def test_what_is_no_checkpoints_name_is_one_line(given, told):
    with pytest.raises(UserError) as caught:
        esc_arch.load(given)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"scale": "2"}, "scale is '2'; it must be a whole number"),
        ({"scale": 2.0}, "scale is 2.0"),
        ({"tile": True}, "tile is True; it must be a number of pixels"),
        ({"tile": "64"}, "tile is '64'"),
        ({"tile_pad": -1}, "tile_pad is -1"),
        ({"device": "gpu"}, "--device gpu: cannot be used here: it is no name of a device"),
        ({"device": []}, "it is no name of a device"),
    ],
)
def test_options_of_load_that_cannot_be_are_one_line(options, told, model):
    with pytest.raises(UserError) as caught:
        esc_arch.load(model, **options)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_of_numpy_and_paths_of_any_kind_are_taken(folder, model, crop):
    Image.fromarray(crop).save("a.png")
    upscaler = esc_arch.load(model, tile=np.int64(64))
    assert upscaler.tile == 64
    assert upscaler.upscale(PurePath("a.png")) == Path("a_x2.png")
    assert upscaler.upscale(np.asmatrix(crop[..., 0])).shape == (40, 60)


@pytest.mark.parametrize(
    "image, options, told",
    [
        ("", {}, "the path is empty"),
        (".", {}, ".: is a folder"),
        ("x" * 3000 + ".png", {}, "File name too long"),
        ("a.png", {"output": 3}, "output is 3; a path is needed"),
        ("a.png", {"output": ""}, "output .: must end in"),
        (np.zeros((0, 4, 3), np.uint8), {}, "has no pixels"),
    ],
)
def test_what_cannot_be_upscaled_is_one_line(image, options, told, folder, upscaler, crop):
    Image.fromarray(crop).save("a.png")
    with pytest.raises(UserError) as caught:
        upscaler.upscale(image, **options)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_any_number_of_pictures_may_be_wanted_at_once(upscaler):
    together = upscaler.together(8, 8, 10**12)
    assert 1 < together < 10**12
    assert upscaler.together(8, 8, together + 1) == together
