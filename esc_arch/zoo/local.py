"""Checkpoints on this machine: finding them by name, downloading them, checking what they are.

A wrong name is told without torch, which takes seconds to import.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from esc_arch.errors import UserError
from esc_arch.whole_files import file_sha256, write_atomically
from esc_arch.zoo import catalogue
from esc_arch.zoo.catalogue import PRETRAINED_FOLDER, PUBLISHED, SUFFIXES, Published

if TYPE_CHECKING:
    from esc_arch.zoo.loading import Checkpoint


def find(name_or_path: str | os.PathLike) -> Path | None:
    """The file that `resolve` returns, or None where there is none.

    Raises:
        UserError: It is neither a name nor a path.
    """
    path = _as_path(name_or_path)
    if os.path.isfile(path):
        return path
    name = catalogue.spelled_as_listed(name_or_path)
    if name is None:
        return None
    here = catalogue.shipped()
    if name in here:
        return here[name]
    downloaded = [PRETRAINED_FOLDER / f"{name}{suffix}" for suffix in SUFFIXES]
    return next((file for file in downloaded if file.is_file()), None)


def _as_path(name_or_path: object) -> Path:
    if not isinstance(name_or_path, (str, os.PathLike)):
        kind = type(name_or_path).__name__
        raise UserError(f"{kind}: the name of a checkpoint or the path of a file is needed")
    if not os.fspath(name_or_path):
        raise UserError(
            "the name of the checkpoint is empty; a file is needed, or a name that `basicsr "
            "checkpoints list` shows"
        )
    # Unlike pathlib's, it leaves the name of a user as it is who is not known.
    return Path(os.path.expanduser(name_or_path))


def resolve(name_or_path: str | os.PathLike) -> Path:
    """The file that a path, or the name of a published or shipped checkpoint, stands for.

    Nothing is downloaded: a run that starts unattended, perhaps on many machines, should not.

    Args:
        name_or_path: A path (`~` is the home folder), the name of a shipped checkpoint, or of a
            published one that is in `experiments/pretrained_models` below the current folder.

    Returns:
        The file. A download has the checksum that was recorded with it.

    Raises:
        UserError: There is none; the message says how to get it. Or the checksum is wrong.
    """
    path = find(name_or_path)
    if path is not None:
        check_checksum(path)
        return path
    given = os.fspath(name_or_path)
    where = _as_path(given)
    if os.path.isdir(where):
        raise UserError(f"{given}: is a folder; a checkpoint file is expected")
    if os.path.exists(where):
        return where  # A device or the like, which the reader refuses by its kind.
    stem = Path(given).name.removesuffix(".pth").removesuffix(".safetensors")
    if stem in PUBLISHED:
        raise UserError(
            f"{given}: no such checkpoint here; get it with: basicsr checkpoints download {stem}"
        )
    hint = catalogue.did_you_mean(stem)
    if not hint and catalogue.is_bare_name(given):
        hint = "; it is neither a file nor a name that `basicsr checkpoints list` shows"
    raise UserError(f"{given}: no such checkpoint{hint}")


def weights_of(name_or_path: str | os.PathLike | None, scale: int | None) -> Path:
    """As `resolve`; without a name, the weights for this scale that came with the package.

    Raises:
        UserError: As `resolve` and `catalogue.default_model`.
    """
    return resolve(catalogue.default_model(scale) if name_or_path is None else name_or_path)


def download_checkpoint(name: str, base_url: str | None = None, progress: bool = True) -> Path:
    """Download a published checkpoint into `experiments/pretrained_models`, unless it is there.

    The file takes its place only after it was found whole and to hold the network of that name.
    Its checksum is compared with the one known or, if none is, with that of an earlier download,
    and recorded beside it.

    Args:
        name: A key of `PUBLISHED`.
        base_url: Where the files are, `BASE_URL/NAME.pth`; by default the environment variable
            `ESC_CHECKPOINTS_URL`, and without that the authors' release.
        progress: Whether to show a progress bar.

    Returns:
        The file.

    Raises:
        UserError: No such name, no connection, or a file that is not what it should be.
    """
    from esc_arch.prepare.download import download

    entry = catalogue.published(name)
    path = PRETRAINED_FOLDER / f"{entry.name}.pth"
    if path.is_file():
        verify_checkpoint(path)
        return path
    base_url = base_url or os.environ.get(catalogue.MIRROR_VARIABLE) or catalogue.RELEASE_URL
    url = f"{base_url.rstrip('/')}/{entry.name}.pth"
    incoming = path.with_name(f"{path.name}.incoming")
    digest = download(url, incoming, sha256=entry.sha256 or _recorded(path), progress=progress)
    try:
        _check_published(entry, incoming, url)
        # The form that the sha256sum command checks with -c.
        write_atomically(_record(path), f"{digest}  {path.name}\n".encode())
        os.replace(incoming, path)
    finally:
        incoming.unlink(missing_ok=True)
    return path


def verify_checkpoint(path: str | os.PathLike) -> "Checkpoint":
    """Check a file as thoroughly as can be: checksum, tensors, and the network its name promises.

    Args:
        path: The file. One named as a published checkpoint must hold that network.

    Returns:
        What it holds.

    Raises:
        UserError: One line, what is wrong.
    """
    from esc_arch.zoo.loading import read_checkpoint

    path = Path(path)
    check_checksum(path)
    entry = PUBLISHED.get(path.stem)
    return read_checkpoint(path) if entry is None else _check_published(entry, path, str(path))


def _check_published(entry: Published, path: Path, source: str) -> "Checkpoint":
    from esc_arch.zoo.loading import read_checkpoint

    try:
        checkpoint = read_checkpoint(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), source)) from None
    found = {key: checkpoint.network_g.get(key) for key in entry.network_g}
    wrong = [key for key, value in entry.network_g.items() if found[key] != value]
    if wrong:
        raise UserError(
            f"{source}: is another network than {entry.name}: {wrong[0]} is {found[wrong[0]]} in "
            f"place of {entry.network_g[wrong[0]]}"
        )
    return checkpoint


def checksum_known(path: Path) -> bool:
    """Whether a checksum, published or recorded, says that the file is the right one.

    To be asked after `check_checksum`.
    """
    if _recorded(path) is not None:
        return True
    entry = PUBLISHED.get(path.stem)
    return entry is not None and entry.sha256 is not None and other_than_published(path) is None


def check_checksum(path: Path) -> None:
    """Compare a download with the checksum recorded beside it; for any other file do nothing.

    Raises:
        UserError: They differ.
    """
    expected = _recorded(path)
    if expected is not None and (found := file_sha256(path)) != expected:
        raise UserError(
            f"{path}: its sha256 is {found[:12]}..., not {expected[:12]}... as recorded in "
            f"{_record(path).name}: the file is damaged or another one; delete it and download it "
            "again, or rename it"
        )


def other_than_published(path: Path) -> str | None:
    """One line where a file has the name of a published checkpoint of another checksum.

    Only downloads are held to a checksum: weights that a user trained may have any name.
    """
    entry = PUBLISHED.get(path.stem)
    if entry is None or entry.sha256 is None or _recorded(path) is not None:
        return None
    if file_sha256(path) == entry.sha256:
        return None
    return f"{path}: not the published {entry.name} (its sha256 is another); taken as it is"


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str | None:
    try:
        with open(_record(path), encoding="utf-8") as file:
            text = file.read(100)
    except (OSError, UnicodeDecodeError):
        return None
    return text[:64].lower() if re.match(r"[0-9a-fA-F]{64}\b", text) else None
