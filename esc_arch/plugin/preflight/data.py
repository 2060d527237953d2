"""Data sets: their keys, and the folders, LMDBs and lists that they name."""

import inspect
import math
import os
import shlex
from typing import Any

from basicsr.utils.registry import DATASET_REGISTRY
from torch import nn

from esc_arch.plugin.preflight import pictures
from esc_arch.plugin.preflight.files import is_file, root_problem
from esc_arch.plugin.preflight.keys import check_io_backend, unread_of
from esc_arch.plugin.preflight.pictures import Pictures, Unusable
from esc_arch.plugin.preflight.registered import registered_type
from esc_arch.plugin.preflight.report import Path, Report
from esc_arch.plugin.preflight.table import is_number, template
from esc_arch.plugin.preflight.wording import one_line, show

_PHASES = {True: ("train", "val"), False: ("val", "test")}
_PAIRED = {"PairedImageDataset", "RealESRGANPairedDataset"}
# Of these it is known what their lists and folders hold.
_UNDERSTOOD = {*_PAIRED, "SingleImageDataset", "DownsampleImageDataset", "RealESRGANDataset"}


def check_datasets(report: Report) -> None:
    """Check each data set, and them together."""
    sections = report.section("datasets")
    called: dict[Any, str] = {}
    for key, value in sections.items():
        path = ("datasets", key)
        phase = key.split("_")[0]
        if phase not in _PHASES[report.is_train] or (phase == "train" and key != "train"):
            wanted = "train, val or val_2" if report.is_train else "test_1, test_2 or val"
            report.error(path, f"the name of a data set must be like {wanted}")
        if not isinstance(value, dict):
            continue
        if "type" not in value:
            report.error((*path, "type"), "missing; it names the data set's class")
        dataset = registered_type(report, DATASET_REGISTRY, (*path, "type"), "data set")
        bases = inspect.getmro(dataset) if inspect.isclass(dataset) else ()
        if bases:
            unread_of(report, path, dataset)
        check_io_backend(report, (*path, "io_backend"))
        _values(report, path, value)
        roots_there = _roots(report, path, value)
        kind = next((c.__name__ for c in bases if c.__name__ in _UNDERSTOOD), None)
        if kind and roots_there:
            _files(report, path, value, kind)
        name = value.get("name")
        if phase != "train" and isinstance(name, str) and called.setdefault(name, key) != key:
            report.error(
                (*path, "name"),
                f"{show(name)} is datasets:{called[name]}'s name too: results would be mixed up",
            )
    if isinstance(report.get("datasets"), dict):
        if report.is_train and "train" not in sections:
            report.error(("datasets", "train"), "missing; it is the data to train on")
        if not report.is_train and not sections:
            report.error(("datasets",), "must have at least one data set, such as test_1")
        if not report.is_train:
            _offer_fewer(report, sections)


def _offer_fewer(report: Report, sections: dict[str, Any]) -> None:
    """Where some data sets are not there, say how to test on the others."""
    absent = {wrong[1] for wrong in report.wrong if wrong[2:] and wrong[2].startswith("dataroot")}
    faulty = {wrong[1] for wrong in report.wrong if wrong[0] == "datasets" and wrong[1:]}
    names = [
        value.get("name", key) if isinstance(value, dict) else key
        for key, value in sections.items()
        if key not in faulty
    ]
    if absent and names:
        words = one_line(" ".join(shlex.quote(str(name)) for name in names))
        report.errors.append(
            f"datasets: {len(absent)} of {len(sections)} cannot be read (above); to test on the "
            f"others only: --datasets {words}"
        )


