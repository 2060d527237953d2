"""The paper's tables, computed again as far as the weights and the images on this disk allow.

Quality is measured by BasicSR's own test pipeline, run as `basicsr test` runs it.
"""

import csv
import io
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from basicsr.metrics import calculate_metric

from esc_arch.errors import UserError
from esc_arch.prepare.benchmark_sets import BENCHMARK_SETS
from esc_arch.prepare.images import IMAGE_SUFFIXES
from esc_arch.prepare.imresize import imresize
from esc_arch.study.complexity import paper_complexity, paper_input_size
from esc_arch.zoo.catalogue import (
    PRETRAINED_FOLDER,
    PUBLISHED,
    SHIPPED_FOLDER,
)
from esc_arch.zoo.local import verify_checkpoint
from esc_arch.zoo.store import write_atomically

CUT_OFF = "yes, cut off"
NO_WEIGHTS, NO_IMAGES = "no weights: ", "no images: "

# What the paper prints that cannot be meant: (trained_on, method, scale, column) -> why.
MISPRINTS = {
    ("DIV2K", "ESC-FP", 3, "manga109"): "the paper's SSIM repeats Urban100's: a misprint",
    ("DIV2K", "ESC-FP", 4, "set5"): "the paper's SSIM is 0.01 below every other: a misprint",
}


@dataclass(frozen=True)
class PaperModel:
    """A model of the paper's tables.

    Attributes:
        checkpoint: Name of its published checkpoint, but for the scale.
        trained_on: Its training data, as in the tables.
        method: Its name, as in the tables.
        shipped: Name of weights of the same network that ship with this package, but for the
            scale, if they are to be measured in place of the published ones.
        shipped_data: What those were trained on.
    """

    checkpoint: str
    trained_on: str
    method: str
    shipped: str = ""
    shipped_data: str = ""

    def weights(self, scale: int) -> str:
        """Name of the checkpoint to measure at this scale."""
        return (self.shipped or self.checkpoint).format(scale=scale)

    def file(self, scale: int, folder: Path) -> Path:
        """Where that checkpoint lies, given the folder of published ones."""
        if self.shipped:
            return SHIPPED_FOLDER / f"{self.weights(scale)}.safetensors"
        return folder / f"{self.weights(scale)}.pth"

    def network_g(self, scale: int) -> dict[str, Any]:
        """The network's option block."""
        return dict(PUBLISHED[self.checkpoint.format(scale=scale)].network_g)


MODELS: dict[str, PaperModel] = {
    "ESC": PaperModel("ESC_DIV2K_X{scale}", "DIV2K", "ESC"),
    "ESC_light": PaperModel("ESC_light_X{scale}", "DIV2K", "ESC-light"),
    "ESC_FP": PaperModel("ESC_FP_X{scale}", "DIV2K", "ESC-FP"),
    "ESC_DFLIP": PaperModel("ESC_DFLIP_X{scale}", "DFLIP", "ESC"),
    "ESC_light_BSD": PaperModel(
        "ESC_light_X{scale}",
        "DIV2K",
        "ESC-light",
        "ESC_light_x{scale}_BSD",
        "BSDS400 and T91, 491 photographs",
    ),
}


