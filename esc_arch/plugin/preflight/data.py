"""Data sets: their keys, and the folders, LMDBs and lists that they name."""

import inspect
import shlex
from typing import Any

from basicsr.utils.registry import DATASET_REGISTRY
from torch import nn

from esc_arch.plugin.preflight.dataset_files import UNDERSTOOD, check_content
from esc_arch.plugin.preflight.files import is_file, root_problem
from esc_arch.plugin.preflight.keys import check_io_backend, registered, unread_of
from esc_arch.plugin.preflight.registered import registered_type
from esc_arch.plugin.preflight.report import Path, Report
from esc_arch.plugin.preflight.table import DATA_REQUIRED, IO_BACKENDS, is_number
from esc_arch.plugin.preflight.wording import meant_type, one_line, show

_PHASES = {True: ("train", "val"), False: ("val", "test")}


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
        _check_one(report, path, value)
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


def _check_one(report: Report, path: Path, value: dict[str, Any]) -> None:
    """Check a data set; where there is none of its type, also what another would make of it."""
    other, lacking = _instead(path[1], value)
    besides = f" with {', '.join(lacking)} besides" if lacking else ""
    instead = f", or take {other}{besides}" if other else ""
    if "type" not in value:
        report.error((*path, "type"), f"missing; it names the data set's class{instead}")
    dataset = registered_type(report, DATASET_REGISTRY, (*path, "type"), "data set", instead)
    _contents(report, path, value, dataset)
    if dataset is None and other:
        # What would be wrong then, were it only told in a next round.
        as_other = {**value, "type": other}
        options = {**report.options, "datasets": {path[1]: as_other}}
        next_round = Report(options, report.is_train, wrong=report.wrong - {(*path, "type")})
        _contents(next_round, path, as_other, DATASET_REGISTRY.get(other))
        report.errors += [
            f"{line} (of {other})" for line in next_round.errors if line not in report.errors
        ]
        report.measured = report.measured or next_round.measured


def _contents(report: Report, path: Path, value: dict[str, Any], dataset: Any) -> None:
    """Check keys, values and files of a data set, as far as its class is known."""
    bases = inspect.getmro(dataset) if inspect.isclass(dataset) else ()
    if bases:
        unread_of(report, path, dataset)
    check_io_backend(report, (*path, "io_backend"))
    _values(report, path, value)
    kind = next((c.__name__ for c in bases if c.__name__ in UNDERSTOOD), None)
    backend_is_wrong = report.is_wrong((*path, "io_backend"))
    # What the roots are to a backend of others is not known.
    if backend_is_wrong or report.get(*path, "io_backend", "type") in (None, *IO_BACKENDS):
        if _roots(report, path, value) and kind and not backend_is_wrong:
            check_content(report, path, value, kind)


def _instead(phase: str, value: dict[str, Any]) -> tuple[str, list[str]]:
    """What could be taken for a data set of another repository, and what that needs besides."""
    name = value.get("type")
    if isinstance(name, str) and (meant := meant_type(name, DATA_REQUIRED)):
        return meant.removesuffix("?").rpartition(" ")[2], []
    if "dataroot_gt" not in value or any("kernel" in str(key) for key in value):
        return "", []
    name = "PairedImageDataset" if "dataroot_lq" in value else "DownsampleImageDataset"
    always, training = DATA_REQUIRED[name]
    needs = [*always, *(training if phase == "train" else ())]
    return name, [key for key in needs if key not in value]


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
    own = report.get(*path, "scale")
    if is_number(own) and is_number(scale) and own != scale:
        report.warn(
            (*path, "scale"), f"{own} has no effect: that of the top level is taken, {scale}"
        )
    if isinstance(value.get("type"), str) and value["type"] in DATA_REQUIRED:
        _values_of_basicsr(report, path, value)
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