def _values(report: Report, path: Path, value: dict[str, Any]) -> None:
    """Check values of a data set that depend on each other."""
    scale = report.get("scale")
    for place, size in ((path, report.get(*path, "gt_size")), ((), report.get("gt_size"))):
        if report.is_unread((*place, "gt_size")) or path[1] != "train":
            continue
        if is_number(size) and is_number(scale) and scale and size % scale:
            report.error((*place, "gt_size"), f"{size} must be a multiple of scale, {scale}")
    if value.get("prefetch_mode") == "cuda" and value.get("pin_memory") is not True:
        report.error((*path, "prefetch_mode"), "cuda needs pin_memory: true beside it")
    workers = 0 if path[1] != "train" else value.get("num_worker_per_gpu")
    if value.get("persistent_workers") is True and workers == 0:
        report.error((*path, "persistent_workers"), "must be false where there are no workers")
    for number in ("", "2"):
        names, weights = value.get(f"kernel_list{number}"), value.get(f"kernel_prob{number}")
        if isinstance(names, list) and isinstance(weights, list) and len(names) != len(weights):
            report.error(
                (*path, f"kernel_prob{number}"),
                f"has {len(weights)} values, but kernel_list{number} has {len(names)}",
            )


def _roots(report: Report, path: Path, value: dict[str, Any]) -> bool:
    """Check that the folders and LMDBs of a data set are there; whether they are."""
    backend = value.get("io_backend")
    is_lmdb = isinstance(backend, dict) and backend.get("type") == "lmdb"
    all_there = True
    for key, location in value.items():
        place = (*path, key)
        if not isinstance(key, str) or not key.startswith("dataroot"):
            continue
        if report.is_wrong(place) or report.is_unread(place):
            continue
        problem = None
        if isinstance(location, list):
            problem = "must be one path, not a list: BasicSR reads one folder or LMDB a data set"
        elif location is not None or key in ("dataroot_gt", "dataroot_lq"):
            problem = root_problem(location, is_lmdb)
        if problem:
            all_there = False
            report.error(place, problem)
    for key in ("meta_info", "meta_info_file"):
        location, place = value.get(key), (*path, key)
        if location is None or report.is_unread(place) or (is_lmdb and key == "meta_info"):
            continue
        if not isinstance(location, str):
            report.error(place, f"must be a path, not {show(location)}")
        elif not is_file(location):
            report.error(place, f"no such file: {one_line(location)}")
    return all_there


def _files(report: Report, path: Path, value: dict[str, Any], kind: str) -> None:
    """Check that the pictures of a data set are there, in pairs, and large enough."""
    backend = value.get("io_backend")
    is_lmdb = isinstance(backend, dict) and backend.get("type") == "lmdb"
    list_key = "meta_info" if kind.startswith("RealESRGAN") else "meta_info_file"
    listed = None if is_lmdb else value.get(list_key)
    place = (*path, list_key)
    if report.is_wrong(place) or (kind == "RealESRGANPairedDataset" and listed is not None):
        return
    main = "dataroot_lq" if kind == "SingleImageDataset" else "dataroot_gt"
    if not isinstance(value.get(main), str):
        return
    sides: dict[str, Pictures] = {}
    try:
        if listed is not None:
            sides[main] = pictures.in_list(listed, value[main])
        for key in (main, "dataroot_lq") if kind in _PAIRED else (main,):
            place = (*path, key)
            if key not in sides and isinstance(value.get(key), str) and value[key]:
                deep = kind == "RealESRGANDataset"
                root = value[key]
                sides[key] = pictures.in_lmdb(root) if is_lmdb else pictures.in_folder(root, deep)
    except Unusable as problem:
        report.error(place, str(problem))
        return
    except OSError as error:
        report.error(place, f"cannot be read: {error.strerror}")
        return
    if kind in _PAIRED and len(sides) == 2:
        _pairs(report, path, sides["dataroot_gt"], sides["dataroot_lq"], listed is not None)
    if sides[main].names and not report.is_wrong(path):
        _sizes(report, path, value, sides[main], kind)


