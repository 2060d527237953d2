"""Downloads that survive cut connections and are checked before they count."""

import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3
from tqdm import tqdm

from esc_arch.errors import UserError, printable
from esc_arch.whole_files import file_sha256, open_resumable, sha256_of, write_atomically

# As much as a cut connection may lose.
_CHUNK = 1 << 16
# More than any number of bytes has.
_DIGITS = 20
_TIMEOUT = 30
# Twice DIV2K's archive: a server may send without end.
LARGEST = 8 << 30
# No tag of a server is longer, with the address.
_LONGEST_TAG = 4000
_RANGE = re.compile(rf"bytes (?P<first>\d{{1,{_DIGITS}}})-\d+/(?P<total>\d{{1,{_DIGITS}}})")
# What asking again does not mend.
_HOPELESS = (
    requests.TooManyRedirects,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
)


@dataclass(frozen=True)
class Patience:
    """How long a server is put up with.

    Attributes:
        retries: Connections in a row that may fail without bringing much.
        wait: Seconds before the first new try; doubled at each.
        lowest_rate: Bytes a second below which a connection has failed: a server that sends a byte
            now and then would otherwise hold a run for years.
        window: Seconds over which the rate is measured.
        answer: Seconds until an answer's headers must be whole: each byte of them may take as long
            as a silence may last.
    """

    retries: int = 5
    wait: float = 1.0
    lowest_rate: float = 1000
    window: float = 60.0
    answer: float = 120.0


class _WrongPart(requests.ConnectionError):
    """Other bytes than those asked for; asking again may bring the right ones."""


class _TooSlow(requests.ConnectionError):
    """Less than the lowest rate, or no whole answer in time."""


