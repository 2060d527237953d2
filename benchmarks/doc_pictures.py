"""Make the pictures of docs/: the page that `basicsr app` serves, and what `--compare` writes.

Usage: python benchmarks/doc_pictures.py [FOLDER]

FOLDER is docs/ by default. Needs scikit-image for the photograph, and for the page the extra `app`,
selenium, chromium and chromedriver.
"""

import io
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from skimage import data

COMMAND = (sys.executable, "-m", "esc_arch.cli")


def main() -> None:
    """Make them."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs").resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = Image.fromarray(data.chelsea()).crop((60, 20, 380, 260))
        photo.resize((160, 120), Image.Resampling.BICUBIC).save(folder / "cat.png")
        upscale = ("upscale", "cat.png", "--compare", "--device", "cpu", "-o", "cat_x2.png")
        subprocess.run([*COMMAND, *upscale], cwd=folder, check=True)
        both = next(file for file in folder.glob("*compare*"))
        Image.open(both).convert("RGB").save(out / "upscale_compare.jpg", quality=90)
        page(folder, out / "app.jpg")


def page(folder: Path, picture: Path) -> None:
    """Serve the page, send it a picture, and write down what a browser shows."""
    command = [*COMMAND, "app", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            browse(process.stdout.readline().strip(), folder / "cat.png", picture)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def browse(address: str, file: Path, picture: Path) -> None:
    """Upload, upscale, and take a picture of the page."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1200,760"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))

    def wait(selector: str, ready: Any = bool) -> Any:
        end = time.monotonic() + 300
        while not ready(found := browser.find_elements(By.CSS_SELECTOR, selector)):
            if time.monotonic() > end:
                raise SystemExit(f"{selector} did not come")
            time.sleep(0.2)
        return found

    try:
        browser.get(address)
        wait("#upload input[type=file]")[0].send_keys(str(file))
        wait("#upload", lambda found: found and file.stem in found[0].text)
        wait("#go")[0].click()
        wait("#slider img", lambda found: len(found) > 1)
        time.sleep(3)
        shown = browser.get_screenshot_as_png()
    finally:
        browser.quit()
    Image.open(io.BytesIO(shown)).convert("RGB").save(picture, quality=90)


if __name__ == "__main__":
    main()
