"""Scripts of benchmarks/: they compute what they say."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="installed without benchmarks/")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(FOLDER)
        return importlib.import_module(name)

    yield load
    for name in ("attention_backends", "exactness"):
        sys.modules.pop(name, None)


def test_attention_jobs_count_what_they_compute(benchmark):
    job = benchmark("attention_backends").AttentionJob(
        "SDPA", 4, "float32", False, (9, 8), 2, 8, "cpu"
    )
    prepared = job.prepare()
    prepared.run()
    assert job.windows == 3 * 2
    assert prepared.facts == {"gmacs": round(2 * 6 * 2 * 16**2 * 8 / 1e9, 3)}


def test_the_check_accepts_right_backends_and_finds_wrong_ones(benchmark, monkeypatch):
    from esc_arch.kernels.cpu import library as cpu_kernels
    from esc_arch.ops import attention

    wrong = attention.BACKENDS["Chunked"]
    monkeypatch.setitem(
        attention.BACKENDS, "Chunked", lambda q, k, v, table, w: wrong(q, k, v, 1.01 * table, w)
    )
    monkeypatch.delitem(attention.BACKENDS, "Flex")  # Its compilation takes minutes.
    exactness = benchmark("exactness")
    backends = exactness.made_for("cpu")
    checks = list(exactness.check_attention("cpu", backends, [4], ["float32"]))
    passed = {c.path: c.passed for c in checks if c.value == "result"}
    if cpu_kernels.is_built():
        assert passed.pop("attention Fused, window 4")
    assert passed == {
        "attention Naive, window 4": True,
        "attention Chunked, window 4": False,
        "attention SDPA, window 4": True,
        "attention Auto, window 4": True,
        "attention FlashBias, window 4": True,
    }


def test_the_check_of_networks_says_which_kernels_ran_and_fails_where_formulas_did(
    benchmark, tmp_path
):
    from esc_arch.kernels import choose
    from esc_arch.kernels.cpu import library as cpu_kernels

    if not cpu_kernels.is_built():
        pytest.skip("installed without a C++ compiler")
    options = tmp_path / "tiny.yml"
    options.write_text(
        "scale: 4\nnetwork_g: {type: ESC, dim: 16, pdim: 16, kernel_size: 5, n_blocks: 1, "
        "conv_blocks: 1, window_size: 8, num_heads: 2, upscaling_factor: 4}\n"
    )
    exactness = benchmark("exactness")

    def check() -> list:
        wanted = ["Fused"], [str(options)], (9, 8), ["float32"], False
        return list(exactness.check_networks("cpu", *wanted))

    checks = check()
    assert [one.passed for one in checks] == [True, True]
    # Forward twice, for the result and for gradients: two ConvFFN, one ConvAttn each.
    assert "conv_attn 1, conv_ffn 4, conv_ffn_backward 2" in checks[0].kernels
    with choose.switched_off():
        checks = check()
    assert [one.passed for one in checks] == [False, False]
    assert "formulas ran in place of window_attention" in checks[0].note
