"""`basicsr upscale --model x.onnx` does folders as with checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from esc_arch.cli.main import main
from esc_arch.zoo.identify import build_on_meta

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TINY = {"dim": 16, "pdim": 4, "kernel_size": 5, "n_blocks": 1, "conv_blocks": 1, "num_heads": 2}
TINY |= {"type": "ESC", "window_size": 8, "exp_ratio": 1.25, "upscaling_factor": 2}
SIZES = [(20, 13), (9, 30), (20, 13), (20, 13), (1, 1)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pictures and a model, also as a checkpoint."""
    torch.manual_seed(0)
    state = build_on_meta(TINY).state_dict()
    params = {name: torch.randn(value.shape) * 0.05 for name, value in state.items()}
    torch.save(params, tmp_path / "net.pth")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "onnx", "--model", "net.pth", "-o", "net.onnx"]) == 0
    generator = np.random.default_rng(0)
    Path("in/sub").mkdir(parents=True)
    for number, (width, height) in enumerate(SIZES):
        # With transparency, too.
        pixels = generator.integers(0, 256, (height, width, 3 + number % 2), np.uint8)
        Image.fromarray(pixels).save(Path("in") / ("sub" if number > 2 else "") / f"{number}.png")
    return tmp_path


def results(out: str) -> dict[str, np.ndarray]:
    found = sorted(Path(out).rglob("*.png"))
    return {str(path.relative_to(out)): np.asarray(Image.open(path)).astype(int) for path in found}


@pytest.mark.parametrize("options", [[], ["--batch", "3"], ["--tile", "8", "--tile-pad", "0"]])
def test_a_folder_comes_out_as_by_the_checkpoint(options, folder, capsys):
    assert main(["upscale", "in", "-o", "out", "--model", "net.onnx", *options]) == 0
    found = results("out")
    assert len(found) == len(SIZES)
    if "--tile" in options:
        # Nothing reaches into the file, so that each tile pools for itself.
        assert [one.shape[:2] for one in found.values()] == [(2 * h, 2 * w) for w, h in SIZES]
        return
    assert main(["upscale", "in", "-o", "expected", "--model", "net.pth", *options]) == 0
    expected = results("expected")
    assert expected.keys() == found.keys()
    for name, one in expected.items():
        assert np.abs(found[name] - one).max() <= 1, name


def test_a_second_run_goes_on_and_another_model_begins_anew(folder, capsys):
    command = ["upscale", "in", "-o", "out", "--model"]
    assert main([*command, "net.onnx"]) == 0
    before = results("out")
    Path("out/1.png").unlink()
    capsys.readouterr()
    assert main([*command, "net.onnx"]) == 0
    assert "1 upscaled, 4 kept, 0 failed" in capsys.readouterr().out
    after = results("out")
    assert all(np.array_equal(after[name], one) for name, one in before.items())
    assert main([*command, "net.pth"]) == 0
    assert "5 upscaled, 0 kept, 0 failed" in capsys.readouterr().out


def test_a_model_of_one_shape_takes_pictures_of_all_sizes_in_tiles_that_fit(folder, capsys):
    shape = ["--shape", "1x3x16x24", "--overwrite"]
    assert main(["export", "onnx", "--model", "net.pth", "-o", "net.onnx", *shape]) == 0
    assert main(["upscale", "in", "-o", "out", "--model", "net.onnx", "--batch", "3"]) == 0
    shapes = [one.shape[:2] for one in results("out").values()]
    assert shapes == [(2 * height, 2 * width) for width, height in SIZES]
    assert main(["upscale", "in", "-o", "whole", "--model", "net.onnx", "--tile", "0"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "24 x 16" in told[0]
