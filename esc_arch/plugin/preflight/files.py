"""Whether the files that an option file names are there, and fit together."""

import os
import re
from typing import Any

from torch import nn

from esc_arch.errors import UserError
from esc_arch.plugin.preflight.rules import is_number
from esc_arch.plugin.preflight.sandbox import TooLarge, sandbox
from esc_arch.plugin.preflight.wording import one_line, show
from esc_arch.zoo.local import resolve
from esc_arch.zoo.params import load_weights, select_params
from esc_arch.zoo.store import load_state


def exists(path: str) -> bool:
    """Whether there is anything at a path; `~` is the home folder."""
    try:
        return os.path.exists(os.path.expanduser(path))
    except ValueError:
        return False


def is_file(path: str) -> bool:
    """Whether a path is a file; `~` is the home folder."""
    return exists(path) and os.path.isfile(os.path.expanduser(path))


def is_folder(path: str) -> bool:
    """Whether a path is a folder; `~` is the home folder."""
    return exists(path) and os.path.isdir(os.path.expanduser(path))


def root_problem(root: Any, is_lmdb: bool) -> str | None:
    """Why a `dataroot_*` cannot be read, and the command that makes it; None if it can."""
    if not isinstance(root, str) or not root.strip():
        return f"must be a path, not {show(root)}"
    if is_lmdb:
        if not root.endswith(".lmdb"):
            return f"{one_line(root)}: the name of an LMDB must end with .lmdb"
        if not is_folder(root):
            return f"no such LMDB: {one_line(root)}{_data_command(root)}"
        folder = os.path.expanduser(root)
        for name in ("data.mdb", "meta_info.txt"):
            if not is_file(os.path.join(folder, name)):
                return f"{one_line(root)}: has no {name}, so it is not whole{_data_command(root)}"
        return None
    if not is_folder(root):
        return f"no such folder: {one_line(root)}{_data_command(root)}"
    with os.scandir(os.path.expanduser(root)) as entries:
        if not any(True for _ in entries):
            return f"{one_line(root)}: the folder is empty{_data_command(root)}"
    return None


_PREPARATION = {
    "benchmarks": "benchmarks --src DIR",
    "DIV2K": "div2k --hr DIR",
    "DF2K": "div2k --name DF2K --hr DIV2K_DIR FLICKR2K_DIR",
    "DFLIP": "dflip --div2k DIR --flickr2k DIR --lsdir DIR --diverseg-ip DIR",
    "demo": "demo",
}


def _data_command(root: str) -> str:
    parts = root.replace("\\", "/").split("/")
    for name, command in _PREPARATION.items():
        if name in parts[:-1]:
            out = "/".join(parts[: parts.index(name) + 1])
            return f"; make it with: basicsr prepare {command} --out {out}"
    return ""


def checkpoint_problem(value: str) -> str | None:
    """Why a checkpoint cannot be loaded, and how to get it; None if it is there.

    Args:
        value: A path, or the name of a published checkpoint.
    """
    try:
        resolve(value)
    except UserError as error:
        run = value.replace("\\", "/").split("/")
        if len(run) >= 4 and run[-4] == "experiments" and run[-2] == "models":
            return f"{one_line(error)}; make it with: basicsr train -opt options/{run[-3]}.yml"
        return one_line(error)
    except (OSError, ValueError, RuntimeError) as error:
        return f"{one_line(value)}: cannot be read: {one_line(error)}"
    return None


def weights_problem(
    value: str, network: nn.Module | None, param_key: Any, strict: bool
) -> str | None:
    """Why a checkpoint's weights cannot be loaded into a network; None if they can.

    Args:
        value: A path, or the name of a published checkpoint, that is there.
        network: The network without memory for its weights; None if it could not be built so.
        param_key: Which weights of the file.
        strict: `strict_load_*`. Without it BasicSR leaves out what does not fit.
    """
    try:
        path = resolve(value)
        weights = select_params(load_state(path), path, param_key)
        if network is not None and strict:
            with sandbox():
                load_weights(network, weights, path)
    except UserError as error:
        return one_line(error)
    except (TooLarge, Exception):
        # Networks of others may load in ways that need real weights.
        return None
    return None


def purpose_problem(opt_path: str, options: dict[str, Any], is_train: bool) -> str | None:
    """Whether an option file for training is to be tested, or the reverse; with what to do.

    Args:
        opt_path: The option file.
        options: Its content.
        is_train: Whether it is to train.
    """
    datasets = options.get("datasets")
    keys = [key for key in datasets if isinstance(key, str)] if isinstance(datasets, dict) else []
    if not is_train and "train" in keys:
        partner = _partner(opt_path, "train_", "test_")
        name = options.get("name")
        weights = f"experiments/{name}/models/net_g_latest.pth"
        return one_line(
            f"-opt {opt_path}: is a training file (it has datasets:train); test with: basicsr test "
            f"-opt {partner or 'TEST_FILE'} --force_yml path:pretrain_network_g={weights}"
        )
    if is_train and keys and all(key.split("_")[0] == "test" for key in keys):
        partner = _partner(opt_path, "test_", "train_")
        return one_line(
            f"-opt {opt_path}: is a test file (it has datasets:{keys[0]} and no datasets:train); "
            f"train with: basicsr train -opt {partner or 'TRAINING_FILE'}"
        )
    return None