def _values_of_basicsr(report: Report, path: Path, value: dict[str, Any]) -> None:
    """Check values that BasicSR's own data sets would fail at, or pass over."""
    place = (*path, "gt_size")
    read = path[1] == "train" and not report.is_unread(place)
    if read and "gt_size" in value and value["gt_size"] in (None, ""):
        report.error(place, f"must be a whole number at least 1, not {show(value['gt_size'])}")
    for one, other in (("mean", "std"), ("std", "mean")):
        given = value.get(one)
        if given is not None and value.get(other) is None:
            report.error((*path, other), f"missing; {one} is there, and both are needed")
        elif one == "std" and isinstance(given, list) and 0 in given:
            report.error((*path, one), f"{show(given)}: pictures are divided by it")
    colour = value.get("color")
    if isinstance(colour, str) and colour != "y" and colour.lower() != "rgb":
        report.warn((*path, "color"), f"{show(colour)} has no effect; y is grey, all else RGB")


def _roots(report: Report, path: Path, value: dict[str, Any]) -> bool:
    """Check that the folders and LMDBs of a data set are there; whether they are."""
    backend = value.get("io_backend")
    kind = backend.get("type") if isinstance(backend, dict) else None
    is_lmdb, is_disk = kind == "lmdb", kind == "disk"
    all_there = True
    for key, location in value.items():
        place = (*path, key)
        if not isinstance(key, str) or not key.startswith("dataroot"):
            continue
        if report.is_wrong(place) or report.is_unread(place):
            all_there = all_there and not report.is_wrong(place)
            continue
        problem = None
        if isinstance(location, list):
            problem = "must be one path, not a list: BasicSR reads one folder or LMDB a data set"
        elif location is not None or key in ("dataroot_gt", "dataroot_lq"):
            problem = root_problem(location, is_lmdb, is_disk)
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


# What BasicSR's data sets have in a sample, and what its models take out of it to train.
_DEGRADED = {"gt", "kernel1", "kernel2", "sinc_kernel"}
_HELD = {
    **dict.fromkeys(("PairedImageDataset", "RealESRGANPairedDataset"), {"lq", "gt"}),
    "DownsampleImageDataset": {"lq", "gt"},
    "SingleImageDataset": {"lq"},
    "RealESRGANDataset": _DEGRADED,
    "FFHQDataset": {"gt"},
}
_TAKEN = {"SRModel": {"lq", "gt"}, "RealESRNetModel": _DEGRADED, "RealESRGANModel": _DEGRADED}
# RealESRGANDataset makes all its pictures this large.
_DEGRADED_SIDE = 400


def check_samples(report: Report, model: type | None) -> None:
    """Check that data sets hold what the model takes: the first step would end the run."""
    maker = _first_with(model, "feed_data")
    for phase, value in report.section("datasets").items():
        path = ("datasets", phase, "type")
        dataset = registered(DATASET_REGISTRY, report.get(*path))
        held = _HELD.get(_first_with(dataset, "__getitem__"))
        if maker not in _TAKEN or held is None:
            continue
        trains, degrades = phase == "train", report.options.get("high_order_degradation", True)
        taken = _TAKEN[maker if trains and degrades else "SRModel"]
        lacking = sorted((taken if trains else {"lq"}) - held)
        size = report.get("gt_size")
        if trains and taken is held is _DEGRADED and is_number(size) and size > _DEGRADED_SIDE:
            report.error(("gt_size",), f"{size} is more than {_DEGRADED_SIDE}, as pictures are cut")
        if lacking:
            fitting = [name for name, has in _HELD.items() if taken <= has]
            fitting += ["high_order_degradation: false"] if taken is _DEGRADED else []
            report.error(
                path,
                f"{value['type']} has no {', '.join(lacking)}, which {report.get('model_type')} "
                f"takes{' to train' if trains else ''}: write {' or '.join(fitting)}",
            )


def _first_with(cls: Any, method: str) -> str | None:
    """The class that a method is of: BasicSR's or this package's, without what only adds to it."""
    for each in inspect.getmro(cls) if inspect.isclass(cls) else ():
        is_basicsrs = each.__module__.startswith("basicsr.")
        if method in vars(each) and (is_basicsrs or not each.__module__.startswith("esc_arch.")):
            return each.__name__ if is_basicsrs else None
        if each.__name__ in _HELD:
            return each.__name__
    return None


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
