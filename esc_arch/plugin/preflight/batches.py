"""Whether the pictures of a data set make a batch, and no more than an epoch can have."""

import math
import os

from esc_arch.plugin.compat.patching import gpu_count
from esc_arch.plugin.preflight.report import Path, Report
from esc_arch.plugin.preflight.table import is_number

# An epoch has an index for each, in one list.
MOST_SAMPLES = 10**8


def check_batch(report: Report, path: Path, count: int) -> None:
    """Check that the pictures make a batch, which is of all GPUs that the file asks for."""
    section = report.section(*path)
    key = "batch_size" if "batch_size" in section else "batch_size_per_gpu"
    batch, ratio = report.get(*path, key), section.get("dataset_enlarge_ratio", 1)
    processes = os.environ.get("WORLD_SIZE", "1")
    processes = max(int(processes), 1) if processes.isdigit() else 1
    if not (is_number(batch) and is_number(ratio)) or report.is_wrong((*path, key)):
        return
    said = f"{batch}"
    if key == "batch_size":
        batch //= processes
    else:
        gpus, steps = report.get("num_gpu"), report.get("train", "accumulate_steps")
        gpus = gpu_count() if gpus == "auto" else gpus
        for name, factor in (("num_gpu", gpus), ("accumulate_steps", steps)):
            if is_number(factor) and factor > 1 and not (name == "num_gpu" and processes > 1):
                batch, said = batch * factor, f"{said}, times {name} {factor}"
    if count * ratio > MOST_SAMPLES:
        place = (*path, "dataset_enlarge_ratio")
        report.error(
            place, f"{ratio:g} times {count} pictures are more than {MOST_SAMPLES} an epoch"
        )
        return
    samples = math.ceil(count * ratio / processes)
    if samples < batch:
        report.error(
            (*path, key),
            f"{said}, but there are {samples} pictures a process: not one batch; a larger "
            "dataset_enlarge_ratio uses each more often",
        )
