"""The GPU kernels, as far as a machine without a GPU can tell."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

HERE = Path(__file__).parent
BENCHMARKS = HERE.parents[1] / "benchmarks"
STATIC = BENCHMARKS / "gpu_static.py"


def run(*command: object, interpret: bool) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment
    )


def skip_without_amd() -> None:
    if "amd" not in importlib.import_module("triton.backends").backends:
        pytest.skip("this Triton has no compiler for AMD")


@pytest.mark.slow
@pytest.mark.parametrize(("file", "tests"), [("attention", 52), ("layers", 40), ("trials", 13)])
def test_interpreted_the_kernels_agree_with_float64(file: str, tests: int) -> None:
    options = ("-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-rs")
    result = run("-m", "pytest", HERE / f"interpreted_{file}.py", *options, interpret=True)
    assert result.returncode == 0, result.stdout
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) >= tests, result.stdout


@pytest.mark.slow
def test_interpreted_the_whole_of_esc_agrees_with_float64_by_the_documented_command(
    tmp_path: Path,
) -> None:
    options = ("--device", "cpu", "--backends", "Triton", "--dtype", "float32")
    options += (
        "--window-sizes",
        "8",
        "--models",
        "ESC",
        "--size",
        "40x24",
        "--out",
        tmp_path / "a",
    )
    result = run(BENCHMARKS / "exactness.py", *options, interpret=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "6 of 6 checks passed" in result.stdout
    # Five blocks with one attention and six ConvFFN each, forward twice and backward once.
    assert "triton_window_attention 10, triton_window_attention_backward 5" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "dtypes"),
    [
        (("80", "90"), ("bf16", "fp16")),
        (("gfx90a", "gfx942", "gfx1100"), ("bf16", "fp16")),
        (("gfx1100",), ("fp32",)),
    ],
)
def test_compiled_ahead_the_kernels_of_esc_neither_spill_nor_exceed_shared_memory(
    targets: tuple[str, ...], dtypes: tuple[str, ...], tmp_path: Path
) -> None:
    if "gfx90a" in targets:
        skip_without_amd()
    options = ("--targets", *targets, "--dtypes", *dtypes, "--json", tmp_path / "static.json")
    result = run(STATIC, *options, interpret=False)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "static.json").read_text())
    assert len(report["rows"]) == (2 * 4 + 6) * len(dtypes) * len(targets)
    measured = json.loads((BENCHMARKS / "results" / "gpu_static.json").read_text())
    if report["triton"] == measured["triton"] and "90" in targets:
        for whole in (True, False):
            check_instructions_a_score([row for row in report["rows"] if row.get("whole") == whole])


def check_instructions_a_score(rows: list[dict[str, Any]]) -> None:
    """They are as few as RESULTS.md wants them; other compilers may make more."""
    counts = defaultdict(float)
    for row in rows:
        part = "forward" if row["kernel"] == "forward" else "backward"
        counts[row["target"], row["dtype"], part] += row["instructions_a_score"]
    wanted = {("80", "forward"): 7.6, ("90", "forward"): 7.2}
    assert len(counts) == 8
    for (target, _, part), count in counts.items():
        assert count <= wanted.get((target, part), 20), (target, part, count)


@pytest.mark.slow
def test_compiled_ahead_the_kernels_take_windows_whose_rows_do_not_fill_tiles() -> None:
    # The interpreter lets pass what the compiler refuses.
    options = ("--kernels", "forward", "queries", "keys", "bias", "--targets", "90")
    result = run(STATIC, *options, "--dtypes", "fp32", "--shapes", "5x12", interpret=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "target"), [("bias", "89"), ("bias", "90"), ("keys", "gfx1100")]
)
def test_compiled_ahead_the_gradients_in_float32_do_not_spill(kernel: str, target: str) -> None:
    if target.startswith("gfx"):
        skip_without_amd()
    options = ("--kernels", kernel, "--targets", target, "--dtypes", "fp32")
    result = run(STATIC, *options, interpret=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shapes", "dtype", "kernels", "targets"),
    [
        (["16x48"], "bf16", ["queries", "keys"], ["80", "89", "120"]),
        (["32x32", "64x32"], "bf16", ["forward", "queries", "keys", "bias"], ["120"]),
        (["16x17", "16x24", "16x64"], "bf16", ["queries", "keys"], ["80", "89"]),
        (["64x32"], "fp32", ["forward", "queries", "keys"], ["89"]),
        (["64x32"], "fp32", ["forward", "queries", "keys", "bias"], ["gfx1100"]),
        (["32x32", "64x32", "16x17", "8x48"], "bf16", ["queries", "bias"], ["gfx942", "gfx1100"]),
    ],
)
def test_compiled_ahead_other_windows_and_heads_fit_too(
    shapes: list[str], dtype: str, kernels: list[str], targets: list[str], tmp_path: Path
) -> None:
    if "gfx1100" in targets:
        skip_without_amd()
    options = ("--shapes", *shapes, "--dtypes", dtype, "--kernels", *kernels, "--targets", *targets)
    result = run(STATIC, *options, "--json", tmp_path / "static.json", interpret=False)
    report = json.loads((tmp_path / "static.json").read_text())
    measured = json.loads((BENCHMARKS / "results" / "gpu_static.json").read_text())
    bad = {
        (row["kernel"], row["target"], row["head_dim"]) for row in report["rows"] if not row["fits"]
    }
    if report["triton"] != measured["triton"]:
        # 36 registers with Triton 3.9; what would not move them takes 40 % more instructions.
        bad -= {("bias", "gfx1100", 64)}
    assert not bad, result.stdout + result.stderr
    if dtype == "bf16" and len(targets) == 3 and report["triton"] == measured["triton"]:
        # The gradient of the bias takes 5.22 more at 8.9.
        rows = [row for row in report["rows"] if row["target"] == "89" and row["whole"]]
        assert sum(row["instructions_a_score"] for row in rows) <= 20 - 5.22


@pytest.mark.slow
def test_compiled_ahead_a_kernel_that_spills_or_exceeds_shared_memory_is_seen() -> None:
    options = ("--kernels", "keys", "--targets", "gfx1100", "80", "--dtypes", "bf16")
    result = run(STATIC, *options, "--shapes", "64x32", interpret=False)
    assert result.returncode == 1
    assert "spills or too much shared memory: {'kernel': 'keys'" in result.stderr
