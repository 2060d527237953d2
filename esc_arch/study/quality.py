"""Quality of the paper's models, as far as the weights and the images on this disk allow.

It is measured by BasicSR's own test pipeline, run as `basicsr test` runs it.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from basicsr.metrics import calculate_metric

from esc_arch.children import basicsr_command
from esc_arch.errors import UserError
from esc_arch.prepare.images import IMAGE_SUFFIXES
from esc_arch.prepare.imresize import imresize
from esc_arch.prepare.known_sets import BENCHMARK_SETS
from esc_arch.study.paper import MISPRINTS, MODELS, printed_row
from esc_arch.whole_files import write_atomically
from esc_arch.zoo.catalogue import (
    PRETRAINED_FOLDER,
)
from esc_arch.zoo.local import verify_checkpoint

NO_WEIGHTS, NO_IMAGES = "no weights: ", "no images: "
# Metrics that need no ground truth, by the names that pyiqa has for them.
PYIQA_METRICS = ("musiq", "maniqa", "clipiqa")


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


@dataclass(frozen=True)
class RealQuality:
    """Quality of a model on photographs without a ground truth; empty where it was not measured.

    Attributes:
        model: A key of `MODELS`.
        scale: Its scale.
        dataset: Name of the folder.
        images: How many photographs it has.
        scores: By the metric's name: the mean, as text.
        note: What is missing.
    """

    model: str
    scale: int
    dataset: str
    images: int
    scores: dict[str, str]
    note: str


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
        metric = {"crop_border": scale, "test_y_channel": True, "better": "higher"}
        metrics = {one: {"type": f"calculate_{one}", **metric} for one in ("psnr", "ssim")}
        pairs = {one: _paired(*paths, scale) for one, paths in found.items()}
        figures = _run_test(f"{model}_x{scale}", network_g, checkpoint, pairs, metrics, out)
    except UserError as error:
        notes |= dict.fromkeys(found, f"failed: {error}")
        return _rows(model, scale, {}, {}, notes), error
    for one, (hr, _) in found.items():
        count = len(_images(hr))
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
    for path in _images(hr):
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


def remedies(
    quality: Sequence[Quality], real: Sequence[RealQuality], data: Path, weights: Path
) -> list[str]:
    """How to get what rows lack.

    Args:
        quality: Rows of `measure_quality`.
        real: Rows of `measure_real_quality`.
        data: The folder of benchmark sets.
        weights: The folder of checkpoints.

    Returns:
        At most a line for the weights, one for the benchmark sets and one for photographs.
    """
    lines = []
    lacking = [
        row
        for row in (*quality, *real)
        if row.note.startswith(NO_WEIGHTS) and not MODELS[row.model].shipped
    ]
    if lacking:
        names = dict.fromkeys(MODELS[row.model].weights(row.scale) for row in lacking)
        line = f"no weights: get them with: basicsr checkpoints download {' '.join(names)}"
        if weights != PRETRAINED_FOLDER:
            line += f", and move them from {PRETRAINED_FOLDER} to {weights}"
        lines.append(line)
    sets = dict.fromkeys(row.dataset for row in quality if row.note.startswith(NO_IMAGES))
    if sets:
        lines.append(
            "no images: make them with: basicsr prepare benchmarks --src DIR "
            f"--out {data} --sets {' '.join(sets)}, where DIR has the sets as they were downloaded"
        )
    if any(row.note.startswith(NO_IMAGES) for row in real):
        lines.append("no photographs: name a folder of real ones with --real FOLDER")
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
    printed = printed_row(model, scale)
    data = MODELS[model].shipped_data
    trained_on = data and f"trained on {data}; the paper's on {MODELS[model].trained_on}"
    rows = []
    for dataset in BENCHMARK_SETS:
        paper_psnr, _, paper_ssim = printed.get(dataset.lower(), "").partition("/")
        misprint = MISPRINTS.get(
            (MODELS[model].trained_on, MODELS[model].method, scale, dataset.lower())
        )
        note = "; ".join(filter(None, (notes[dataset], trained_on, misprint)))
        measured = figures.get(dataset, {})
        psnr, ssim = measured.get("psnr", ""), measured.get("ssim", "")
        plain = "{:.2f} / {:.4f}".format(*bicubic[dataset]) if dataset in bicubic else ""
        rows.append(Quality(model, scale, dataset, psnr, ssim, paper_psnr, paper_ssim, plain, note))
    return rows


def measure_real_quality(
    model: str, scale: int, photographs: Path, weights: Path, out: Path
) -> tuple[RealQuality, UserError | None]:
    """Measure what needs no ground truth: NIQE (BasicSR's), and more where pyiqa is installed.

    Args:
        model: A key of `MODELS`, of a model for real photographs.
        scale: Its scale.
        photographs: Folder of LR photographs.
        weights: Folder with the checkpoints.
        out: Folder to run in; the results are kept in it, below `results`.

    Returns:
        A row, measured or saying what is missing; and the error if the test could not be run.
    """
    checkpoint, run = MODELS[model].file(scale, weights), f"{model}_x{scale}"
    count = len(_images(photographs)) if photographs.is_dir() else 0

    def row(scores: dict[str, str], note: str = "") -> RealQuality:
        return RealQuality(model, scale, photographs.name, count, scores, note)

    if not checkpoint.is_file():
        return row({}, f"{NO_WEIGHTS}{checkpoint}"), None
    if not count:
        return row({}, f"{NO_IMAGES}{photographs}"), None
    try:
        verify_checkpoint(checkpoint)
        network_g = MODELS[model].network_g(scale)
        dataset = {"type": "SingleImageDataset", "dataroot_lq": str(photographs.resolve())}
        metrics = {"niqe": {"type": "calculate_niqe", "crop_border": 0, "better": "lower"}}
        sets = {photographs.name: dataset}
        figures = _run_test(run, network_g, checkpoint, sets, metrics, out)
    except UserError as error:
        return row({}, f"failed: {error}"), error
    scores = figures[photographs.name]
    more, note = _scores_by_pyiqa(out / "results" / run / "visualization" / photographs.name)
    return row({**scores, **more}, note), None


def _scores_by_pyiqa(folder: Path) -> tuple[dict[str, str], str]:
    """Means over a folder's images by metric, and why there are not more."""
    try:
        import pyiqa
    except ImportError:
        return {}, f"{', '.join(PYIQA_METRICS)}: pip install pyiqa"
    scores, failures = {}, []
    for name in PYIQA_METRICS:
        try:
            metric = pyiqa.create_metric(name)
            scores[name] = f"{np.mean([float(metric(str(path))) for path in _images(folder)]):.4f}"
        except Exception as error:
            # Most likely the metric's own weights, which pyiqa downloads.
            failures.append(f"{name}: {(str(error).splitlines() or [type(error).__name__])[0]}")
    return scores, "; ".join(failures)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _paired(hr: Path, lr: Path, scale: int) -> dict[str, str]:
    return {
        "type": "PairedImageDataset",
        "dataroot_gt": str(hr.resolve()),
        "dataroot_lq": str(lr.resolve()),
        "filename_tmpl": f"{{}}x{scale}",
    }


def pipeline_options(
    name: str,
    network_g: dict[str, Any],
    checkpoint: Path,
    sets: dict[str, dict[str, str]],
    metrics: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Put together an option file for `basicsr test` under the paper's protocol.

    Args:
        name: Name of the run.
        network_g: The network's option block.
        checkpoint: Its weights; params_ema is taken.
        sets: Type and folders of each data set by name.
        metrics: As in an option file.

    Returns:
        The options. Pictures are kept where they are all that there is to look at.
    """
    return {
        "name": name,
        "model_type": "ESCModel",
        "scale": network_g["upscaling_factor"],
        "num_gpu": "auto",
        "manual_seed": 0,
        "datasets": {
            f"test_{number}": {"name": dataset, **options, "io_backend": {"type": "disk"}}
            for number, (dataset, options) in enumerate(sets.items(), start=1)
        },
        "network_g": network_g,
        "path": {
            "pretrain_network_g": str(checkpoint.resolve()),
            "param_key_g": "params_ema",
            "strict_load_g": True,
        },
        "val": {
            "save_img": all("dataroot_gt" not in options for options in sets.values()),
            "suffix": None,
            "pbar": True,
            "metrics": metrics,
        },
    }


def _run_test(
    run: str,
    network_g: dict[str, Any],
    checkpoint: Path,
    sets: dict[str, dict[str, str]],
    metrics: dict[str, dict[str, Any]],
    out: Path,
) -> dict[str, dict[str, str]]:
    """Run `basicsr test` in a process of its own, since BasicSR keeps one logger for a process."""
    options = pipeline_options(run, network_g, checkpoint, sets, metrics)
    file = out / f"test_{run}.yml"
    write_atomically(file, yaml.safe_dump(options, sort_keys=False).encode())
    command = basicsr_command("test", "-opt", file.resolve())
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
    if lost := [one for one in sets if not metrics.keys() <= figures.get(one, {}).keys()]:
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
