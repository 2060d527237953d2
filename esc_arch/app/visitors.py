"""Keeps visitors of the page apart: whose a file is, who may fetch it, and when it goes."""

import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COOKIE = "basicsr_visitor"
_TOKEN = re.compile(r"[\w-]{43}")
# All that the page itself asks for. Gradio has more doors, to files as well, that it does not need.
_OPEN = re.compile(
    r"/(|config/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json|(assets|static|svelte)/.*)"
    r"|/gradio_api/(queue/(join|data)|upload|upload_progress|heartbeat/\w+|startup-events"
    r"|theme\.css|app_id|info|cancel|reset)/?"
)
_FILE = "/gradio_api/file="
_UPLOAD = "/gradio_api/upload"


class Visitors:
    """A folder for each visitor, by a random cookie that no page and no address shows.

    Args:
        root: Where the folders are. The page's uploads are below it, too.
        minutes: How long files are kept.
    """

    def __init__(self, root: Path, minutes: float) -> None:
        self.root = root.resolve()
        self._seconds = minutes * 60

    def folder(self, cookies: Mapping[str, str]) -> Path | None:
        """The visitor's own folder; None for one without a cookie."""
        token = cookies.get(COOKIE, "")
        if not _TOKEN.fullmatch(token):
            return None
        return self.root / f"visitor-{hashlib.sha256(token.encode()).hexdigest()}"

    def may_fetch(self, path: str, cookies: Mapping[str, str]) -> bool:
        """Whether an address, without host and query, may be fetched by a visitor."""
        if not path.startswith(_FILE):
            return bool(_OPEN.fullmatch(path))
        own = self.folder(cookies)
        if own is None:
            return False
        # However often the server takes escapes for what they stand for.
        named = path.removeprefix(_FILE)
        spellings = {named, unquote(named), unquote(unquote(named))}
        return all(own in Path("/", one).resolve().parents for one in spellings)

    def take(self, upload: str, own: Path) -> str:
        """Move an upload to the visitor's own folder; the page takes pictures from there alone.

        Gradio calls files by their content, so that the same one of two visitors is one file.

        Returns:
            Where it is now.
        """
        folder = own / secrets.token_hex(8)
        folder.mkdir(parents=True, mode=0o700)
        source = self.root / upload
        os.replace(source, folder / source.name)
        return str(folder / source.name)

    def remove_old(self) -> None:
        """Remove files, and then empty folders, that are older than files are kept."""
        oldest = time.time() - self._seconds
        for path in sorted(self.root.rglob("*"), reverse=True):
            try:
                if path.lstat().st_mtime < oldest:
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            except OSError:
                continue  # Not empty, or gone already.

    def keep_tidy(self) -> threading.Event:
        """Remove old files from now on, until the event that is returned is set."""
        ended = threading.Event()

        def tidy() -> None:
            while not ended.wait(min(60, self._seconds / 4)):
                self.remove_old()

        threading.Thread(target=tidy, name="tidy", daemon=True).start()
        return ended


class Doorkeeper:
    """ASGI middleware: gives visitors their cookie, and nobody the files of another.

    Args:
        app: What is behind it.
        visitors: Whose the files are.
        largest: Bytes of the largest request that is taken.
    """

    def __init__(self, app: Any, visitors: Visitors, largest: int) -> None:
        self._app, self._visitors, self._largest = app, visitors, largest

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse

        request = Request(scope)
        if not self._visitors.may_fetch(scope["path"], request.cookies):
            await PlainTextResponse("not found", 404)(scope, receive, send)
            return
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._largest:
            await PlainTextResponse("too large", 413)(scope, receive, send)
            return
        own = self._visitors.folder(request.cookies)
        if scope["path"].rstrip("/") == _UPLOAD:
            if own is None:
                await PlainTextResponse("this page needs cookies", 403)(scope, receive, send)
            else:
                await self._upload(own, scope, receive, send)
            return
        fresh = own is None

        async def send_with_cookie(message: dict) -> None:
            if fresh and message["type"] == "http.response.start":
                cookie = f"{COOKIE}={secrets.token_urlsafe(32)}; HttpOnly; SameSite=Strict; Path=/"
                headers = [*message.get("headers", []), (b"set-cookie", cookie.encode())]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_cookie)

    async def _upload(self, own: Path, scope: dict, receive: Any, send: Any) -> None:
        """Let Gradio take files, and answer with where they are in the visitor's own folder."""
        from starlette.responses import JSONResponse, PlainTextResponse

        answer: list[dict] = []

        async def keep(message: dict) -> None:
            answer.append(message)

        await self._app(scope, receive, keep)
        if not answer or answer[0].get("status") != 200:
            for message in answer:
                await send(message)
            return
        uploads = json.loads(b"".join(message.get("body", b"") for message in answer))
        try:
            taken = [self._visitors.take(upload, own) for upload in uploads]
        except OSError:  # Another visitor's of the same content was moved at this very moment.
            await PlainTextResponse("upload it again", 503)(scope, receive, send)
        else:
            await JSONResponse(taken)(scope, receive, send)