@dataclass(frozen=True)
class Complexity:
    """Size of a model, measured and as printed.

    Attributes:
        model: A key of `MODELS`.
        scale: Its scale.
        parameters: Number of learned values.
        flops: Multiply-accumulates at an output of 1280x720.
        paper_params_k: Thousands of parameters, as printed.
        paper_flops_g: Billions of multiply-accumulates, as printed.
    """

    model: str
    scale: int
    parameters: int
    flops: int
    paper_params_k: str
    paper_flops_g: str

    @property
    def parameters_agree(self) -> str:
        """yes, no, or `CUT_OFF` where the paper dropped digits in place of rounding."""
        if f"{self.parameters / 1000:.0f}" == self.paper_params_k:
            return "yes"
        return CUT_OFF if str(self.parameters // 1000) == self.paper_params_k else "no"

    @property
    def flops_agree(self) -> str:
        """Whether the figure, rounded, is the paper's: yes or no."""
        return "yes" if f"{self.flops / 1e9:.1f}" == self.paper_flops_g else "no"


@dataclass(frozen=True)
class Quality:
    """Quality of a model on a benchmark set, measured (to 4 places, as BasicSR logs it) and as
    printed; empty where it was not measured or not printed.

    Attributes:
        model: A key of `MODELS`.
        scale: Its scale.
        dataset: The benchmark set.
        psnr: In dB, on Y.
        ssim: On Y.
        paper_psnr: As printed.
        paper_ssim: As printed.
        bicubic: PSNR / SSIM of bicubic upscaling, measured here.
        note: What is missing, or particular.
    """

    model: str
    scale: int
    dataset: str
    psnr: str
    ssim: str
    paper_psnr: str
    paper_ssim: str
    bicubic: str
    note: str


@cache
def paper_table() -> dict[tuple[str, str, int], dict[str, str]]:
    """The paper's tables 2 and 4 as printed: rows by (trained_on, method, scale)."""
    text = (
        resources.files("esc_arch.study").joinpath("paper_tables.csv").read_text(encoding="utf-8")
    )
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {
        (row["trained_on"], row["method"], int(row["scale"])): row for row in csv.DictReader(lines)
    }


def measure_complexity(model: str, scale: int) -> Complexity:
    """Count parameters and FLOPs of a model and put the paper's beside them.

    Args:
        model: A key of `MODELS`.
        scale: 2, 3 or 4.

    Returns:
        Both.

    Raises:
        UserError: fvcore is not installed.
    """
    printed = _printed(model, scale)
    network_g = MODELS[model].network_g(scale)
    parameters, flops = _complexity(yaml.safe_dump(network_g))
    return Complexity(model, scale, parameters, flops, printed["params_k"], printed["flops_g"])


@cache
def _complexity(network_g: str) -> tuple[int, int]:
    return paper_complexity(yaml.safe_load(network_g))


def _printed(model: str, scale: int) -> dict[str, str]:
    return paper_table()[MODELS[model].trained_on, MODELS[model].method, scale]


def measure_quality(
    model: str, scale: int, data: Path, weights: Path, out: Path
) -> tuple[list[Quality], UserError | None]:
    """Test a model on the benchmark sets that are there, and put the paper's figures beside.

    Args:
        model: A key of `MODELS`.
        scale: 2, 3 or 4.
        data: Folder with SET/HR and SET/LR_bicubic/X{scale}.
        weights: Folder with the checkpoints.
        out: Folder to run in: the option file goes into it, and BasicSR's log below `results`.

    Returns:
        A row for each benchmark set, measured or saying what is missing; and the error if the test
        could not be run, which the rows tell too.
    """
    checkpoint = MODELS[model].file(scale, weights)
    sets = {one: _paths(data, one, scale) for one in BENCHMARK_SETS}
    missing = {one: [path for path in paths if not path.is_dir()] for one, paths in sets.items()}
    if not checkpoint.is_file():
        return _rows(model, scale, {}, {}, dict.fromkeys(sets, f"{NO_WEIGHTS}{checkpoint}")), None
    notes = {one: f"{NO_IMAGES}{paths[0]}" if paths else "" for one, paths in missing.items()}
    found = {one: paths for one, paths in sets.items() if not missing[one]}
    if not found:
        return _rows(model, scale, {}, {}, notes), None
    try:
        verify_checkpoint(checkpoint)
        network_g = MODELS[model].network_g(scale)
        figures = _run_test(f"{model}_x{scale}", network_g, checkpoint, found, out)
    except UserError as error:
        notes |= dict.fromkeys(found, f"failed: {error}")
        return _rows(model, scale, {}, {}, notes), error
    for one, (hr, _) in found.items():
        count = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in hr.iterdir())
        if count != BENCHMARK_SETS[one][0]:
            notes[one] = f"{count} images; the set has {BENCHMARK_SETS[one][0]}"
    bicubic = {one: measure_bicubic(hr, lr, scale) for one, (hr, lr) in found.items()}
    return _rows(model, scale, figures, bicubic, notes), None


