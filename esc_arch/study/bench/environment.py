"""What the figures were measured on."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import torch

from esc_arch.study.bench.measure import timed

PACKAGES = (
    "esc-arch",
    "basicsr",
    "torch",
    "torchvision",
    "triton",
    "flash-attn",
    "spandrel",
    "spandrel-extra-arches",
    "fvcore",
)


def describe(device: str) -> dict[str, object]:
    """Hardware, settings and versions, for the files of results.

    Args:
        device: What is measured on, "cpu" or "cuda" or "cuda:1".

    Returns:
        Plain values by name.
    """
    facts: dict[str, object] = {
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }
    if hasattr(os, "getloadavg"):
        # Above 0 before the start: other programs ran as well.
        facts["load_average_at_start"] = round(os.getloadavg()[0], 2)
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_mb"] = properties.total_memory // 2**20
        facts["gpu_capability"] = f"{properties.major}.{properties.minor}"
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
        facts["tf32_convolutions"] = torch.backends.cudnn.allow_tf32
        facts["tf32_matmul"] = torch.backends.cuda.matmul.allow_tf32
    return facts


def peaks(device: str) -> dict[str, float]:
    """Measure the rates that bound everything: large matrix products and copies.

    Args:
        device: Where to measure.

    Returns:
        GFLOP/s (a multiplication and an addition are two) of float32 and of bfloat16 products, and
        GB/s of copying, bytes read and bytes written both counted.
    """
    on_gpu = device.startswith("cuda")
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        seconds = 0.0
        for side in (8192,) if on_gpu else (256, 1024):
            if seconds > 0.02:
                break  # Where the type is emulated the larger product would take half a minute.
            a = torch.randn(side, side, device=device, dtype=dtype)
            seconds = min(timed(lambda a=a: a @ a, device) for _ in range(4))
            rate = 2 * side**3 / seconds / 1e9
        rates[f"matmul_{str(dtype).removeprefix('torch.')}_gflops"] = rate
    source = torch.ones(2**28 if on_gpu else 2**25, device=device)
    target = torch.empty_like(source)
    seconds = min(timed(lambda: target.copy_(source), device) for _ in range(4))
    rates["copy_gbs"] = 2 * source.nbytes / seconds / 1e9
    return {name: round(rate, 1) for name, rate in rates.items()}


def command() -> str:
    """The command line of this process, for the files of results."""
    return " ".join(["basicsr", *sys.argv[1:]])


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
