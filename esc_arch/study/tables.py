"""The tables of `basicsr reproduce`, as Markdown and CSV."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from esc_arch.study.complexity import paper_input_size
from esc_arch.study.paper import CUT_OFF, Complexity
from esc_arch.study.quality import Quality, RealQuality
from esc_arch.whole_files import write_atomically


def complexity_table(rows: Sequence[Complexity]) -> list[list[str]]:
    """Lay out parameters and FLOPs, the header first."""
    header = ["model", "scale", "LR", "parameters", "paper (K)", "agrees"]
    header += ["FLOPs (G)", "paper (G)", "agrees"]
    table = [header]
    for row in rows:
        height, width = paper_input_size(row.scale)
        table.append(
            [row.model, f"x{row.scale}", f"{width}x{height}"]
            + [str(row.parameters), row.paper_params_k, row.parameters_agree]
            + [f"{row.flops / 1e9:.3f}", row.paper_flops_g, row.flops_agree]
        )
    return table


def quality_table(rows: Sequence[Quality]) -> list[list[str]]:
    """Lay out PSNR and SSIM, the header first."""
    header = ["model", "scale", "set", "PSNR", "paper", "difference"]
    table = [[*header, "SSIM", "paper", "difference", "bicubic", "note"]]
    for row in rows:
        table.append(
            [row.model, f"x{row.scale}", row.dataset]
            + [row.psnr, row.paper_psnr, _difference(row.psnr, row.paper_psnr, 2)]
            + [row.ssim, row.paper_ssim, _difference(row.ssim, row.paper_ssim, 4)]
            + [row.bicubic, row.note]
        )
    return table


def real_table(rows: Sequence[RealQuality]) -> list[list[str]]:
    """Lay out what needs no ground truth, the header first."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.scores))
    table = [["model", "scale", "photographs", "images", *metrics, "note"]]
    for row in rows:
        scores = [row.scores.get(name, "") for name in metrics]
        table.append([row.model, f"x{row.scale}", row.dataset, str(row.images), *scores, row.note])
    return table


def _difference(measured: str, printed: str, places: int) -> str:
    if not measured or not printed:
        return ""
    # Adding zero makes 0.0 of -0.0.
    return f"{round(float(measured) - float(printed), places) + 0.0:+.{places}f}"


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table as aligned Markdown, header first."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in table]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]

    def lines() -> Iterator[str]:
        for number, row in enumerate(cells):
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            yield f"| {' | '.join(padded)} |"
            if number == 0:
                yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"

    return "\n".join(lines()) + "\n"


def save_tables(
    complexity: Sequence[Complexity],
    quality: Sequence[Quality],
    real: Sequence[RealQuality],
    out: Path,
) -> str:
    """Write reproduce.md, complexity.csv and, where there is any quality, quality.csv, real.csv.

    Args:
        complexity: Rows of the first table.
        quality: Rows of the second.
        real: Rows of the third.
        out: The folder, which must exist.

    Returns:
        The text of reproduce.md.
    """
    tables = {"complexity": complexity_table(complexity)}
    text = "Parameters, and FLOPs (multiply-accumulates) for an output of 1280x720:\n\n"
    text += markdown(tables["complexity"])
    if any(row.parameters_agree == CUT_OFF for row in complexity):
        text += f"\n{CUT_OFF}: the paper's figure is the one here with the last digits dropped.\n"
    if any(row.scale == 3 for row in complexity):
        text += "\nx3: latency is measured at 427x240; the paper's FLOPs are those of 426x240.\n"
    if quality:
        tables["quality"] = quality_table(quality)
        text += "\nPSNR (dB) and SSIM on Y, as many pixels of border cropped as the scale:\n\n"
        text += markdown(tables["quality"])
    if real:
        tables["real"] = real_table(real)
        text += "\nReal photographs, without ground truth (NIQE: the lower the better; the others: "
        text += "the higher):\n\n" + markdown(tables["real"])
    for name, table in tables.items():
        content = io.StringIO()
        csv.writer(content, lineterminator="\n").writerows(table)
        write_atomically(out / f"{name}.csv", content.getvalue().encode())
    write_atomically(out / "reproduce.md", text.encode())
    return text
