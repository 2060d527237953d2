"""What kind of file a checkpoint is, by its content; the names of files do not decide."""

import json
import os
import stat
import zipfile
from pathlib import Path

from esc_arch.errors import UserError, printable
from esc_arch.file_kinds import HEAD, kind_of_file

# More than this in front of the tensors is no header that a network needs.
_LARGEST_HEADER = 100_000_000
# A file of tensors is stored, not compressed; one that says it unpacks to more is a bomb.
_LARGEST_RATIO = 20
# Networks have some thousands; each takes its time, however small it is.
_MOST_TENSORS = 50_000


def require_regular_file(path: Path) -> int:
    """Refuse what is no regular file, before anything is read that may never end.

    Returns:
        Its size in bytes.

    Raises:
        UserError: One line: missing, a folder, a pipe, a device.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise UserError(f"{printable(path)}: no such file") from None
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{printable(path)}: is a folder; a checkpoint file is expected")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{printable(path)}: is a pipe or a device; a regular file is needed")
    return found.st_size


def kind_of(path: Path) -> str:
    """Tell `safetensors`, `zip` (as torch writes today) and `pickle` (as torch wrote) apart.

    Raises:
        UserError: It is none of them; the line says what it is instead.
    """
    size = require_regular_file(path)
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read: {error.strerror}") from None
    if head.startswith(b"PK"):
        return "zip"
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= max(size, _LARGEST_HEADER):
        return "safetensors"
    if (found := kind_of_file(head)) is not None:
        raise UserError(f"{printable(path)}: is {found}, not a checkpoint")
    return "pickle"


def check_zip(path: Path) -> None:
    """Make sure that a zip is one of torch's and whole; torch compares no checksums.

    Raises:
        UserError: One line, what it is instead or what is damaged.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if any(name.endswith("constants.pkl") for name in names):
            raise UserError(
                f"{printable(path)}: is a TorchScript archive, which has code in it; not a "
                "checkpoint: save the network's state_dict()"
            )
        if not any(name.endswith("data.pkl") for name in names):
            first = f", with '{printable(names[0])}' in it" if names else ""
            raise UserError(
                f"{printable(path)}: is a zip of something else{first}; not a checkpoint"
            )
        unpacked = sum(member.file_size for member in members)
        if unpacked > _LARGEST_RATIO * size + 1_000_000:
            raise UserError(
                f"{printable(path)}: says that its {size:,} bytes unpack to {unpacked:,}; refused"
            )
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(
            f"{printable(path)}: damaged: the checksum of '{printable(damaged)}' in it is wrong"
        )


def check_count(tensors: int, path: str | os.PathLike) -> None:
    """Refuse more tensors than any network has: looking at each would take minutes in all.

    Raises:
        UserError: There are.
    """
    if tensors > _MOST_TENSORS:
        raise UserError(
            f"{printable(path)}: has {tensors:,} tensors; a network has at most {_MOST_TENSORS:,}"
        )


def safetensors_count(content: bytes) -> int:
    """The number of tensors of a .safetensors file, without reading its header as a whole."""
    length = int.from_bytes(content[:8], "little")
    return content.count(b'"dtype"', 8, 8 + length)


def safetensors_metadata(content: bytes) -> dict[str, str]:
    """The text that a .safetensors file carries beside its tensors.

    Args:
        content: At least its header.
    """
    length = int.from_bytes(content[:8], "little")
    found = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    return {str(key): str(value) for key, value in found.items()}
