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
