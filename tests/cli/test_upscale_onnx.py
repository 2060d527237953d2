"""`basicsr upscale --model x.onnx` does folders as with checkpoints."""

import os
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


def write_model(path: str, nodes, constants: dict[str, np.ndarray], **properties: str) -> None:
    """Write a model that somebody else might have, without the checks that ours go through."""
    import onnx

    shape, make = ["b", 3, "h", "w"], onnx.helper.make_tensor_value_info
    kept = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    sides = [make(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    sides[1].type.tensor_type.shape.dim[2].dim_param = "h2"
    sides[1].type.tensor_type.shape.dim[3].dim_param = "w2"
    graph = onnx.helper.make_graph(nodes, "graph", [sides[0]], [sides[1]], kept)
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.helper.set_model_props(model, properties)
    Path(path).write_bytes(model.SerializeToString())


def enlarge(*, by: float = 2.0, **properties: str) -> None:
    from onnx.helper import make_node

    scales = np.array([1, 1, by, by], np.float32)
    node = make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")
    write_model("other.onnx", [node], {"scales": scales}, **properties)


def a_sum_of_terabytes() -> None:
    from onnx.helper import make_node

    nodes = [
        make_node("ConstantOfShape", ["shape"], ["all"]),
        make_node("ReduceSum", ["all"], ["sum"], keepdims=0),
        make_node("Add", ["x", "sum"], ["y"]),
    ]
    write_model("other.onnx", nodes, {"shape": np.array([2**21, 2**21])}, scale="1")


def a_name_that_moves_the_cursor() -> None:
    from onnx.helper import make_node

    write_model("other.onnx", [make_node("No\x1b[2J", ["x"], ["y"], name="\x1b]0;x\x07")], {})


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: enlarge(scale="4"), "makes (1, 3, "),
        (lambda: enlarge(by=1e5, scale="2"), "memory"),
        (lambda: enlarge(by=1e5), "ONNX Runtime cannot run it"),
        (a_sum_of_terabytes, "memory"),
        (a_name_that_moves_the_cursor, "ONNX Runtime cannot load it"),
        (lambda: os.mkfifo("other.onnx"), "other.onnx: is a pipe or a device"),
    ],
    ids=["other scale", "large", "large scale", "large sum", "name", "pipe"],
)
def test_a_model_that_is_none_ends_in_one_line(make, expected, folder, capfd):
    make()
    capfd.readouterr()
    assert main(["upscale", "in/0.png", "-o", "out", "--model", "other.onnx"]) in (1, 2)
    told = capfd.readouterr().err
    assert expected in told and len(told.splitlines()) == 1
    assert told.rstrip("\n").isprintable()
    assert not list(Path("out").rglob("*.png"))
