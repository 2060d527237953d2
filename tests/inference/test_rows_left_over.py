"""Pictures that go row by row and could not be written whole."""

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_many_pictures import make_model

from esc_arch.errors import UserError
from esc_arch.inference.encoding import Encoding, save_rows
from esc_arch.inference.metadata import Metadata

FULL_DISK = """
import gc, resource, signal, sys, threading
from pathlib import Path
import esc_arch
from esc_arch.errors import UserError
from esc_arch.inference.work import Job, run_job

# What is left in a circle of references stays.
gc.disable()
upscaler = esc_arch.load(sys.argv[1], "cpu", tile=32)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    run_job(Job(Path("large.png"), Path("a.png")), upscaler)
except UserError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
another = threading.Thread(
    target=run_job, args=(Job(Path("large.png"), Path("b.png")), upscaler), daemon=True
)
another.start()
another.join(60)
print(Path("a.png").exists(), Path("b.png").exists())
"""


@pytest.mark.skipif(os.name != "posix", reason="limits files as POSIX does")
def test_after_a_picture_that_could_not_be_written_other_threads_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_model(Path("net.pth"), 0)
    Image.effect_noise((200, 200), 50).convert("RGB").save("large.png")
    command = [sys.executable, "-c", FULL_DISK, str(model)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "a.png: cannot be written: File too large\nFalse True\n"


@pytest.mark.parametrize("fails", ["rows", "file"])
def test_an_error_in_the_middle_ends_the_encoder_and_is_told_as_it_was(fails):
    class Full(io.BytesIO):
        def write(self, data: bytes) -> int:
            if fails == "file" and self.tell() > 100_000:
                raise OSError("full")
            return super().write(data)

    def rows() -> Iterator[np.ndarray]:
        for number in range(100):
            if fails == "rows" and number == 50:
                raise UserError("not finite")
            yield random.integers(0, 256, (10, 500, 3)).astype(np.uint8)

    random = np.random.default_rng(0)
    with pytest.raises((OSError, UserError), match="full" if fails == "file" else "not finite"):
        save_rows(Full(), rows(), (1000, 500, 3), Metadata(), Encoding())
    assert "encoder" not in {thread.name for thread in threading.enumerate()}
