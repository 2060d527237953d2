"""LMDBs as BasicSR reads them, written so that an interrupted run can go on where it stopped."""

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import lmdb

from esc_arch.errors import UserError
from esc_arch.prepare.images import PNG_LEVEL, png_shape
from esc_arch.prepare.lmdb_look import fault_of_reading
from esc_arch.whole_files import remove_temporary_files, write_atomically

_FIRST_MAP_SIZE = 1 << 28
# A commit waits for the disk, so sub-images are held back until there are so many bytes, or so many
# seconds have passed.
_COMMIT_BYTES = 1 << 24
_COMMIT_SECONDS = 1.0


@dataclass(frozen=True)
class Fingerprint:
    """What tells whether the files that a source is made from are still the same.

    Attributes:
        stamp: Their sizes and modification times: read without opening them, but another one when
            they are only copied or touched.
        checksum: Of their contents.
    """

    stamp: str
    checksum: str


@dataclass(frozen=True)
class _Record:
    """A line of sources.tsv."""

    fingerprint: Fingerprint
    count: int
    shape: str
    note: str


class LmdbWriter:
    """Writes the sub-images of one data set into an LMDB folder.

    While it is being written the folder is called `NAME.lmdb.partial`; `finish` renames it. Beside
    `data.mdb` and `meta_info.txt`, which BasicSR reads, it has `recipe.json`, the settings the
    images were made with, and `sources.tsv`, one line for each source image that is in: name,
    stamp, checksum, number and shape of its sub-images, note. A source's line is written after its
    sub-images are on disk, so a source with a line is whole, and one without is made again.

    Args:
        path: The LMDB folder, ending in `.lmdb`.
        recipe: All settings that decide the contents, as JSON values.

    Attributes:
        complete: Whether the LMDB is finished; nothing can be put into it then.

    Raises:
        UserError: The folder exists and was made with other settings or by another tool, or
            cannot be made or opened.
    """

    def __init__(self, path: Path, recipe: dict) -> None:
        if path.suffix != ".lmdb":
            raise UserError(f"{path}: the name of an LMDB folder must end in .lmdb")
        self.path = path
        self._partial = path.with_name(path.name + ".partial")
        self._environment: lmdb.Environment | None = None
        self._pending: list[tuple[str, list[bytes], _Record]] = []
        self._pending_bytes = 0
        self._committed_at = time.monotonic()
        self.complete = path.exists()
        folder = path if self.complete else self._partial
        if not self.complete:
            _refuse_links(folder)
        try:
            self._sources = _read_sources(folder / "sources.tsv")
            is_ours = (folder / "recipe.json").exists() or not (folder / "data.mdb").exists()
            holds_images = any(record.count for record in self._sources.values())
            if not self.complete and not holds_images and is_ours:
                # New, or ended before anything in it counted, or with all images too small.
                self._sources = {}
                for left_over in ("data.mdb", "lock.mdb"):
                    (folder / left_over).unlink(missing_ok=True)
                write_atomically(folder / "recipe.json", _as_json(recipe))
            self._check_recipe(folder, recipe)
            if not self.complete:
                self._write_sources(self._partial)
                _refuse_damaged(folder)
                self._environment = lmdb.open(str(folder), map_size=_FIRST_MAP_SIZE)
        except (OSError, lmdb.Error) as error:
            raise _cannot_write(folder, error) from None

    def __enter__(self) -> "LmdbWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def has(self, source: str, stamp: str) -> bool:
        """Whether all sub-images of a source with this stamp are in."""
        record = self._sources.get(source)
        return record is not None and record.fingerprint.stamp == stamp

    def checksum(self, source: str) -> str | None:
        """Of the files that a source's sub-images were made from; None when none are in."""
        record = self._sources.get(source)
        return None if record is None else record.fingerprint.checksum

    def restamp(self, stamps: dict[str, str]) -> None:
        """Give sources new stamps, as their files have the same contents as before.

        Raises:
            UserError: The disk is full or not writable, and the LMDB is not complete.
        """
        if not stamps:
            return
        for name, stamp in stamps.items():
            record = self._sources[name]
            fingerprint = replace(record.fingerprint, stamp=stamp)
            self._sources[name] = replace(record, fingerprint=fingerprint)
        if self.complete:
            # Without it the next run only reads the files once more.
            with suppress(OSError):
                self._write_sources(self.path)
            return
        try:
            self._write_sources(self._partial)
        except OSError as error:
            raise _cannot_write(self._partial, error) from None

    def put(
        self, source: str, fingerprint: Fingerprint, images: list[bytes], note: str = ""
    ) -> None:
        """Add the sub-images of one source, as `SOURCE_s001`, `SOURCE_s002` and so on.

        Args:
            source: Name of the source image without its extension; also of the keys.
            fingerprint: Of the files that they are made from.
            images: PNG files, all of one shape. None at all also counts as done.
            note: Anything worth counting at the end, such as `grey`.

        Raises:
            UserError: The disk is full or not writable.
            ValueError: The images are no PNG files, or not of one shape.
        """
        shapes = {",".join(map(str, png_shape(image))) for image in images}
        if len(shapes) > 1:
            raise ValueError(f"{source}: sub-images of several shapes: {', '.join(shapes)}")
        record = _Record(fingerprint, len(images), "".join(shapes), note)
        self._pending.append((source, images, record))
        self._pending_bytes += sum(map(len, images))
        is_due = time.monotonic() - self._committed_at >= _COMMIT_SECONDS
        if is_due or self._pending_bytes >= _COMMIT_BYTES:
            self._commit()

    def counts(self) -> dict[str, int]:
        """Sources, sub-images, and sources by note, of what is committed."""
        records = list(self._sources.values())
        counts = {"sources": len(records), "sub-images": sum(record.count for record in records)}
        for note in (record.note for record in records if record.note):
            counts[note] = counts.get(note, 0) + 1
        return counts

    def finish(self, sources: dict[str, str]) -> None:
        """Check that every source is in, write meta_info.txt and rename the folder into place.

        Args:
            sources: Stamp of each source that belongs in. Others that an earlier run put in are
                removed.

        Raises:
            UserError: The disk is full or not writable.
            RuntimeError: A source is missing.
        """
        if self.complete:
            return
        self._commit()
        missing = [name for name in sources if not self.has(name, sources[name])]
        if missing:
            raise RuntimeError(f"{self.path}: {len(missing)} sources missing, such as {missing[0]}")
        try:
            self._remove([name for name in self._sources if name not in sources])
            if self.counts()["sub-images"] == 0:
                raise UserError(
                    f"{self.path}: no image is large enough for a sub-image; --min-side admits "
                    "smaller ones"
                )
            write_atomically(self._partial / "meta_info.txt", self._meta_info())
            self._write_sources(self._partial)
            self._environment.close()
            self._environment = None
            remove_temporary_files(self._partial)
            self._partial.rename(self.path)
        except (OSError, lmdb.Error) as error:
            raise _cannot_write(self._partial, error) from None
        self.complete = True

    def close(self) -> None:
        """Commit what was put and close; without `finish` the next run goes on from here."""
        if self._environment is None:
            return
        try:
            self._commit()
        finally:
            self._environment.close()
            self._environment = None

    def _check_recipe(self, folder: Path, recipe: dict) -> None:
        try:
            found = json.loads((folder / "recipe.json").read_text())
        except FileNotFoundError:
            raise UserError(
                f"{folder}: exists and was not made by this tool; move it away or choose another "
                "--out"
            ) from None
        wanted = json.loads(_as_json(recipe))
        differing = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
        if differing:
            key = differing[0]
            raise UserError(
                f"{folder}: was made with {key} {found.get(key)}, now {wanted.get(key)} is asked "
                "for; remove it or choose another --out"
            )

    def _meta_info(self) -> Iterator[bytes]:
        # Of what was noted, not of the LMDB: reading that would map all of it into memory.
        for name in sorted(self._sources):
            record = self._sources[name]
            for index in range(1, record.count + 1):
                yield _key(name, index) + f".png ({record.shape}) {PNG_LEVEL}\n".encode("ascii")

    def _write_sources(self, folder: Path) -> None:
        lines = [_source_line(name, self._sources[name]) for name in sorted(self._sources)]
        write_atomically(folder / "sources.tsv", "".join(lines).encode())

    def _commit(self) -> None:
        if not self._pending:
            return
        try:
            replaced = [name for name, *_ in self._pending if name in self._sources]
            self._remove(replaced)
            self._transact(self._put_pending)
            with (self._partial / "sources.tsv").open("a") as file:
                for name, _, record in self._pending:
                    file.write(_source_line(name, record))
                file.flush()
                os.fsync(file.fileno())
        except (OSError, lmdb.Error) as error:
            # Not kept for `close` to try again: it would fail alike.
            self._pending, self._pending_bytes = [], 0
            raise _cannot_write(self._partial, error) from None
        self._sources.update({name: record for name, _, record in self._pending})
        self._pending, self._pending_bytes = [], 0
        self._committed_at = time.monotonic()

    def _put_pending(self, transaction: lmdb.Transaction) -> None:
        for name, images, _ in self._pending:
            for index, content in enumerate(images, start=1):
                transaction.put(_key(name, index), content)
            # More of it may be there without a line, from a run killed in between.
            left_over = len(images) + 1
            while transaction.delete(_key(name, left_over)):
                left_over += 1

    def _remove(self, names: list[str]) -> None:
        """Forget sources. Their lines go first, so that none stands without its sub-images."""
        removed = {name: self._sources.pop(name) for name in names}
        if not removed:
            return
        self._write_sources(self._partial)

        def delete(transaction: lmdb.Transaction) -> None:
            for name, record in removed.items():
                for index in range(1, record.count + 1):
                    transaction.delete(_key(name, index))

        self._transact(delete)

    def _transact(self, change) -> None:
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    change(transaction)
                return
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])


