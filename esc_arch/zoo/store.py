"""Reading and writing checkpoints: whole files only, and never code from a file.

Writing goes beside the target and is renamed into place, so that a run killed at any moment leaves
the older file or the new one, never half of one. Reading checks every byte's checksum, which
`torch.load` does not, and loads tensors and plain containers only.
"""

import io
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esc_arch.errors import UserError

TEMPORARY_SUFFIX = ".tmp"


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write a file so that it is either absent (or as before) or complete, even after a power cut.

    Args:
        path: Where to write; the folder must exist.
        content: All of the file.

    Raises:
        OSError: The disk is full, the folder is missing, ...; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def save_state(state: Any, path: str | os.PathLike) -> None:
    """`torch.save`, atomically.

    The file is put together in memory first: torch reports a full disk as an internal assertion,
    plain file writing as an OSError that says so.

    Args:
        state: What `load_state` is to return.
        path: Where to write; the folder must exist.

    Raises:
        OSError: As `write_atomically`.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getbuffer())


def load_state(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint (.pth, .pt, .state or .safetensors) onto the CPU without running its code.

    Args:
        path: The file. Its content decides how it is read, the name only tells .safetensors.

    Returns:
        What the file holds: for BasicSR's files `params` and perhaps `params_ema`, each a mapping
        from names to tensors; for a .safetensors file the tensors by name.

    Raises:
        UserError: One line: the file is missing, truncated, damaged, of another kind, or holds a
            pickle that would run code.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path):
            # torch does not compare the checksums that it writes.
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise UserError(f"{path}: damaged: the checksum of '{damaged}' in it is wrong")
        with warnings.catch_warnings():
            # The warning about foreign pickle protocols: what it warns of is an error below.
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; a checkpoint file is expected") from None
    except PermissionError:
        raise UserError(f"{path}: cannot be read: permission denied") from None
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(_explain_refusal(path, str(error))) from None
    except Exception as error:
        # Damaged bytes can surface as nearly any exception from within the unpickler.
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise UserError(
            f"{path}: not a checkpoint, or not a whole one ({path.stat().st_size} bytes): "
            f"{type(error).__name__}{': ' if reason else ''}{reason}"
        ) from None
    if not isinstance(state, Mapping):
        raise UserError(
            f"{path}: holds a {type(state).__name__}; a checkpoint holds a mapping of names"
        )
    return state


def select_params(
    state: Mapping[str, Any], path: str | os.PathLike, param_key: str | None = "params"
) -> dict[str, Tensor]:
    """Pick one network's tensors out of a checkpoint, as BasicSR's `param_key_g` does.

    Args:
        state: What `load_state` returned.
        path: The file, for the error.
        param_key: `params`, `params_ema`, ...; where it is absent `params` is taken, and where that
            is absent too, a file that holds the tensors directly. None takes the file as it is.

    Returns:
        Names to tensors, without the `module.` that DataParallel puts in front.

    Raises:
        UserError: There are no such tensors in the file.
    """
    for key in (param_key, "params"):
        if key is not None and key in state:
            state = state[key]
            break
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(value, Tensor) for value in state.values())
    ):
        keys = ", ".join(map(str, list(state)[:5])) if isinstance(state, Mapping) else "no mapping"
        raise UserError(f"{path}: has no tensors under '{param_key}' (it has: {keys or 'nothing'})")
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_weights(
    network: nn.Module, weights: Mapping[str, Tensor], path: str | os.PathLike, strict: bool = True
) -> None:
    """Load tensors into a network.

    Args:
        network: The network; may be without memory for its weights (on `meta`).
        weights: What `select_params` returned.
        path: The file, for the error.
        strict: Whether names must be the same on both sides.

    Raises:
        UserError: They do not fit.
    """
    try:
        network.load_state_dict(weights, strict=strict)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        shown = " ".join(reasons[:2]) + (" ..." if len(reasons) > 2 else "")
        raise UserError(
            f"{path}: does not fit {type(network).__name__} with these options: {shown}"
        ) from None


def newest_whole_state(
    states: Path, models: Path, networks: Iterable[str]
) -> tuple[Path | None, list[str]]:
    """Find the training state to resume from.

    Args:
        states: Folder of the training states, `ITERATION.state`.
        models: Folder of the weights, `NETWORK_ITERATION.pth`.
        networks: Labels of the networks whose weights belong to a state, such as `net_g`.

    Returns:
        The state of the highest iteration that is whole and whose weights are, or None; and for
        each newer one a line that says why it is not taken.
    """
    networks = list(networks)
    skipped = []
    found = [path for path in states.glob("*.state") if path.stem.isdigit()]
    for state in sorted(found, key=lambda path: int(path.stem), reverse=True):
        try:
            for path in (state, *(models / f"{name}_{state.stem}.pth" for name in networks)):
                load_state(path)
        except UserError as error:
            skipped.append(f"not resumed from iteration {state.stem}: {error}")
        else:
            return state, skipped
    return None, skipped


def remove_temporary_files(folder: Path) -> None:
    """Remove what a killed run was writing when it was killed.

    Args:
        folder: Where it wrote; need not exist.
    """
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def _explain_refusal(path: Path, message: str) -> str:
    """One line from the long text with which torch refuses a pickle."""
    found = re.search(r"(?:GLOBAL|Unsupported global: GLOBAL|class) ([\w.]+)", message)
    if found is None:
        return f"{path}: not a checkpoint of plain tensors: it cannot be unpickled"
    return (
        f"{path}: refused: the file asks to run or build '{found.group(1)}', and code from a file "
        "may do anything; a checkpoint of plain tensors is expected"
    )


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder last; Windows cannot open folders, and needs no such thing."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
