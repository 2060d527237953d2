"""The GPU kernels of window attention, as far as a machine without a GPU can tell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

HERE = Path(__file__).parent
STATIC = HERE.parents[1] / "benchmarks" / "gpu_static.py"


def run(*command: object, interpret: bool) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment
    )


@pytest.mark.slow
def test_interpreted_the_kernels_agree_with_float64() -> None:
    options = ("-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-rs")
    result = run("-m", "pytest", HERE / "interpreted_attention.py", *options, interpret=True)
    assert result.returncode == 0, result.stdout
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) >= 35, result.stdout


@pytest.mark.slow
def test_compiled_ahead_the_kernels_of_esc_neither_spill_nor_exceed_shared_memory() -> None:
    options = ("--capabilities", 80, 90, "--dtypes", "bf16", "fp16")
    result = run(STATIC, *options, interpret=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(result.stdout.splitlines()) == 2 + 4 * 2 * 2
