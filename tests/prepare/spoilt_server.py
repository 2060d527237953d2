"""A local HTTP server that cuts connections, lies and changes."""

import contextlib
import hashlib
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 12000 + b"the end"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`; the settings below spoil it.

    Attributes:
        cuts: Bytes after which each of the next connections is cut.
        statuses: Statuses with which the next requests are refused.
        ranges: Whether ranges are understood.
        tag: The ETag.
        asked: The Range headers so far.
        answer: Status and headers that every request gets, with the first 1000 bytes.
        raw: What every request gets, byte by byte as it stands; the last byte again and again.
        pause: Seconds after each byte of the content.
        moves: The next requests that are sent on, each with a page that does not end.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.ranges = True
        self.tag: str | None = '"one"'
        self.asked: list[str | None] = []
        self.answer: tuple[int, dict[str, str]] | None = None
        self.pause: float | None = None
        self.raw: bytes | None = None
        self.moves = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.headers["Range"])
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        if server.moves:
            server.moves -= 1
            self.send_response(302)
            self.send_header("Location", server.url)
            self.send_header("Set-Cookie", "seen=yes")
            self.end_headers()
            self.drip(bytes(1_000_000))
            return
        if server.raw is not None:
            self.wfile.write(server.raw)
            self.drip(server.raw[-1:] * 10_000)
            return
        if server.answer:
            status, headers = server.answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(server.content[:1000])
            return
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if wanted and server.ranges and self.headers["If-Range"] == server.tag:
            start = int(wanted[1])
        whole = len(server.content)
        if start >= whole:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{whole}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.send_header("Content-Length", str(whole - start))
        if server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        rest = server.content[start:]
        if server.pause is not None:
            self.drip(rest)
            return
        self.wfile.write(rest[: server.cuts.pop(0)] if server.cuts else rest)

    def drip(self, rest: bytes) -> None:
        with contextlib.suppress(OSError):  # The other side has given up, as it should.
            for place in range(len(rest)):
                self.wfile.write(rest[place : place + 1])
                time.sleep(self.server.pause or 0)

    def log_message(self, *arguments) -> None:
        pass
