"""The papers' training sets: DIV2K and sets like it, and DFLIP."""

import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from esc_arch.errors import UserError, printable
from esc_arch.prepare.download import download
from esc_arch.prepare.images import IMAGE_SUFFIXES
from esc_arch.prepare.known_sets import DIV2K_ADDRESS, DIV2K_ARCHIVE, TRAINING_SETS
from esc_arch.prepare.subimages import Cutting, Source, find_sources, pack_sub_images
from esc_arch.whole_files import write_atomically

# Of an archive of images; BMP files can be compressed, photographs by no more.
LARGEST_EXPANSION = 20


def prepare_training_set(
    name: str,
    hr: list[Path],
    out: Path,
    scales: tuple[int, ...],
    cutting: Cutting,
    lr: dict[int, Path] | None = None,
    count: int | None = None,
    workers: int | None = None,
) -> dict[str, int]:
    """Make `NAME_train_HR_sub.lmdb`, `NAME_train_LR_bicubic_X2_sub.lmdb` and so on.

    Args:
        name: The set. DIV2K must be whole: 0001 to 0800.
        hr: Folders with its HR images.
        out: The folder to make the LMDBs in.
        scales: Scales to make LR for.
        cutting: How to cut.
        lr: Folders with official LR by scale; for other scales LR is made.
        count: Images the set must have; None for what is known of it, 0 for any.
        workers: Processes; default the cores.

    Returns:
        What `pack_sub_images` counts.

    Raises:
        UserError: Images are missing, damaged or too small, or the LMDBs cannot be written.
    """
    if Path(name).name != name:
        raise UserError(f"--name {name}: the start of a file name is needed; --out is the folder")
    sources = find_sources(hr, "--hr", lr)
    expected = TRAINING_SETS.get(name, 0) if count is None else count
    _check_count(name, "--hr", hr, sources, expected, "--count 0")
    databases = {1: out / f"{name}_train_HR_sub.lmdb"}
    for scale in scales:
        databases[scale] = out / f"{name}_train_LR_bicubic_X{scale}_sub.lmdb"
    return pack_sub_images(sources, databases, cutting, workers)


def prepare_dflip(
    folders: dict[str, Path],
    out: Path,
    cutting: Cutting,
    any_count: bool = False,
    workers: int | None = None,
) -> dict[str, int]:
    """Make `DFLIP_train_HR_sub.lmdb` of the HR images of several sets.

    Args:
        folders: Folder by name of the set; images in folders below it count too. Keys start with
            the name.
        out: The folder to make the LMDB in.
        cutting: How to cut.
        any_count: Do not ask for as many images as the sets are known to have.
        workers: Processes; default the cores.

    Returns:
        What `pack_sub_images` counts.

    Raises:
        UserError: Images are missing, damaged or too small, or the LMDB cannot be written.
    """
    sources: list[Source] = []
    problems: list[str] = []
    for name, folder in folders.items():
        option = f"--{name.lower()}"
        try:
            found = find_sources([folder], option, prefix=f"{name}_", recursive=True)
            expected = 0 if any_count else TRAINING_SETS.get(name, 0)
            _check_count(name, option, [folder], found, expected, "--any-count")
            sources += found
        except UserError as error:
            problems += error.lines
    if problems:
        raise UserError(*problems)
    return pack_sub_images(sources, {1: out / "DFLIP_train_HR_sub.lmdb"}, cutting, workers)


def download_div2k(folder: Path, address: str = DIV2K_ADDRESS, progress: bool = True) -> Path:
    """Download DIV2K's HR training images and unpack them.

    No checksum is published: that of the first download is kept beside the archive and checked
    from then on. Every image is checked against the archive's own.

    Args:
        folder: Where the archive and the images go.
        address: Where the archive lies; another for a mirror.
        progress: Show progress bars.

    Returns:
        The folder with the images.

    Raises:
        UserError: The download failed, or the archive is damaged.
    """
    archive = folder / DIV2K_ARCHIVE
    recorded = archive.with_name(archive.name + ".sha256")
    expected = recorded.read_text()[:64] or None if recorded.is_file() else None
    url = address.rstrip("/") + "/" + DIV2K_ARCHIVE
    digest = download(url, archive, expected, progress, begins=(b"PK",))
    images = folder / archive.stem
    unpack_images(archive, images, progress)
    # Only of an archive that was whole.
    if expected is None:
        write_atomically(recorded, f"{digest}  {archive.name}\n".encode())
    return images


def unpack_images(archive: Path, folder: Path, progress: bool = True) -> None:
    """Unpack the images of a zip archive into one folder; those already there are kept.

    Raises:
        UserError: The archive is damaged, or the folder cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [
                member
                for member in opened.infolist()
                if Path(member.filename).suffix.lower() in IMAGE_SUFFIXES
            ]
            _check_members(archive, members)
            for member in tqdm(members, archive.name, unit="image", disable=not progress):
                # The bare name: an archive must not choose the folder it writes to.
                path = folder / Path(member.filename).name
                if not path.is_file() or zlib.crc32(path.read_bytes()) != member.CRC:
                    write_atomically(path, opened.read(member))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        reason = printable(error)
        raise UserError(f"{archive}: {reason}; remove it to download it anew") from None
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}") from None


def _check_members(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse what is encrypted, far larger unpacked than images can be, or twice of one name.

    Raises:
        UserError: So it is.
    """
    names: dict[str, str] = {}
    for member in members:
        if member.flag_bits & 1:
            raise UserError(f"{archive}: {printable(member.filename)} is encrypted")
        # Without its folder, and as file systems that know no capitals have it.
        other = names.setdefault(Path(member.filename).name.lower(), member.filename)
        if other != member.filename:
            both = f"{printable(other)} and {printable(member.filename)}"
            raise UserError(f"{archive}: {both} would be one file, without their folders")
    unpacked, packed = sum(member.file_size for member in members), archive.stat().st_size
    if unpacked > LARGEST_EXPANSION * packed:
        raise UserError(
            f"{archive}: {packed} bytes that unpack to {unpacked}; images are compressed already, "
            "so this is no archive of images"
        )


def _check_count(
    name: str, option: str, folders: list[Path], sources: list[Source], count: int, waiver: str
) -> None:
    where = " ".join(map(str, folders))
    if name == "DIV2K" and count == TRAINING_SETS[name]:
        present = {source.hr.stem for source in sources}
        missing = [f"{i:04d}" for i in range(1, count + 1) if f"{i:04d}" not in present]
        if missing:
            some = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise UserError(
                f"{option} {where}: {len(missing)} of the {count} images of {name} are missing: "
                f"{some}; {waiver} takes any images"
            )
    if count and len(sources) != count:
        raise UserError(
            f"{option} {where}: {len(sources)} images, but {name} is to have {count}; "
            f"{waiver} takes any number"
        )
