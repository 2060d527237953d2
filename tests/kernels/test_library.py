"""The compiled library as a whole: its threads, what it does when memory ends, whether it fits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_checks import force, kernels_called, needs_kernels

from esc_arch.kernels.cpu import library as cpu_kernels
from esc_arch.kernels.cpu import sources
from esc_arch.ops.attention import feature_attention
from esc_arch.ops.bias import relative_position_bias
from esc_arch.ops.convolutions import long_range_dynamic_conv, separable_dynamic_conv
from esc_arch.ops.geometry import d4_mean

is_sanitized = "libasan" in os.environ.get("LD_PRELOAD", "")


def gradients_of_everything() -> list[torch.Tensor]:
    """Results and gradients of kernels with several tasks, images and heads each."""
    from esc_arch.archs.layers import ConvFFN

    torch.manual_seed(0)
    layer = ConvFFN(16, 3, 1.25)
    x = torch.randn(3, 16, 40, 70, requires_grad=True)
    table = torch.randn(2, 15**2, requires_grad=True)
    large = torch.randn(16, 16, 5, 5, requires_grad=True)
    own = torch.randn(3, 16, 3, 3, requires_grad=True)
    windows = x[..., :40, :64]
    outs = [
        layer(x),
        long_range_dynamic_conv(x, d4_mean(large), own),
        separable_dynamic_conv(x, own),
        feature_attention(windows, windows, windows, table, 8),
    ]
    leaves = [x, table, large, own, *layer.parameters()]
    total = sum((out * torch.randn_like(out)).sum() for out in outs)
    return [*outs, *torch.autograd.grad(total, leaves)]


@pytest.fixture(params=["torch's threads", "own threads"])
def whose_threads(request):
    """Run with both kinds of threads."""
    if request.param == "own threads":
        cpu_kernels.library().esc_use_openmp(None)
    yield
    cpu_kernels.library().esc_use_openmp(cpu_kernels._torchs_openmp())


@needs_kernels
@pytest.mark.parametrize("width", [4, 8, 16])
def test_results_are_the_same_to_the_bit_whatever_the_threads(width, whose_threads, monkeypatch):
    force(monkeypatch, width, 1)
    with kernels_called() as called:
        expected = gradients_of_everything()
    assert sum(name.endswith(("_backward", "_weight")) for name in called) == 4, called
    for threads in (2, 3, 8, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for one, other in zip(gradients_of_everything(), expected, strict=True):
            assert torch.equal(one, other)


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


# As many threads as this process is told to use, and a convolution in them.
CONVOLVE = """
import ctypes, os, sys, threading
import torch
from esc_arch.kernels.cpu import library as cpu_kernels
torch.set_num_threads(1)
library = cpu_kernels.library()
x = torch.arange(2 * 64 * 64 * 8.0).reshape(2, 64, 64, 8).permute(0, 3, 1, 2) / 1e5
kernels = torch.ones(2, 8, 3, 3)
def convolve(threads):
    out = torch.zeros_like(x)
    library.esc_convolve_depthwise(
        4, threads, 3, cpu_kernels.CTiles.of(x, 4, 8), cpu_kernels.CTensor.of(x),
        kernels.data_ptr(), cpu_kernels.CTensor.of(out))
    return out
expected = convolve(1)
def check(threads):
    if not torch.equal(convolve(threads), expected):
        raise SystemExit("wrong")
"""


@needs_kernels
@pytest.mark.parametrize("own", [True, False])
def test_the_child_of_a_fork_has_threads_of_its_own(own):
    code = f"""{CONVOLVE}
if {own}:
    library.esc_use_openmp(None)
for _ in range(3):
    check(4)
    child = os.fork()
    if child == 0:
        check(4)
        check(3)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    check(4)
print("done")
"""
    result = run(code)
    assert result.stdout == "done\n", result.stderr


@needs_kernels
@pytest.mark.parametrize("own", [True, False])
def test_several_threads_may_call_at_a_time(own):
    code = f"""{CONVOLVE}
