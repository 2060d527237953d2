"""Whether the files that an option file names are there, and fit together."""

import os
import re
from typing import Any

from torch import nn

from esc_arch.errors import UserError
from esc_arch.plugin.preflight.build import TooLarge, quietly
from esc_arch.plugin.preflight.report import Path, Report
from esc_arch.plugin.preflight.wording import meant_key, one_line, show
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


def root_problem(root: Any, is_lmdb: bool, is_disk: bool) -> str | None:
    """Why a `dataroot_*` cannot be read, and the command that makes it; None if it can.

    Args:
        root: The path.
        is_lmdb: Whether the data set's backend reads LMDBs.
        is_disk: Whether it reads folders of pictures; neither where the backend is wrong.
    """
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
    if is_disk and is_file(os.path.join(os.path.expanduser(root), "data.mdb")):
        return f"{one_line(root)}: is an LMDB; write io_backend: type: lmdb"
    with os.scandir(os.path.expanduser(root)) as entries:
        if not any(True for _ in entries):
            return f"{one_line(root)}: the folder is empty{_data_command(root)}"
    return None


# What the preparation makes, and the command for it.
_SETS = r"(?P<out>.*benchmarks)/(Set5|Set14|B100|Urban100|Manga109)/(HR|LR_bicubic/X[234])/?"
_PREPARATION = (
    (_SETS, "benchmarks --src DIR"),
    (r"(?P<out>.*)/DIV2K_train_(HR|LR_bicubic_X[234])_sub\.lmdb/?", "div2k --hr DIR"),
    (
        r"(?P<out>.*)/DF2K_train_(HR|LR_bicubic_X[234])_sub\.lmdb/?",
        "div2k --name DF2K --hr DIV2K_DIR FLICKR2K_DIR",
    ),
    (
        r"(?P<out>.*)/DFLIP_train_HR_sub\.lmdb/?",
        "dflip --div2k DIR --flickr2k DIR --lsdir DIR --diverseg-ip DIR",
    ),
    (r"(?P<out>.*)/(train_(HR|LR_bicubic_X2)_sub\.lmdb|val/(HR|LR_bicubic/X2))/?", "demo"),
)


def _data_command(root: str) -> str:
    """The end of an error: the command that makes a folder or LMDB; nothing where none does."""
    path = root.replace("\\", "/")
    for made, command in _PREPARATION:
        found = re.fullmatch(made, path)
        if found and (command != "demo" or found["out"].split("/")[-1] == "demo"):
            return f"; make it with: basicsr prepare {command} --out {one_line(found['out'])}"
    return ""


def checkpoint_problem(value: str, folder: str) -> str | None:
    """Why a checkpoint cannot be loaded, and how to get it; None if it is there.

    Args:
        value: A path, or the name of a published checkpoint.
        folder: Where option files lie.
    """
    try:
        resolve(value)
    except UserError as error:
        run = value.replace("\\", "/").split("/")
        if len(run) >= 4 and run[-4] == "experiments" and run[-2] == "models":
            path = os.path.join(folder, f"{run[-3]}.yml")
            if is_file(path):
                return f"{one_line(error)}; make it with: basicsr train -opt {one_line(path)}"
        return one_line(error)
    except (OSError, ValueError, RuntimeError) as error:
        return f"{one_line(value)}: cannot be read: {one_line(error)}"
    return None


def check_weights(
    report: Report, path: Path, value: str, network: nn.Module | None, strict: bool
) -> None:
    """Check that a checkpoint's weights can be loaded into a network.

    Args:
        report: The options.
        path: `path: pretrain_network_*`.
        value: A path, or the name of a published checkpoint, that is there.
        network: The network without memory for its weights; None if it could not be built so.
        strict: `strict_load_*`. Without it BasicSR leaves out what does not fit.
    """
    key = ("path", f"param_key_{path[1].removeprefix('pretrain_network_')}")
    if report.is_wrong(key):
        return
    given = report.section("path").get(key[1])
    wanted = "params" if given is None else given
    try:
        file = resolve(value)
        state = load_state(file)
        present = [str(name) for name in state if isinstance(state[name], dict)]
        if given is not None and present and given not in present:
            keys = one_line(", ".join(present))
            if given in ("params", "params_ema"):
                report.warn(key, f"{one_line(value)} has no {wanted}, only {keys}")
            else:
                hint = meant_key(str(wanted), present, 0.5)
                report.error(key, f"{one_line(value)} has no {show(wanted)}, only {keys}{hint}")
                return
        weights = select_params(state, file, wanted)
        if network is not None and strict:
            with quietly():
                load_weights(network, weights, file)
    except UserError as error:
        report.error(path, one_line(error))
    except (TooLarge, Exception):
        # Networks of others may load in ways that need real weights.
        return


def form_problem(opt_path: str, options: dict[str, Any]) -> str | None:
    """Whether a file has nothing of BasicSR's form, as other programs' have not.

    Args:
        opt_path: The option file.
        options: Its content.
    """
    parts = ("model_type", "datasets", "network_g", "path", "train", "val", "num_gpu")
    if any(part in options for part in parts):
        return None
    return one_line(
        f"-opt {opt_path}: is not an option file for BasicSR: it has none of {', '.join(parts)}"
    )


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