def _partner(opt_path: str, prefix: str, other: str) -> str | None:
    """The file beside one that is named as it but for the prefix, and perhaps shorter."""
    folder, name = os.path.split(opt_path)
    if not name.startswith(prefix):
        return None
    stem, end = os.path.splitext(other + name.removeprefix(prefix))
    while stem.strip("_") != other.strip("_"):
        path = os.path.join(folder, stem + end)
        if is_file(path):
            return path
        stem = stem.rpartition("_")[0]
    return None


def folder_pair_problem(
    gt_root: str, lq_root: str, template: str, scale: Any, exact: bool
) -> str | None:
    """Whether two folders hold the same pictures; sizes are looked at in a few of them."""
    gt_root, lq_root = os.path.expanduser(gt_root), os.path.expanduser(lq_root)
    gt_names, lq_names = (
        sorted(e.name for e in os.scandir(root) if e.is_file() and not e.name.startswith("."))
        for root in (gt_root, lq_root)
    )
    pairs = []
    for name in gt_names:
        stem, end = os.path.splitext(name)
        pairs.append((name, f"{template.format(stem)}{end}"))
    lacking = [pair for pair in pairs if pair[1] not in set(lq_names)]
    if lacking:
        gt_name, lq_name = lacking[0]
        return (
            f"{one_line(lq_root)} has no {one_line(lq_name)}, the partner of {one_line(gt_name)} "
            f"in dataroot_gt ({len(lacking)} of {len(pairs)} are missing; filename_tmpl is "
            f"'{template}')"
        )
    if len(gt_names) != len(lq_names):
        return (
            f"has {len(lq_names)} files, but dataroot_gt has {len(gt_names)}: they must be as many"
        )
    for gt_name, lq_name in _spread(pairs):
        gt_size = _image_size(os.path.join(gt_root, gt_name))
        lq_size = _image_size(os.path.join(lq_root, lq_name))
        problem = _size_problem(gt_size, lq_size, scale, exact)
        if problem:
            return f"{one_line(lq_name)} {problem}"
    return None


def _spread(pairs: list[Any], count: int = 8) -> list[Any]:
    """Some of them, from the first to the last."""
    if len(pairs) <= count:
        return pairs
    return [pairs[number * (len(pairs) - 1) // (count - 1)] for number in range(count)]


def _image_size(path: str) -> tuple[int, int] | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _size_problem(
    gt: tuple[int, int] | None, lq: tuple[int, int] | None, scale: Any, exact: bool
) -> str | None:
    if gt is None or lq is None:
        return "or its partner in dataroot_gt is not a picture that can be read"
    if not is_number(scale):
        return None
    # In validation BasicSR cuts GT to the size of LQ times the scale.
    fits = [
        g == size * scale if exact else size * scale <= g < (size + 1) * scale
        for g, size in zip(gt, lq, strict=True)
    ]
    if all(fits):
        return None
    return (
        f"is {lq[1]} x {lq[0]}, but its partner in dataroot_gt {gt[1]} x {gt[0]}: that is not "
        f"scale {scale}"
    )


def lmdb_pair_problem(gt_root: str, lq_root: str, scale: Any) -> str | None:
    """Whether two LMDBs hold the same pictures, by their lists."""
    listed = []
    for root in (gt_root, lq_root):
        try:
            with open(os.path.join(os.path.expanduser(root), "meta_info.txt")) as file:
                lines = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            return f"{one_line(root)}/meta_info.txt cannot be read: {one_line(error)}"
        listed.append({line.split(".")[0]: line for line in lines})
    gt, lq = listed
    if set(gt) != set(lq):
        odd = sorted(set(gt) ^ set(lq))
        return (
            f"holds other pictures than dataroot_gt: {len(gt)} there and {len(lq)} here, "
            f"{one_line(odd[0])} only in one"
        )
    if not gt:
        return "holds no pictures"
    for key in sorted(gt):
        sizes = [re.search(r"\((\d{1,6}),\s*(\d{1,6})", line) for line in (gt[key], lq[key])]
        if all(sizes):
            gt_size, lq_size = ((int(size[1]), int(size[2])) for size in sizes)
            problem = _size_problem(gt_size, lq_size, scale, exact=True)
            if problem:
                return f"{one_line(key)} {problem}"
    return None
