"""Programs of torch.export: any size from PyTorch 2.9 on, one size before, near PyTorch."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_networks import NETWORKS, REALM, built

from esc_arch.cli.main import main
from esc_arch.errors import UserError
from esc_arch.inference import exported_files
from esc_arch.inference.export_checks import check_shapes
from esc_arch.inference.load import load

HOLDS_ANY_SIZE = exported_files._DEFERRED in inspect.signature(torch.export.export).parameters
any_size = pytest.mark.skipif(
    not HOLDS_ANY_SIZE, reason="torch.export holds any size from PyTorch 2.9 on"
)
# What a program that has only PyTorch does with a file.
ALONE = """
import sys, torch
extra = {"properties.json": ""}
module = torch.export.load(sys.argv[1], extra_files=extra).module()
given, expected = torch.load(sys.argv[2])
print(*((module(x).clamp(0, 1) - y).abs().max().item() for x, y in zip(given, expected)))
print(extra["properties.json"])
assert not any(name.partition(".")[0] in ("esc_arch", "basicsr") for name in sys.modules)
"""


@any_size
@pytest.mark.slow
@pytest.mark.parametrize("name", [*NETWORKS, *REALM])
def test_a_program_computes_what_the_network_does_at_sizes_not_traced(name: str) -> None:
    network = built({**NETWORKS, **REALM}[name])
    content = exported_files.to_exported(network)
    shapes = check_shapes(network.window_size)
    errors = dict(exported_files.errors_of(content, network, shapes))
    assert len(errors) == 8
    assert max(errors.values()) < 1e-4


@pytest.mark.parametrize("name", ["ESC", pytest.param("ESCFP", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.float16, 1e-2)])
def test_every_pytorch_exports_one_shape(name: str, dtype: torch.dtype, limit: float) -> None:
    network = built(NETWORKS[name])
    shape = (2, 3, 9, 17)
    content = exported_files.to_exported(network, shape, dtype)
    errors = dict(exported_files.errors_of(content, network, [shape]))
    assert max(errors.values()) < limit


def test_a_program_that_differs_is_found() -> None:
    network = built(NETWORKS["ESC"])
    content = exported_files.to_exported(network, (1, 3, 9, 17))
    network.last.bias.add_(0.1)
    assert dict(exported_files.errors_of(content, network, [(1, 3, 9, 17)]))[1, 3, 9, 17] > 1e-4


def test_the_command_writes_a_checked_file_that_pytorch_alone_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = built(NETWORKS["ESC with windows of 32"])
    checkpoint, out = tmp_path / "small.pth", tmp_path / "esc.pt2"
    torch.save({"params": network.state_dict()}, checkpoint)
    shape = "dynamic" if HOLDS_ANY_SIZE else "1x3x13x21"
    command = ["export", "exported", "--model", str(checkpoint), "-o", str(out), "--shape", shape]
    assert main(command) == 0
    assert "largest error" in capsys.readouterr().out
    sizes = [(13, 21), (1, 1), (8, 8), (71, 97)] if HOLDS_ANY_SIZE else [(13, 21)]
    given = [torch.rand(1, 3, *size) for size in sizes]
    expected = [load(checkpoint).upscale(x) for x in given]
    torch.save((given, expected), tmp_path / "pictures.pt")
    alone = [sys.executable, "-W", "ignore", "-c", ALONE, str(out), str(tmp_path / "pictures.pt")]
    printed = subprocess.run(alone, capture_output=True, text=True, check=True, cwd=tmp_path)
    errors, properties = printed.stdout.splitlines()
    assert len(errors.split()) == len(sizes)
    assert max(map(float, errors.split())) < 1e-4
    assert json.loads(properties)["scale"] == "2"
    for wrong, part in (
        (command, "--overwrite"),
        ([*command[:5], str(tmp_path / "esc.onnx")], ".pt2"),
    ):
        assert main(wrong) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert part in line


@pytest.mark.skipif(HOLDS_ANY_SIZE, reason="this PyTorch exports for any size")
def test_an_older_pytorch_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match="PyTorch 2.9 or newer"):
        exported_files.to_exported(built(NETWORKS["ESC"]))


def test_a_program_is_not_loaded_in_the_place_of_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "esc.pt2"
    file.write_bytes(b"PK")
    with pytest.raises(UserError, match="can run code"):
        load(file)
    picture = Path(__file__).parents[1] / "data/set5_butterfly/LRx2.png"
    command = ["upscale", str(picture), "--model", str(file), "-o", str(tmp_path / "out.png")]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "can run code" in line
