"""Visitors who talk to the page without a browser: nobody gets at the pictures of another."""

import http.client
import importlib.util
import io
import json
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_network import TINY

from esc_arch.app.visitors import Doorkeeper, Visitors
from esc_arch.cli.main import main
from esc_arch.zoo.identify import build_on_meta

MISSING = [name for name in ("gradio", "uvicorn") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    state = build_on_meta(TINY).state_dict()
    params = {name: torch.randn(value.shape) * 0.02 for name, value in state.items()}
    path = tmp_path_factory.mktemp("model") / "x2.pth"
    torch.save({"params": params}, path)
    return str(path)


@pytest.fixture(scope="module")
def port(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where the page is served, in this process."""
    root = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(root))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI

        from esc_arch.app.page import Offer, build_page

        visitors = Visitors(root, 60)
        page = build_page(Offer({model: 2}, "cpu"), visitors)
        app = gr.mount_gradio_app(FastAPI(), page, path="", ssr_mode=False)
        app.add_middleware(Doorkeeper, visitors=visitors, largest=10**6)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True
        thread.join(30)


class Stranger:
    """A visitor with a cookie and a session of its own."""

    def __init__(self, port: int, model: str, has_cookie: bool = True) -> None:
        self._port, self._model, self._cookie = port, model, ""
        _, _, cookie = self.ask("GET", "/")
        self._cookie = cookie.partition(";")[0] if has_cookie else ""

    def ask(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json"
    ) -> tuple[int, bytes, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        connection.request(method, path, body, {"Cookie": self._cookie, "Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("set-cookie", "")

    def upload(self, content: bytes) -> tuple[int, bytes]:
        head = 'Content-Disposition: form-data; name="files"; filename="mine.png"'
        body = f"--x\r\n{head}\r\n\r\n".encode() + content + b"\r\n--x--\r\n"
        return self.ask("POST", "/gradio_api/upload", body, "multipart/form-data; boundary=x")[:2]

    def upscale(self, file: str) -> str:
        """What the page answers, as JSON."""
        session = secrets.token_hex(5)
        request = {
            "data": [{"path": file, "meta": {"_type": "gradio.FileData"}}, self._model],
            "fn_index": 1,
            "session_hash": session,
        }
        assert self.ask("POST", "/gradio_api/queue/join", json.dumps(request).encode())[0] == 200
        _, told, _ = self.ask("GET", f"/gradio_api/queue/data?session_hash={session}")
        (line,) = [line for line in told.decode().splitlines() if "process_completed" in line]
        return line

    def fetch(self, file: str) -> int:
        return self.ask("GET", f"/gradio_api/file={file}")[0]


def picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 10, 10)).save(content, "PNG")
    return content.getvalue()


def test_who_knows_where_a_picture_lies_cannot_have_it_upscaled(port, model):
    owner, thief = Stranger(port, model), Stranger(port, model)
    status, answer = owner.upload(picture())
    (upload,) = json.loads(answer)
    assert status == 200 and "not uploaded by you" in thief.upscale(upload)
    told = owner.upscale(upload)
    result = re.search(r'"([^"]*mine_x2\.png)"', told)[1]
    assert "not uploaded by you" in thief.upscale(result)
    assert owner.fetch(result) == 200 and thief.fetch(result) == 404
    for elsewhere in ("/etc/passwd", model, str(Path(result).parent)):
        assert "mine_x2" not in thief.upscale(elsewhere)


def test_two_visitors_may_bring_the_same_picture(port, model):
    first, second = Stranger(port, model), Stranger(port, model)
    uploads = [json.loads(one.upload(picture())[1])[0] for one in (first, second)]
    assert uploads[0] != uploads[1]
    for one, upload in zip((first, second), uploads, strict=True):
        assert "mine_x2.png: 16 x 12 pixels" in one.upscale(upload)


def test_without_a_cookie_nothing_is_taken(port, model):
    nobody = Stranger(port, model, has_cookie=False)
    assert nobody.upload(picture())[0] == 403


def test_a_device_that_cannot_be_used_is_told_before_the_page_is_served(model, capsys):
    assert main(["app", "--models", model, "--device", "gpu"]) == 2
    assert "--device gpu: cannot be used here" in capsys.readouterr().err
