"""Servers and proxies that cannot be spoken with: one line that says which, and why."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from esc_arch.errors import UserError
from esc_arch.prepare.download import Patience, download

NO_TLS = b"HTTP/1.1 400 Bad Request\r\n\r\n"
REFUSAL = b"HTTP/1.1 407 Who\x1b[2J are you\r\nContent-Length: 0\r\n\r\n"


class Speaker:
    """Says one thing to all who come, and counts them."""

    def __init__(self, says: bytes) -> None:
        self.says, self.asked = says, 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.speak, daemon=True).start()

    def speak(self) -> None:
        while True:
            try:
                other, _ = self.socket.accept()
            except OSError:
                return
            with other:
                self.asked += 1
                other.recv(4096)
                other.sendall(self.says)


@pytest.fixture
def speaker(request: pytest.FixtureRequest) -> Iterator[Speaker]:
    made = Speaker(request.param)
    yield made
    made.socket.close()


@pytest.fixture(autouse=True)
def no_other_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def told(url: str, folder: Path, retries: int = 2) -> str:
    """What a download from there ends in; nothing is left of it."""
    with pytest.raises(UserError) as raised:
        download(url, folder / "file", progress=False, patience=Patience(retries, 0.01))
    assert list(folder.iterdir()) == []
    line = str(raised.value)
    assert line.startswith(f"{url}: ") and line.isprintable()
    return line


@pytest.mark.parametrize("speaker", [NO_TLS], indirect=True)
def test_a_failure_of_tls_is_not_tried_again(speaker: Speaker, tmp_path: Path):
    line = told(f"https://{speaker.place}/file", tmp_path)
    assert "cannot be reached: [SSL: " in line and "run the same" not in line
    assert speaker.asked == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_is_named(scheme: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:1")
    line = told(f"{scheme}://host.invalid/file", tmp_path, retries=0)
    assert "cannot be reached by the proxy: Connection refused" in line


@pytest.mark.parametrize("speaker", [REFUSAL], indirect=True)
def test_what_a_proxy_says_in_refusal_is_told(speaker: Speaker, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://{speaker.place}")
    line = told("https://host.invalid/file", tmp_path, retries=0)
    assert "by the proxy: Tunnel connection failed: 407 Who\\x1b[2J are you" in line


@pytest.mark.parametrize("speaker", [b"\0\xff nonsense\r\n\r\n"], indirect=True)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_answers_nonsense_is_one_line(
    speaker: Speaker, scheme: str, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv(f"{scheme}_proxy", f"http://{speaker.place}")
    assert "the connection" in told(f"{scheme}://host.invalid/file", tmp_path)
    assert speaker.asked == 3


def test_certificates_that_are_missing_are_named(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/absent.pem")
    assert "invalid path: /absent.pem" in told("https://127.0.0.1:1/file", tmp_path, retries=0)
