"""Keys and values of the sections that BasicSR and its models read: unknown, wrong, missing."""

import inspect
import re
from typing import Any

from basicsr.utils.registry import DATASET_REGISTRY

from esc_arch.plugin.preflight.hints import hint_for, is_grave, models_that_read
from esc_arch.plugin.preflight.known import is_known, keys_of_ours, keys_of_plugins, keys_read
from esc_arch.plugin.preflight.reading import walk
from esc_arch.plugin.preflight.report import Path, Report
from esc_arch.plugin.preflight.table import (
    AROUND,
    DATA_REQUIRED,
    DEGRADATION,
    FREE_TEXT,
    IO_BACKENDS,
    MODEL_REQUIRED,
    is_number,
    is_plain,
    loop_keys,
    matches,
    rule_of,
)
from esc_arch.plugin.preflight.wording import one_line, show

_EXPONENT_TEXT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
# BasicSR makes a folder of every other value under `path`.
_NO_FOLDERS = ("strict_load", "pretrain_network", "resume", "param_key")
_SECTIONS = {(key,) for key in ("datasets", "path", "train", "val", "logger", "dist_params")}
_SECTIONS |= {("logger", "wandb")}
_DATA = ("datasets",)
# What these hold is handed on as keywords.
_CHECKED_AS_CALLED = re.compile(r"network_.*|optim_.*|scheduler|metrics|.*_opt")
# BasicSR sets these itself, whatever the file says, in training and in testing.
_SET_BY_BASICSR = {
    True: ("models", "training_states", "log", "visualization"),
    False: ("results_root", "log", "visualization"),
}


def check_text_keys(report: Report) -> None:
    """Refuse keys that are no text: BasicSR fails as it logs the options."""
    for path, _ in walk(report.options):
        if not isinstance(path[-1], str):
            report.error(tuple(map(str, path)), "a key must be text; put it in quotes")
        elif not is_plain(path[-1]):
            report.error(tuple(map(str, path)), "a key must be without control characters")


def check_unread(report: Report, model: type | None) -> None:
    """Find the keys that nothing reads.

    Args:
        report: The options.
        model: The model; None where nobody knows what it reads.
    """
    sections: list[Path] = [(), ("val",)]
    if report.is_train:
        sections += [("train",), ("logger",), ("logger", "wandb"), ("dist_params",)]
    if model is not None:
        for section in sections:
            unread_of(report, section, model)
    check_paths(report, model)


def unread_of(report: Report, section: Path, reader: type) -> None:
    """Find the keys of a section that nothing reads.

    Args:
        report: The options.
        section: The section.
        reader: The model or data set that gets it.
    """
    known = loop_keys(section) | keys_read(reader, section)
    for key, value in report.section(*section).items():
        path = (*section, key)
        if path in report.wrong:
            continue
        if is_known(key, known):
            # Sections with a type are checked against what that takes; others hold more keys.
            is_own = isinstance(value, dict) and "type" not in value and section[:1] != _DATA
            if is_own and path not in _SECTIONS and not _CHECKED_AS_CALLED.fullmatch(key):
                unread_of(report, path, reader)
            continue
        report.unread.add(path)
        hint = hint_for(report, path, reader) or models_that_read(path, reader)
        if not is_grave(path, value):
            report.warn(path, f"nothing reads this key, it has no effect{hint}")
        else:
            report.error(path, f"nothing reads this key{hint}")


def check_paths(report: Report, model: type | None) -> None:
    """Refuse keys under `path` that nothing reads: BasicSR makes a folder of most."""
    known = loop_keys(("path",)) | (keys_read(model, ("path",)) if model else frozenset())
    for key, value in report.section("path").items():
        path = ("path", key)
        about_weights = any(word in key for word in _NO_FOLDERS)
        if key in _SET_BY_BASICSR[report.is_train]:
            folder = "experiments" if report.is_train else "results"
            report.warn(path, f"has no effect: BasicSR itself sets it, below {folder}/NAME")
            continue
        if about_weights and (is_known(key, known) or model is None):
            continue
        if report.is_train and key == "experiments_root":
            continue
        if model is not None and is_known(key, keys_of_plugins(model)):
            continue
        report.unread.add(path)
        if about_weights and _has_no_effect(report, key, value):
            report.warn(path, "nothing reads this key, it has no effect")
            continue
        # What is of a network of the file is not misspelt.
        is_right = about_weights and f"network_{key.rpartition('_')[2]}" in report.options
        hint = "" if is_right else hint_for(report, path, model)
        folder = "" if about_weights else ", and BasicSR makes a folder of it"
        report.error(path, f"nothing reads this key{folder}{hint}")


