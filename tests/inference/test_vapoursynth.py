"""VapourSynth's vs-mlrt runs a model and gives what `basicsr upscale` gives."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import NETWORKS, built

from esc_arch.cli.main import main

# Any Python that has vapoursynth (for 3.12 and newer), vapoursynth-mlrt-ort and numpy.
PYTHON = os.environ.get("VAPOURSYNTH_PYTHON") or (
    sys.executable if importlib.util.find_spec("vapoursynth") else None
)
CLIENT = """
import sys
import numpy as np
import vapoursynth as vs

given = np.load(sys.argv[1])
_, height, width = given.shape
clip = vs.core.std.BlankClip(format=vs.RGBS, width=width, height=height, length=1)

def fill(n, f):
    frame = f.copy()
    for plane in range(3):
        np.asarray(frame[plane])[:] = given[plane]
    return frame

clip = vs.core.std.ModifyFrame(clip, clip, fill)
clip = vs.core.ort.Model(clip, sys.argv[2], provider="CPU")
frame = clip.get_frame(0)
np.save(sys.argv[3], np.stack([np.asarray(frame[plane]) for plane in range(3)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    PYTHON is None, reason="no vapoursynth here; VAPOURSYNTH_PYTHON names a Python that has it"
)
@pytest.mark.parametrize("size", [(96, 64), (97, 71), (5, 33), (320, 180)])
@pytest.mark.parametrize("name", [None, "ESCFP", "ESCReal with DySample"])
def test_a_clip_of_one_picture_is_what_upscale_makes(
    name: str | None, size: tuple[int, int], tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = []
    if name is not None:  # Else the weights that came with the package.
        torch.save({"params": built(NETWORKS[name]).state_dict()}, tmp_path / "small.pth")
        model = ["--model", str(tmp_path / "small.pth")]
    photo = Image.open(Path(__file__).parents[1] / "data/set5_butterfly/HR.png").convert("RGB")
    picture, result = tmp_path / "in.png", tmp_path / "out.png"
    photo.resize(size, Image.Resampling.LANCZOS).save(picture)
    assert main(["export", "onnx", *model, "-o", str(tmp_path / "esc.onnx")]) == 0
    assert main(["upscale", str(picture), *model, "-o", str(result)]) == 0
    expected = np.asarray(Image.open(result)).astype(int)

    pixels = np.asarray(Image.open(picture)).transpose(2, 0, 1).astype(np.float32) / 255
    np.save(tmp_path / "in.npy", pixels)
    files = [str(tmp_path / file) for file in ("in.npy", "esc.onnx", "out.npy")]
    subprocess.run([PYTHON, "-c", CLIENT, *files], check=True)
    found = np.load(tmp_path / "out.npy").clip(0, 1).transpose(1, 2, 0)
    assert found.shape == expected.shape
    assert np.abs(np.round(found * 255) - expected).max() <= 1