if {own}:
    library.esc_use_openmp(None)
wrong = []
def work():
    for threads in (1, 2, 5, 3) * 20:
        if not torch.equal(convolve(threads), expected):
            wrong.append(threads)
callers = [threading.Thread(target=work) for _ in range(6)]
for caller in callers: caller.start()
for caller in callers: caller.join()
print("done", wrong)
"""
    result = run(code)
    assert result.stdout == "done []\n", result.stderr


@needs_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_more_threads_work_than_are_asked_for():
    code = f"""{CONVOLVE}
library.esc_use_openmp(None)
def count():
    return len(os.listdir("/proc/self/task"))
before = count()
check(1)
assert count() == before
check(3)
assert count() == before + 2
check(2); check(3)
assert count() == before + 2
print("done")
"""
    result = run(code)
    assert result.stdout == "done\n", result.stderr


@needs_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.skipif(is_sanitized, reason="sanitizers take all addresses")
@pytest.mark.parametrize("threads", [1, 3])
def test_memory_that_cannot_be_had_is_an_error_and_no_crash(threads):
    # A kernel of 2001 x 2001 has 2 MB of weights here, and wants 400 MB to be walked with.
    code = f"""{CONVOLVE}
import resource
image, taps = torch.ones(1, 1, 8, 8), torch.ones(501501, 1, 1)
own, out = torch.ones(1, 1, 3, 3), torch.zeros(1, 1, 8, 8)
def large():
    library.esc_convolve(
        cpu_kernels.vector_width(), {threads}, 2001, cpu_kernels.CTiles.of(image, 4, 4),
        cpu_kernels.CTensor.of(image), taps.data_ptr(), own.data_ptr(),
        cpu_kernels.CTensor.of(out))
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
try:
    large()
except MemoryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
large()
assert (out[..., 1:7, 1:7] == 64 + 9).all()
check({threads})
print("goes on")
"""
    result = run(code)
    assert result.stdout == "not enough memory for esc_convolve\ngoes on\n", result.stderr


@needs_kernels
@pytest.mark.parametrize("what", ["sources", "structures", "symbols"])
def test_a_library_made_for_other_sources_is_not_called_and_said_once(what, tmp_path):
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    stamp = "0" * 16 if what == "sources" else sources.digest()
    sizes = [cpu_kernels.CTensor, cpu_kernels.CTiles, cpu_kernels.CWindows, cpu_kernels.CConvFfn]
    numbers = ", ".join(str(cpu_kernels.ctypes.sizeof(s) + (what == "structures")) for s in sizes)
    stale = f'const char* esc_sources() {{ return "{stamp}"; }}\n'
    stale += f"const int sizes[] = {{{numbers}}};\nconst int* esc_structures() {{ return sizes; }}"
    (tmp_path / "stale.c").write_text("int esc_widest;" if what == "symbols" else stale)
    library = tmp_path / "stale.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "stale.c"], check=True)
    code = """
import torch
from esc_arch.kernels.cpu import library as cpu_kernels
from esc_arch.ops.convolutions import separable_dynamic_conv
for _ in range(2):
    assert not cpu_kernels.is_built() and not cpu_kernels.has_amx()
    separable_dynamic_conv(torch.ones(1, 2, 5, 5), torch.ones(1, 2, 3, 3))