def _has_no_effect(report: Report, key: str, value: Any) -> bool:
    """Whether a key under `path` is about weights of which none are loaded."""
    if value is None:
        return True
    kind, _, network = key.rpartition("_")
    if kind not in ("strict_load", "param_key"):
        return False
    is_network = f"network_{network}" in report.options or network in ("g", "d")
    return is_network and report.get("path", f"pretrain_network_{network}") is None


def check_values(report: Report, model: type | None) -> None:
    """Check types and ranges of all options that something reads.

    Args:
        report: The options.
        model: The model without what `durable` adds; None where it is not known.
    """
    skipped = () if report.is_train else ("train", "logger")
    for path, value in walk(report.options):
        if not all(isinstance(key, str) for key in path):
            continue
        if path[0] in skipped or report.is_unread(path) or report.is_wrong(path):
            continue
        if isinstance(value, str) and _EXPONENT_TEXT.fullmatch(value.strip()):
            is_free = any(matches(path, pattern) for pattern in FREE_TEXT)
            if not is_free and not _is_a_plugins(report, path, model):
                report.error(
                    path,
                    f"'{value}' is text to YAML, which wants a decimal point in such a number: "
                    f"write {_with_point(value.strip())}",
                )
                continue
        rule = rule_of(path)
        wanted = rule(value) if rule else None
        if wanted and not _is_a_plugins(report, path, model):
            # "is too long ...: 200 bytes" tells what it is itself.
            tells = wanted.startswith("is ")
            report.error(path, wanted if tells else f"{wanted}, not {show(value)}")


def _is_a_plugins(report: Report, path: Path, model: type | None) -> bool:
    """Whether an option, or a section that it is in, is read by a plugin only, as this means it."""
    for depth in range(1, len(path) + 1):
        *section, key = path[:depth]
        reader = model
        if section[:1] == ["datasets"] and section[1:]:
            reader = registered(DATASET_REGISTRY, report.get(*section[:2], "type"))
        if reader is None or not is_known(key, keys_of_plugins(reader)):
            continue
        basicsrs = loop_keys(tuple(section)) - AROUND
        if key not in basicsrs | keys_of_ours(reader, tuple(section)):
            return True
    return False


def _with_point(text: str) -> str:
    mantissa, exponent = re.split("[eE]", text)
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    # YAML 1.1 also wants the exponent's sign.
    return f"{mantissa}e{exponent if exponent[0] in '+-' else f'+{exponent}'}"


def check_required(report: Report, model: type | None) -> None:
    """Find what BasicSR surely reads, and is not there."""
    required = ["name", "model_type", "num_gpu", "datasets", "path"]
    if report.is_train:
        required += ["train", "train:total_iter", "logger", "logger:print_freq"]
        required += ["logger:save_checkpoint_freq"]
        if report.get("val") is not None:
            required += ["val:val_freq"]
    elif not (report.section("val").get("save_img") or report.section("val", "metrics")):
        report.warn(("val",), "has neither metrics nor save_img: nothing is measured nor saved")
    required += required_of_model(report, model)
    for phase, options in report.section("datasets").items():
        required += _required_of_data(phase, options)
    for key in required:
        _require(report, tuple(key.split(":")))


def required_of_model(report: Report, model: type | None) -> list[str]:
    """The options, by path, that a model cannot do without."""
    required: list[str] = []
    names = [c.__name__ for c in inspect.getmro(model)] if model else []
    for name in names:
        always, training = MODEL_REQUIRED.get(name, ((), ()))
        required += [*always, *(training if report.is_train else ())]
    degrades = {"RealESRNetModel", "RealESRGANModel"} & set(names)
    if degrades and report.is_train and report.options.get("high_order_degradation", True):
        required += DEGRADATION
    # Some models fill in what their bases must have.
    filled_in = getattr(model, "option_defaults", {})
    return [key for key in dict.fromkeys(required) if key not in filled_in]


