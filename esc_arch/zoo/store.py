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
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from esc_arch.errors import UserError, printable
from esc_arch.whole_files import write_atomically
from esc_arch.zoo.content import (
    check_count,
    check_zip,
    kind_of,
    safetensors_count,
    safetensors_metadata,
)

# PyTorch 2.4 takes bytes, which a pickle makes of text by this function, for code; newer ones know.
torch.serialization.add_safe_globals([codecs.encode])


def save_state(state: Any, path: str | os.PathLike) -> None:
    """`torch.save`, atomically.

    The file is put together in memory first: torch reports a full disk as an internal assertion,
    plain file writing as an OSError that says so.

    Args:
        state: What `load_state` is to return.
        path: Where to write; a missing folder is made.

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
            check_count(safetensors_count(content), path)
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
