"""The page in a real browser: upload, upscale, compare, download; and what visitors cannot do."""

import http.client
import importlib.util
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_network import TINY

from esc_arch.app.visitors import Visitors
from esc_arch.cli.main import main
from esc_arch.zoo.identify import build_on_meta

NEEDED = ("gradio", "selenium", "onnx", "onnxruntime")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
MISSING += [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, np.ndarray]) -> Path:
    """Two models, and pictures good and bad."""
    folder = tmp_path_factory.mktemp("app")
    torch.manual_seed(0)
    for scale in (2, 3):
        state = build_on_meta({**TINY, "upscaling_factor": scale}).state_dict()
        params = {name: torch.randn(value.shape) * 0.02 for name, value in state.items()}
        torch.save({"params": params}, folder / f"x{scale}.pth")
    export = ["export", "onnx", "--model", str(folder / "x3.pth"), "-o", str(folder / "x3.onnx")]
    assert main(export) == 0
    Image.fromarray(photographs["chelsea"][:60, :90]).save(folder / "cat.png")
    (folder / "text.png").write_text("This is not a picture.")
    (folder / "half.png").write_bytes((folder / "cat.png").read_bytes()[:5000])
    (folder / "bomb.png").write_bytes(large_png(20_000))
    return folder


def large_png(side: int) -> bytes:
    """A white picture of side x side pixels, in about a megabyte."""
    packer = zlib.compressobj(9)
    row = bytes(1) + b"\xff" * side * 3
    data = b"".join([packer.compress(row) for _ in range(side)]) + packer.flush()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", data),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[int, Path]]:
    """The port, and the folder for temporary files of a running `basicsr app`."""
    command = [sys.executable, "-m", "esc_arch.cli", "app", "--port", "0", "--device", "cpu"]
    command += ["--models", "x2.pth", "x3.onnx", "--max-megabytes", "4"]
    temporary = folder / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), address
        yield int(address.rpartition(":")[2]), temporary
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert not list(temporary.glob("basicsr-app-*")), "it cleans up"


