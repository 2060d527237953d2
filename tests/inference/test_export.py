"""Networks exported: any size, no kernels of their own per image, near PyTorch in float32."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import NETWORKS, REALM, built

from esc_arch.cli.main import main
from esc_arch.errors import UserError
from esc_arch.inference import onnx_files
from esc_arch.inference.export_checks import check_shapes, largest_difference
from esc_arch.inference.export_forms import branchless, evaluated, export_form
from esc_arch.inference.load import load


@pytest.mark.parametrize("name", [*NETWORKS, *REALM])
def test_the_form_without_branches_computes_what_the_network_does(name: str) -> None:
    network = built({**NETWORKS, **REALM}[name])
    form = export_form(network)
    for shape in ((1, 3, 1, 1), (2, 3, 1, 5), (1, 3, 9, 17), (2, 3, 16, 8)):
        x = torch.rand(shape)
        with branchless():
            found = form(x)
        torch.testing.assert_close(found, evaluated(network, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in REALM)]
)
def test_onnx_runtime_computes_what_pytorch_does_at_sizes_not_traced(name: str) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network = built({**NETWORKS, **REALM}[name])
    model = onnx_files.to_onnx(network)
    shapes = check_shapes(network.window_size)
    assert len(shapes) == 8
    assert {shape[0] for shape in shapes} == {1, 3}
    errors = dict(onnx_files.errors_of(model, network, shapes))
    assert len(errors) == 8
    assert max(errors.values()) < 1e-4


@pytest.mark.parametrize("opset", [18, 20, 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_newer_operators_compute_the_same(opset: int, dtype: torch.dtype) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    assert opset in onnx_files.opsets()
    network = built(NETWORKS["ESCReal with DySample"])
    model = onnx_files.to_onnx(network, dtype=dtype, opset=opset)
    assert [entry.version for entry in onnx.load_from_string(model).opset_import] == [opset]
    errors = dict(onnx_files.errors_of(model, network, [(1, 3, 1, 1), (3, 3, 9, 17)]))
    assert max(errors.values()) < (1e-4 if dtype == torch.float32 else 1e-2)


def test_no_convolution_takes_weights_that_depend_on_the_image() -> None:
    onnx = pytest.importorskip("onnx")
    for name in ("ESC", "ESCFP"):
        graph = onnx.load_from_string(onnx_files.to_onnx(built(NETWORKS[name]))).graph
        constant = {tensor.name for tensor in graph.initializer}
        constant |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
        constant |= {
            node.output[0]
            for node in graph.node
            if node.op_type == "Identity" and node.input[0] in constant
        }
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        assert len(convolutions) > 5
        assert all(node.input[1] in constant for node in convolutions), name
        assert not [node for node in graph.node if node.op_type in ("If", "Loop", "Scan")]
        assert [value.name for value in graph.input] == ["input"]
        assert [value.name for value in graph.output] == ["output"]


@pytest.mark.parametrize("name", ["ESC", "ESCFP", "ESCReal with DySample"])
def test_float16_models_keep_sums_over_the_picture_in_float32(name: str) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network = built(NETWORKS[name])
    model = onnx_files.to_onnx(network, dtype=torch.float16)
    graph = onnx.load_from_string(model).graph
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert graph.input[0].type.tensor_type.elem_type == half
    assert graph.output[0].type.tensor_type.elem_type == half
    made_by = {output: node for node in graph.node for output in node.output}
    for kind in ("LayerNormalization", "Softmax", "GlobalAveragePool"):
        nodes = [node for node in graph.node if node.op_type == kind]
        assert nodes, kind
        for node in nodes:
            before = made_by[node.input[0]]
            while before.op_type == "Transpose":
                before = made_by[before.input[0]]
            assert before.op_type == "Cast", kind
            assert before.attribute[0].i == single, kind
    # A white picture whose sum over all pixels is beyond float16's largest number.
    errors = dict(onnx_files.errors_of(model, network, [(1, 3, 300, 300), (3, 3, 9, 17)]))
    assert max(errors.values()) < 1e-2


def test_openvino_computes_what_pytorch_does() -> None:
    pytest.importorskip("onnx")
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    network = built(NETWORKS["ESC"])
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().read_model(onnx_files.to_onnx(network))
    compiled = openvino.Core().compile_model(model, "CPU", precision)
    for shape in ((1, 3, 1, 1), (3, 3, 9, 17), (1, 3, 31, 33)):
        x = torch.rand(shape)
        found = compiled(x.numpy())[0]
        assert largest_difference(found, evaluated(network, x).numpy()) < 1e-4


@pytest.mark.parametrize(
    ("name", "dtype", "limit"),
    [
        ("ESC", torch.float32, 1e-4),
        ("ESCReal with DySample", torch.float32, 1e-4),
        ("ESCReal with DySample", torch.float16, 1e-2),
    ],
)
def test_a_static_model_takes_its_shape_alone(name: str, dtype: torch.dtype, limit: float) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    network = built(NETWORKS[name])
    model = onnx_files.to_onnx(network, (2, 3, 9, 17), dtype)
    errors = dict(onnx_files.errors_of(model, network, [(2, 3, 9, 17)]))
    assert max(errors.values()) < limit
    session = onnxruntime.InferenceSession(model)
    assert session.get_inputs()[0].shape == [2, 3, 9, 17]
    scale = network.upscaling_factor
    assert session.get_outputs()[0].shape == [2, 3, 9 * scale, 17 * scale]


def test_what_onnx_runtime_does_not_take_is_one_line() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match="the model: ONNX Runtime cannot load it: ") as caught:
        dict(onnx_files.errors_of(b"no model", built(NETWORKS["ESC"]), [(1, 3, 8, 8)]))
    assert "\n" not in str(caught.value)


def test_a_model_that_differs_is_found() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network = built(NETWORKS["ESC"])
    model = onnx_files.to_onnx(network)
    network.last.bias.add_(0.1)
    assert dict(onnx_files.errors_of(model, network, [(1, 3, 9, 17)]))[1, 3, 9, 17] > 1e-4
    expected = np.zeros((1, 3, 2, 2), np.float32)
    assert largest_difference(expected + np.nan, expected) == float("inf")
    assert largest_difference(expected[..., :1], expected) == float("inf")


def test_the_command_writes_a_checked_file_and_refuses_what_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    checkpoint = tmp_path / "small.pth"
    torch.save({"params": built(NETWORKS["ESC"]).state_dict()}, checkpoint)
    out = tmp_path / "esc.onnx"
    command = ["export", "onnx", "--model", str(checkpoint), "-o", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "3x3x1x1" in printed
    assert "largest error" in printed
    properties = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert properties["scale"] == "2"
    assert properties["architecture"] == "ESC"
    for wrong, part in (
        (command, "--overwrite"),
        ([*command, "--overwrite", "--opset", "16"], "--opset 16"),
        ([*command, "--overwrite", "--opset", "99"], "--opset 99: must be from 17 to "),
        ([*command[:-1], str(tmp_path / "esc.pth")], ".onnx"),
        ([*command, "--overwrite", "--scale", "3"], "--scale 3"),
    ):
        assert main(wrong) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert part in line
    with pytest.raises(SystemExit):
        main([*command, "--shape", "1x4x8x8"])


def test_a_model_completes_windows_as_pictures_are_evaluated(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    network = built(NETWORKS["ESC"])
    checkpoint, file = tmp_path / "small.pth", tmp_path / "small.onnx"
    torch.save({"params": network.state_dict()}, checkpoint)
    file.write_bytes(onnx_files.to_onnx(network, properties={"scale": "2", "window_size": "8"}))
    session = onnxruntime.InferenceSession(file)
    for height, width in ((71, 97), (64, 96), (7, 33)):
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        expected = load(checkpoint).upscale(picture).astype(int)
        assert np.abs(load(file).upscale(picture) - expected).max() <= 1
        given = picture.transpose(2, 0, 1)[None].astype(np.float32) / 255
        (found,) = session.run(None, {"input": given})
        found = np.round(found[0].clip(0, 1).transpose(1, 2, 0) * 255)
        assert np.abs(found - expected).max() <= 1
        # What the network makes of a picture whose windows are not whole is something else.
        if height % 8:
            with torch.no_grad():
                other = network(torch.from_numpy(given)).clamp(0, 1)[0].permute(1, 2, 0).numpy()
            assert np.abs(np.round(other * 255) - expected).max() > 1


def test_upscale_runs_a_model_file_as_it_runs_the_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network = built(NETWORKS["ESC"])
    checkpoint = tmp_path / "small.pth"
    torch.save({"params": network.state_dict()}, checkpoint)
    picture = np.random.default_rng(0).integers(0, 256, (13, 21, 3), np.uint8)
    expected = load(checkpoint).upscale(picture).astype(int)
    properties = {"scale": "2", "window_size": "8"}
    for name, model in {
        "dynamic": onnx_files.to_onnx(network, properties=properties),
        "without properties": onnx_files.to_onnx(network),
        "static": onnx_files.to_onnx(network, (2, 3, 16, 24), properties=properties),
    }.items():
        file = tmp_path / f"{name}.onnx"
        file.write_bytes(model)
        upscaler = load(file, tile=0)
        assert upscaler.scale == 2
        assert np.abs(upscaler.upscale(picture) - expected).max() <= 1, name
    with pytest.raises(UserError, match="24 x 16"):
        load(file, tile=0).upscale(np.zeros((17, 8, 3), np.uint8))
    assert load(file).upscale(np.zeros((40, 70, 3), np.uint8)).shape == (80, 140, 3)
    with pytest.raises(UserError, match="--dtype bfloat16"):
        load(file, dtype="bfloat16")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"broken\.onnx"):
        load(tmp_path / "broken.onnx")