@cache
def measure_bicubic(hr: Path, lr: Path, scale: int) -> tuple[float, float]:
    """Measure MATLAB's bicubic upscaling of a benchmark set by BasicSR's metrics.

    Args:
        hr: Folder of HR images.
        lr: Folder of LR images, named `{}x2.png` and so on.
        scale: Their scale.

    Returns:
        Mean PSNR in dB and SSIM, on Y, without a border of `scale` pixels.
    """
    figures = []
    for path in sorted(path for path in hr.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES):
        gt, lq = cv2.imread(str(path)), cv2.imread(str(lr / f"{path.stem}x{scale}.png"))
        upscaled = imresize(lq, scale)
        # As BasicSR's data set crops what is no multiple of the scale.
        images = {"img": upscaled, "img2": gt[: upscaled.shape[0], : upscaled.shape[1]]}
        figures.append(
            [
                calculate_metric(
                    images, {"type": metric, "crop_border": scale, "test_y_channel": True}
                )
                for metric in ("calculate_psnr", "calculate_ssim")
            ]
        )
    psnr, ssim = np.mean(figures, axis=0)
    return float(psnr), float(ssim)


def remedies(quality: Sequence[Quality], data: Path, weights: Path) -> list[str]:
    """How to get what rows lack.

    Args:
        quality: Rows of `measure_quality`.
        data: Its folder of benchmark sets.
        weights: Its folder of checkpoints.

    Returns:
        At most a line for the weights and one for the images.
    """
    lines = []
    lacking = [
        row for row in quality if row.note.startswith(NO_WEIGHTS) and not MODELS[row.model].shipped
    ]
    if lacking:
        names = dict.fromkeys(MODELS[row.model].weights(row.scale) for row in lacking)
        line = f"no weights: get them with: basicsr checkpoints download {' '.join(names)}"
        if weights != PRETRAINED_FOLDER:
            line += f", and move them from {PRETRAINED_FOLDER} to {weights}"
        lines.append(line)
    lacking = [row for row in quality if row.note.startswith(NO_IMAGES)]
    if lacking:
        sets = " ".join(dict.fromkeys(row.dataset for row in lacking))
        lines.append(
            "no images: make them with: python datasets_prep/benchmarks.py --src DIR "
            f"--out {data} --sets {sets}, where DIR has the sets as they were downloaded"
        )
    return lines


def _paths(data: Path, dataset: str, scale: int) -> tuple[Path, Path]:
    return data / dataset / "HR", data / dataset / "LR_bicubic" / f"X{scale}"


def _rows(
    model: str,
    scale: int,
    figures: dict[str, dict[str, str]],
    bicubic: dict[str, tuple[float, float]],
    notes: dict[str, str],
) -> list[Quality]:
    printed = _printed(model, scale)
    data = MODELS[model].shipped_data
    trained_on = data and f"trained on {data}; the paper's on {MODELS[model].trained_on}"
    rows = []
    for dataset in BENCHMARK_SETS:
        paper_psnr, _, paper_ssim = printed[dataset.lower()].partition("/")
        misprint = MISPRINTS.get(
            (MODELS[model].trained_on, MODELS[model].method, scale, dataset.lower())
        )
        note = "; ".join(filter(None, (notes[dataset], trained_on, misprint)))
        measured = figures.get(dataset, {})
        psnr, ssim = measured.get("psnr", ""), measured.get("ssim", "")
        plain = "{:.2f} / {:.4f}".format(*bicubic[dataset]) if dataset in bicubic else ""
        rows.append(Quality(model, scale, dataset, psnr, ssim, paper_psnr, paper_ssim, plain, note))
    return rows


def pipeline_options(
    name: str, network_g: dict[str, Any], checkpoint: Path, sets: dict[str, tuple[Path, Path]]
) -> dict[str, Any]:
    """Put together an option file for `basicsr test` under the paper's protocol.

    Args:
        name: Name of the run.
        network_g: The network's option block.
        checkpoint: Its weights; params_ema is taken.
        sets: Folders of HR and of LR by the set's name.

    Returns:
        The options.
    """
    scale = network_g["upscaling_factor"]
    metric = {"crop_border": scale, "test_y_channel": True, "better": "higher"}
    return {
        "name": name,
        "model_type": "ESCModel",
        "scale": scale,
        "num_gpu": "auto",
        "manual_seed": 0,
        "datasets": {
            f"test_{number}": {
                "name": dataset,
                "type": "PairedImageDataset",
                "dataroot_gt": str(hr.resolve()),
                "dataroot_lq": str(lr.resolve()),
                "filename_tmpl": f"{{}}x{scale}",
                "io_backend": {"type": "disk"},
            }
            for number, (dataset, (hr, lr)) in enumerate(sets.items(), start=1)
        },
        "network_g": network_g,
        "path": {
            "pretrain_network_g": str(checkpoint.resolve()),
            "param_key_g": "params_ema",
            "strict_load_g": True,
        },
        "val": {
            "save_img": False,
            "suffix": None,
            "pbar": True,
            "metrics": {
                "psnr": {"type": "calculate_psnr", **metric},
                "ssim": {"type": "calculate_ssim", **metric},
            },
        },
    }