def _refuse_links(folder: Path) -> None:
    """The names in an unfinished LMDB can be guessed: nothing is written through links there.

    Raises:
        UserError: There is one.
    """
    for path in (folder, *(folder / name for name in ("data.mdb", "lock.mdb", "sources.tsv"))):
        if path.is_symlink():
            raise UserError(f"{path}: is a link, which is not written through; remove it")


def _refuse_damaged(folder: Path) -> None:
    """Go through an unfinished LMDB in a process of its own, which a damaged one may kill.

    Raises:
        UserError: It does.
    """
    if not (folder / "data.mdb").exists():
        return
    if fault := fault_of_reading(folder, change=True):
        raise UserError(f"{folder}: damaged: {fault}; remove it to begin anew")


def _key(source: str, index: int) -> bytes:
    return f"{source}_s{index:03d}".encode("ascii")


def _read_sources(path: Path) -> dict[str, _Record]:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return {}
    sources = {}
    # A last line without its end was being written when the run was killed.
    for line in text[: text.rfind("\n") + 1].splitlines():
        try:
            name, stamp, checksum, count, shape, note = line.split("\t")
            sources[name] = _Record(Fingerprint(stamp, checksum), int(count), shape, note)
        except ValueError:
            raise UserError(
                f"{path}: not as this version of the tool writes it; remove {path.parent} or "
                "choose another --out"
            ) from None
    return sources


def _source_line(name: str, record: _Record) -> str:
    stamp, checksum = record.fingerprint.stamp, record.fingerprint.checksum
    fields = (name, stamp, checksum, str(record.count), record.shape, record.note)
    return "\t".join(fields) + "\n"


def _as_json(recipe: dict) -> bytes:
    return (json.dumps(recipe, indent=2, sort_keys=True) + "\n").encode()


def _cannot_write(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    # LMDB calls a write that the disk had no room for an input/output error.
    if isinstance(error, lmdb.Error) and shutil.disk_usage(path).free < 2 * _COMMIT_BYTES:
        reason = os.strerror(errno.ENOSPC)
    return UserError(
        f"{path}: {reason}; nothing already made is lost, run the same command again once this is "
        "mended"
    )
