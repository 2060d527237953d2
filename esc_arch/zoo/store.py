"""Reading and writing checkpoints: whole files only, and never code from a file.

Writing goes beside the target and is renamed into place, so that a run killed at any moment leaves
the older file or the new one, never half of one. Reading checks every byte's checksum, which
`torch.load` does not, and loads tensors and plain containers only.
"""

import codecs
import io
import os
import pickle
import re
import secrets
import stat
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from esc_arch.errors import UserError, printable
from esc_arch.zoo.content import check_zip, kind_of, safetensors_metadata

TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(r"\.esc-([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.tmp")

# PyTorch 2.4 takes bytes, which a pickle makes of text by this function, for code; newer ones know.
torch.serialization.add_safe_globals([codecs.encode])


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of another once it is complete.

    The name beside it is short, since the target's may be as long as can be, and cannot be
    guessed, so that nobody can plant a link there. The mode of an older file is kept.

    Args:
        path: Where the file goes; the folder must exist.

    Yields:
        The file, to be written and read; after an exception the older file is as it was.

    Raises:
        OSError: The disk is full, the folder is missing, ...; nothing is left behind.
    """
    path = Path(path)
    name = f".esc-{_this_machine()}-{os.getpid()}-{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    temporary = path.with_name(name)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            if hasattr(os, "fchmod") and path.is_file():
                os.fchmod(file.fileno(), stat.S_IMODE(os.stat(path).st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write a file so that it is either absent (or as before) or complete, even after a power cut.

    Args:
        path: Where to write; the folder must exist.
        content: All of the file.

    Raises:
        OSError: The disk is full, the folder is missing, ...; nothing is left behind.
    """
    with replacing(path) as file:
        file.write(content)


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed runs were writing when they were killed.

    Args:
        folder: Where they wrote; need not exist.
    """
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or (found[1] == _this_machine() and not _is_running(int(found[2]))):
            path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """As `remove_temporary_files`, for a folder of the user's: only what has our kind of name."""
    for path in folder.glob(f".esc-*{TEMPORARY_SUFFIX}"):
        found = _TEMPORARY.fullmatch(path.name)
        if found and found[1] == _this_machine() and not _is_running(int(found[2])):
            path.unlink(missing_ok=True)


def _this_machine() -> str:
    import platform

    return f"{zlib.crc32(platform.node().encode()):08x}"


def _is_running(process: int) -> bool:
    if process == os.getpid():
        return True
    if os.name != "posix":
        return True  # Where asking might end it.
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


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
    """Read a checkpoint (.pth, .ckpt, .state, .safetensors, ...) onto the CPU without its code.

    Args:
        path: The file. Its content decides how it is read, not its name.

    Returns:
        What the file holds: for BasicSR's files `params` and perhaps `params_ema`, each a mapping
        from names to tensors; for a .safetensors file the tensors by name. Later changes of the
        file do not reach the tensors.

    Raises:
        UserError: One line: the file is missing, truncated, damaged, of another kind, or holds a
            pickle that would run code.
    """
    return read_file(path)[0]


def read_file(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, str]]:
    """As `load_state`, with the text that a .safetensors file carries (else none)."""
    path = Path(path)
    kind = kind_of(path)
    metadata: dict[str, str] = {}
    try:
        if kind == "safetensors":
            import safetensors.torch

            content = path.read_bytes()
            state = safetensors.torch.load(content)
            metadata = safetensors_metadata(content)
        else:
            if kind == "zip":
                check_zip(path)
            with warnings.catch_warnings():
                # The warning about foreign pickle protocols: what it warns of is an error below.
                warnings.simplefilter("ignore")
                # As a file, since torch itself would go by the suffix of a path.
                with open(path, "rb") as file:
                    state = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError:
        raise UserError(f"{printable(path)}: cannot be read: permission denied") from None
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(_explain_refusal(path, str(error))) from None
    except Exception as error:
        # Damaged bytes can surface as nearly any exception from within the unpickler.
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise UserError(
            f"{printable(path)}: not a checkpoint, or not a whole one "
            f"({path.stat().st_size:,} bytes): "
            f"{type(error).__name__}{': ' if reason else ''}{printable(reason)}"
        ) from None
    if not isinstance(state, Mapping):
        raise UserError(
            f"{printable(path)}: holds a {type(state).__name__}; a checkpoint holds a mapping of "
            "names"
        )
    return state, metadata


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


def _explain_refusal(path: Path, message: str) -> str:
    """One line from the long text with which torch refuses a pickle."""
    found = re.search(r"(?:GLOBAL|Unsupported global: GLOBAL|class) ([\w.]+)", message)
    if found is None:
        return f"{printable(path)}: not a checkpoint of plain tensors: it cannot be unpickled"
    return (
        f"{printable(path)}: refused: the file asks to run or build '{found.group(1)}', and code "
        "from a file may do anything; a checkpoint of plain tensors is expected"
    )


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder last; Windows cannot open folders, and needs no such thing."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
