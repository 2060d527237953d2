"""Downloads that survive cut connections and are checked before they count."""

import hashlib
import os
import re
import time
from pathlib import Path

import requests
from tqdm import tqdm

from esc_arch.errors import UserError, printable

# As much as a cut connection may lose.
_CHUNK = 1 << 16
_TIMEOUT = 30
# Twice DIV2K's archive: a server may send without end.
LARGEST = 8 << 30
_RANGE = re.compile(r"bytes (?P<first>\d+)-\d+/(?P<total>\d+)")
# What asking again does not mend.
_HOPELESS = (
    requests.TooManyRedirects,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
)


class _WrongPart(requests.ConnectionError):
    """Other bytes than those asked for; asking again may bring the right ones."""


def download(
    url: str,
    path: str | Path,
    sha256: str | None = None,
    progress: bool = True,
    retries: int = 5,
    wait: float = 1.0,
    largest: int = LARGEST,
) -> str:
    """Download a file, going on where a cut connection or an earlier run stopped.

    The file is written as `NAME.partial` and renamed when it is whole and right. A file already
    there is only checked.

    Args:
        url: HTTP or HTTPS address.
        path: Where the file goes; missing folders are made.
        sha256: Checksum the file must have, in hexadecimal; None takes any.
        progress: Show a bar with rate and remaining time on stderr.
        retries: Connections in a row that may fail without bringing a byte.
        wait: Seconds before the first new try; doubled at each.
        largest: Bytes that the file may have.

    Returns:
        SHA-256 of the file, in hexadecimal.

    Raises:
        UserError: The server refuses or cannot be reached, the checksum is wrong, or the file
            cannot be written.
    """
    path = Path(path)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            try:
                _fetch(url, partial, progress, retries, wait, largest)
            finally:
                if partial.exists() and partial.stat().st_size == 0:
                    partial.unlink()
                    _tag_file(partial).unlink(missing_ok=True)
            digest = file_sha256(partial)
            if sha256 is not None and digest != sha256.lower():
                partial.unlink()
                _tag_file(partial).unlink(missing_ok=True)
                raise UserError(
                    f"{url}: the download has SHA-256 {digest}, not {sha256.lower()}; it was "
                    "removed, try again or use another address"
                )
            partial.rename(path)
            _tag_file(partial).unlink(missing_ok=True)
            return digest
        digest = file_sha256(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    if sha256 is not None and digest != sha256.lower():
        raise UserError(
            f"{path}: has SHA-256 {digest}, not {sha256.lower()}; remove it to download it anew"
        )
    return digest


def file_sha256(path: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _tag_file(partial: Path) -> Path:
    return partial.with_name(partial.name + ".tag")


def _fetch(
    url: str, partial: Path, progress: bool, retries: int, wait: float, largest: int
) -> None:
    failures = 0
    with requests.Session() as session, partial.open("ab") as file:
        # Ranges of a compressed transfer would not be ranges of the file.
        session.headers["Accept-Encoding"] = "identity"
        while True:
            before = file.tell()
            try:
                _fetch_rest(session, url, file, _tag_file(partial), progress, largest)
                file.flush()
                os.fsync(file.fileno())
                if file.tell() == 0:
                    raise UserError(f"{url}: the server sent an empty file")
                return
            except _HOPELESS as error:
                raise UserError(f"{url}: cannot be downloaded: {printable(error)}") from None
            except requests.RequestException as error:
                failures = 1 if file.tell() > before else failures + 1
                if failures > retries:
                    kept = "what was downloaded is kept, " if file.tell() else ""
                    raise UserError(
                        f"{url}: {_reason(error)}; {kept}run the same command again to go on"
                    ) from None
                time.sleep(wait * 2 ** (failures - 1))


def _fetch_rest(session, url: str, file, tag_file: Path, progress: bool, largest: int) -> None:
    """Append what is missing of the file; start over where the server has a newer one."""
    headers = {}
    offset = file.tell()
    if offset and tag_file.exists():
        # With If-Range the server sends the whole file when it is no longer the one begun.
        headers = {"Range": f"bytes={offset}-", "If-Range": tag_file.read_text()}
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == 416:
            if response.headers.get("Content-Range") == f"bytes */{offset}":
                return
            tag_file.unlink()
            raise requests.ConnectionError("the server has another file now")
        if 400 <= response.status_code < 500:
            raise UserError(
                f"{url}: the server says {response.status_code} {printable(response.reason)}"
            )
        response.raise_for_status()
        if response.status_code not in (200, 206):
            raise UserError(
                f"{url}: the server says {response.status_code}, which is no answer to a download"
            )
        total = _announced(response, url)
        if response.status_code == 206:
            part = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if not headers or part is None or int(part["first"]) != offset:
                tag_file.unlink(missing_ok=True)
                raise _WrongPart("the server sent another part than was asked for")
            # What it sends may be less than all the rest.
            total = int(part["total"])
        else:
            offset = 0
            file.truncate(0)
            tag = response.headers.get("ETag", "")
            if not tag or tag.startswith("W/"):
                tag = response.headers.get("Last-Modified", "")
            if tag:
                tag_file.write_text(tag)
            else:
                tag_file.unlink(missing_ok=True)
        if total is not None and total > largest:
            raise UserError(f"{url}: {total} bytes, more than the {largest} that it may have")
        name = Path(file.name).name.removesuffix(".partial")
        with tqdm(
            total=total,
            initial=offset,
            desc=name,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=not progress,
        ) as bar:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > largest:
                    file.truncate(0)
                    raise UserError(f"{url}: sends more than the {largest} bytes it may have")
            file.flush()
        if total is not None and file.tell() != total:
            raise requests.ConnectionError("the connection was cut")


def _announced(response: requests.Response, url: str) -> int | None:
    """Content-Length, if there is one."""
    length = response.headers.get("Content-Length")
    if length is None:
        return None
    if not length.isdecimal():
        raise UserError(f"{url}: the server's Content-Length is {printable(length)}, no number")
    return int(length)


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.HTTPError):
        return f"the server says {error.response.status_code} {printable(error.response.reason)}"
    if isinstance(error, _WrongPart):
        return str(error)
    if isinstance(error, requests.Timeout):
        return f"no answer within {_TIMEOUT} s"
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
        cause = _cause(error)
        return f"cannot be reached: {cause}" if cause else "the connection was cut"
    return " ".join(str(error).split())


def _cause(error: BaseException) -> str:
    """What the system said, beneath the layers that requests and urllib3 put around it."""
    told = ""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and one.strerror:
            told = one.strerror
        waiting += [one.__context__, one.__cause__, getattr(one, "reason", None), *one.args]
    return told