@pytest.fixture(scope="module")
def browser(server: tuple[int, Path], folder: Path) -> Iterator[Any]:
    """Headless Chromium with the page open."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1200,900"):
        options.add_argument(f"--{flag}")
    (folder / "downloads").mkdir()
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(folder / "downloads")}
    )
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(120)
        driver.get(f"http://127.0.0.1:{server[0]}/")
        yield driver
    finally:
        driver.quit()


def wait_for(condition: Any, seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.1)
    return found


def send(browser: Any, file: Path) -> str:
    """Upload a file, press the button, and wait for what the page says."""
    from selenium.webdriver.common.by import By

    def text() -> str:
        return browser.find_element(By.CSS_SELECTOR, "#message textarea").get_property("value")

    field = wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "#upload input[type=file]"))[0]
    field.send_keys(str(file))
    wait_for(lambda: file.stem in browser.find_element(By.ID, "upload").text)
    before = text()
    browser.find_element(By.ID, "go").click()
    # When it is done the field for the file is empty again.
    wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "#upload input[type=file]"))
    return wait_for(lambda: (now := text()) != before and now)


def get(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    return response.status, response.read()


def cookie_of(browser: Any) -> str:
    return f"basicsr_visitor={browser.get_cookie('basicsr_visitor')['value']}"


def test_a_picture_goes_from_upload_to_download(browser, server, folder, monkeypatch):
    from selenium.webdriver.common.by import By

    port, temporary = server
    assert send(browser, folder / "cat.png") == "cat_x2.png: 180 x 120 pixels"
    images = wait_for(
        lambda: (
            [
                image
                for image in browser.find_elements(By.CSS_SELECTOR, "#slider img")
                if image.get_property("naturalWidth") == 180
            ][1:]
            and browser.find_elements(By.CSS_SELECTOR, "#slider img")
        )
    )
    addresses = {image.get_attribute("src") for image in images}
    assert any("before" in one for one in addresses) and any("after" in one for one in addresses)

    # The button is a link, or a button that follows one.
    browser.find_element(By.ID, "download").click()
    file = wait_for(lambda: [*(folder / "downloads").glob("*.png")])[0]
    monkeypatch.chdir(folder)
    command = ["upscale", "cat.png", "--model", "x2.pth", "--device", "cpu", "-o", "own.png"]
    assert main(command) == 0
    assert file.read_bytes() == Path("own.png").read_bytes()

    # What belongs to this visitor is for nobody else, and the upload is gone.
    everything = [path for path in temporary.rglob("*") if path.is_file()]
    sent = (folder / "cat.png").read_bytes()
    assert all(path.read_bytes() != sent for path in everything)
    kept = [path for path in everything if path.parents[1].name.startswith("visitor-")]
    assert {path.name.split("-")[0] for path in kept} == {"after", "before", "cat_x2.png"}
    for path in kept:
        address = f"/gradio_api/file={path}"
        assert get(port, address, Cookie=cookie_of(browser)) == (200, path.read_bytes())
        for cookies in ({}, {"Cookie": "basicsr_visitor=" + 43 * "a"}):
            for way in (
                address,
                f"/gradio_api/file/{path}",
                f"//gradio_api/file={path}",
                f"/gradio_api/file=/./{path}",
                f"/gradio_api/file=/x/..{path}",
                f"/gradio_api/file={str(path).replace('/', '%2f')}",
            ):
                assert get(port, way, **cookies)[0] == 404, way
    # Nor does another visitor's cookie open them by way of their own folder.
    other = Visitors(kept[0].parents[2], 1).folder({"basicsr_visitor": 43 * "a"})
    cookies = {"Cookie": "basicsr_visitor=" + 43 * "a"}
    for dots in ("..", "%2e%2e", "%252e%252e"):
        way = f"/gradio_api/file={other}/{dots}/{kept[0].relative_to(kept[0].parents[2])}"
        assert get(port, way, **cookies)[0] == 404, way


def test_another_scale_offers_its_models(browser, folder):
    from selenium.webdriver.common.by import By

    def choices() -> list:
        return browser.find_elements(By.CSS_SELECTOR, "#scale input")

    wait_for(lambda: len(choices()) == 2)
    choices()[1].click()
    model = browser.find_element(By.CSS_SELECTOR, "#model input")
    wait_for(lambda: model.get_property("value") == "x3.onnx")
    assert send(browser, folder / "cat.png") == "cat_x3.png: 270 x 180 pixels"
    choices()[0].click()
    wait_for(lambda: model.get_property("value") == "x2.pth")


@pytest.mark.parametrize(
    "name, told",
    [
        ("half.png", "half.png: damaged, or not a picture"),
        ("bomb.png", "bomb.png: 20000 x 20000 pixels are more than 16 megapixels"),
        (
            "text.png",
            "text.png: is text ('This is not a pictur...'), not a picture that can be read",
        ),
    ],
)
def test_a_bad_file_is_a_sentence_and_the_page_lives_on(name, told, browser, server, folder):
    said = send(browser, folder / name)
    assert said.startswith(told) and str(server[1]) not in said
    assert send(browser, folder / "cat.png") == "cat_x2.png: 180 x 120 pixels"


def test_files_of_the_machine_and_requests_by_other_names_are_refused(server, browser):
    port, _ = server
    cookie = cookie_of(browser)
    for path in ("/etc/passwd", "../../etc/passwd", "%2fetc%2fpasswd", "http://127.0.0.1:1/x"):
        assert get(port, f"/gradio_api/file={path}", Cookie=cookie)[0] in (403, 404)
    for door in ("/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/run-history/buckets"):
        assert get(port, door, Cookie=cookie)[0] == 404
    assert get(port, "/", Host="evil.example")[0] == 400
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/gradio_api/upload", b"", {"Content-Length": "5000000"})
    assert connection.getresponse().status == 413