"""
    result = run(code, ESC_CPU_KERNELS=str(library))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("are not used, torch's operations run instead") == 1
    assert str(library) in result.stderr


@needs_kernels
def test_the_library_brings_no_openmp_of_its_own():
    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("no ldd")
    listed = subprocess.run([ldd, cpu_kernels.library()._name], capture_output=True, text=True)
    assert "libc" in listed.stdout
    assert "omp" not in listed.stdout


@needs_kernels
@pytest.mark.parametrize("payload", [0x7FC00000, 0x7FC0002A, 0xFFD55555, 0x7FFFFFFF])
@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_of_any_payload_reaches_what_it_should(payload, which, width, monkeypatch):
    force(monkeypatch, width, 1)
    torch.manual_seed(0)
    qkv = [torch.randn(1, 16, 8, 8) for _ in range(3)]
    nan = torch.tensor([payload], dtype=torch.int64).to(torch.int32).view(torch.float32)
    qkv[which][0, 5, 3, 4] = nan
    table = torch.randn(1, 15**2)
    out = feature_attention(*qkv, table, 8)
    expected = formula(*qkv, table)
    assert torch.equal(out.isnan(), expected.isnan())


@needs_kernels
@pytest.mark.parametrize("window", [7, 8])
@pytest.mark.parametrize("score", [-1e29, -1e31, -1e38, float("-inf")])
@pytest.mark.parametrize("width", [4, 8, 16])
def test_scores_far_below_zero_are_weighed_as_the_formula_does(score, window, width, monkeypatch):
    force(monkeypatch, width, 1)
    torch.manual_seed(0)
    q = torch.ones(1, 1, window, window)
    k = score * (1 + torch.rand(1, 1, window, window))
    v = torch.randn(1, 1, window, window)
    table = torch.randn(1, (2 * window - 1) ** 2)
    out = feature_attention(q, k, v, table, window)
    torch.testing.assert_close(out, formula(q, k, v, table), equal_nan=True)
    # Some keys only.
    k[..., : window // 2, :] = 0
    out = feature_attention(q, k, v, table, window)
    torch.testing.assert_close(out, formula(q, k, v, table), equal_nan=True)


def formula(q, k, v, table):
    """Attention within one window and one head, in float32."""
    window, dim = q.shape[-1], q.shape[1]
    rows = [x.flatten(2).transpose(1, 2) for x in (q, k, v)]
    bias = relative_position_bias(table, window)
    scores = rows[0] @ rows[1].transpose(1, 2) * dim**-0.5 + bias
    return (scores.softmax(-1) @ rows[2]).transpose(1, 2).view_as(q)


CSRC = Path(sources.FOLDER)


@pytest.mark.skipif(not CSRC.is_dir(), reason="installed without sources")
def test_a_change_of_any_source_changes_the_stamp(tmp_path, monkeypatch):
    shutil.copytree(CSRC, tmp_path / "csrc")
    monkeypatch.setattr(sources, "FOLDER", tmp_path / "csrc")
    before = sources.digest()
    assert before
    seen = {before}
    for path in sorted((tmp_path / "csrc").glob("*.*")):
        if path.suffix in (".h", ".cpp"):
            path.write_text(path.read_text() + "\n")
            seen.add(sources.digest())
    assert len(seen) == 1 + len(list(CSRC.glob("*.h"))) + len(list(CSRC.glob("*.cpp")))


@needs_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.skipif(is_sanitized, reason="sanitizers take all addresses")
def test_sizes_that_an_int_does_not_hold_are_counted_right():
    # A window of 1449 x 1449 with 1024 channels has over 2^31 floats. All lie at one place here.
    code = f"""{CONVOLVE}
import resource
w, dim = 1449, 1024
x, table, log_sums = torch.zeros(1), torch.zeros((2 * w - 1) ** 2), torch.zeros(w * w)
pixels = cpu_kernels.CTensor.of(x.expand(1, dim, w, w))
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
windows = cpu_kernels.CWindows(1, 1, dim, w, w, w)
try:
    library.esc_window_attention_forward(
        cpu_kernels.vector_width(), 1, windows, pixels, pixels, pixels, table.data_ptr(),
        pixels, log_sums.data_ptr())
except MemoryError as error:
    print(error)
"""
    result = run(code)
    assert result.stdout == "not enough memory for esc_window_attention_forward\n", result.stderr
