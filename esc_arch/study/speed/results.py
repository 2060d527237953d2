"""What was measured, on what: tables, CSV, JSON."""

import csv
import importlib.metadata
import io
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from esc_arch.study.speed.measure import Measurement
from esc_arch.whole_files import write_atomically

Row = dict[str, Any]

# Columns that hold more than a table shows.
ONLY_IN_JSON = ("seconds", "cpu_seconds")
PACKAGES = ("esc-arch", "basicsr", "torch", "torchvision", "triton", "flash-attn", "spandrel")
PACKAGES += ("onnxruntime", "openvino")


def timing_columns(measurement: Measurement) -> Row:
    """Latency and memory of one measurement by column, None where there is none.

    Args:
        measurement: What came of a job.

    Returns:
        Median and quartiles of the latency in ms, median CPU time in ms, all runs in s, memory in
        MB, and the error.
    """
    seconds = measurement.seconds
    low = middle = high = None
    if seconds:
        middle = 1e3 * statistics.median(seconds)
        low, high = 1e3 * min(seconds), 1e3 * max(seconds)
        if len(seconds) > 2:
            low, _, high = (1e3 * q for q in statistics.quantiles(seconds, method="inclusive"))
    return {
        "latency_ms": _rounded(middle),
        "latency_q1_ms": _rounded(low),
        "latency_q3_ms": _rounded(high),
        "runs": len(seconds),
        "cpu_ms": _rounded(1e3 * statistics.median(measurement.cpu_seconds)) if seconds else None,
        "memory_mb": _rounded(measurement.process_mb),
        "imports_mb": _rounded(measurement.imports_mb),
        "cuda_mb": _rounded(measurement.cuda_mb),
        "seconds": seconds,
        "cpu_seconds": measurement.cpu_seconds,
        "note": measurement.error,
    }


def add_speedups(rows: Sequence[Row], baseline: Row) -> None:
    """Add the column `speedup`: how many times as long the baseline takes.

    Args:
        rows: Rows to add it to, before the last column.
        baseline: Row with the latency that counts as 1.
    """
    for row in rows:
        both = row["latency_ms"] and baseline["latency_ms"]
        row["speedup"] = round(baseline["latency_ms"] / row["latency_ms"], 2) if both else None
        row["note"] = row.pop("note")


def format_table(rows: Sequence[Row]) -> str:
    """Lay rows out as a Markdown table, without the columns that are empty throughout.

    Args:
        rows: Rows with the same columns.

    Returns:
        Lines without a line feed at the end.
    """
    columns = [
        name
        for name in (rows[0] if rows else [])
        if name not in ONLY_IN_JSON and any(row[name] not in (None, "") for row in rows)
    ]
    cells = [columns, *([_cell(row[name]) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    numeric = [all(isinstance(row[name], int | float | None) for row in rows) for name in columns]

    def line(values: Sequence[str]) -> str:
        padded = (
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = "|".join(
        "-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, numeric, strict=True)
    )
    return "\n".join([line(cells[0]), f"|{rule}|", *(line(values) for values in cells[1:])])


def save(prefix: Path, rows: Sequence[Row], facts: Row) -> list[Path]:
    """Write `prefix`.csv and `prefix`.json.

    Args:
        prefix: Path without a suffix; its folder is made.
        rows: Rows with the same columns.
        facts: Hardware, versions, command; for the JSON file.

    Returns:
        The files.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    columns = [name for name in (rows[0] if rows else []) if name not in ONLY_IN_JSON]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    paths = [prefix.with_name(prefix.name + suffix) for suffix in (".csv", ".json")]
    write_atomically(paths[0], text.getvalue().encode())
    content = json.dumps({**facts, "rows": list(rows)}, indent=1)
    write_atomically(paths[1], f"{content}\n".encode())
    return paths


def describe(device: str) -> Row:
    """The command, hardware, settings and versions, for the files of results.

    Args:
        device: What is measured on, "cpu" or "cuda" or "cuda:1".

    Returns:
        Plain values by name.
    """
    environment: Row = {
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
        environment["load_average_at_start"] = round(os.getloadavg()[0], 2)
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        environment["gpu"] = properties.name
        environment["gpu_memory_mb"] = properties.total_memory // 2**20
        environment["gpu_capability"] = f"{properties.major}.{properties.minor}"
        environment["cuda"] = torch.version.cuda
        environment["cudnn"] = torch.backends.cudnn.version()
        environment["tf32_convolutions"] = torch.backends.cudnn.allow_tf32
        environment["tf32_matmul"] = torch.backends.cuda.matmul.allow_tf32
    return {"command": " ".join(["basicsr", *sys.argv[1:]]), "environment": environment}


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


def _rounded(value: float | None) -> float | None:
    """Four significant digits."""
    if value is None or value == 0:
        return value
    return round(value, max(0, 3 - math.floor(math.log10(abs(value)))))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:g}"
    return str(value)