def download(
    url: str,
    path: str | Path,
    sha256: str | None = None,
    progress: bool = True,
    largest: int = LARGEST,
    patience: Patience | None = None,
    begins: tuple[bytes, ...] = (),
) -> str:
    """Download a file, going on where a cut connection or an earlier run stopped.

    The file is written as `NAME.partial` and renamed when it is whole and right. A file already
    there is only checked.

    Args:
        url: HTTP or HTTPS address.
        path: Where the file goes; missing folders are made.
        sha256: Checksum the file must have, in hexadecimal; None takes any.
        progress: Show a bar with rate and remaining time on stderr.
        largest: Bytes that the file may have.
        patience: When to give up.
        begins: What the file may begin with; anything if empty. Pages that say "log in", or that
            there is no such file, come with the status of the file.

    Returns:
        SHA-256 of the file, in hexadecimal.

    Raises:
        UserError: The server refuses or cannot be reached, the checksum is wrong, or the file
            cannot be written.
    """
    path = Path(path)
    try:
        if path.exists():
            digest = file_sha256(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            digest = _fetch(url, partial, progress, largest, patience or Patience())
            if begins and not (head := _head(partial)).startswith(begins):
                _remove(partial)
                what = "a web page" if head.lstrip().startswith(b"<") else "something else"
                raise UserError(f"{url}: the server sent {what} in place of the file")
            if sha256 is not None and digest != sha256.lower():
                _remove(partial)
                raise UserError(
                    f"{url}: the download has SHA-256 {digest}, not {sha256.lower()}; it was "
                    "removed, try again or use another address"
                )
            partial.replace(path)
            _remove(partial)
            return digest
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    if sha256 is not None and digest != sha256.lower():
        raise UserError(
            f"{path}: has SHA-256 {digest}, not {sha256.lower()}; remove it to download it anew"
        )
    return digest


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(256)


def _tag_file(partial: Path) -> Path:
    return partial.with_name(partial.name + ".tag")


def _remove(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _tag_file(partial).unlink(missing_ok=True)


def _tag(partial: Path, url: str) -> str | None:
    """What the server called the file that was begun; None where nothing says so.

    Another address may have another file of the same tag, such as a date.
    """
    path = _tag_file(partial)
    # Of a link it would send a part of what that leads to.
    if not path.is_file() or path.is_symlink() or path.stat().st_nlink > 1:
        return None
    with path.open("rb") as file:
        tag, _, of = file.read(_LONGEST_TAG).decode("latin-1").partition("\n")
    return tag if tag.isprintable() and of == url else None


def _fetch(url: str, partial: Path, progress: bool, largest: int, patience: Patience) -> str:
    """Get all of a file, in as many connections as it takes; returns its SHA-256."""
    failures = 0
    try:
        file = open_resumable(partial)
    except OSError as error:
        raise UserError(f"{printable(partial)}: {error.strerror}") from None
    try:
        with requests.Session() as session, file:
            # Ranges of a compressed transfer would not be ranges of the file.
            session.headers["Accept-Encoding"] = "identity"
            session.hooks["response"] = _leave_body
            while True:
                before = file.seek(0, os.SEEK_END)
                try:
                    _fetch_rest(session, url, file, partial, progress, largest, patience)
                    file.flush()
                    os.fsync(file.fileno())
                    if file.tell() == 0:
                        raise UserError(f"{url}: the server sent an empty file")
                    # Of what was written, whatever has become of the name meanwhile.
                    file.seek(0)
                    return sha256_of(file)
                except _HOPELESS as error:
                    raise UserError(f"{url}: cannot be downloaded: {printable(error)}") from None
                except requests.RequestException as error:
                    cut = not isinstance(error, requests.exceptions.SSLError) or "EOF" in str(error)
                    if not cut:  # No other certificate comes of asking again.
                        raise UserError(f"{url}: {_reason(error)}") from None
                    slow = isinstance(error, _TooSlow)
                    brought = 0 if slow else file.tell() - before
                    failures = 1 if brought >= _CHUNK else failures + 1
                    if failures > patience.retries:
                        kept = "what was downloaded is kept, " if file.tell() else ""
                        raise UserError(
                            f"{url}: {_reason(error)}; {kept}run the same command again to go on"
                        ) from None
                    time.sleep(patience.wait * 2 ** (failures - 1))
    finally:
        if partial.is_file() and partial.stat().st_size == 0:
            _remove(partial)


def _fetch_rest(
    session: requests.Session,
    url: str,
    file: BinaryIO,
    partial: Path,
    progress: bool,
    largest: int,
    patience: Patience,
) -> None:
    """Append what is missing of the file; start over where the server has a newer one."""
    tag_file = _tag_file(partial)
    headers = {}
    offset = file.tell()
    begun = _tag(partial, url)
    if offset and begun is not None:
        # With If-Range the server sends the whole file when it is no longer the one begun.
        headers = {"Range": f"bytes={offset}-", "If-Range": begun}
    with _answer(session, url, headers, patience.answer) as response:
        if response.status_code == 416:
            if response.headers.get("Content-Range") == f"bytes */{offset}":
                return
            tag_file.unlink(missing_ok=True)
            raise _WrongPart("the server has another file now")
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
            tag = f"{tag}\n{url}" if tag else ""
            if tag and len(tag) < _LONGEST_TAG:
                write_atomically(tag_file, tag.encode("latin-1", "replace"))
            else:
                tag_file.unlink(missing_ok=True)
        if total is not None and total > largest:
            raise UserError(f"{url}: {total} bytes, more than the {largest} that it may have")
        with tqdm(
            total=total,
            initial=offset,
            desc=partial.name.removesuffix(".partial"),
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=not progress,
        ) as bar:
            for chunk in _body(response, patience):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > largest:
                    file.truncate(0)
                    raise UserError(f"{url}: sends more than the {largest} bytes it may have")
            file.flush()
        if total is not None and file.tell() != total:
            raise requests.ConnectionError("the connection was cut")


def _answer(
    session: requests.Session, url: str, headers: dict[str, str], seconds: float
) -> requests.Response:
    """Ask, and wait for the headers no longer than so many seconds.

    Timeouts of sockets are of each read: who sends a byte a second would be waited for for days.

    Raises:
        requests.RequestException: There is no answer.
    """
    answers: queue.Queue[requests.Response | BaseException] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(session.get(url, headers=headers, stream=True, timeout=_TIMEOUT))
        except BaseException as error:
            answers.put(error)

    # A thread that still waits then does not keep the process from ending.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise _TooSlow(f"the server has not answered within {seconds:g} s") from None
    if isinstance(answer, OSError) and not isinstance(answer, requests.RequestException):
        # Of the certificates that REQUESTS_CA_BUNDLE names.
        raise requests.exceptions.InvalidSchema(str(answer)) from answer
    if isinstance(answer, ValueError):
        # What requests does not see in an address that it is sent on to: no host, no text.
        raise requests.exceptions.InvalidURL(str(answer)) from answer
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _leave_body(response: requests.Response, **_: object) -> None:
    """Of an answer that sends on, requests reads all that comes with it, if need be for ever."""
    if response.is_redirect:
        response.raw.close()
        response.raw.stream = lambda *_, **__: iter(())


def _body(response: requests.Response, patience: Patience) -> Iterator[bytes]:
    """What the server sends, as it comes and as it is: `iter_content` waits for whole chunks.

    Raises:
        requests.ConnectionError: The connection is cut, or too slow.
    """
    started, received = time.monotonic(), 0
    while True:
        try:
            chunk = response.raw.read1(_CHUNK, decode_content=False)
        except urllib3.exceptions.ReadTimeoutError as error:
            raise requests.ReadTimeout(error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise requests.ConnectionError(error) from None
        if not chunk:
            return
        yield chunk
        received += len(chunk)
        passed = time.monotonic() - started
        if passed >= patience.window:
            if received < patience.lowest_rate * passed:
                raise _TooSlow(
                    f"the server sends {received / passed:.0f} bytes a second, fewer than the "
                    f"{patience.lowest_rate:g} that it must"
                )
            started, received = time.monotonic(), 0


def _announced(response: requests.Response, url: str) -> int | None:
    """Content-Length, if there is one."""
    length = response.headers.get("Content-Length")
    if length is None:
        return None
    if not length.isdecimal() or len(length) > _DIGITS:
        raise UserError(f"{url}: the server's Content-Length is {length[:_DIGITS]}, no number")
    return int(length)


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.HTTPError):
        return f"the server says {error.response.status_code} {printable(error.response.reason)}"
    if isinstance(error, (_WrongPart, _TooSlow)):
        return str(error)
    if isinstance(error, requests.Timeout):
        return f"no answer within {_TIMEOUT} s"
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
        cause = _cause(error)
        way = " by the proxy" if isinstance(error, requests.exceptions.ProxyError) else ""
        return f"cannot be reached{way}: {cause}" if cause else f"the connection{way} was cut"
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
        if isinstance(one, OSError):
            # Of a tunnel that a proxy refuses there is a text alone.
            text = one.args[0] if len(one.args) == 1 else ""
            told = one.strerror or (printable(text) if isinstance(text, str) and text else told)
        waiting += [one.__context__, one.__cause__, getattr(one, "reason", None), *one.args]
    return told