def _pairs(report: Report, path: Path, gt: Pictures, lq: Pictures, listed: bool) -> None:
    if report.is_wrong((*path, "filename_tmpl")):
        return  # What the names of LQ are is not known.
    form = report.get(*path, "filename_tmpl")
    form = form if isinstance(form, str) and template(form) is None else "{}"
    if listed:
        lq.names = [pictures.partner(os.path.basename(name), form) for name in gt.names]
    problem = None if listed else pictures.pair_problem(gt, lq, form)
    for name in () if problem else gt.some():
        is_lmdb = bool(gt.known_sizes and lq.known_sizes)
        other = name if is_lmdb else pictures.partner(os.path.basename(name), form)
        exact = is_lmdb or path[1] == "train"
        problem = pictures.size_problem(gt.size(name), lq.size(other), report.get("scale"), exact)
        if problem:
            problem = f"{one_line(other)} {problem}"
            break
    if problem:
        report.error((*path, "dataroot_lq"), problem)


def _sizes(report: Report, path: Path, value: dict[str, Any], found: Pictures, kind: str) -> None:
    sizes = {name: size for name in found.some() if (size := found.size(name)) is not None}
    smallest = min(sizes, key=lambda name: min(sizes[name]), default=None)
    if path[1] == "train":
        _count(report, path, value, len(found.names))
        gt_size = report.get(*path, "gt_size")
        if smallest and is_number(gt_size) and kind != "RealESRGANDataset":
            height, width = sizes[smallest]
            if min(height, width) < gt_size:
                report.error(
                    (*path, "gt_size"),
                    f"{gt_size} is more than {one_line(smallest)} has, {width} x {height}",
                )
        return
    scale = report.get("scale") if kind == "SingleImageDataset" else 1
    for name in report.section("val", "metrics"):
        place = ("val", "metrics", name, "crop_border")
        border = report.get(*place)
        if not (smallest and is_number(border) and is_number(scale)):
            continue
        side = min(sizes[smallest]) * scale
        if 2 * border >= side:
            report.error(place, f"{border} leaves nothing of {one_line(smallest)}, of {side}")


def _count(report: Report, path: Path, value: dict[str, Any], count: int) -> None:
    key = "batch_size" if "batch_size" in value else "batch_size_per_gpu"
    batch, ratio = report.get(*path, key), value.get("dataset_enlarge_ratio", 1)
    processes = os.environ.get("WORLD_SIZE", "1")
    processes = max(int(processes), 1) if processes.isdigit() else 1
    if not (is_number(batch) and is_number(ratio)) or report.is_wrong(path):
        return
    samples = math.ceil(count * ratio / processes)
    if samples < (batch // processes if key == "batch_size" else batch):
        report.error(
            (*path, key),
            f"{batch}, but there are {samples} pictures a process: not one batch; a larger "
            "dataset_enlarge_ratio uses each more often",
        )


def check_networks_fit(report: Report, built: dict[str, nn.Module]) -> None:
    """Check networks against the data: channels, and a discriminator's fixed size."""
    convolutions = (m for m in built.get("network_g", nn.Module()).modules())
    first = next((m for m in convolutions if isinstance(m, nn.Conv2d)), None)
    for phase, value in report.section("datasets").items():
        grey = isinstance(value, dict) and value.get("color") == "y"
        grey = grey and value.get("type") in ("PairedImageDataset", "SingleImageDataset")
        if grey and first is not None and first.in_channels == 3:
            report.error(
                ("datasets", phase, "color"),
                "y gives pictures of one channel, but network_g takes three; leave color out, "
                "test_y_channel: true measures on Y",
            )
    options = report.section("network_d")
    network = built.get("network_d")
    if network is None or report.is_unread(("network_d",)):
        return
    parameter = inspect.signature(type(network).__init__).parameters.get("input_size")
    size = options.get("input_size", parameter.default if parameter else None)
    top = report.get("gt_size")
    gt_size = top if is_number(top) else report.get("datasets", "train", "gt_size")
    if is_number(size) and is_number(gt_size) and size != gt_size:
        report.error(
            ("network_d", "input_size"), f"is {size}, but gt_size is {gt_size}: must be the same"
        )
