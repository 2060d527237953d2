"""Tables, CSV, JSON and the bubble chart of what was measured."""

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esc_arch.study.bench.measure import Measurement
from esc_arch.zoo.store import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

# Columns that hold more than a table shows.
ONLY_IN_JSON = ("seconds", "cpu_seconds")


def timing_columns(measurement: Measurement) -> Row:
    """Latency and memory of one measurement by column, None where there is none.

    Args:
        measurement: What came of a job.

    Returns:
        Median and quartiles of the latency in ms, median CPU time in ms, all runs in s, memory in
        MB, and the error.
    """
    seconds, memory = measurement.seconds, measurement.memory
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
        "memory_mb": _rounded(memory.process),
        "imports_mb": _rounded(memory.imports),
        "cuda_mb": _rounded(memory.cuda),
        "note": measurement.error,
        "seconds": seconds,
        "cpu_seconds": measurement.cpu_seconds,
    }


def add_speedups(rows: Sequence[Row], baseline: Row | None) -> None:
    """Add how many times as long the baseline takes.

    Args:
        rows: Rows to add the column `speedup` to.
        baseline: Row with the latency that counts as 1.
    """
    for row in rows:
        row["speedup"] = None
        if baseline is not None and row["latency_ms"] and baseline["latency_ms"]:
            row["speedup"] = round(baseline["latency_ms"] / row["latency_ms"], 2)


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
    paths = [_with_suffix(prefix, ".csv"), _with_suffix(prefix, ".json")]
    write_atomically(paths[0], text.getvalue().encode())
    content = json.dumps({**facts, "rows": list(rows)}, indent=1)
    write_atomically(paths[1], f"{content}\n".encode())
    return paths


def draw_chart(prefix: Path, rows: Sequence[Row], title: str) -> Path | None:
    """Draw PSNR, or parameters where a row lacks PSNR, against latency, memory as bubble size.

    Args:
        prefix: Path without a suffix.
        rows: Rows of one scale and size.
        title: What was measured.

    Returns:
        The PNG file, or None if no row has a latency.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["latency_ms"]]
    if not rows:
        return None
    with_psnr = all(row["psnr_db"] is not None for row in rows)
    memory_column = "cuda_mb" if all(row["cuda_mb"] for row in rows) else "memory_mb"
    memories = [row[memory_column] or 0 for row in rows]
    largest = max(memories) or 1
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    labels = []
    for index, (row, memory) in enumerate(zip(rows, memories, strict=True)):
        y = row["psnr_db"] if with_psnr else row["parameters"] / 1e3
        area = 60 + 1500 * memory / largest
        axes.scatter(row["latency_ms"], y, s=area, alpha=0.45, color=f"C{index % 10}")
        text = row["model"] + (f"\n{memory:,.0f} MB" if memory else "")
        labels.append((text, row["latency_ms"], y))
    axes.set_xscale("log")
    axes.margins(0.18, 0.2)
    axes.set_xlabel("latency (ms), log scale")
    axes.set_ylabel("PSNR on Y (dB)" if with_psnr else "parameters (thousands)")
    if not with_psnr and max(r["parameters"] for r in rows) > 4 * min(
        r["parameters"] for r in rows
    ):
        axes.set_yscale("log")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3, which="both")
    figure.draw_without_rendering()
    _place_labels(axes, labels)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    path = _with_suffix(prefix, ".png")
    write_atomically(path, image.getvalue())
    return path


def _with_suffix(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


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


def _place_labels(axes: "Axes", labels: Sequence[tuple[str, float, float]]) -> None:
    """Write (text, x, y) at their points, or as near above or below as there is room."""
    frame = axes.get_window_extent()
    style = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 7}
    taken = []
    for text, x, y in sorted(labels, key=lambda label: label[1]):
        for points in (0, 26, -26, 52, -52, 78, -78, 104, -104):
            label = axes.annotate(text, (x, y), (0, points), **style)
            box = label.get_window_extent()
            inside = frame.y0 < box.y0 and box.y1 < frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            label.remove()
        else:
            points = 0
            label = axes.annotate(text, (x, y), (0, points), **style)
        taken.append(box)
        if points:
            line = {"arrowstyle": "-", "lw": 0.5}
            end = points - math.copysign(9, points)
            axes.annotate("", (x, y), (0, end), textcoords="offset points", arrowprops=line)
