"""What the `basicsr` command asks of the C library."""

import os
import platform
import subprocess
import sys

import pytest

PAGES_OF_SECOND_TENSOR = """
import resource
import torch
from basicsr_cli.memory import keep_freed_memory

print(keep_freed_memory())
torch.ones(2**26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_of_second_tensor(**variables: str) -> tuple[str, int]:
    run = subprocess.run(
        [sys.executable, "-c", PAGES_OF_SECOND_TENSOR],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, pages = run.stdout.split()
    return kept, int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_large_tensor_gets_the_memory_of_the_last_one():
    assert pages_of_second_tensor() == ("True", pytest.approx(0, abs=2000))
    # 256 MB, unless the environment says otherwise: 65,536 pages of 4 KB.
    kept, pages = pages_of_second_tensor(MALLOC_MMAP_THRESHOLD_="1000000")
    assert kept == "False"
    assert pages > 10_000