def _required_of_data(phase: str, options: Any) -> list[str]:
    if not isinstance(options, dict):
        return []
    keys = ["name"]
    if phase == "train":
        keys += ["num_worker_per_gpu"]
        keys += [] if "batch_size" in options else ["batch_size_per_gpu"]
    dataset = registered(DATASET_REGISTRY, options.get("type"))
    top = []
    for name in [c.__name__ for c in inspect.getmro(dataset)] if inspect.isclass(dataset) else ():
        always, training = DATA_REQUIRED.get(name, ((), ()))
        keys += [*always, *(training if phase == "train" else ())]
        top += ["scale"] if "dataroot_lq" in always and "Single" not in name else []
        top += ["scale"] if name == "DownsampleImageDataset" else []
    return top + [f"datasets:{phase}:{key}" for key in dict.fromkeys(keys)]


def _require(report: Report, path: Path) -> None:
    for depth in range(1, len(path) + 1):
        above = report.options if depth == 1 else report.get(*path[: depth - 1])
        if not isinstance(above, dict):
            return
        if path[depth - 1] not in above:
            if not report.is_wrong(path[:depth]):
                report.error(path[:depth], "missing")
            return


def check_io_backend(report: Report, path: Path, safety_only: bool = False) -> None:
    """Check where a data set is read from: backends run code and open files by their options."""
    from basicsr.utils.file_client import FileClient

    backend = report.get(*path)
    if not isinstance(backend, dict):
        return
    kind = backend.get("type")
    if kind == "memcached":
        report.error((*path, "type"), "memcached is refused: it imports code from sys_path")
        return
    if kind is None:
        report.error((*path, "type"), "missing; disk or lmdb")
        return
    others = [name for name in FileClient._backends if name not in ("memcached", *IO_BACKENDS)]
    if kind in others:
        return
    if not isinstance(kind, str) or kind not in IO_BACKENDS:
        known = ", ".join([*IO_BACKENDS, *others])
        report.error((*path, "type"), f"must be one of {known}, not {show(kind)}")
        return
    for key, value in backend.items():
        rules = IO_BACKENDS[kind]
        if key == "type":
            continue
        if key not in rules:
            known = ", ".join(["type", *rules])
            report.error((*path, one_line(key)), f"{kind} takes no such key, only {known}")
        elif rules[key](value) and not safety_only:
            report.error((*path, key), f"{rules[key](value)}, not {show(value)}")


def registered(registry: Any, name: Any) -> Any:
    """BasicSR's lookup, without its print for names that carry the suffix; None if absent."""
    if not isinstance(name, str):
        return None
    found = registry._obj_map.get(name)
    return found if found is not None else registry._obj_map.get(f"{name}_basicsr")


def check_together(report: Report, model: type | None) -> None:
    """Check options of the run that depend on each other."""
    names = {c.__name__ for c in inspect.getmro(model)} if model else set()
    train = report.section("train")
    if str(report.get("name")).startswith("debug"):
        report.warn(
            ("name",),
            "begins with debug: BasicSR sets print_freq to 1, val_freq and save_checkpoint_freq "
            "to 8, and leaves out TensorBoard",
        )
    if "SRModel" in names and "SRGANModel" not in names and train:
        # Other losses that the model reads may do as well.
        losses = [key for key in train if key.endswith("_opt") and train[key]]
        if not any(not report.is_unread(("train", key)) for key in losses):
            report.error(("train", "pixel_opt"), "missing; there is no loss to train with")
    if train.get("mesa_opt") and "ESCModel" in names and not train.get("ema_decay"):
        report.error(("train", "mesa_opt"), "compares with the EMA network: set ema_decay, too")
    queue = report.get("queue_size")
    batch, total = (
        report.get("datasets", "train", key) for key in ("batch_size_per_gpu", "batch_size")
    )
    is_read = not report.is_unread(("queue_size",))
    if is_number(queue) and is_number(batch) and is_read and total is None:
        if queue % batch:
            report.error(
                ("queue_size",), f"{queue} must be a multiple of batch_size_per_gpu, {batch}"
            )
