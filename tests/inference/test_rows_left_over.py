"""Pictures that go row by row and could not be written whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_many_pictures import make_model

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