def _run_test(
    run: str,
    network_g: dict[str, Any],
    checkpoint: Path,
    sets: dict[str, tuple[Path, Path]],
    out: Path,
) -> dict[str, dict[str, str]]:
    """Run `basicsr test` in a process of its own, since BasicSR keeps one logger for a process."""
    options = pipeline_options(run, network_g, checkpoint, sets)
    file = out / f"test_{run}.yml"
    write_atomically(file, yaml.safe_dump(options, sort_keys=False).encode())
    command = [sys.executable, "-m", "esc_arch.cli", "test", "-opt", str(file.resolve())]
    output = ""
    # BasicSR writes its results below the current folder.
    with subprocess.Popen(
        command, cwd=out, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        while chunk := process.stdout.read1():
            text = chunk.decode(errors="replace")
            sys.stderr.write(text)
            sys.stderr.flush()
            output = (output + text)[-10_000:]
    if process.returncode != 0:
        errors = re.findall(r"^basicsr: error: (.*)$", output, re.MULTILINE)
        lines = [line for line in output.splitlines() if line.strip()]
        reason = "; ".join(errors) or (lines[-1].strip() if lines else "no output")
        raise UserError(f"{run}: basicsr test -opt {file} ended with {reason}")
    logs = sorted((out / "results" / run).glob("test_*.log"))
    figures = read_log(logs[-1].read_text(encoding="utf-8")) if logs else {}
    if lost := [one for one in sets if not {"psnr", "ssim"} <= figures.get(one, {}).keys()]:
        raise UserError(f"{run}: basicsr test -opt {file} logged no figures for {lost[0]}")
    return figures


def read_log(text: str) -> dict[str, dict[str, str]]:
    """Read the metrics out of BasicSR's log of a test.

    Args:
        text: The log file.

    Returns:
        Figures as logged, by data set and metric.
    """
    figures: dict[str, dict[str, str]] = {}
    dataset = None
    for line in text.splitlines():
        if start := re.search(r"INFO: Validation (.+)$", line):
            dataset = figures.setdefault(start[1], {})
        elif (metric := re.match(r"\t # (\w+): (\S+)", line)) and dataset is not None:
            dataset[metric[1]] = metric[2]
    return figures


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


def save_tables(complexity: Sequence[Complexity], quality: Sequence[Quality], out: Path) -> str:
    """Write reproduce.md, complexity.csv and, where there is any quality, quality.csv.

    Args:
        complexity: Rows of the first table.
        quality: Rows of the second.
        out: The folder, which must exist.

    Returns:
        The text of reproduce.md.
    """
    tables = {"complexity": complexity_table(complexity)}
    text = "Parameters, and FLOPs for an output of 1280x720 (multiply-accumulates by fvcore):\n\n"
    text += markdown(tables["complexity"])
    if any(row.parameters_agree == CUT_OFF for row in complexity):
        text += f"\n{CUT_OFF}: the paper's figure is the one here with the last digits dropped.\n"
    if any(row.scale == 3 for row in complexity):
        text += "\nx3: latency is measured at 427x240; the paper's FLOPs are those of 426x240.\n"
    if quality:
        tables["quality"] = quality_table(quality)
        text += "\nPSNR (dB) and SSIM on Y, as many pixels of border cropped as the scale:\n\n"
        text += markdown(tables["quality"])
    for name, table in tables.items():
        content = io.StringIO()
        csv.writer(content, lineterminator="\n").writerows(table)
        write_atomically(out / f"{name}.csv", content.getvalue().encode())
    write_atomically(out / "reproduce.md", text.encode())
    return text
